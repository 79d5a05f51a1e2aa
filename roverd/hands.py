"""Whose hand drives: a person's commands and locks, told to control, and where in an episode the hands change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from protocol.step import Intervention
from roverd.control import wire

if TYPE_CHECKING:
    from roverd.controls import Controls


class Hands:
    """Tell control what a person commands: at once by the clock, in lock-step together with an observation.

    In lock-step a command counts from an observation on, which then starts a decision, so that a run depends on nothing
    but its seed; by the clock it counts for a time from now, in an episode or outside.
    """

    def __init__(self, layout: wire.Layout, control: Controls, *, lock_step: bool) -> None:
        """Begin with nobody's hand on the robot."""
        self._layout, self._control, self._lock_step = layout, control, lock_step
        self._until_ns = 0
        self._next: tuple[tuple[float, ...], float, bool] | None = None
        self._is_locked = False
        self._lets_go = False
        self._releases = False
        self.begin_episode()

    def begin_episode(self) -> None:
        """Begin with the policy's hand, and no policy seen yet."""
        self._until_ns = 0
        self._was_human = False
        self._stood_in = False
        self._last_policy = ""

    # -- what a person commands -------------------------------------------------------------------------------------

    @property
    def is_next_human(self) -> bool:
        """Say whether a person's command waits for the next observation, or for an episode to begin."""
        return self._next is not None

    def command(self, action: tuple[float, ...], seconds: float, *, locks: bool) -> None:
        """Let a person's action drive for a time, by the clock from now; in lock-step it has to ``wait``."""
        self._is_locked, self._lets_go = locks, False
        if not self._lock_step:
            until_ns = time.monotonic_ns() + int(seconds * 1e9)
            self._tell(action, until_ns, locks=locks)  # a lock holds before an episode begins as well

    def wait(self, action: tuple[float, ...], seconds: float, *, locks: bool) -> None:
        """Keep a command: an episode begins for it, and it is told with the next observation, which then decides."""
        self._next = (action, seconds, locks)

    def forget(self) -> None:
        """Drop the command that waits."""
        self._next = None

    def let_go(self, *, is_in_episode: bool) -> None:
        """Give the robot back, in lock-step together with the next observation."""
        self._is_locked = False
        if self._lock_step and is_in_episode:
            self._lets_go = True
        else:
            self._control.send(bytes([wire.RELEASE]))

    def let_go_at_end(self) -> None:
        """Give the robot back when the episode is over, and not before: nobody else may drive."""
        self._releases = True

    def end_episode(self) -> None:
        """Give the robot back if its end was waited for."""
        if self._releases:
            self._releases = self._is_locked = False
            self._control.send(bytes([wire.RELEASE]))

    def tell(self, stamp_ns: int, *, is_first: bool) -> None:
        """Tell what waits for an observation, just before it is shown; the first of an episode brings no action."""
        if self._lets_go:
            self._lets_go = False
            self._until_ns = 0
            self._control.send(bytes([wire.RELEASE]))
        if self._next is not None and not is_first:
            action, seconds, locks = self._next
            self._next = None
            self._tell(action, stamp_ns + int(seconds * 1e9), locks=locks)

    def _tell(self, action: tuple[float, ...], until_ns: int, *, locks: bool) -> None:
        self._until_ns = until_ns
        self._control.send(self._layout.pack_human(wire.Human(until_ns, action, locks)))

    # -- one hand after another -------------------------------------------------------------------------------------

    def change(self, stamp_ns: int) -> bool:
        """Say whether another hand drives from the next observation on (its time), which lock-step knows before."""
        if self._next is not None:
            return not self._was_human
        if self._lets_go:
            return self._was_human
        return self._was_human and not self._is_locked and 0 < self._until_ns < stamp_ns

    def break_before(self, applied: wire.Applied, policy_id: str, skipped: int) -> str:
        """Say why a segment ends before this tick, or return an empty text: another hand, or ticks that are missing."""
        is_human = bool(applied.interventions & Intervention.HUMAN)
        stands_in = bool(applied.interventions & Intervention.FAILOVER)
        was_human, self._was_human = self._was_human, is_human
        stood_in, self._stood_in = self._stood_in, stands_in
        last_policy, self._last_policy = self._last_policy, policy_id or self._last_policy
        if is_human != was_human:
            return "takeover" if is_human else "release"
        if applied.interventions & Intervention.TOOK_OVER:
            return "failover"
        if policy_id and last_policy not in {"", policy_id}:
            return "failover" if stands_in or stood_in else "swap"
        return "fault" if skipped else ""
