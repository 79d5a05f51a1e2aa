"""How fast it goes: ticks and decisions a second, and which ticks control left out, missed, or took late."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from protocol.step import Intervention
from roverd.lateness import Lateness

if TYPE_CHECKING:
    from roverd.control import wire

WINDOW_S = 10.0


class Pace:
    """Follow the ticks that control reports, in an episode and outside."""

    def __init__(self, counts: dict[str, int], *, delay_ns: int) -> None:
        """Begin before the first tick.

        Args:
            counts: has ``ticks`` and ``decisions``; ``gaps``, ``skipped`` and ``missed`` are counted there.
            delay_ns: how long after its tick an action is to be applied.

        """
        self._counts, self._delay_ns = counts, delay_ns
        self.lateness = Lateness()
        self._last_tick = 0
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=64)

    def heard(self, applied: wire.Applied) -> int:
        """Take what control reports of a tick; return how many ticks before it are missing."""
        skipped = max(0, applied.tick - self._last_tick - 1) if self._last_tick else 0
        self._last_tick = applied.tick
        self._counts["gaps"] += bool(skipped)
        self._counts["skipped"] += skipped
        self._counts["missed"] += bool(applied.interventions & Intervention.MISSED)
        self.lateness.add(applied.late_ns, applied.applied_ns - applied.tick_ns - self._delay_ns)
        return skipped

    def mark(self) -> None:
        """Note how far it is now; to be called about once a second."""
        self._marks.append(self._now())

    @property
    def rates(self) -> tuple[float, float]:
        """Ticks and decisions per second over the last seconds."""
        now = self._now()
        then = next((mark for mark in self._marks if now[0] - mark[0] < WINDOW_S), now)
        span = now[0] - then[0]
        if span <= 0:
            return 0.0, 0.0
        return (now[1] - then[1]) / span, (now[2] - then[2]) / span

    def _now(self) -> tuple[float, int, int]:
        return time.monotonic(), self._counts["ticks"], self._counts["decisions"]
