"""How other threads have something done on the link thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Mailbox:
    """Functions that the link thread should run, from any thread."""

    def __init__(self) -> None:
        """Begin empty; what is posted before the thread starts waits for it."""
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable while something waits; for the link thread's poller."""
        self._posted: deque[Callable[[], object]] = deque()

    def post(self, function: Callable[[], object]) -> None:
        """Run a function on the link thread, soon."""
        self._posted.append(function)
        self.notify()

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function on the link thread and return its answer or raise its error."""
        answer: Future[T] = Future()

        def work() -> None:
            try:
                answer.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is raised again at the caller
                answer.set_exception(error)

        self.post(work)
        return await asyncio.wrap_future(answer)

    def notify(self) -> None:
        """Wake the link thread."""
        os.eventfd_write(self.wake, 1)

    def run_all(self) -> None:
        """Run what waits; on the link thread."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        while self._posted:
            self._posted.popleft()()
