"""Ranges are a set, whatever is added to them and taken out."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocol.ranges import Ranges

changes = st.lists(
    st.tuples(st.sampled_from(["add", "add_range", "remove_range"]), st.integers(0, 40), st.integers(0, 40))
)


@given(changes)
def test_ranges_hold_what_a_set_holds(steps) -> None:
    ranges, known = Ranges(), set()
    for name, first, last in steps:
        if name == "add":
            assert ranges.add(first) == (first not in known)
            known.add(first)
        else:
            getattr(ranges, name)(first, last)
            numbers = set(range(first, last + 1))
            known = known | numbers if name == "add_range" else known - numbers
        pairs = ranges.to_list()
        assert list(ranges) == sorted(known)
        assert all(b + 1 < c for (_, b), (c, _) in pairwise(pairs)), "ranges that touch are one"
        assert (len(ranges), bool(ranges)) == (len(known), bool(known))
        assert (ranges.first, ranges.last) == (min(known, default=None), max(known, default=None))
        for seq in range(42):
            missing = ranges.next_missing(seq)
            assert missing not in known
            assert all(each in known for each in range(seq, missing))
            assert (seq in ranges) == (seq in known)
            assert ranges.next_present(seq) == min((each for each in known if each >= seq), default=None)
            assert ranges.count_from(seq) == sum(each >= seq for each in known)
            for end in (seq - 1, seq, seq + 7):
                span = set(range(seq, end + 1))
                assert set(Ranges(ranges.within(seq, end))) == known & span
                assert set(Ranges(ranges.missing_within(seq, end))) == span - known
                assert ranges.covers(seq, end) == (span <= known)
        assert list(Ranges(pairs)) == list(ranges.copy()) == list(ranges)
    rest = ranges.copy()
    assert set(Ranges(rest.take_range(5, 20))) == known & set(range(5, 21))
    assert set(rest) == known - set(range(5, 21))
    rest.update(ranges)
    assert set(rest) == known


def test_a_copy_is_a_set_of_its_own() -> None:
    ranges = Ranges.below(3)
    copy = ranges.copy()
    copy.add(7)
    assert (ranges.to_list(), copy.to_list(), copy.to_list(1)) == ([[0, 2]], [[0, 2], [7, 7]], [[7, 7]])
    assert Ranges.below(0).to_list() == []
