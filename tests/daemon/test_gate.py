"""What the safety gate and the standby do is in the record: every step says who decided, and what came between."""

from __future__ import annotations

import signal
import time

import pytest

from protocol.step import Intervention
from tests.daemon.daemons import wait_until
from tests.faults import spooled
from tests.faults.stand import Stand
from tests.faults.standby import StandbyStand

pytestmark = pytest.mark.slow

CURVE = False


def steps(stand):
    """Stop the rover and return the headers of its steps."""
    assert stand.rover.stop() == 0
    return [each for each in spooled.headers(stand.rover.state_dir) if each["kind"] == "step"]


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
def standby(tmp_path_factory, shared_site):
    """A rover that drives by a policy, with the policy before it standing by."""
    made = StandbyStand(shared_site, tmp_path_factory.mktemp("policies"))
    yield made
    made.close()


@pytest.mark.slow
def test_a_policy_that_hangs_is_stood_in_for_on_the_very_tick(standby):
    standby.wait_ready()
    before = standby.rover.get()
    pid = standby.policy()
    standby.kill(pid, by=signal.SIGSTOP)
    wait_until(lambda: standby.driving_id() != standby.second or standby.policy() != pid, what="failover")
    standby.wait_ready()
    after = standby.rover.get()
    assert after["tick_gaps"] == before["tick_gaps"]
    stood_in = flagged(steps(standby), Intervention.FAILOVER)
    assert stood_in
    assert {each["policy_id"] for each in stood_in} == {standby.first}
    assert {each["source"] for each in stood_in} <= {"policy", "gate"}
    assert all(any(each["action"]) for each in stood_in)
