"""1 on the tick that hit something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins import RewardTerm, hookimpl

if TYPE_CHECKING:
    from protocol.moment import Moment


def collision(previous: Moment, current: Moment) -> float:
    """Return 1 on the tick that collides."""
    return 1.0 if current.collided and not previous.collided else 0.0


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("collision", collision, "1 on the tick that collides")]
