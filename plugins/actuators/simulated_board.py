"""A motor board in software: it obeys commands and stops when none comes, and keeps a journal of what its motors did.

    python -m plugins.actuators.simulated_board unix:/run/board.sock --dead-man-ms 180 --journal FILE

The journal has one JSON line for each change of what the motors are told: the monotonic time, the action, and why
(``command`` or ``dead_man``). It is how a test or a bench sees from outside when a robot stood still.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from plugins.actuators.board import parse, path_of

if TYPE_CHECKING:
    from collections.abc import Sequence


class Motors:
    """What the motors are told now, by a command or for want of one."""

    def __init__(self, dead_man_s: float, journal: TextIO) -> None:
        """Begin at rest."""
        self._dead_man_s, self._journal = dead_man_s, journal
        self._action: tuple[float, ...] = ()
        self._deadline_s = float("inf")
        self.commands = 0
        self.faults = 0

    def timeout_s(self, now_s: float) -> float | None:
        """Return how long it may take until the dead-man timer ends; None while at rest."""
        return None if self._deadline_s == float("inf") else max(0.0, self._deadline_s - now_s)

    def obey(self, line: bytes, now_s: float) -> None:
        """Take a command; what is none is counted and changes nothing."""
        try:
            _, _, action = parse(line)
        except ValueError:
            self.faults += 1
            return
        self.commands += 1
        self._deadline_s = now_s + self._dead_man_s if any(action) else float("inf")
        self._set(action, "command", now_s)

    def look(self, now_s: float) -> None:
        """Stop when the dead-man timer has run out."""
        if now_s >= self._deadline_s:
            self._deadline_s = float("inf")
            self._set((0.0,) * len(self._action), "dead_man", now_s)

    def _set(self, action: tuple[float, ...], cause: str, now_s: float) -> None:
        if action != self._action:
            self._action = action
            self._journal.write(json.dumps({"time_s": now_s, "action": action, "cause": cause}) + "\n")
            self._journal.flush()


def run(path: str, motors: Motors) -> None:
    """Serve for ever."""
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        print(f"board: listening at {path}", flush=True)
        while True:
            receiver.settimeout(motors.timeout_s(time.monotonic()))
            try:
                line = receiver.recv(4096)
            except (TimeoutError, BlockingIOError):
                line = b""
            now_s = time.monotonic()
            if line:
                motors.obey(line, now_s)
            motors.look(now_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A motor board in software, with a dead-man timer.")
    parser.add_argument("address", help="unix:PATH to listen at")
    parser.add_argument("--dead-man-ms", type=float, default=180.0, help="how long a command holds, ms")
    parser.add_argument("--journal", type=Path, default=None, help="where changes are written; default: stdout")
    parser.add_argument("--fifo", type=int, default=0, help="SCHED_FIFO priority: a board is never late; 0: ordinary")
    options = parser.parse_args(arguments)
    if options.fifo:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(options.fifo))
        except PermissionError:
            print("board: SCHED_FIFO refused, so its times may be late", file=sys.stderr)
    with options.journal.open("a") if options.journal else sys.stdout as journal:
        run(path_of(options.address), Motors(options.dead_man_ms * 1e-3, journal))


if __name__ == "__main__":
    main()
