"""Size of the angular velocity in rad/s: weighted below zero, it makes the robot drive straight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def angular_velocity(_previous: Moment, current: Moment) -> float:
    """Return absolute angular velocity in rad/s."""
    return abs(current.state["angular_vel"])


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("angular_velocity", angular_velocity, "absolute angular velocity in rad/s")]
