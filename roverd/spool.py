"""Unacknowledged records: what is sent, sent again and freed; in memory while new, on disk until they are safe.

A record is *unsent*, *under way*, or gone. Those of the present boot from ``live_seq`` on leave in the live lane, what
is left of earlier times in the backfill lane behind it and at its share of the bandwidth. The loop never waits for the
disk: what memory has no more is read by the disk's thread and sent when it is there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.node.log import RepeatLimiter, get_logger
from protocol.ranges import Ranges
from roverd.bootfolder import LAST
from roverd.disk import FETCH_RECORDS, RETRY_S, Disk
from roverd.diskevents import Changed, Dropped, Durable, Event, Fetched
from roverd.segment import BootFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from roverd.bootfolder import BootFolder
    from roverd.segment import Files
    from roverd.settings import SpoolSettings

log = get_logger()
LIVE, BACKFILL = "live", "backfill"
RESERVE = 8
"""A tick may add a break, its step, an episode's end, and at a stop one more end."""
MAX_OFFERED = 32
REST_S = 1.0
"""Without a new record for so long the robot rests, and the backfill lane has the link for itself."""
BURST_BYTES = 256 * 1024
"""So much unused share of the bandwidth may be saved up."""
UNREADABLE_TRIES = 3
STOP_S = 4.0


@dataclass(eq=False)
class Boot:
    """What is held of one start of this rover."""

    facts: BootFacts
    held: Ranges = field(default_factory=Ranges)
    """Records that are not acknowledged and were not lost."""
    under_way: dict[str, set[int]] = field(default_factory=lambda: {LIVE: set(), BACKFILL: set()})
    """By lane."""
    sent: Ranges = field(default_factory=Ranges)
    next: int = 0
    cursor: int = 0
    """No record below it is unsent, in the lane that is not live."""
    problem: str = ""
    """Why it is not offered."""

    @property
    def boot_id(self) -> str:
        """Which boot."""
        return self.facts.boot_id

    def next_unsent(self, cursor: int, end: int) -> int | None:
        """Return the first unsent record from ``cursor`` to before ``end``."""
        live, older = self.under_way.values()
        seq = self.held.next_present(cursor)
        while seq is not None and seq < end and (seq in live or seq in older):
            seq = self.held.next_present(seq + 1)
        return seq if seq is not None and seq < end else None

    def call_back(self, first: int, last: int) -> None:
        """Take what is within an inclusive range as not under way."""
        for several in self.under_way.values():
            several.difference_update([seq for seq in several if first <= seq <= last])


@dataclass
class Window:
    """The records that were read from disk for a lane."""

    boot_id: str = ""
    records: dict[int, list[bytes]] = field(default_factory=dict)
    is_asked: bool = False
    failures: int = 0
    retry_at: float = 0.0


class Spool:
    """Service: hold records until they are acknowledged; owned by the event loop, its disk by a thread.

    ``overflow`` counts records that were dropped or damaged: they will never be sent.
    """

    name = "spool"

    def __init__(  # noqa: PLR0913 - the settings of two sections, and what a test replaces
        self,
        settings: SpoolSettings,
        folder: Path,
        facts: BootFacts,
        *,
        capacity: int = 8192,
        live_records: int = 512,
        backfill_share: float = 0.2,
        is_clocked: bool = False,
        files: Files | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over what earlier boots left in ``folder``; raises SpoolError while another process has it.

        Args:
            settings: of the disk.
            folder: of all boots.
            facts: of the present boot, whose first record has seq 0.
            capacity: records that may be unacknowledged before ``has_room`` is False.
            live_records: with more than these waiting at a greeting, live begins at the running episode.
            backfill_share: bytes of the backfill lane for each byte of the live one, while the robot drives.
            is_clocked: False in lock-step, where the simulator waits and nothing becomes stale.
            files: the operating system, or a test's.
            clock: monotonic seconds.

        """
        self._capacity, self._live_records, self._share = capacity, live_records, backfill_share
        self._is_clocked, self._clock = is_clocked, clock
        self._memory_limit = settings.memory_mb << 20
        self._drops_newest = settings.when_full == "newest"
        self.disk = Disk(folder, facts, settings, files=files, clock=clock)
        self._own = Boot(facts)
        self._earlier = [_boot_of(each) for each in self.disk.recover()]
        self._wanted: list[Boot] = []
        """Earlier boots that the trainer takes on this connection, oldest first."""
        self._memory: dict[int, list[bytes]] = {}
        self._memory_bytes = self._undurable_bytes = 0
        self._durable = 0
        self._windows = {LIVE: Window(), BACKFILL: Window()}
        self.live_seq = self._live_cursor = self._episode_seq = 0
        self._chosen: tuple[str, Boot, int] | None = None
        self._tokens = 0.0
        self._appended_at = -REST_S
        self._gone: dict[tuple[str, str], Ranges] = {}
        self.overflow = 0
        self.resent = 0
        self.damaged = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called in the loop when records came from disk, or room did."""
        self._repeats = RepeatLimiter()
        self._collect()
        self._log_recovered()

    # -- the service ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; then everything is written, synced and noted."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(arrived.set)

        self.disk.on_event = tell
        self.disk.start()
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                if self.disk.fault is not None:
                    raise self.disk.fault
                self.collect()
        finally:
            self.disk.on_event = lambda: None
            self.disk.stop()
            until = time.monotonic() + STOP_S
            while self.disk.is_running and time.monotonic() < until:  # noqa: ASYNC110 - a thread ends without an event
                await asyncio.sleep(0.005)
            if self.disk.is_running:
                log.error("spool.unfinished", records=self.disk.unwritten, hint="the disk takes too long: check it")
            self._collect()
            self.close()

    def close(self) -> None:
        """Let another process have the folder, unless the disk still works for this one."""
        if not self.disk.is_running:
            self.disk.release_lock()

    def collect(self) -> None:
        """Take in what the disk did, and tell who waits for it."""
        if self._collect():
            self.on_change()

    # -- what is held -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of unacknowledged records of this boot."""
        return len(self._own.held)

    @property
    def boot_id(self) -> str:
        """The present boot."""
        return self._own.boot_id

    @property
    def facts(self) -> BootFacts:
        """What is known of the present boot."""
        return self._own.facts

    @property
    def has_room(self) -> bool:
        """True while a whole tick's records fit: who can wait asks this, and loses nothing."""
        has_memory = self._undurable_bytes <= self._memory_limit // 2
        return has_memory and len(self._own.held) + RESERVE <= self._capacity

    @property
    def under_way(self) -> int:
        """Number of records that were sent and not acknowledged."""
        return len(self._own.under_way[LIVE]) + self._older_under_way

    @property
    def _older_under_way(self) -> int:
        return sum(len(boot.under_way[BACKFILL]) for boot in (*self._wanted, self._own))

    @property
    def oldest(self) -> int | None:
        """The seq of the oldest unacknowledged record of this boot."""
        return self._own.held.first

    @property
    def waiting(self) -> int:
        """Unacknowledged records of all boots that may be sent."""
        return len(self._own.held) + sum(len(boot.held) for boot in self._earlier if not boot.problem)

    def append(self, seq: int, frames: list[bytes]) -> None:
        """Keep a record; seq must grow. Never raises and never waits."""
        size = sum(map(len, frames))
        if self._drops_newest and self._undurable_bytes + size > self._memory_limit:
            self._own.held.add(seq)
            self._own.next = seq + 1
            self._lose(self._own, [(seq, seq)], "the rover's disk and memory are full")
            return
        self._memory[seq] = frames
        self._memory_bytes += size
        self._undurable_bytes += size
        self._own.held.add(seq)
        self._own.next = seq + 1
        self._appended_at = self._clock()
        self.disk.append(seq, frames)
        if self._memory_bytes > self._memory_limit:
            self._shrink()

    def acknowledge(self, boot_id: str, ranges: Iterable[Sequence[int]]) -> int:
        """Free the records of inclusive ranges of seq and return how many; unknown ones are ignored."""
        boot = self._boot(boot_id)
        if boot is None:
            return 0
        freed = [each for first, last in ranges for each in boot.held.take_range(first, last)]
        self._forget(boot, freed)
        return sum(last - first + 1 for first, last in freed)

    # -- what is sent -----------------------------------------------------------------------------------------------

    def peek(self, credit: int) -> list[bytes] | None:
        """Return the next record to send; None when nothing is unsent, credit or share is used up, or disk is asked."""
        self._chosen = None
        under_way = self.under_way
        if under_way >= credit:
            return None
        own = self._own
        seq = own.next_unsent(self._live_cursor, LAST)
        if seq is not None:
            self._live_cursor = seq
            return self._choose(LIVE, own, seq)
        for boot in (*self._wanted, own):
            seq = boot.next_unsent(boot.cursor, self.live_seq if boot is own else LAST)
            if seq is not None:
                if self._older_under_way >= max(1, credit // 2) or not self._may_backfill():
                    return None  # half of the credit is kept for what comes live
                boot.cursor = seq
                return self._choose(BACKFILL, boot, seq)
        return None

    def mark_sent(self) -> None:
        """Note that the record of the last ``peek`` is under way."""
        assert self._chosen is not None  # noqa: S101 - the caller just peeked
        lane, boot, seq = self._chosen
        frames = self._in_memory(lane, boot, seq) or ()
        size = sum(map(len, frames))
        boot.under_way[lane].add(seq)
        self.resent += not boot.sent.add(seq)
        if lane == LIVE:
            self._live_cursor = seq + 1
            self._tokens = min(BURST_BYTES, self._tokens + self._share * size)
        else:
            boot.cursor = seq + 1
            self._tokens -= 0 if self._rests() else size
        self._windows[lane].records.pop(seq, None)
        self._chosen = None

    def resend(self, boot_id: str, ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
        """Mark records of inclusive ranges of seq unsent; return the ranges of those that are not to be had again."""
        boot = self._boot(boot_id)
        gone: list[tuple[int, int]] = []
        for first, last in ranges:
            if boot is None:
                gone.append((first, last))
                continue
            boot.call_back(first, last)
            boot.cursor = min(boot.cursor, first)
            if boot is self._own:
                self._live_cursor = max(self.live_seq, min(self._live_cursor, first))
            gone += boot.held.missing_within(first, min(last, boot.next - 1))
        return gone

    def rewind(self) -> None:
        """Mark everything unsent: the other side may have seen none of it. What it wants of earlier boots is open."""
        for boot in (*self._earlier, self._own):
            boot.call_back(0, LAST)
            boot.cursor = 0
        self._live_cursor = self.live_seq
        self._wanted = []

    # -- lanes ------------------------------------------------------------------------------------------------------

    def mark_episode(self, seq: int) -> None:
        """Note the seq with which an episode begins."""
        self._episode_seq = seq

    def choose_live(self) -> int:
        """Return where live begins, for a greeting: at the running episode, if much waits before it."""
        waiting = self._own.held.count_from(self.live_seq)
        if self._is_clocked and self._episode_seq > self.live_seq and waiting > self._live_records:
            self._own.cursor = min(self._own.cursor, self.live_seq)
            self.live_seq = self._episode_seq
            self._live_cursor = max(self._live_cursor, self.live_seq)
        return self.live_seq

    def offer(self) -> list[dict[str, Any]]:
        """Return the earlier boots for a greeting, oldest first."""
        return [
            {
                "boot_id": boot.boot_id,
                "first": boot.held.first,
                "next": (boot.held.last or 0) + 1,
                "epoch_ns": boot.facts.epoch_ns,
            }
            for boot in self._offered()
        ]

    def offered_ids(self) -> tuple[str, ...]:
        """Return the ids of what is offered: when they change, the greeting is said again."""
        return tuple(boot.boot_id for boot in self._offered())

    @property
    def has_unwanted(self) -> bool:
        """True while there are earlier boots that may be sent and that the trainer did not ask for."""
        return len(self._wanted) < len(self._offered())

    def welcome(self, received: dict[str, list[tuple[int, int]]]) -> int:
        """Free what the trainer has of earlier boots, and send the rest of these boots now; return how many it had."""
        freed = sum(self.acknowledge(boot_id, ranges) for boot_id, ranges in received.items())
        self._wanted = [boot for boot in self._offered() if boot.boot_id in received]
        return freed

    def take_gone(self) -> list[tuple[str, list[list[int]], str]]:
        """Return what was lost since the last call: (boot, inclusive ranges, reason)."""
        gone, self._gone = self._gone, {}
        return [(boot_id, ranges.to_list(), reason) for (boot_id, reason), ranges in gone.items()]

    def held_back(self) -> list[Boot]:
        """Return the earlier boots that cannot be sent."""
        return [boot for boot in self._earlier if boot.problem]

    def causes(self) -> list[str]:
        """Say what is wrong, for the health in the status."""
        causes = []
        if self.disk.state != "ok":
            causes.append(f"spool {self.disk.state}: {self.disk.reason}; the robot drives on")
        if dropped := self.overflow - self.damaged:
            causes.append(f"spool: {dropped} records were dropped while the trainer was away")
        if self.damaged:
            causes.append(f"spool: {self.damaged} records were damaged on disk; check it")
        causes += [
            f"spool: {len(boot.held)} records of boot {boot.boot_id} cannot be sent: {boot.problem}"
            for boot in self.held_back()
        ]
        return causes

    def report(self) -> dict[str, Any]:
        """Return what the status shows."""
        figures = self.disk.figures
        back = self.held_back()
        return {
            "state": self.disk.state,
            "reason": self.disk.reason,
            "unacknowledged": self.waiting,
            "backfill": self.waiting - self._own.held.count_from(self.live_seq),
            "live_seq": self.live_seq,
            "boots": sum(not boot.problem for boot in self._earlier),
            "held_back": [{"boot_id": boot.boot_id, "records": len(boot.held), "why": boot.problem} for boot in back],
            "unwritten": self.disk.unwritten,
            "memory_bytes": self._memory_bytes,
            "disk_bytes": figures.bytes,
            "segments": figures.segments,
            "written": figures.written,
            "synced": figures.synced,
            "sync_ms": round(figures.sync_ms, 3),
            "sync_ms_max": round(figures.sync_ms_max, 3),
            "exposed_ms_max": round(figures.exposed_ms_max, 3),
            "dropped": self.overflow - self.damaged,
            "damaged": self.damaged,
            "torn_bytes": figures.torn_bytes,
        }

    # -- inside -----------------------------------------------------------------------------------------------------

    def _boot(self, boot_id: str) -> Boot | None:
        if boot_id == self._own.boot_id:
            return self._own
        return next((boot for boot in self._earlier if boot.boot_id == boot_id), None)

    def _offered(self) -> list[Boot]:
        return [boot for boot in self._earlier if boot.held and not boot.problem][:MAX_OFFERED]

    def _rests(self) -> bool:
        return not self._is_clocked or self._clock() - self._appended_at >= REST_S

    def _may_backfill(self) -> bool:
        return self._tokens > 0 or self._rests()

    def _choose(self, lane: str, boot: Boot, seq: int) -> list[bytes] | None:
        frames = self._in_memory(lane, boot, seq)
        if frames is None:
            self._ask(lane, boot, seq)
        else:
            self._chosen = (lane, boot, seq)
        return frames

    def _in_memory(self, lane: str, boot: Boot, seq: int) -> list[bytes] | None:
        if boot is self._own and seq in self._memory:
            return self._memory[seq]
        window = self._windows[lane]
        return window.records.get(seq) if window.boot_id == boot.boot_id else None

    def _ask(self, lane: str, boot: Boot, seq: int) -> None:
        window = self._windows[lane]
        if window.is_asked or self._clock() < window.retry_at:
            return
        window.boot_id, window.is_asked = boot.boot_id, True
        window.records.clear()
        last = seq + FETCH_RECORDS - 1
        if boot is self._own:  # from there on memory has them
            last = min(last, next((each - 1 for each in self._memory if each > seq), last))
        self.disk.fetch(lane, boot.boot_id, seq, last)

    def _collect(self) -> bool:
        """Take in events; True where somebody may go on."""
        news = False
        for event in self.disk.take_events():
            news = self._take_in(event) or news
        return news

    def _take_in(self, event: Event) -> bool:
        if isinstance(event, Durable):
            had_room = self.has_room
            self._undurable_bytes -= sum(
                self._size(seq) for seq in range(self._durable, event.next_seq) if seq in self._memory
            )
            self._durable = event.next_seq
            self._shrink()
            return not had_room and self.has_room
        if isinstance(event, Fetched):
            self._fetched(event)
            return True
        if isinstance(event, Dropped):
            boot = self._boot(event.boot_id)
            if boot is not None:
                self._lose(boot, event.ranges, "the rover's disk is full")
            return True
        self._disk_changed(event)
        return True

    def _fetched(self, event: Fetched) -> None:
        window, boot = self._windows[event.lane], self._boot(event.boot_id)
        window.is_asked = False
        if boot is None:
            return
        if window.boot_id == event.boot_id:
            window.records = event.records
        if event.error:
            window.failures += 1
            window.retry_at = self._clock() + RETRY_S
            if window.failures < UNREADABLE_TRIES:
                return
            event = Fetched(event.lane, event.boot_id, event.first, max(event.upto, event.first), event.records)
        window.failures, window.retry_at = 0, 0.0
        missing = [
            (seq, seq)
            for first, last in boot.held.within(event.first, event.upto)
            for seq in range(first, last + 1)
            if seq not in event.records and not (boot is self._own and seq in self._memory)
        ]
        if missing:
            self.damaged += len(missing)
            self._lose(boot, missing, "damaged on the rover's disk")
            if count := self._repeats.count("damaged"):
                hint = "the rest is sent; check this rover's disk"
                log.error("spool.damaged", boot_id=boot.boot_id, first=missing[0][0], count=count, hint=hint)

    def _lose(self, boot: Boot, ranges: list[tuple[int, int]], reason: str) -> None:
        """Give up records for good and have it told."""
        lost = [each for first, last in ranges for each in boot.held.take_range(first, last)]
        for first, last in lost:
            self.overflow += last - first + 1
            self._gone.setdefault((boot.boot_id, reason), Ranges()).add_range(first, last)
        self._forget(boot, lost)

    def _forget(self, boot: Boot, ranges: list[tuple[int, int]]) -> None:
        """Free whatever stands for records that are not held any more."""
        if not ranges:
            return
        for several in boot.under_way.values():
            several.difference_update([seq for seq in several if seq not in boot.held])
        if boot is self._own and self._memory:
            for first, last in ranges:
                few = range(first, last + 1) if last - first < len(self._memory) else list(self._memory)
                for seq in few:
                    if first <= seq <= last and seq in self._memory:
                        self._free(seq)
        self.disk.release(boot.boot_id, ranges)
        if boot is not self._own and not boot.held:
            self._earlier.remove(boot)
            self._wanted = [each for each in self._wanted if each is not boot]

    def _free(self, seq: int) -> None:
        size = self._size(seq)
        del self._memory[seq]
        self._memory_bytes -= size
        if seq >= self._durable:
            self._undurable_bytes -= size

    def _size(self, seq: int) -> int:
        return sum(map(len, self._memory[seq]))

    def _shrink(self) -> None:
        """Keep memory within its bound: what is on disk goes first; else the oldest is lost."""
        while self._memory_bytes > self._memory_limit and len(self._memory) > 1:
            oldest = next(iter(self._memory))
            if oldest < self._durable:
                self._free(oldest)
            else:
                self._lose(self._own, [(oldest, oldest)], "the rover's disk and memory are full")

    def _disk_changed(self, event: Changed) -> None:
        if event.state == "full":
            what = "the newest records are dropped" if self._drops_newest else "the oldest records are dropped"
            hint = f"{what} and the robot drives on; free space, or mend the link to the trainer"
            log.error("spool.full", reason=event.reason, hint=hint)
        elif event.state == "failed":
            hint = "records are kept in memory only, and the robot drives on; check the disk"
            log.error("spool.failed", reason=event.reason, hint=hint)
        else:
            log.info("spool.restored", unwritten=self.disk.unwritten)

    def _log_recovered(self) -> None:
        figures, back = self.disk.figures, self.held_back()
        if self._earlier:
            records = sum(len(boot.held) for boot in self._earlier)
            facts = {"boots": len(self._earlier), "records": records, "bytes": figures.bytes}
            log.info("spool.recovered", **facts, torn_bytes=figures.torn_bytes, damaged=figures.damaged)
        for boot in back:
            hint = "these records stay on the rover's disk and are not sent"
            log.warning("spool.held_back", boot_id=boot.boot_id, records=len(boot.held), reason=boot.problem, hint=hint)


def _boot_of(found: BootFolder) -> Boot:
    held = found.held()
    return Boot(found.facts, held, next=(held.last or 0) + 1, problem=found.problem)
