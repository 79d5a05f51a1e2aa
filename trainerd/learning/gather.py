"""Fetch scattered rows of a rollout as network input, fast on one CPU core.

``images`` equals ``protocol.transform.InputTransform.image`` bit for bit. ``normalised`` and ``patches`` go on in the
same pass: they apply the per-pixel normaliser, round to bfloat16, and put channels last or cut patches, while a frame
is still in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.transform import CLIP, LUMA, NEAR_MM
from trainerd.compiled import njit

if TYPE_CHECKING:
    from protocol.transform import InputTransform
    from trainerd.learning.rollout import Rollout

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.generic]
Desk = tuple[Any, ...]
SIDE = 4
"""Side of a patch."""


class Gather:
    """Read network input from rollouts of one transform; not for two threads at once."""

    def __init__(self, transform: InputTransform) -> None:
        """Plan the planes, and set aside room for one frame."""
        self.transform = transform
        self._planes = [(p.camera, p.kind, p.channels) for p in transform.planes]
        self._frame = np.empty((transform.channels, transform.height, transform.width), np.float32)
        self._normal = np.empty((0, 0, 0), np.float32)
        self._halves = np.empty((0, 0, 0), np.uint16)
        self._rooms: dict[bool, Pixels] = {}
        self._centre = np.array([e.centre for e in transform.elements], np.float32)
        self._gain = np.array(
            [0.0 if e.name in transform.masked else 1.0 / e.scale for e in transform.elements], np.float32
        )

    def images(self, rollout: Rollout, rows: IntArray, out: FloatArray | None = None) -> FloatArray:
        """Return float32[B, C, H, W] of the given rows; writes into ``out`` where given."""
        shape = (len(rows), *self._frame.shape)
        out = np.empty(shape, np.float32) if out is None else out[: len(rows)]
        place = 0
        for camera, kind, channels in self._planes:
            _IMAGES[kind](rollout.images[camera], rows, out, place)
            place += channels
        return out

    def vectors(self, rollout: Rollout, rows: IntArray) -> FloatArray:
        """Return float32[B, n] of the given rows, as ``InputTransform.vector`` gives."""
        raw = np.concatenate((rollout.state[rows], rollout.task[rows], rollout.in_flight[rows]), axis=1)
        return np.asarray(np.clip((raw - self._centre) * self._gain, -CLIP, CLIP), np.float32)

    def normalised(self, rollout: Rollout, rows: IntArray, mean: FloatArray, gain: FloatArray, *, half: bool) -> Pixels:
        """Return normalised images [B, H, W, C], channels last; arguments and memory as those of ``patches``."""
        channels, height, width = self._frame.shape
        if self._normal.shape != self._frame.shape:
            self._normal = np.empty(self._frame.shape, np.float32)
            self._halves = np.empty(self._frame.shape, np.uint16)
        out = self._room((len(rows), height, width, channels), half=half)
        desk = (self._frame, mean, gain, self._normal, self._normal.view(np.uint32), self._halves, half)
        source = self._halves if half else self._normal
        place = 0
        for camera, kind, count in self._planes:
            _NORMALISED[kind](rollout.images[camera], rows, desk, source, out, place)
            place += count
        return out

    def patches(self, rollout: Rollout, rows: IntArray, mean: FloatArray, gain: FloatArray, *, half: bool) -> Pixels:
        """Return normalised 4x4 patches [B, H // 4, W // 4, C * 4 * 4], features ordered as a convolution's weights.

        Args:
            rollout: where the rows are.
            rows: int64[B].
            mean: float32[C, H, W] of the normaliser.
            gain: float32[C, H, W] of the normaliser.
            half: uint16 that hold bfloat16 (round to nearest even) in place of float32.

        The result is overwritten by the next call: fresh memory would cost more than the work (page faults).

        """
        depth, height, width = self._frame.shape
        down, across = height // SIDE, width // SIDE
        normal = np.empty((depth, down * SIDE, across * SIDE), np.float32)
        halves = np.empty(normal.shape, np.uint16)
        out = self._room((len(rows), down, across, depth * SIDE * SIDE), half=half)
        # Four values of a patch's row move as one word.
        words, target = (halves.view(np.uint64), out.view(np.uint64)) if half else _as_complex(normal, out)
        desk = (self._frame, mean, gain, normal, normal.view(np.uint32), halves, half)
        place = 0
        for camera, kind, channels in self._planes:
            _PATCHES[kind](rollout.images[camera], rows, desk, words, target, place)
            place += channels
        return out

    def _room(self, shape: tuple[int, ...], *, half: bool) -> Pixels:
        size = int(np.prod(shape))
        room = self._rooms.get(half)
        if room is None or room.size < size:
            room = self._rooms[half] = np.empty(size, np.uint16 if half else np.float32)
        return room[:size].reshape(shape)


def _as_complex(*arrays: Pixels) -> tuple[npt.NDArray[np.complex128], ...]:
    return tuple(array.view(np.complex128) for array in arrays)


# Each kernel turns one frame into planes. Flat loops over one plane let LLVM vectorise what pixels interleave (8 times
# faster); numba gives no fused multiply-add without fastmath, so results are numpy's.


@njit
def _rgb(frame: npt.NDArray[np.uint8], out: FloatArray, place: int) -> None:
    values = frame.reshape(frame.size)
    for c in range(3):
        plane = out[place + c].reshape(frame.size // 3)
        for i in range(plane.size):
            plane[i] = np.float32(values[3 * i + c]) / np.float32(255)


@njit
def _gray(frame: npt.NDArray[np.uint8], out: FloatArray, place: int) -> None:
    values = frame.reshape(frame.size)
    plane = out[place].reshape(frame.size // 3)
    for i in range(plane.size):
        red = np.float32(values[3 * i]) / np.float32(255) * np.float32(LUMA[0])
        green = np.float32(values[3 * i + 1]) / np.float32(255) * np.float32(LUMA[1])
        blue = np.float32(values[3 * i + 2]) / np.float32(255) * np.float32(LUMA[2])
        plane[i] = red + green + blue


@njit
def _inverse_depth(frame: npt.NDArray[np.int16], out: FloatArray, place: int) -> None:
    values = frame.reshape(frame.size)
    plane = out[place].reshape(frame.size)
    for i in range(plane.size):
        near = min(np.float32(1), np.float32(NEAR_MM) / np.float32(max(values[i], np.int16(1))))
        plane[i] = near if values[i] > 0 else np.float32(0)


@njit
def _rgb_images(source: Pixels, rows: IntArray, out: FloatArray, place: int) -> None:
    for b in range(rows.shape[0]):
        _rgb(source[rows[b]], out[b], place)


@njit
def _gray_images(source: Pixels, rows: IntArray, out: FloatArray, place: int) -> None:
    for b in range(rows.shape[0]):
        _gray(source[rows[b]], out[b], place)


@njit
def _inverse_depth_images(source: Pixels, rows: IntArray, out: FloatArray, place: int) -> None:
    for b in range(rows.shape[0]):
        _inverse_depth(source[rows[b]], out[b], place)


@njit
def _normalise(planes: FloatArray, mean: FloatArray, gain: FloatArray, normal: FloatArray, c: int) -> None:
    for y in range(normal.shape[1]):
        raw, centre, scale, row = planes[c, y], mean[c, y], gain[c, y], normal[c, y]
        for x in range(row.size):
            row[x] = (raw[x] - centre[x]) * scale[x]


@njit
def _round(bits: npt.NDArray[np.uint32], halves: npt.NDArray[np.uint16], c: int) -> None:
    for y in range(bits.shape[1]):
        full, half = bits[c, y], halves[c, y]
        for x in range(full.size):
            odd = (full[x] >> np.uint32(16)) & np.uint32(1)
            half[x] = np.uint16((full[x] + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@njit
def _cut(words: Pixels, out: Pixels, c: int) -> None:
    for y in range(words.shape[1]):
        row, part, place = words[c, y], out[y // 4], 4 * c + y % 4
        for k in range(row.size):
            part[k, place] = row[k]


@njit
def _finish(desk: Desk, words: Pixels, out: Pixels, place: int, channels: int) -> None:
    """Normalise ``channels`` planes from ``place`` on, round them, and move them into their patches."""
    planes, mean, gain, normal, bits, halves, is_half = desk
    for c in range(place, place + channels):
        _normalise(planes, mean, gain, normal, c)
        if is_half:
            _round(bits, halves, c)
        _cut(words, out, c)


@njit
def _interleave(desk: Desk, source: Pixels, out: Pixels, place: int, channels: int) -> None:
    """Normalise ``channels`` planes from ``place`` on, round them, and move them to the last axis."""
    planes, mean, gain, normal, bits, halves, is_half = desk
    for c in range(place, place + channels):
        _normalise(planes, mean, gain, normal, c)
        if is_half:
            _round(bits, halves, c)
        for y in range(source.shape[1]):
            row, target = source[c, y], out[y]
            for x in range(row.size):
                target[x, c] = row[x]


@njit
def _rgb_normalised(source: Pixels, rows: IntArray, desk: Desk, planes: Pixels, out: Pixels, place: int) -> None:
    for b in range(rows.shape[0]):
        _rgb(source[rows[b]], desk[0], place)
        _interleave(desk, planes, out[b], place, 3)


@njit
def _gray_normalised(source: Pixels, rows: IntArray, desk: Desk, planes: Pixels, out: Pixels, place: int) -> None:
    for b in range(rows.shape[0]):
        _gray(source[rows[b]], desk[0], place)
        _interleave(desk, planes, out[b], place, 1)


@njit
def _inverse_depth_normalised(
    source: Pixels, rows: IntArray, desk: Desk, planes: Pixels, out: Pixels, place: int
) -> None:
    for b in range(rows.shape[0]):
        _inverse_depth(source[rows[b]], desk[0], place)
        _interleave(desk, planes, out[b], place, 1)


@njit
def _rgb_patches(source: Pixels, rows: IntArray, desk: Desk, words: Pixels, out: Pixels, place: int) -> None:
    for b in range(rows.shape[0]):
        _rgb(source[rows[b]], desk[0], place)
        _finish(desk, words, out[b], place, 3)


@njit
def _gray_patches(source: Pixels, rows: IntArray, desk: Desk, words: Pixels, out: Pixels, place: int) -> None:
    for b in range(rows.shape[0]):
        _gray(source[rows[b]], desk[0], place)
        _finish(desk, words, out[b], place, 1)


@njit
def _inverse_depth_patches(source: Pixels, rows: IntArray, desk: Desk, words: Pixels, out: Pixels, place: int) -> None:
    for b in range(rows.shape[0]):
        _inverse_depth(source[rows[b]], desk[0], place)
        _finish(desk, words, out[b], place, 1)


_IMAGES = {"rgb": _rgb_images, "gray": _gray_images, "inverse_depth": _inverse_depth_images}
_NORMALISED = {"rgb": _rgb_normalised, "gray": _gray_normalised, "inverse_depth": _inverse_depth_normalised}
_PATCHES = {"rgb": _rgb_patches, "gray": _gray_patches, "inverse_depth": _inverse_depth_patches}
