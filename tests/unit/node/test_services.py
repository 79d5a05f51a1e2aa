"""Services: order, failure by name, and stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from protocol.node.services import ServiceFailedError, install_signal_stop, run_services


class Recorded:
    """A service that writes down what happens to it."""

    def __init__(self, name: str, journal: list[str], ends: asyncio.Event | None = None) -> None:
        self.name = name
        self.journal = journal
        self.ends = ends or asyncio.Event()
        self.error: BaseException | None = None
        self.cleanup_error: BaseException | None = None

    async def run(self) -> None:
        self.journal.append(f"{self.name} starts")
        try:
            await self.ends.wait()
            if self.error:
                raise self.error
        finally:
            self.journal.append(f"{self.name} stops")
            if self.cleanup_error:
                raise self.cleanup_error


class Stuck:
    """A service that ignores cancellation until it is let go."""

    name = "stuck"

    def __init__(self) -> None:
        self.let_go = asyncio.Event()

    async def run(self) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue


async def test_services_start_in_order_and_stop_in_reverse() -> None:
    journal: list[str] = []
    stop = asyncio.Event()
    stop.set()
    await run_services([Recorded("a", journal), Recorded("b", journal)], stop)
    assert journal == ["a starts", "b starts", "b stops", "a stops"]


async def test_a_service_that_raises_stops_the_rest_and_is_named() -> None:
    journal: list[str] = []
    bad = Recorded("bad", journal)
    bad.error = OSError("disk full")
    bad.ends.set()
    with pytest.raises(ServiceFailedError, match="service bad: OSError: disk full") as raised:
        await run_services([Recorded("a", journal), bad, Recorded("c", journal)], asyncio.Event())
    assert raised.value.name == "bad"
    assert isinstance(raised.value.__cause__, OSError)
    assert journal[-2:] == ["c stops", "a stops"]


async def test_a_service_that_returns_is_a_failure() -> None:
    early = Recorded("early", [])
    early.ends.set()
    with pytest.raises(ServiceFailedError, match="service early: returned by itself"):
        await run_services([early], asyncio.Event())


async def test_a_service_that_sees_stop_itself_may_return() -> None:
    stop = asyncio.Event()
    stop.set()
    await run_services([Recorded("a", [], ends=stop)], stop)


async def test_further_errors_are_logged() -> None:
    first, second = Recorded("first", []), Recorded("second", [])
    first.error = ValueError("one")
    first.ends.set()
    second.cleanup_error = ValueError("two")
    with capture_logs() as logs, pytest.raises(ServiceFailedError, match="service first"):
        await run_services([first, second], asyncio.Event())
    assert [(each["event"], each["service"]) for each in logs] == [("service.failed", "second")]


async def test_a_stuck_service_is_logged_and_left_behind() -> None:
    stop = asyncio.Event()
    stop.set()
    stuck = Stuck()
    journal: list[str] = []
    with capture_logs() as logs:
        await run_services([Recorded("a", journal), stuck], stop, grace_s=0.01)
    stuck.let_go.set()
    assert [each["event"] for each in logs] == ["service.stuck"]
    assert journal[-1] == "a stops"


async def test_cancelling_the_daemon_stops_its_services() -> None:
    journal: list[str] = []
    running = asyncio.create_task(run_services([Recorded("a", journal)], asyncio.Event()))
    while not journal:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert journal[-1] == "a stops"


async def test_a_signal_sets_stop() -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        stop = asyncio.Event()
        install_signal_stop(loop, stop)
        os.kill(os.getpid(), number)
        await stop.wait()
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)


def test_a_second_interrupt_ends_the_process() -> None:
    program = """
import asyncio, os, signal
from protocol.node.services import install_signal_stop
async def main():
    stop = asyncio.Event()
    install_signal_stop(asyncio.get_running_loop(), stop)
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=20)
    assert ended.returncode == -signal.SIGINT
