"""The disk of the spool: a thread that writes segments, syncs them, reads them again and deletes what is acknowledged.

The event loop hands records over and goes on; it learns by events what is durable, read, dropped or failing. Whatever
the disk does, nothing here raises into the loop: records that cannot be written wait in memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node.liveness import Pulse
from roverd import bootfolder
from roverd.bootfolder import LAST, NAME_OF_BOOT, BootFolder
from roverd.diskevents import Changed, Dropped, Durable, Event, Fetched
from roverd.segment import DATA_AT, BootFacts, Files, Segment, encode_header, encode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from roverd.settings import SpoolSettings

BATCH_S = 0.02
"""A record waits so long for others to be written with it."""
BATCH_BYTES = 4 << 20
BATCH_RECORDS = 128
FETCH_RECORDS = 64
FETCH_BYTES = 4 << 20
RETRY_S = 3.0
"""Time between two tries of a disk that is full or fails."""
FULL_S = 30.0
"""A disk that was full is called so for at least this long."""
HANG_S = 300.0
"""A failing disk may keep the thread for minutes, which a new start would not shorten; records wait in memory."""
MAX_SEGMENT_BYTES = 64 << 20
SEGMENTS_OF_QUOTA = 8
"""A segment is at most this part of the quota, because the oldest one is what a full disk costs."""
Record = tuple[int, list[bytes]]


class SpoolError(RoverError):
    """The folder of the spool belongs to another process."""


class _FullError(OSError):
    """There is no room, and policy allows to make none."""


@dataclass
class Figures:
    """What the disk did; written by its thread, read by anybody."""

    bytes: int = 0
    segments: int = 0
    written: int = 0
    synced: int = 0
    syncs: int = 0
    sync_ms: float = 0.0
    sync_ms_max: float = 0.0
    exposed_ms_max: float = 0.0
    """The longest time from a record's append until it was durable: so much a power cut may cost."""
    torn_bytes: int = 0
    damaged: int = 0


class Disk:
    """See the module; made and recovered in the loop's thread, then served by its own."""

    def __init__(
        self,
        folder: Path,
        facts: BootFacts,
        settings: SpoolSettings,
        *,
        files: Files | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the folder of all boots; ``recover`` looks into it."""
        self._folder, self._facts, self._settings = folder, facts, settings
        self._files, self._clock = files or Files(), clock
        self._max_bytes = settings.max_mb << 20
        self._min_free = settings.min_free_mb << 20
        self._segment_bytes = min(MAX_SEGMENT_BYTES, self._max_bytes // SEGMENTS_OF_QUOTA)
        self._own = BootFolder(folder / f"{facts.boot:08d}-{facts.boot_id}", facts)
        self._boots: list[BootFolder] = [self._own]
        self.figures = Figures()
        self.pulse = Pulse("spool", HANG_S)
        self.state, self.reason = "ok", ""
        self.on_event: Callable[[], None] = lambda: None
        """Called in the disk's thread when ``take_events`` has something."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._pending: dict[int, list[bytes]] = {}
        self._commands: deque[tuple[Any, ...]] = deque()
        self._events: deque[Event] = deque()
        self._is_urgent = self._is_stopping = False
        self._unsynced: list[Record] = []
        self._unsynced_since = self._waiting_since = self._batch_since = 0.0
        self._durable = 0
        self._handed = 0
        self._fd = -1
        self._reusable = 0
        self._retry_at = self._full_until = 0.0
        self._lock_fd = -1
        self._thread: threading.Thread | None = None
        self.fault: BaseException | None = None

    # -- the loop's side --------------------------------------------------------------------------------------------

    def recover(self) -> list[BootFolder]:
        """Lock the folder and return what earlier boots left, oldest first; raises SpoolError, never OSError."""
        try:
            self._files.make_folder(self._folder)
            self._take_lock()
            names = sorted(each.name for each in self._folder.iterdir() if NAME_OF_BOOT.fullmatch(each.name))
        except OSError as error:
            self._change("failed", f"{self._folder}: {error.strerror or error}")
            return []
        found = []
        for name in names:
            if name == self._own.path.name:
                continue
            try:
                boot = bootfolder.recover(self._folder / name, self._facts, self._files)
            except OSError as error:
                self._change("failed", f"{self._folder / name}: {error.strerror or error}")
                continue
            self._delete_released(boot)
            if boot.segments:
                found.append(boot)
                self.figures.torn_bytes += boot.segments[-1].torn_bytes
                self.figures.damaged += boot.segments[-1].damages
            else:
                boot.remove(self._files)
        self._boots = [*found, self._own]
        self._count()
        return found

    def start(self) -> None:
        """Begin to serve in a thread."""
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin to write and sync what is left, note what is acknowledged and delete what is empty."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()

    @property
    def is_running(self) -> bool:
        """True until the thread has done its last."""
        return self._thread is not None and self._thread.is_alive()

    def release_lock(self) -> None:
        """Let another process have the folder."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def append(self, seq: int, frames: list[bytes]) -> None:
        """Have a record written; seq must grow."""
        with self._wake:
            if not self._pending:
                self._waiting_since = self._clock()
                self._wake.notify()
            self._pending[seq] = frames

    def release(self, boot_id: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Say that records are wanted no more; those that wait to be written are not written."""
        with self._wake:
            for first, last in ranges:
                if boot_id == self._facts.boot_id and self._pending:
                    if last - first > len(self._pending):
                        unwanted = [seq for seq in self._pending if first <= seq <= last]
                    else:
                        unwanted = [seq for seq in range(first, last + 1) if seq in self._pending]
                    for seq in unwanted:
                        del self._pending[seq]
                self._commands.append(("release", boot_id, first, last))
            self._wake.notify()

    def fetch(self, lane: str, boot_id: str, first: int, last: int) -> None:
        """Have records read; one Fetched comes for it, which may not reach to ``last``."""
        with self._wake:
            self._commands.append(("fetch", lane, boot_id, first, last))
            self._is_urgent = True
            self._wake.notify()

    def take_events(self) -> list[Event]:
        """Return what happened since the last call."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
        return events

    @property
    def unwritten(self) -> int:
        """Records that wait to be written."""
        return len(self._pending)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self.pulse.beat()
                delay_s = self.step()
                self.pulse.rest()
                with self._wake:
                    self._wake.wait_for(self._has_work, timeout=delay_s)
                    if not self._is_urgent and not self._is_stopping:
                        self._wake.wait_for(lambda: self._is_urgent or self._is_stopping, timeout=BATCH_S)
            self.finish()
        except BaseException as error:  # noqa: BLE001 - a thread has no caller: the service raises it
            self.fault = error
            self.on_event()

    def _has_work(self) -> bool:
        has_records = bool(self._pending) and self._clock() >= self._retry_at
        return self._is_stopping or bool(self._commands) or has_records

    def step(self) -> float:
        """Do what is to be done now, and return the seconds until something is due by itself."""
        with self._lock:
            commands, self._commands = self._commands, deque()
            self._is_urgent = False
        for command, *facts in commands:
            if command == "release":
                self._release(*facts)
            else:
                self._fetch(*facts)
        self._write()
        self._sync_if_due()
        now = self._clock()
        due = [self._unsynced_since + self._settings.sync_ms * 1e-3] if self._unsynced else []
        if self._pending and self._retry_at > now:
            due.append(self._retry_at)
        return max(0.0, min(due) - now) if due else 60.0

    def finish(self) -> None:
        """Do the last of everything; the disk is not used any more after this."""
        self._retry_at = 0.0
        self.step()
        self._sync()
        self._close_segment()
        for boot in list(self._boots):
            self._delete_released(boot)
            if boot.segments:
                boot.note_released()
            else:
                boot.remove(self._files)

    def _emit(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
        self.on_event()

    def _change(self, state: str, reason: str) -> None:
        self.reason = reason
        if state == "full":
            self._full_until = self._clock() + FULL_S
        if state != self.state:
            self.state = state
            self._emit(Changed(state, reason))

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while self._pending and self._clock() >= self._retry_at:
            batch = self._next_batch()
            try:
                self._append_batch(batch)
            except OSError as error:
                if not self._may_go_on(error):
                    self._retry_at = self._clock() + RETRY_S

    def _next_batch(self) -> list[Record]:
        batch: list[Record] = []
        size = 0
        with self._lock:
            for seq, frames in self._pending.items():
                if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
                    break
                batch.append((seq, frames))
                size += sum(map(len, frames))
            for seq, _ in batch:
                del self._pending[seq]
            self._batch_since = self._waiting_since
        return batch

    def _put_back(self, records: list[Record]) -> None:
        with self._lock:
            wanted = {seq: frames for seq, frames in records if seq not in self._own.released}
            self._pending = dict(sorted({**wanted, **self._pending}.items()))

    def _append_batch(self, batch: list[Record]) -> None:
        buffers, ends = [], [0]
        for seq, frames in batch:
            made = encode_record(seq, frames, self._facts.salt)
            buffers += made
            ends.append(ends[-1] + sum(map(len, made)))
        done = 0
        try:
            self._make_room(ends[-1] + DATA_AT)
            segment = self._open_segment(batch[0][0], ends[-1])
            written, error = self._writev(buffers)
            done = bisect_right(ends, written) - 1
            for (seq, _), start in zip(batch[:done], ends, strict=False):
                segment.note(seq, segment.size + start)
            segment.size += ends[done]
            self._count_written(batch[:done], ends[done])
            if error is not None:
                self._cut(segment.size)
                raise error
            self._settle()
        finally:
            if done < len(batch):
                self._put_back(batch[done:])

    def _writev(self, buffers: list[bytes]) -> tuple[int, OSError | None]:
        """Write all, or as much as goes: a disk that fills up writes less before it says so."""
        views: list[memoryview] = []
        total, waiting = 0, deque(memoryview(each) for each in buffers)
        while waiting or views:
            while waiting and len(views) < 512:
                views.append(waiting.popleft())
            try:
                count = self._files.writev(self._fd, views)
            except OSError as error:
                return total, error
            if count <= 0:
                return total, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            total += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]
        return total, None

    def _count_written(self, batch: list[Record], size: int) -> None:
        if not batch:
            return
        if not self._unsynced:
            self._unsynced_since = self._batch_since
        self._unsynced += batch
        self._handed = batch[-1][0] + 1
        self._reusable = max(0, self._reusable - size)
        self.figures.written += len(batch)
        self.figures.bytes += size

    def _open_segment(self, first: int, need: int) -> Segment:
        newest = self._own.segments[-1] if self._fd >= 0 else None
        if newest is not None and newest.seqs and newest.size + need > self._segment_bytes:
            self._sync(is_strict=True)  # so that only the newest segment of a boot can have a torn tail
            self._close_segment()
        if self._fd >= 0:
            return self._own.segments[-1]
        path = self._own.path / f"{first:012d}.seg"
        self._files.make_folder(self._own.path)
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            header = encode_header(self._facts)
            is_whole = self._files.writev(fd, [header]) == len(header)
            self._files.sync_folder(self._own.path)
        except OSError:
            self._files.close(fd)
            self._files.unlink(path)
            raise
        if not is_whole:
            self._files.close(fd)
            self._files.unlink(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._own.segments:
            self._own.segments[-1].limit = first
        self._own.segments.append(Segment(path, first, LAST, DATA_AT, is_indexed=True))
        self._fd = fd
        self.figures.bytes += DATA_AT
        self.figures.segments += 1
        return self._own.segments[-1]

    def _close_segment(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                self._files.close(fd)
            except OSError as error:
                self._change("failed", f"{self._own.path}: {error.strerror or error}")

    def _cut(self, size: int) -> None:
        """Take what was written in part off the end of the open segment, or leave it and begin another."""
        try:
            self._files.truncate(self._fd, size)
        except OSError:
            self._sync()
            self._close_segment()

    def _sync_if_due(self) -> None:
        if self._unsynced and self._clock() >= self._unsynced_since + self._settings.sync_ms * 1e-3:
            self._sync()
        elif not self._unsynced:
            self._tell_durable()

    def _sync(self, *, is_strict: bool = False) -> None:
        """Make what was written durable; a disk that fails here may have lost any of it, so all is written again."""
        if not self._unsynced or self._fd < 0:
            return
        began = self._clock()
        try:
            self._files.fdatasync(self._fd)
        except OSError as error:
            self._disown_unsynced()
            self._may_go_on(error)
            self._retry_at = self._clock() + RETRY_S
            if is_strict:
                raise
            return
        ended = self._clock()
        figures = self.figures
        figures.syncs += 1
        figures.synced += len(self._unsynced)
        figures.sync_ms = (ended - began) * 1e3
        figures.sync_ms_max = max(figures.sync_ms_max, figures.sync_ms)
        figures.exposed_ms_max = max(figures.exposed_ms_max, (ended - self._unsynced_since) * 1e3)
        self._unsynced = []
        self._tell_durable()

    def _disown_unsynced(self) -> None:
        """Take unsynced records back into memory and leave their file as if they were not in it."""
        segment, records, self._unsynced = self._own.segments[-1], self._unsynced, []
        self._close_segment()
        first = records[0][0]
        keep = len(segment.seqs) - len(records)
        del segment.seqs[keep:], segment.offsets[keep:]
        segment.limit = first
        if not segment.seqs and not self._delete(self._own, segment):
            self._own.segments.remove(segment)  # the next one has its name
        self._put_back(records)

    def _tell_durable(self) -> None:
        unsynced = self._unsynced[0][0] if self._unsynced else self._handed
        with self._lock:
            durable = min(next(iter(self._pending), self._handed), unsynced, self._handed)
        if durable > self._durable:
            self._durable = durable
            self._emit(Durable(durable))

    # -- room -------------------------------------------------------------------------------------------------------

    def _make_room(self, need: int) -> None:
        """Keep the quotas, by dropping the oldest records where policy says so; raises _FullError."""
        while reason := self._lack(need):
            if self._reclaim():
                continue
            self._change("full", reason)
            if self._settings.when_full == "newest" or not self._drop_oldest():
                raise _FullError(errno.ENOSPC, reason)

    def _lack(self, need: int) -> str:
        if self.figures.bytes + need > self._max_bytes:
            return f"{self._folder}: spool.max_mb {self._settings.max_mb} are used"
        if self._reusable >= need or not self._min_free:
            return ""
        free = self._files.free_bytes(self._folder)
        if free - need < self._min_free:
            return f"{self._folder}: {free >> 20} MiB are free, spool.min_free_mb is {self._settings.min_free_mb}"
        return ""

    def _may_go_on(self, error: OSError) -> bool:
        """Take in an error; True where room was made for another try."""
        if isinstance(error, _FullError):
            return False
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            if self._reclaim():
                return True
            self._change("full", f"{self._folder}: {error.strerror or error}")
            return self._settings.when_full == "oldest" and self._drop_oldest()
        self._change("failed", f"{self._folder}: {error.strerror or error}")
        return False

    def _settle(self) -> None:
        """Say that all is well again, once there is room for a whole segment: not after each one that was dropped."""
        if self.state == "ok":
            return
        if self.state == "full":
            if self._clock() < self._full_until:
                return
            spare = self._files.free_bytes(self._folder) - self._min_free
            if self.figures.bytes + self._segment_bytes > self._max_bytes or spare < min(self._segment_bytes, 8 << 20):
                return
        self._change("ok", "")

    def _reclaim(self) -> bool:
        """Delete the open segment if none of it is wanted any more: the others go as soon as that is so."""
        if self._fd < 0 or not self._own.segments[-1].seqs:
            return False
        segment = self._own.segments[-1]
        if not self._own.released.covers(segment.first, segment.last):
            return False
        self._unsynced = []
        self._close_segment()
        return self._delete(self._own, segment)

    def _drop_oldest(self) -> bool:
        """Delete the oldest segment; False where there is none."""
        for boot in self._boots:
            if not boot.segments:
                continue
            segment = boot.segments[0]
            if boot is self._own and len(boot.segments) == 1 and self._fd >= 0:
                self._unsynced = [each for each in self._unsynced if each[0] > segment.last]
                self._close_segment()
            ranges = boot.released.missing_within(segment.first, segment.last)
            if not self._delete(boot, segment):
                return False
            boot.released.add_range(segment.first, segment.last)
            self._reusable += segment.size
            if ranges:
                self._emit(Dropped(boot.facts.boot_id, ranges))
            if not boot.segments and boot is not self._own:
                self._boots.remove(boot)
                boot.remove(self._files)
            self._tell_durable()
            return True
        return False

    def _delete(self, boot: BootFolder, segment: Segment) -> bool:
        try:
            self._files.unlink(segment.path)
        except OSError as error:
            self._change("failed", f"{segment.path}: {error.strerror or error}")
            return False
        boot.segments.remove(segment)
        self.figures.bytes -= segment.size
        self.figures.segments -= 1
        self._retry_at = 0.0
        return True

    # -- acknowledgements -------------------------------------------------------------------------------------------

    def _release(self, boot_id: str, first: int, last: int) -> None:
        boot = self._boot(boot_id)
        if boot is None:
            return
        boot.released.add_range(first, last)
        if self._delete_released(boot):
            if boot.segments:
                boot.note_released()
            elif boot is not self._own:
                self._boots.remove(boot)
                boot.remove(self._files)

    def _delete_released(self, boot: BootFolder) -> int:
        """Delete the segments none of whose records is wanted; the open one goes on."""
        count = 0
        for segment in list(boot.segments):
            is_open = boot is self._own and self._fd >= 0 and segment is boot.segments[-1]
            if not is_open and boot.released.covers(segment.first, segment.last):
                count += self._delete(boot, segment)
        return count

    def _boot(self, boot_id: str) -> BootFolder | None:
        return next((boot for boot in self._boots if boot.facts.boot_id == boot_id), None)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _fetch(self, lane: str, boot_id: str, first: int, last: int) -> None:
        boot = self._boot(boot_id)
        reading = Fetched(lane, boot_id, first, last, {})
        for segment in boot.segments if boot is not None else ():
            if segment.first > last or segment.last < first:
                continue
            try:
                upto = self._read(segment, boot.facts.salt, reading)  # type: ignore[union-attr]
            except FileNotFoundError:
                continue
            except OSError as error:
                upto = max(reading.records, default=first - 1)
                reading = replace(reading, error=f"{segment.path}: {error.strerror or error}")
            if upto is not None:
                reading = replace(reading, upto=upto)
                break
        self._emit(reading)

    def _read(self, segment: Segment, salt: int, reading: Fetched) -> int | None:
        """Add the wanted records of one segment; return the last seq that was looked for where there were too many."""
        records = reading.records
        size = sum(len(frame) for frames in records.values() for frame in frames)
        fd = self._files.open(segment.path, os.O_RDONLY)
        try:
            if not segment.is_indexed:
                segment.index(self._files, fd, salt)
                self.figures.damaged += segment.damages
            for seq in segment.seqs[bisect_left(segment.seqs, reading.first) :]:
                if seq > reading.upto:
                    break
                if size >= FETCH_BYTES or len(records) >= FETCH_RECORDS:
                    return int(seq) - 1
                frames = segment.read(self._files, fd, salt, seq)
                if frames is None:
                    self.figures.damaged += 1
                    continue
                records[seq] = frames
                size += sum(map(len, frames))
        finally:
            self._files.close(fd)
        return None

    # -- the folder -------------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            text = f"{self._folder}: another roverd uses it; stop that one, or set another state_dir"
            raise SpoolError(text) from error
        self._lock_fd = fd

    def _count(self) -> None:
        segments = [segment for boot in self._boots for segment in boot.segments]
        self.figures.segments = len(segments)
        self.figures.bytes = sum(segment.size for segment in segments)
