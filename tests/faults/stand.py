"""A test stand: a real roverd that drives, a motor board beside it, and a stop-watch for its motors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.daemon.daemons import DIE_WITH_PARENT, wait_until
from tests.faults import faulty

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.daemon.daemons import Daemon, Site

RATE_HZ, DELAY_MS = 30.0, 20.0
PERIOD_MS = 1e3 / RATE_HZ
DEAD_MAN_MS = 180.0
SETTLED_S = 0.25
"""Motion must have gone on for so long before a fault, or what stops it is something else."""
EVENTUALLY_S = 1.5

SETTINGS = {
    "robot": "faulty",
    "actuator": "faulty_board",
    "control.rate_hz": RATE_HZ,
    "plugins.faulty.control_rate_hz": RATE_HZ,
    "plugins.faulty.action_delay_ms": DELAY_MS,
    "control.dead_man_ms": DEAD_MAN_MS,
    "selfcheck.required": "never",
    "teleop.port": 0,
    "link.curve": False,
}


@dataclass(frozen=True)
class Change:
    """What the motors were told from a moment on."""

    time_s: float
    action: tuple[float, ...]
    cause: str

    @property
    def is_moving(self) -> bool:
        return any(self.action)


class Stand:
    """A rover with its board; ``drive`` until it moves, break something, ask when it stood."""

    def __init__(self, site: Site, settings: Mapping[str, Any] | None = None, *words: str, name: str = "stand") -> None:
        self.switches = faulty.install(site)
        self._journal = site.folder / f"{name}.journal"
        address = f"unix:{site.sockets}/{name}-board.sock"
        board = ["-m", "plugins.actuators.simulated_board", address, "--journal", str(self._journal), "--fifo", "60"]
        board += ["--dead-man-ms", str(DEAD_MAN_MS)]
        self._board = subprocess.Popen(
            [sys.executable, "-c", DIE_WITH_PARENT, *board], env=site.env, cwd=site.folder, stdout=subprocess.DEVNULL
        )
        wait_until(Path(address.removeprefix("unix:")).exists, what="the board listens")
        own = {**SETTINGS, "plugins.faulty_board.address": address, **(settings or {})}
        self._killed: set[int] = set()
        self.rover: Daemon = site.rover(own, *words, name=name)

    def close(self) -> None:
        self.switches.off()
        self._board.kill()
        self._board.wait()

    # -- what the motors did ----------------------------------------------------------------------------------------

    def changes(self) -> list[Change]:
        """Return all that the board did, oldest first."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [Change(each["time_s"], tuple(each["action"]), each["cause"]) for each in map(json.loads, lines)]

    def stopped_after(self, moment_s: float) -> Change | None:
        """Return the first time after a moment at which the motors stood."""
        return next((each for each in self.changes() if each.time_s >= moment_s and not each.is_moving), None)

    def is_moving(self, for_s: float = SETTLED_S) -> bool:
        changes = self.changes()
        return bool(changes) and changes[-1].is_moving and time.monotonic() - changes[-1].time_s >= for_s

    # -- driving ----------------------------------------------------------------------------------------------------

    def drive(self) -> int:
        """Let a controller drive in a circle until the motors have turned for a while; return the episode's number."""
        self.switches.off()
        if not self.rover.is_running:
            self.rover.start()  # after a fault that ended it
        wait_until(self._is_ordered, what="the rover follows the order")
        wait_until(lambda: self.rover.get()["control"]["has_spare"], what="the spare stands by")
        wait_until(self.is_moving, what="the motors turn")
        return int(self.rover.get()["episodes"])

    def _is_ordered(self) -> bool:
        status = self.rover.get()
        if status["mode"] == "evaluate" and status["policy"]["driving"] == "controller:circle":
            return True
        if status["mode"] != "evaluate":
            self.rover.post("/episode/start", {"controller": "circle", "episodes": 100_000, "seed": 2_000_000})
        return False

    def children(self, module: str) -> list[int]:
        """Return the pids of roverd's processes of a module, oldest first."""
        found = []
        for pid in self.rover.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if module.encode() in words:
                found.append(pid)
        return sorted(found, key=_started)

    @property
    def control(self) -> int:
        """The control process that drives: its spare has more words."""
        return next(pid for pid in self.children("roverd.control.process") if pid == self.rover.get()["control"]["pid"])

    def policy(self) -> int:
        """The policy process that drives."""
        return int(self.rover.get()["policy"]["pid"])

    def time_stop(self, break_it: Any, *, patience_s: float = EVENTUALLY_S) -> float:
        """Break something and return after how many ms the motors stood; raises AssertionError where they never did."""
        began_s = time.monotonic()
        break_it()
        end_s = began_s + patience_s
        while time.monotonic() < end_s:
            stopped = self.stopped_after(began_s)
            if stopped is not None:
                return 1e3 * (stopped.time_s - began_s)
            time.sleep(0.01)
        raise AssertionError(f"the motors still turn {patience_s:g} s later: {self.changes()[-1]}")

    def mend(self) -> None:
        """Take back what can be taken back: switches, stopped processes, a latched e-stop."""
        self.switches.off()
        wait_until(self._is_settled, what="roverd has ended, or drives with other processes than those killed")
        if not self.rover.is_running:
            return
        for pid in self.rover.pids() if self.rover.is_running else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        wait_until(self.rover.get, what="roverd answers again")
        self.rover.post("/clear")

    def _is_settled(self) -> bool:
        """Tell whether roverd has ended, or has a control and a spare that nobody killed."""
        if not self.rover.is_running:
            return True
        controls = self.children("roverd.control.process")
        return len(controls) > 1 and not self._killed.intersection([self.rover.pid, *controls])

    def kill(self, *pids: int, by: int = signal.SIGKILL) -> None:
        if by == signal.SIGKILL:
            self._killed.update(pids)
        for pid in pids:
            os.kill(pid, by)


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
