"""The ledger reads the link as it is and finds each kind of lie."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace

import msgpack
import zmq
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import Ack, Gone, encode
from tests.daemon.strangers import good_step, hello
from tests.faults.ledger import Ledger, digest
from tests.faults.spans import Spans
from tests.faults.wire import Wire
from tests.faults.zmtp import ZmtpReader

BOOT = ("rover-1", "boot-1")


def told(ledger, message, *, is_up):
    ledger.see(1, encode(message), is_up=is_up)


def ledger_of(seqs, acked=()):
    ledger = Ledger()
    told(ledger, hello("rover-1", {}, {}), is_up=True)
    for seq in seqs:
        ledger.see(1, list(good_step(*BOOT, seq)), is_up=True)
    told(ledger, Ack("boot-1", [list(each) for each in acked], 512), is_up=False)
    return ledger


def store_of(seqs, **changes):
    records = {seq: digest(good_step(*BOOT, seq)) for seq in seqs}
    values = {"digests": {BOOT: records}, "repeated": []}
    return SimpleNamespace(given_up=defaultdict(Spans), **{**values, **changes})


def test_a_hole_that_the_trainer_counted_as_lost_is_no_gap_but_an_acknowledged_one_is_lost():
    store = store_of([0, 1, 5, 6])
    store.given_up["rover-1", "boot-1"] = Spans([(2, 4)])
    verdict = ledger_of(range(7), [(0, 1), (4, 4)]).audit(store)
    assert (verdict.gaps, verdict.given_up, verdict.acked_lost) == (0, 3, 1)
    store.given_up.clear()
    assert ledger_of(range(7), [(0, 1)]).audit(store).gaps == 3


def test_a_store_that_has_what_was_acknowledged_is_clean():
    verdict = ledger_of(range(10), [(0, 6)]).audit(store_of(range(8)))
    assert verdict.is_clean
    assert (verdict.acked, verdict.stored, verdict.sent) == (7, 8, 10)


def test_what_was_acknowledged_and_is_not_there_is_lost():
    verdict = ledger_of(range(10), [(0, 6)]).audit(store_of([0, 1, 2, 4, 5, 6]))
    assert (verdict.acked_lost, verdict.gaps) == (1, 0)
    assert "acknowledged and lost: 1, first [3]" in verdict.details[0]


def test_an_acknowledgement_of_a_whole_boot_that_is_not_there_is_lost():
    assert ledger_of(range(10), [(0, 6)]).audit(store_of([], digests={})).acked_lost == 7


def test_what_lies_twice_in_the_store_is_a_duplicate():
    assert ledger_of(range(3)).audit(store_of(range(3), repeated=[(*BOOT, 1)])).duplicates == 1


def test_other_bytes_than_were_sent_are_corruption():
    store = store_of(range(3))
    store.digests[BOOT][1] = b"?"
    assert ledger_of(range(3)).audit(store).undetected_corruption == 1


def test_a_record_that_is_sent_again_with_other_bytes_is_corruption():
    ledger = ledger_of(range(3))
    ledger.see(1, list(good_step(*BOOT, 1, reward=7.0)), is_up=True)
    assert ledger.audit(store_of(range(3))).undetected_corruption == 1


def test_a_record_that_nobody_sent_is_corruption():
    assert ledger_of(range(3)).audit(store_of(range(4))).undetected_corruption == 1


def test_a_hole_is_a_gap_unless_the_rover_said_that_it_is_gone():
    ledger = ledger_of([0, 1, 3])
    assert ledger.audit(store_of([0, 1, 3])).gaps == 1
    told(ledger, Gone("boot-1", [[2, 2]]), is_up=True)
    assert ledger.audit(store_of([0, 1, 3])).is_clean


def test_what_the_rover_says_is_gone_is_not_lost_though_it_is_acknowledged():
    ledger = ledger_of([0, 1, 3], [(0, 3)])
    told(ledger, Gone("boot-1", [[2, 2]]), is_up=True)
    assert ledger.audit(store_of([0, 1, 3])).is_clean


def test_messages_are_read_from_the_bytes_of_a_real_connection():
    ledger = Ledger()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        for each in (router, dealer):
            each.setsockopt(zmq.LINGER, 0)
            each.setsockopt(zmq.RCVTIMEO, 5000)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with Wire(port, observe=ledger.observe) as wire:
            dealer.connect(f"tcp://127.0.0.1:{wire.port}")
            dealer.send_multipart(encode(hello("rover-1", {}, {})))
            record = [*good_step(*BOOT, 0), b"image" * 10_000, b""]
            dealer.send_multipart(record)
            identity, *_ = router.recv_multipart()
            assert router.recv_multipart()[1:] == record
            router.send_multipart([identity, *encode(Ack("boot-1", [[0, 0]], 512))])
            dealer.recv_multipart()
    assert ledger.sent[BOOT] == {0: digest(record)}
    assert list(ledger.acked[BOOT]) == [(0, 0)]
    assert ledger.messages == {"hello": 1, "step": 1, "ack": 1}


def test_an_encrypted_connection_gives_no_messages():
    reader = ZmtpReader()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    assert reader.feed(greeting + b"\x00\x05hello") == []
    assert reader.mechanism == "CURVE"


@given(st.lists(st.integers(1, 40), max_size=30), st.randoms())
def test_bytes_may_come_in_any_pieces(cuts, draw):
    def frame(body, more):
        return (
            bytes([more, len(body)]) + body
            if len(body) < 256
            else bytes([2 | more]) + len(body).to_bytes(8, "big") + body
        )

    content = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    content += b"\x04\x05READY" + frame(b"a", 1) + frame(b"b" * 300, 0) + frame(msgpack.packb({"kind": "x"}), 0)
    reader, got, place = ZmtpReader(), [], 0
    for size in [*cuts, len(content)]:
        got += reader.feed(content[place : place + size])
        place += size
    assert got == [[b"a", b"b" * 300], [msgpack.packb({"kind": "x"})]]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=25))
def test_spans_are_a_set(pairs):
    spans, model = Spans(), set()
    for low, size in pairs:
        spans.add(low, low + size)
        model.update(range(low, low + size + 1))
        ranges = list(spans)
        assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges)), "apart and in order"
    assert len(spans) == len(model)
    assert {value for value in range(80) if value in spans} == model
    assert spans.highest == max(model, default=None)
    assert spans.without({1, 2, 3}) == sorted(model - {1, 2, 3})
