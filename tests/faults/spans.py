"""Sets of whole numbers as inclusive ranges: small, however many numbers an acknowledgement names."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Spans:
    """A set that knows ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int] | list[int]] = ()) -> None:
        self._low: list[int] = []
        self._high: list[int] = []
        for low, high in ranges:
            self.add(low, high)

    def __contains__(self, value: int) -> bool:
        place = bisect_right(self._low, value) - 1
        return place >= 0 and value <= self._high[place]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._low, self._high, strict=True)))

    def __len__(self) -> int:
        """Return how many numbers are in the set."""
        return sum(high - low + 1 for low, high in self)

    @property
    def highest(self) -> int | None:
        return self._high[-1] if self._high else None

    def add(self, low: int, high: int) -> None:
        """Add an inclusive range."""
        first = bisect_left(self._high, low - 1)
        last = bisect_right(self._low, high + 1)
        if first < last:
            low, high = min(low, self._low[first]), max(high, self._high[last - 1])
        self._low[first:last] = [low]
        self._high[first:last] = [high]

    def without(self, other: Iterable[int]) -> list[int]:
        """Return the numbers of this set that are not in the other one; the work is that of the larger."""
        known = other if isinstance(other, set | dict | Spans) else set(other)
        return [value for low, high in self for value in range(low, high + 1) if value not in known]
