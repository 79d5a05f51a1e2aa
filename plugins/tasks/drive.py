"""Drive without a goal: a collision or the time ends the episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plugins import TaskPlugin, hookimpl
from protocol.moment import Outcome, Reading
from protocol.node.config import option
from protocol.spec import RobotSpec, TaskSpec


@dataclass(frozen=True)
class DriveSettings:
    """Say when driving has lasted long enough."""

    time_limit_s: float = option(20.0, help="time after which an episode is cut off", low=0.1, high=3600.0)


class DriveTask:
    """Add nothing to the observation; an episode that lasts to its time limit without a collision is a success."""

    def __init__(self, settings: DriveSettings) -> None:
        self.spec = TaskSpec(name="drive", ranking=(("drive", "still"), ("drive", "spin"), ("drive", "reverse")))
        self._time_limit_s = settings.time_limit_s

    def reset(self, reading: Reading) -> None:
        """Nothing carries over from one episode to the next."""

    def features(self, reading: Reading) -> npt.NDArray[np.float32]:  # noqa: ARG002 - the protocol passes it
        """Return float32[0]."""
        return np.empty(0, np.float32)

    def measure(self, reading: Reading) -> dict[str, float]:  # noqa: ARG002 - the protocol passes it
        """Return nothing: there is no goal to measure."""
        return {}

    def judge(self, reading: Reading) -> Outcome:
        """End on a collision, cut off at the time limit."""
        if reading.collided:
            return Outcome(terminated=True, truncated=False, success=False, reason="collision")
        if reading.elapsed_s >= self._time_limit_s - 1e-6:
            return Outcome(terminated=False, truncated=True, success=True, reason="time")
        return Outcome(terminated=False, truncated=False, success=False)


def create(settings: DriveSettings, robot: RobotSpec, seed: int) -> DriveTask:  # noqa: ARG001 - the hook passes them
    """Make the task."""
    return DriveTask(settings)


@hookimpl
def provide_tasks() -> list[TaskPlugin]:
    """Offer the drive task."""
    return [TaskPlugin("drive", DriveSettings, create)]
