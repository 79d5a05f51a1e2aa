"""Remember which policies may not drive here, why, and which ones their process died of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CRASHES = 2
"""A process that dies so often with the same policy, without a good stretch between, died of it."""


class Refusals:
    """Reasons by name. A barred one was rolled back: it stays so over restarts; a refused one failed its proof."""

    def __init__(self, barred: Mapping[str, str]) -> None:
        """Take what an earlier start barred."""
        self._refused: dict[str, str] = {}
        self.barred: dict[str, str] = dict(barred)
        self._crashes: Counter[str] = Counter()
        self.newest = ("", "")
        """Name and reason of the last one, for people."""

    def reason(self, name: str) -> str:
        """Return why a policy or controller may not drive, or an empty text."""
        return self.barred.get(name) or self._refused.get(name, "")

    def refuse(self, name: str, reason: str) -> None:
        """Do not try it again in this start."""
        self._refused[name] = reason
        self.newest = (name, reason)

    def bar(self, name: str, reason: str) -> None:
        """Do not try it again at all."""
        self.barred[name] = reason
        self.newest = (name, reason)

    def retry(self, name: str) -> None:
        """Let it be proved again; one that was rolled back stays barred."""
        self._refused.pop(name, None)

    def forgive(self, name: str) -> None:
        """Give it another chance, whatever it did."""
        self._refused.pop(name, None)
        self.barred.pop(name, None)
        self._crashes.pop(name, None)
        if self.newest[0] == name:
            self.newest = ("", "")

    def count_crash(self, name: str) -> bool:
        """Count a death of the process that held it; return True where that is once too often."""
        self._crashes[name] += 1
        return self._crashes[name] >= MAX_CRASHES

    def survived(self, name: str) -> None:
        """Take it that earlier deaths had another cause: it has driven well."""
        self._crashes.pop(name, None)
