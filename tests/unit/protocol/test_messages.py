"""Messages come back as they were sent; anything else is a ProtocolError."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.framing import ProtocolError, pack, unpack
from protocol.messages import KINDS, MAX_CHUNK_BYTES, Chunk, Goodbye, Message, Ping, decode, encode, ranges_of

texts = st.text(st.characters(codec="utf-8"), max_size=12)
counts = st.integers(0, 2**63 - 1)
OF_TYPE = {
    "str": texts,
    "int": counts,
    "bool": st.booleans(),
    "float": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=40),
    "dict[str, Any]": st.dictionaries(texts, counts | texts | st.booleans(), max_size=3),
    "dict[str, list[list[int]]]": st.dictionaries(
        texts, st.lists(st.lists(counts, min_size=2, max_size=2)), max_size=3
    ),
    "list[str]": st.lists(texts, max_size=3),
    "list[dict[str, Any]]": st.lists(st.dictionaries(texts, counts | texts, max_size=3), max_size=3),
    "list[list[int]]": st.lists(st.lists(counts, min_size=2, max_size=2), max_size=3),
}


def messages_of(cls: type[Message]):
    return st.builds(cls, **{each.name: OF_TYPE[str(each.type)] for each in fields(cls)})


def least(cls: type[Message]) -> dict[str, object]:
    """Return the header of a message with only its necessary fields."""
    zero = {"str": "", "int": 0, "bool": False, "float": 0.0}
    necessary = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return {
        "kind": cls.kind,
        **{f.name: zero.get(str(f.type), {} if str(f.type).startswith("dict") else []) for f in necessary},
    }


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(KINDS)).flatmap(lambda kind: messages_of(KINDS[kind])))
def test_a_decoded_message_equals_the_encoded_one(message: Message) -> None:
    header, *frames = encode(message)
    assert decode(unpack(header), frames) == message


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_keys_are_ignored(kind: str) -> None:
    frames = [b""] if kind == "chunk" else []
    header = least(KINDS[kind])
    assert decode({**header, "colour": [1]}, frames) == decode(header, frames)


@pytest.mark.parametrize("kind", KINDS)
def test_each_necessary_field_is_asked_for_by_name(kind: str) -> None:
    for name in least(KINDS[kind]).keys() - {"kind"}:
        header = {key: value for key, value in least(KINDS[kind]).items() if key != name}
        with pytest.raises(ProtocolError, match=f"{kind}: no {name}"):
            decode(header, [b""])


@pytest.mark.parametrize("kind", ["", "step", "x" * 5000, None, 3, [], {}, ["hello"]])
def test_an_unknown_kind_is_refused(kind: object) -> None:
    with pytest.raises(ProtocolError, match="is not known"):
        decode({"kind": kind})


@pytest.mark.parametrize("frames", [[], [b"", b""], [bytes(MAX_CHUNK_BYTES + 1)]])
def test_a_chunk_has_exactly_one_frame_of_limited_size(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="chunk"):
        decode({"kind": "chunk", "policy_id": "p", "offset": 0}, frames)


def test_a_chunk_carries_its_bytes_in_a_frame_of_its_own() -> None:
    assert encode(Chunk("p", 0, b"content"))[1:] == [b"content"]


@pytest.mark.parametrize("change", [{"sent_ns": "now"}, {"sent_ns": True}, {"policy_id": b"p"}, {"status": []}])
def test_a_field_of_another_type_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="ping"):
        decode(unpack(pack({**unpack(encode(Ping(1))[0]), **change})))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_changed_bytes_give_a_message_or_a_protocol_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(pack(least(KINDS[kind])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(unpack(bytes(content)), [])
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "values",
    [[[2, 1]], [[-1, 1]], [[0, 2**63]], [[0]], [[0, 1, 2]], [0], [["0", "1"]], [[0.0, 1.0]], [[False, True]], [{}]],
)
def test_what_is_no_range_is_refused(values: list[object]) -> None:
    with pytest.raises(ProtocolError, match="not a range"):
        ranges_of(values, "ack")


def test_ranges_are_inclusive_pairs_in_their_order() -> None:
    assert ranges_of([[5, 5], [0, 2]], "ack") == [(5, 5), (0, 2)]


def test_a_goodbye_needs_no_reason() -> None:
    assert decode({"kind": "goodbye"}) == Goodbye()
