"""Audit what is stored: draw episodes from the catalogue, read their files, and make every check on them.

It reads files and a read-only view of the catalogue, and so never loads a running daemon. docs/audit.md explains the
checks and the shape of the answer.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from protocol.errors import RoverError
from protocol.framing import ProtocolError, allocate, decode_record
from protocol.step import EpisodeEnd, Step
from trainerd.episodes.catalogue import CatalogueError, EpisodeRow, read_episodes
from trainerd.episodes.checks.entry import Entry, read_entry
from trainerd.episodes.checks.findings import CHECKS, Findings, Offence
from trainerd.episodes.checks.frames import Frames
from trainerd.episodes.checks.motion import Motion, Rows, check_motion, check_sources, rows_of
from trainerd.episodes.checks.order import check_order
from trainerd.episodes.checks.policy import Replay, Shelf
from trainerd.episodes.checks.successor import check_successors
from trainerd.episodes.checks.thresholds import Thresholds
from trainerd.episodes.reader import EpisodeError, open_episode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from protocol.spec import RobotSpec, TaskSpec
    from trainerd.episodes.records import StoredRecord

EPISODES = "episodes"
CATALOGUE = "catalogue.sqlite"
POLICIES = "policies"
SAMPLE = 20
FRAMES = 64
"""Decisions of an episode whose images are decoded, evenly spread; a whole audit decodes all."""
SHOWN = 20
"""Offences in the answer."""
FINISHED = ("complete", "incomplete")
SPEED_CHECKS = ("applied.gain", "applied.follow", "applied.cause")


class AuditError(RoverError):
    """There is nothing that could be audited; nothing was found wrong."""


class StoredEpisode(Protocol):
    """What is audited: an episode's records, and the robot and task they are of (episodes.reader.EpisodeFile)."""

    robot: RobotSpec
    task: TaskSpec

    def records(self, *, verify: bool = True) -> Iterable[StoredRecord]:
        """Yield each record once, in rising seq; raises EpisodeError where one is damaged."""


@dataclass
class Audited:
    """One audited episode."""

    findings: Findings
    rows: list[Rows]
    robot_hash: str
    first_seq: int | None = None
    last_seq: int | None = None
    records: int = 0
    steps: int = 0


@dataclass
class Report:
    """What an audit found."""

    findings: Findings
    sample: int
    seed: int
    stored: int = 0
    audited: int = 0
    steps: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True where no check failed."""
        return not self.findings.offences

    def to_map(self) -> dict[str, Any]:
        """Return the answer of ``trainerctl audit --json``."""
        first = self.findings.first
        return {
            "ok": self.ok,
            "sample": self.sample,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "episodes": {"stored": self.stored, "audited": self.audited, "skipped": dict(self.skipped)},
            "steps": self.steps,
            "checks": [
                {
                    "check": check,
                    "checked": tally.checked,
                    "offences": tally.offences,
                    "skipped": dict(tally.skipped.most_common()),
                    "about": CHECKS[check],
                }
                for check, tally in self.findings.tallies.items()
            ],
            "first_offence": first.to_map() if first else None,
            "offences": [offence.to_map() for offence in self.findings.offences[:SHOWN]],
        }


def audit(
    state_dir: Path,
    *,
    sample: int = SAMPLE,
    seed: int | None = None,
    rover_id: str | None = None,
    episode_id: int | None = None,
    limits: Thresholds | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:
    """Audit episodes of a trainer's state folder.

    Args:
        state_dir: the folder with the episodes, their catalogue, and the policies.
        sample: how many episodes to draw at random; 0 audits all of them, and every frame.
        seed: of the draw; None draws one, which the report names.
        rover_id: only episodes of this rover.
        episode_id: only episodes of this number (one for each boot).
        limits: what the checks compare with; None: the documented ones.
        progress: told how many of how many episodes are done.

    Raises:
        AuditError: there is no catalogue or no finished episode that fits.

    """
    began_s = time.monotonic()
    limits = limits or Thresholds()
    folder = state_dir / EPISODES
    listed = [
        row
        for row in list_episodes(state_dir)
        if rover_id in {None, row.rover_id} and episode_id in {None, row.episode_id}
    ]
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    report = Report(Findings(), sample, seed, stored=len(listed))
    finished = [row for row in listed if row.state in FINISHED]
    report.skipped.update(row.state for row in listed if row.state not in FINISHED)
    if not finished:
        others = ", ".join(f"{count} {state}" for state, count in report.skipped.items()) or "none at all"
        raise AuditError(f"audit: no finished episode that fits in {folder}, but {others}; wait for one to end")
    chosen = _draw(finished, sample, seed)
    shelf = Shelf(state_dir / POLICIES)
    motions: dict[tuple[str, str], Motion] = {}
    for number, row in enumerate(chosen):
        progress(number, len(chosen))
        audited = _audit_row(folder, row, shelf, limits, every_frame=sample == 0)
        if audited is None:
            report.skipped["deleted meanwhile"] += 1
            continue
        report.audited += 1
        report.steps += audited.steps
        report.findings.add(audited.findings)
        motion = motions.setdefault((row.rover_id, audited.robot_hash), Motion())
        motion.add(_place(folder, row), audited.rows)
    progress(len(chosen), len(chosen))
    failed = {offence.rover_id for offence in report.findings.offences if offence.check in SPEED_CHECKS}
    for (rover, _), motion in motions.items():
        if rover not in failed:
            report.findings.add(_judge_together(motion, limits))
    report.seconds = time.monotonic() - began_s
    return report


def _draw(rows: Sequence[EpisodeRow], sample: int, seed: int) -> list[EpisodeRow]:
    if sample == 0 or sample >= len(rows):
        return list(rows)
    return sorted(random.Random(seed).sample(list(rows), sample), key=lambda row: row.id)


def _place(folder: Path, row: EpisodeRow) -> dict[str, Any]:
    path = str(folder / row.path)
    return {"path": path, "rover_id": row.rover_id, "boot_id": row.boot_id, "episode_id": row.episode_id}


def _judge_together(motion: Motion, limits: Thresholds) -> Findings:
    """Judge the speeds of all drawn episodes of a rover as one: each alone may be too short or too calm."""
    findings = Findings()
    worst = motion.judge(limits, findings)
    if worst:
        seq, _ = worst.pop("seq"), worst.pop("name")
        findings.locate(**worst, seq=seq)
        findings.note("over all drawn episodes of the rover; this one fits worst")
    return findings


def _audit_row(folder: Path, row: EpisodeRow, shelf: Shelf, limits: Thresholds, *, every_frame: bool) -> Audited | None:
    """Audit one listed episode; None where it was deleted since the catalogue was read."""
    path = folder / row.path
    try:
        episode = open_episode(path)
    except EpisodeError as error:
        if not path.exists() and not list_episodes(folder.parent, row.id):
            return None
        findings = Findings()
        findings.hold("order.crc", row.first_seq or 0, str(error), holds=False)
        audited = Audited(findings, [], "")
    else:
        step_share = max(1, -(-row.steps // (FRAMES * episode.robot.action_repeat)))
        audited = audit_episode(
            episode,
            shelf=shelf,
            is_complete=row.state == "complete",
            every=1 if every_frame else step_share,
            limits=limits,
        )
        if not audited.findings.failed("order.crc"):
            _check_listed(row, audited)
    audited.findings.locate(**_place(folder, row))
    return audited


def _check_listed(row: EpisodeRow, audited: Audited) -> None:
    for name in ("records", "steps", "first_seq", "last_seq"):
        stated, found = getattr(row, name), getattr(audited, name)
        what = f"the catalogue says {name} {stated}, the file has {found}"
        audited.findings.hold("order.catalogue", audited.first_seq or 0, what, holds=stated == found)


def audit_episode(
    episode: StoredEpisode,
    *,
    shelf: Shelf,
    is_complete: bool = True,
    every: int = 1,
    limits: Thresholds | None = None,
) -> Audited:
    """Make every check on one episode, reading its records once.

    Args:
        episode: its records, robot and task.
        shelf: where its policies may be.
        is_complete: False where records are known to be missing: gaps are then no offence.
        every: images are decoded, and policies asked, on every so-manieth decision.
        limits: what the checks compare with; None: the documented ones.

    """
    limits = limits or Thresholds()
    robot, findings = episode.robot, Findings()
    reading = _Reading(episode, shelf, every, limits, findings)
    entries = reading.read(is_complete=is_complete)
    rows: list[Rows] = []
    if entries:
        is_complete = is_complete and not findings.failed("order.crc")
        check_order(entries, robot, limits, findings)
        check_successors(entries, robot, limits, findings, is_complete=is_complete)
        check_sources(entries, robot, limits, findings)
        rows = rows_of(entries, robot)
        check_motion(rows, robot, limits, findings)
        reading.frames.judge(entries)
    else:
        findings.hold("order.crc", 0, "the file holds no record", holds=findings.failed("order.crc"))
    steps = sum(isinstance(entry.record, Step) for entry in entries)
    first, last = (entries[0].seq, entries[-1].seq) if entries else (None, None)
    return Audited(findings, rows, robot.hash, first, last, len(entries), steps)


class _Reading:
    """One pass over the records of an episode: everything that needs images is done here, and they are let go."""

    def __init__(
        self, episode: StoredEpisode, shelf: Shelf, every: int, limits: Thresholds, findings: Findings
    ) -> None:
        self._episode, self._every, self._findings = episode, every, findings
        self._robot, self._task = episode.robot, episode.task
        self.frames = Frames(self._robot, limits, findings)
        self._replay = Replay(shelf, self._robot, self._task, limits, findings)
        self._buffers = allocate(self._robot)
        self._decisions = 0

    def read(self, *, is_complete: bool) -> list[Entry]:
        entries: list[Entry] = []
        try:
            for stored in self._episode.records(verify=True):
                entry = self._entry(stored)
                if entry is None:
                    continue
                before = entries[-1].seq + 1 if entries else None
                entry.after_gap = not is_complete and before != entry.seq and not (before is None and _begins(entry))
                entries.append(entry)
                self._look(stored, entry)
        except EpisodeError as error:
            following = entries[-1].seq + 1 if entries else 0
            self._findings.hold("order.crc", following, str(error), holds=False)
        return entries

    def _entry(self, stored: StoredRecord) -> Entry | None:
        try:
            entry = read_entry(stored.header, stored.frames, self._robot, self._task)
        except ProtocolError as error:
            self._findings.hold("order.crc", stored.seq, f"cannot be decoded: {error}", holds=False)
            return None
        self._findings.hold("order.crc", stored.seq, "", holds=True)
        return entry

    def _look(self, stored: StoredRecord, entry: Entry) -> None:
        record = entry.record
        if isinstance(record, Step):
            self._replay.check(record)
        blobs = stored.header["blobs"]
        if not self.frames.check_headers(stored.seq, blobs, stored.frames[1:]):
            return
        self.frames.mark_blank(entry, blobs, stored.frames[1:])
        if not self._is_picked(record):
            if isinstance(record, Step) and record.decides and record.behaviour is not None:
                self._findings.skip(
                    "policy.mean", "beyond the decisions drawn of an episode; --sample 0 asks about all"
                )
            self._findings.skip("frames.size", "depth that was not decoded", _depths(blobs))
            return
        try:
            decoded = decode_record(stored.header, stored.frames[1:], self._robot, self._task, lambda: self._buffers)
        except ProtocolError as error:
            self._findings.hold("frames.size", stored.seq, str(error), holds=False)
            return
        if isinstance(decoded, Step):
            self.frames.look(stored.seq, decoded.observation.images)
            self._replay.ask(decoded)
        else:
            self.frames.look(stored.seq, decoded.final.images)

    def _is_picked(self, record: Step | EpisodeEnd) -> bool:
        if isinstance(record, EpisodeEnd):
            return True
        if not record.decides:
            return False
        self._decisions += 1
        return (self._decisions - 1) % self._every == 0


def _depths(blobs: Sequence[Sequence[str]]) -> int:
    return sum(".depth." in blob[0] for blob in blobs)


def _begins(entry: Entry) -> bool:
    record = entry.record
    return (record.episode_steps if isinstance(record, EpisodeEnd) else record.episode_step) == 0


def list_episodes(state_dir: Path, row_id: int | None = None) -> list[EpisodeRow]:
    """List the stored episodes, or the one of a row, whether a daemon runs or not; raises AuditError."""
    path = state_dir / CATALOGUE
    if not path.is_file():
        raise AuditError(f"audit: {path}: there is no catalogue; name the trainer's folder with --state-dir")
    try:
        return read_episodes(path, row_id)
    except CatalogueError as error:
        raise AuditError(f"audit: {error}; trainerd repairs its catalogue when it starts") from error


__all__ = ["AuditError", "Audited", "Offence", "Report", "audit", "audit_episode", "list_episodes"]
