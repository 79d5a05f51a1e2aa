"""What is shown to control: each observation's number, its images in the ring, and the SEEN message that names them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from protocol.framing import RecordEncoder
from protocol.images import JPEG, decode_rgb
from roverd.control import wire
from roverd.control.ring import RingWriter, SlotKeeper

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from plugins.contracts import Robot
    from protocol.step import FloatArray
    from roverd.control.ring import Views
    from roverd.episode import Encoded, Observed

RECENT = 16


class Showing:
    """Keep what was shown lately, by generation: APPLIED names the one that control acted on."""

    def __init__(
        self, robot: Robot, layout: wire.Layout, ring: RingWriter, counts: dict[str, int], *, reuse_after_ns: int
    ) -> None:
        """Begin with nothing shown.

        Args:
            robot: gives images where an observation came without.
            layout: how messages look.
            ring: where control and the policies find images.
            counts: ``dropped_frames`` is counted there.
            reuse_after_ns: two control periods, 0 in lock-step (see SlotKeeper).

        """
        self._robot, self._layout, self._ring, self._counts = robot, layout, ring, counts
        self._cameras = robot.spec.cameras
        self._encoder = RecordEncoder(robot.spec)
        self._slots = SlotKeeper(reuse_after_ns)
        self._recent: dict[int, Observed] = {}
        self._generation = 0
        self._first_generation = 0
        self._image_stamp_ns = 0
        self.current: Observed | None = None
        """What was shown last."""

    def begin_episode(self) -> None:
        """Forget what was shown before."""
        self._first_generation = self._generation + 1
        self._recent.clear()

    def show(self, seen: Observed, flags: int) -> bytes:
        """Put an observation into the ring; return the message that shows it to control."""
        self._generation += 1
        if seen.reading.images and self._fill_slot(seen):
            flags |= wire.IMAGES
        seen.image_stamp_ns = self._image_stamp_ns
        self.current = seen
        self._recent[self._generation] = seen
        self._recent.pop(self._generation - RECENT, None)
        return self._pack(seen, flags)

    def show_again(self, flags: int) -> bytes:
        """Return the message that shows the newest observation to a control that took over and has seen nothing yet."""
        assert self.current is not None  # noqa: S101 - an episode runs, so an observation was shown
        is_fresh = self._slots.newest and bool(self.current.reading.images)
        return self._pack(self.current, flags | (wire.IMAGES if is_fresh else 0))

    def _fill_slot(self, seen: Observed) -> bool:
        """Write images where nobody reads; where every slot may still be read they are dropped, and counted."""
        now_ns = time.monotonic_ns()
        slot = self._slots.free(now_ns)
        if slot is None:
            self._counts["dropped_frames"] += 1
            seen.reading.images = {}
            return False
        seen.encoded = self._encoder.encode_images(seen.reading.images)
        fill_slot(self._ring.slots[slot], seen.reading.images, seen.encoded)
        self._image_stamp_ns = seen.reading.stamp_ns
        self._slots.show(slot, self._generation, now_ns)
        return True

    def _pack(self, seen: Observed, flags: int) -> bytes:
        vector: FloatArray = np.concatenate((seen.reading.state, seen.task))
        slot, stamp_ns = self._slots.newest, seen.reading.stamp_ns
        shown = wire.Seen(flags, slot, self._generation, stamp_ns, seen.image_stamp_ns, tuple(vector.tolist()))
        return self._layout.pack_seen(shown)

    def applied(self, generation: int) -> None:
        """Note that control acted on a generation: nobody is asked about older ones any more."""
        self._slots.applied(generation)

    def acted_on(self, generation: int) -> Observed | None:
        """Return what control acted on; None where it was shown before this episode."""
        if generation < self._first_generation:
            return None
        seen = self._recent.get(generation, self.current)
        assert seen is not None  # noqa: S101 - an episode runs, so an observation was shown
        return seen

    def with_images(self, seen: Observed) -> Observed:
        """Return an observation with its images encoded, read now where it came without."""
        if self._cameras and not seen.encoded:
            reading = seen.reading
            if not reading.images:
                reading.images = self._robot.read(True).images
            seen.encoded = self._encoder.encode_images(reading.images)
        return seen

    def ages_ms(self) -> dict[str, float]:
        """How old the newest reading of each sensor is, by blob key; empty where nothing was shown yet."""
        if self.current is None:
            return {}
        now_ns = time.monotonic_ns()
        ages = {"state": (now_ns - self.current.reading.stamp_ns) * 1e-6}
        if self._image_stamp_ns:
            ages.update((camera.key, (now_ns - self._image_stamp_ns) * 1e-6) for camera in self._cameras)
        return ages


def fill_slot(slot: Views, images: Mapping[str, npt.NDArray[np.generic]], encoded: Encoded) -> None:
    """Write what the trainer will see into a slot: JPEGs as they decode; lossless frames need no decoding."""
    for key, (codec, content) in encoded.items():
        if codec == JPEG:
            decode_rgb(content, slot[key])
        else:
            np.copyto(slot[key], images[key])
