"""Whether a daemon makes progress, and what systemd hears of it."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from protocol.node import backoff, liveness
from protocol.node.liveness import Liveness, Pulse, Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SERVES = ["STATUS=serving", "READY=1", "WATCHDOG_USEC=200000"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "40000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listener


def serving() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def heard(systemd: socket.socket) -> str:
    return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(systemd, 999), 5.0)).decode()


def test_a_part_at_rest_is_never_overdue(clock: Clock) -> None:
    pulse = Pulse("store", 10.0, clock)
    clock.now_s = 1e9
    assert not pulse.is_overdue
    pulse.beat()
    pulse.rest()
    clock.now_s = 2e9
    assert not pulse.is_overdue


def test_a_part_that_worked_longer_than_its_limit_is_overdue_until_it_beats(clock: Clock) -> None:
    pulse = Pulse("store", 10.0, clock)
    pulse.beat()
    clock.now_s = 10.0
    assert not pulse.is_overdue
    clock.now_s = 10.1
    assert pulse.is_overdue
    pulse.beat()
    assert not pulse.is_overdue


def test_a_hang_is_one_that_two_looks_see(clock: Clock) -> None:
    store, link = Pulse("store", 10.0, clock), Pulse("link", 10.0, clock)
    alive = Liveness(lambda: [store, link])
    store.beat()
    link.beat()
    clock.now_s = 60.0  # the whole process stood still
    assert alive.hanging() == []
    link.beat()
    assert alive.hanging() == ["store"]
    store.beat()
    assert alive.hanging() == []


async def test_systemd_hears_ready_once_and_then_of_the_watchdog(systemd: socket.socket) -> None:
    task = asyncio.create_task(Watchdog(serving(), Liveness(list)).run())
    assert [await heard(systemd) for _ in range(6)] == [*SERVES, *["WATCHDOG=1"] * 3]
    task.cancel()


async def test_nothing_is_said_before_the_daemon_is_ready(systemd: socket.socket) -> None:
    ready = asyncio.Event()
    task = asyncio.create_task(Watchdog(ready, Liveness(list)).run())
    await asyncio.sleep(0.05)
    with pytest.raises(BlockingIOError):
        systemd.recv(999)
    ready.set()
    assert [await heard(systemd) for _ in SERVES] == SERVES
    task.cancel()


async def test_a_hanging_part_trips_the_watchdog_by_name(systemd: socket.socket, clock: Clock) -> None:
    pulse = Pulse("learner", 600.0, clock)
    with capture_logs() as logs:
        task = asyncio.create_task(Watchdog(serving(), Liveness(lambda: [pulse])).run())
        pulse.beat()
        clock.now_s = 599.0  # an update of minutes
        assert [await heard(systemd) for _ in range(5)] == [*SERVES, "WATCHDOG=1", "WATCHDOG=1"]
        clock.now_s = 601.0
        while (said := await heard(systemd)) == "WATCHDOG=1":
            pass
        assert said == "STATUS=hangs: learner"
        assert await heard(systemd) == "WATCHDOG=trigger"
    assert [each["event"] for each in logs] == ["daemon.ready", "watchdog.tripped"]
    assert logs[1]["parts"] == ["learner"]
    task.cancel()


async def test_a_loop_that_does_not_turn_feeds_nothing(systemd: socket.socket) -> None:
    task = asyncio.create_task(Watchdog(serving(), Liveness(list)).run())
    assert [await heard(systemd) for _ in SERVES] == SERVES
    await heard(systemd)
    before = len(drained(systemd))
    liveness.time.sleep(0.2)  # a blocking call in the loop
    assert drained(systemd) == []
    assert before <= 1
    task.cancel()


def drained(systemd: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(systemd.recv(999))
        except BlockingIOError:
            return found


# -- starts that come to nothing ----------------------------------------------------------------------------------


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(backoff.time, "sleep", found.append)
    return found


def test_failed_starts_wait_longer_and_longer_up_to_a_bound_and_never_give_up(waits: list[float]) -> None:
    for _ in range(30):
        backoff.hold_back()
    assert waits[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert len(waits) == 30 - backoff.FREE_STARTS
    assert max(waits) == backoff.MAX_S
    assert backoff.delay_s(10**6) == backoff.MAX_S


def test_a_start_that_was_good_ends_the_waiting(waits: list[float]) -> None:
    for _ in range(10):
        backoff.hold_back()
    backoff.forget()
    waits.clear()
    for _ in range(backoff.FREE_STARTS):
        backoff.hold_back()
    assert waits == []


async def test_a_daemon_that_serves_for_a_while_has_started_well(
    waits: list[float], systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(liveness, "PROVEN_S", 0.05)
    backoff.hold_back()
    assert (tmp_path / "failed-starts").read_text() == "1"
    task = asyncio.create_task(Watchdog(serving(), Liveness(list)).run())
    while (said := await heard(systemd)) in {*SERVES, "WATCHDOG=1"}:
        pass
    assert said == "WATCHDOG_USEC=40000", "the unit's own limit holds from now on"
    assert not (tmp_path / "failed-starts").exists()
    task.cancel()


def test_a_count_that_cannot_be_read_is_none(waits: list[float], tmp_path: Path) -> None:
    (tmp_path / "failed-starts").write_text("\0garbage")
    backoff.hold_back()
    assert waits == []


def test_without_systemd_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    for _ in range(10):
        backoff.hold_back()
    backoff.forget()
    assert list(tmp_path.iterdir()) == []
