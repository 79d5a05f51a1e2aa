"""The trainer's doctor names what is wrong and what to do about it; every bound is where it says."""

from __future__ import annotations

import json
import os
import socket

import pytest

from protocol.node.checkup.listening import Listener
from protocol.spec import Element, RobotSpec
from trainerd import doctor
from trainerd.doctor import fleet, gpu, learning, listening
from trainerd.doctor.fleet import RoverFacts
from trainerd.doctor.gpu import Gpu
from trainerd.doctor.learning import CheckpointFacts
from trainerd.rover import realtime_words

ROVER = {"rover_id": "r1", "software": "0.1.0", "round_trip_ms": 0.5, "wanted": "p" * 64, "policy_id": "p" * 64}
SPEC = RobotSpec("one", (), (), (Element("linear", "m/s", 0.0, 0.5),), 10.0)


def only(checks):
    (check,) = checks
    return check


def by_name(checks):
    return {each.check: each for each in checks}


def facts(**change):
    return RoverFacts(**{**ROVER, "status": {"clock_skew_s": 0.01, "mode": "train"}, **change})


# -- rovers


def test_a_rover_that_is_right_has_nothing_to_say():
    checks = list(fleet.rover(facts(is_to_drive=True, stepless_s=0.1), "0.1.0"))
    assert [each.state for each in checks] == ["ok"] * 5
    names = ["link to r1", "clock of r1", "steps of r1", "policy of r1", "version of r1"]
    assert [each.check for each in checks] == names


def test_a_rover_that_is_away_is_noted_and_none_at_all_is_a_fault():
    checks = by_name(fleet.presence([facts()], ["r1", "r2"], address="tcp://h:5555", refusal=""))
    assert (checks["rovers"].ok, checks["rovers away"].measured) == (True, "r2")
    none = only(fleet.presence([facts(connected=False)], [], address="tcp://h:5555", refusal=""))
    assert not none.ok
    assert "--trainer tcp://h:5555" in none.hint


@pytest.mark.parametrize(("refusal", "state"), [("r2: it differs: action_repeat: 3 here", "fail"), ("r1: x", "note")])
def test_a_refused_rover_is_a_fault_until_it_is_here(refusal, state):
    checks = by_name(fleet.presence([facts()], [], address="", refusal=refusal))
    assert checks["refused rovers"].state == state
    assert checks["refused rovers"].measured == refusal


KEYS = [{"fingerprint": "AAAA", "state": "allowed"}, {"fingerprint": "BBBB", "state": "revoked"}]


@pytest.mark.parametrize(
    ("refusal", "is_here", "state", "word"),
    [
        ("", False, "ok", ""),
        ("10.0.0.3: unknown key CCCC", False, "fail", "roverctl pair"),
        ("10.0.0.3: unknown key CCCC", True, "note", "roverctl pair"),
        ("10.0.0.3: unknown key AAAA", False, "ok", ""),
        ("10.0.0.3: revoked key BBBB", False, "note", "--again"),
    ],
)
def test_a_key_that_was_turned_away_is_judged_by_whose_it_is(refusal, is_here, state, word):
    check = only(fleet.keys(KEYS, refusal, 3, is_anybody_here=is_here))
    assert check.state == state
    assert word in check.hint


@pytest.mark.parametrize(
    ("round_trip_ms", "skew_s", "failed"),
    [(49.9, 2.0, []), (50.0, -2.01, ["link to r1", "clock of r1"]), (None, None, [])],
)
def test_a_slow_link_and_a_wrong_clock_are_told(round_trip_ms, skew_s, failed):
    found = facts(round_trip_ms=round_trip_ms, status={"clock_skew_s": skew_s})
    assert [each.check for each in fleet.link(found) if not each.ok] == failed


@pytest.mark.parametrize(("overflow", "malformed", "state"), [(1, 0, "fail"), (0, 1, "note")])
def test_records_that_did_not_come_are_told(overflow, malformed, state):
    assert by_name(fleet.link(facts(overflow=overflow, malformed=malformed)))["records of r1"].state == state


@pytest.mark.parametrize(
    ("stepless_s", "waiting", "is_to_drive", "ok"),
    [(10.0, 0, True, True), (10.1, 0, True, False), (10.1, 5, True, True), (99.0, 0, False, True)],
)
def test_a_stream_is_dead_after_ten_seconds_unless_it_rests_or_waits_for_us(stepless_s, waiting, is_to_drive, ok):
    found = facts(stepless_s=stepless_s, waiting=waiting, is_to_drive=is_to_drive)
    assert by_name(fleet.stream(found))["steps of r1"].ok is ok


@pytest.mark.parametrize(
    ("mode", "word"), [("unarmed", "roverctl selfcheck"), ("e_stop", "roverctl clear"), ("train", "roverctl doctor")]
)
def test_a_dead_stream_is_told_with_what_the_rover_says_of_itself(mode, word):
    found = facts(stepless_s=60.0, is_to_drive=True, status={"mode": mode, "ticks_per_second": 0.0})
    check = by_name(fleet.stream(found))["steps of r1"]
    assert word in check.hint
    assert f"mode {mode}" in check.measured


@pytest.mark.parametrize(("rate", "nominal", "is_told"), [(26.9, 30.0, True), (27.0, 30.0, False), (3.0, 0.0, False)])
def test_a_rate_below_nine_tenths_is_noted(rate, nominal, is_told):
    found = facts(is_to_drive=True, status={"ticks_per_second": rate}, settings={"rate_hz": nominal})
    assert ("rate of r1" in by_name(fleet.stream(found))) is is_told


@pytest.mark.parametrize(
    ("change", "state", "word"),
    [
        ({}, "ok", "drives pppp"),
        ({"policy_id": "q" * 64}, "ok", "on its way"),
        ({"policy_id": "q" * 64, "offered_again_s": 4.0}, "ok", "on its way"),
        ({"policy_id": "q" * 64, "offered_again_s": 8.0}, "fail", "again and again"),
        ({"refused": {"p" * 64: "NaN output"}}, "fail", "NaN output"),
        ({"wanted": "", "policy_id": ""}, "ok", "none"),
    ],
)
def test_a_rover_must_drive_what_is_wanted(change, state, word):
    check = by_name(fleet.policy(facts(**change)))["policy of r1"]
    assert check.state == state
    assert word in check.measured


def test_older_refusals_and_other_versions_are_noted():
    checks = by_name(fleet.policy(facts(refused={"x" * 64: "too slow"})))
    assert checks["refused by r1"].state == "note"
    assert only(fleet.software(facts(software="0.0.9"), "0.1.0")).state == "note"


GRANTED = {
    "control": {"fifo": True, "priority": 50, "mlockall": True, "nice": 0, "reason": ""},
    "policy 0": {"fifo": False, "nice": -5, "reason": "CONFIG_RT_GROUP_SCHED"},
}


def test_what_a_rovers_kernel_granted_is_shown():
    assert realtime_words(GRANTED) == "control fifo 50 locked, policy 0 nice -5"
    assert realtime_words("nonsense") == ""
    check = only(fleet.realtime(facts(settings={"rate_hz": 30.0, "realtime": GRANTED})))
    assert (check.state, check.hint) == ("note", "CONFIG_RT_GROUP_SCHED")
    assert list(fleet.realtime(facts(settings={"rate_hz": 0.0, "realtime": GRANTED}))) == []
    assert only(fleet.realtime(facts(settings={"rate_hz": 30.0, "realtime": {"control": "odd"}}))).ok


# -- the port


def port(host="127.0.0.1", number=5555, found=(), *, is_running=False):
    return only(listening.port("port", host, number, found, is_running=is_running))


def test_a_port_that_another_program_has_is_named_with_it():
    check = port(found=[Listener("0.0.0.0", 5555, 77, "python other.py")])
    assert not check.ok
    assert "pid 77: python other.py" in check.measured
    assert "ss -ltnp" in check.hint


def test_a_daemon_that_runs_must_listen():
    assert port(found=[Listener("127.0.0.1", 5555, 77, "trainerd")], is_running=True).ok
    assert not port(is_running=True).ok


def test_an_address_that_is_not_this_machines_is_named():
    check = port("192.0.2.77")
    assert not check.ok
    assert "host = 0.0.0.0" in check.hint


def test_a_free_port_is_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    assert port(number=number).ok
    assert listening.bind_problem("::1", 0) in {"", "::1:0: cannot assign requested address"}


@pytest.mark.parametrize(
    ("host", "here", "away", "state"),
    [
        ("0.0.0.0", [], ["r1"], "ok"),
        ("127.0.0.1", ["r1"], [], "ok"),
        ("127.0.0.1", ["r1"], ["r2"], "note"),
        ("127.0.0.1", [], ["r2"], "fail"),
        ("127.0.0.1", [], [], "fail"),
        ("localhost", [], [], "fail"),
    ],
)
def test_listening_to_this_machine_only_is_the_classic_mistake(host, here, away, state):
    check = only(listening.reach(host, 5555, here=here, away=away, address="192.168.1.5"))
    assert check.state == state
    assert state == "ok" or ("0.0.0.0" in check.hint and "tcp://192.168.1.5:5555" in check.hint)


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["python", "-m", "trainerd", "--port"], True),
        (["/venv/bin/python", "/venv/bin/trainerd"], True),
        (["trainerd"], True),
        (["vim", "-m", "notes"], False),
        (["python", "-m", "trainerd.ctl"], False),
        ([""], False),
    ],
)
def test_another_trainer_is_known_by_its_command_line(words, is_one):
    assert listening.is_trainer(words) is is_one


def test_other_trainers_are_noted(tmp_path):
    for pid, line in ((7, b"python\0-m\0trainerd\0"), (8, b"bash\0"), (9, b"trainerd\0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(line)
    (tmp_path / "net").mkdir()
    check = only(listening.other_trainers(9, tmp_path, tmp_path))
    assert (check.state, check.measured) == ("note", "pid 7: python -m trainerd")
    assert only(listening.other_trainers(7, tmp_path, tmp_path / "net")).ok


# -- the GPU

CUDA = Gpu("2.13.0", "CUDA 13.0", ("NVIDIA",), "nvidia 580.1", (), ("H200",), 80 << 30, 139 << 30, "", 8)


def failed(device, found):
    return {each.check: each for each in gpu.gpu(device, found) if not each.ok}


def test_a_gpu_that_computes_is_healthy_and_so_is_a_machine_without_one():
    assert failed("auto", CUDA) == {}
    assert "80 MiB" not in by_name(gpu.gpu("auto", CUDA))["gpu memory"].measured
    assert failed("auto", Gpu("2.13.0", threads=2)) == {}


@pytest.mark.parametrize(
    ("device", "change", "check", "word"),
    [
        ("cuda", {"cards": (), "driver": "", "devices": (), "total_bytes": 0}, "gpu driver", "lspci"),
        ("auto", {"driver": "", "devices": (), "total_bytes": 0}, "gpu driver", "nvidia-smi"),
        ("auto", {"build": "CPU only", "devices": (), "total_bytes": 0}, "torch build", "ROVERLOOP_TORCH"),
        ("auto", {"devices": (), "total_bytes": 0}, "torch device", "sees no GPU"),
        ("auto", {"devices": (), "denied": ("/dev/kfd",), "total_bytes": 0}, "gpu access", "render,video"),
        ("auto", {"fault": "HIP error: invalid device function"}, "gpu computes", "do not fit"),
        ("auto", {"free_bytes": (1 << 30) - 1}, "gpu memory", "nvidia-smi"),
    ],
)
def test_each_way_in_which_a_gpu_is_not_used_is_told_apart(device, change, check, word):
    found = failed(device, CUDA._replace(**change))
    assert check in found
    assert word in found[check].hint


def test_whoever_chose_the_cpu_is_left_alone():
    found = CUDA._replace(build="CPU only", devices=(), total_bytes=0)
    assert failed("cpu", found) == {}
    assert "rocm" in failed("auto", found._replace(driver="amdgpu 6.12"))["torch build"].hint


def test_cards_drivers_and_closed_devices_are_found_by_their_files(tmp_path, monkeypatch):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert (gpu.cards(tmp_path), gpu.driver(tmp_path), gpu.denied(tmp_path)) == ((), "", ())
    for address, kind, vendor in (
        ("a", "0x030000", "0x1002"),
        ("b", "0x030200", "0x10de"),
        ("c", "0x020000", "0x10de"),
    ):
        write(f"sys/bus/pci/devices/{address}/class", kind)
        write(f"sys/bus/pci/devices/{address}/vendor", vendor)
    assert gpu.cards(tmp_path) == ("AMD", "NVIDIA")
    write("dev/kfd", "")
    write("sys/module/amdgpu/version", "6.12.12\n")
    assert gpu.driver(tmp_path) == "amdgpu 6.12.12"
    write(
        "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\nGCC"
    )
    assert gpu.driver(tmp_path) == "nvidia 580.65.06"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert gpu.denied(tmp_path) == (str(tmp_path / "dev/kfd"),)


def test_this_machine_is_measured():
    assert gpu.measure("cpu").torch


# -- learning


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({}, True),
        ({"name": "ppo_update_20", "update": 20, "updates": 31}, True),
        ({"name": "ppo_update_20", "update": 20, "updates": 32}, False),
        ({"updates": 11}, True),
        ({"updates": 12}, False),
        ({"error": "disk full"}, False),
    ],
)
def test_a_checkpoint_may_be_as_old_as_its_interval_and_one_that_is_under_way(change, ok):
    check = only(learning.checkpoint(CheckpointFacts(interval=10)._replace(**change)))
    assert check.ok is ok
    assert change.get("error", "") in check.hint


def test_a_flat_signal_and_quarantined_steps_are_told():
    checks = by_name(learning.signal(["reward: -0.01 on each of the last 2048 steps"], {"reward.mine": 3}, steps=9))
    assert not checks["reward signal"].ok
    assert "reward lint" in checks["reward signal"].hint
    assert checks["quarantined steps"].measured == "reward.mine 3 times"
    assert only(learning.signal([], {}, steps=0)).measured == "no step came yet"


def test_training_that_refuses_or_rests_is_told():
    assert not by_name(learning.training("training", causes=["flat"], updates=1, decisions_per_s=2.0))["training"].ok
    checks = by_name(learning.training("paused", causes=[], updates=1, decisions_per_s=0.0))
    assert (checks["training"].ok, checks["learning"].hint) == (True, "trainerctl train start")


def test_an_export_that_failed_is_told_until_the_next_one_works():
    check = only(learning.export(exports=3, failed=1, last_error="no space left"))
    assert not check.ok
    assert "no space left" in check.measured
    assert only(learning.export(exports=4, failed=1, last_error="")).ok
    assert only(learning.converter("")).state == "note"
    assert only(learning.converter("2.3.2")).state == "ok"


def test_a_policy_for_another_robot_is_told_by_the_difference():
    other = RobotSpec("one", (), (), (Element("linear", "m/s", 0.0, 0.5),), 20.0)
    check = only(learning.spec(SPEC.to_map(), other.to_map()))
    assert "control_rate_hz: 10.0 here, 20.0 there" in check.measured
    assert only(learning.spec(SPEC.to_map(), SPEC.to_map())).ok
    assert not only(learning.spec(SPEC.to_map(), {})).ok
    assert list(learning.spec(None, SPEC.to_map())) == []


def test_plugins_that_failed_and_a_store_that_refuses_are_told():
    row = {"group": "rewards", "name": "mine", "state": "disabled", "last_error": "raised 3 times"}
    assert only(learning.plugins([row])).measured == "rewards.mine: raised 3 times"
    status = {"state": "full", "reason": "3 MiB free", "records": 5, "waiting": 2, "sync_ms_last": 1.0}
    check = only(learning.store(status))
    assert (check.ok, check.measured.partition(",")[0]) == (False, "full: 3 MiB free")


# -- without a daemon


def test_a_daemon_that_does_not_run_is_told_and_the_rest_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("protocol.node.checkup.machine.STOLEN_WINDOW_S", 0.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        words = ["--set", f"state_dir={tmp_path}", "--set", f"port={number}", "--set", "link.pairing=false"]
        answer = doctor.examine_without("no daemon answers", [*words, "--set", "ppo.colour=1"])
        checks = {each["check"]: each for each in answer["checks"]}
        assert "ppo.colour" in checks["configuration"]["measured"], "and the defaults are looked at instead"
        answer = doctor.examine_without("no daemon answers", words)
    checks = {each["check"]: each for each in answer["checks"]}
    assert (answer["healthy"], answer["is_running"]) == (False, False)
    assert {"daemon", "control socket", "port"} <= set(answer["failed"])
    assert f"pid {os.getpid()}" in checks["port"]["measured"]
    assert "systemctl start trainerd" in checks["daemon"]["hint"]
    assert {"python", "packages of trainer", "torch device", "disk of state dir", "firewall"} <= set(checks)
    json.dumps(answer)
