"""How fast one element of an action may become, and what is remembered of obstacles, tilt and stalls.

Pure: numbers in, numbers out. Distances are in m, speeds in m/s, angles in rad, times in ns on one clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

TILT_RELEASE = 0.8
"""A robot counts as upright again below this share of the angle at which it counted as tilted."""
STALL_SHARE = 0.2
"""A robot that moves slower than this share of its command does not move as told."""


class Stop(NamedTuple):
    """The forward stop: whether it holds, the image that was judged last, and how many in a row were free."""

    is_stopped: bool = False
    frame: int = -1
    free_frames: int = 0


class Stall(NamedTuple):
    """What is known of a robot that does not move as told.

    ``sign`` is the direction (1.0 forward, -1.0 back, 0.0 none) in which it has not moved since ``since_ns``.
    ``forward_ns`` and ``back_ns`` are when motion in a direction was stopped for it, None for never.
    """

    sign: float = 0.0
    since_ns: int = 0
    forward_ns: int | None = None
    back_ns: int | None = None


def clamp(value: float, low: float, high: float) -> float:
    """Return the value within the limits."""
    return min(max(value, low), high)


def ramp(wanted: float, last: float, gained: float, most_step: float, most_rise: float) -> float:
    """Return the speed of this tick on the way from ``last`` to ``wanted``.

    Only speeding up takes time. Slowing down does not, and what crosses zero brakes at once and speeds up from there.

    Args:
        wanted: the speed that is asked for.
        last: the speed of the tick before.
        gained: what the tick before gained, see ``gain``.
        most_step: what a tick may gain (acceleration times period); inf for no limit.
        most_rise: how much more it may gain than the tick before (jerk times period squared); inf for no limit.
    """
    sign = math.copysign(1.0, wanted)
    base, before = (abs(last), max(sign * gained, 0.0)) if last * wanted > 0 else (0.0, 0.0)
    return sign * min(abs(wanted), base + min(most_step, before + most_rise))


def gain(speed: float, last: float) -> float:
    """Return how much a tick added to the speed, counted from zero where it changed its direction."""
    return speed - last if speed * last > 0 else speed


def speed_cap(clearance_m: float, safety_distance_m: float, slow_distance_m: float, top: float) -> float:
    """Return the largest forward speed: ``top`` at the slow distance, falling linearly to 0 at the safety distance.

    It is infinite where the slow distance is not beyond the safety distance: there is no slowing down then.
    """
    if slow_distance_m <= safety_distance_m:
        return math.inf
    return top * max(clearance_m - safety_distance_m, 0.0) / (slow_distance_m - safety_distance_m)


def watch_clearance(
    stop: Stop, clearance_m: float, frame: int, *, stop_at_m: float, free_from_m: float, frames: int
) -> Stop:
    """Return the forward stop after a look at the free distance ahead, measured in the image ``frame``.

    One image stops. Release takes so many new ones in a row that are free from farther away, so that neither noise of
    the distance nor a single lucky image lets go.
    """
    if not clearance_m >= stop_at_m:  # also where it is not a number
        return Stop(is_stopped=True, frame=frame)
    if not stop.is_stopped or frame == stop.frame:
        return stop
    free = stop.free_frames + 1 if clearance_m >= free_from_m else 0
    return Stop(free < frames, frame, free)


def is_tilted(roll_rad: float, pitch_rad: float, most_rad: float, *, was_tilted: bool) -> bool:
    """Return whether the robot leans more than it may; it is upright again only at 0.8 times that angle."""
    limit = most_rad * (TILT_RELEASE if was_tilted else 1.0)
    return not math.hypot(roll_rad, pitch_rad) <= limit  # also where it is not a number


def watch_speed(stall: Stall, command: float, speed: float, now_ns: int, *, least: float, after_ns: int) -> Stall:
    """Return what is known of a stall after a look at the speed; ``command`` is what was applied last.

    Commands smaller than ``least`` prove nothing: friction may hold the robot.
    """
    if abs(command) < least or abs(speed) >= STALL_SHARE * abs(command):
        return stall._replace(sign=0.0)
    sign = math.copysign(1.0, command)
    if sign != stall.sign:
        return stall._replace(sign=sign, since_ns=now_ns)
    if now_ns - stall.since_ns < after_ns:
        return stall
    if sign > 0:
        return stall._replace(sign=0.0, forward_ns=now_ns)
    return stall._replace(sign=0.0, back_ns=now_ns)


def is_stalled(stall: Stall, wanted: float, now_ns: int, wait_ns: int) -> bool:
    """Return whether motion in the direction of ``wanted`` waits, because the robot did not move that way."""
    forward = wanted > 0 and _waits(stall.forward_ns, now_ns, wait_ns)
    return forward or (wanted < 0 and _waits(stall.back_ns, now_ns, wait_ns))


def _waits(stopped_ns: int | None, now_ns: int, wait_ns: int) -> bool:
    return stopped_ns is not None and 0 <= now_ns - stopped_ns < wait_ns  # a clock that went back: no wait
