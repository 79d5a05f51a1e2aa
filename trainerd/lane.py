"""Count each record of a boot once and bring them into order: pure bookkeeping, no clock, no socket.

A boot (one process start of a rover) has two lanes: *live*, from the seq on which its newest hello names, and
*backfill* below it, where what an outage left comes later and slowly. Records are handed on in order within a lane.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from protocol.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")


@dataclass
class Tally:
    """What became of the records of all boots."""

    records: int = 0
    """Records that came for the first time: steps and ends of episodes."""
    duplicates: int = 0
    """Records that came again; they are acknowledged again and otherwise ignored."""
    lost: int = 0
    """Records whose place was given up, because the rover does not have them any more."""
    late: int = 0
    """Records that came after their place had been given up; stored, but not learned from in this process."""
    refused: int = 0
    """Records for which there was no room; not acknowledged, so they are asked for again."""


class Verdict(Enum):
    """What a record that arrives is."""

    NEW = "new"
    AGAIN = "again"
    LATE = "late"


@dataclass
class Lane(Generic[T]):
    """One lane of a boot: records that wait for their turn; ``T`` is such a record, undecoded.

    A record becomes the head when all before it were taken or given up, and it is safe on disk: what is learned from
    must be there after a power cut, or it would come, and be learned from, once more.
    """

    name: str
    taken: Ranges
    """What needs no turn any more; shared by both lanes of a boot."""
    durable: Ranges
    """What is safe on disk; shared likewise."""
    start: int
    capacity: int
    waiting: dict[int, T] = field(default_factory=dict)
    highest_refused: int = -1
    gap_since_s: float | None = None

    @property
    def next_seq(self) -> int:
        """The seq of the record whose turn it is."""
        return self.taken.next_missing(self.start)

    @property
    def room(self) -> int:
        """How many more records may wait."""
        return self.capacity - len(self.waiting)

    def head(self) -> T | None:
        """Return the record whose turn it is, or None while it is missing or not safe yet."""
        if not self.waiting:
            return None
        seq = self.next_seq
        return self.waiting.get(seq) if seq in self.durable else None

    def replace_head(self, record: T) -> None:
        """Put another form of the head in its place."""
        self.waiting[self.next_seq] = record

    def take(self) -> None:
        """Take the head away."""
        seq = self.next_seq
        del self.waiting[seq]
        self.taken.add(seq)
        self.gap_since_s = None

    def refuse(self, seq: int) -> None:
        """Note that a record had no room, so that it is asked for again."""
        self.highest_refused = max(self.highest_refused, seq)

    def missing(self) -> tuple[int, int] | None:
        """Return the inclusive range that something later waits for, or that was refused; None without one."""
        first = self.next_seq
        if first in self.waiting:
            return None
        last = min(self.waiting) - 1 if self.waiting else self.highest_refused
        return (first, last) if first <= last else None

    def overdue(self, now_s: float, wait_s: float) -> tuple[int, int] | None:
        """Return what has been missing for ``wait_s``, once each ``wait_s``, or None."""
        missing = self.missing()
        if missing is None:
            self.gap_since_s = None
            return None
        if self.gap_since_s is None:
            self.gap_since_s = now_s
        if now_s - self.gap_since_s < wait_s:
            return None
        self.gap_since_s = now_s
        return missing

    def give_up(self, first: int, last: int) -> Ranges:
        """Give up what is missing of an inclusive range; return that."""
        given = Ranges([(max(first, self.start), last)])
        for seq in self.waiting:
            given.remove_range(seq, seq)
        for low, high in self.taken.to_list():
            given.remove_range(low, high)
        for low, high in given.to_list():
            self.taken.add_range(low, high)
        if given:
            self.gap_since_s = None
        return given


class Boot(Generic[T]):
    """The receiving side of one boot of one rover.

    ``taken`` was handed on (by this process, or before it), ``durable`` is safe on disk and acknowledged, ``lost`` was
    given up.
    """

    def __init__(
        self,
        rover_id: str,
        boot_id: str,
        tally: Tally,
        capacity: int,
        *,
        durable: Iterable[Sequence[int]] = (),
        lost: Iterable[Sequence[int]] = (),
        floor: int = 0,
    ) -> None:
        """Begin with what is ``durable`` or ``lost``, and with everything below ``floor`` acknowledged long ago."""
        self.rover_id, self.boot_id = rover_id, boot_id
        self.tally = tally
        self.durable = Ranges(durable)
        self.durable.add_range(0, floor - 1)
        self.taken, self.lost = self.durable.copy(), Ranges(lost)
        for first, last in self.lost.to_list():
            self.taken.add_range(first, last)
        self.backfill: Lane[T] = Lane("backfill", self.taken, self.durable, 0, capacity)
        self.live: Lane[T] = Lane("live", self.taken, self.durable, 0, capacity)
        self.bound = floor
        """No record at or above it was announced or came."""
        self.unacked = 0
        """Records that became safe or came again since the last acknowledgement."""
        self.acked_s = 0.0
        self._page = 0
        self.is_over = False
        """The rover said that it sends nothing more of it than it named."""
        self.is_shut = False
        """An earlier boot that is all here: its episodes are finished, and a record that comes nevertheless is late."""

    @property
    def key(self) -> tuple[str, str]:
        """(rover_id, boot_id)."""
        return self.rover_id, self.boot_id

    @property
    def lanes(self) -> tuple[Lane[T], Lane[T]]:
        """Both lanes, the live one first."""
        return self.live, self.backfill

    @property
    def is_whole(self) -> bool:
        """True when everything that was announced was taken or given up, and is safe."""
        return not self.waiting and self.taken.next_missing(0) >= self.bound

    @property
    def waiting(self) -> int:
        """Records that wait for their turn."""
        return len(self.live.waiting) + len(self.backfill.waiting)

    @property
    def room(self) -> int:
        """How many more records may come."""
        return min(lane.room for lane in self.lanes)

    def split(self, live_seq: int) -> None:
        """Let the live lane begin at ``live_seq``, if that is further on than it does."""
        if live_seq <= self.live.start:
            return
        self.live.start = live_seq
        for seq in [seq for seq in self.live.waiting if seq < live_seq]:
            self.backfill.waiting[seq] = self.live.waiting.pop(seq)
        if self.live.highest_refused < live_seq:
            self.backfill.highest_refused = max(self.backfill.highest_refused, self.live.highest_refused)
            self.live.highest_refused = -1

    def lane_of(self, seq: int) -> Lane[T]:
        """Return the lane that a seq belongs to."""
        return self.live if seq >= self.live.start else self.backfill

    def judge(self, seq: int) -> Verdict:
        """Say what a record that arrives is, and count it if it came before."""
        if seq in self.lost:
            return Verdict.LATE
        if seq in self.taken or seq in self.lane_of(seq).waiting:
            self.tally.duplicates += 1
            self.unacked += seq in self.durable
            return Verdict.AGAIN
        return Verdict.NEW

    def refuse(self, seq: int) -> None:
        """Count a record for which there is no room."""
        self.tally.refused += 1
        if seq in self.lost:  # the rover has it after all, so it is missing again
            self.lost.remove_range(seq, seq)
            self.taken.remove_range(seq, seq)
            self.tally.lost -= 1
        self.lane_of(seq).refuse(seq)

    def keep(self, seq: int, record: T) -> None:
        """Keep a new record for its turn."""
        self.lane_of(seq).waiting[seq] = record
        self.bound = max(self.bound, seq + 1)
        self.tally.records += 1

    def keep_late(self, seq: int) -> None:
        """Count a record whose place was given up."""
        self.lost.remove_range(seq, seq)
        self.tally.late += 1
        self.tally.lost -= 1

    def drop(self, seq: int) -> None:
        """Acknowledge a record that is of no use at all, so that it does not come for ever."""
        self.taken.add(seq)
        self.safe(seq)

    def acks(self, limit: int) -> list[list[int]]:
        """Return ranges to acknowledge: all, or the newest and in turn a page of the others."""
        pairs = self.durable.to_list()
        if len(pairs) <= limit:
            return pairs
        newest, others = pairs[-(limit // 2) :], pairs[: -(limit // 2)]
        first = self._page % len(others)
        self._page = first + limit - limit // 2
        return sorted((others[first:] + others[:first])[: limit - limit // 2]) + newest

    def safe(self, seq: int) -> None:
        """Note that a record is on disk: it is acknowledged from now on."""
        self.durable.add(seq)
        self.unacked += 1

    def give_up(self, first: int, last: int) -> list[list[int]]:
        """Give up what is missing of an inclusive range; return the ranges of records that this loses."""
        given = self.live.give_up(first, min(last, self.bound - 1)).to_list()
        given += self.backfill.give_up(first, min(last, self.live.start - 1, self.bound - 1)).to_list()
        for low, high in given:
            self.lost.add_range(low, high)
            self.tally.lost += high - low + 1
        return given
