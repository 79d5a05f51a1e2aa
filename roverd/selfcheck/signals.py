"""What a robot was told and what it measured, as numbers on two axes: forward (m/s) and to the left (rad/s)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocol.moment import Pose
    from protocol.spec import RobotSpec

FORWARD, LEFT = "forward", "left"
SPEEDS = ("linear_vel", "wheel_linear_vel")
"""Names of state elements that are a forward speed in m/s."""
YAW_RATES = ("angular_vel", "gyro_yaw_rate", "imu_yaw_rate", "wheel_yaw_rate")
"""Names of state elements that are a turning speed in rad/s, to the left positive (REP-103)."""
ODOMETRY_SPEED, ODOMETRY_YAW_RATE = "odometry", "odometry yaw"


class Sample(NamedTuple):
    """One tick: what was applied during it and what was measured at its end."""

    stamp_ns: int
    commands: tuple[float, float]
    """Forward m/s and to the left rad/s, as applied behind the safety gate."""
    state: Mapping[str, float]
    odometry: Pose
    flags: int = 0
    """Interventions of the tick."""
    elapsed_s: float = 0.0
    """Since the episode began; it falls where another one began."""


class Axes(NamedTuple):
    """Which action elements move a robot forward and turn it, and how far each may go."""

    forward: int
    left: int
    fastest: tuple[float, float]
    """Limits of forward (m/s) and to the left (rad/s)."""
    backward_mps: float
    """How fast it may drive backwards, as a positive number; 0 where it may not."""
    size: int

    def commands(self, action: Sequence[float]) -> tuple[float, float]:
        """Return an action's forward and turning speed."""
        return (
            action[self.forward] if self.forward >= 0 else 0.0,
            action[self.left] if self.left >= 0 else 0.0,
        )

    def action(self, forward_mps: float, left_radps: float) -> tuple[float, ...]:
        """Return the action of a base that moves so; every other element is 0."""
        action = [0.0] * self.size
        if self.forward >= 0:
            action[self.forward] = forward_mps
        if self.left >= 0:
            action[self.left] = left_radps
        return tuple(action)


def axes_of(spec: RobotSpec, max_speed_mps: float) -> Axes:
    """Find them by name and unit, as the rest of roverd does: linear... in m/s and angular... in rad/s; -1 for none."""
    forward = _index(spec, "linear", "m/s")
    left = _index(spec, "angular", "rad/s")
    fastest_mps = min(spec.action[forward].high, max_speed_mps) if forward >= 0 else 0.0
    backward_mps = min(-spec.action[forward].low, max_speed_mps) if forward >= 0 else 0.0
    fastest_radps = min(spec.action[left].high, -spec.action[left].low) if left >= 0 else 0.0
    return Axes(forward, left, (fastest_mps, fastest_radps), max(0.0, backward_mps), len(spec.action))


def _index(spec: RobotSpec, prefix: str, unit: str) -> int:
    found = (i for i, each in enumerate(spec.action) if each.name.startswith(prefix) and each.unit == unit)
    return next(found, -1)


def speeds(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the mean of every signal of some neighbouring samples by its name, odometry as speeds.

    Odometry needs two samples; its speeds are left out below that, or where no time passed.
    """
    if not samples:
        return {}
    names = [name for name in (*SPEEDS, *YAW_RATES) if name in samples[0].state]
    means = {name: mean([sample.state[name] for sample in samples]) for name in names}
    seconds = (samples[-1].stamp_ns - samples[0].stamp_ns) * 1e-9
    if len(samples) > 1 and seconds > 0:
        distance_m, turned_rad = travelled([sample.odometry for sample in samples])
        means[ODOMETRY_SPEED], means[ODOMETRY_YAW_RATE] = distance_m / seconds, turned_rad / seconds
    return means


def travelled(poses: Sequence[Pose]) -> tuple[float, float]:
    """Return how far a path leads forward along its own heading (m; backwards is negative) and turns (rad, left)."""
    distance_m = turned_rad = 0.0
    for before, after in pairwise(poses):
        turn = math.remainder(after.yaw_rad - before.yaw_rad, math.tau)
        heading = before.yaw_rad + turn / 2
        step = (after.x_m - before.x_m, after.y_m - before.y_m)
        distance_m += step[0] * math.cos(heading) + step[1] * math.sin(heading)
        turned_rad += turn
    return distance_m, turned_rad


def axis_of(signal: str) -> str:
    """Return the axis that a signal measures."""
    return FORWARD if signal in {*SPEEDS, ODOMETRY_SPEED} else LEFT


def unit_of(signal: str) -> str:
    """Return a signal's unit."""
    return "m/s" if axis_of(signal) == FORWARD else "rad/s"


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one number."""
    return sum(values) / len(values)
