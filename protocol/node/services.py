"""Run the services of a daemon: start in order, fail by name, stop in reverse."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Protocol

from protocol.errors import RoverError
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

log = get_logger()


class Service(Protocol):
    """A part of a daemon. ``run`` goes on until it is cancelled and releases what it holds in ``finally``."""

    name: str

    async def run(self) -> None:
        """Work until cancelled."""


class ServiceFailedError(RoverError):
    """A service raised or returned by itself; the daemon ends with status 1 and systemd starts it again."""

    def __init__(self, name: str, reason: str) -> None:
        """Name the service."""
        super().__init__(f"service {name}: {reason}")
        self.name = name


async def run_services(services: Sequence[Service], stop: asyncio.Event, *, grace_s: float = 5.0) -> None:
    """Run services until ``stop`` is set or one of them ends, then stop them in reverse order.

    Args:
        services: consumers first, producers last.
        stop: set by a signal or a command.
        grace_s: how long each service may take to stop; one that takes longer is logged and left behind.

    Raises:
        ServiceFailedError: a service ended before ``stop`` was set; its own error is the cause.

    """
    running: list[asyncio.Task[None]] = []
    stopped = asyncio.create_task(stop.wait(), name="stop")
    failed: asyncio.Task[None] | None = None
    try:
        for service in services:
            running.append(asyncio.create_task(service.run(), name=service.name))
            await asyncio.sleep(0)  # a task that is cancelled before its first step never reaches its finally
        await asyncio.wait([stopped, *running], return_when=asyncio.FIRST_COMPLETED)
        failed = next((task for task in running if task.done() and not _ended_well(task, stop)), None)
    finally:
        stopped.cancel()
        for task in reversed(running):
            await _stop_service(task, grace_s, is_known=task is failed)
    if failed is not None:
        cause = None if failed.cancelled() else failed.exception()
        reason = f"{type(cause).__name__}: {cause}" if cause else "returned by itself, which no service may do"
        raise ServiceFailedError(failed.get_name(), reason) from cause


def install_signal_stop(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Let SIGTERM and SIGINT set ``stop``; a second SIGINT ends the process at once. Call it in the main thread."""

    def interrupt() -> None:
        if stop.is_set():
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)


def _ended_well(task: asyncio.Task[None], stop: asyncio.Event) -> bool:
    """Tell a service that saw ``stop`` itself and returned from one that failed."""
    return stop.is_set() and not task.cancelled() and task.exception() is None


async def _stop_service(task: asyncio.Task[None], grace_s: float, *, is_known: bool) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=grace_s)
    if not task.done():
        log.error(
            "service.stuck", service=task.get_name(), grace_s=grace_s, hint="it ignores cancellation; left behind"
        )
    elif not is_known and not task.cancelled() and (error := task.exception()) is not None:
        hint = "it failed while the daemon was stopping"
        log.error("service.failed", service=task.get_name(), error=repr(error), exc_info=error, hint=hint)
