"""Do what the world itself asks for: reward and end of an episode come with each reading, as an environment gives them.

The policy sees exactly what the environment shows: no goal is added, and the action in flight is masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins import TaskPlugin, hookimpl
from protocol.errors import RoverError
from protocol.spec import RobotSpec, TaskSpec

if TYPE_CHECKING:
    from protocol.moment import Outcome, Reading


class NoVerdictError(RoverError):
    """The robot's readings say nothing of reward and end."""


@dataclass(frozen=True)
class EnvironmentSettings:
    """Nothing is to be set: the environment says it all."""


class EnvironmentTask:
    """Pass on what a simulated world says of itself."""

    def __init__(self, robot: RobotSpec) -> None:
        """Hide the action in flight from the policy: an environment's observation is complete without it."""
        self.spec = TaskSpec("environment", masked_state=tuple(f"{e.name}_in_flight" for e in robot.action))
        self._robot = robot.name

    def reset(self, reading: Reading) -> None:
        """Refuse a robot whose world says nothing."""
        if reading.verdict is None:
            raise NoVerdictError(f"task environment: robot {self._robot} gives no verdict; choose another task")

    def features(self, reading: Reading) -> npt.NDArray[np.float32]:  # noqa: ARG002 - the protocol passes it
        """Return float32[0]."""
        return np.empty(0, np.float32)

    def measure(self, reading: Reading) -> dict[str, float]:
        """Return ``environment_reward``, in the environment's own units."""
        return {"environment_reward": reading.reward or 0.0}

    def judge(self, reading: Reading) -> Outcome:
        """Return the environment's verdict."""
        if reading.verdict is None:
            raise NoVerdictError(f"task environment: robot {self._robot} gives no verdict")
        return reading.verdict


def create(settings: EnvironmentSettings, robot: RobotSpec, seed: int) -> EnvironmentTask:  # noqa: ARG001 - the hook passes them
    """Make the task."""
    return EnvironmentTask(robot)


@hookimpl
def provide_tasks() -> list[TaskPlugin]:
    """Offer the environment's own task."""
    return [TaskPlugin("environment", EnvironmentSettings, create)]
