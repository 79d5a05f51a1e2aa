"""One check and how checks are made, gathered and shown."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

OK, NOTE, FAIL = "ok", "note", "fail"
"""``note``: worth knowing, but nothing is wrong with what this machine is for; it does not change the exit status."""
MARKS = {OK: "ok  ", NOTE: "note", FAIL: "FAIL"}


@dataclass(frozen=True)
class Check:
    """A measured fact beside what was expected of it; ``hint`` says what to do, and is empty where all is well."""

    check: str
    measured: str
    expected: str
    hint: str = ""
    state: str = OK
    section: str = ""

    @property
    def ok(self) -> bool:
        """False where somebody has to act."""
        return self.state != FAIL

    def to_map(self) -> dict[str, Any]:
        """Return it as ``doctor --json`` shows it; keys are only ever added."""
        return {
            "section": self.section,
            "check": self.check,
            "ok": self.ok,
            "state": self.state,
            "measured": self.measured,
            "expected": self.expected,
            "hint": self.hint,
        }


def judge(check: str, measured: object, expected: str, hint: str, *, ok: bool, is_needed: bool = True) -> Check:
    """Return a check that fails unless ``ok``; where it is not needed for what the machine does, it is a note."""
    state = OK if ok else FAIL if is_needed else NOTE
    return Check(check, str(measured), expected, "" if ok else hint, state)


def note(check: str, measured: object, expected: str, hint: str = "") -> Check:
    """Return what cannot be judged, or only a person can."""
    return Check(check, str(measured), expected, hint, NOTE)


def gather(section: str, *groups: Callable[[], Iterable[Check]]) -> list[Check]:
    """Run groups of checks; one that raises becomes a failed check of its own, so that it hides no other."""
    return [replace(each, section=section) for group in groups for each in _safely(group)]


def _safely(group: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    try:
        yield from group()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other checks must be heard
        place = traceback.extract_tb(error.__traceback__)[-1]
        measured = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        yield Check("doctor", measured, "every check can be made", "this is a bug, please report it", FAIL)


def answer_of(checks: Sequence[Check], *, is_running: bool) -> dict[str, Any]:
    """Return what the doctor of a daemon answers, running or not."""
    failed = [each.check for each in checks if not each.ok]
    return {
        "checks": [each.to_map() for each in checks],
        "healthy": not failed,
        "failed": failed,
        "is_running": is_running,
    }


def render(answer: Mapping[str, Any]) -> str:
    """Print an answer for people: what failed with its remedy, what is fine in one line each, and a verdict."""
    lines, section = [], ""
    for row in answer["checks"]:
        if row["section"] != section:
            section = row["section"]
            lines.append(section)
        lines.append(f"  {MARKS.get(row['state'], row['state'])}  {row['check']}: {row['measured']}{_aside(row)}")
        if row["state"] == FAIL:
            lines.append(f"        expected: {row['expected']}")
        if row["hint"]:
            lines.append(f"        do: {row['hint']}")
    return "\n".join([*lines, _verdict(answer)])


def _aside(row: Mapping[str, Any]) -> str:
    return f" (expected: {row['expected']})" if row["state"] != FAIL and row["expected"] else ""


def _verdict(answer: Mapping[str, Any]) -> str:
    count, failed = len(answer["checks"]), answer["failed"]
    if failed:
        return f"{len(failed)} of {count} checks failed: {', '.join(failed)}"
    notes = sum(row["state"] == NOTE for row in answer["checks"])
    return f"healthy: {count} checks" + (f", {notes} worth a look" if notes else "")
