"""One episode's file while it is appended to: groups, the summary, and the way back when the disk says no."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trainerd.episodes import mcap
from trainerd.episodes.records import EPISODE_METADATA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainerd.episodes.mcap import ChunkBuilder, Group, Prologue
    from trainerd.episodes.records import Facts

_MODE = 0o640


class EpisodeWriter:
    """Append to an episode's file; belongs to the store's thread, but for ``sync``."""

    def __init__(
        self,
        path: Path,
        prologue: Prologue,
        facts: Facts,
        groups: Sequence[Group] = (),
        *,
        is_finished: bool = False,
    ) -> None:
        """Go on behind ``groups``; the file is opened at the first append."""
        self.path = path
        self.facts = facts
        self.is_listed = False
        """The catalogue was told of it."""
        self.is_damaged = False
        """Records were lost to damage that was found when the file was opened again."""
        self.is_finished = is_finished
        """The file has its summary."""
        self.size = groups[-1].end if groups else prologue.size
        """Bytes of the file, without the summary until it is written."""
        self._prologue = prologue
        self._groups = list(groups)
        self._fd: int | None = None
        self._synced_bytes = self.size

    @classmethod
    def create(cls, path: Path, content: bytes, facts: Facts) -> EpisodeWriter:
        """Make a file that begins with ``content``; raises FileExistsError, or OSError."""
        writer = cls(path, mcap.parse_prologue(content), facts)
        writer._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        writer._synced_bytes = 0
        try:
            mcap.write_all(writer._fd, [content], 0)
        except OSError:
            writer.close()
            path.unlink()  # nothing in it was acknowledged
            raise
        return writer

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of its episode."""
        return self._prologue.metadata[EPISODE_METADATA]

    @property
    def is_open(self) -> bool:
        """True while the file is held open."""
        return self._fd is not None

    def append(self, builder: ChunkBuilder) -> None:
        """Write a group behind the last one, in place of the summary where there is one; raises OSError."""
        fd = self._open()
        if self.is_finished:
            self.is_finished = False
            self.size = self._synced_bytes = self._groups[-1].end if self._groups else self._prologue.size
            os.ftruncate(fd, self.size)
        buffers, group = builder.finish(self.size)
        mcap.write_all(fd, buffers, self.size)
        self._groups.append(group)
        self.size = group.end

    def finish(self) -> None:
        """Write the summary; raises OSError."""
        if self.is_finished:
            return
        content = mcap.summary_bytes(self._prologue, self._groups, mcap.summary_start(self.size))
        mcap.write_all(self._open(), [content], self.size)
        self.size += len(content)
        self.is_finished = True

    def sync(self) -> None:
        """Wait until all that was written is on the disk; raises OSError. Any thread."""
        os.fdatasync(self._open())

    def commit(self) -> None:
        """Note that all that was written is on the disk."""
        self._synced_bytes = self.size

    def abandon(self) -> None:
        """Cut off all that is not known to be on the disk, and close; the writer is of no use any more.

        What cannot be cut off is found torn, or as valid records that nobody acknowledged, when the file is next read.
        """
        try:
            if self._synced_bytes:
                os.ftruncate(self._open(), self._synced_bytes)
            else:
                self.path.unlink()
        except OSError:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, which a later append opens again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return self._fd
