"""Unacknowledged records in memory, in the order of their seq: what is sent, resent and freed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


RESERVE = 8
"""A tick may add a break, its step, an episode's end, and at a stop one more end."""


class Outbox:
    """Hold records until they are acknowledged; at most ``capacity`` of them.

    A record is *unsent*, *under way*, or gone. ``overflow`` counts records that were dropped, oldest first, because a
    robot that cannot wait went on while the trainer was away.
    """

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._capacity = capacity
        self._records: dict[int, list[bytes]] = {}
        self._unsent: deque[int] = deque()
        self.overflow = 0
        self.resent = 0
        self._newest_sent = -1

    def __len__(self) -> int:
        """Return the number of unacknowledged records."""
        return len(self._records)

    @property
    def is_full(self) -> bool:
        """True when the next record would push out the oldest."""
        return len(self._records) >= self._capacity

    @property
    def has_room(self) -> bool:
        """True while a whole tick's records fit: who can wait asks this, and never overflows."""
        return len(self._records) + RESERVE <= self._capacity

    @property
    def under_way(self) -> int:
        """Number of records that were sent and not acknowledged."""
        return len(self._records) - len(self._unsent)

    @property
    def oldest(self) -> int | None:
        """The seq of the oldest unacknowledged record."""
        return next(iter(self._records), None)

    def append(self, seq: int, frames: list[bytes]) -> None:
        """Keep a record; seq must grow."""
        if self.is_full:
            oldest = next(iter(self._records))
            del self._records[oldest]
            if self._unsent and self._unsent[0] == oldest:
                self._unsent.popleft()
            self.overflow += 1
        self._records[seq] = frames
        self._unsent.append(seq)

    def peek(self, credit: int) -> list[bytes] | None:
        """Return the next record to send, or None when nothing is unsent or the credit is used up."""
        if not self._unsent or self.under_way >= credit:
            return None
        return self._records[self._unsent[0]]

    def mark_sent(self) -> None:
        """Note that the record of the last ``peek`` is under way."""
        seq = self._unsent.popleft()
        if seq <= self._newest_sent:
            self.resent += 1
        self._newest_sent = max(self._newest_sent, seq)

    def acknowledge(self, ranges: Iterable[Sequence[int]]) -> int:
        """Free the records of inclusive ranges of seq and return how many; unknown ones are ignored."""
        freed = 0
        first_unsent = self._unsent[0] if self._unsent else None
        frees_unsent = False
        for low, high in ranges:
            if high - low > len(self._records):
                wanted = [seq for seq in self._records if low <= seq <= high]
            else:
                wanted = [seq for seq in range(low, high + 1) if seq in self._records]
            for seq in wanted:
                del self._records[seq]
            freed += len(wanted)
            frees_unsent = frees_unsent or (first_unsent is not None and bool(wanted) and wanted[-1] >= first_unsent)
        if frees_unsent:
            self._unsent = deque(seq for seq in self._unsent if seq in self._records)
        return freed

    def resend(self, ranges: Iterable[Sequence[int]]) -> None:
        """Mark records of inclusive ranges of seq unsent; those that are gone are not to be had again."""
        wanted = set(self._unsent)
        for low, high in ranges:
            wanted.update(seq for seq in self._records if low <= seq <= high)
        self._unsent = deque(sorted(wanted))

    def rewind(self) -> None:
        """Mark everything unsent: the other side may have seen none of it."""
        self._unsent = deque(self._records)
