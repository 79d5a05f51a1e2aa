"""The catalogue of episodes: SQLite, written by the store's thread only, and never before the episodes themselves.

What the catalogue says of an episode can be made again from its file; only the ranges of what was received of each boot
outlive the files.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from protocol.errors import RoverError
from protocol.spec import RobotSpec, SpecError, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

OPEN, COMPLETE, INCOMPLETE, DAMAGED, DELETING = "open", "complete", "incomplete", "damaged", "deleting"
STATES = (OPEN, COMPLETE, INCOMPLETE, DAMAGED)
BUSY_MS = 50
"""How long a statement waits for another writer, before the store goes on with what matters more."""
READ_BUSY_MS = 5000
"""How long another process waits that only reads: nothing hangs on it."""
OPEN_DEADLINE_S = 5.0
_RETRY_S = 0.05

_MIGRATIONS = (
    """
    CREATE TABLE specs (hash TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE boots (
        rover_id TEXT NOT NULL, boot_id TEXT NOT NULL, run_id TEXT NOT NULL, epoch_ns INTEGER NOT NULL,
        robot_hash TEXT NOT NULL, task_hash TEXT NOT NULL, received TEXT NOT NULL, gone TEXT NOT NULL,
        created_ns INTEGER NOT NULL, PRIMARY KEY (rover_id, boot_id)
    ) WITHOUT ROWID;
    CREATE TABLE episodes (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, rover_id TEXT NOT NULL, boot_id TEXT NOT NULL,
        episode_id INTEGER NOT NULL, path TEXT NOT NULL, state TEXT NOT NULL, first_seq INTEGER, last_seq INTEGER,
        records INTEGER NOT NULL, steps INTEGER NOT NULL, purpose TEXT NOT NULL, success INTEGER NOT NULL,
        reason TEXT NOT NULL, return_ REAL, human_steps INTEGER NOT NULL, policy_ids TEXT NOT NULL,
        min_counter INTEGER, max_counter INTEGER, bytes INTEGER NOT NULL, created_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL, UNIQUE (rover_id, boot_id, episode_id)
    );
    CREATE INDEX episodes_by_run ON episodes (run_id, id);
    CREATE TABLE events (id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
    """,
)


class CatalogueError(RoverError):
    """The catalogue cannot be opened or written; the episodes are safe without it."""


class CatalogueBusyError(CatalogueError):
    """Another process holds the catalogue; the same call may succeed later."""


@dataclass(frozen=True)
class EpisodeRow:
    """An episode. ``path`` is relative to the store's folder; ``sha256`` is empty until somebody asked for it."""

    run_id: str
    rover_id: str
    boot_id: str
    episode_id: int
    path: str
    state: str
    first_seq: int | None
    last_seq: int | None
    records: int
    steps: int
    purpose: str
    success: bool
    reason: str
    return_: float | None
    human_steps: int
    policy_ids: tuple[str, ...]
    min_counter: int | None
    max_counter: int | None
    bytes: int
    created_ns: int
    sha256: str = ""
    id: int = 0


@dataclass(frozen=True)
class BootRow:
    """A boot of a rover: the specs it greeted with and what of it is safe on disk (or was, before it was deleted)."""

    rover_id: str
    boot_id: str
    run_id: str
    epoch_ns: int
    robot: RobotSpec
    task: TaskSpec
    received: list[list[int]] = field(default_factory=list)
    gone: list[list[int]] = field(default_factory=list)
    created_ns: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened to the store and that somebody may want to know of later."""

    time_ns: int
    kind: str
    text: str


class Catalogue:
    """The catalogue's file. Reading opens a connection of its own, so any thread and any process may."""

    def __init__(self, path: Path) -> None:
        """Open the catalogue, make it where there is none, and bring it to the newest schema.

        A damaged file is put aside (``damaged_path``); the store then finds the episodes again by their files.

        Raises:
            CatalogueError: it is of a newer version, locked for long, or cannot be made.

        """
        self.path = path
        self.damaged_path: Path | None = None
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise CatalogueError(f"catalogue {path}: {error}") from error
            self.damaged_path = self._put_aside()
            self._writer = self._open()

    def close(self) -> None:
        """Close the connection that writes."""
        with self._lock:
            self._writer.close()

    def settle(
        self, boots: Iterable[BootRow] = (), episodes: Iterable[EpisodeRow] = (), events: Iterable[Event] = ()
    ) -> None:
        """Write rows in one transaction; each replaces the one of the same boot or episode.

        Raises:
            CatalogueBusyError: another process writes.
            CatalogueError: the disk is full, or the file is damaged.

        """

        def write(database: sqlite3.Connection) -> None:
            for boot in boots:
                _write_boot(database, boot)
            for row in episodes:
                _write_episode(database, row)
            values = [(each.time_ns, each.kind, each.text) for each in events]
            database.executemany("INSERT INTO events (time_ns, kind, text) VALUES (?, ?, ?)", values)

        self._transact(write)

    def boots(self) -> list[BootRow]:
        """List every boot."""
        rows = self._read(
            "SELECT rover_id, boot_id, run_id, epoch_ns, r.json AS robot, t.json AS task, received, gone, created_ns"
            " FROM boots JOIN specs r ON r.hash = robot_hash JOIN specs t ON t.hash = task_hash"
            " ORDER BY created_ns, rover_id, boot_id"
        )
        try:
            return [
                BootRow(
                    **{**row, "robot": RobotSpec.from_map(json.loads(row["robot"]))}
                    | {"task": TaskSpec.from_map(json.loads(row["task"]))}
                    | {key: json.loads(row[key]) for key in ("received", "gone")}
                )
                for row in rows
            ]
        except (ValueError, SpecError) as error:
            text = f"table boots: {error}; delete the file, and it is made again"
            raise CatalogueError(f"catalogue {self.path}: {text}") from error

    def episodes(
        self,
        *,
        run_id: str | None = None,
        rover_id: str | None = None,
        boot_id: str | None = None,
        episode_id: int | None = None,
        states: Sequence[str] = (),
        purposes: Sequence[str] = (),
        after_id: int = 0,
        limit: int = -1,
    ) -> list[EpisodeRow]:
        """List the episodes that fit, in the order in which they were begun; those being deleted are left out."""
        where, values = ["id > ?", "state != ?"], [after_id, DELETING]
        for column, value in (
            ("run_id", run_id),
            ("rover_id", rover_id),
            ("boot_id", boot_id),
            ("episode_id", episode_id),
        ):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        for column, choices in (("state", states), ("purpose", purposes)):
            if choices:
                where.append(f"{column} IN ({','.join('?' * len(choices))})")
                values += choices
        rows = self._read(
            f"SELECT * FROM episodes WHERE {' AND '.join(where)} ORDER BY id LIMIT ?",  # noqa: S608 - columns are ours
            (*values, limit),
        )
        return [_episode(row) for row in rows]

    def total_bytes(self) -> int:
        """Return the size of all episodes."""
        return int(self._read("SELECT coalesce(sum(bytes), 0) AS total FROM episodes")[0]["total"])

    def deletable(self, limit: int = 100, after_id: int = 0) -> list[EpisodeRow]:
        """List the oldest complete training episodes in which no human drove."""
        rows = self._read(
            "SELECT * FROM episodes WHERE state = ? AND purpose = 'training' AND human_steps = 0 AND id > ?"
            " ORDER BY id LIMIT ?",
            (COMPLETE, after_id, limit),
        )
        return [_episode(row) for row in rows]

    def deleting(self) -> list[EpisodeRow]:
        """List the episodes whose deletion was begun and may not have ended."""
        return [_episode(row) for row in self._read("SELECT * FROM episodes WHERE state = ?", (DELETING,))]

    def begin_deletion(self, rows: Sequence[EpisodeRow]) -> None:
        """Hide episodes; their files may now go. Raises as ``settle`` does."""
        self._execute_each("UPDATE episodes SET state = 'deleting' WHERE id = ?", rows)

    def end_deletion(self, rows: Sequence[EpisodeRow]) -> None:
        """Forget episodes whose files are gone. Raises as ``settle`` does."""
        self._execute_each("DELETE FROM episodes WHERE id = ?", rows)

    def set_sha256(self, row_id: int, sha256: str) -> None:
        """Keep the hash of an episode's file, which whoever makes a dataset computes. Raises as ``settle`` does."""
        self._transact(
            lambda database: database.execute("UPDATE episodes SET sha256 = ? WHERE id = ?", (sha256, row_id))
        )

    def events(self, limit: int = 100) -> list[Event]:
        """List the newest events, newest first."""
        rows = self._read("SELECT time_ns, kind, text FROM events ORDER BY id DESC LIMIT ?", (limit,))
        return [Event(**row) for row in rows]

    def _execute_each(self, statement: str, rows: Sequence[EpisodeRow]) -> None:
        self._transact(lambda database: database.executemany(statement, [(row.id,) for row in rows]))

    def _transact(self, write: Any) -> None:
        with self._lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    write(self._writer)
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                kind = CatalogueBusyError if _is_busy(error) else CatalogueError
                raise kind(f"catalogue {self.path}: {error}") from error

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        try:
            with closing(self._connect()) as database:
                database.row_factory = _as_dict
                return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise CatalogueError(f"catalogue {self.path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=1e-3 * BUSY_MS, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        return database

    def _open(self) -> sqlite3.Connection:
        deadline_s = time.monotonic() + OPEN_DEADLINE_S
        while True:
            database = self._connect()
            try:
                self._migrate(database)
            except sqlite3.OperationalError as error:
                database.close()
                if not _is_busy(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(_RETRY_S)
            except BaseException:
                database.close()
                raise
            else:
                return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            text = f"schema version {version}, this trainerd knows {len(_MIGRATIONS)}; update trainerd"
            raise CatalogueError(f"catalogue {self.path}: {text}")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        for number, statements in enumerate(_MIGRATIONS[version:], version + 1):
            database.executescript(f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {number}; COMMIT;")

    def _put_aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return aside


def read_episodes(path: Path, row_id: int | None = None) -> list[EpisodeRow]:
    """List the episodes of a catalogue, or the one of a row, without ever writing to it; raises CatalogueError."""
    one = "" if row_id is None else " AND id = ?"
    query = f"SELECT {', '.join(['id', *_COLUMNS])} FROM episodes WHERE state != ?{one} ORDER BY id"  # noqa: S608
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as database:
            database.execute(f"PRAGMA busy_timeout = {READ_BUSY_MS}")
            database.row_factory = _as_dict
            return [_episode(row) for row in database.execute(query, [DELETING, *([] if row_id is None else [row_id])])]
    except sqlite3.Error as error:
        raise CatalogueError(f"{path}: {error}") from error


def _write_boot(database: sqlite3.Connection, boot: BootRow) -> None:
    hashes = []
    for spec in (boot.robot, boot.task):
        hashes.append(spec.hash)
        database.execute("INSERT OR IGNORE INTO specs VALUES (?, ?)", (spec.hash, json.dumps(spec.to_map())))
    database.execute(
        "INSERT INTO boots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET run_id = excluded.run_id,"
        " epoch_ns = excluded.epoch_ns, received = excluded.received, gone = excluded.gone",
        (
            boot.rover_id,
            boot.boot_id,
            boot.run_id,
            boot.epoch_ns,
            *hashes,
            json.dumps(boot.received),
            json.dumps(boot.gone),
            boot.created_ns,
        ),
    )


_COLUMNS = [each.name for each in fields(EpisodeRow) if each.name != "id"]
_KEPT = ("rover_id", "boot_id", "episode_id", "created_ns")
_WRITE_EPISODE = (
    f"INSERT INTO episodes ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
    " ON CONFLICT (rover_id, boot_id, episode_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in _KEPT)
)


def _write_episode(database: sqlite3.Connection, row: EpisodeRow) -> None:
    values = asdict(row) | {"policy_ids": json.dumps(row.policy_ids)}
    database.execute(_WRITE_EPISODE, [values[name] for name in _COLUMNS])


def _episode(row: dict[str, Any]) -> EpisodeRow:
    return EpisodeRow(**row | {"policy_ids": tuple(json.loads(row["policy_ids"])), "success": bool(row["success"])})


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _is_busy(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in ("locked", "busy"))
