"""Remember which policies may not drive here, why, and which ones their process died of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CRASHES, CRASHES_WITHIN_S = 2, 60.0
"""A process that dies so often with the same policy within so long, without a passed watch between, died of it."""


class Refusals:
    """Reasons by name. A barred one may not stand in either; a refused one failed its proof.

    What was rolled back stays barred over restarts. What its process died of does not: the machine may have been to
    blame.
    """

    def __init__(self, barred: Mapping[str, str]) -> None:
        """Take what an earlier start barred."""
        self._refused: dict[str, str] = {}
        self.barred: dict[str, str] = dict(barred)
        self._until_restart: set[str] = set()
        self._crashes_s: dict[str, list[float]] = {}
        self.newest = ("", "")
        """Name and reason of the last one, for people."""

    def reason(self, name: str) -> str:
        """Return why a policy or controller may not drive, or an empty text."""
        return self.barred.get(name) or self._refused.get(name, "")

    def refuse(self, name: str, reason: str) -> None:
        """Do not try it again in this start."""
        self._refused[name] = reason
        self.newest = (name, reason)

    def bar(self, name: str, reason: str, *, lasts: bool = True) -> None:
        """Do not try it again at all, or not until a restart."""
        if lasts:
            self._until_restart.discard(name)
        elif name not in self.barred:
            self._until_restart.add(name)
        self.barred[name] = reason
        self.newest = (name, reason)

    @property
    def lasting(self) -> dict[str, str]:
        """What is barred over restarts, with the reason."""
        return {name: reason for name, reason in self.barred.items() if name not in self._until_restart}

    def retry(self, name: str) -> None:
        """Let it be proved again; one that was rolled back stays barred."""
        self._refused.pop(name, None)

    def forgive(self, name: str) -> None:
        """Give it another chance, whatever it did."""
        self._refused.pop(name, None)
        self.barred.pop(name, None)
        self._until_restart.discard(name)
        self._crashes_s.pop(name, None)
        if self.newest[0] == name:
            self.newest = ("", "")

    def count_crash(self, name: str, now_s: float) -> bool:
        """Count a death of the process that held it; return True where that is once too often."""
        recent_s = [at_s for at_s in self._crashes_s.get(name, []) if now_s - at_s < CRASHES_WITHIN_S]
        self._crashes_s[name] = [*recent_s, now_s]
        return len(recent_s) + 1 >= MAX_CRASHES

    def survived(self, name: str) -> None:
        """Take it that earlier deaths had another cause: it has driven well."""
        self._crashes_s.pop(name, None)
