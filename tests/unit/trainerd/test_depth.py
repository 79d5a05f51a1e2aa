"""The compiled palette decoder and the one in numpy give the same pixels, and refuse the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import images
from protocol.images import PALETTE, DepthEncoder, ImageError, decode_depth
from trainerd.depth import install, unpalette


@pytest.fixture(scope="module", autouse=True)
def compiled():
    install()
    yield
    images.use_unpalette(images.unpalette)


@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_both_decode_any_frame_alike(height, width, values, seed):
    draw = np.random.default_rng(seed)
    palette = np.unique(draw.integers(0, 65536, values).astype(np.uint16))
    depth = palette[draw.integers(0, palette.size, (height, width))].view(np.int16)
    encoded = DepthEncoder()._palette(depth)
    slow, fast = np.zeros_like(depth), np.zeros_like(depth)
    decode_depth(PALETTE, encoded, fast)
    images.use_unpalette(images.unpalette)
    decode_depth(PALETTE, encoded, slow)
    images.use_unpalette(unpalette)
    np.testing.assert_array_equal(fast, depth)
    np.testing.assert_array_equal(slow, depth)


@pytest.mark.parametrize("function", [unpalette, images.unpalette])
def test_a_rank_beyond_the_palette_is_refused(function):
    images.use_unpalette(function)
    depth = np.array([[5, 5], [7, 9]], np.int16)
    content = bytearray(images._inflate(DepthEncoder()._palette(depth), 100))
    content[2 + 2 * 3] = 8  # the first pixel's difference: all ranks rise by 4
    with pytest.raises(ImageError, match="rank 6 of 3"):
        images._decode_palette(bytes(content), np.zeros_like(depth))
    images.use_unpalette(unpalette)
