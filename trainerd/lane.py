"""Count each record of a boot once and bring them into order: pure bookkeeping, no clock, no socket."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class Ranges:
    """A set of sequence numbers, kept as inclusive ranges in rising order."""

    def __init__(self, floor: int = 0) -> None:
        """Begin with every number below ``floor`` in the set."""
        self._starts: list[int] = [0] if floor > 0 else []
        self._ends: list[int] = [floor - 1] if floor > 0 else []

    def __contains__(self, seq: int) -> bool:
        """Tell whether a number is in the set."""
        place = bisect_right(self._starts, seq) - 1
        return place >= 0 and seq <= self._ends[place]

    def add(self, seq: int) -> bool:
        """Add a number; False if it was there."""
        if seq in self:
            return False
        place = bisect_right(self._starts, seq)
        joins_left = place > 0 and self._ends[place - 1] == seq - 1
        joins_right = place < len(self._starts) and self._starts[place] == seq + 1
        if joins_left and joins_right:
            self._ends[place - 1] = self._ends.pop(place)
            del self._starts[place]
        elif joins_left:
            self._ends[place - 1] = seq
        elif joins_right:
            self._starts[place] = seq
        else:
            self._starts.insert(place, seq)
            self._ends.insert(place, seq)
        return True

    def to_list(self, newest: int | None = None) -> list[list[int]]:
        """Return the ranges as [first, last], or only the ``newest`` of them."""
        pairs = [[a, b] for a, b in zip(self._starts, self._ends, strict=True)]
        return pairs if newest is None else pairs[-newest:]


@dataclass
class Tally:
    """What became of the records of a lane."""

    records: int = 0
    """Records that came for the first time: steps and ends of episodes."""
    duplicates: int = 0
    """Records that came again; they are acknowledged again and otherwise ignored."""
    lost: int = 0
    """Records whose place was given up."""
    late: int = 0
    """Records that came after their place had been given up; dropped."""
    refused: int = 0
    """Records beyond the credit; dropped and not acknowledged, so they come again."""


@dataclass
class Lane(Generic[T]):
    """The receiving side of one boot of one rover; ``T`` is a record that waits, undecoded.

    A record is offered, becomes the head when all before it were taken or given up, and is acknowledged once taken.
    """

    next_seq: int
    """Everything below was taken or given up."""
    capacity: int
    tally: Tally = field(default_factory=Tally)
    """Shared by the lanes that are counted together."""
    received: Ranges = field(default_factory=Ranges)
    waiting: dict[int, T] = field(default_factory=dict)
    unacked: int = 0
    """Records taken or repeated since the last acknowledgement."""
    gap_since_s: float | None = None

    @classmethod
    def begin(cls, floor: int, capacity: int, tally: Tally) -> Lane[T]:
        """Begin with everything below ``floor`` received, as a rover says at its first hello."""
        return cls(floor, capacity, tally, Ranges(floor))

    def offer(self, seq: int, record: T) -> bool:
        """Keep a record for its turn; False where there is nothing more to do with it."""
        if seq in self.received or seq in self.waiting:
            self.tally.duplicates += 1
            self.unacked += seq in self.received
            return False
        if seq < self.next_seq:  # its place was given up
            self.received.add(seq)
            self.tally.late += 1
            self.unacked += 1
            return False
        if len(self.waiting) >= self.capacity:
            self.tally.refused += 1
            return False
        self.waiting[seq] = record
        self.tally.records += 1
        return True

    def head(self) -> T | None:
        """Return the record whose turn it is, or None while it is missing."""
        return self.waiting.get(self.next_seq)

    def take(self) -> None:
        """Take the head away."""
        del self.waiting[self.next_seq]
        self.received.add(self.next_seq)
        self.next_seq += 1
        self.unacked += 1
        self.gap_since_s = None

    @property
    def has_gap(self) -> bool:
        """True while records wait for one before them."""
        return bool(self.waiting) and self.next_seq not in self.waiting

    def give_up_gap(self) -> int:
        """Go on behind a gap; return how many records that gives up."""
        return self.skip_to(min(self.waiting)) if self.has_gap else 0

    def give_up(self, floor: int) -> int:
        """Give up what is missing below ``floor``, where something later waits; return how many."""
        return self.skip_to(min(floor, *self.waiting)) if self.has_gap and floor > self.next_seq else 0

    def overdue(self, now_s: float, wait_s: float) -> tuple[int, int] | None:
        """Return the inclusive range that has been missing for ``wait_s``, once each ``wait_s``, or None."""
        if not self.has_gap:
            self.gap_since_s = None
            return None
        if self.gap_since_s is None:
            self.gap_since_s = now_s
        if now_s - self.gap_since_s < wait_s:
            return None
        self.gap_since_s = now_s
        return self.next_seq, min(self.waiting) - 1

    def skip_to(self, seq: int) -> int:
        """Give up every record below ``seq`` that has not come; return how many. Call it with nothing waiting there."""
        missing = max(0, seq - self.next_seq)
        self.tally.lost += missing
        self.next_seq = max(self.next_seq, seq)
        self.gap_since_s = None
        return missing
