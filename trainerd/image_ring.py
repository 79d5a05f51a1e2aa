"""Image memory of a lane: allocated and touched once, then used in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.framing import Buffers, allocate

if TYPE_CHECKING:
    from protocol.spec import RobotSpec


class ImageRing:
    """Pre-faulted image buffers of one lane, used in turn.

    A consumer may keep the images of two decisions; a decision has ``action_repeat`` records that may carry images.
    """

    def __init__(self, spec: RobotSpec) -> None:
        """Allocate for a robot's cameras."""
        self._buffers = [allocate(spec) for _ in range(2 * spec.action_repeat + 6)]
        self._next = 0

    def take(self) -> Buffers:
        """Return the buffers that were used longest ago."""
        buffers = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        return buffers
