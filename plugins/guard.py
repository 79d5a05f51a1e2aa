"""Call a plugin so that its faults stay its own: count them, and disable it when they repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

import numpy as np
import structlog

T = TypeVar("T")

STRIKES = 3
"""A plugin is disabled at this many faults."""
STALLS = 10
"""So many slow calls in a row, even without using the processor, are one fault: the plugin blocks or sleeps."""

log = structlog.get_logger()


class Guard(Generic[T]):
    """A plugin's function that never raises.

    A call that raises or returns a non-finite number gives ``default`` instead; a call beyond its budget still counts
    as answered. Each is a fault; after STRIKES of them every call gives ``default`` without reaching the plugin.

    Slow is judged by the thread's processor time, because on a busy machine a plugin may be kept waiting through no
    fault of its own. Use it from one thread. It costs below a microsecond a call.
    """

    def __init__(
        self, group: str, name: str, function: Callable[..., T], *, default: T, budget_ms: float, strikes: int = STRIKES
    ) -> None:
        self.group = group
        self.name = name
        self.calls = 0
        self.failures = 0
        self.overruns = 0
        self.last_error = ""
        self.max_s = 0.0
        self.is_disabled = False
        self._function = function
        self._default = default
        self._budget_s = budget_ms / 1000
        self._strikes = strikes
        self._stalls = 0

    def __call__(self, *args: Any) -> T:
        """Call the plugin with ``args``, or give the default."""
        if self.is_disabled:
            return self._default
        self.calls += 1
        used_s = thread_time()
        start_s = perf_counter()
        try:
            result = self._function(*args)
        except Exception as error:  # noqa: BLE001 - the wall around a plugin
            self._fail(f"{type(error).__name__}: {error}")
            return self._default
        elapsed_s = perf_counter() - start_s
        self.max_s = max(self.max_s, elapsed_s)
        if elapsed_s > self._budget_s:
            self._judge_slow(elapsed_s, thread_time() - used_s)
        else:
            self._stalls = 0
        if is_finite(result):
            return result
        self._fail(f"not finite: {result!r}")
        return self._default

    def _judge_slow(self, elapsed_s: float, used_s: float) -> None:
        self._stalls += 1
        if used_s <= self._budget_s and self._stalls < STALLS:
            return
        self._stalls = 0
        self.overruns += 1
        self._strike(f"took {elapsed_s * 1000:.1f} ms, budget {self._budget_s * 1000:g} ms")

    def _fail(self, error: str) -> None:
        self.failures += 1
        self._strike(error)

    def _strike(self, error: str) -> None:
        self.last_error = error
        if self.failures + self.overruns < self._strikes or self.is_disabled:
            return
        self.is_disabled = True
        log.warning(
            "plugin.disabled",
            group=self.group,
            plugin=self.name,
            failures=self.failures,
            overruns=self.overruns,
            error=error,
            hint="mend the plugin and restart; until then its default stands in",
        )


def is_finite(value: Any) -> bool:
    """Say whether every number in a float, array, mapping or sequence is finite; other values pass."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, np.ndarray):
        return bool(np.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(is_finite(each) for each in value.values())
    if isinstance(value, tuple | list):
        return all(is_finite(each) for each in value)
    return True
