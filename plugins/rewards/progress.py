"""Metres by which the goal came nearer in the tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def progress(previous: Moment, current: Moment) -> float:
    """Return metres nearer to the goal."""
    return previous.task["distance_m"] - current.task["distance_m"]


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("progress", progress, "metres nearer to the goal")]
