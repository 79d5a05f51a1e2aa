"""``trainerctl audit``: find the state folder, audit it in this process, and say what was found."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.node.config import load
from protocol.node.ctl import render_table
from protocol.node.socket import ControlError
from trainerd.settings import Settings

if TYPE_CHECKING:
    from protocol.node.ctl import Outcome
    from protocol.node.socket import ControlClient

DEFAULT_SAMPLE = 20
CLEAN, OFFENCE, NOT_DONE = 0, 1, 2
REASONS = 3
"""Reasons of checks left out that are shown; --json has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--sample",
        type=_count,
        default=DEFAULT_SAMPLE,
        metavar="N",
        help=f"episodes to draw (default {DEFAULT_SAMPLE}); 0: all, and every frame",
    )
    parser.add_argument("--seed", type=_count, metavar="N", help="repeat the draw of an earlier audit")
    parser.add_argument("--rover", metavar="NAME", help="only episodes of this rover")
    parser.add_argument("--episode", type=_count, metavar="ID", help="only episodes of this number")
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="trainerd's folder (default: ask the daemon, else its settings)"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def run(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    """Audit; the exit status is 0 for clean, 1 for an offence, 2 where nothing could be audited."""
    from trainerd.episodes.audit import AuditError, audit  # noqa: PLC0415 - only this command needs ONNX Runtime

    try:
        report = audit(
            arguments.state_dir or find_state_dir(client),
            sample=arguments.sample,
            seed=arguments.seed,
            rover_id=arguments.rover,
            episode_id=arguments.episode,
            progress=_progress,
        )
    except AuditError as error:
        print(f"trainerctl: {error}", file=sys.stderr)
        return {"ok": False, "error": str(error)}, NOT_DONE
    return report.to_map(), CLEAN if report.ok else OFFENCE


def find_state_dir(client: ControlClient) -> Path:
    """Ask the daemon for its folder; without one, take that of the settings a daemon would start with here."""
    try:
        return Path(client.get("/config")["state_dir"])
    except ControlError as error:
        if error.status is not None:
            raise
    state_dir: Path = load(Settings, layers=[], file=None, env_prefix="TRAINERD_", environ=os.environ).value.state_dir
    return state_dir


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\raudit: {done}/{total} episodes ", end="\n" if done == total else "", file=sys.stderr, flush=True)


def render(payload: dict[str, Any]) -> str:
    """Say what was checked, what was not and why, and the first offence."""
    if "error" in payload:
        return "nothing was audited"
    episodes = payload["episodes"]
    rows = [
        (row["check"], row["checked"], row["offences"] or "", _not_checked(row["skipped"])) for row in payload["checks"]
    ]
    left_out = "".join(f", {count} {reason}" for reason, count in episodes["skipped"].items())
    counts = f"{episodes['audited']} of {episodes['stored']} episodes{left_out}"
    lines = [
        render_table(rows, ("check", "checked", "offences", "not checked")),
        f"{counts}; {payload['steps']} steps, {payload['seconds']:.1f} s, --seed {payload['seed']}",
    ]
    first = payload["first_offence"]
    if first is None:
        lines.append("clean: no check failed")
    else:
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in first["numbers"].items())
        lines.append(f"OFFENCE {first['check']} in {first['file']}, seq {first['seq']}: {first['what']}")
        lines += [f"  {numbers}"] * bool(numbers)
        lines.append("  see docs/audit.md for what it means and what to do")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _not_checked(skipped: dict[str, int]) -> str:
    """Name the commonest reasons; nothing that was left out is passed over."""
    named = [f"{count} ({reason})" for reason, count in list(skipped.items())[:REASONS]]
    rest = sum(list(skipped.values())[REASONS:])
    return ", ".join([*named, *([f"{rest} for other reasons"] if rest else [])])
