from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trainerd.lane import Lane, Ranges, Tally


@given(st.lists(st.integers(0, 60)))
def test_ranges_hold_what_a_set_holds(numbers):
    ranges, known = Ranges(), set()
    for number in numbers:
        assert ranges.add(number) == (number not in known)
        known.add(number)
    pairs = ranges.to_list()
    assert {n for a, b in pairs for n in range(a, b + 1)} == known
    assert all(b + 1 < c for (_, b), (c, _) in pairwise(pairs))


@given(st.permutations(range(20)), st.lists(st.integers(0, 19), max_size=30))
def test_any_order_and_any_repeats_come_out_once_and_in_order(order, repeats):
    lane, out = Lane.begin(0, 64, Tally()), []
    for seq in [*order, *repeats]:
        lane.offer(seq, seq)
        while (head := lane.head()) is not None:
            out.append(head)
            lane.take()
    assert out == list(range(20))
    assert lane.tally.records == 20
    assert lane.tally.duplicates == len(repeats)
    assert lane.received.to_list() == [[0, 19]]


def test_what_came_before_the_floor_is_a_duplicate():
    lane = Lane.begin(100, 8, Tally())
    assert not lane.offer(99, "x")
    assert lane.offer(100, "x")
    assert lane.tally.duplicates == 1


def test_a_gap_is_asked_for_again_until_it_is_mended():
    lane = Lane.begin(0, 8, Tally())
    lane.offer(3, "d")
    assert lane.head() is None
    assert lane.overdue(10.0, 2.0) is None
    assert lane.overdue(12.0, 2.0) == (0, 2)
    assert lane.overdue(12.1, 2.0) is None
    assert lane.overdue(14.0, 2.0) == (0, 2)
    for seq in range(3):
        lane.offer(seq, "abc"[seq])
        lane.take()
    assert lane.head() == "d"
    assert lane.overdue(16.0, 2.0) is None
    assert lane.tally.lost == 0


def test_only_what_the_rover_no_longer_has_is_given_up_and_counted():
    lane = Lane.begin(0, 8, Tally())
    lane.offer(3, "d")
    assert lane.give_up(0) == 0
    assert lane.give_up(2) == 2
    assert lane.head() is None
    assert lane.give_up(9) == 1
    assert lane.head() == "d"
    assert lane.tally.lost == 3


def test_a_record_that_comes_after_its_place_was_given_up_is_acknowledged_and_dropped():
    lane = Lane.begin(0, 8, Tally())
    lane.offer(1, "b")
    lane.give_up_gap()
    lane.take()
    assert not lane.offer(0, "a")
    assert (lane.tally.late, lane.received.to_list()) == (1, [[0, 1]])


def test_more_than_the_credit_is_neither_kept_nor_acknowledged():
    lane = Lane.begin(0, 2, Tally())
    assert [lane.offer(seq, seq) for seq in range(4)] == [True, True, False, False]
    assert lane.tally.refused == 2
    assert lane.received.to_list() == []
