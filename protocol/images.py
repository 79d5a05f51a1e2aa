"""Encode RGB frames as JPEG and depth frames losslessly, and check every size before anything is allocated.

Depth codecs (a codec id travels with each frame): ``delta`` is left difference in zigzag order, byte split, zstd;
``palette`` ranks the distinct values first and takes a 2-D difference of the ranks, which wins where the camera
quantises disparity.
"""

from __future__ import annotations

import ctypes.util
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg
import zstandard

from protocol.errors import RoverError

Bytes = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.int16]

JPEG = "jpeg"
DELTA = "delta"
PALETTE = "palette"
RAW = "raw"
DEPTH_CODECS = (DELTA, PALETTE, RAW)
CODECS = (JPEG, *DEPTH_CODECS)

QUALITY = 85
MAX_PALETTE = 2048
"""More distinct depths than this and the palette no longer pays."""
TRIAL_EVERY = 64
"""Every so many frames both depth codecs are tried and the smaller one kept until the next trial."""
PALETTE_GAIN = 0.95
"""The palette costs more time, so it is kept only where its frame is smaller than this share of the other's."""
PARAMETERS = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, write_content_size=True)
"""Longer matches than level 1 looks for by itself: 2 % smaller here, and a tenth less time to decode."""
NEGATIVE = np.uint64(0x8000_8000_8000_8000)
"""The signs of four 16-bit numbers."""
MAX_SHAPES = 16
"""Sizes of frames for which a thread keeps memory."""
MAX_WINDOW_BYTES = 1 << 23
"""Largest window that a zstd frame may ask the decoder to allocate."""
SCAN = b"\xff\xda"
MAX_SCANS = 16
"""Scans of a JPEG (a progressive one has ten): each costs a pass over the image, and ten bytes make one."""


class ImageError(RoverError):
    """A frame cannot be encoded, or its bytes are not a frame of the expected size."""


JPEG_ERRORS = (ValueError, OSError, LookupError, RuntimeError, TypeError)
"""What the libraries raise on bytes that are no JPEG for them: simplejpeg a KeyError on an unknown subsampling."""


class JpegLibrary(Protocol):
    """What both JPEG libraries are reduced to."""

    name: str

    def encode(self, rgb: Bytes) -> bytes:
        """Return the JPEG of uint8[H, W, 3]."""

    def size(self, jpeg: bytes) -> tuple[int, int]:
        """Return (height, width) from the header alone; raises one of JPEG_ERRORS."""

    def decode(self, jpeg: bytes, out: Bytes) -> None:
        """Decode into uint8[H, W, 3]; raises one of JPEG_ERRORS."""


class _SimpleJpeg:
    name = "simplejpeg"

    def encode(self, rgb: Bytes) -> bytes:
        return bytes(simplejpeg.encode_jpeg(rgb, quality=QUALITY, colorspace="RGB", colorsubsampling="420"))

    def size(self, jpeg: bytes) -> tuple[int, int]:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        return int(height), int(width)

    def decode(self, jpeg: bytes, out: Bytes) -> None:
        simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=out)


class _PyTurboJpeg:
    name = "PyTurboJPEG"

    def __init__(self) -> None:
        import turbojpeg  # noqa: PLC0415 - loads the system's libturbojpeg, which may be absent

        self._rgb: int = turbojpeg.TJPF_RGB
        self._420: int = turbojpeg.TJSAMP_420
        self._library: Any = turbojpeg.TurboJPEG()

    def encode(self, rgb: Bytes) -> bytes:
        return bytes(self._library.encode(rgb, quality=QUALITY, pixel_format=self._rgb, jpeg_subsample=self._420))

    def size(self, jpeg: bytes) -> tuple[int, int]:
        width, height, _, _ = self._library.decode_header(jpeg)
        return int(height), int(width)

    def decode(self, jpeg: bytes, out: Bytes) -> None:
        self._library.decode(jpeg, pixel_format=self._rgb, dst=out)


@lru_cache(maxsize=1)
def jpeg_library() -> JpegLibrary:
    """Return PyTurboJPEG where the system's libturbojpeg is installed and fits it, else simplejpeg."""
    if ctypes.util.find_library("turbojpeg"):
        try:
            return _PyTurboJpeg()
        except (ImportError, OSError, RuntimeError, AttributeError):  # a libturbojpeg that PyTurboJPEG cannot drive
            return _SimpleJpeg()
    return _SimpleJpeg()


def encode_rgb(rgb: Bytes) -> bytes:
    """Return uint8[H, W, 3] as JPEG, quality 85, 4:2:0; a view with any strides will do."""
    return jpeg_library().encode(np.ascontiguousarray(rgb))


def decode_rgb(jpeg: bytes, out: Bytes) -> None:
    """Decode a JPEG into ``out``, uint8[H, W, 3]; raises ImageError unless the header says exactly that size."""
    check_jpeg(jpeg, out.shape[0], out.shape[1])
    try:
        jpeg_library().decode(jpeg, out)
    except JPEG_ERRORS as error:
        raise ImageError(f"JPEG of {len(jpeg)} bytes: {error!r}") from error


def check_jpeg(jpeg: bytes, height: int, width: int) -> None:
    """Raise ImageError unless the header says exactly this size and the work is bounded; nothing is decoded."""
    try:
        size = jpeg_library().size(jpeg)
    except JPEG_ERRORS as error:
        raise ImageError(f"JPEG of {len(jpeg)} bytes: {error!r}") from error
    if size != (height, width):
        raise ImageError(f"JPEG header: {size[0]}x{size[1]} pixels, expected {height}x{width}")
    scans, place = 0, jpeg.find(SCAN)  # find() is many times faster here than count()
    while place >= 0:
        scans, place = scans + 1, jpeg.find(SCAN, place + len(SCAN))
        if scans > MAX_SCANS:
            raise ImageError(f"JPEG: more than {MAX_SCANS} scans")


class DepthEncoder:
    """Choose the depth codec of one camera frame by frame; not thread-safe."""

    def __init__(self) -> None:
        """Start with a trial on the first frame."""
        self._frames = 0
        self._codec = DELTA
        self._zstd = zstandard.ZstdCompressor(compression_params=PARAMETERS)

    def encode(self, depth: Depth) -> tuple[str, bytes]:
        """Return (codec id, bytes) of int16[H, W] millimetres."""
        trial = self._frames % TRIAL_EVERY == 0
        self._frames += 1
        if trial:
            delta, palette = self._delta(depth), self._palette(depth)
            if palette is not None and len(palette) < PALETTE_GAIN * len(delta):
                self._codec = PALETTE
                return PALETTE, palette
            self._codec = DELTA
            return DELTA, delta
        if self._codec == PALETTE:
            encoded_or_none = self._palette(depth)
            if encoded_or_none is not None:
                return PALETTE, encoded_or_none
        return DELTA, self._delta(depth)

    def _delta(self, depth: Depth) -> bytes:
        values = np.ascontiguousarray(depth).view(np.uint16)
        difference = values.copy()
        difference[:, 1:] -= values[:, :-1]
        return self._zstd.compress(_split(_zigzag(difference)))

    def _palette(self, depth: Depth) -> bytes | None:
        values = np.ascontiguousarray(depth).view(np.uint16)
        present = np.zeros(65536, np.bool_)
        present[values] = True
        palette = np.flatnonzero(present).astype(np.uint16)
        if palette.size > MAX_PALETTE:
            return None
        rank_of = np.zeros(65536, np.uint16)
        rank_of[palette] = np.arange(palette.size, dtype=np.uint16)
        rank = rank_of[values]
        difference = rank.copy()
        difference[:, 1:] -= rank[:, :-1]
        second = difference.copy()
        second[1:] -= difference[:-1]
        head = np.diff(palette, prepend=np.uint16(0)).astype(np.uint16)
        return self._zstd.compress(np.uint16(palette.size).tobytes() + _split(head) + _split(_zigzag(second)))


def decode_depth(codec: str, encoded: bytes, out: Depth) -> None:
    """Decode into ``out``, int16[H, W] millimetres; raises ImageError on any other size or an unknown codec."""
    size = out.size * 2
    if codec == RAW:
        if len(encoded) != size:
            raise ImageError(f"raw depth: {len(encoded)} bytes, expected {size}")
        out[...] = np.frombuffer(encoded, np.int16).reshape(out.shape)
    elif codec == DELTA:
        planes = _planes(out.shape)
        _joined(_inflate(encoded, size), out.size, planes.first.reshape(-1))
        _signed(planes.first, planes.second)
        np.cumsum(planes.first, axis=1, dtype=np.uint16, out=out.view(np.uint16))
    elif codec == PALETTE:
        _decode_palette(_inflate(encoded, size + 2 + 2 * MAX_PALETTE), out)
    else:
        raise ImageError(f"depth codec {codec!r} is none of {DEPTH_CODECS}")


def _decode_palette(encoded: bytes, out: Depth) -> None:
    content = memoryview(encoded)
    count = int.from_bytes(content[:2], "little")
    if len(content) != 2 + 2 * count + 2 * out.size:
        raise ImageError(f"palette depth: {len(content)} bytes with {count} values, expected {out.size} pixels")
    palette = np.cumsum(_joined(content[2 : 2 + 2 * count], count), dtype=np.uint16)
    low, high = np.frombuffer(content[2 + 2 * count :], np.uint8).reshape(2, out.size)
    highest = _unpalette(low, high, palette, out.view(np.uint16))
    if count == 0 or highest >= count:
        raise ImageError(f"palette depth: rank {highest} of {count} values")


Unpalette = Callable[[Bytes, Bytes, npt.NDArray[np.uint16], npt.NDArray[np.uint16]], int]
"""Of low and high bytes of the differences, a palette and where to write, to the highest rank."""


def use_unpalette(function: Unpalette) -> None:
    """Decode palettes with another function of the same results, such as one in compiled code."""
    global _unpalette  # noqa: PLW0603 - set once, at the start of a process
    _unpalette = function


def unpalette(low: Bytes, high: Bytes, palette: npt.NDArray[np.uint16], out: npt.NDArray[np.uint16]) -> int:
    """Decode zigzag 2-D differences of ranks, given as uint8[H * W] low and high bytes, into ``out``, uint16[H, W].

    Returns:
        The highest rank that stood there; where it is no rank of the palette, ``out`` is not to be used.

    """
    planes = _planes(out.shape)
    rank, other = planes.first, planes.second
    flat = rank.reshape(-1)
    np.multiply(high, 256, dtype=np.uint16, out=flat)
    flat += low
    _signed(rank, other)
    np.cumsum(rank, axis=1, dtype=np.uint16, out=other)
    _sum_rows(other, rank)
    highest = int(rank.max())
    if highest < palette.size:
        np.copyto(planes.index, rank)
        np.take(palette, planes.index, out=out, mode="clip")  # all are in range; "raise" would make a copy
    return highest


_unpalette: Unpalette = unpalette


class _Planes:
    """Memory of a size of frames, touched once: to allocate it for each frame costs more than to decode one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.first = np.zeros(shape, np.uint16)
        self.second = np.zeros(shape, np.uint16)
        self.index = np.zeros(shape, np.intp)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.planes: dict[tuple[int, ...], _Planes] = {}
        self.zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)


_of_thread = _OfThread()


def _planes(shape: tuple[int, ...]) -> _Planes:
    by_shape = _of_thread.planes
    planes = by_shape.get(shape)
    if planes is None:
        if len(by_shape) >= MAX_SHAPES:
            by_shape.clear()
        planes = by_shape[shape] = _Planes(shape)
    return planes


def _sum_rows(difference: npt.NDArray[np.uint16], out: npt.NDArray[np.uint16]) -> None:
    """Write into ``out`` each row plus those above it; exact for sums below 2 ** 15, as all ranks of a palette are.

    Four columns are added as one number: a negative difference borrows from the column beside it, and gives back what
    it borrowed once its sum is no longer negative. Numpy sums columns one by one, so this takes a third of the time.
    ``difference`` is overwritten.
    """
    if difference.shape[1] % 4:
        np.cumsum(difference, axis=0, dtype=np.uint16, out=out)
        return
    four, sums = difference.view(np.uint64), out.view(np.uint64)
    np.bitwise_and(four, NEGATIVE, out=sums)
    sums <<= np.uint64(1)
    four -= sums
    np.cumsum(four, axis=0, dtype=np.uint64, out=sums)


def _zigzag(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return differences (modulo 2 ** 16) such that small ones of either sign are small numbers."""
    signed = values.view(np.int16)
    return ((signed << 1) ^ (signed >> 15)).view(np.uint16)


def _signed(values: npt.NDArray[np.uint16], room: npt.NDArray[np.uint16]) -> None:
    """Undo ``_zigzag`` in place; ``room`` has the same shape and is overwritten."""
    np.bitwise_and(values, 1, out=room)
    np.negative(room, out=room)
    values >>= 1
    values ^= room


def _split(values: npt.NDArray[np.uint16]) -> bytes:
    return bytes(values.view(np.uint8).reshape(-1, 2).T.tobytes())


def _joined(
    content: bytes | memoryview, count: int, out: npt.NDArray[np.uint16] | None = None
) -> npt.NDArray[np.uint16]:
    if len(content) != 2 * count:
        raise ImageError(f"depth: {len(content)} bytes after decompression, expected {2 * count}")
    low, high = np.frombuffer(content, np.uint8).reshape(2, count)
    values = np.empty(count, np.uint16) if out is None else out
    np.multiply(high, 256, dtype=np.uint16, out=values)
    values += low
    return values


def _inflate(encoded: bytes, limit: int) -> bytes:
    """Decompress at most ``limit`` bytes.

    ZstdDecompressor.decompress ignores its limit when the frame states a content size (python-zstandard#332), so the
    stated size, which is what it then allocates, is checked first; a frame that states none counts as endless.
    """
    try:
        stated = zstandard.get_frame_parameters(encoded).content_size
        if stated > limit:
            raise ImageError(f"depth: zstd frame states {stated} bytes, expected at most {limit}")
        content = _of_thread.zstd.decompress(encoded)
    except zstandard.ZstdError as error:
        raise ImageError(f"depth of {len(encoded)} bytes: {error}") from error
    if len(content) > limit:
        raise ImageError(f"depth: zstd frame holds more than {limit} bytes")
    return bytes(content)
