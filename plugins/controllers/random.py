"""Act uniformly at random: the floor that every policy must clear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins import ControllerPlugin, hookimpl

if TYPE_CHECKING:
    from plugins.contracts import Images
    from protocol.spec import RobotSpec, TaskSpec

FloatArray = npt.NDArray[np.float32]


class RandomController:
    """Draw each action from the whole range; the n-th action of an episode depends on (seed, episode seed, n) only."""

    def __init__(self, robot: RobotSpec, seed: int) -> None:
        self._low = np.array([e.low for e in robot.action], np.float32)
        self._high = np.array([e.high for e in robot.action], np.float32)
        self._seed = seed
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin the sequence of an episode seed."""
        self._rng = np.random.Generator(np.random.PCG64([self._seed, seed]))

    def act(self, images: Images, state: FloatArray, task: FloatArray) -> FloatArray:  # noqa: ARG002 - blind on purpose
        """Return the next action of the sequence, whatever is seen."""
        return self._rng.uniform(self._low, self._high).astype(np.float32)


def create(robot: RobotSpec, task: TaskSpec, seed: int) -> RandomController:  # noqa: ARG001 - the hook passes it
    """Make the controller."""
    return RandomController(robot, seed)


@hookimpl
def provide_controllers() -> list[ControllerPlugin]:
    """Offer ``random``."""
    return [ControllerPlugin("random", create)]
