"""What the environment itself says a tick was worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def environment(_previous: Moment, current: Moment) -> float:
    """Return the reward that came with the reading; 0 where the task measures none."""
    return current.task.get("environment_reward", 0.0)


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("environment", environment, "the environment's own reward (task environment)")]
