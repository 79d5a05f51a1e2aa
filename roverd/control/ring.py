"""The image ring: a sealed memfd that roverd writes and the other processes map read-only.

It has no name in any file system and vanishes with its last holder. Ownership of a slot travels by message (SEEN, TICK,
PROPOSAL, APPLIED), so no reader needs a lock: see wire.py. Another process can neither resize it nor map it writable.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import Camera

SLOTS = 8
"""Enough for the frames of two periods at 30 frames/s, and three to spare."""
ALIGNMENT = 64
F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; Python has no constant for it

Views = dict[str, npt.NDArray[Any]]


class RingError(RoverError):
    """The ring cannot be made or mapped."""


def _offsets(cameras: Sequence[Camera]) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for camera in cameras:
        offsets[camera.key] = end
        end += -(-camera.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, max(end, ALIGNMENT)


def _views(buffer: mmap.mmap, cameras: Sequence[Camera]) -> list[Views]:
    offsets, slot_bytes = _offsets(cameras)
    return [
        {
            c.key: np.frombuffer(buffer, c.dtype, int(np.prod(c.shape)), slot * slot_bytes + offsets[c.key]).reshape(
                c.shape
            )
            for c in cameras
        }
        for slot in range(SLOTS)
    ]


class RingWriter:
    """Roverd's side: makes the memfd, keeps the only writable mapping, hands out slots in turn."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        """Create, map and seal; raises RingError where the kernel refuses."""
        size = SLOTS * _offsets(cameras)[1]
        try:
            self.fd = os.memfd_create("roverloop-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            raise RingError(f"image ring of {size} bytes: {error}; Linux 5.1 or newer is needed") from error
        self.slots = _views(self._map, cameras)

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last view and the last other holder are gone."""
        os.close(self.fd)


class SlotKeeper:
    """Say which slot may be written, so that no reader's slot is written while it reads.

    A slot is free again when (a) APPLIED has named a generation newer than the slot's, so that nobody is asked about it
    any more, and (b) some time has passed since its successor was shown, for a standby that reads it without being
    waited for. What a process that stood still in the middle of a frame then reads may be torn, but its proposal is for
    a tick that is past, and is refused.
    """

    def __init__(self, reuse_after_ns: int) -> None:
        """Begin with every slot free; ``reuse_after_ns`` is two control periods, 0 in lock-step."""
        self._reuse_after_ns = reuse_after_ns
        self._generations = [0] * SLOTS
        self._succeeded_ns = [0] * SLOTS
        self._applied = 0
        self.newest = 0

    def free(self, now_ns: int) -> int | None:
        """Return the slot to write next, None where it may still be read: then the frame is dropped."""
        slot = (self.newest + 1) % SLOTS
        if self._generations[slot] == 0:
            return slot
        is_past = self._generations[slot] < self._applied
        return slot if is_past and now_ns - self._succeeded_ns[slot] >= self._reuse_after_ns else None

    def show(self, slot: int, generation: int, now_ns: int) -> None:
        """Note that a slot holds the images of a generation, and who is its predecessor."""
        self._succeeded_ns[self.newest] = now_ns
        self._generations[slot] = generation
        self.newest = slot

    def applied(self, generation: int) -> None:
        """Note that control acted on a generation."""
        self._applied = max(self._applied, generation)


class RingReader:
    """Another process's read-only view of the slots."""

    def __init__(self, fd: int, cameras: Sequence[Camera]) -> None:
        """Map the ring; closes ``fd``."""
        size = SLOTS * _offsets(cameras)[1]
        try:
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise RingError(f"image ring of {size} bytes: {error}") from error
        finally:
            os.close(fd)
        self.slots = _views(self._map, cameras)
