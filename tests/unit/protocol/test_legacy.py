"""Version 0: golden packets mean what they meant, and whatever else comes is refused by the field that is wrong."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.framing import ProtocolError
from protocol.images import decode_rgb, encode_rgb
from protocol.legacy import MAX_PACKET_BYTES, ROBOT, LegacyPacket, decode_legacy, encode_legacy
from tests.wire.generate_v0 import ACTION, FOLDER, METADATA, NO_READING, PROPRIO, metres, rgb

TAIL = 4 * (240 * 424 + 6 + 2)
GOLDEN = {path.name.removesuffix(".bin"): path.read_bytes() for path in sorted(FOLDER.glob("*.bin"))}
JPEG = GOLDEN["packet.jpeg"]


def parts(content: bytes = JPEG) -> tuple[dict[str, object], bytes, bytes]:
    """Return (metadata, image, numbers) of a packet."""
    (size,) = struct.unpack_from("<I", content)
    return json.loads(content[4 : 4 + size]), content[4 + size : -TAIL], content[-TAIL:]


def rebuilt(changes: dict[str, object] | None = None, *, image: bytes | None = None, numbers: bytes | None = None):
    """Return the golden packet with other parts."""
    metadata, golden_image, golden_numbers = parts()
    values = {k: v for k, v in {**metadata, **(changes or {})}.items() if v is not ...}
    text = json.dumps(values).encode()
    image = golden_image if image is None else image
    return struct.pack("<I", len(text)) + text + image + (golden_numbers if numbers is None else numbers)


def refusal(content: bytes) -> str:
    """Return the field that a packet is refused for."""
    with pytest.raises(ProtocolError) as caught:
        decode_legacy(content)
    return str(caught.value).partition(":")[0]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_packet_means_what_it_meant(name: str) -> None:
    packet = decode_legacy(GOLDEN[name])
    assert (packet.timestamp_s, packet.episode_step, packet.reward) == (1234567890.125, 42, 0.5)
    assert packet.done == (name == "packet.raw_done")
    np.testing.assert_array_equal(packet.proprio, PROPRIO)
    np.testing.assert_array_equal(packet.action, ACTION)


def test_golden_metres_become_millimetres_and_what_is_no_distance_becomes_zero() -> None:
    depth = decode_legacy(JPEG).depth_mm
    assert (depth.dtype, depth.shape) == (np.int16, (240, 424))
    count = len(NO_READING)
    assert depth[0, :count].tolist() == [0] * count
    assert (depth[0, count], depth[0, 423], depth[7, 53], depth[239, 0]) == (1000, 1007, 1701, 24900)


@pytest.mark.parametrize(("value_m", "value_mm"), [(32.767, 32767), (32.7678, 0), (0.0004, 0), (0.0006, 1), (-0.0, 0)])
def test_the_limits_of_depth(value_m: float, value_mm: int) -> None:
    depth = metres()
    depth[5, 9] = value_m
    packet = decode_legacy(JPEG)
    assert decode_legacy(encode_legacy(packet, depth_m=depth)).depth_mm[5, 9] == value_mm


def test_the_jpeg_is_passed_as_it_came() -> None:
    packet = decode_legacy(JPEG)
    assert packet.rgb == parts()[1]
    pixels = np.empty((240, 424, 3), np.uint8)
    decode_rgb(packet.rgb, pixels)
    assert np.abs(pixels.astype(int) - rgb()).max() <= 24


def test_raw_pixels_stand_in_their_rows_and_columns() -> None:
    np.testing.assert_array_equal(decode_legacy(GOLDEN["packet.raw_done"]).rgb, rgb())


def test_either_byte_order_of_the_length_gives_the_same_packet() -> None:
    little, big = decode_legacy(JPEG), decode_legacy(GOLDEN["packet.jpeg_big_endian"])
    assert (little.rgb, little.episode_step) == (big.rgb, big.episode_step)
    np.testing.assert_array_equal(little.depth_mm, big.depth_mm)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_encoder_writes_the_golden_bytes(name: str) -> None:
    big_endian = name.endswith("big_endian")
    assert encode_legacy(decode_legacy(GOLDEN[name]), depth_m=metres(), big_endian=big_endian) == GOLDEN[name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rgb_shape", [424, 240, 3]),
        ("depth_shape", [480, 848]),
        ("depth_shape", [1 << 60, 1 << 60]),
        ("proprio_shape", [7]),
        ("action_shape", 2),
        ("action_shape", ...),
        ("rgb_compressed", "yes"),
        ("rgb_compressed", ...),
        ("timestamp", float("nan")),
        ("timestamp", -1.0),
        ("timestamp", True),
        ("timestamp", 10**400),
        ("episode_step", -1),
        ("episode_step", 1.5),
        ("reward", "much"),
        ("reward", 10**400),
        ("done", 0),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    assert refusal(rebuilt({field: value})) == field


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "metadata_length"),
        (b"\x05\0\0", "metadata_length"),
        (b"\xff" * 64, "metadata_length"),
        (b"GET / HTTP/1.1\r\n\r\n", "metadata_length"),
        (struct.pack("<I", 2) + b"[]", "metadata"),
        (struct.pack("<I", 2) + b"{}", "rgb_shape"),
        (struct.pack("<I", 4) + b"\xff\xfe{}", "metadata"),
        (struct.pack("<I", 4096) + b"[" * 4096, "metadata"),
        (struct.pack("<I", 4097) + b" " * 4097, "metadata_length"),
        (JPEG[:-1], "rgb"),
        (JPEG + b"\0", "rgb"),
        (JPEG[: len(JPEG) // 2], "rgb"),
        (JPEG[:200] + bytes(100), "metadata"),
        (JPEG + bytes(MAX_PACKET_BYTES), "packet"),
    ],
)
def test_cut_and_foreign_bytes_are_refused(content: bytes, field: str) -> None:
    assert refusal(content) == field


@pytest.mark.parametrize("size", [(424, 240), (240, 425), (1, 1)])
def test_a_jpeg_of_another_size_is_refused_from_its_header(size: tuple[int, int]) -> None:
    assert refusal(rebuilt(image=encode_rgb(np.zeros((*size, 3), np.uint8)))) == "rgb"


@pytest.mark.parametrize("image", [b"", b"no jpeg", bytes(240 * 424 * 3)])
def test_an_image_that_is_none_is_refused(image: bytes) -> None:
    assert refusal(rebuilt(image=image)) == "rgb"


@pytest.mark.parametrize("size", [0, 240 * 424 * 3 - 1, 240 * 424 * 3 + 1])
def test_raw_pixels_of_another_size_are_refused(size: int) -> None:
    assert refusal(rebuilt({"rgb_compressed": False}, image=bytes(size))) == "rgb"


@pytest.mark.parametrize(("index", "field"), [(0, "proprio"), (5, "proprio"), (6, "action"), (7, "action")])
def test_numbers_that_are_not_finite_are_refused(index: int, field: str) -> None:
    numbers = np.frombuffer(parts()[2], "<f4").copy()
    numbers[240 * 424 + index] = np.nan
    assert refusal(rebuilt(numbers=numbers.tobytes())) == field


def test_nothing_ahead_is_the_far_end_of_the_range() -> None:
    numbers = np.frombuffer(parts()[2], "<f4").copy()
    numbers[240 * 424 + 5] = np.inf
    assert decode_legacy(rebuilt(numbers=numbers.tobytes())).proprio[5] == ROBOT.state[5].high


@pytest.mark.parametrize("reward", [float("nan"), float("-inf"), 3])
def test_a_reward_need_not_be_finite(reward: float) -> None:
    np.testing.assert_equal(decode_legacy(rebuilt({"reward": reward})).reward, float(reward))


def test_unknown_metadata_is_ignored() -> None:
    assert decode_legacy(rebuilt({"firmware": "3"})).episode_step == METADATA["episode_step"]


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0, 4e9), st.integers(0, 2**31 - 1), st.floats(allow_nan=False), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_any_packet_comes_back(timestamp: float, step: int, reward: float, done: bool, seed: int) -> None:  # noqa: FBT001
    rng = np.random.default_rng(seed)
    packet = LegacyPacket(
        timestamp_s=timestamp,
        episode_step=step,
        reward=reward,
        done=done,
        rgb=rng.integers(0, 256, (240, 424, 3), np.uint8),
        depth_mm=rng.integers(0, 32768, (240, 424)).astype(np.int16),
        proprio=rng.normal(size=6).astype(np.float32),
        action=rng.normal(size=2).astype(np.float32),
    )
    back = decode_legacy(encode_legacy(packet))
    for name in ("rgb", "depth_mm", "proprio", "action"):
        np.testing.assert_array_equal(getattr(back, name), getattr(packet, name))
    plain = {"rgb": b"", "depth_mm": None, "proprio": None, "action": None}
    assert replace(back, **plain) == replace(packet, **plain)
