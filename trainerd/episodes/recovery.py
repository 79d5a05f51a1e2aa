"""Bring episode files into order after a crash, and find out from the files alone what the catalogue should say.

A torn end is cut off: it was never acknowledged. A file that is damaged elsewhere is moved to the quarantine as it is,
and what can still be read of it is written into a new file in its place.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.files import sync_folder
from protocol.ranges import Ranges
from trainerd.episodes import mcap
from trainerd.episodes.catalogue import COMPLETE, DAMAGED, INCOMPLETE, OPEN, BootRow, EpisodeRow
from trainerd.episodes.reader import EpisodeError, EpisodeFile, episode_file, opened
from trainerd.episodes.records import FORMAT, Facts, Format, StoredRecord
from trainerd.episodes.writer import EpisodeWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trainerd.episodes.catalogue import Catalogue

SUFFIX = ".mcap"
_PARTIAL = ".partial"


@dataclass
class Recovered:
    """What a file was found to hold, once it is in order and on the disk."""

    boot: BootRow
    row: EpisodeRow
    facts: Facts
    groups: list[mcap.Group]
    prologue: mcap.Prologue


@dataclass
class Findings:
    """What was found when the store began, besides the episodes."""

    scanned: int = 0
    truncated: list[tuple[Path, int]] = field(default_factory=list)
    """Files of which a torn end was cut off, and its bytes."""
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    """Files (where they now lie) that were damaged, and the first place."""
    emptied: list[tuple[Path, int]] = field(default_factory=list)
    """Files that were removed because no whole group was in them, so nothing was acknowledged; and their bytes."""
    missing: list[EpisodeRow] = field(default_factory=list)
    """Episodes of the catalogue whose files are gone."""


def episode_path(rover_id: str, boot_id: str, episode_id: int) -> str:
    """Return where an episode's file lies below the store's folder."""
    return f"{rover_id}/{boot_id}/{episode_id:08d}{SUFFIX}"


def recover(
    folder: Path, catalogue: Catalogue, quarantine: Path, findings: Findings, *, everything: bool = False
) -> Iterator[Recovered]:
    """Yield every episode that the catalogue does not know, or not as it is now, brought into order.

    Args:
        folder: where the episodes lie.
        catalogue: what is known of them.
        quarantine: where damaged files go.
        findings: what else is found is added to it.
        everything: verify the files that the catalogue knows as well.

    Raises:
        CatalogueError: the catalogue cannot be read.
        OSError: a file cannot be brought into order: the disk is full or broken.

    """
    known = {row.path: row for row in catalogue.episodes()}
    boots = {(boot.rover_id, boot.boot_id): boot for boot in catalogue.boots()}
    found = set()
    for path in sorted(folder.glob(f"*/*/*{_PARTIAL}")):
        path.unlink()
    for path in sorted(folder.glob(f"*/*/*{SUFFIX}")):
        name = str(path.relative_to(folder))
        found.add(name)
        row = known.get(name)
        if row and row.state != OPEN and row.bytes == path.stat().st_size and not everything:
            continue
        findings.scanned += 1
        if recovered := recover_file(path, folder, quarantine, boots, findings):
            yield recovered
    findings.missing += [row for name, row in known.items() if name not in found and row.bytes]


def rebuild(folder: Path, catalogue: Catalogue, quarantine: Path) -> Findings:
    """Verify every file, with no store running, and write the catalogue anew from them.

    Raises:
        CatalogueError: the catalogue cannot be read or written.
        OSError: a file cannot be brought into order.

    """
    findings = Findings()
    boots = {(boot.rover_id, boot.boot_id): boot for boot in catalogue.boots()}
    for each in recover(folder, catalogue, quarantine, findings, everything=True):
        key = (each.boot.rover_id, each.boot.boot_id)
        known = boots.setdefault(key, each.boot)
        received = Ranges(known.received)
        received.update(each.facts.seqs)
        boots[key] = replace(known, received=received.to_list())
        catalogue.settle([boots[key]], [each.row])
    return findings


def recover_file(
    path: Path,
    folder: Path,
    quarantine: Path,
    boots: Mapping[tuple[str, str], BootRow],
    findings: Findings,
) -> Recovered | None:
    """Bring one file into order and sync it; None where nothing of it is left. Raises OSError."""
    with opened(path) as fd:
        try:
            layout = mcap.scan(fd, verify=True)
        except mcap.McapError as error:
            prologue = _prologue_of(path, boots)
            if prologue is None or not (layout := mcap.scan(fd, verify=True, prologue=prologue)).groups:
                _give_up(path, quarantine, str(error), findings)
                return None
            layout.damage.insert(0, str(error))
    try:
        file = episode_file(path, layout)
    except EpisodeError as error:
        _give_up(path, quarantine, str(error), findings)
        return None
    facts, damage = _facts(file)
    damage = layout.damage + damage
    if not layout.groups and not damage:
        findings.emptied.append((path, path.stat().st_size))
        path.unlink()
        return None
    if damage:
        aside = _rewrite(file, quarantine)
        findings.damaged.append((aside, damage[0]))
        if not facts.seqs:
            return None
        with opened(path) as fd:
            layout = mcap.scan(fd)
    else:
        if layout.torn_bytes:
            findings.truncated.append((path, layout.torn_bytes))
        _finish(path, layout, facts)
    _sync_folders(path, folder)
    state = DAMAGED if damage and not facts.is_complete else None
    row = episode_row(file.metadata, facts, str(path.relative_to(folder)), path.stat().st_size, state)
    boot = BootRow(
        rover_id=file.metadata["rover_id"],
        boot_id=file.metadata["boot_id"],
        run_id=file.metadata["run_id"],
        epoch_ns=file.metadata["epoch_ns"],
        robot=file.robot,
        task=file.task,
        received=facts.seqs.to_list(),
        created_ns=file.metadata["created_ns"],
    )
    return Recovered(boot, row, facts, layout.groups, layout.prologue)


def episode_row(
    metadata: Mapping[str, Any], facts: Facts, path: str, size: int, state: str | None = None
) -> EpisodeRow:
    """Return the row of an episode; without a ``state`` it is complete or incomplete, as its records say.

    Args:
        metadata: what the file says of its episode.
        facts: what its records say.
        path: relative to the store's folder.
        size: bytes of the file.
        state: one of the catalogue's.

    """
    return EpisodeRow(
        run_id=str(metadata["run_id"]),
        rover_id=str(metadata["rover_id"]),
        boot_id=str(metadata["boot_id"]),
        episode_id=int(metadata["episode_id"]),
        path=path,
        state=state or (COMPLETE if facts.is_complete else INCOMPLETE),
        first_seq=facts.seqs.first,
        last_seq=facts.seqs.last,
        records=len(facts.seqs),
        steps=facts.steps,
        purpose=facts.purpose,
        success=facts.success,
        reason=facts.reason,
        return_=facts.return_,
        human_steps=facts.human_steps,
        policy_ids=tuple(sorted(facts.policy_ids)),
        min_counter=facts.min_counter,
        max_counter=facts.max_counter,
        bytes=size,
        created_ns=int(metadata["created_ns"]),
    )


def episode_metadata(boot: BootRow, episode_id: int, created_ns: int) -> dict[str, str]:
    """Return what a file says of its episode."""
    return {
        "rover_id": boot.rover_id,
        "boot_id": boot.boot_id,
        "run_id": boot.run_id,
        "episode_id": str(episode_id),
        "epoch_ns": str(boot.epoch_ns),
        "created_ns": str(created_ns),
        "format": str(FORMAT),
    }


def _facts(file: EpisodeFile) -> tuple[Facts, list[str]]:
    facts, damage = Facts(), []
    for each in file.salvage():
        if isinstance(each, StoredRecord):
            facts.add(each.seq, each.header)
        else:
            damage.append(str(each))
    return facts, damage


def _finish(path: Path, layout: mcap.Layout, facts: Facts) -> None:
    """Cut off a torn end, write the summary where there is none, and sync: until now nobody knows that it was."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not layout.is_finished:
            os.ftruncate(fd, layout.data_end)
    finally:
        os.close(fd)
    writer = EpisodeWriter(path, layout.prologue, facts, layout.groups, is_finished=layout.is_finished)
    try:
        writer.finish()
        writer.sync()
    finally:
        writer.close()


def _rewrite(file: EpisodeFile, quarantine: Path) -> Path:
    """Write what can be read into a new file, and move the damaged one away; return where to."""
    path = file.path
    partial = path.with_name(path.name + _PARTIAL)
    partial.unlink(missing_ok=True)
    writer = EpisodeWriter.create(partial, file.layout.prologue.content, Facts())
    try:
        with opened(path) as fd:
            for group in file.layout.groups:
                writer.append(mcap.ChunkBuilder.of(mcap.read_data(fd, group), group.entries))
        writer.finish()
        writer.sync()
    finally:
        writer.close()
    aside = _aside(path, quarantine)
    os.link(path, aside)
    sync_folder(aside.parent)
    if file.layout.groups:
        partial.replace(path)
    else:
        partial.unlink()
        path.unlink()
    sync_folder(path.parent)
    return aside


def _give_up(path: Path, quarantine: Path, error: str, findings: Findings) -> None:
    """Take away a file of which nothing can be read: one that was just begun, or one that is all damaged."""
    with opened(path) as fd:
        has_seal = any(True for _ in mcap.find(fd, 0, path.stat().st_size, mcap.SEAL_MARK))
    if not has_seal:  # nothing in it was ever acknowledged
        findings.emptied.append((path, path.stat().st_size))
        path.unlink()
        return
    aside = _aside(path, quarantine)
    os.link(path, aside)
    sync_folder(aside.parent)
    path.unlink()
    sync_folder(path.parent)
    findings.damaged.append((aside, error))


def _aside(path: Path, quarantine: Path) -> Path:
    """Return a free name in the quarantine, which is on the same disk."""
    quarantine.mkdir(parents=True, exist_ok=True)
    stem = "_".join((*path.parts[-3:-1], path.stem))
    number = 1
    while (aside := quarantine / f"{stem}.{number}{SUFFIX}").exists():
        number += 1
    return aside


def _prologue_of(path: Path, boots: Mapping[tuple[str, str], BootRow]) -> mcap.Prologue | None:
    """Return the beginning that a file must have had, by its place and its boot; None where the boot is not known."""
    boot = boots.get((path.parts[-3], path.parts[-2]))
    if boot is None or not path.stem.isdigit():
        return None
    metadata = episode_metadata(boot, int(path.stem), time.time_ns())
    prologue = mcap.parse_prologue(Format.of(boot.robot).prologue(metadata, boot.robot, boot.task))
    prologue.size = len(mcap.MAGIC)  # another version's may have been longer or shorter: the groups are searched for
    return prologue


def _sync_folders(path: Path, folder: Path) -> None:
    for each in (path.parent, path.parent.parent, folder):
        sync_folder(each)
