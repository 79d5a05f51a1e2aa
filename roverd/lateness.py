"""How punctual control is: the lateness of its ticks and of its actions, over the last minutes."""

from __future__ import annotations

from collections import deque

import numpy as np

WINDOW = 4096


class Lateness:
    """Collect what each APPLIED tells; cheap to add to, computed when somebody asks."""

    def __init__(self) -> None:
        self._ticks_ns: deque[int] = deque(maxlen=WINDOW)
        self._actions_ns: deque[int] = deque(maxlen=WINDOW)
        self.count = 0

    def add(self, tick_ns: int, action_ns: int) -> None:
        """Add how late a tick began and how late its action was applied, ns."""
        self._ticks_ns.append(tick_ns)
        self._actions_ns.append(action_ns)
        self.count += 1

    def since(self, count: int) -> tuple[list[int], list[int]]:
        """Return how late each tick and each action was, ns, from the ``count``-th on, if the window goes so far."""
        wanted = max(0, min(self.count - count, len(self._ticks_ns)))
        first = len(self._ticks_ns) - wanted
        return list(self._ticks_ns)[first:], list(self._actions_ns)[first:]

    def report(self) -> dict[str, float | int]:
        """Return n and, for ticks and actions, p50, p99, p99.9 and the worst in ms; only n where there is none."""
        report: dict[str, float | int] = {"n": len(self._ticks_ns)}
        for name, values in (("tick", self._ticks_ns), ("action", self._actions_ns)):
            if values:
                p50, p99, p999 = np.percentile(np.array(values) * 1e-6, (50, 99, 99.9))
                report[f"{name}_p50_ms"] = round(float(p50), 4)
                report[f"{name}_p99_ms"] = round(float(p99), 4)
                report[f"{name}_p999_ms"] = round(float(p999), 4)
                report[f"{name}_max_ms"] = round(max(values) * 1e-6, 4)
        return report
