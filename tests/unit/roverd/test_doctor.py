"""The rover's doctor names what is wrong and what to do about it; every bound is where it says."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest

from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings
from protocol.keys import load_or_make
from protocol.node.checkup.address import Reach
from roverd import doctor
from roverd.doctor import board, driving, link, npu, realtime, sensors, standing, storage
from roverd.rates import Rates
from roverd.settings import Settings

SPEC = SyntheticRobot(SyntheticSettings(control_rate_hz=30.0)).spec
IMAGE, DEPTH = "observation.images.front", "observation.depth.front"


def only(checks):
    (check,) = checks
    return check


def by_name(checks):
    return {each.check: each for each in checks}


def write(root, **files):
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)


def tree(root, files):
    write(root, **files)
    return root


# -- the board


CPU = "sys/devices/system/cpu/cpu4/cpufreq/"
FAST = {f"{CPU}scaling_governor": "performance\n", f"{CPU}scaling_cur_freq": "2208000"}
FAST |= {f"{CPU}scaling_max_freq": "2208000", f"{CPU}cpuinfo_max_freq": "2208000"}


def test_a_fast_processor_is_shown_with_its_governor(tmp_path):
    check = only(board.frequency(tree(tmp_path, FAST), is_needed=True))
    assert (check.ok, check.measured) == (True, "cpu4 performance 2208 MHz")


@pytest.mark.parametrize(
    ("driver", "ok"),
    [("cpufreq-dt", False), ("intel_pstate", True)],
)
def test_powersave_is_slow_unless_the_processor_sees_to_itself(tmp_path, driver, ok):
    files = {**FAST, f"{CPU}scaling_governor": "powersave", f"{CPU}scaling_driver": driver}
    check = only(board.frequency(tree(tmp_path, files), is_needed=True))
    assert check.ok is ok
    assert ok or "tee /sys/devices" in check.hint


@pytest.mark.parametrize(("limit", "ok"), [(2097600, True), (2097599, False)])
def test_a_limited_frequency_is_told_below_95_percent(tmp_path, limit, ok):
    files = {**FAST, f"{CPU}scaling_max_freq": str(limit)}
    assert ("cpu frequency" in by_name(board.frequency(tree(tmp_path, files), is_needed=True))) is not ok


def test_a_machine_that_tells_nothing_is_only_noted(tmp_path):
    assert [each.state for each in board.frequency(tmp_path, is_needed=True)] == ["note"]
    assert [each.state for each in board.temperature(tmp_path, is_needed=True)] == ["note"]
    assert list(board.voltage(tmp_path)) == []


ZONE = "sys/class/thermal/thermal_zone0/"


@pytest.mark.parametrize(("milli", "ok"), [("80000", True), ("80001", False)])
def test_a_board_within_five_degrees_of_its_limit_is_hot(tmp_path, milli, ok):
    files = {f"{ZONE}type": "soc-thermal", f"{ZONE}temp": milli}
    files |= {f"{ZONE}trip_point_0_type": "passive", f"{ZONE}trip_point_0_temp": "85000"}
    files |= {f"{ZONE}trip_point_1_type": "critical", f"{ZONE}trip_point_1_temp": "60000"}
    check = by_name(board.temperature(tree(tmp_path, files), is_needed=True))["temperature"]
    assert check.ok is ok
    assert check.measured == "soc-thermal 80 C of 85"


@pytest.mark.parametrize(("state", "ok"), [("0", True), ("2", False)])
def test_a_processor_that_is_slowed_down_for_its_heat_is_told(tmp_path, state, ok):
    device = "sys/class/thermal/cooling_device1/"
    files = {f"{ZONE}type": "soc", f"{ZONE}temp": "50000", f"{device}type": "thermal-cpufreq-0"}
    files |= {f"{device}cur_state": state, f"{device}max_state": "8"}
    check = by_name(board.temperature(tree(tmp_path, files), is_needed=True))["throttling"]
    assert check.ok is ok
    assert ok or check.measured == "thermal-cpufreq-0 2 of 8"


@pytest.mark.parametrize(
    ("path", "content", "ok"),
    [
        ("sys/class/hwmon/hwmon3/in0_lcrit_alarm", "0", True),
        ("sys/class/hwmon/hwmon3/in0_lcrit_alarm", "1", False),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "0", True),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005", False),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "10000", False),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "8", True),
    ],
)
def test_an_alarm_of_the_supply_is_told(tmp_path, path, content, ok):
    assert only(board.voltage(tree(tmp_path, {path: content}))).ok is ok


# -- the NPU


def npu_tree(root, version="0.9.8", library="2.3.2", **more):
    files = {"proc/device-tree/compatible": "orangepi,5\0rockchip,rk3588\0", **more}
    if version:
        files["sys/kernel/debug/rknpu/version"] = f"RKNPU driver: v{version}\n"
    if library:
        files["usr/lib/librknnrt.so"] = f"\x7fELF librknnrt version: {library} (429f97ae6b@2025-04-09)\0"
    return npu.measure(tree(root, files))._replace(toolkit="2.3.2")


def test_an_npu_with_its_driver_library_and_toolkit_is_healthy(tmp_path):
    found = npu_tree(tmp_path, **{"sys/class/devfreq/fdab0000.npu/cur_freq": "1000000000"})
    checks = by_name(npu.npu(found))
    assert checks["npu driver"].measured == "rknpu 0.9.8"
    assert checks["npu runtime"].measured == "librknnrt 2.3.2, rknn-toolkit-lite2 2.3.2"
    assert checks["npu frequency"].measured == ", 1000 MHz"
    assert all(each.ok for each in checks.values())


@pytest.mark.parametrize(("version", "ok"), [("0.9.2", True), ("0.9.1", False), ("0.8.8", False)])
def test_an_old_driver_is_told(tmp_path, version, ok):
    assert by_name(npu.npu(npu_tree(tmp_path, version)))["npu driver"].ok is ok


def test_a_library_of_another_version_than_the_toolkit_is_told(tmp_path):
    check = by_name(npu.npu(npu_tree(tmp_path, library="1.4.0")))["npu runtime"]
    assert not check.ok
    assert "librknnrt 1.4.0, rknn-toolkit-lite2 2.3.2" in check.measured
    assert "crash" in check.hint


def test_mainlines_driver_is_told_apart_from_the_vendors(tmp_path):
    found = npu_tree(tmp_path, version="", **{"dev/accel/accel0": ""})
    check = by_name(npu.npu(found))["npu driver"]
    assert "rocket" in check.measured
    assert "vendor" in check.hint
    assert check.ok, "the CPU runs the policy"


def test_a_board_without_driver_or_runtime_uses_its_cpu(tmp_path):
    checks = by_name(npu.npu(npu_tree(tmp_path, version="", library="")))
    assert [each.state for each in checks.values()] == ["note", "note"]
    assert "modprobe" in checks["npu driver"].hint


def test_a_driver_whose_version_only_root_may_read_is_noted(tmp_path):
    found = npu_tree(tmp_path, version="", **{"sys/class/devfreq/fdab0000.npu/governor": "powersave"})
    checks = by_name(npu.npu(found))
    assert "debug/rknpu" in checks["npu driver"].hint
    assert checks["npu frequency"].state == "note"


def test_device_files_that_are_closed_to_this_user_are_named(tmp_path, monkeypatch):
    write(tmp_path, **{"dev/dri/renderD129": ""})
    monkeypatch.setattr(os, "access", lambda *_: False)
    check = by_name(npu.npu(npu_tree(tmp_path)))["npu access"]
    assert "renderD129" in check.measured
    assert "usermod -aG render,video" in check.hint


def test_a_machine_without_a_board_has_no_npu(tmp_path):
    assert only(npu.npu(npu.measure(tmp_path))).ok


# -- punctuality

FIFO = {"fifo": True, "priority": 50, "nice": 0, "mlockall": True, "affinity": [6, 7], "reason": ""}
REFUSED = {**FIFO, "fifo": False, "reason": "SCHED_FIFO: the kernel has CONFIG_RT_GROUP_SCHED"}


def test_what_the_kernel_granted_is_shown():
    check = only(realtime.processes({"control": FIFO}, is_clocked=True, is_real=True))
    assert (check.ok, check.measured) == (True, "SCHED_FIFO 50, memory locked, cores 6,7")


@pytest.mark.parametrize(("is_real", "name", "state"), [(True, "control", "fail"), (True, "policy 0", "note")])
def test_a_refusal_is_told_with_the_kernels_reason(is_real, name, state):
    check = only(realtime.processes({name: REFUSED}, is_clocked=True, is_real=is_real))
    assert (check.state, check.hint) == (state, REFUSED["reason"])


def test_memory_that_is_not_locked_counts_for_control_only():
    unlocked = {**FIFO, "mlockall": False, "reason": "mlockall: set LimitMEMLOCK=infinity"}
    checks = by_name(realtime.processes({"spare": unlocked, "policy 1": unlocked}, is_clocked=True, is_real=True))
    assert [each.ok for each in checks.values()] == [False, True]
    assert "LimitMEMLOCK" in checks["realtime of spare"].hint


def test_a_simulator_needs_no_realtime_and_lock_step_no_time():
    assert only(realtime.processes({"control": REFUSED}, is_clocked=True, is_real=False)).state == "note"
    assert only(realtime.processes({}, is_clocked=False, is_real=False)).state == "ok"
    assert not only(realtime.processes({}, is_clocked=True, is_real=True)).ok
    assert "control.realtime" in realtime.remedy({"reason": "not asked for"})


def late(p99_ms, n=1000):
    return {"n": n, "tick_p99_ms": p99_ms, "action_p99_ms": 0.1}


@pytest.mark.parametrize(
    ("p99_ms", "is_real", "state"),
    [(1.0, True, "ok"), (1.01, True, "note"), (3.34, True, "fail"), (3.33, True, "note"), (3.34, False, "note")],
)
def test_lateness_is_judged_by_a_millisecond_and_by_a_tenth_of_the_period(p99_ms, is_real, state):
    checks = by_name(realtime.lateness(late(p99_ms), 1000 / 30, is_clocked=True, is_real=is_real))
    assert checks["lateness of ticks"].state == state
    assert checks["lateness of actions"].state == "ok"
    assert f"p99 {p99_ms:.3f}" in checks["lateness of ticks"].measured


def test_a_few_ticks_say_nothing_of_lateness():
    assert only(realtime.lateness(late(90.0, n=49), 33.0, is_clocked=True, is_real=True)).ok
    assert only(realtime.lateness({"n": 0}, 33.0, is_clocked=False, is_real=True)).ok


@pytest.mark.parametrize(("missed", "state"), [(1, "ok"), (2, "note"), (10, "note"), (11, "fail")])
def test_missed_proposals_are_judged_by_their_share(missed, state):
    checks = by_name(realtime.ticks({"ticks": 1000, "missed": missed}, is_clocked=True, is_real=True))
    assert checks["missed proposals"].state == state


@pytest.mark.parametrize(("skipped", "dropped", "state"), [(1, 0, "ok"), (1, 1, "note")])
def test_ticks_that_roverd_did_not_hear_of_are_noted(skipped, dropped, state):
    counts = {"ticks": 1000, "skipped": skipped, "dropped_frames": dropped}
    assert by_name(realtime.ticks(counts, is_clocked=True, is_real=True))["gaps"].state == state


def test_a_lost_spare_and_an_actuator_that_refuses_are_told():
    status = {"needs_spare": True, "has_spare": False, "takeovers": 2, "actuator_failure": "board: refused"}
    checks = by_name(realtime.control(status))
    assert [each.ok for each in checks.values()] == [False, True, False]
    assert checks["takeovers"].state == "note"
    assert checks["actuator"].measured == "board: refused"
    assert only(realtime.control({"actuator": "board"})).measured == "board: takes commands"


@pytest.mark.parametrize(
    ("may", "has_groups", "limit", "ok"),
    [(True, False, "", True), (False, False, "60", True), (False, True, "60", False), (False, False, "0", False)],
)
def test_without_a_daemon_the_permission_is_tried(monkeypatch, may, has_groups, limit, ok):
    monkeypatch.setattr(realtime, "try_fifo", lambda: may)
    monkeypatch.setattr(realtime.kernel, "has_group_scheduling", lambda: has_groups)
    check = by_name(realtime.permission({"LimitRTPRIO": limit}, is_needed=True))["SCHED_FIFO"]
    assert check.ok is ok
    assert ok or "LimitRTPRIO" in check.hint or "CONFIG_RT_GROUP_SCHED" in check.hint
    assert realtime.try_fifo() in {True, False}


# -- sensors


class Seen:
    def __init__(self, image_stamp_ns):
        self.image_stamp_ns = image_stamp_ns


def driven(rate_hz, seconds, images_every=1):
    now = [0.0]
    rates = Rates(lambda: now[0])
    for tick in range(int(seconds * rate_hz)):
        now[0] = tick / rate_hz
        rates.saw(Seen(tick // images_every + 1), 1.5)
    return rates, now


def test_rates_are_counted_over_the_last_seconds():
    rates, now = driven(30.0, 12.0, images_every=3)
    readings, pictures = rates.per_second()
    assert (readings, pictures) == (pytest.approx(30.0, rel=0.02), pytest.approx(10.0, rel=0.02))
    assert rates.clearance_m == 1.5
    now[0] += 2.1
    assert rates.per_second() is None, "it does not drive any more"


def test_too_short_a_drive_has_no_rate():
    assert Rates().per_second() is None
    assert driven(30.0, 1.9)[0].per_second() is None


@pytest.mark.parametrize(("hz", "ok"), [(24.0, True), (23.9, False)])
def test_a_camera_below_four_fifths_of_its_rate_is_told(hz, ok):
    checks = by_name(sensors.rates(SPEC, (30.0, hz), decisions_only=False, is_clocked=True))
    assert (checks[f"rate of {IMAGE}"].ok, checks[f"rate of {DEPTH}"].ok) == (ok, ok)
    assert checks["rate of observation.state"].ok


def test_pictures_of_decisions_only_may_be_rarer():
    spec = replace(SPEC, action_repeat=3)
    checks = by_name(sensors.rates(spec, (30.0, 10.0), decisions_only=True, is_clocked=True))
    assert all(each.ok for each in checks.values())


def test_rates_are_not_judged_at_rest_or_in_lock_step():
    assert only(sensors.rates(SPEC, None, decisions_only=False, is_clocked=True)).ok
    assert only(sensors.rates(SPEC, (9999.0, 1.0), decisions_only=False, is_clocked=False)).ok


@pytest.mark.parametrize(("age_ms", "limit_ms", "ok"), [(180, 180, True), (181, 180, False), (201, 1e9, False)])
def test_an_image_that_is_too_old_is_told(age_ms, limit_ms, ok):
    checks = by_name(sensors.ages(SPEC, {IMAGE: age_ms, "observation.state": 1.0}, limit_ms))
    assert checks[f"age of {IMAGE}"].ok is ok
    assert checks["age of observation.state"].ok
    assert only(sensors.ages(SPEC, {}, 180)).ok


@pytest.mark.parametrize(
    ("metres", "ok", "word"),
    [(0.03, True, ""), (0.029, False, "covered"), (math.nan, False, "nothing usable"), (8.0, True, "")],
)
def test_a_free_distance_that_cannot_be_is_told(metres, ok, word):
    check = only(sensors.clearance(SPEC, metres, is_driving=True))
    assert check.ok is ok
    assert word in check.hint
    assert only(sensors.clearance(SPEC, 0.0, is_driving=False)).ok
    assert only(sensors.clearance(replace(SPEC, cameras=()), 0.0, is_driving=True)).ok


def test_a_state_outside_its_declared_range_is_noted():
    check = only(sensors.state(SPEC, {"linear_vel": -0.2, "angular_vel": 0.0, "min_forward_dist": None}))
    assert (check.state, check.measured) == ("note", "linear_vel -0.2 m/s (0 to 0.5)")


# -- what drives


@pytest.mark.parametrize(
    ("driving_id", "refusal", "ok"), [("ab" * 32, "", True), ("", "", False), ("ab" * 32, "NaN action", False)]
)
def test_a_policy_must_be_loaded_and_the_wanted_one_not_refused(driving_id, refusal, ok):
    check = only(driving.policy(driving_id, refusal=refusal, crashes=0, refusals=0))
    assert check.ok is ok
    assert refusal in check.hint


def test_a_bundle_that_is_damaged_on_disk_is_told(tmp_path):
    assert list(driving.policy_file(SPEC, None)) == []
    (tmp_path / "x").write_bytes(b"nonsense")
    for path in (tmp_path / "x", tmp_path / "gone"):
        check = only(driving.policy_file(SPEC, path))
        assert not check.ok
        assert "restart" in check.hint


CHECKED = {"passed": True, "at": "2026-11-20T12:00:00Z", "required": True, "armed": True, "fault": "", "refusal": ""}
CHECKED |= {"contradictions": {}}


@pytest.mark.parametrize(
    ("change", "state", "word"),
    [
        ({}, "ok", "passed at 2026"),
        ({"passed": None, "at": "", "armed": False}, "fail", "never made, required"),
        ({"passed": None, "at": "", "required": False}, "ok", "not required"),
        ({"passed": False, "armed": False, "fault": "the gyroscope counts backwards"}, "fail", "gyroscope"),
        ({"passed": False, "required": False, "fault": "nothing moved"}, "note", "nothing moved"),
        ({"armed": False, "refusal": "of another robot spec"}, "fail", "but of another robot spec"),
    ],
)
def test_the_self_check_is_judged_by_whether_it_is_required(change, state, word):
    check = by_name(driving.selfcheck({**CHECKED, **change}))["selfcheck"]
    assert check.state == state
    assert word in check.measured
    assert state == "ok" or "roverctl selfcheck" in check.hint


def test_a_contradiction_an_e_stop_and_a_locked_wheel_are_told():
    told = {"linear_vel": "linear_vel says the opposite"}
    assert not by_name(driving.selfcheck({**CHECKED, "contradictions": told}))["motion"].ok
    assert "roverctl clear" in only(driving.stop("button")).hint
    assert only(driving.stop("")).ok
    assert not only(driving.wheel({"owner": "anna", "state": "locked"})).ok
    assert only(driving.wheel({"owner": "anna", "state": "held"})).measured == "held: anna"


@pytest.mark.parametrize(
    ("mode", "state"), [("train", "ok"), ("evaluate", "ok"), ("held", "note"), ("unarmed", "note")]
)
def test_a_robot_that_was_told_to_stand_is_not_ill(mode, state):
    assert only(driving.mode(mode)).state == state


# -- the link and the disk


def test_an_unpaired_rover_is_told_how_to_pair(tmp_path):
    own, trainer = (load_or_make(tmp_path / name / "curve.json").public for name in ("own", "trainer"))
    assert "roverctl pair" in only(link.keys(own, "", is_curve=True)).hint
    assert only(link.keys(own, trainer, is_curve=True)).ok
    assert only(link.keys(own, "", is_curve=False)).ok


def test_a_link_is_judged_by_its_state_and_reason():
    assert only(link.link("linked", "tcp://h:1", refusal="", degraded="")).ok
    assert (
        only(link.link("refused", "tcp://h:1", refusal="your key is unknown", degraded="")).hint
        == "your key is unknown"
    )
    assert not only(link.link("linked", "tcp://h:1", refusal="", degraded="acknowledges nothing")).ok
    assert "firewall" in only(link.link("connecting", "tcp://h:1", refusal="", degraded="")).hint
    assert only(link.port("tcp://h:1", None)).ok
    assert not only(link.port("tcp://h:1", Reach("timeout"))).ok


@pytest.mark.parametrize(
    ("round_trip_ms", "skew_s", "failed"),
    [(49.9, 2.0, []), (50.0, -2.01, ["link round trip", "clock skew"]), (math.nan, math.nan, [])],
)
def test_a_slow_link_and_clocks_apart_are_told(round_trip_ms, skew_s, failed):
    assert [each.check for each in link.quality(round_trip_ms, skew_s) if not each.ok] == failed


def test_a_run_for_another_robot_names_the_difference():
    assert not only(link.spec("ab" * 32, "it differs: cameras.front.height: 12 here, 20 there")).ok
    assert only(link.spec("ab" * 32, "your key is unknown")).ok


def test_the_spool_and_the_plugins_say_what_is_wrong():
    report = {"state": "full", "unacknowledged": 3, "disk_bytes": 5 << 20, "dropped": 1, "damaged": 0}
    check = only(storage.spool({**report, "exposed_ms_max": 500.0}, ["spool full: no space"]))
    assert not check.ok
    assert "spool full: no space" in check.hint
    row = {"group": "rewards", "name": "mine", "state": "disabled", "last_error": "raised 3 times"}
    assert only(storage.plugins([row])).measured == "rewards.mine: raised 3 times"
    assert only(storage.plugins([{**row, "state": "ready"}])).ok


# -- without a daemon


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("protocol.node.checkup.machine.STOLEN_WINDOW_S", 0.0)
    monkeypatch.setattr(standing, "reach", lambda _: Reach("refused", "connection refused"))


def test_a_daemon_that_does_not_run_is_told_with_how_to_start_it_and_the_rest_is_checked(tmp_path, quick):
    words = ["--set", f"state_dir={tmp_path}", "--control-socket", str(tmp_path / "none")]
    answer = doctor.examine_without("no daemon answers", words)
    checks = {each["check"]: each for each in answer["checks"]}
    assert (answer["healthy"], answer["is_running"]) == (False, False)
    assert f"roverd --set state_dir={tmp_path}" in checks["daemon"]["hint"]
    assert {"daemon", "control socket", "keys", "port of the trainer"} <= set(answer["failed"])
    assert {"python", "packages", "modules", "jpeg library", "disk", "SCHED_FIFO", "npu driver"} <= set(checks)
    json.dumps(answer)


def test_mistakes_in_the_settings_are_all_told_and_the_checks_go_on(tmp_path, quick):
    answer = doctor.examine_without("none", ["--set", "colour=red", "--set", "control.rate_hz=fast"])
    check = next(each for each in answer["checks"] if each["check"] == "configuration")
    assert "colour" in check["measured"]
    assert "rate_hz" in check["measured"]
    assert len(answer["checks"]) > 15


def test_a_plugin_that_is_not_there_and_a_device_that_is_missing_are_named(tmp_path, quick):
    words = ["--set", f"state_dir={tmp_path}", "--set", "robot=nix", "--set", "plugins.base.port=/dev/ttyUSB77"]
    checks = {each["check"]: each for each in doctor.examine_without("none", words)["checks"]}
    assert "robot nix" in checks["plugins"]["measured"]
    assert "/dev/ttyUSB77 is not there" in checks["plugins.base.port"]["measured"]


def test_a_device_of_another_group_is_named(tmp_path, monkeypatch):
    (tmp_path / "tty").write_text("")
    assert standing.device("plugins.base.port", tmp_path / "tty").ok
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "usermod -aG dialout" in standing.device("plugins.base.port", tmp_path / "tty").hint


def test_an_emergency_stop_and_a_failed_self_check_are_known_without_a_daemon(tmp_path, quick):
    (tmp_path / "e_stop").write_text("button")
    facts = {"spec_hash": "a", "settings_hash": "b", "robot": "x", "passed": False, "at": "noon", "fault": "odometry"}
    (tmp_path / "calibration.json").write_text(json.dumps({**facts, "checks": []}))
    answer = doctor.examine_without("none", ["--set", f"state_dir={tmp_path}"])
    checks = {each["check"]: each for each in answer["checks"]}
    assert checks["emergency stop"]["measured"] == "latched: button"
    assert checks["selfcheck"]["measured"] == "failed at noon: odometry"


def test_the_port_of_the_page_is_only_looked_at_where_there_is_a_page():
    settings = Settings()
    assert only(standing._page(settings)).check == "port of the page"
    assert list(standing._page(replace(settings, teleop=replace(settings.teleop, port=0)))) == []
