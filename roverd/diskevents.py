"""What the disk of the spool tells the event loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Durable:
    """Every record that was handed over before this seq is on the disk, or no longer wanted."""

    next_seq: int


@dataclass(frozen=True)
class Fetched:
    """The records of ``first`` to ``upto`` that could be read; but on an error the others are not to be had."""

    lane: str
    boot_id: str
    first: int
    upto: int
    records: dict[int, list[bytes]]
    error: str = ""


@dataclass(frozen=True)
class Dropped:
    """Unacknowledged records were deleted to make room."""

    boot_id: str
    ranges: list[tuple[int, int]]


@dataclass(frozen=True)
class Changed:
    """The disk is ``ok``, ``full`` or ``failed``, and why."""

    state: str
    reason: str


Event = Durable | Fetched | Dropped | Changed
