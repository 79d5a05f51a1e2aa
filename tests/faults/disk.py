"""A small disk that can be filled up: tmpfs, which first writes short and then fails with ENOSPC, as real ones do."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.mounts import mount, unmount

if TYPE_CHECKING:
    from typing_extensions import Self

FILLER = "filler"
BLOCK = 4096


class SmallDisk:
    """A mounted tmpfs of a size; a context manager."""

    def __init__(self, root: Path, *, size_kb: int) -> None:
        self.root = root
        self._size_kb = size_kb

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", f"size={self._size_kb}k", "roverloop-test", str(self.root))
        return self

    def __exit__(self, *error: object) -> None:
        unmount(self.root)

    @property
    def free_bytes(self) -> int:
        space = os.statvfs(self.root)
        return space.f_bavail * space.f_frsize

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Use up the space but for this much."""
        with (self.root / FILLER).open("ab", buffering=0) as filler:
            while self.free_bytes - leave_bytes >= BLOCK:
                try:
                    filler.write(bytes(min(1 << 20, self.free_bytes - leave_bytes)))
                except OSError:
                    return

    def free(self) -> None:
        """Give the space back."""
        (self.root / FILLER).unlink(missing_ok=True)


@cache
def why_not() -> str:
    """Return why there can be no such disk here; empty where there can."""
    import tempfile

    if os.geteuid() != 0:
        return "a small disk needs root to mount a tmpfs"
    folder = Path(tempfile.mkdtemp(prefix="roverloop-small-"))
    try:
        with SmallDisk(folder / "disk", size_kb=64):
            pass
    except OSError as error:
        return f"a small disk cannot be made on this machine: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
