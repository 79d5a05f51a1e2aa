"""What the safety gate and the standby do is in the record: every step says who decided, and what came between."""

from __future__ import annotations

import signal
import time

import pytest

from protocol.step import Intervention
from tests.bench.seed_policy import bundles, specs
from tests.daemon.daemons import driving, wait_until
from tests.faults.stand import DELAY_MS, RATE_HZ, Stand, spooled

CURVE = False


def steps(stand):
    """Stop the rover and return the headers of its steps."""
    assert stand.rover.stop() == 0
    return [each for each in spooled(stand.rover.state_dir) if each["kind"] == "step"]


def flagged(found, flag):
    return [each for each in found if each.get("interventions", 0) & flag]


def hold(stand, switch, seconds=0.6):
    stand.drive()
    stand.switches.on(switch)
    time.sleep(seconds)
    stand.switches.off()


@pytest.fixture(scope="module")
def recorded(shared_site):
    """A drive on which an obstacle came, a single pixel lied, and the camera froze: its steps."""
    stand = Stand(shared_site, name="gate")
    hold(stand, "phantom")
    phantom = stand.changes()[-1]
    for switch in ("obstacle", "camera_frozen", "camera_silent"):
        hold(stand, switch)
    stand.drive()
    found = steps(stand)
    stand.close()
    return phantom, found


def test_row_33_before_an_obstacle_only_forward_motion_is_taken_away_and_the_record_says_why(recorded):
    _, found = recorded
    stopped = flagged(found, Intervention.FORWARD_STOP)
    assert len(stopped) > 5
    for each in stopped:
        assert each["action"][0] == 0.0
        assert each["action"][1] > 0.5, "turning stays allowed"
        assert each["policy_action"][0] > 0.05, "what was wanted is recorded beside what was applied"
        assert each["ages_ms"]
    clearances = sorted(each["clearance_m"] for each in stopped)
    assert clearances[len(clearances) // 2] == pytest.approx(0.15, abs=0.01)


def test_row_33_a_single_false_return_stops_nothing(recorded):
    phantom, _ = recorded
    assert phantom.is_moving


@pytest.mark.parametrize("flag", [Intervention.FROZEN, Intervention.STALE], ids=["frozen", "silent"])
def test_row_32_a_camera_that_freezes_or_falls_silent_stops_the_robot_and_its_steps_are_flagged(recorded, flag):
    _, found = recorded
    hit = flagged(found, flag)
    assert len(hit) > 3
    assert {(tuple(each["action"]), each["source"]) for each in hit} == {((0.0, 0.0), "fallback")}


@pytest.fixture(scope="module")
def rover(tmp_path_factory, shared_site):
    """A rover that drives by a policy, with the policy before it standing by."""
    folder = tmp_path_factory.mktemp("policies")
    settings = {"control_rate_hz": RATE_HZ, "action_delay_ms": DELAY_MS}
    paths = []
    for index, content in enumerate(bundles(*specs("synthetic", "goal", settings), 2, encoder="column")):
        paths.append(folder / f"{index}.bundle")
        paths[-1].write_bytes(content)
    own = {"robot": "synthetic", "plugins.synthetic.control_rate_hz": RATE_HZ}
    own |= {"plugins.synthetic.action_delay_ms": DELAY_MS, "policy.shadow_ticks": 2, "policy.watch_ticks": 5}
    words = ("--policy", str(paths[0]))
    stand = Stand(shared_site, own, *words, name="failover")
    driving(stand.rover)
    first = stand.rover.get()["policy"]["policy_id"]
    answer = stand.rover.ctl("policy", "install", str(paths[1]), "--now")
    assert answer.status == 0, answer.err
    wait_until(lambda: stand.rover.get()["policy"]["policy_id"] not in {"", first}, what="the second drives")
    time.sleep(1.0)
    yield stand, first, stand.rover.get()["policy"]["policy_id"]
    stand.close()


def test_a_policy_that_hangs_is_stood_in_for_on_the_very_tick(rover):
    stand, first, second = rover
    before = stand.rover.get()
    pid = stand.policy()
    stand.kill(pid, by=signal.SIGSTOP)
    wait_until(lambda: stand.rover.get()["policy"]["policy_id"] != second or stand.policy() != pid, what="failover")
    wait_until(lambda: stand.rover.get()["policy"]["policy_id"] == second, what="the wanted policy comes back")
    after = stand.rover.get()
    assert after["tick_gaps"] == before["tick_gaps"]
    found = steps(stand)
    stood_in = flagged(found, Intervention.FAILOVER)
    assert stood_in
    assert {each["policy_id"] for each in stood_in} == {first}
    assert {each["source"] for each in stood_in} <= {"policy", "gate"}
    assert all(any(each["action"]) for each in stood_in)
