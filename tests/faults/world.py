"""A trainer and a rover as real processes, each on a disk of its own, a wire between them, and the ledger beside it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.keys import load_or_make
from tests.daemon.daemons import OPEN, Daemon, Site, wait_until
from tests.faults import powercut, spooled
from tests.faults.ledger import Ledger, Store, Verdict
from tests.faults.wire import Wire
from trainerd.access import Access

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

RATE_HZ = 25.0
TRAINER = {
    "link.dead_after_s": 2.0,
    "link.curve": False,
    "ppo.rollout": 512,
    "checkpoint_interval": 1,
}
ROVER = {
    "link.dead_after_s": 2.0,
    "link.reconnect_max_s": 1.0,
    "link.curve": False,
}
CLOCKED = {
    "control.rate_hz": RATE_HZ,
    "plugins.synthetic.control_rate_hz": RATE_HZ,
    "plugins.synthetic.action_delay_ms": 25.0,
}


@dataclass(frozen=True)
class Crash:
    """A rover that ended without warning: whose steps before it may be missing, and when it was."""

    boot_id: str
    moment_ns: int
    """Of the monotonic clock, which all processes of a machine share."""


class World:
    """A context manager. ``rover`` drives against ``trainer`` through ``wire`` as soon as it is entered.

    With ``curve`` both know each other's keys, and the ledger sees nothing of the link: then the audit compares the
    trainer's store with itself and with what is found in the rover's spool.
    """

    def __init__(
        self,
        folder: Path,
        *,
        curve: bool = False,
        is_clocked: bool = True,
        disk_mb: int = 1024,  # sparse; both daemons leave some hundred MB free
        trainer: Mapping[str, Any] | None = None,
        rover: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self.curve = curve
        self.is_clocked = is_clocked
        self.ledger = Ledger()
        self.crashes: list[Crash] = []
        self._more = (dict(trainer or {}), dict(rover or {}))
        self._disk_mb, self._seed = disk_mb, seed
        self._stack = ExitStack()
        self.disks: dict[str, powercut.Disk] = {}
        self.wrong: list[str] = []
        """What was wrong with how the daemons ended."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            roots = {name: self._root(stack, name) for name in ("trainer", "rover")}
            self.site = Site(self.folder, curve=self.curve)
            OPEN.append(self.site)
            stack.callback(self._close_site)
            self.wire = stack.enter_context(Wire(self.site.port, observe=self.ledger.observe, seed=self._seed))
            self.trainer_state, self.rover_state = roots["trainer"] / "state", roots["rover"] / "state"
            self.episodes = self.trainer_state / "episodes"
            self.store = Store(self.episodes)
            self.trainer_key = introduce(self.trainer_state, self.rover_state, "rover-1") if self.curve else ""
            self.trainer = self.site.trainer(self._trainer_settings(roots["trainer"]))
            self.rover = self.site.rover(self._rover_settings(), port=self.wire.port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def disk_root(self, name: str) -> Path:
        """Return the folder of all that a machine (``trainer``, ``rover``) writes."""
        return self.disks[name].root if name in self.disks else self.folder / name

    # -- asking -----------------------------------------------------------------------------------------------------

    def link(self) -> dict[str, Any]:
        """Return the link's part of the rover's status."""
        return dict(self.rover.get()["link"])

    def wait_driving(self) -> None:
        """Wait until steps are acknowledged in numbers."""
        self.wait_flowing(40)

    def wait_flowing(self, count: int = 15, deadline_s: float = 60.0) -> float:
        """Wait until so many more new steps are acknowledged; return how long that took."""
        began = time.monotonic()
        start = wait_until(lambda: (self.boot(), self.link()["acknowledged"]), deadline_s, what="an answer of roverd")

        def is_flowing() -> bool:
            nonlocal start
            if self.boot() != start[0]:
                start = (self.boot(), 0)
            link = self.link()
            return bool(link["state"] == "linked" and link["acknowledged"] >= start[1] + count)

        wait_until(is_flowing, deadline_s, what=f"{count} acknowledged steps")
        return time.monotonic() - began

    def boot(self) -> str:
        return str(self.rover.get()["boot_id"])

    def drain(self, deadline_s: float = 90.0) -> None:
        """Let the rover stand and wait until everything it has, of earlier boots too, is acknowledged."""
        self.rover.post("/episode/stop")
        wait_until(lambda: self.unacknowledged() == 0, deadline_s, what="everything is acknowledged")

    def unacknowledged(self) -> int:
        """Return how many records the rover keeps, those of earlier boots among them."""
        status = self.rover.get()
        return int(status.get("spool", status["link"])["unacknowledged"])

    # -- faults -----------------------------------------------------------------------------------------------------

    def kill(self, daemon: Daemon) -> None:
        """End a daemon and its children as the kernel does when it runs out of memory."""
        self._note_crash(daemon)
        pids = daemon.pids()
        daemon.kill()
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        _wait_gone(pids)

    def cut_power(self, *names: str) -> None:
        """Cut the power of machines (``trainer``, ``rover``) at one moment, and switch their disks on again."""
        daemons = [getattr(self, name) for name in names]
        pids = [pid for daemon in daemons if daemon.is_running for pid in daemon.pids()]
        for pid in pids:  # nothing may go on while the disk is already dead: a machine stops as a whole
            _signal(pid, signal.SIGSTOP)
        for daemon in daemons:
            self._note_crash(daemon)
        for name in names:
            self.disks[name].cut()
        for daemon in daemons:
            if daemon.is_running:
                daemon.kill()
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        _wait_gone(pids)
        for name in names:
            self.disks[name].restore()

    def freeze(self, daemon: Daemon) -> None:
        """Stop a daemon's processes without a word; its connections stay open."""
        for pid in daemon.pids():
            _signal(pid, signal.SIGSTOP)

    def thaw(self, daemon: Daemon) -> None:
        for pid in daemon.pids():
            _signal(pid, signal.SIGCONT)

    def expect_spooled(self) -> int:
        """Note what lies undamaged in the spool of a rover that does not run; return how many records."""
        count = 0
        for each in spooled.read(self.rover_state):
            count += 1
            self.ledger.expect(each.facts.rover_id, each.facts.boot_id, each.seq, each.frames)
        return count

    def _note_crash(self, daemon: Daemon) -> None:
        if daemon is self.rover and daemon.is_running and self._last_boot():
            self.crashes.append(Crash(self._last_boot(), time.monotonic_ns()))

    def _last_boot(self) -> str:
        started = self.rover.events("daemon.started")
        return str(started[-1]["boot_id"]) if started else ""

    # -- judging ----------------------------------------------------------------------------------------------------

    def audit(self) -> Verdict:
        """Compare what was acknowledged with what lies in the store; the trainer must not be writing."""
        if self.curve:
            return self.ledger.audit_store_only(self.store.read())
        return self.ledger.audit(self.store.read())

    def losses_s(self) -> list[float]:
        """Return for each crash of the rover how much driving before it is in nobody's hands; after an audit."""
        losses = []
        for crash in self.crashes:
            ticks = [
                ns for (_, boot_id), each in self.store.ticks_ns.items() if boot_id == crash.boot_id for ns in each
            ]
            newest = max((ns for ns in ticks if ns <= crash.moment_ns), default=None)
            if newest is not None:
                losses.append(1e-9 * (crash.moment_ns - newest))
        return losses

    # -- building ---------------------------------------------------------------------------------------------------

    def _root(self, stack: ExitStack, name: str) -> Path:
        place = self.folder / name
        place.mkdir(parents=True)
        if powercut.why_not():
            return place
        self.disks[name] = stack.enter_context(powercut.Disk(place, size_mb=self._disk_mb))
        return self.disks[name].root

    def _trainer_settings(self, root: Path) -> dict[str, Any]:
        places = {
            "state_dir": self.trainer_state,
            "checkpoint_dir": root / "checkpoints",
            "tensorboard_dir": root / "runs",
        }
        return {**TRAINER, **places, "link.curve": self.curve, **self._more[0]}

    def _rover_settings(self) -> dict[str, Any]:
        clock = CLOCKED if self.is_clocked else {}
        keys = {"link.curve": self.curve, "link.trainer_key": self.trainer_key}
        return {**ROVER, **clock, "state_dir": self.rover_state, **keys, **self._more[1]}

    def _close_site(self) -> None:
        try:
            for daemon in self.site.daemons:
                if daemon.is_running:
                    self.thaw(daemon)
            self.wrong = self.site.close()
        finally:
            OPEN.remove(self.site)


def introduce(trainer_state: Path, rover_state: Path, rover_id: str) -> str:
    """Make keys for both and let the rover in, before the trainer runs; return the trainer's public key."""
    trainer = load_or_make(trainer_state / "keys" / "curve.json")
    rover = load_or_make(rover_state / "keys" / "curve.json")
    Access(trainer_state / "rovers.json").add(rover_id, rover.public)
    return trainer.public


def flip_bits(paths: list[Path], draw: Any, count: int) -> int:
    """Flip single bits at random places of files; return how many."""
    sizes = [(path, path.stat().st_size) for path in paths]
    sizes = [each for each in sizes if each[1]]
    for _ in range(count if sizes else 0):
        path, size = draw.choice(sizes)
        with path.open("r+b") as file:
            file.seek(place := draw.randrange(size))
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << draw.randrange(8)]))
    return count if sizes else 0


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait_gone(pids: list[int], deadline_s: float = 10.0) -> None:
    """Wait until processes run no more; those that nobody reaped yet have let go of their files."""
    end = time.monotonic() + deadline_s
    while running := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < end, f"{running} survive SIGKILL"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
