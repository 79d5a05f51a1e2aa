"""The outbox sends every record until it is acknowledged, in order, within the credit."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roverd.outbox import Outbox


def filled(count: int, capacity: int = 100) -> Outbox:
    outbox = Outbox(capacity)
    for seq in range(count):
        outbox.append(seq, [seq.to_bytes(2, "big")])
    return outbox


def sent(outbox: Outbox, credit: int = 1000) -> list[int]:
    """Send what may be sent and return its seqs."""
    out = []
    while (frames := outbox.peek(credit)) is not None:
        outbox.mark_sent()
        out.append(int.from_bytes(frames[0], "big"))
    return out


def test_records_leave_in_the_order_of_their_seq() -> None:
    assert sent(filled(5)) == [0, 1, 2, 3, 4]


def test_no_more_than_the_credit_is_under_way() -> None:
    assert sent(filled(5), credit=3) == [0, 1, 2]


def test_without_credit_nothing_is_sent() -> None:
    assert filled(1).peek(0) is None


def test_an_acknowledgement_makes_room_for_as_many() -> None:
    outbox = filled(6)
    sent(outbox, credit=3)
    outbox.acknowledge([(0, 1)])
    assert sent(outbox, credit=3) == [3, 4]


def test_a_sent_record_is_not_sent_again_by_itself() -> None:
    outbox = filled(3)
    sent(outbox)
    assert sent(outbox) == []


def test_a_rewind_resends_each_unacknowledged_record_once() -> None:
    outbox = filled(5)
    sent(outbox, credit=4)
    outbox.acknowledge([(1, 2)])
    outbox.rewind()
    assert (sent(outbox), outbox.resent) == ([0, 3, 4], 2)


def test_ranges_out_of_order_free_what_they_name() -> None:
    outbox = filled(10)
    sent(outbox)
    freed = outbox.acknowledge([(7, 8), (0, 2), (5, 5), (0, 2)])
    outbox.rewind()
    assert (freed, sent(outbox)) == (6, [3, 4, 6, 9])


def test_an_acknowledged_record_behind_an_unsent_one_is_not_sent() -> None:
    outbox = filled(6)
    sent(outbox)
    outbox.rewind()
    outbox.acknowledge([(2, 4)])
    assert sent(outbox) == [0, 1, 5]


def test_acknowledging_unsent_records_keeps_the_count_under_way_right() -> None:
    outbox = filled(6)
    outbox.acknowledge([(2, 4)])
    assert outbox.under_way == 0


@pytest.mark.parametrize("ranges", [[(50, 60)], [(0, 2**62)], [(2**62, 2**63 - 1)]])
def test_a_range_of_unknown_records_is_harmless(ranges: list[tuple[int, int]]) -> None:
    outbox = filled(3)
    sent(outbox)
    assert outbox.acknowledge(ranges) == (3 if ranges[0][0] == 0 else 0)


def test_overflow_drops_the_oldest_and_counts_it() -> None:
    outbox = filled(7, capacity=4)
    assert (sent(outbox), outbox.overflow, len(outbox)) == ([3, 4, 5, 6], 3, 4)


def test_overflow_of_a_record_under_way_sends_no_ghost() -> None:
    outbox = filled(4, capacity=4)
    sent(outbox, credit=2)
    outbox.append(4, [b"\0\4"])
    assert sent(outbox) == [2, 3, 4]


@pytest.mark.parametrize(("count", "is_full"), [(3, False), (4, True)])
def test_the_outbox_is_full_at_its_capacity(count: int, is_full: bool) -> None:  # noqa: FBT001
    assert filled(count, capacity=4).is_full == is_full


def test_the_oldest_is_the_first_unacknowledged() -> None:
    outbox = filled(4)
    outbox.acknowledge([(0, 0), (2, 2)])
    assert (outbox.oldest, Outbox(1).oldest) == (1, None)


class OutboxMachine(RuleBasedStateMachine):
    """Against a model of two plain lists: kept records, and those that were sent since the last rewind."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(8)
        self.kept: list[int] = []
        self.under_way: set[int] = set()
        self.next = 0
        self.overflow = 0

    @rule(gap=st.integers(0, 2))
    def append(self, gap: int) -> None:
        self.next += gap
        self.outbox.append(self.next, [self.next.to_bytes(4, "big")])
        if len(self.kept) == 8:
            self.under_way.discard(self.kept.pop(0))
            self.overflow += 1
        self.kept.append(self.next)
        self.next += 1

    @rule(credit=st.integers(0, 10))
    def send(self, credit: int) -> None:
        unsent = [seq for seq in self.kept if seq not in self.under_way]
        frames = self.outbox.peek(credit)
        if not unsent or len(self.under_way) >= credit:
            assert frames is None
            return
        assert frames == [unsent[0].to_bytes(4, "big")]
        self.outbox.mark_sent()
        self.under_way.add(unsent[0])

    @rule(ranges=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=3))
    def acknowledge(self, ranges: list[tuple[int, int]]) -> None:
        pairs = [(low, low + length) for low, length in ranges]
        left = [seq for seq in self.kept if not any(low <= seq <= high for low, high in pairs)]
        assert self.outbox.acknowledge(pairs) == len(self.kept) - len(left)
        self.kept, self.under_way = left, self.under_way & set(left)

    @rule()
    def rewind(self) -> None:
        self.outbox.rewind()
        self.under_way.clear()

    @precondition(lambda self: self.kept)
    @rule()
    def every_record_that_is_kept_is_sent_after_a_rewind(self) -> None:
        self.outbox.rewind()
        out = []
        while (frames := self.outbox.peek(100)) is not None:
            self.outbox.mark_sent()
            out.append(int.from_bytes(frames[0], "big"))
        assert out == self.kept
        self.under_way = set(self.kept)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        ours = (len(self.outbox), self.outbox.under_way, self.outbox.overflow, self.outbox.oldest)
        assert ours == (len(self.kept), len(self.under_way), self.overflow, self.kept[0] if self.kept else None)


TestOutboxAgainstItsModel = OutboxMachine.TestCase
TestOutboxAgainstItsModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
