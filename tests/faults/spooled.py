"""What lies in the spool of a rover that does not run."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.framing import unpack
from roverd.segment import DATA_AT, BootFacts, Files, Segment, decode_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"rvspool1"


class Spooled(NamedTuple):
    """One undamaged record."""

    facts: BootFacts
    seq: int
    frames: list[bytes]


def segments(state_dir: Path) -> list[Path]:
    """Return the spool's files under a folder, in the order of their names."""
    return sorted(path for path in state_dir.rglob("*") if path.is_file() and _begins(path, MAGIC))


def headers(state_dir: Path) -> list[dict[str, Any]]:
    """Return the headers of all undamaged records, by boot and seq, their actions as tuples of numbers."""
    found = {(each.facts.boot, each.seq): _with_numbers(unpack(each.frames[0])) for each in read(state_dir)}
    return [found[key] for key in sorted(found)]


def read(state_dir: Path) -> Iterator[Spooled]:
    """Yield the undamaged records of every boot, file after file."""
    for path in segments(state_dir):
        facts = decode_header(path.read_bytes()[:DATA_AT], str(path))
        files, segment = Files(), Segment(path, 0, 1 << 62, path.stat().st_size)
        place = files.open(path, os.O_RDONLY)
        try:
            segment.index(files, place, facts.salt)
            for seq in segment.seqs:
                frames = segment.read(files, place, facts.salt, seq)
                if frames is not None:
                    yield Spooled(facts, seq, frames)
        finally:
            files.close(place)


def _with_numbers(header: dict[str, Any]) -> dict[str, Any]:
    vectors = {key: header[key] for key in ("action", "policy_action", "human_action") if header.get(key)}
    return {**header, **{key: struct.unpack(f"<{len(raw) // 4}f", raw) for key, raw in vectors.items()}}


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:  # deleted just now
        return False
