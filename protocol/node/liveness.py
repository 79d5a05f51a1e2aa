"""Tell whether a daemon makes progress, and let systemd end it when it does not.

Each part that works by itself has a ``Pulse``: it beats whenever it got further, and rests while it has nothing to do.
One that neither beats nor rests for longer than its limit hangs. ``Watchdog`` looks at all of them from the event loop,
whose own turning is thereby watched too, and feeds systemd's watchdog (``WatchdogSec=`` of the unit) or trips it.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from protocol.node import backoff, sdnotify
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = get_logger()
FEEDS_PER_LIMIT = 4
"""How often the watchdog is fed within its time; the loop may be late by the rest."""
PROVEN_S = 5.0
"""A daemon that serves for so long has started well (see ``protocol.node.backoff``)."""
PATIENCE_AT_FIRST = 5
"""Until then the watchdog's time is so many times as long: libraries that load late may hold the interpreter."""


class Pulse:
    """The progress of one part; ``beat`` and ``rest`` may be called from any thread and cost a clock's reading."""

    def __init__(self, name: str, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin at rest.

        Args:
            name: of the part, for the log.
            limit_s: longer than this between two beats is a hang, not work.
            clock: monotonic seconds.

        """
        self.name, self.limit_s = name, limit_s
        self._clock = clock
        self._due_s = math.inf

    def beat(self) -> None:
        """Say that the part got further and has more to do."""
        self._due_s = self._clock() + self.limit_s

    def rest(self) -> None:
        """Say that the part waits for something that may never come."""
        self._due_s = math.inf

    @property
    def is_overdue(self) -> bool:
        """True once the part has been silent for longer than its limit."""
        return self._clock() > self._due_s


class Liveness:
    """The parts of a daemon that must get further."""

    def __init__(self, pulses: Callable[[], Sequence[Pulse]]) -> None:
        """Watch the pulses that there are at each look."""
        self._pulses = pulses
        self._suspects: set[str] = set()

    def hanging(self) -> list[str]:
        """Return the names of parts that were overdue at this look and at the last one.

        One look is not enough: after the whole process was stopped (SIGSTOP, a suspended machine) all are overdue once.
        """
        overdue = {pulse.name for pulse in self._pulses() if pulse.is_overdue}
        found = sorted(overdue & self._suspects)
        self._suspects = overdue
        return found


class Watchdog:
    """Service: say READY when the daemon serves, then feed the watchdog while everything in it gets further.

    The last service to start, and so the first to stop: systemd hears that the daemon stops, and watches no more.
    """

    name = "watchdog"

    def __init__(self, serves: asyncio.Event, liveness: Liveness) -> None:
        """Wait until the daemon ``serves``, then look at ``liveness`` for ever."""
        self._serves, self._liveness = serves, liveness

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            await self._serve()
        finally:
            sdnotify.stopping()

    async def _serve(self) -> None:
        began_s = time.monotonic()
        await self._serves.wait()
        sdnotify.status("serving")
        sdnotify.ready()
        log.info("daemon.ready", seconds=round(time.monotonic() - began_s, 3))
        interval_s = sdnotify.watchdog_interval_s()
        if interval_s is None:
            await asyncio.Event().wait()
            return
        limit_s = 2 * interval_s
        sdnotify.watchdog_limit(PATIENCE_AT_FIRST * limit_s)
        proven_s = time.monotonic() + PROVEN_S
        while True:
            if names := self._liveness.hanging():
                self._trip(names)
            else:
                sdnotify.watchdog()
            if time.monotonic() > proven_s:
                proven_s = math.inf
                backoff.forget()
                sdnotify.watchdog_limit(limit_s)
            await asyncio.sleep(limit_s / FEEDS_PER_LIMIT)

    @staticmethod
    def _trip(names: Sequence[str]) -> None:
        hint = "the daemon is ended and started again; where each thread hung stands below: please report it"
        log.error("watchdog.tripped", parts=list(names), hint=hint)
        sdnotify.status(f"hangs: {', '.join(names)}")
        sdnotify.trip()
