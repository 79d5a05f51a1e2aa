"""Checks of where rovers come in: the port, the address it listens on, the firewall, and other trainers."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.checkup.check import Check, judge, note
from protocol.node.checkup.listening import Listener, describe
from protocol.node.reach import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def port(name: str, host: str, number: int, found: Sequence[Listener], *, is_running: bool) -> Iterator[Check]:
    """Judge who has a port; ``found`` is who listens there now."""
    here = describe(found)
    if is_running:
        hint = "trainerd runs and does not listen there: journalctl -u trainerd, then restart it"
        yield judge(name, here or f"nobody on {number}", f"trainerd listens on {host}:{number}", hint, ok=bool(found))
        return
    problem = f"taken: {here}" if found else bind_problem(host, number)
    hint = f"another program has it: stop it, or use another one ({name} in the settings; ss -ltnp 'sport = :{number}')"
    if problem and not found:
        hint = f"{host} is not an address of this machine (ip addr): set host = 0.0.0.0"
    yield judge(name, problem or f"{host}:{number} is free", "free until trainerd starts", hint, ok=not problem)


def bind_problem(host: str, number: int) -> str:
    """Try whether an address could be listened on; return why not."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), number))
        except OSError as error:
            return f"{host}:{number}: {(error.strerror or os.strerror(error.errno or errno.EINVAL)).lower()}"
    return ""


def reach(host: str, number: int, *, here: Sequence[str], away: Sequence[str], address: str) -> Iterator[Check]:
    """Judge whether rovers on other machines could come in.

    Args:
        host: what the settings listen on.
        number: the port.
        here: rovers that are connected.
        away: rovers that have a key and are not.
        address: of this machine towards others, or nothing.

    """
    others = f"tcp://{address}:{number}" if address else "other machines"
    if not is_loopback(host):
        yield judge("reach", f"other machines, as {others}", "wherever the rovers are", "", ok=True)
        return
    hint = f"rovers on other machines cannot come in: set host = 0.0.0.0 (they then use {others}) and open the firewall"
    missing = f", {', '.join(away)} not here" if away else ""
    expected = "other machines, unless every rover runs on this one"
    measured = f"this machine only ({host}){missing}"
    yield judge("reach", measured, expected, hint, ok=not away and bool(here), is_needed=not here)


def other_trainers(own_pid: int, state_dir: Path, proc: Path = Path("/proc")) -> Iterator[Check]:
    """Say which other trainerds run here: two trainers for one fleet learn each from half of it."""
    found = []
    for process in proc.iterdir():
        if not process.name.isdigit() or int(process.name) == own_pid:
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if is_trainer(words):
                found.append(f"pid {process.name}: {' '.join(words[:6]).strip()[:100]}")
    hint = f"each needs a state_dir and a port of its own, and a rover belongs to one (this one: {state_dir})"
    if found:
        yield note("other trainers", "; ".join(found), "none on this machine", hint)
    else:
        yield judge("other trainers", "none on this machine", "none on this machine", hint, ok=True)


def is_trainer(words: Sequence[str]) -> bool:
    """Tell by a command line whether a process is a trainerd."""
    names = [Path(word).name for word in words[:3]]
    by_module = any(word == "-m" and following == "trainerd" for word, following in pairwise(words))
    return by_module or "trainerd" in names[:2]
