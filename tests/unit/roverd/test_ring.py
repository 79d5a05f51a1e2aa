"""The image ring: one writer, and nobody else can change or resize it."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from roverd.control.ring import ALIGNMENT, SLOTS, RingError, RingReader, RingWriter, SlotKeeper
from tests.unit.protocol.samples import DEPTH, RGB, ROBOT, pixels


@pytest.fixture
def writer():
    ring = RingWriter(ROBOT.cameras)
    yield ring
    ring.close()


def reopened(ring: RingWriter, flags: int) -> int:
    """Open the memory anew, as another process could."""
    return os.open(f"/proc/self/fd/{ring.fd}", flags)


def test_a_reader_sees_what_the_writer_wrote(writer: RingWriter) -> None:
    reader = RingReader(os.dup(writer.fd), ROBOT.cameras)
    for key, image in pixels().items():
        writer.slots[3][key][:] = image
    assert all(np.array_equal(reader.slots[3][key], image) for key, image in pixels().items())


def test_slots_and_cameras_do_not_overlap(writer: RingWriter) -> None:
    for slot, views in enumerate(writer.slots):
        views[RGB][:] = slot
        views[DEPTH][:] = -slot
    assert [(v[RGB].max(), v[DEPTH].min()) for v in writer.slots] == [(slot, -slot) for slot in range(SLOTS)]


def test_every_frame_starts_aligned(writer: RingWriter) -> None:
    addresses = [view.__array_interface__["data"][0] for views in writer.slots for view in views.values()]
    assert [address % ALIGNMENT for address in addresses] == [0] * len(addresses)


def test_a_readers_views_are_read_only(writer: RingWriter) -> None:
    reader = RingReader(os.dup(writer.fd), ROBOT.cameras)
    with pytest.raises(ValueError, match="read-only"):
        reader.slots[0][DEPTH][0, 0] = 1


def test_a_readers_views_cannot_be_made_writable(writer: RingWriter) -> None:
    reader = RingReader(os.dup(writer.fd), ROBOT.cameras)
    with pytest.raises(ValueError, match="WRITEABLE"):
        reader.slots[0][DEPTH].flags.writeable = True


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_nobody_can_resize_the_ring(writer: RingWriter, size: int) -> None:
    fd = reopened(writer, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, size)
    os.close(fd)


def test_nobody_else_can_map_the_ring_writable(writer: RingWriter) -> None:
    fd = reopened(writer, os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)


def test_nobody_else_can_write_through_the_descriptor(writer: RingWriter) -> None:
    fd = reopened(writer, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    os.close(fd)


def test_a_reader_of_a_larger_robot_is_refused(writer: RingWriter) -> None:
    with pytest.raises(RingError):
        RingReader(os.dup(writer.fd), ROBOT.cameras * 50)


def test_a_refused_reader_leaks_no_descriptor(writer: RingWriter) -> None:
    fd = os.dup(writer.fd)
    with pytest.raises(RingError):
        RingReader(fd, ROBOT.cameras * 50)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_robot_without_cameras_has_a_ring_too() -> None:
    ring = RingWriter(())
    assert ring.slots == [{}] * SLOTS
    ring.close()


class TestSlots:
    """No slot is written while somebody may still read it."""

    def shown(self, keeper: SlotKeeper, count: int, now_ns: int = 0) -> list[int]:
        slots = []
        for generation in range(1, count + 1):
            slot = keeper.free(now_ns)
            assert slot is not None
            keeper.show(slot, generation, now_ns)
            slots.append(slot)
        return slots

    def test_slots_come_in_turn(self) -> None:
        assert self.shown(SlotKeeper(0), SLOTS) == [*range(1, SLOTS), 0]

    def test_a_slot_is_free_when_a_newer_one_was_acted_on(self) -> None:
        keeper = SlotKeeper(0)
        self.shown(keeper, SLOTS)
        assert keeper.free(0) is None
        keeper.applied(1)
        assert keeper.free(0) is None, "the very frame that was acted on may still be read"
        keeper.applied(2)
        assert keeper.free(0) == 1

    def test_a_slot_is_not_free_before_its_successor_is_old(self) -> None:
        keeper = SlotKeeper(100)
        self.shown(keeper, SLOTS, now_ns=50)
        keeper.applied(SLOTS)
        assert [keeper.free(now_ns) for now_ns in (50, 149, 150)] == [None, None, 1]

    def test_what_was_acted_on_never_goes_back(self) -> None:
        keeper = SlotKeeper(0)
        self.shown(keeper, SLOTS)
        keeper.applied(5)
        keeper.applied(1)
        assert keeper.free(0) == 1
