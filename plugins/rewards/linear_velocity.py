"""Forward velocity in m/s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def linear_velocity(_previous: Moment, current: Moment) -> float:
    """Return forward velocity in m/s."""
    return current.state["linear_vel"]


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("linear_velocity", linear_velocity, "forward velocity in m/s")]
