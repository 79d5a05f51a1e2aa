"""The store: every record is synced to disk in its episode's file before anybody hears that it is safe.

One thread owns the files. It takes what was appended, writes one group per episode, syncs all files that it touched at
once, and calls ``on_durable``; the catalogue follows behind, and nothing waits for it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.files import sync_folder
from protocol.messages import NAME
from protocol.node.liveness import Pulse
from protocol.node.log import RepeatLimiter, get_logger
from protocol.ranges import Ranges
from trainerd.episodes import mcap, recovery
from trainerd.episodes.catalogue import (
    DAMAGED,
    OPEN,
    BootRow,
    Catalogue,
    CatalogueError,
    EpisodeRow,
    Event,
)
from trainerd.episodes.disk import OK, RETRY_S, Disk
from trainerd.episodes.records import Facts, Format, StoredRecord
from trainerd.episodes.writer import EpisodeWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from protocol.spec import RobotSpec, TaskSpec
    from trainerd.episodes.settings import StoreSettings

log = get_logger()

GROUP_RECORDS = 64
GROUP_BYTES = 4 << 20
"""So much of an episode is written and synced before the interval has passed."""
BATCH_RECORDS = 1024
"""Records that are written between two syncs at most."""
MAX_GROUP_BYTES = 64 << 20
MAX_OPEN = 128
SYNC_THREADS = 8
STOP_S = 2.0
"""How long the catalogue is waited for at the end; the files can tell it all at the next start."""
SETTLE_S = 0.5
"""How often the catalogue is written at most."""
QUOTA_S = 5.0
HANG_S = 300.0
"""A failing disk may keep the thread for minutes, which a new start would not shorten."""
RECORD_OVERHEAD_BYTES = 2048
"""What a waiting record takes in memory besides its frames, about."""
_BOOT_ID = NAME

BootKey = tuple[str, str]
EpisodeKey = tuple[str, str, int]


class StoreError(RoverError):
    """The store cannot begin, or was used for a boot that it does not know."""


@dataclass
class _Boot:
    """What is known of a boot; ``received`` and ``gone`` are guarded by the store's lock."""

    row: BootRow
    form: Format
    received: Ranges = field(default_factory=Ranges)
    """On the disk."""
    settled: Ranges = field(default_factory=Ranges)
    """On the disk in files that are finished. What is in the others is found in them at the next start, so that a
    record which is lost there by damage may still come again."""
    gone: Ranges = field(default_factory=Ranges)

    def to_row(self) -> BootRow:
        return replace(self.row, received=self.settled.to_list(), gone=self.gone.to_list())


@dataclass(frozen=True, slots=True)
class _Waiting:
    record: StoredRecord
    boot: _Boot
    wall_ns: int
    size: int

    @property
    def key(self) -> EpisodeKey:
        return (self.record.rover_id, self.record.boot_id, self.record.episode_id)


@dataclass
class Counters:
    """What the store did since it began."""

    records: int = 0
    bytes: int = 0
    """Of the frames of these records."""
    duplicates: int = 0
    """Records that were there already."""
    refused: int = 0
    """Records that found the queue or the disk full."""
    syncs: int = 0
    sync_ms_last: float = 0.0
    sync_ms_max: float = 0.0
    reopened: int = 0
    """Finished files that a late record opened again."""
    recovered: int = 0
    """Files that were brought into order at the start."""
    truncated_bytes: int = 0
    quarantined: int = 0
    deleted: int = 0


class Store:
    """Keep the records of every rover, one file for each episode; the public methods may come from any thread."""

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        settings: StoreSettings,
        *,
        on_durable: Callable[[list[tuple[str, str, int]]], None],
        may_delete: Callable[[EpisodeRow], bool] = lambda row: False,  # noqa: ARG005 - the keyword is the interface
    ) -> None:
        """Keep episodes below ``folder``.

        Args:
            folder: made where it is missing; damaged files go to ``quarantine`` beside it.
            catalogue: written on the store's thread.
            settings: when to sync and what to keep.
            on_durable: called on the store's thread with (rover_id, boot_id, seq) of records that are on the disk.
            may_delete: whether an episode is no longer needed; asked on the store's thread when there is a quota.

        """
        self.folder = folder
        self.quarantine = folder.parent / "quarantine"
        self.catalogue = catalogue
        self.counters = Counters()
        self.findings = recovery.Findings()
        self.pulse = Pulse("store", HANG_S)
        self._settings = settings
        self._on_durable = on_durable
        self._may_delete = may_delete
        self._disk = Disk(folder, settings.min_free_mb << 20)
        self._wake = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._due_records = GROUP_RECORDS
        self._due_bytes = GROUP_BYTES
        """What makes a sync due before its time; more of it when many episodes share a sync, for each costs one."""
        self._commands: deque[Callable[[], bool]] = deque()
        self._is_stopping = False
        self._boots: dict[BootKey, _Boot] = {}
        self._writers: dict[EpisodeKey, EpisodeWriter] = {}
        """Unfinished episodes, the one that was written to last at the end."""
        self._rows_due: dict[EpisodeKey, EpisodeRow] = {}
        self._boots_due: set[BootKey] = set()
        self._events_due: list[Event] = []
        self._settled_s = 0.0
        self._quota_s = 0.0
        self._is_over_quota = False
        self._repeats = RepeatLimiter()
        self._pool: ThreadPoolExecutor | None = None
        self._thread = threading.Thread(target=self._main, name="store", daemon=True)

    @property
    def state(self) -> str:
        """``ok``, ``full`` or ``failed``; anything else than ``ok`` stores and acknowledges nothing."""
        return self._disk.state

    @property
    def is_open(self) -> bool:
        """True while records are taken in."""
        return self._disk.state == OK

    @property
    def reason(self) -> str:
        """Why the state is not ``ok``, as a sentence."""
        return self._disk.reason

    def status(self) -> dict[str, Any]:
        """Return state and counters, for people."""
        with self._wake:
            waiting, waiting_bytes = len(self._queue), self._queued_bytes
        return {
            "state": self.state,
            "reason": self.reason,
            "waiting": waiting,
            "waiting_bytes": waiting_bytes,
            "open_episodes": len(self._writers),
            "catalogue_rows_due": len(self._rows_due),
            **vars(self.counters),
        }

    def start(self) -> None:
        """Bring the files into order, then serve.

        Raises:
            StoreError: the folder cannot be used; the message says why.

        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._disk.start()
            self._end_deletions()
            for boot in self.catalogue.boots():
                self._know(boot)
            if self.catalogue.damaged_path is not None:
                text = f"{self.catalogue.damaged_path}: was damaged; made again from the episodes' files"
                self._note("catalogue_damaged", text)
                hint = "ranges of episodes that had been deleted are forgotten; the damaged file was put aside"
                log.error("catalogue.damaged", path=str(self.catalogue.damaged_path), hint=hint)
            for each in recovery.recover(self.folder, self.catalogue, self.quarantine, self.findings):
                self._know(each.boot)
                self._rows_due[each.row.rover_id, each.row.boot_id, each.row.episode_id] = each.row
                self._boots_due.add((each.row.rover_id, each.row.boot_id))
        except (OSError, CatalogueError) as error:
            raise StoreError(f"store {self.folder}: {error}") from error
        self._report(self.findings)
        self._settle()
        self._thread.start()

    def begin_boot(
        self, rover_id: str, boot_id: str, *, run_id: str, robot: RobotSpec, task: TaskSpec, epoch_ns: int
    ) -> None:
        """Say what the records of a boot are of; the same again changes nothing.

        Args:
            rover_id: a name of the protocol.
            boot_id: a name of the protocol.
            run_id: the run that the episodes from now on belong to.
            robot: the cameras that get a channel each.
            task: kept with each episode.
            epoch_ns: the rover's wall clock less its monotonic clock, 0 where it is not known.

        Raises:
            StoreError: the names cannot be those of a folder, or the boot had another robot or task.

        """
        if not re.fullmatch(NAME, rover_id) or not re.fullmatch(_BOOT_ID, boot_id):
            raise StoreError(f"store: rover {rover_id[:70]!r}, boot {boot_id[:70]!r}: not names of this protocol")
        if not 0 <= epoch_ns < 1 << 63:
            epoch_ns = 0
        with self._wake:
            boot = self._boots.get((rover_id, boot_id))
            if boot is None:
                row = BootRow(rover_id, boot_id, run_id, epoch_ns, robot, task, created_ns=time.time_ns())
                self._boots[rover_id, boot_id] = _Boot(row, Format.of(robot))
            elif (boot.row.robot, boot.row.task) != (robot, task):
                differences = boot.row.robot.differences(robot) or ["the task"]
                raise StoreError(f"store: {rover_id} boot {boot_id} had another spec: {'; '.join(differences)}")
            elif (boot.row.run_id, boot.row.epoch_ns) != (run_id, epoch_ns):
                boot.row = replace(boot.row, run_id=run_id, epoch_ns=epoch_ns or boot.row.epoch_ns)
            else:
                return
        self._command(lambda: self._list_boot((rover_id, boot_id)))

    def append(self, record: StoredRecord) -> bool:
        """Take a record; once it is on the disk, ``on_durable`` says so.

        Returns:
            False where the queue or the disk is full: it was not taken, and is to be offered again.

        Raises:
            RecordError: it can never be stored; ``give_up`` its seq.
            StoreError: the boot was not begun.

        """
        boot = self._boots.get((record.rover_id, record.boot_id))
        if boot is None:
            raise StoreError(f"store: {record.rover_id} boot {record.boot_id} was not begun")
        boot.form.check(record)
        size = sum(map(len, record.frames)) + RECORD_OVERHEAD_BYTES
        waiting = _Waiting(record, boot, time.time_ns(), size)
        with self._wake:
            before = self._queued_bytes
            if self.state != OK or self._is_stopping or before + size > self._settings.queue_mb << 20:
                self.counters.refused += 1
                return False
            self._queue.append(waiting)
            self._queued_bytes = before + size
            count = len(self._queue)
            if count in {1, self._due_records} or before < self._due_bytes <= before + size:
                self._wake.notify()
        return True

    def received(self, rover_id: str, boot_id: str) -> list[list[int]]:
        """Return the inclusive ranges of seq that are on the disk, or were before their episodes were deleted."""
        with self._wake:
            boot = self._boots.get((rover_id, boot_id))
            return boot.received.to_list() if boot else []

    def gone(self, rover_id: str, boot_id: str) -> list[list[int]]:
        """Return the inclusive ranges of seq that were given up."""
        with self._wake:
            boot = self._boots.get((rover_id, boot_id))
            return boot.gone.to_list() if boot else []

    def give_up(self, rover_id: str, boot_id: str, ranges: Iterable[Sequence[int]], reason: str) -> None:
        """Note that records will never come, so that their episode can be finished without them; raises StoreError."""
        boot = self._boots.get((rover_id, boot_id))
        if boot is None:
            raise StoreError(f"store: {rover_id} boot {boot_id} was not begun")
        lost = [list(each) for each in ranges]
        with self._wake:
            for first, last in lost:
                boot.gone.add_range(first, last)
        self._note("given_up", f"{rover_id} boot {boot_id} {lost}: {reason}")
        self._command(lambda: self._finish_boot((rover_id, boot_id), only_over=True))

    def close_boot(self, rover_id: str, boot_id: str) -> None:
        """Finish the boot's episodes as they are, behind all that was appended; a late record opens them again."""
        self._command(lambda: self._finish_boot((rover_id, boot_id)))

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was appended is on the disk and in the catalogue; False after ``timeout_s``."""
        done = threading.Event()

        def settled() -> bool:
            if done.is_set() or self._settle():
                done.set()
            return done.is_set()

        self._command(settled)
        if done.wait(timeout_s):
            return True
        done.set()  # nobody waits any more
        return False

    def stop(self, timeout_s: float = 10.0) -> None:
        """Write what waits, finish every file, end the thread. What cannot be written now was never acknowledged."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._pool is not None:
            self._pool.shutdown()

    def _command(self, command: Callable[[], bool]) -> None:
        """Let the thread call ``command`` once the queue is empty, and again until it returns True."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _main(self) -> None:
        while True:
            self.pulse.beat()
            batch, is_stopping = self._take()
            try:
                if batch or self.state != OK:
                    self._commit(batch)
                if not self._queue:
                    self._run_commands()
                self._keep_house()
            except Exception as error:
                self._disk.fail(repr(error))
                log.exception("store.stumbled", error=repr(error), hint="a bug: please report it with these lines")
                self._forget_files()
                self._put_back(batch)
            if is_stopping and (not self._queue or self.state != OK):
                break
        self.pulse.rest()
        self._shut()

    def _take(self) -> tuple[list[_Waiting], bool]:
        """Wait until there is something to do; return what is to be written."""
        interval_s = 1e-3 * self._settings.sync_interval_ms
        with self._wake:
            if self.state != OK:
                if not self._is_stopping:
                    self._wake.wait(RETRY_S)
            elif not self._queue and not self._commands and not self._is_stopping:
                self._wake.wait(SETTLE_S)
            if self.state == OK and self._queue:
                due_s = time.monotonic() + interval_s
                while (
                    len(self._queue) < self._due_records
                    and self._queued_bytes < self._due_bytes
                    and not self._commands
                    and not self._is_stopping
                    and (left_s := due_s - time.monotonic()) > 0
                ):
                    self._wake.wait(left_s)
            count = min(len(self._queue), BATCH_RECORDS)
            batch = [self._queue.popleft() for _ in range(count)]
            self._queued_bytes -= sum(each.size for each in batch)
            return batch, self._is_stopping

    def _put_back(self, batch: Sequence[_Waiting]) -> None:
        with self._wake:
            there = {(id(each)) for each in self._queue}
            again = [each for each in batch if id(each) not in there]
            self._queue.extendleft(reversed(again))
            self._queued_bytes += sum(each.size for each in again)

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        """Write, sync and announce a batch; what the disk refuses goes back to the queue."""
        if not self._disk.check(sum(each.size for each in batch)):
            self._put_back(batch)
            return
        episodes: dict[EpisodeKey, list[_Waiting]] = {}
        durable: list[tuple[str, str, int]] = []
        for each in batch:
            record = each.record
            if record.seq in each.boot.received:
                self.counters.duplicates += 1
                durable.append((record.rover_id, record.boot_id, record.seq))
            else:
                episodes.setdefault(each.key, []).append(each)
        keys, refused = list(episodes), []
        self._due_records = min(GROUP_RECORDS * max(1, len(keys)), BATCH_RECORDS)
        self._due_bytes = min(GROUP_BYTES * max(1, len(keys)), MAX_GROUP_BYTES, self._settings.queue_mb << 19)
        for start in range(0, len(keys), MAX_OPEN):
            part = {key: episodes[key] for key in keys[start : start + MAX_OPEN]}
            refused += self._commit_files(part, durable)
        if refused:
            self._put_back([each for each in batch if each.key in refused])
        else:
            self._disk.accept()
        if durable:
            self._on_durable(durable)

    def _commit_files(
        self, episodes: dict[EpisodeKey, list[_Waiting]], durable: list[tuple[str, str, int]]
    ) -> list[EpisodeKey]:
        """Write to some files and sync them; return the episodes whose file the disk refused."""
        self._close_oldest(len(episodes), episodes)
        written: dict[EpisodeKey, EpisodeWriter] = {}
        refused: list[EpisodeKey] = []
        folders: set[Path] = set()
        for key, waiting in episodes.items():
            try:
                written[key] = self._write(key, waiting, folders)
            except OSError as error:
                refused.append(key)
                self._refuse(key, error)
        began_s = time.perf_counter()
        errors = self._sync([*written.values()], folders)
        if written:
            self.counters.syncs += 1
            self.counters.sync_ms_last = 1e3 * (time.perf_counter() - began_s)
            self.counters.sync_ms_max = max(self.counters.sync_ms_max, self.counters.sync_ms_last)
        for (key, writer), refusal in zip(written.items(), errors, strict=True):
            if refusal is not None:
                refused.append(key)
                self._refuse(key, refusal)
                continue
            writer.commit()
            self._announce(key, writer, episodes[key], durable)
        return refused

    def _write(self, key: EpisodeKey, waiting: list[_Waiting], folders: set[Path]) -> EpisodeWriter:
        """Write an episode's records, and its summary where they are the last; raises OSError."""
        boot = waiting[0].boot
        writer = self._writers.pop(key, None) or self._begin(key, boot, folders)
        self._writers[key] = writer
        builder = mcap.ChunkBuilder()
        for each in waiting:
            if each.record.seq in writer.facts.seqs:
                continue
            boot.form.encode(each.record, builder, boot.row.epoch_ns, each.wall_ns)
            writer.facts.add(each.record.seq, each.record.header)
            if len(builder.entries) == GROUP_RECORDS or builder.size >= GROUP_BYTES:
                writer.append(builder)
                builder = mcap.ChunkBuilder()
        if builder.entries:
            writer.append(builder)
        with self._wake:
            is_over = writer.facts.is_over(boot.gone)
        if is_over:
            writer.finish()
        return writer

    def _begin(self, key: EpisodeKey, boot: _Boot, folders: set[Path]) -> EpisodeWriter:
        """Make an episode's file, or open the one that is there; raises OSError."""
        path = self.folder / recovery.episode_path(*key)
        folders |= {path.parent, path.parent.parent, self.folder}
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = recovery.episode_metadata(boot.row, key[2], time.time_ns())
        content = boot.form.prologue(metadata, boot.row.robot, boot.row.task)
        try:
            return EpisodeWriter.create(path, content, Facts())
        except FileExistsError:
            pass
        findings = recovery.Findings()
        known = {(boot.row.rover_id, boot.row.boot_id): boot.row}
        found = recovery.recover_file(path, self.folder, self.quarantine, known, findings)
        self._report(findings)
        if found is None:
            return EpisodeWriter.create(path, content, Facts())
        self.counters.reopened += 1
        writer = EpisodeWriter(path, found.prologue, found.facts, found.groups, is_finished=True)
        writer.is_damaged = found.row.state == DAMAGED
        return writer

    def _sync(self, writers: Sequence[EpisodeWriter], folders: Iterable[Path]) -> list[OSError | None]:
        """Sync files and folders; return what went wrong, for each writer."""

        def attempt(sync: Callable[[], None]) -> OSError | None:
            try:
                sync()
            except OSError as error:
                return error
            return None

        calls: list[Callable[[], None]] = [
            *(writer.sync for writer in writers),
            *(partial(sync_folder, folder) for folder in folders),
        ]
        if len(calls) > 1:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(SYNC_THREADS, "store-sync")
            errors = list(self._pool.map(attempt, calls))
        else:
            errors = [attempt(call) for call in calls]
        of_folders = next(filter(None, errors[len(writers) :]), None)
        return [error or of_folders for error in errors[: len(writers)]]

    def _announce(
        self,
        key: EpisodeKey,
        writer: EpisodeWriter,
        waiting: Sequence[_Waiting],
        durable: list[tuple[str, str, int]],
    ) -> None:
        """Note that an episode's records are on the disk."""
        boot = waiting[0].boot
        with self._wake:
            for each in waiting:
                is_new = boot.received.add(each.record.seq)
                self.counters.records += is_new
                self.counters.duplicates += not is_new
                self.counters.bytes += each.size - RECORD_OVERHEAD_BYTES if is_new else 0
        durable += [(key[0], key[1], each.record.seq) for each in waiting]
        if writer.is_finished:
            self._retire(key)
        elif not writer.is_listed:
            writer.is_listed = True
            self._list(key, writer, OPEN)

    def _retire(self, key: EpisodeKey) -> None:
        """Close a finished file and list what it holds."""
        writer = self._writers.pop(key)
        writer.close()
        with self._wake:
            self._boots[key[:2]].settled.update(writer.facts.seqs)
        is_damaged = writer.is_damaged and not writer.facts.is_complete
        self._list(key, writer, DAMAGED if is_damaged else None)

    def _list(self, key: EpisodeKey, writer: EpisodeWriter, state: str | None) -> None:
        path = recovery.episode_path(*key)
        self._rows_due[key] = recovery.episode_row(writer.metadata, writer.facts, path, writer.size, state)
        self._boots_due.add(key[:2])

    def _refuse(self, key: EpisodeKey, error: OSError) -> None:
        """Take back what the disk refused; the file is looked at anew before it is written to again."""
        if writer := self._writers.pop(key, None):
            writer.abandon()
        self._disk.refuse(error)

    def _close_oldest(self, coming: int, keep: Iterable[EpisodeKey]) -> None:
        """Close files so that no more than MAX_OPEN are open with those that come."""
        kept = set(keep)
        idle = [writer for key, writer in self._writers.items() if writer.is_open and key not in kept]
        for writer in idle[: max(0, len(idle) + coming - MAX_OPEN)]:
            writer.close()

    def _forget_files(self) -> None:
        for writer in self._writers.values():
            writer.abandon()
        self._writers.clear()

    def _finish_boot(self, boot_key: BootKey, *, only_over: bool = False) -> bool:
        """Finish the files of a boot, or only those to which nothing can come; True, for it is never done again."""
        boot = self._boots.get(boot_key)
        for key in [key for key in self._writers if key[:2] == boot_key]:
            writer = self._writers[key]
            with self._wake:
                is_over = boot is not None and writer.facts.is_over(boot.gone)
            if only_over and not is_over:
                continue
            try:
                writer.finish()
                writer.sync()
                writer.commit()
                self._retire(key)
            except OSError as error:
                self._refuse(key, error)
        self._boots_due.add(boot_key)
        return True

    def _list_boot(self, boot_key: BootKey) -> bool:
        self._boots_due.add(boot_key)
        return True

    def _run_commands(self) -> None:
        while True:
            with self._wake:
                if not self._commands:
                    return
                command = self._commands[0]
            if not command():
                return
            with self._wake:
                self._commands.popleft()

    def _keep_house(self) -> None:
        """Bring the catalogue up to date and the files below the quota, now and then."""
        now_s = time.monotonic()
        if now_s - self._settled_s >= SETTLE_S:
            self._settled_s = now_s
            self._settle()
        if self._settings.quota_gb > 0 and now_s - self._quota_s >= QUOTA_S:
            self._quota_s = now_s
            try:
                self._keep_quota()
            except (CatalogueError, OSError) as error:
                self._complain(error)

    def _settle(self) -> bool:
        """Write what the catalogue does not know yet; False where that must wait."""
        with self._wake:
            boots = [self._boots[key].to_row() for key in self._boots_due if key in self._boots]
            events = list(self._events_due)
        if not (boots or events or self._rows_due):
            return True
        try:
            self.catalogue.settle(boots, self._rows_due.values(), events)
        except CatalogueError as error:
            self._complain(error)
            return False
        self._repeats.reset("catalogue")
        self._rows_due.clear()
        self._boots_due.clear()
        with self._wake:
            del self._events_due[: len(events)]
        return True

    def _complain(self, error: Exception) -> None:
        if count := self._repeats.count("catalogue"):
            hint = "the episodes are safe; their rows are written once the catalogue can be"
            log.warning("catalogue.delayed", reason=str(error), count=count, rows=len(self._rows_due), hint=hint)

    def _keep_quota(self) -> None:
        excess = self.catalogue.total_bytes() - int(self._settings.quota_gb * 1e9)
        chosen: list[EpisodeRow] = []
        after_id = 0
        while excess > 0 and (rows := self.catalogue.deletable(after_id=after_id)):
            for row in rows:
                after_id = row.id
                is_idle = (row.rover_id, row.boot_id, row.episode_id) not in self._writers
                if excess > 0 and is_idle and self._may_delete(row):
                    chosen.append(row)
                    excess -= row.bytes
        self._delete(chosen)
        if excess <= 0:
            self._is_over_quota = False
        elif not self._is_over_quota:
            self._is_over_quota = True
            hint = "only complete training episodes that were used and in which no human drove are deleted"
            log.warning("store.quota_exceeded", excess_mb=excess >> 20, hint=hint)

    def _delete(self, rows: Sequence[EpisodeRow]) -> None:
        """Delete episodes so that a crash on the way leaves neither a row without a file nor the other way round."""
        if not rows:
            return
        self.catalogue.begin_deletion(rows)
        for row in rows:
            (self.folder / row.path).unlink(missing_ok=True)
        self.catalogue.end_deletion(rows)
        self.counters.deleted += len(rows)
        log.info("episodes.deleted", count=len(rows), megabytes=sum(row.bytes for row in rows) >> 20)

    def _end_deletions(self) -> None:
        rows = self.catalogue.deleting()
        for row in rows:
            (self.folder / row.path).unlink(missing_ok=True)
        if rows:
            self.catalogue.end_deletion(rows)

    def _know(self, row: BootRow) -> None:
        """Take up what the catalogue or a file says of a boot."""
        boot = self._boots.setdefault((row.rover_id, row.boot_id), _Boot(row, Format.of(row.robot)))
        boot.received.update(Ranges(row.received))
        boot.settled.update(Ranges(row.received))
        boot.gone.update(Ranges(row.gone))

    def _note(self, kind: str, text: str) -> None:
        with self._wake:
            self._events_due.append(Event(time.time_ns(), kind, text[:4096]))

    def _report(self, findings: recovery.Findings) -> None:
        """Log, count and note what was found when files were brought into order."""
        self.counters.recovered += findings.scanned
        for path, count in findings.truncated:
            self.counters.truncated_bytes += count
            hint = "a write was under way when trainerd died; none of it had been acknowledged"
            log.warning("episode.truncated", path=str(path), bytes=count, hint=hint)
            self._note("episode_truncated", f"{path}: {count} bytes")
        for path, count in findings.emptied:
            self.counters.truncated_bytes += count
            hint = "it was being begun when trainerd died; none of it had been acknowledged"
            log.warning("episode.emptied", path=str(path), bytes=count, hint=hint)
            self._note("episode_emptied", f"{path}: {count} bytes")
        for path, reason in findings.damaged:
            self.counters.quarantined += 1
            hint = "what could be read was kept as an episode; the damaged file is at path; look at the disk"
            log.error("episode.damaged", path=str(path), reason=reason, hint=hint)
            self._note("episode_damaged", f"{path}: {reason}")
        for row in findings.missing:
            hint = "somebody removed it; use store.quota_gb to have old episodes deleted"
            log.warning("episode.missing", path=str(self.folder / row.path), records=row.records, hint=hint)
            self._note("episode_missing", f"{row.path}: {row.records} records")
            self._rows_due[row.rover_id, row.boot_id, row.episode_id] = replace(row, state=DAMAGED, bytes=0)

    def _shut(self) -> None:
        for boot_key in {key[:2] for key in self._writers}:
            self._finish_boot(boot_key)
        for writer in self._writers.values():
            writer.close()
        deadline_s = time.monotonic() + STOP_S
        while not self._settle() and time.monotonic() < deadline_s:
            time.sleep(RETRY_S / 10)
        self._run_commands()
