"""Checks of what is kept on the robot: the spool of records, the state folder and its disk, plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.node.checkup.check import Check, judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def spool(report: Mapping[str, Any], causes: Sequence[str]) -> Iterator[Check]:
    """Judge whether every record is safe until the trainer has it."""
    measured = (
        f"{report['state']}: {report['unacknowledged']} records wait, {report['disk_bytes'] >> 20} MiB on disk, "
        f"{report['dropped']} dropped, {report['damaged']} damaged, {report['exposed_ms_max']:.0f} ms until durable"
    )
    hint = "; ".join(causes) + ": free space or mend the disk, and link to the trainer"
    yield judge("spool", measured, "all records on disk until they are acknowledged", hint, ok=not causes)


def plugins(rows: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Judge the plugins."""
    bad = [f"{row['group']}.{row['name']}: {row['last_error']}" for row in rows if row["state"] != "ready"]
    measured = "; ".join(bad) or "all in order"
    yield judge("plugins", measured, "none failed or disabled", "roverctl plugins", ok=not bad)
