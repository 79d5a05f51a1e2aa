"""1 while something is nearer ahead than the safety distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment

SAFETY_DISTANCE_M = 0.25
"""Nearer than this is too near."""


def obstacle_proximity(_previous: Moment, current: Moment) -> float:
    """Return 1 while an obstacle ahead is within 0.25 m."""
    return 1.0 if current.state["min_forward_dist"] < SAFETY_DISTANCE_M else 0.0


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("obstacle_proximity", obstacle_proximity, "1 while an obstacle ahead is within 0.25 m")]
