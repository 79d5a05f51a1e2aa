"""Sets of sequence numbers with the verbs of the spool: 200,000 records of an outage take a few bytes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from protocol import ranges


class Ranges(ranges.Ranges):
    """Disjoint inclusive ranges in rising order; every verb costs a search."""

    def take_range(self, first: int, last: int) -> list[tuple[int, int]]:
        """Take out what is within an inclusive range, and return it as ranges."""
        taken = self.within(first, last)
        if taken:
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
        return self.next_missing(first) > last

    def next_present(self, seq: int) -> int | None:
        """Return the first number from ``seq`` on that is in the set."""
        place = bisect_left(self._ends, seq)
        return max(seq, self._starts[place]) if place < len(self._ends) else None

    def count_from(self, seq: int) -> int:
        """Return how many numbers from ``seq`` on are in the set."""
        return sum(b - a + 1 for a, b in self.within(seq, self._ends[-1])) if self._ends else 0
