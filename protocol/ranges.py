"""Sets of sequence numbers, as both machines keep and name them: inclusive ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Ranges:
    """A set of sequence numbers, kept as inclusive ranges in rising order."""

    def __init__(self, pairs: Iterable[Sequence[int]] = ()) -> None:
        """Begin with the numbers of inclusive ranges (first, last), in any order."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, last in pairs:
            self.add_range(first, last)

    @classmethod
    def below(cls, floor: int) -> Ranges:
        """Return every number below ``floor``."""
        return cls([(0, floor - 1)] if floor > 0 else [])

    def __contains__(self, seq: int) -> bool:
        """Tell whether a number is in the set."""
        place = bisect_right(self._starts, seq) - 1
        return place >= 0 and seq <= self._ends[place]

    def __len__(self) -> int:
        """Return how many numbers are in the set."""
        return sum(self._ends) - sum(self._starts) + len(self._starts)

    def __bool__(self) -> bool:
        """Return True unless the set is empty."""
        return bool(self._starts)

    def __iter__(self) -> Iterator[int]:
        """List the numbers, rising."""
        for first, last in zip(self._starts, self._ends, strict=True):
            yield from range(first, last + 1)

    @property
    def first(self) -> int | None:
        """The smallest number."""
        return self._starts[0] if self._starts else None

    @property
    def last(self) -> int | None:
        """The largest number."""
        return self._ends[-1] if self._ends else None

    def add(self, seq: int) -> bool:
        """Add a number; False if it was there."""
        if self._ends and self._ends[-1] == seq - 1:  # by far the most frequent: the next one
            self._ends[-1] = seq
            return True
        if seq in self:
            return False
        self.add_range(seq, seq)
        return True

    def add_range(self, first: int, last: int) -> None:
        """Add an inclusive range; nothing where it is empty."""
        if last < first:
            return
        low = bisect_left(self._ends, first - 1)  # the first that overlaps or touches
        high = bisect_right(self._starts, last + 1)
        if low < high:
            first, last = min(first, self._starts[low]), max(last, self._ends[high - 1])
        self._starts[low:high] = [first]
        self._ends[low:high] = [last]

    def remove_range(self, first: int, last: int) -> None:
        """Take an inclusive range out."""
        low, high = bisect_left(self._ends, first), bisect_right(self._starts, last)
        if low >= high or last < first:
            return
        left = [(self._starts[low], first - 1)] if self._starts[low] < first else []
        right = [(last + 1, self._ends[high - 1])] if self._ends[high - 1] > last else []
        self._starts[low:high] = [each[0] for each in (*left, *right)]
        self._ends[low:high] = [each[1] for each in (*left, *right)]

    def update(self, other: Ranges) -> None:
        """Add the numbers of another set."""
        for first, last in other.to_list():
            self.add_range(first, last)

    def take_range(self, first: int, last: int) -> list[tuple[int, int]]:
        """Take out what is within an inclusive range, and return it as ranges."""
        taken = self.within(first, last)
        self.remove_range(first, last)
        return taken

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return what is within an inclusive range, as ranges."""
        low, high = bisect_left(self._ends, first), bisect_right(self._starts, last)
        pairs = zip(self._starts[low:high], self._ends[low:high], strict=True)
        return [(max(a, first), min(b, last)) for a, b in pairs] if first <= last else []

    def missing_within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return what of an inclusive range is not in the set, as ranges."""
        missing = []
        for a, b in self.within(first, last):
            if a > first:
                missing.append((first, a - 1))
            first = b + 1
        return [*missing, (first, last)] if first <= last else missing

    def covers(self, first: int, last: int) -> bool:
        """Tell whether all of an inclusive range is in the set."""
        place = bisect_right(self._starts, first) - 1
        return last < first or (place >= 0 and last <= self._ends[place])

    def next_present(self, seq: int) -> int | None:
        """Return the first number from ``seq`` on that is in the set."""
        place = bisect_left(self._ends, seq)
        return max(seq, self._starts[place]) if place < len(self._ends) else None

    def count_from(self, seq: int) -> int:
        """Return how many numbers from ``seq`` on are in the set."""
        return sum(b - a + 1 for a, b in self.within(seq, self._ends[-1])) if self._ends else 0

    def next_missing(self, seq: int) -> int:
        """Return the first number from ``seq`` on that is not in the set."""
        place = bisect_right(self._starts, seq) - 1
        return self._ends[place] + 1 if place >= 0 and seq <= self._ends[place] else seq

    def copy(self) -> Ranges:
        """Return a set of its own with the same numbers."""
        made = Ranges()
        made._starts, made._ends = self._starts.copy(), self._ends.copy()
        return made

    def to_list(self, newest: int | None = None) -> list[list[int]]:
        """Return the ranges as [first, last], or only the ``newest`` of them."""
        pairs = [[a, b] for a, b in zip(self._starts, self._ends, strict=True)]
        return pairs if newest is None else pairs[-newest:]
