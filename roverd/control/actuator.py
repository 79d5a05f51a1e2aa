"""Where control writes its commands.

An actuator is an object with ``write(action)``; it declares nothing else: the safe action comes with the limits.
"""

from __future__ import annotations

from typing import Protocol


class Actuator(Protocol):
    """A device that control commands on every tick; ``write`` must return within a millisecond."""

    def write(self, action: tuple[float, ...]) -> None:
        """Command the device, in the units of RobotSpec.action."""


class SimulatedActuator:
    """The simulator's actuator: it lives in roverd and is moved by APPLIED, so there is nothing to write."""

    def write(self, action: tuple[float, ...]) -> None:
        """Do nothing."""
