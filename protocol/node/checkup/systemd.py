"""Checks of how a daemon is run: its control socket, its unit, and how to start it where it does not run."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.checkup.check import Check, judge, note
from protocol.node.checkup.machine import user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "Result", "MainPID"),
    *("ExecMainStatus", "LimitRTPRIO", "LimitMEMLOCK", "ExecStart"),
)
SYSTEMD = Path("/run/systemd/system")
COMMAND_S = 3.0
SOCKET_MODE = 0o660


def unit_facts(unit: str) -> dict[str, str] | None:
    """Ask systemd for a unit's properties; None where no systemd runs."""
    if not SYSTEMD.is_dir() or shutil.which("systemctl") is None:
        return None
    words = ["systemctl", "show", unit, *(f"--property={name}" for name in PROPERTIES)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line) or None


def unit(name: str, facts: Mapping[str, str] | None, *, is_running: bool) -> Iterator[Check]:
    """Judge a daemon's unit; a daemon that somebody runs by hand needs none."""
    if facts is None:
        yield note("unit", "no systemd runs here", f"{name}.service where the daemon is to start by itself")
        return
    if facts.get("LoadState") != "loaded":
        machine = {"roverd": "rover", "trainerd": "trainer"}.get(name, name)
        hint = f"./dev install {machine}, then systemctl enable --now {name}"
        yield note("unit", f"{name}.service is not installed", "installed, enabled and active", hint)
        return
    active, enabled = facts.get("ActiveState", ""), facts.get("UnitFileState", "")
    restarts = int(facts.get("NRestarts") or 0)
    measured = f"{active} ({facts.get('SubState', '')}), {enabled or 'not enabled'}, {restarts} restarts"
    if active == "failed":
        measured += f", {facts.get('Result', '')}, exit status {facts.get('ExecMainStatus', '')}"
    by_hand = is_running and active != "active"
    hint = f"journalctl -u {name} -n 50 says why"
    if active in {"inactive", ""}:
        hint = f"another {name} was started by hand" if by_hand else f"systemctl enable --now {name}"
    ok = active == "active" or by_hand
    yield judge("unit", measured, "active, enabled, 0 restarts", hint, ok=ok)
    if ok and restarts:
        yield note("restarts", f"{restarts} since it was started", "0", f"journalctl -u {name} says why")


def control_socket(path: Path) -> Iterator[Check]:
    """Judge the socket's file: it is there, it is a socket, this user may use it and strangers may not."""
    try:
        status = path.lstat()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "the daemon does not run, or was given another --control-socket"
        yield judge("control socket", f"{path}: {reason}", "a socket", hint, ok=False)
        return
    mode, expected = stat.S_IMODE(status.st_mode), f"a socket of mode {SOCKET_MODE:04o}"
    if not stat.S_ISSOCK(status.st_mode):
        hint = f"remove it ({path}) and start the daemon"
        yield judge("control socket", f"{path} is something else", expected, hint, ok=False)
        return
    hint = "others may command this daemon: chmod 660 it, and look at what changed it"
    yield judge("control socket", f"{path}, mode {mode:04o}", expected, hint, ok=mode & 0o007 == 0)
    if not os.access(path, os.R_OK | os.W_OK):
        import grp  # noqa: PLC0415 - only where a sentence needs the name

        try:
            group = grp.getgrgid(status.st_gid).gr_name
        except KeyError:
            group = str(status.st_gid)
        hint = f"sudo usermod -aG {group} {user()}, then log in again"
        yield judge("access", f"{user()} may not use {path}", f"a member of {group}", hint, ok=False)


def daemon(name: str, problem: str, start: str, cause: BaseException | None = None) -> Iterator[Check]:
    """Say that a daemon does not answer, and what to do: start it, end its hanging, or be allowed to ask.

    Args:
        name: of the daemon and its unit.
        problem: what happened when it was asked.
        start: the command that starts it by hand.
        cause: the error below; None or another one than a time-out or a refusal: nobody was there.

    """
    hint = f"start it: systemctl start {name}, or {start}"
    if isinstance(cause, TimeoutError):
        hint = f"it hangs: journalctl -u {name} -n 50, then systemctl restart {name}"
    elif isinstance(cause, PermissionError):
        hint = f"sudo usermod -aG {name} {user()}, then log in again; or ask as root"
    yield judge("daemon", problem, f"{name} runs and answers", hint, ok=False)
