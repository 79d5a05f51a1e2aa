"""Look after the policy that drives: is it as good as the one before, and does its process live at all."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from protocol.step import Intervention
from roverd.policies.watch import UNANSWERED, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from roverd.control import wire
    from roverd.policies.slots import Slots
    from roverd.settings import PolicySettings

SUSPICIOUS = 2
"""Decisions without an answer, one after the other, before the process that drives is asked whether it lives."""
ALIVE_S = 0.2
"""So long it may take to say so: with a decision every 0.3 s a process that hangs is ended within half a second."""
COUNTS_S = 5.0


class Guard:
    """Count the decisions of what drives, and say so through the callbacks where they are bad or none come."""

    def __init__(self, slots: Slots, settings: PolicySettings, *, limit_ms: float, is_clocked: bool) -> None:
        """Watch the active slot; an answer may take ``limit_ms``, 0 is no limit."""
        self._slots, self._limit_ms, self._is_clocked = slots, limit_ms, is_clocked
        self._window = settings.watch_ticks
        self._watch = Watch(settings.watch_ticks, late_share=settings.late_share, rise=settings.intervention_rise)
        self.on_bad: Callable[[str], None] = lambda _: None
        """Called with the reason why the policy that drives must not go on."""
        self.on_good: Callable[[], None] = lambda: None
        """Called when the policy that drives was watched long enough."""
        self.on_hang: Callable[[int, str], None] = lambda _slot, _reason: None
        """Called with the slot whose process gives no sign of life."""
        self._unanswered = 0
        self._is_asking = False
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, *, is_watched: bool) -> bool:
        """Another policy drives from now on; return True where it will be watched."""
        self._unanswered = 0
        self._watch.begin(is_watched=is_watched)
        return self._watch.left > 0

    @property
    def facts(self) -> dict[str, Any]:
        """What was counted, for status."""
        return {**self._watch.facts, "left": self._watch.left}

    def is_watching(self, patience_s: float) -> bool:
        """Say whether a new policy is being watched, and decisions do come."""
        return self._watch.left > 0 and time.monotonic() - self._watch.last_s < patience_s

    def see(self, applied: wire.Applied, *, may_be_stopped: bool = False) -> None:
        """Count a decision of the active slot; ``may_be_stopped`` as for ``Watch.see``."""
        slot = self._slots.active
        was_watched = self._watch.left > 0
        reason = self._watch.see(applied, time.monotonic(), may_be_stopped=may_be_stopped)
        if reason:
            self.on_bad(reason)
            return
        if was_watched and not self._watch.left:
            self._spawn(self._conclude(slot))
        is_unanswered = bool(Intervention(applied.interventions) & UNANSWERED)
        self._unanswered = self._unanswered + 1 if is_unanswered and self._is_clocked else 0
        if self._unanswered >= SUSPICIOUS and not self._is_asking:
            self._is_asking = True
            self._spawn(self._ask_for_life(slot, self._unanswered))

    async def _ask_for_life(self, slot: int, unanswered: int) -> None:
        """Give up on a process that does not even answer a ping; one that does is merely late."""
        reason = f"its process hangs: no answer to {unanswered} decisions and none to a ping in {ALIVE_S:g} s"
        try:
            await self._slots.ping(slot, ALIVE_S, lambda: self.on_hang(slot, reason))
        finally:
            self._is_asking = False

    async def _conclude(self, slot: int) -> None:
        """Look at the times that answers took on live observations, which the process counted."""
        told = await self._slots.ping(slot, COUNTS_S)
        if self._slots.active != slot:
            return
        latency_ms = float(told["latency_ms"]) if told else 0.0
        if self._limit_ms and latency_ms > self._limit_ms:
            self.on_bad(f"an answer took {latency_ms:.1f} ms (median), at most {self._limit_ms:g} ms is allowed")
        else:
            self.on_good()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Leave what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
