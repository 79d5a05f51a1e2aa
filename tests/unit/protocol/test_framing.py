"""Records: what is decoded equals what was encoded, and no other bytes do more harm than a ProtocolError."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass, replace

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.framing import (
    MAX_HEADER_BYTES,
    ProtocolError,
    RecordEncoder,
    allocate,
    decode_record,
    encode_record,
    pack,
    record_kind,
    unpack,
)
from protocol.images import DELTA, JPEG, RAW
from protocol.spec import Camera
from protocol.step import END_REASONS, PURPOSES, SOURCES, Behaviour, EpisodeEnd, Observation, Step
from tests.unit.protocol.samples import DEPTH, RGB, ROBOT, TASK, pixels, step

REAR = Camera("rear", "depth", 4, 8, 10.0)
SPECS = {
    0: replace(ROBOT, cameras=()),
    1: replace(ROBOT, cameras=(ROBOT.cameras[1],)),
    2: replace(ROBOT, cameras=(ROBOT.cameras[1], REAR)),
}


def frames_of(record=None) -> list[bytes]:
    return encode_record(record or step(), RecordEncoder(ROBOT).encode_images(pixels()))


def decoded(frames: list[bytes], spec=ROBOT, task=TASK):
    return decode_record(unpack(frames[0]), frames[1:], spec, task)


def headed(**changes) -> list[bytes]:
    """Return the frames of a step whose header was changed; None removes a key."""
    header, *blobs = frames_of()
    values = {**unpack(header), **changes}
    return [pack({key: value for key, value in values.items() if value is not None}), *blobs]


def assert_same(ours, theirs, place: str = "record") -> None:
    """Compare field by field, so that NaN equals NaN and arrays compare by value and type."""
    assert type(ours) is type(theirs), place
    if is_dataclass(ours):
        for each in fields(ours):
            assert_same(getattr(ours, each.name), getattr(theirs, each.name), f"{place}.{each.name}")
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_same(ours[key], theirs[key], f"{place}[{key}]")
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=place)
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), place  # noqa: PLR0124 - NaN


counts = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.floats(allow_nan=True)
terms = st.dictionaries(texts, numbers, max_size=3)


def vectors(size: int):
    return st.lists(st.floats(width=32), min_size=size, max_size=size).map(lambda v: np.array(v, np.float32))


def observations(cameras):
    images = st.fixed_dictionaries(
        {
            c.key: st.binary(min_size=c.nbytes, max_size=c.nbytes).map(
                lambda raw, c=c: np.frombuffer(raw, c.dtype).reshape(c.shape)
            )
            for c in cameras
        }
    )
    return st.builds(
        Observation,
        state=vectors(2),
        task=vectors(1),
        in_flight=vectors(2),
        images=images,
        stamp_ns=counts,
        ages_ms=terms,
    )


def steps(cameras):
    behaviours = st.builds(Behaviour, u=vectors(2), mean=vectors(2), log_std=vectors(2), log_prob=numbers)
    flags = {key: st.booleans() for key in ("terminated", "truncated", "success")}
    integers = "seq episode_id episode_step decision_id tick_in_decision policy_counter interventions tick tick_ns"
    return st.builds(
        Step,
        rover_id=texts,
        boot_id=texts,
        observation=observations(cameras),
        action=vectors(2),
        source=st.sampled_from(SOURCES),
        reward=numbers,
        policy_id=texts,
        purpose=st.sampled_from(PURPOSES),
        behaviour=st.none() | behaviours,
        policy_action=st.none() | vectors(2),
        human_action=st.none() | vectors(2),
        reward_terms=terms,
        clearance_m=st.none() | numbers,
        **dict.fromkeys((*integers.split(), "applied_ns"), counts),
        **flags,
    )


def ends(cameras):
    integers = "seq episode_id episode_steps arena_seed episode_serial"
    return st.builds(
        EpisodeEnd,
        rover_id=texts,
        boot_id=texts,
        reason=st.sampled_from(END_REASONS),
        final=observations(cameras),
        ends_episode=st.booleans(),
        success=st.booleans(),
        terminated=st.booleans(),
        purpose=st.sampled_from(PURPOSES),
        return_=numbers,
        metrics=terms,
        policy_id=texts,
        order_id=texts,
        **dict.fromkeys(integers.split(), counts),
    )


@pytest.mark.parametrize("cameras", SPECS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_decoded_step_equals_the_encoded_one(cameras: int, data: st.DataObject) -> None:
    spec = SPECS[cameras]
    record = data.draw(steps(spec.cameras))
    frames = encode_record(record, RecordEncoder(spec).encode_images(record.observation.images))
    assert_same(record, decoded(frames, spec))


@pytest.mark.parametrize("cameras", SPECS)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_decoded_episode_end_equals_the_encoded_one(cameras: int, data: st.DataObject) -> None:
    spec = SPECS[cameras]
    record = data.draw(ends(spec.cameras))
    frames = encode_record(record, RecordEncoder(spec).encode_images(record.final.images))
    assert_same(record, decoded(frames, spec))


def test_decoded_arrays_own_their_memory_and_are_writable() -> None:
    record = decoded(frames_of(step(policy_action=np.zeros(2, np.float32), human_action=np.ones(2, np.float32))))
    seen, behaviour = record.observation, record.behaviour
    arrays = [seen.state, seen.task, seen.in_flight, record.action, record.policy_action, record.human_action]
    arrays += [behaviour.u, behaviour.mean, behaviour.log_std, *seen.images.values()]
    assert all(array.flags.owndata and array.flags.writeable for array in arrays)


def test_two_decoded_records_share_no_memory() -> None:
    first, second = decoded(frames_of()), decoded(frames_of())
    first.observation.images[DEPTH][:] = 7
    assert not (second.observation.images[DEPTH] == 7).any()


def test_images_are_decoded_into_the_given_buffers() -> None:
    mine, frames = allocate(ROBOT), frames_of()
    record = decode_record(unpack(frames[0]), frames[1:], ROBOT, TASK, lambda: mine)
    assert record.observation.images[DEPTH] is mine[DEPTH]


def test_a_record_without_images_takes_no_buffer() -> None:
    frames, taken = encode_record(step(), {}), []
    decode_record(unpack(frames[0]), [], ROBOT, TASK, lambda: taken.append(1))
    assert taken == []


def test_unknown_keys_are_ignored() -> None:
    assert_same(decoded(frames_of()), decoded(headed(colour={"of": ["the", "sky"]})))


def test_a_frame_with_height_and_width_swapped_is_refused() -> None:
    turned = {RGB: np.ascontiguousarray(pixels()[RGB].swapaxes(0, 1))}
    with pytest.raises(ProtocolError, match="10x6 pixels, expected 6x10"):
        decoded(encode_record(step(), RecordEncoder(ROBOT).encode_images(turned)))


MISSING = ("kind", "rover_id", "boot_id", "seq", "episode_id", "decision_id", "action", "source", "reward", "state")


@pytest.mark.parametrize(
    "key", [*MISSING, "task", "in_flight", "stamp_ns", "blobs", "episode_step", "tick_in_decision"]
)
def test_a_step_without_a_necessary_key_is_refused(key: str) -> None:
    with pytest.raises(ProtocolError):
        decoded(headed(**{key: None}))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": []},
        {"kind": {"a": 1}},
        {"kind": "stepp"},
        {"seq": -1},
        {"seq": 2**63},
        {"seq": 1.0},
        {"seq": True},
        {"source": "ghost"},
        {"purpose": "fun"},
        {"reward": "1"},
        {"terminated": 1},
        {"rover_id": b"x"},
        {"action": b"\0" * 7},
        {"action": [0.0, 0.0]},
        {"state": b""},
        {"behaviour": []},
        {"behaviour": {"kind": "categorical"}},
        {"behaviour": {"kind": "squashed_gaussian", "u": b""}},
        {"reward_terms": {"a": "b"}},
        {"reward_terms": {b"a": 1.0}},
        {"ages_ms": [1]},
        {"clearance_m": "near"},
        {"blobs": 3},
        {"blobs": []},
        {"blobs": [[RGB, JPEG]]},
        {"blobs": [[RGB, JPEG], [RGB, JPEG]]},
        {"blobs": [[RGB, JPEG], [[], DELTA]]},
        {"blobs": [[RGB, JPEG], [{}, DELTA]]},
        {"blobs": [[RGB, JPEG], ["observation.depth.rear", DELTA]]},
        {"blobs": [[RGB, JPEG], [DEPTH, JPEG]]},
        {"blobs": [[RGB, DELTA], [DEPTH, DELTA]]},
        {"blobs": [[RGB, JPEG], [DEPTH, []]]},
        {"blobs": [[RGB, JPEG], [DEPTH]]},
        {"blobs": [[RGB, JPEG], DEPTH]},
        {"blobs": [[RGB, JPEG], [DEPTH, RAW]]},
    ],
    ids=repr,
)
def test_a_wrong_field_is_a_protocol_error(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        decoded(headed(**change))


@pytest.mark.parametrize("kind", [[], {}, 3, None, "ping"])
def test_a_header_of_any_other_kind_is_no_record(kind: object) -> None:
    assert not record_kind({"kind": kind})


def test_an_end_with_an_unknown_reason_is_refused() -> None:
    end = EpisodeEnd("r", "b", 1, 1, 3, "bored", step().observation)
    with pytest.raises(ProtocolError, match="bored"):
        decoded(encode_record(end, {}))


def test_more_frames_than_cameras_are_refused() -> None:
    frames = frames_of()
    with pytest.raises(ProtocolError, match="blobs"):
        decoded([*frames, b"one more"])


def test_a_frame_much_larger_than_its_image_is_refused_unread() -> None:
    header, rgb, _ = frames_of()
    with pytest.raises(ProtocolError, match="for a frame of 120"):
        decoded([header, rgb, bytes(100_000)])


def test_a_zstd_bomb_in_a_record_is_refused() -> None:
    header, rgb, _ = headed(blobs=[[RGB, JPEG], [DEPTH, DELTA]])
    with pytest.raises(ProtocolError, match="states 33554432 bytes"):
        decoded([header, rgb, zstandard.compress(bytes(32 << 20))])


class Bad:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


PICKLES = [pickle.dumps(Bad(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


@pytest.mark.parametrize("content", PICKLES)
def test_a_pickle_as_header_is_refused_unexecuted(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(content)


@pytest.mark.parametrize("content", PICKLES)
@pytest.mark.parametrize("at", [1, 2])
def test_a_pickle_as_image_is_refused_unexecuted(content: bytes, at: int) -> None:
    frames = frames_of()
    frames[at] = content
    with pytest.raises(ProtocolError):
        decoded(frames)


@pytest.mark.parametrize("content", PICKLES)
def test_a_pickle_in_an_ignored_field_is_never_looked_at(content: bytes) -> None:
    assert_same(decoded(frames_of()), decoded(headed(extra=content)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion entries
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\x81\xa1a\xdb\xff\xff\xff\xff",  # a text of 4 GB
        b"\x81\xa1a\xc6\xff\xff\xff\xff",  # bytes of 4 GB
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x05",  # an extension of 4 GB
        b"\x81\xa1a\xd6\xff\0\0\0\0",  # a time stamp: no extension is spoken
        b"\x81\xa1a" + b"\x91" * 60_000,
        b"\x81\xa1a" + b"\x81\xa1a" * 20_000,
        b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\xa1\xff\x02",
        b"\x93\x01\x02\x03",
        b"\x81\xa1a\x02trailing",
        bytes(MAX_HEADER_BYTES + 1),
        msgpack.packb({"a": "x" * 5000}),
        msgpack.packb({"a": [0] * 5000}),
    ],
    ids=lambda content: content[:12].hex() or "empty",
)
def test_a_msgpack_bomb_or_foreign_form_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(content)


@pytest.mark.parametrize("depth", [16, 300, 1000])
def test_a_deeply_nested_header_is_refused_before_anyone_prints_it(depth: int) -> None:
    with pytest.raises(ProtocolError, match="within each other"):
        unpack(b"\x81\xa4kind" + b"\x91" * depth + b"\xc0")


def test_a_nesting_of_fifteen_is_legal() -> None:
    assert record_kind(unpack(b"\x81\xa4kind" + b"\x91" * 15 + b"\xc0")) is False


FRAMES = frames_of(step(policy_action=np.zeros(2, np.float32), clearance_m=0.5))


def only_protocol_errors(frames: list[bytes]) -> None:
    try:
        decoded(frames)
    except ProtocolError:
        return


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2), st.data())
def test_changed_or_cut_frames_give_a_record_or_a_protocol_error(index: int, data: st.DataObject) -> None:
    content = bytearray(FRAMES[index])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    start, end = data.draw(st.integers(0, 3)), data.draw(st.integers(0, len(content)))
    only_protocol_errors([bytes(content[start:end]) if i == index else each for i, each in enumerate(FRAMES)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=64), min_size=1, max_size=4))
def test_random_bytes_give_a_protocol_error_and_nothing_else(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decoded(frames)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=70, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(unpack(FRAMES[0]))), values, min_size=1, max_size=3))
def test_wrongly_typed_fields_give_a_record_or_a_protocol_error(changes: dict[str, object]) -> None:
    only_protocol_errors([pack({**unpack(FRAMES[0]), **changes}), *FRAMES[1:]])
