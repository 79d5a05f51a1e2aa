"""The audit of truth: what went over the wire and was acknowledged, against what lies in the trainer's store.

The ledger stands outside of both daemons. It reads the link (mechanism NULL), before any fault touches the bytes, and
the files of the episode store; so it shares no code with what it checks but the framing of records and the reader.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.framing import ProtocolError, record_kind, unpack
from tests.faults.spans import Spans
from tests.faults.wire import UP
from tests.faults.zmtp import ZmtpReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

Boot = tuple[str, str]
"""rover_id, boot_id"""
Identity = tuple[str, str, int]
"""rover_id, boot_id, seq"""
DETAILS = 8


def digest(frames: Sequence[bytes]) -> bytes:
    """Return a hash of a record's frames and where each ends."""
    made = hashlib.blake2b(digest_size=12)
    for frame in frames:
        made.update(len(frame).to_bytes(8, "little"))
        made.update(frame)
    return made.digest()


@dataclass
class Verdict:
    """What the audit found; all three first ones must be 0."""

    acked_lost: int = 0
    """Records that the trainer acknowledged and does not have."""
    duplicates: int = 0
    """Records that lie in the store more than once."""
    undetected_corruption: int = 0
    """Records of the store that are not what the rover sent, and nobody said so."""
    given_up: int = 0
    """Records missing before later ones that the trainer counted as lost, as on a rover's full disk."""
    gaps: int = 0
    """Records missing before later ones of the same boot that nobody declared gone."""
    stored: int = 0
    acked: int = 0
    sent: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.acked_lost or self.duplicates or self.undetected_corruption or self.gaps)


class Ledger:
    """What passed on the link; thread-safe. Give ``observe`` to a Wire."""

    def __init__(self) -> None:
        self.sent: dict[Boot, dict[int, bytes]] = defaultdict(dict)
        """Digest of each record by seq, as the rover sent it first."""
        self.acked: dict[Boot, Spans] = defaultdict(Spans)
        self.gone: dict[Boot, Spans] = defaultdict(Spans)
        self.changed: list[Identity] = []
        """Records that were sent again with other content."""
        self.messages: Counter[str] = Counter()
        self.resent = 0
        self.lock = threading.RLock()
        self._readers: dict[tuple[int, str], ZmtpReader] = defaultdict(ZmtpReader)
        self._rovers: dict[int, str] = {}
        """The rover of each connection."""

    def observe(self, connection: int, direction: str, content: bytes) -> None:
        """Take bytes of a connection in."""
        with self.lock:
            for frames in self._readers[connection, direction].feed(content):
                self.see(connection, frames, is_up=direction == UP)

    def see(self, connection: int, frames: list[bytes], *, is_up: bool) -> None:
        """Take one message in."""
        try:
            header = unpack(frames[0])
        except ProtocolError:
            self.messages["malformed"] += 1
            return
        self.messages[str(header.get("kind"))] += 1
        if is_up and record_kind(header):
            self._note_record(header, frames)
        elif is_up and header["kind"] == "hello":
            self._rovers[connection] = header["rover_id"]
        elif is_up and header["kind"] == "gone":
            self._add(self.gone, connection, header["boot_id"], header["ranges"])
        elif not is_up and header["kind"] == "ack":
            self._add(self.acked, connection, header["boot_id"], header["ranges"])
        elif not is_up and header["kind"] == "welcome":
            for boot_id, ranges in {header["boot_id"]: header["received"], **header.get("backlog", {})}.items():
                self._add(self.acked, connection, boot_id, ranges)

    def expect(self, rover_id: str, boot_id: str, seq: int, frames: Sequence[bytes]) -> None:
        """Note what a record must be, from a source other than the link, such as the rover's spool."""
        with self.lock:
            self._compare((rover_id, boot_id, seq), digest(frames))

    def audit(self, store: Store) -> Verdict:
        """Compare with what a store holds."""
        with self.lock:
            found = Verdict(
                duplicates=len(store.repeated),
                undetected_corruption=len(self.changed),
                stored=sum(map(len, store.digests.values())),
                acked=sum(map(len, self.acked.values())),
                sent=sum(map(len, self.sent.values())),
            )
            found.details += [f"twice in the store: {each}" for each in store.repeated[:DETAILS]]
            found.details += [f"sent again with other content: {each}" for each in self.changed[:DETAILS]]
            for boot in sorted({*self.acked, *self.sent, *store.digests}):
                self._audit_boot(boot, store, found)
            return found

    def audit_store_only(self, store: Store) -> Verdict:
        """Judge a store when the link could not be read: what lies twice, holes, and what differs from the spool."""
        with self.lock:
            found = Verdict(duplicates=len(store.repeated), stored=sum(map(len, store.digests.values())))
            found.undetected_corruption = len(self.changed)
            for boot, stored in sorted(store.digests.items()):
                holes = Spans([(0, max(stored))]).without(stored) if stored else []
                wrong = [seq for seq, value in self.sent[boot].items() if stored.get(seq, value) != value]
                found.gaps += len(holes)
                found.undetected_corruption += len(wrong)
                if holes or wrong:
                    found.details.append(f"{boot[0]} {boot[1]}: missing {holes[:DETAILS]}, changed {wrong[:DETAILS]}")
            return found

    def _audit_boot(self, boot: Boot, store: Store, found: Verdict) -> None:
        stored, sent, gone = store.digests.get(boot, {}), self.sent[boot], self.gone[boot]
        lost = [seq for seq in self.acked[boot].without(stored) if seq not in gone]
        wrong = [seq for seq, value in stored.items() if seq in sent and sent[seq] != value]
        never_sent = [seq for seq in stored if seq not in sent]
        missing = Spans([(0, max(stored))]).without(stored) if stored else []
        declared = store.given_up[boot]
        holes = [seq for seq in missing if not (seq in gone or seq in declared or seq in self.acked[boot])]
        found.given_up += sum(seq in declared for seq in missing)
        found.acked_lost += len(lost)
        found.undetected_corruption += len(wrong) + len(never_sent)
        found.gaps += len(holes)
        for what, each in (
            ("acknowledged and lost", lost),
            ("not what was sent", wrong),
            ("stored and never sent", never_sent),
            ("missing before later ones", holes),
        ):
            if each:
                found.details.append(f"{boot[0]} {boot[1]}: {what}: {len(each)}, first {sorted(each)[:DETAILS]}")

    def _note_record(self, header: dict[str, Any], frames: list[bytes]) -> None:
        boot = (header["rover_id"], header["boot_id"])
        seq = header["seq"]
        self.resent += seq in self.sent[boot]
        self._compare((*boot, seq), digest(frames))

    def _compare(self, identity: Identity, value: bytes) -> None:
        known = self.sent[identity[:2]].setdefault(identity[2], value)
        if known != value:
            self.changed.append(identity)

    def _add(self, where: dict[Boot, Spans], connection: int, boot_id: str, ranges: Iterable[Sequence[int]]) -> None:
        for low, high in ranges:
            where[self._rovers.get(connection, "?"), boot_id].add(low, high)


class Store:
    """What lies in an episode store, read file by file; files that did not change are read once."""

    def __init__(self, folder: Path) -> None:
        self.digests: dict[Boot, dict[int, bytes]] = {}
        self.ticks_ns: dict[Boot, list[int]] = {}
        """The rover's monotonic clock at each step."""
        self.repeated: list[Identity] = []
        self.unreadable: dict[str, str] = {}
        """Files that cannot be read, and why."""
        self.given_up: dict[Boot, Spans] = defaultdict(Spans)
        """What the trainer counted as lost, and says so in its catalogue."""
        self._folder = folder
        self._files: dict[Path, tuple[tuple[int, int], list[tuple[Identity, bytes, int]]]] = {}

    def read(self) -> Store:
        """Read what is new; the trainer should be stopped, or the newest records may be missing."""
        self.digests, self.ticks_ns, self.repeated = defaultdict(dict), defaultdict(list), []
        self._read_given_up()
        for path in sorted(self._folder.rglob("*.mcap")):
            for identity, value, tick_ns in self._records_of(path):
                if identity[2] in self.digests[identity[:2]]:
                    self.repeated.append(identity)
                self.digests[identity[:2]][identity[2]] = value
                if tick_ns:
                    self.ticks_ns[identity[:2]].append(tick_ns)
        return self

    def _read_given_up(self) -> None:
        path = self._folder.parent / "catalogue.sqlite"
        if path.exists():
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as catalogue:
                for rover_id, boot_id, gone in catalogue.execute("SELECT rover_id, boot_id, gone FROM boots"):
                    self.given_up[rover_id, boot_id] = Spans(json.loads(gone))

    def _records_of(self, path: Path) -> list[tuple[Identity, bytes, int]]:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._files.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        self.unreadable.pop(str(path), None)
        records: list[tuple[Identity, bytes, int]] = []
        try:
            for identity, frames in records_of(path):
                records.append((identity, digest(frames), unpack(frames[0]).get("tick_ns") or 0))
        except RoverError as error:
            self.unreadable[str(path)] = str(error)
        self._files[path] = (stamp, records)
        return records


def records_of(path: Path) -> Iterator[tuple[Identity, list[bytes]]]:
    """Return the records of an episode file with the frames as they came over the wire."""
    from trainerd.episodes.reader import open_episode

    for record in open_episode(path).records(verify=True):
        yield (record.rover_id, record.boot_id, record.seq), list(record.frames)
