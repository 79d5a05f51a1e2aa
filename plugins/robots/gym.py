"""Any Gymnasium environment as a robot in lock-step: one control period is one ``step`` of the environment.

The observation is the robot's state, flattened as ``gymnasium.spaces.flatten`` does; images in it are cameras. Reward
and end of an episode are the environment's own: the task and the reward term ``environment`` pass them on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plugins import Robot, RobotPlugin, hookimpl
from protocol.errors import RoverError
from protocol.moment import RUNNING, Outcome, Pose, Reading
from protocol.node.config import option
from protocol.node.require import require
from protocol.spec import CONTINUOUS, DISCRETE, Camera, Element, RobotSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

FALLBACK_RATE_HZ = 30.0
"""Control rate of an environment that says neither how often it is shown nor how long a step is."""
WIDE = 10.0
"""Nominal size of an observed number without bounds: what the policy sees of it is clipped at ten times this."""
LARGEST_BOUND = 1e6
"""A bound beyond it (the largest float, as some environments have it) says nothing."""
MOST_NUMBERS = 1000
"""Numbers that the observation and the action may have together."""
PIXELS = "pixels"
"""Name of the camera of an environment whose whole observation is an image."""


class GymError(RoverError):
    """There is no such environment here, or its spaces cannot be a robot's state and action."""


@dataclass(frozen=True)
class GymSettings:
    """Choose the environment."""

    id: str = option("", help="environment, such as CartPole-v1; MODULE:NAME-v0 imports a module first")
    options: dict[str, Any] = option(dict, help="further arguments of gymnasium.make, such as frame_skip")
    control_rate_hz: float = option(
        0.0, help="control ticks per second of its own clock; 0: what the environment says", low=0.0, high=10_000.0
    )
    action_repeat: int = option(1, help="steps for which one decision is held", low=1, high=50)


class GymRobot:
    """An environment; everything follows from the arena seed, which seeds its ``reset``, and the actions.

    Once the environment has ended an episode it stands still until the next ``reset``.
    """

    is_simulated = True

    def __init__(self, settings: GymSettings) -> None:
        """Make the environment; raises GymError, or MissingExtraError without gymnasium."""
        self._spaces = require("gymnasium.spaces", "gym")
        self._env = _make(settings)
        self._senses = _Senses(self._env.observation_space, self._spaces, settings.id)
        self._act = _actions(self._env.action_space, self._spaces, settings.id)
        rate_hz = settings.control_rate_hz or _rate_hz(self._env)
        self.spec = RobotSpec(
            name=f"gym:{settings.id}",
            cameras=tuple(Camera(c.name, "rgb", c.shape[0], c.shape[1], rate_hz) for c in self._senses.cameras),
            state=self._senses.elements,
            action=self._act.elements,
            control_rate_hz=rate_hz,
            action_repeat=settings.action_repeat,
            action_space=self._act.kind,
        )
        _check_size(self.spec)
        self.safe_action = self._act.safe
        self._threshold = getattr(self._env.spec, "reward_threshold", None)
        self._clock_s = 0.0
        self.reset(0)

    def reset(self, arena_seed: int) -> None:
        """Begin an episode of the environment, seeded."""
        self._observation, _ = self._env.reset(seed=arena_seed)
        self._seed = arena_seed
        self._ticks = 0
        self._reward = self._return = 0.0
        self._verdict = RUNNING

    def advance(self, in_flight: Sequence[float], action: Sequence[float]) -> None:  # noqa: ARG002 - there is no delay
        """Take one step with ``action``."""
        self._ticks += 1
        self._clock_s += self.spec.period_s
        if self._verdict is not RUNNING:
            self._reward = 0.0
            return
        self._observation, reward, terminated, truncated, facts = self._env.step(self._act.of(action))
        self._reward = float(reward)
        self._return += self._reward
        if terminated or truncated:
            reason = "terminated" if terminated else "truncated"
            is_terminated = bool(terminated)
            self._verdict = Outcome(is_terminated, not is_terminated, self._is_success(facts), reason)

    def read(self, images: bool) -> Reading:  # noqa: FBT001 - the one question a tick asks
        """Report what the environment showed last, what the step was worth, and whether the episode goes on."""
        return Reading(
            stamp_ns=round(self._clock_s * 1e9),
            state=self._senses.state(self._observation),
            images=self._senses.images(self._observation) if images else {},
            odometry=Pose(0.0, 0.0, 0.0),
            elapsed_s=self._ticks * self.spec.period_s,
            world={"arena_seed": float(self._seed)},
            reward=self._reward,
            verdict=self._verdict,
        )

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _is_success(self, facts: dict[str, Any]) -> bool:
        """Take the environment's word where it gives one, else the return at which it counts as solved."""
        for name in ("is_success", "success"):
            if name in facts:
                return bool(facts[name])
        return self._threshold is not None and self._return >= self._threshold


@dataclass(frozen=True)
class _View:
    """One image of an observation: ``key`` in the Dict, None where the observation is the image."""

    name: str
    key: str | None
    shape: tuple[int, ...]


class _Senses:
    """How an observation becomes state and images."""

    def __init__(self, space: Any, spaces: Any, name: str) -> None:
        self._spaces = spaces
        self.cameras = _views(space, spaces)
        keys = {view.key for view in self.cameras}
        self._rest = space
        if None in keys:
            self._rest = spaces.Dict({})
        elif keys:
            self._rest = spaces.Dict({key: part for key, part in space.spaces.items() if key not in keys})
        self._keys = tuple(self._rest.spaces) if keys else ()
        self._is_plain = isinstance(self._rest, spaces.Box)
        self.elements = _elements(self._rest, spaces, name)

    def state(self, observation: Any) -> npt.NDArray[np.float32]:
        """Return float32[n], the caller's own."""
        if self._is_plain:
            return np.array(observation, np.float32).reshape(-1)
        if not self.elements:
            return np.empty(0, np.float32)
        if self.cameras:
            observation = {key: observation[key] for key in self._keys}
        return np.array(self._spaces.flatten(self._rest, observation), np.float32)

    def images(self, observation: Any) -> dict[str, npt.NDArray[np.generic]]:
        """Return uint8[H, W, 3] by blob key, the caller's own."""
        return {
            f"observation.images.{view.name}": np.array(observation if view.key is None else observation[view.key])
            for view in self.cameras
        }


def _views(space: Any, spaces: Any) -> tuple[_View, ...]:
    if _is_image(space, spaces):
        return (_View(PIXELS, None, space.shape),)
    if not isinstance(space, spaces.Dict):
        return ()
    images = {key: part.shape for key, part in space.spaces.items() if _is_image(part, spaces)}
    return tuple(_View(str(key).lower(), key, shape) for key, shape in images.items())


def _is_image(space: Any, spaces: Any) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def _elements(space: Any, spaces: Any, name: str) -> tuple[Element, ...]:
    """Return an element for each number of a flattened observation."""
    if isinstance(space, spaces.Dict) and not space.spaces:
        return ()
    try:
        flat = spaces.flatten_space(space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, spaces.Box):
        raise GymError(f"gym:{name}: observation space {space} has no fixed number of numbers; wrap the environment")
    low, high = flat.low.reshape(-1).tolist(), flat.high.reshape(-1).tolist()
    return tuple(_element(*each) for each in zip(_names(space, spaces, "obs"), low, high, strict=True))


def _element(name: str, low: float, high: float) -> Element:
    """Return an element that spans -1 to 1 for the network where it has bounds; without them low is not below high."""
    if max(abs(low), abs(high)) <= LARGEST_BOUND and low < high:
        return Element(name, "", low, high, (low + high) / 2, (high - low) / 2)
    return Element(name, "", 0.0, 0.0, scale=WIDE)


def _names(space: Any, spaces: Any, prefix: str) -> list[str]:
    """Name the numbers of a flattened space: obs_0 ..., in a Dict or Tuple after the part, such as achieved_goal_0."""
    if isinstance(space, spaces.Dict):
        return [name for key, part in space.spaces.items() for name in _names(part, spaces, _joined(prefix, key))]
    if isinstance(space, spaces.Tuple):
        return [name for i, part in enumerate(space.spaces) for name in _names(part, spaces, f"{prefix}_{i}")]
    return [f"{prefix}_{index}" for index in range(spaces.flatdim(space))]


def _joined(prefix: str, key: object) -> str:
    return str(key) if prefix == "obs" else f"{prefix}_{key}"


class _Choices:
    """A Discrete action space: the action is one-hot."""

    kind = DISCRETE

    def __init__(self, space: Any) -> None:
        self._first = int(space.start)
        self.elements = tuple(Element(f"choice_{index}", "", 0.0, 1.0) for index in range(int(space.n)))
        self.safe = tuple(float(index == 0) for index in range(int(space.n)))

    def of(self, action: Sequence[float]) -> int:
        """Return the environment's action."""
        return self._first + max(range(len(action)), key=action.__getitem__)


class _Numbers:
    """A Box action space with bounds."""

    kind = CONTINUOUS

    def __init__(self, space: Any) -> None:
        self._low, self._high, self._shape, self._dtype = space.low, space.high, space.shape, space.dtype
        bounds = list(zip(space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist(), strict=True))
        self.elements = tuple(Element(f"a_{index}", "", low, high) for index, (low, high) in enumerate(bounds))
        self.safe = tuple(min(max(0.0, low), high) for low, high in bounds)

    def of(self, action: Sequence[float]) -> npt.NDArray[np.generic]:
        """Return the environment's action; rounding must not leave the bounds."""
        given = np.array(action, self._dtype).reshape(self._shape)
        clipped: npt.NDArray[np.generic] = np.clip(given, self._low, self._high)
        return clipped


def _actions(space: Any, spaces: Any, name: str) -> _Choices | _Numbers:
    if isinstance(space, spaces.Discrete):
        return _Choices(space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if np.isfinite(space.low).all() and np.isfinite(space.high).all() and (space.low < space.high).all():
            return _Numbers(space)
        raise GymError(f"gym:{name}: action space {space} has no finite bounds; wrap it in RescaleAction")
    raise GymError(f"gym:{name}: action space {space} is neither a Box of floats nor Discrete; wrap the environment")


def _make(settings: GymSettings) -> Any:
    if not settings.id:
        raise GymError("robot gym: no environment; name one, as in --robot gym:CartPole-v1")
    gymnasium = require("gymnasium", "gym")
    try:
        return gymnasium.make(settings.id, disable_env_checker=True, **settings.options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise GymError(f"gym:{settings.id}: {error}; for MuJoCo: pip install 'roverloop[sim]'") from error
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise GymError(f"gym:{settings.id}: {str(error).strip()}") from error


def _rate_hz(env: Any) -> float:
    """Return how many steps make a second, as the environment is shown, or as its own step says."""
    fps = (env.metadata or {}).get("render_fps")
    if isinstance(fps, int | float) and math.isfinite(fps) and fps > 0:
        return float(fps)
    dt = getattr(env.unwrapped, "dt", None)
    return 1.0 / float(dt) if isinstance(dt, int | float) and dt > 0 else FALLBACK_RATE_HZ


def _check_size(spec: RobotSpec) -> None:
    numbers = len(spec.state) + len(spec.action)
    if numbers > MOST_NUMBERS:
        text = f"{len(spec.state)} observed numbers and {len(spec.action)} of action, at most {MOST_NUMBERS}"
        raise GymError(f"{spec.name}: {text}; an image must be uint8[H, W, 3] to be a camera")


def create(settings: GymSettings) -> Robot:
    """Make the robot."""
    return GymRobot(settings)


@hookimpl
def provide_robots() -> list[RobotPlugin]:
    """Offer Gymnasium's environments."""
    return [RobotPlugin("gym", GymSettings, create, argument="id")]
