"""A disk whose power can be cut: ext4 in a file, shut down without writing its journal or anything not yet synced."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.mounts import mount, run, unmount

if TYPE_CHECKING:
    from typing_extensions import Self

EXT4_IOC_SHUTDOWN = 0x8004587D
NOLOGFLUSH = 2
RESERVE_NAME = "filler"


class Disk:
    """A mounted disk; a context manager. What runs on it must be stopped before ``restore``."""

    def __init__(self, folder: Path, *, size_mb: int = 96) -> None:
        self.root = folder / "disk"
        """Where it is mounted."""
        self.cuts = 0
        self._copies = 0
        self._image = folder / "disk.img"
        self._size_mb = size_mb

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(self._size_mb << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self._mount()
        return self

    def __exit__(self, *error: object) -> None:
        unmount(self.root)
        self._image.unlink(missing_ok=True)

    def cut(self) -> None:
        """Cut the power: nothing that was not synced reaches the disk; every call on it fails from now on."""
        self.cuts += 1
        place = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(place, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(place)

    def restore(self) -> None:
        """Switch on again: what the journal holds is replayed.

        It is a copy that is mounted: another process's mount namespace may keep the dead file system alive for a while,
        and the kernel would give that one back for the same file.
        """
        unmount(self.root)
        self._copies += 1
        dead, self._image = self._image, self._image.with_name(f"disk-{self._copies}.img")
        run("cp", "--sparse=always", str(dead), str(self._image))
        dead.unlink()
        self._mount()

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Use up the space but for this much."""
        space = os.statvfs(self.root)
        size = space.f_bavail * space.f_frsize - leave_bytes
        if size > 0:
            with (self.root / RESERVE_NAME).open("ab") as filler:
                try:
                    os.posix_fallocate(filler.fileno(), filler.tell(), size)
                except OSError:  # its own bookkeeping took the last blocks: as full as can be
                    _write_until_full(filler.fileno())

    def free(self) -> None:
        """Give the space back."""
        (self.root / RESERVE_NAME).unlink(missing_ok=True)

    def _mount(self) -> None:
        mount("-o", "loop", str(self._image), str(self.root))


def _write_until_full(descriptor: int) -> None:
    for size in (1 << 20, 4096):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError:
            continue


@cache
def why_not() -> str:
    """Return why there can be no such disk here; empty where there can."""
    if os.geteuid() != 0:
        return "a power cut needs root to mount a file system"
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"a power cut needs {tool}"
    if not Path("/dev/loop-control").exists():
        return "a power cut needs a loop device"
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="roverloop-cut-"))
    try:
        with Disk(folder, size_mb=8) as disk:
            disk.cut()
            disk.restore()
    except (OSError, subprocess.SubprocessError) as error:
        return f"a power cut cannot be made on this machine: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
