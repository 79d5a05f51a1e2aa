"""Everything that must stop a robot, with how it is brought about and within how many milliseconds it must stand."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.stand import DEAD_MAN_MS, DELAY_MS, PERIOD_MS, Stand

DECISION_MS = PERIOD_MS + DELAY_MS
"""One period and the action delay: when a policy's next answer would have been applied."""
ANY_MS = 200.0


@dataclass(frozen=True)
class Fault:
    """One cause of a stop; ``begin`` prepares what takes time, and what it returns breaks the robot at once."""

    name: str
    limit_ms: float
    begin: Callable[[Stand], Callable[[], None]]


def _switch(name: str, limit_ms: float) -> Fault:
    return Fault(name, limit_ms, lambda stand: lambda: stand.switches.on(name))


def _signal(name: str, limit_ms: float, pids: Callable[[Stand], list[int]], number: int) -> Fault:
    def begin(stand: Stand) -> Callable[[], None]:
        found = pids(stand)
        return lambda: stand.kill(*found, by=number)

    return Fault(name, limit_ms, begin)


def _kill_roverd(stand: Stand) -> Callable[[], None]:
    stand.rover.was_killed = True
    pid = stand.rover.pid
    return lambda: stand.kill(pid)


def _e_stop(stand: Stand) -> Callable[[], None]:
    return lambda: stand.rover.post("/e_stop", {"reason": "test"}) and None


def _roverd(stand: Stand) -> list[int]:
    return [stand.rover.pid]


def _control(stand: Stand) -> list[int]:
    return [stand.control]


def _policy(stand: Stand) -> list[int]:
    return [stand.policy()]


def _kill_both_controls(stand: Stand) -> Callable[[], None]:
    stand.rover.was_killed = True  # it may end with an error: nothing is left to drive with
    found = stand.children("roverd.control.process")
    return lambda: stand.kill(*found)


FAULTS = (
    Fault("roverd_killed", 20.0, _kill_roverd),
    _signal("roverd_stopped", ANY_MS, _roverd, signal.SIGSTOP),
    _switch("roverd_loops", ANY_MS),
    _signal("policy_killed", DECISION_MS, _policy, signal.SIGKILL),
    _signal("policy_stopped", DECISION_MS, _policy, signal.SIGSTOP),
    _switch("policy_loops", DECISION_MS),
    _switch("policy_nan", DECISION_MS),
    _switch("policy_inf", DECISION_MS),
    _switch("policy_late", DECISION_MS),
    _signal("control_killed", 20.0, _control, signal.SIGKILL),
    _signal("control_stopped", ANY_MS, _control, signal.SIGSTOP),
    _switch("control_loops", ANY_MS),
    Fault("control_and_spare_killed", 300.0, _kill_both_controls),
    _switch("actuator_raises", ANY_MS),
    _switch("actuator_hangs", DEAD_MAN_MS + 20.0),
    _switch("actuator_dead", DEAD_MAN_MS + 20.0),
    _switch("camera_frozen", ANY_MS),
    _switch("camera_silent", ANY_MS),
    _switch("sensor_hangs", ANY_MS),
    _switch("state_nan", ANY_MS),
    Fault("e_stop", ANY_MS, _e_stop),
)
"""The last cover of an actuator that takes nothing any more is its own dead-man timer, 180 ms here."""


def time_one(stand: Stand, fault: Fault) -> float:
    """Let the stand drive, break it, return how many milliseconds its motors still turned, and mend it.

    An episode that ends just then would stop the motors too; with 20 s an episode that makes one try in 50 too short.
    """
    stand.drive()
    break_it = fault.begin(stand)
    try:
        return stand.time_stop(break_it)
    finally:
        stand.mend()
