"""1 on every tick: weighted below zero, it makes the robot hurry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def tick_cost(_previous: Moment, _current: Moment) -> float:
    """Return 1 on every tick."""
    return 1.0


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("tick_cost", tick_cost, "1 on every tick")]
