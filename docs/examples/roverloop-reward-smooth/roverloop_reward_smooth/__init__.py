"""A reward term that asks for smooth turning."""

from plugins import RewardTerm, hookimpl
from protocol.moment import Moment


def smooth(previous: Moment, current: Moment) -> float:
    """Return minus the change of the turning speed in one tick, in rad/s."""
    return -abs(current.state["angular_vel"] - previous.state["angular_vel"])


@hookimpl
def provide_rewards() -> list[RewardTerm]:
    """Offer the term."""
    return [RewardTerm("smooth", smooth, "minus the change of the turning speed, in rad/s")]
