"""Declare every observation and action feature of a robot once, and what a task adds to it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Mapping


CONTINUOUS, DISCRETE = ACTION_SPACES = ("continuous", "discrete")


class SpecError(RoverError):
    """A robot or task spec is malformed, or does not fit the run it is used in."""


@dataclass(frozen=True)
class Camera:
    """Describe one image stream; ``rgb`` is uint8[H, W, 3], ``depth`` is int16[H, W] in millimetres (0: no reading)."""

    name: str
    kind: str
    height: int
    width: int
    rate_hz: float
    stale_after_ms: float = 200.0
    horizontal_fov_deg: float = 69.0

    def __post_init__(self) -> None:
        """Refuse an unknown kind, an empty image, or a name with other characters than a-z, 0-9 and _."""
        _make_floats(f"camera {self.name}", self, ("rate_hz", "stale_after_ms", "horizontal_fov_deg"))
        if self.kind not in {"rgb", "depth"}:
            raise SpecError(f"camera {self.name}: kind {self.kind!r} is not rgb or depth")
        if self.height < 1 or self.width < 1:
            raise SpecError(f"camera {self.name}: {self.height}x{self.width} is not an image size")
        if not self.name.replace("_", "").isalnum() or self.name != self.name.lower():
            raise SpecError(f"camera {self.name!r}: use a-z, 0-9 and _ only")

    @property
    def key(self) -> str:
        """Name of the blob in a step, such as ``observation.images.front``."""
        return f"observation.{'images' if self.kind == 'rgb' else 'depth'}.{self.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Array shape, height first."""
        return (self.height, self.width, 3) if self.kind == "rgb" else (self.height, self.width)

    @property
    def dtype(self) -> str:
        """Array dtype name."""
        return "uint8" if self.kind == "rgb" else "int16"

    @property
    def nbytes(self) -> int:
        """Size of one decoded frame in bytes."""
        return self.height * self.width * (3 if self.kind == "rgb" else 2)


@dataclass(frozen=True)
class Element:
    """Describe one number of a vector: its name, SI unit, range, and the nominal (x - centre) / scale of a network."""

    name: str
    unit: str
    low: float
    high: float
    centre: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Make every number a float, so that 0 and 0.0 hash alike; refuse what is not finite or a scale of 0."""
        _make_floats(f"element {self.name}", self, ("low", "high", "centre", "scale"))
        if self.scale == 0:
            raise SpecError(f"element {self.name}: scale is 0")


@dataclass(frozen=True)
class RobotSpec:
    """Declare a robot: cameras, state and action elements, and the timing of control.

    ``control_rate_hz`` is the nominal rate of control ticks, ``action_repeat`` how many ticks one decision of the
    policy is held, ``action_delay_ms`` the constant time from a tick to its actuation. In a ``discrete`` action space
    the action elements are the choices, each 0 or 1, and every action is one-hot.
    """

    name: str
    cameras: tuple[Camera, ...]
    state: tuple[Element, ...]
    action: tuple[Element, ...]
    control_rate_hz: float
    action_repeat: int = 1
    action_delay_ms: float = 0.0
    action_space: str = CONTINUOUS

    def __post_init__(self) -> None:
        """Refuse duplicate names, an empty action and impossible timing."""
        _make_floats(f"robot spec {self.name}", self, ("control_rate_hz", "action_delay_ms"))
        mistakes = []
        for what, names in (
            ("camera", [camera.key for camera in self.cameras]),
            ("state element", [element.name for element in self.state]),
            ("action element", [element.name for element in self.action]),
        ):
            mistakes += [
                f"{what} {name} is declared twice" for name in sorted({n for n in names if names.count(n) > 1})
            ]
        if not self.action:
            mistakes.append("there is no action element")
        mistakes += [f"action {e.name}: low {e.low} is not below high {e.high}" for e in self.action if e.low >= e.high]
        if self.action_space not in ACTION_SPACES:
            mistakes.append(f"action_space {self.action_space!r} is none of {', '.join(ACTION_SPACES)}")
        elif self.is_discrete and (len(self.action) < 2 or any((e.low, e.high) != (0.0, 1.0) for e in self.action)):
            mistakes.append("a discrete action space needs two or more choices, each from 0 to 1")
        if self.control_rate_hz <= 0:
            mistakes.append(f"control_rate_hz {self.control_rate_hz} is not positive")
        elif not 0 <= self.action_delay_ms <= 1000 / self.control_rate_hz:
            mistakes.append(f"action_delay_ms {self.action_delay_ms} is not within one period")
        if self.action_repeat < 1:
            mistakes.append(f"action_repeat {self.action_repeat} is below 1")
        if mistakes:
            raise SpecError(f"robot spec {self.name}: " + "; ".join(mistakes))

    @property
    def period_s(self) -> float:
        """Nominal time between two control ticks in seconds."""
        return 1.0 / self.control_rate_hz

    @property
    def is_discrete(self) -> bool:
        """True where an action is one of several choices."""
        return self.action_space == DISCRETE

    def state_index(self, name: str) -> int:
        """Return the place of a state element, or raise SpecError."""
        for index, element in enumerate(self.state):
            if element.name == name:
                return index
        raise SpecError(f"robot spec {self.name}: no state element {name}; there are {[e.name for e in self.state]}")

    def camera(self, key: str) -> Camera:
        """Return the camera with a blob key, or raise SpecError."""
        for camera in self.cameras:
            if camera.key == key:
                return camera
        raise SpecError(f"robot spec {self.name}: no camera {key}; there are {[c.key for c in self.cameras]}")

    def to_map(self) -> dict[str, Any]:
        """Return plain lists, maps and numbers, as sent in hello and kept in bundles.

        A continuous action space is not named: specs from before there were others keep their hash.
        """
        values = asdict(self)
        if not self.is_discrete:
            del values["action_space"]
        return values

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> RobotSpec:
        """Build from what ``to_map`` gave; unknown keys are ignored; raises SpecError on missing or wrong ones."""
        try:
            return cls(
                **{
                    **_known(cls, values),
                    "cameras": tuple(Camera(**_known(Camera, c)) for c in values["cameras"]),
                    "state": tuple(Element(**_known(Element, e)) for e in values["state"]),
                    "action": tuple(Element(**_known(Element, e)) for e in values["action"]),
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise SpecError(f"robot spec: {error!r}") from error

    @property
    def hash(self) -> str:
        """Sha256 (hex) of the canonical form; equal for equal specs on any machine."""
        return canonical_hash(self.to_map())

    def differences(self, other: RobotSpec) -> list[str]:
        """Name every difference, as ``<place>: <ours> here, <theirs> there``; empty when the specs are equal."""
        return _differences("", self.to_map(), other.to_map())


@dataclass(frozen=True)
class TaskSpec:
    """Declare what a task adds to the observation (a goal vector), apart from the robot's own spec.

    ``masked_state`` names state elements that the policy must not see in this task; they are still recorded.
    """

    name: str
    features: tuple[Element, ...] = ()
    masked_state: tuple[str, ...] = ()
    ranking: tuple[tuple[str, str], ...] = field(default=())
    """Pairs (better, worse) of scripted controllers that the task's reward must rank so."""

    def to_map(self) -> dict[str, Any]:
        """Return plain lists, maps and numbers."""
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Build from what ``to_map`` gave; raises SpecError on missing or wrong keys."""
        try:
            return cls(
                name=str(values["name"]),
                features=tuple(Element(**_known(Element, e)) for e in values["features"]),
                masked_state=tuple(values["masked_state"]),
                ranking=tuple((str(a), str(b)) for a, b in values.get("ranking", ())),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise SpecError(f"task spec: {error!r}") from error

    @property
    def hash(self) -> str:
        """Sha256 (hex) of the canonical form."""
        return canonical_hash(self.to_map())

    def differences(self, other: TaskSpec) -> list[str]:
        """Name every difference, as RobotSpec.differences does."""
        return _differences("task.", self.to_map(), other.to_map())


def canonical_hash(values: object) -> str:
    """Return the sha256 (hex) of a value's JSON with sorted keys and no spaces."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _make_floats(where: str, spec: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SpecError(f"{where}: {name} {value!r} is not a finite number")
        object.__setattr__(spec, name, float(value))


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in values.items() if key in names}


def _differences(place: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in sorted({*ours, *theirs})
            for line in _differences(f"{place}{key}." if place else f"{key}.", ours.get(key), theirs.get(key))
        ]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if _names(ours) != _names(theirs) or len(ours) != len(theirs):
            return [f"{place.rstrip('.')}: {_names(ours)} here, {_names(theirs)} there"]
        return [
            line
            for index, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for line in _differences(f"{place}{_label(a, index)}.", a, b)
        ]
    return [] if ours == theirs else [f"{place.rstrip('.')}: {ours} here, {theirs} there"]


def _label(value: object, index: int) -> str:
    return str(value["name"]) if isinstance(value, dict) and "name" in value else str(index)


def _names(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    return [v["name"] if isinstance(v, dict) and "name" in v else v for v in values]
