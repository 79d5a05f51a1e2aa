"""A device that fails, is busy, or comes back, behind control's wall."""

from __future__ import annotations

import time

import pytest

from roverd.control import actuator
from roverd.control.actuator import GuardedActuator

SAFE, GO = (0.0, 0.0), (0.2, 0.5)


class Device:
    def __init__(self):
        self.written, self.error, self.is_closed = [], None, False

    def write(self, action):
        if self.error and (self.error == "all" or any(action)):
            raise OSError("a fault")
        self.written.append(tuple(action))

    def close(self):
        self.is_closed = True


@pytest.fixture
def told():
    return []


def guarded(told, *devices):
    """Return an actuator whose device is made from these in turn; an exception is one that cannot be opened."""
    queue = list(devices)

    def make():
        made = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(made, Exception):
            raise made
        return made

    return GuardedActuator(make, told.append)


def test_what_is_accepted_is_told_to_nobody(told):
    device = Device()
    assert guarded(told, device).write(GO, SAFE)
    assert (device.written, told) == ([GO], [])


def test_what_is_refused_is_told_once_and_the_safe_action_is_offered_at_once(told):
    device = Device()
    device.error = "motion"
    made = guarded(told, device)
    assert [made.write(GO, SAFE) for _ in range(3)] == [False] * 3
    assert device.written == [SAFE] * 3
    assert told == ["OSError: a fault"]
    device.error = None
    assert made.write(GO, SAFE)
    assert told == ["OSError: a fault", ""]


def test_a_device_that_is_still_busy_is_tried_again_on_every_write(told):
    device = Device()
    made = guarded(told, OSError("busy"), OSError("busy"), OSError("busy"), device)
    assert [made.write(SAFE, SAFE) for _ in range(4)] == [False, False, False, True]
    assert told == ["OSError: busy", ""]


def test_one_that_fails_for_long_is_made_anew_in_the_background(told, monkeypatch):
    monkeypatch.setattr(actuator, "REOPEN_S", 0.02)
    monkeypatch.setattr(actuator, "EAGER_S", 0.0)
    broken, mended = Device(), Device()
    broken.error = "all"
    made = guarded(told, broken, mended)
    end = time.monotonic() + 5
    while not made.write(GO, SAFE):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert broken.is_closed
    assert mended.written[-1] == GO
    assert told[-1] == ""


def test_a_slow_device_does_not_hold_the_tick(told, monkeypatch):
    monkeypatch.setattr(actuator, "REOPEN_S", 0.01)
    monkeypatch.setattr(actuator, "EAGER_S", 0.0)

    def make():
        time.sleep(0.3)
        return Device()

    made = GuardedActuator(make, told.append)
    began = time.monotonic()
    made.write(GO, SAFE)
    assert time.monotonic() - began < 0.1


def test_closing_a_device_that_fails_is_not_an_error(told):
    class Stubborn(Device):
        def close(self):
            raise OSError("no")

    made = guarded(told, Stubborn())
    made.write(GO, SAFE)
    made.close()
    made.close()
