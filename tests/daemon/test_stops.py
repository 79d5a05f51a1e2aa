"""Whatever breaks, the motors stand still in time, as the board beside the robot sees it."""

from __future__ import annotations

import time

import pytest

from tests.daemon.daemons import wait_until
from tests.faults.stand import Stand
from tests.faults.stops import FAULTS, time_one

CURVE = False
BUSY_MS = 100.0
"""Other tests run on these cores; ``./dev bench stop`` judges by the limits alone."""
QUICK = {
    *("roverd_killed", "policy_stopped", "policy_nan", "control_killed", "control_stopped", "camera_frozen"),
    *("roverd_stopped", "state_nan", "actuator_raises"),
}


@pytest.fixture(scope="module")
def stand(shared_site):
    made = Stand(shared_site)
    yield made
    made.close()


@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, id=each.name, marks=() if each.name in QUICK else pytest.mark.slow) for each in FAULTS],
)
def test_motion_stops_in_time(stand, fault, record_figure):
    taken_ms = time_one(stand, fault)
    record_figure(f"stop.{fault.name}_ms", taken_ms)
    assert taken_ms <= fault.limit_ms + BUSY_MS
    stand.drive()


def test_an_emergency_stop_holds_until_it_is_cleared_whoever_dies(stand):
    stand.drive()
    stand.rover.ctl("estop", "--reason", "test")
    stand.kill(stand.control)
    wait_until(lambda: stand.rover.get()["control"]["has_spare"], what="a new spare")
    assert stand.rover.get()["mode"] == "e_stop"
    assert not stand.changes()[-1].is_moving
    stand.rover.kill()
    stand.rover.start()
    wait_until(lambda: stand.rover.get()["mode"] == "e_stop", what="the e-stop is remembered")
    answer = stand.rover.ctl("clear")
    assert answer.status == 0
    stand.drive()


def test_an_actuator_that_fails_is_named_and_drives_on_when_it_works_again(stand):
    stand.drive()
    stand.switches.on("actuator_dead")
    wait_until(lambda: "actuator" in " ".join(stand.rover.get()["health"]["causes"]), what="the actuator is named")
    stand.switches.off()
    wait_until(lambda: not stand.rover.get()["control"]["actuator_failure"], what="it works again")
    assert "actuator.failed" in {each["event"] for each in stand.rover.events()}
    stand.drive()


def test_a_spare_that_dies_is_replaced_and_the_robot_drives_on(stand):
    stand.drive()
    control, spare = stand.control, stand.children("roverd.control.process")
    spare.remove(control)
    before = time.monotonic()
    stand.kill(*spare)
    wait_until(lambda: len(stand.children("roverd.control.process")) > 1, what="a new spare")
    assert stand.control == control
    assert stand.stopped_after(before) is None or stand.changes()[-1].is_moving
