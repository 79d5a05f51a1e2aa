"""What a plugin hands over: descriptors that name it, and the protocols its objects follow.

Robots, tasks, rewards and controllers are synchronous and single-threaded: whoever made an object calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.moment import Moment, Outcome, Reading
from protocol.spec import RobotSpec, TaskSpec
from protocol.transform import Plane

FloatArray = npt.NDArray[np.float32]
Images = Mapping[str, npt.NDArray[np.generic]]
RewardFunction = Callable[[Moment, Moment], float]


class Robot(Protocol):
    """Move one control period at a time and report what was sensed."""

    @property
    def spec(self) -> RobotSpec:
        """The robot's declaration, constant for its lifetime."""

    @property
    def is_simulated(self) -> bool:
        """True for a robot whose clock is simulated: its readings are then stamped when they are taken."""

    @property
    def safe_action(self) -> tuple[float | None, ...]:
        """What is commanded where nothing fresh is there: 0.0 for a velocity, None to hold what was applied last."""

    def reset(self, arena_seed: int) -> None:
        """Begin an episode; a simulator builds the world of ``arena_seed``, equal whatever happened before."""

    def advance(self, in_flight: Sequence[float], action: Sequence[float]) -> None:
        """Move one control period: the action delay with ``in_flight``, the rest with ``action`` (SI units)."""

    def read(self, images: bool) -> Reading:  # noqa: FBT001 - the one question a tick asks
        """Report the present state, with the images of every camera where ``images`` is true."""

    def close(self) -> None:
        """Stop and release the device; calling it twice is harmless."""


class Task(Protocol):
    """Decide what an episode is for: what it adds to the observation, and when it ends."""

    @property
    def spec(self) -> TaskSpec:
        """The task's declaration, constant for its lifetime."""

    def reset(self, reading: Reading) -> None:
        """Begin an episode with its first reading."""

    def features(self, reading: Reading) -> FloatArray:
        """Return float32[m] in the order of TaskSpec.features, in SI units, as a real robot could know it."""

    def measure(self, reading: Reading) -> dict[str, float]:
        """Return what reward terms may look at (``distance_m``), as true as the robot can tell."""

    def judge(self, reading: Reading) -> Outcome:
        """Say whether the episode is over and how; called on every tick."""


class Controller(Protocol):
    """Choose actions without learning."""

    def reset(self, seed: int) -> None:
        """Begin an episode; equal seeds give equal actions for equal inputs."""

    def act(self, images: Images, state: FloatArray, task: FloatArray) -> FloatArray:
        """Return float32[a] in SI action units from blob images, float32[n] state and float32[m] task features."""


class Actuator(Protocol):
    """A device that control commands on every tick; it lives in the control process, which does nothing else.

    Called by one thread. A ``write`` that does not return within 80 ms makes the spare control process take over,
    which makes an actuator of its own; the device must stop by itself when nothing is written (its dead-man timer).
    """

    def write(self, action: Sequence[float]) -> None:
        """Command the device, in the units of RobotSpec.action; raise OSError where it does not take the command."""

    def close(self) -> None:
        """Release the device; calling it twice is harmless."""


@dataclass(frozen=True)
class ActuatorPlugin:
    """Name an actuator; ``create`` gets an instance of ``settings`` and the robot's spec, and returns within 100 ms."""

    name: str
    settings: type[Any]
    create: Callable[[Any, RobotSpec], Actuator]


@dataclass(frozen=True)
class RobotPlugin:
    """Name a robot; ``create`` gets an instance of ``settings`` and may block while it opens devices."""

    name: str
    settings: type[Any]
    create: Callable[[Any], Robot]
    argument: str = ""
    """The option that a text after a colon sets (``--robot gym:CartPole-v1``); empty where there is none."""


@dataclass(frozen=True)
class TaskPlugin:
    """Name a task; ``create`` gets an instance of ``settings``, the robot's spec and a seed for its noise."""

    name: str
    settings: type[Any]
    create: Callable[[Any, RobotSpec, int], Task]


@dataclass(frozen=True)
class RewardTerm:
    """Name one pure reward term; its weight comes from the settings of the run, never from the term."""

    name: str
    function: RewardFunction
    help: str


@dataclass(frozen=True)
class EncoderPlugin:
    """Name an image encoder.

    ``planes(robot_spec, settings)`` says which camera planes it reads; ``build((C, H, W), settings)`` returns a
    ``torch.nn.Module`` with an attribute ``out_features`` (typed Any, so that robots need no torch).
    """

    name: str
    settings: type[Any]
    planes: Callable[[RobotSpec, Any], tuple[Plane, ...]]
    build: Callable[[tuple[int, int, int], Any], Any]


@dataclass(frozen=True)
class ControllerPlugin:
    """Name a controller; ``create`` gets the specs it will act for and a seed."""

    name: str
    create: Callable[[RobotSpec, TaskSpec, int], Controller]


Descriptor = RobotPlugin | ActuatorPlugin | TaskPlugin | RewardTerm | EncoderPlugin | ControllerPlugin
