"""The robot as it is driven: read once a tick, moved by what control applied."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugins.contracts import Robot
    from protocol.moment import Reading
    from roverd.control import wire
    from roverd.settings import Settings

MAX_COAST_TICKS = 1000


class Body:
    """Read and move the robot, and know what it does now."""

    def __init__(self, robot: Robot, settings: Settings) -> None:
        """Begin at rest."""
        self._robot = robot
        self._is_stamped_here = settings.control.rate_hz != 0 and robot.is_simulated
        self._dead_man_s = settings.control.dead_man_ms * 1e-3
        self._safe_action = tuple(0.0 if value is None else value for value in robot.safe_action)
        self.in_flight = self._safe_action
        """The action that was applied last, in the units of RobotSpec.action."""

    def reset(self, arena_seed: int) -> Reading:
        """Put the robot into an arena, at rest; return its first reading, with images."""
        self._robot.reset(arena_seed)
        reading = self.read(images=True)
        self.in_flight = self._safe_action
        return reading

    def read(self, *, images: bool) -> Reading:
        """Return what the sensors say now."""
        reading = self._robot.read(images)
        if self._is_stamped_here:  # a device stamps its readings at capture
            reading.stamp_ns = time.monotonic_ns()
        return reading

    def advance(self, applied: wire.Applied, skipped: int) -> None:
        """Move by what was applied on a tick; ``skipped`` ticks before it are missing."""
        self._coast(skipped)
        self._robot.advance(applied.in_flight, applied.action)
        self.in_flight = applied.action

    def _coast(self, skipped: int) -> None:
        """Let a simulated robot go on without commands, as a real one does until its own dead-man timer stops it."""
        if not self._robot.is_simulated:
            return
        for index in range(min(skipped, MAX_COAST_TICKS)):
            is_stopped = (index + 1) * self._robot.spec.period_s > self._dead_man_s
            action = self._safe_action if is_stopped else self.in_flight
            self._robot.advance(action, action)
