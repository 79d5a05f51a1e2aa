"""A spool whose disk works when it is told to, on a clock and an operating system that tests can break."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from roverd.segment import BootFacts, Files
from roverd.settings import SpoolSettings
from roverd.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

SPECS = "s" * 64


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FailingFiles(Files):
    """Takes only ``room`` more bytes, and fails the calls named in ``broken``."""

    def __init__(self, room: int = 1 << 60) -> None:
        self.room = room
        self.broken: set[str] = set()
        self.free = 1 << 50
        self.fails_with = errno.EIO
        self.sizes: dict[int, Path] = {}
        self.synced: dict[Path, int] = {}

    def _check(self, call: str) -> None:
        if call in self.broken:
            raise OSError(self.fails_with, os.strerror(self.fails_with))

    def open(self, path, flags):
        self._check("open")
        fd = super().open(path, flags)
        self.sizes[fd] = path
        return fd

    def writev(self, fd, buffers):
        self._check("writev")
        content = b"".join(buffers)
        if not self.room and content:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = os.write(fd, content[: self.room])
        self.room -= done
        return done

    def pread(self, fd, size, offset):
        self._check("pread")
        return super().pread(fd, size, offset)

    def fdatasync(self, fd):
        self._check("fdatasync")
        self.synced[self.sizes[fd]] = os.fstat(fd).st_size

    def truncate(self, fd, size):
        self._check("truncate")
        self.room += os.fstat(fd).st_size - size
        super().truncate(fd, size)

    def unlink(self, path):
        self._check("unlink")
        if path.exists() and path.suffix == ".seg":
            self.room += path.stat().st_size
        super().unlink(path)

    def sync_folder(self, path):
        self._check("sync_folder")

    def free_bytes(self, path):
        self._check("free_bytes")
        return min(self.free, self.room)

    def cut_power(self, kept: int = 0) -> None:
        """Leave of each file what was synced, and ``kept`` bytes of the rest."""
        for path in set(self.sizes.values()):
            if path.exists():
                size = path.stat().st_size
                os.truncate(path, min(size, self.synced.get(path, 0) + kept))


def content(seq: int, size: int = 4) -> list[bytes]:
    """Return two frames that tell their seq."""
    return [seq.to_bytes(4, "big"), bytes([seq % 251]) * size]


def number(frames: list[bytes]) -> int:
    return int.from_bytes(frames[0], "big")


class Rig:
    """Starts of one rover, one after the other, in one folder."""

    def __init__(self, folder: Path, *, files: Files | None = None, size: int = 4, **options) -> None:
        self.folder, self.size = folder, size
        self.files = files or FailingFiles()
        self.clock = Clock()
        self.options = options
        self.boot = -1
        self.spool = self.begin()

    def begin(self, specs: str = SPECS, rover_id: str = "rover-1", **changes) -> Spool:
        options = {**self.options, **changes}
        names = ("memory_mb", "sync_ms", "max_mb", "min_free_mb", "when_full")
        settings = SpoolSettings(**{name: options.pop(name) for name in names if name in options})
        segment_bytes = options.pop("segment_bytes", None)
        self.boot += 1
        self.seq = 0
        facts = BootFacts(rover_id, f"{self.boot:016x}", self.boot, specs, 1000 + self.boot)
        self.spool = Spool(settings, self.folder, facts, files=self.files, clock=self.clock, **options)
        if segment_bytes:
            self.spool.disk._segment_bytes = segment_bytes
        return self.spool

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            self.spool.append(self.seq, content(self.seq, self.size))
            self.seq += 1

    def work(self, seconds: float = 0.0) -> None:
        """Let the disk do what is due after so many seconds."""
        self.spool.disk.step()
        self.clock.now += seconds
        self.spool.disk.step()
        self.spool.collect()

    def settle(self) -> None:
        """Let everything become durable."""
        self.work(1.0)

    def forget(self) -> None:
        """Keep nothing in memory that is on disk."""
        limit, self.spool._memory_limit = self.spool._memory_limit, -1
        while self.spool._memory and next(iter(self.spool._memory)) < self.spool._durable:
            self.spool._free(next(iter(self.spool._memory)))
        self.spool._memory_limit = limit

    def send(self, credit: int = 1 << 30) -> list[tuple[str, int]]:
        """Send what may be sent, reading the disk where that is needed; return (boot, seq)."""
        sent, idle = [], 0
        while idle < 3:
            frames = self.spool.peek(credit)
            if frames is None:
                idle += 1
                self.work()
                continue
            idle = 0
            _, boot, seq = self.spool._chosen
            assert frames == content(seq, self.size), f"{boot.boot_id} {seq} is not what was appended"
            self.spool.mark_sent()
            sent.append((boot.boot_id, seq))
        return sent

    def seqs(self, credit: int = 1 << 30) -> list[int]:
        return [seq for _, seq in self.send(credit)]

    def welcome(self, **received) -> None:
        """Link anew, with a trainer that takes every boot."""
        self.spool.rewind()
        offered = {boot_id: received.get(boot_id, []) for boot_id in self.spool.offered_ids()}
        self.spool.welcome(offered)

    def acknowledge(self, *ranges: tuple[int, int]) -> int:
        return self.spool.acknowledge(self.spool.boot_id, ranges)

    def stop(self) -> None:
        self.spool.disk.finish()
        self.spool.collect()
        self.spool.disk.release_lock()

    def kill(self) -> None:
        disk = self.spool.disk
        if disk._fd >= 0:
            os.close(disk._fd)
        disk.release_lock()

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.seg"))
