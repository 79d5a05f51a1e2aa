"""What the disk allows: the store's state, free space that is kept, and a reserve for what must still be written."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from protocol.node.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

log = get_logger()

OK, FULL, FAILED = "ok", "full", "failed"
RESERVE_BYTES = 8 << 20
RESERVE = ".reserve"
RETRY_S = 1.0
_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """The state of the disk that a folder lies on; belongs to the store's thread, any thread may read."""

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        """Keep ``min_free_bytes`` free, for the catalogue, the checkpoints and everybody else."""
        self.state = OK
        self.reason = ""
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._reserve = folder / RESERVE
        self._has_had_reserve = False

    def start(self) -> None:
        """Set the reserve aside."""
        self.check()
        if self.state == OK:
            self._take_reserve()

    @property
    def free_bytes(self) -> int:
        """Space that is left to us; raises OSError."""
        facts = os.statvfs(self._folder)
        return facts.f_bavail * facts.f_frsize

    def check(self, waiting_bytes: int = 0) -> bool:
        """Tell whether something may be written, by the free space.

        A disk that was full must have room for all that waits before it is tried again, since each try that fails costs
        a look through the files that it touched.
        """
        try:
            free = self.free_bytes
        except OSError as error:
            self.refuse(error)
            return False
        wanted = self._min_free_bytes + (waiting_bytes if self.state == FULL else 0)
        if self.state == FULL and self._has_had_reserve:  # it was given up, and is to be taken again
            wanted += RESERVE_BYTES
        if free < wanted:
            self._enter(FULL, f"{self._folder}: {free >> 20} MB are free, min_free_mb is {self._min_free_bytes >> 20}")
            return False
        return True

    def refuse(self, error: OSError) -> None:
        """Note that the disk refused to write."""
        state = FULL if error.errno in _FULL_ERRORS else FAILED
        self._enter(state, f"{error.filename or self._folder}: {error.strerror or error}")

    def accept(self) -> None:
        """Note that the disk has written again."""
        if self.state != OK:
            log.info("store.recovered", was=self.state)
            self.state, self.reason = OK, ""
            self._take_reserve()

    def fail(self, reason: str) -> None:
        """Note that the store itself failed."""
        self._enter(FAILED, reason)

    def _enter(self, state: str, reason: str) -> None:
        if state == self.state:
            return
        self.state, self.reason = state, reason
        if state == FULL:
            self._reserve.unlink(missing_ok=True)
            hint = "nothing is acknowledged until there is room: free some, or set store.quota_gb"
            log.error("store.full", reason=reason, hint=hint)
        else:
            hint = "nothing is acknowledged until writing succeeds; see the disk (dmesg), it is tried every second"
            log.error("store.failed", reason=reason, hint=hint)

    def _take_reserve(self) -> None:
        try:
            if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_BYTES:
                self._has_had_reserve = True
                return
            if self.free_bytes < self._min_free_bytes + 2 * RESERVE_BYTES:
                return
            fd = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
                self._has_had_reserve = True
            finally:
                os.close(fd)
        except OSError:
            self._reserve.unlink(missing_ok=True)
