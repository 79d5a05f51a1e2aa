"""Codecs: depth comes back bit for bit, and no bytes make the decoder allocate more than the frame."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.images import (
    DELTA,
    MAX_PALETTE,
    PALETTE,
    RAW,
    TRIAL_EVERY,
    DepthEncoder,
    ImageError,
    decode_depth,
    decode_rgb,
    encode_rgb,
    jpeg_library,
)
from tests.unit.protocol.samples import RGB, pixels


def ramp(height: int = 60, width: int = 80) -> np.ndarray:
    return (400 + 10 * np.arange(height)[:, None] + np.arange(width)[None, :]).astype(np.int16)


def noise(high: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(-high, high, (height, width)).astype(np.int16)


def quantised() -> np.ndarray:
    """Return what a stereo camera gives: few disparities, far apart in depth."""
    disparity = np.random.default_rng(2).integers(20, 60, (60, 80))
    return (60_000 // disparity).astype(np.int16)


def decoded(codec: str, content: bytes, like: np.ndarray) -> np.ndarray:
    out = np.empty_like(like)
    decode_depth(codec, content, out)
    return out


FRAMES = {
    "zeros": np.zeros((60, 80), np.int16),
    "minus one": np.full((60, 80), -1, np.int16),
    "smooth": ramp(),
    "full range": noise(32767),
    "quantised": quantised(),
    "one pixel": np.array([[5]], np.int16),
    "one column": ramp(60, 1),
    "limits": np.array([[-32768, 32767, 0], [-1, 1, -32768]], np.int16),
}


@pytest.mark.parametrize("name", FRAMES)
def test_depth_comes_back_bit_for_bit(name: str) -> None:
    frame = FRAMES[name]
    np.testing.assert_array_equal(decoded(*DepthEncoder().encode(frame), frame), frame)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("codec", [DELTA, PALETTE])
def test_either_codec_is_bit_exact(name: str, codec: str) -> None:
    frame, encoder = FRAMES[name], DepthEncoder()
    content = encoder._delta(frame) if codec == DELTA else encoder._palette(frame)
    if content is not None:
        np.testing.assert_array_equal(decoded(codec, content, frame), frame)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_depth_comes_back_bit_for_bit(frame: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(*DepthEncoder().encode(frame), frame), frame)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_palette_frame_comes_back_bit_for_bit(frame: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(PALETTE, DepthEncoder()._palette(frame), frame), frame)


def test_a_view_with_strides_is_encoded_as_it_looks() -> None:
    frame = ramp()[:, ::-1]
    np.testing.assert_array_equal(decoded(*DepthEncoder().encode(frame), frame), frame)


def test_the_palette_wins_where_depth_is_quantised() -> None:
    assert DepthEncoder().encode(quantised())[0] == PALETTE


def test_delta_wins_on_a_slope() -> None:
    assert DepthEncoder().encode(ramp(240, 424))[0] == DELTA


@pytest.mark.parametrize(("distinct", "is_none"), [(MAX_PALETTE, False), (MAX_PALETTE + 1, True)])
def test_the_palette_gives_up_beyond_its_limit(distinct: int, is_none: bool) -> None:  # noqa: FBT001
    frame = (np.arange(4800) % distinct).astype(np.int16).reshape(60, 80)
    assert (DepthEncoder()._palette(frame) is None) == is_none


def test_a_frame_with_too_many_depths_falls_back_though_the_palette_was_chosen() -> None:
    encoder = DepthEncoder()
    encoder.encode(quantised())
    assert encoder.encode(noise(32767))[0] == DELTA


def test_the_choice_is_kept_until_the_next_trial() -> None:
    encoder = DepthEncoder()
    codecs = [encoder.encode(quantised() if index == 0 else FRAMES["zeros"])[0] for index in range(TRIAL_EVERY + 1)]
    assert codecs == [PALETTE] * TRIAL_EVERY + [DELTA]


@pytest.mark.parametrize("codec", [DELTA, PALETTE, RAW, "lz4"])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"no zstd frame", zstandard.compress(b""), zstandard.compress(b"\0\0")]
)
def test_bytes_of_another_form_are_refused(codec: str, content: bytes) -> None:
    with pytest.raises(ImageError):
        decoded(codec, content, ramp())


def test_a_depth_frame_of_swapped_size_with_more_pixels_is_refused() -> None:
    codec, content = DepthEncoder().encode(ramp(60, 80))
    with pytest.raises(ImageError):
        decoded(codec, content, ramp(80, 61))


def bomb(*, states_size: bool) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=states_size)
    return compressor.compress(bytes(64 << 20))


@pytest.mark.parametrize("codec", [DELTA, PALETTE])
@pytest.mark.parametrize("states_size", [True, False])
def test_a_zstd_bomb_is_refused_before_it_is_inflated(codec: str, states_size: bool) -> None:  # noqa: FBT001
    content, frame = bomb(states_size=states_size), ramp()
    tracemalloc.start()
    with pytest.raises(ImageError):
        decoded(codec, content, frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_zstd_frame_that_lies_about_its_size_is_refused() -> None:
    content = bytearray(zstandard.ZstdCompressor(level=1).compress(bytes(2 * 4800 - 1)))
    with pytest.raises(ImageError):
        decoded(DELTA, bytes(content), ramp())


def palette_content(count: int, values: list[int], ranks: np.ndarray) -> bytes:
    head = np.diff(np.array(values, np.uint16), prepend=np.uint16(0)).astype(np.uint16)
    planes = b"".join(a.view(np.uint8).reshape(-1, 2).T.tobytes() for a in (head, ranks.astype(np.uint16)))
    return zstandard.compress(count.to_bytes(2, "little") + planes)


@pytest.mark.parametrize("count", [0, 1, 3, 65535])
def test_a_palette_whose_count_does_not_fit_is_refused(count: int) -> None:
    with pytest.raises(ImageError):
        decoded(PALETTE, palette_content(count, [5, 9], np.zeros(6)), np.zeros((2, 3), np.int16))


def test_a_rank_beyond_the_palette_is_refused() -> None:
    with pytest.raises(ImageError, match="rank"):
        decoded(PALETTE, palette_content(2, [5, 9], np.array([8, 0, 0, 0, 0, 0])), np.zeros((2, 3), np.int16))


def test_raw_depth_is_taken_as_it_is() -> None:
    np.testing.assert_array_equal(decoded(RAW, ramp().tobytes(), ramp()), ramp())


def test_a_jpeg_comes_back_within_its_loss() -> None:
    rgb = np.repeat(np.repeat(pixels()[RGB], 8, axis=0), 8, axis=1)
    out = np.empty_like(rgb)
    decode_rgb(encode_rgb(rgb), out)
    assert np.abs(out.astype(int) - rgb).mean() < 6


def test_a_jpeg_of_swapped_size_is_refused() -> None:
    with pytest.raises(ImageError, match="6x10 pixels, expected 10x6"):
        decode_rgb(encode_rgb(pixels()[RGB]), np.empty((10, 6, 3), np.uint8))


def oversized(jpeg: bytes, size: int) -> bytes:
    """Return a JPEG whose header says another size."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + 2 * size.to_bytes(2, "big") + jpeg[at + 4 :]


def test_a_jpeg_header_of_a_huge_size_is_refused_from_its_header_alone() -> None:
    content, out = oversized(encode_rgb(pixels()[RGB]), 65500), np.empty((6, 10, 3), np.uint8)
    with pytest.raises(ImageError, match="65500x65500 pixels, expected 6x10"):
        decode_rgb(content, out)


@pytest.mark.parametrize("size", [0, 65535])
def test_a_jpeg_header_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ImageError):
        decode_rgb(oversized(encode_rgb(pixels()[RGB]), size), np.empty((6, 10, 3), np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_jpeg_is_an_image_error_or_an_image(data: st.DataObject) -> None:
    content = bytearray(encode_rgb(pixels()[RGB]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        decode_rgb(bytes(content[:cut]), np.empty((6, 10, 3), np.uint8))
    except ImageError:
        return


def test_some_jpeg_library_is_there() -> None:
    assert jpeg_library().name in {"simplejpeg", "PyTurboJPEG"}
