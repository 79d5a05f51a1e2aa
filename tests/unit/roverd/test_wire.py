"""Layouts between the three processes: every message comes back as it was packed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roverd.control import wire

BYTE, SHORT, WORD, LONG = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
SIGNED = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(width=32, allow_nan=False)


def vectors(size: int):
    return st.lists(FLOAT, min_size=size, max_size=size).map(tuple)


def messages(actions: int, vector: int):
    a, v = vectors(actions), vectors(vector)
    return {
        "seen": st.builds(wire.Seen, BYTE, BYTE, SHORT | LONG, SIGNED, SIGNED, v),
        "tick": st.builds(wire.Tick, BYTE, BYTE, LONG, LONG, LONG, SIGNED, a, v),
        "proposal": st.builds(
            wire.Proposal, BYTE, LONG, LONG, SHORT, LONG, SIGNED, st.floats(allow_nan=False), a, a, a, a
        ),
        "applied": st.builds(
            wire.Applied,
            BYTE,
            BYTE,
            st.integers(-128, 127),
            WORD,
            LONG,
            LONG,
            LONG,
            SHORT,
            LONG,
            SIGNED,
            SIGNED,
            FLOAT,
            st.floats(allow_nan=False),
            *[a] * 7,
            SIGNED,
        ),
        "human": st.builds(wire.Human, SIGNED, a, st.booleans()),
        "shadowed": st.builds(wire.Shadowed, BYTE, st.booleans(), LONG, SIGNED, a),
    }


@pytest.mark.parametrize("kind", ["seen", "tick", "proposal", "applied", "human", "shadowed"])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_message_comes_back_as_it_was_packed(kind: str, data: st.DataObject) -> None:
    actions, vector = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 9))
    message = data.draw(messages(actions, vector)[kind])
    layout = wire.Layout(actions, vector)
    assert getattr(layout, f"unpack_{kind}")(getattr(layout, f"pack_{kind}")(message)) == message


KINDS = {
    "seen": wire.SEEN,
    "tick": wire.TICK,
    "proposal": wire.PROPOSAL,
    "applied": wire.APPLIED,
    "human": wire.HUMAN,
    "shadowed": wire.SHADOWED,
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_the_first_byte_is_the_kind(kind: str, data: st.DataObject) -> None:
    message = data.draw(messages(2, 3)[kind])
    assert getattr(wire.Layout(2, 3), f"pack_{kind}")(message)[0] == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"\3", bytes(500)])
def test_a_message_of_another_size_is_refused(kind: str, content: bytes) -> None:
    with pytest.raises(struct.error):
        getattr(wire.Layout(2, 3), f"unpack_{kind}")(content)


def test_a_layout_of_another_robot_refuses_the_message() -> None:
    message = wire.Layout(2, 3).pack_seen(wire.Seen(0, 0, 1, 0, 0, (1.0, 2.0, 3.0)))
    with pytest.raises(struct.error):
        wire.Layout(2, 4).unpack_seen(message)


def test_the_largest_message_fits_one_packet() -> None:
    nothing = (0.0,) * 512
    applied = wire.Applied(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, *[nothing] * 7)
    assert len(wire.Layout(512, 4096).pack_applied(applied)) < wire.MAX_MESSAGE_BYTES
