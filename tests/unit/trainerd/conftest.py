"""A link with its fleet, without a learner: what the link's tests talk to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from protocol.ranges import Ranges
from protocol.step import Record, Step
from tests.unit.trainerd.rover import FakeRover
from trainerd.episodes.records import StoredRecord
from trainerd.fleet import Fleet
from trainerd.ingest import Link
from trainerd.mailbox import Mailbox
from trainerd.release.registry import Registry
from trainerd.run import RunFile
from trainerd.settings import LinkSettings, Settings

if TYPE_CHECKING:
    from pathlib import Path


FAST = LinkSettings(dead_after_s=1.0, gap_wait_s=0.2, offer_interval_s=0.1, ping_interval_s=0.1, quiet_after_s=0.5)


@dataclass
class Sink:
    """A consumer that keeps what it gets, or says that it is busy."""

    taken: list[Record] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    is_busy: bool = False
    is_resting: bool = False
    """Busy for longer, as while training is paused."""
    passed: list[Record] = field(default_factory=list)
    takes_replay: bool = True

    def consume(self, record: Record, _lane: str) -> bool:
        if self.is_busy or (self.is_resting and record.purpose == "training"):
            return False
        self.taken.append(record)
        return True

    def pass_over(self, record: Record, _lane: str) -> bool:
        if self.is_resting:
            self.passed.append(record)
        return self.is_resting

    def close(self, rover_id: str, boot_id: str) -> None:
        self.closed.append((rover_id, boot_id))

    def seqs(self, rover_id: str = "rover-1") -> list[int]:
        return [record.seq for record in self.taken if record.rover_id == rover_id]

    @property
    def steps(self) -> list[Step]:
        return [record for record in self.taken if isinstance(record, Step)]


@dataclass
class Shelf:
    """A store in memory: what is appended is safe at once, or when somebody says so."""

    mailbox: Mailbox = field(default_factory=Mailbox)
    on_safe: Callable[[list[tuple[str, str, int]]], object] = print
    kept: dict[tuple[str, str], list[StoredRecord]] = field(default_factory=dict)
    begun: list[tuple[str, str]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    given_up: list[tuple[str, str, list[list[int]]]] = field(default_factory=list)
    is_open: bool = True
    is_slow: bool = False

    def received(self, rover_id: str, boot_id: str) -> list[list[int]]:
        return Ranges((r.seq, r.seq) for r in self.kept.get((rover_id, boot_id), [])).to_list()

    def gone(self, _rover_id: str, _boot_id: str) -> list[list[int]]:
        return []

    def give_up(self, rover_id: str, boot_id: str, ranges: list[list[int]], _reason: str) -> None:
        self.given_up.append((rover_id, boot_id, ranges))

    def begin_boot(self, rover_id: str, boot_id: str, **_facts: object) -> None:
        self.begun.append((rover_id, boot_id))

    def close_boot(self, rover_id: str, boot_id: str) -> None:
        self.closed.append((rover_id, boot_id))

    def append(self, record: StoredRecord) -> bool:
        if self.is_open:
            self.kept.setdefault((record.rover_id, record.boot_id), []).append(record)
            if not self.is_slow:
                self.mailbox.post(lambda: self.on_safe([(record.rover_id, record.boot_id, record.seq)]))
        return self.is_open


class Bench:
    """Everything of the link thread, on a port of its own."""

    def __init__(self, folder: Path, link: LinkSettings = FAST) -> None:
        self.settings = Settings(port=0, link=link, state_dir=folder)
        self.sink, self.mailbox = Sink(), Mailbox()
        self.specified: list[object] = []
        self.shelf = Shelf(self.mailbox)
        self.fleet = Fleet(
            RunFile(folder / "run.json"),
            link,
            self.shelf,
            check_specs=lambda *_specs: None,
            on_specs=self.specified.append,
        )
        self.registry = Registry(folder / "policies")
        self.link = Link(self.settings, self.mailbox, self.fleet, self.sink, self.registry, self.shelf)
        self.shelf.on_safe = self.link.safe
        self.link.start()
        self.rovers: list[FakeRover] = []

    def rover(self, *args: object, **facts: object) -> FakeRover:
        rover = FakeRover(self.link.port, *args, **facts)
        self.rovers.append(rover)
        return rover

    def ask(self, function):
        """Run a function on the link thread and wait for its answer."""
        return asyncio.run(self.mailbox.call(function))

    def close(self) -> None:
        for rover in self.rovers:
            rover.close()
        self.link.stop()
        self.link._thread.join(5.0)
        assert not self.link._thread.is_alive()
        assert self.link._ended.done()
        assert self.link._ended.exception() is None, "the link thread died"


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()
