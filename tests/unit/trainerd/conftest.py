"""A link with its fleet, without a learner: what the link's tests talk to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from protocol.step import Record, Step
from tests.unit.trainerd.rover import FakeRover
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

    def consume(self, record: Record) -> bool:
        if self.is_busy or (self.is_resting and record.purpose == "training"):
            return False
        self.taken.append(record)
        return True

    def pass_over(self, record: Record) -> bool:
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


class Bench:
    """Everything of the link thread, on a port of its own."""

    def __init__(self, folder: Path, link: LinkSettings = FAST) -> None:
        self.settings = Settings(port=0, link=link, state_dir=folder)
        self.sink, self.mailbox = Sink(), Mailbox()
        self.specified: list[object] = []
        self.fleet = Fleet(
            RunFile(folder / "run.json"), link, check_specs=lambda *_specs: None, on_specs=self.specified.append
        )
        self.registry = Registry(folder / "policies")
        self.link = Link(self.settings, self.mailbox, self.fleet, self.sink, self.registry)
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
