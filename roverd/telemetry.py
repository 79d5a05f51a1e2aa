"""What a person who drives looks at: the newest tick and the newest picture."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.images import JPEG
from protocol.step import SOURCES, Intervention

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.spec import RobotSpec, TaskSpec
    from roverd.control.wire import Applied
    from roverd.episode import Observed


class Picture(NamedTuple):
    """A JPEG of the first colour camera."""

    number: int
    """Counts from 1."""
    content: bytes
    taken_s: float
    """On the clock of the telemetry."""


class Telemetry:
    """Keep the newest tick and picture; the loop thread owns it."""

    def __init__(self, spec: RobotSpec, task: TaskSpec, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing seen."""
        self.picture: Picture | None = None
        self._clock = clock
        self._actions = tuple(element.name for element in spec.action)
        self._features = tuple(element.name for element in task.features)
        self._camera = next((camera.key for camera in spec.cameras if camera.kind == "rgb"), "")
        self._applied: Applied | None = None
        self._state: dict[str, float] = {}
        self._task: dict[str, float] = {}
        self._elapsed_s = 0.0
        self._seen_s = -math.inf

    def saw(self, seen: Observed, applied: Applied | None = None) -> None:
        """Take an observation, and what was applied on the tick before it."""
        self._seen_s = self._clock()
        self._state, self._elapsed_s = seen.state, seen.reading.elapsed_s
        self._task = dict(zip(self._features, seen.task.tolist(), strict=True))
        if applied is not None:
            self._applied = applied
        codec, content = seen.encoded.get(self._camera, ("", b""))
        if codec == JPEG:
            number = self.picture.number + 1 if self.picture is not None else 1
            self.picture = Picture(number, content, self._seen_s)

    def to_map(self) -> dict[str, Any]:
        """Return numbers, names and ages for people; what was never seen is None."""
        applied, now_s = self._applied, self._clock()
        clearance_m = math.nan if applied is None else applied.clearance_m
        return {
            "tick": applied.tick if applied else 0,
            "age_s": _rounded(now_s - self._seen_s),
            "picture_age_s": _rounded(now_s - self.picture.taken_s) if self.picture else None,
            "elapsed_s": _rounded(self._elapsed_s),
            "source": SOURCES[applied.source] if applied else "",
            "flags": [flag.name.lower() for flag in Intervention if flag & applied.interventions and flag.name]
            if applied
            else [],
            "action": dict(zip(self._actions, map(_rounded, applied.action), strict=True)) if applied else {},
            "state": {name: _rounded(value) for name, value in self._state.items()},
            "task": {name: _rounded(value) for name, value in self._task.items()},
            "clearance_m": _rounded(clearance_m),
        }


def _rounded(value: float) -> float | None:
    """Return a number that JSON knows, or None."""
    return round(value, 3) if math.isfinite(value) else None
