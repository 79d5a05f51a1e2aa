"""Scripted controllers that see no image: a task declares how its reward must rank them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins import ControllerPlugin, hookimpl
from protocol.spec import RobotSpec, TaskSpec

if TYPE_CHECKING:
    from plugins.contracts import Images

FloatArray = npt.NDArray[np.float32]
Script = Callable[[RobotSpec, TaskSpec, FloatArray], tuple[float, float]]
"""Returns (linear, angular) as shares of the limits, -1 to 1, from the task features."""


def still(robot: RobotSpec, task: TaskSpec, features: FloatArray) -> tuple[float, float]:  # noqa: ARG001 - a Script
    """Do nothing."""
    return 0.0, 0.0


def spin(robot: RobotSpec, task: TaskSpec, features: FloatArray) -> tuple[float, float]:  # noqa: ARG001 - a Script
    """Turn left on the spot as fast as allowed."""
    return 0.0, 1.0


def reverse(robot: RobotSpec, task: TaskSpec, features: FloatArray) -> tuple[float, float]:  # noqa: ARG001 - a Script
    """Drive straight back as fast as allowed; a robot that cannot stands still."""
    return -1.0, 0.0


def drive(robot: RobotSpec, task: TaskSpec, features: FloatArray) -> tuple[float, float]:
    """Drive straight to the goal where the task has one, straight ahead otherwise; blind to obstacles."""
    bearing = goal_bearing(task, features)
    if bearing is None:
        return 1.0, 0.0
    return max(0.0, math.cos(bearing)) ** 2, 2.0 * bearing / max(robot.action[1].high, 1e-6)


def goal_bearing(task: TaskSpec, features: FloatArray) -> float | None:
    """Return the goal's bearing in radians, left positive, or None where the task has no goal."""
    places = {element.name: index for index, element in enumerate(task.features)}
    if not {"goal_sin", "goal_cos"} <= places.keys():
        return None
    return math.atan2(float(features[places["goal_sin"]]), float(features[places["goal_cos"]]))


class ScriptedController:
    """Run a script on a robot whose first two actions are linear and angular velocity; other actions stay zero."""

    def __init__(self, script: Script, robot: RobotSpec, task: TaskSpec) -> None:
        self._script, self._robot, self._task = script, robot, task

    def reset(self, seed: int) -> None:
        """Scripts remember nothing."""

    def act(self, images: Images, state: FloatArray, task: FloatArray) -> FloatArray:  # noqa: ARG002 - blind on purpose
        """Return the scripted action within the limits."""
        action = np.zeros(len(self._robot.action), np.float32)
        shares = self._script(self._robot, self._task, task)
        for index, (share, element) in enumerate(zip(shares, self._robot.action, strict=False)):
            wanted = share * (element.high if share >= 0 else max(-element.low, element.high))
            action[index] = min(max(wanted, element.low), element.high)
        return action


def _plugin(script: Script) -> ControllerPlugin:
    return ControllerPlugin(
        script.__name__,
        lambda robot, task, seed: ScriptedController(script, robot, task),  # noqa: ARG005 - the hook passes it
    )


@hookimpl
def provide_controllers() -> list[ControllerPlugin]:
    """Offer ``still``, ``spin``, ``reverse`` and ``drive``."""
    return [_plugin(script) for script in (still, spin, reverse, drive)]
