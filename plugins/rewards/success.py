"""1 on the tick that reached what the task asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def success(_previous: Moment, current: Moment) -> float:
    """Return 1 on the tick that succeeds."""
    return 1.0 if current.outcome.success else 0.0


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("success", success, "1 on the tick that succeeds")]
