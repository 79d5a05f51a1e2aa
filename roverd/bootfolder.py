"""The folder of one boot in the spool: its segments, and what of them is not wanted any more."""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from protocol.bundle import write_atomic
from protocol.ranges import Ranges
from roverd.segment import DATA_AT, BootFacts, Files, Segment, SegmentError, decode_header

LAST = (1 << 63) - 1
NOTE = "acked.json"
NAME_OF_BOOT = re.compile(r"\d{8,}-[0-9A-Za-z._-]{1,64}")
NAME_OF_SEGMENT = re.compile(r"(\d{12,})\.seg")


@dataclass
class BootFolder:
    """The segments of one boot, oldest first, and what of them is not wanted any more."""

    path: Path
    facts: BootFacts
    segments: list[Segment] = field(default_factory=list)
    released: Ranges = field(default_factory=Ranges)
    problem: str = ""
    """Why its records cannot be sent at all."""

    def held(self) -> Ranges:
        """Return the records that may be had from here."""
        held = Ranges()
        for segment in self.segments:
            held.add_range(segment.first, segment.last)
        for first, last in self.released.to_list():
            held.take_range(first, last)
        return held

    def note_released(self) -> None:
        """Keep for the next start what needs not be sent again; without it the trainer says what it has."""
        for first, last in self.released.to_list():
            if last < self.segments[0].first:
                self.released.take_range(first, last)
        text = json.dumps(self.released.to_list())
        try:
            write_atomic(self.path / NOTE, json.dumps([text, zlib.crc32(text.encode())]).encode())
        except OSError:  # nothing may be dropped to make room for a note
            return

    def remove(self, files: Files) -> None:
        """Remove the folder, unless somebody keeps something in it."""
        try:
            for each in self.path.glob(f"*{NOTE}*"):
                files.unlink(each)
            self.path.rmdir()
        except OSError:
            return


def recover(path: Path, own: BootFacts, files: Files) -> BootFolder:
    """Return what an earlier boot left in a folder, if need be nothing; raises OSError.

    Only the newest segment is looked through: the ones before it were synced whole, and end where the next begins.

    Args:
        path: the folder.
        own: the present boot, whose rover and specs the other must have to be sent.
        files: the operating system.

    """
    matches = [(NAME_OF_SEGMENT.fullmatch(each.name), each) for each in path.iterdir()]
    found = sorted((int(match[1]), each) for match, each in matches if match)
    limits = [*(first for first, _ in found[1:]), LAST]
    segments = [
        Segment(each, first, limit, each.stat().st_size)
        for (first, each), limit in zip(found, limits, strict=False)  # none at all has a limit too
    ]
    number, _, boot_id = path.name.partition("-")
    boot = BootFolder(path, BootFacts("", boot_id, int(number), "", 0), segments, read_note(path))
    if not segments:
        return boot
    boot.facts, boot.problem = _identify(boot, own, files)
    newest = segments[-1]
    fd = files.open(newest.path, os.O_RDONLY)
    try:
        files.fdatasync(fd)  # a process that was killed may have left this to the kernel
        newest.index(files, fd, boot.facts.salt)
    finally:
        files.close(fd)
    if not newest.seqs and newest.size <= DATA_AT:  # made, and the power went
        files.unlink(newest.path)
        segments.remove(newest)
    return boot


def read_note(path: Path) -> Ranges:
    """Return what was acknowledged when somebody last noted it; nothing where the note is missing or damaged."""
    try:
        text, checksum = json.loads((path / NOTE).read_bytes())
        return Ranges(json.loads(text)) if checksum == zlib.crc32(text.encode()) else Ranges()
    except (OSError, ValueError, TypeError, AttributeError):
        return Ranges()


def _identify(boot: BootFolder, own: BootFacts, files: Files) -> tuple[BootFacts, str]:
    """Return whose records these are, and why they cannot be sent, if so."""
    problem = ""
    for segment in reversed(boot.segments):
        fd = files.open(segment.path, os.O_RDONLY)
        try:
            facts = decode_header(files.pread(fd, DATA_AT, 0), str(segment.path))
        except SegmentError as error:
            problem = problem or str(error)
            continue
        finally:
            files.close(fd)
        if facts.boot_id != boot.facts.boot_id:
            problem = f"{segment.path}: is of boot {facts.boot_id[:40]}; move it into a folder of that name"
            continue
        if facts.rover_id != own.rover_id:
            return facts, f"of rover {facts.rover_id[:64]}, this is {own.rover_id}"
        if facts.specs != own.specs:
            return facts, "of another robot or task; start roverd with those to send it"
        return facts, ""
    return boot.facts, problem
