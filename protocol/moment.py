"""The values that pass between robot, task and reward plugins on one control tick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Pose(NamedTuple):
    """A planar pose in REP-103 axes: x forward, y left in metres, yaw counter-clockwise in radians."""

    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(slots=True)
class Reading:
    """What a robot plugin reports once per control tick; arrays belong to the caller after the call.

    ``images`` maps blob keys (``observation.images.front``) to uint8[H, W, 3] or int16[H, W] millimetres; it is empty
    on ticks that asked for no images. ``state`` is float32[n] in the order of RobotSpec.state.
    """

    stamp_ns: int
    """Monotonic (or simulated) time of capture."""
    state: FloatArray
    images: dict[str, npt.NDArray[np.generic]]
    odometry: Pose
    """From wheels and gyroscope: drifts."""
    pose: Pose | None = None
    """True pose where the robot has one (a simulator, a motion-capture room)."""
    goal: tuple[float, float] | None = None
    """Goal of the episode in the frame of ``pose``, where the robot's world sets one."""
    collided: bool = False
    """A contact with an obstacle since the episode began."""
    elapsed_s: float = 0.0
    """Time since the episode began, on the robot's own clock."""
    world: dict[str, float] = field(default_factory=dict)
    """Facts for the episode's record, such as the straight distance to the goal at its start."""
    reward: float | None = None
    """What the world itself says the last period was worth, where it says anything (a benchmark environment)."""
    verdict: Outcome | None = None
    """What the world itself says of the episode, where it does."""


class Outcome(NamedTuple):
    """A task's verdict after a tick."""

    terminated: bool
    """The task ended by itself: success or failure; nothing bootstraps."""
    truncated: bool
    """The episode was cut off (time): the return bootstraps from the final observation."""
    success: bool
    reason: str = ""


RUNNING = Outcome(terminated=False, truncated=False, success=False)
"""The verdict while an episode goes on."""


@dataclass(slots=True)
class Moment:
    """What a reward term may look at: one tick's reading with the action that was applied in it and the verdict.

    ``state`` maps names of RobotSpec.state to SI values; ``task`` maps what the task measures (``distance_m``).
    """

    state: dict[str, float]
    task: dict[str, float]
    action: tuple[float, ...]
    """The action applied during the tick, in the units of RobotSpec.action."""
    collided: bool = False
    outcome: Outcome = RUNNING
