"""A boot's records are counted once and come out in order, in whatever order and lane they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ranges import Ranges
from trainerd.lane import Boot, Tally, Verdict


def boot_of(**facts):
    return Boot("rover-1", "boot-1", Tally(), facts.pop("capacity", 64), **facts)


def offer(boot, seq, *, is_safe=True):
    """Do what ingest does with a record, and the store after it."""
    verdict = boot.judge(seq)
    if verdict is Verdict.AGAIN:
        return verdict
    if verdict is Verdict.LATE:
        boot.keep_late(seq)
    elif boot.lane_of(seq).room > 0:
        boot.keep(seq, seq)
    else:
        boot.refuse(seq)
        return verdict
    if is_safe:
        boot.safe(seq)
    return verdict


def drain(lane, out):
    while (head := lane.head()) is not None:
        out.append(head)
        lane.take()


@given(st.permutations(range(20)), st.lists(st.integers(0, 19), max_size=30))
def test_any_order_and_any_repeats_come_out_once_and_in_order(order, repeats):
    boot, out = boot_of(), []
    for seq in [*order, *repeats]:
        offer(boot, seq)
        drain(boot.live, out)
    assert out == list(range(20))
    assert (boot.tally.records, boot.tally.duplicates) == (20, len(repeats))
    assert boot.taken.to_list() == [[0, 19]]


@given(st.permutations(range(30)), st.integers(0, 30), st.integers(0, 30))
def test_with_two_lanes_each_record_comes_out_once_and_in_order_within_its_lane(order, split_at, live_seq):
    boot, out = boot_of(), {"live": [], "backfill": []}
    for place, seq in enumerate(order):
        if place == split_at:
            boot.split(live_seq)
        offer(boot, seq)
        for lane in boot.lanes:
            drain(lane, out[lane.name])
    boot.split(live_seq)
    for lane in boot.lanes:
        drain(lane, out[lane.name])
    assert sorted(out["live"] + out["backfill"]) == list(range(30))
    assert all(each == sorted(each) for each in out.values())
    assert all(seq < live_seq for seq in out["backfill"])
    assert boot.waiting == 0


def test_the_live_lane_does_not_wait_for_the_backfill():
    boot, out = boot_of(), []
    boot.bound = 100
    boot.split(50)
    for seq in (50, 51, 52, 10):
        offer(boot, seq)
    drain(boot.live, out)
    assert out == [50, 51, 52]
    assert boot.live.missing() is None
    assert boot.backfill.missing() == (0, 9)


def test_only_what_is_safe_is_acknowledged():
    boot, out = boot_of(), []
    offer(boot, 0, is_safe=False)
    offer(boot, 1)
    assert (boot.durable.to_list(), boot.unacked) == ([[1, 1]], 1)
    drain(boot.live, out)
    assert out == [], "what is not safe is not learned from either, or a power cut would have it learned twice"
    assert boot.live.missing() is None
    boot.safe(0)
    drain(boot.live, out)
    assert (out, boot.durable.to_list()) == ([0, 1], [[0, 1]])


def test_a_late_record_for_which_there_is_no_room_is_asked_for_again():
    boot, out = boot_of(), []
    offer(boot, 1)
    boot.give_up(0, 0)
    drain(boot.live, out)
    assert boot.judge(0) is Verdict.LATE
    boot.refuse(0)
    assert boot.live.missing() == (0, 0)
    assert offer(boot, 0) is Verdict.NEW
    drain(boot.live, out)
    assert (out, boot.tally.lost) == ([1, 0], 0)


def test_every_range_is_acknowledged_in_turn_however_many_there_are():
    boot, said = boot_of(capacity=1000), Ranges()
    for seq in range(0, 1400, 2):
        offer(boot, seq)
    assert len(boot.durable.to_list()) == 700
    for _ in range(25):
        page = boot.acks(64)
        assert len(page) == 64
        assert page == sorted(page)
        for first, last in page:
            said.add_range(first, last)
    assert said.to_list() == boot.durable.to_list()


def test_what_was_safe_before_this_process_is_a_duplicate_and_has_no_turn():
    boot, out = boot_of(durable=[[0, 4], [8, 9]], lost=[[6, 6]]), []
    assert offer(boot, 3) is Verdict.AGAIN
    assert boot.unacked == 1, "its acknowledgement was lost: it is said again"
    assert offer(boot, 6) is Verdict.LATE
    for seq in (5, 10, 7):
        offer(boot, seq)
    drain(boot.live, out)
    assert out == [5, 7, 10]


def test_what_came_before_the_floor_is_a_duplicate():
    boot = boot_of(floor=100)
    assert offer(boot, 99) is Verdict.AGAIN
    assert offer(boot, 100) is Verdict.NEW
    assert boot.tally.duplicates == 1


def test_a_gap_is_asked_for_again_until_it_is_mended():
    boot, out = boot_of(), []
    lane = boot.live
    offer(boot, 3)
    assert lane.head() is None
    assert lane.overdue(10.0, 2.0) is None
    assert lane.overdue(12.0, 2.0) == (0, 2)
    assert lane.overdue(12.1, 2.0) is None
    assert lane.overdue(14.0, 2.0) == (0, 2)
    for seq in range(3):
        offer(boot, seq)
    drain(lane, out)
    assert out == [0, 1, 2, 3]
    assert lane.overdue(16.0, 2.0) is None
    assert boot.tally.lost == 0


def test_only_what_the_rover_no_longer_has_is_given_up_and_counted():
    boot = boot_of()
    offer(boot, 3)
    assert boot.give_up(0, -1) == []
    assert boot.give_up(0, 1) == [[0, 1]]
    assert boot.live.head() is None
    assert boot.give_up(0, 9) == [[2, 2]], "3 is here, and what is beyond was never announced"
    assert boot.live.head() == 3
    assert boot.tally.lost == 3


def test_a_hole_in_both_lanes_is_given_up_once():
    boot = boot_of()
    boot.bound = 10
    boot.split(5)
    assert boot.give_up(3, 7) == [[5, 7], [3, 4]]
    assert boot.tally.lost == 5
    assert (boot.live.next_seq, boot.backfill.next_seq) == (8, 0)


def test_a_record_that_comes_after_its_place_was_given_up_is_stored_but_has_no_turn():
    boot, out = boot_of(), []
    offer(boot, 1)
    boot.give_up(0, 0)
    drain(boot.live, out)
    assert offer(boot, 0) is Verdict.LATE
    assert (out, boot.tally.late, boot.tally.lost, boot.durable.to_list()) == ([1], 1, 0, [[0, 1]])
    assert offer(boot, 0) is Verdict.AGAIN


def test_more_than_the_room_is_refused_and_asked_for_even_if_nothing_later_comes():
    boot, out = boot_of(capacity=2), []
    for seq in range(4):
        offer(boot, seq)
    assert (boot.tally.refused, boot.room) == (2, 0)
    drain(boot.live, out)
    assert out == [0, 1]
    assert boot.live.missing() == (2, 3)


@pytest.mark.parametrize("live_seq", [0, 2, 6])
def test_the_live_lane_never_begins_earlier_again(live_seq):
    boot = boot_of()
    boot.split(4)
    boot.split(live_seq)
    assert boot.live.start == max(4, live_seq)
