"""How often the robot's sensors report: readings of its state and pictures, over the last seconds."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from roverd.episode import Observed

WINDOW_S = 10.0
LEAST_WINDOW_S = 2.0


class Rates:
    """Count new readings of the state and new pictures; the loop thread owns it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing seen."""
        self._clock = clock
        self._marks: deque[tuple[float, int, int]] = deque()
        """Time, readings and pictures, about ten times a second."""
        self._readings = self._pictures = 0
        self._picture_ns = 0
        self._clearance_m = math.nan

    def saw(self, seen: Observed, clearance_m: float = math.nan) -> None:
        """Take an observation, and the free distance ahead that control measured for it (m; NaN for none)."""
        now_s = self._clock()
        self._clearance_m = clearance_m
        self._readings += 1
        if seen.image_stamp_ns != self._picture_ns:
            self._picture_ns = seen.image_stamp_ns
            self._pictures += 1
        if not self._marks or now_s - self._marks[-1][0] >= WINDOW_S / 100:
            self._marks.append((now_s, self._readings, self._pictures))
            while now_s - self._marks[0][0] > WINDOW_S:
                self._marks.popleft()

    @property
    def clearance_m(self) -> float:
        """The free distance ahead, as control measured it last; NaN for none."""
        return self._clearance_m

    def per_second(self) -> tuple[float, float] | None:
        """Return readings and pictures a second over the last seconds; None where too little was seen lately."""
        if not self._marks or self._clock() - self._marks[-1][0] > LEAST_WINDOW_S:
            return None
        (since_s, readings, pictures), (until_s, last_readings, last_pictures) = self._marks[0], self._marks[-1]
        span_s = until_s - since_s
        if span_s < LEAST_WINDOW_S:
            return None
        return (last_readings - readings) / span_s, (last_pictures - pictures) / span_s
