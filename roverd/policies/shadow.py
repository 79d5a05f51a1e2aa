"""Judge a policy that answers live observations while another one drives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roverd.control import wire

LONGEST = 4
"""Observations looked at, in multiples of those that are needed, before lateness is a refusal: one hiccup is none."""


class Shadow:
    """Count asked observations and answers until there are enough, or none come.

    With a clock an answer must be in time; in lock-step nobody waits for it, so that only its content counts.
    """

    def __init__(
        self, needed: int, *, late_share: float, patience_s: float, is_clocked: bool, slot: int, now_s: float
    ) -> None:
        """Expect ``needed`` answers of a slot; without an observation for ``patience_s`` the robot stands."""
        self._needed, self._late_share, self._patience_s = needed, late_share, patience_s
        self._is_clocked, self._slot = is_clocked, slot
        self._asked_s = self._answered_s = now_s
        self.asked = 0
        self.answers = 0
        self.late = 0
        self.worst_ms = 0.0
        self._not_finite = 0

    def ask(self, now_s: float) -> None:
        """Count a decision of the policy that drives: the standby was shown the same observation."""
        self.asked += 1
        self._asked_s = now_s

    def hear(self, answer: wire.Shadowed, now_s: float) -> None:
        """Count an answer."""
        if answer.slot != self._slot:
            return
        self.answers += 1
        self._answered_s = now_s
        self.late += self._is_clocked and not answer.is_on_time
        self.worst_ms = max(self.worst_ms, answer.latency_ns * 1e-6)
        self._not_finite += not all(map(math.isfinite, answer.action))

    @property
    def unpunctual(self) -> int:
        """Observations whose answer came late or not at all; the newest one may still be under way."""
        return self.late + max(0, self.asked - 1 - self.answers) if self._is_clocked else 0

    def is_over(self, now_s: float) -> bool:
        """Say whether the policy has passed; raises ShadowError where it has failed, SilentError where it is silent."""
        if self._not_finite:
            raise ShadowError(f"shadow: {self._not_finite} of {self.answers} live answers were not finite")
        is_enough = self.answers - self.late >= self._needed
        if is_enough and self.unpunctual <= self._late_share * max(self.asked, self.answers):
            return True
        if self.asked >= LONGEST * max(1, self._needed) and self._is_clocked and self.answers:
            share = f"{self.unpunctual} of {self.asked} live observations late or not at all"
            raise ShadowError(f"shadow: it answered {share}; at most {self._late_share:.0%} is allowed")
        if now_s - max(self._asked_s, self._answered_s) >= self._patience_s:
            return True  # the robot stands
        if self.asked > 1 and now_s - self._answered_s >= self._patience_s:
            raise SilentError(f"shadow: no answer to {self.asked} live observations in {self._patience_s:g} s")
        return False

    def next_s(self, now_s: float) -> float:
        """Return after how many seconds to ask again although nothing was heard."""
        return max(0.0, self._patience_s - (now_s - max(self._asked_s, self._answered_s)))


class ShadowError(Exception):
    """A policy's answers to live observations are not good enough."""


class SilentError(Exception):
    """The standby does not answer at all: its process hangs, which says little about its policy."""
