"""Both daemons as real processes: start, ask, kill and stop them, and read what they logged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.keys import load_or_make
from protocol.node.socket import ControlClient, ControlError
from trainerd.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MARK = "ROVERLOOP_TEST_SITE"
"""An environment variable that every process of a site inherits, grandchildren too."""
DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
PATIENCE_S = 60.0
STOP_S = 15.0
TAIL_LINES = 15
RETRIES_OF_A_PORT = 20

QUICK_TRAINER = {
    "ppo.rollout": 256,
    "ppo.minibatch": 64,
    "ppo.epochs": 1,
    "network.encoder": "column",
    "network.normaliser_frames": 256,
    "threads": 1,
    "checkpoint_interval": 4,
    "link.offer_interval_s": 0.3,
}
QUICK_ROVER = {
    "robot": "synthetic",
    "control.rate_hz": 0,
    "control.max_speed_mps": 0.5,
    "control.slow_distance_m": 0.0,
    "control.max_acceleration_mps2": 0.0,
    "control.max_acceleration_radps2": 0.0,
    "control.max_jerk_mps3": 0.0,
    "control.max_jerk_radps3": 0.0,
    "teleop.port": 0,
}
"""A robot without limits of acceleration: most tests are not about the gate, and look for what was proposed."""


OPEN: list[Site] = []
"""The sites whose daemons run now."""


class StillWaitingError(AssertionError):
    """A condition did not come true in time."""


def wait_until(condition: Callable[[], Any], deadline_s: float = PATIENCE_S, *, what: str = "") -> Any:
    """Ask until the answer is true, and return it; a daemon that does not answer yet counts as false."""
    end = time.monotonic() + deadline_s
    last: object = None
    while True:
        for site in OPEN:
            site.check()
        try:
            last = condition()
        except ControlError as error:
            last = error
        else:
            if last:
                return last
        if time.monotonic() > end:
            raise StillWaitingError(f"{what or 'condition'}: not within {deadline_s:g} s, last {last!r}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def words_of(settings: Mapping[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={_text(value)}")]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass
class Answer:
    """What a control tool printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document of stdout."""
        return dict(json.loads(self.out))


@dataclass
class Daemon:
    """One daemon; ``start`` may be called again after it ended, with the same command."""

    name: str
    socket: Path
    log: Path
    words: list[str]
    env: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    was_killed: bool = False
    state_dir: Path = field(default_factory=Path)

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DIE_WITH_PARENT, "-m", self.name, *self.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                env=self.env,
            )
        self.was_killed = False
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def get(self, path: str = "/status") -> dict[str, Any]:
        assert self.is_running, f"{self.name} ended with {self.process.poll() if self.process else None}"
        return ControlClient(self.socket, timeout_s=20.0).get(path)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return ControlClient(self.socket, timeout_s=40.0).post(path, body)

    def ctl(self, *words: str, patience_s: float = PATIENCE_S) -> Answer:
        """Run ``trainerctl`` or ``roverctl`` as a process of its own."""
        tool = self.name.removesuffix("d") + "ctl"
        assert tool in {"trainerctl", "roverctl"}, tool
        command = [sys.executable, "-m", f"{self.name}.ctl", "--control-socket", str(self.socket), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience_s, check=False, cwd=self.folder, env=self.env
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the log's events of these names, oldest first; of all names without one."""
        return [each for each in self._lines() if not names or each["event"] in names]

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.log_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and "event" in values:
                yield values

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def pids(self) -> list[int]:
        """Return this process and its descendants."""
        parents = dict(_processes())
        found = [self.pid]
        for each in found:
            found += [pid for pid, parent in parents.items() if parent == each]
        return found

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        self.was_killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_S)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline_s: float = STOP_S) -> int:
        assert self.process is not None
        return self.process.wait(deadline_s)

    def stop(self) -> int:
        self.terminate()
        return self.wait()


class Site:
    """A folder with short socket paths, and every daemon that was started in it.

    With ``curve``, as by default, the daemons of a site know each other's keys; without, third parties can join.
    """

    def __init__(self, folder: Path, *, curve: bool = True, **env: str) -> None:
        self.folder = folder
        self.curve = curve
        self.trainer_dir = folder / "trainerd" / "state"
        self._key_files: dict[str, Path] = {}
        self.mark = uuid.uuid4().hex
        self.sockets = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp" if Path("/tmp").is_dir() else None))
        self.port = free_port()
        self.daemons: list[Daemon] = []
        own = {key: value for key, value in os.environ.items() if not key.startswith(("ROVERD_", "TRAINERD_"))}
        self.env = {**own, MARK: self.mark, "PYTHONUNBUFFERED": "1", **env}

    def trainer(self, settings: Mapping[str, Any] | None = None, *words: str, name: str = "trainerd") -> Daemon:
        """Start a trainerd with quick settings and these."""
        place = self.folder / name
        self.trainer_dir = place / "state"
        both = {
            **QUICK_TRAINER,
            "link.curve": self.curve,
            "link.pairing": False,
            "port": self.port,
            "state_dir": place / "state",
            "checkpoint_dir": place / "checkpoints",
            "tensorboard_dir": place / "runs",
            **(settings or {}),
        }
        return self._add("trainerd", name, place / "state", [*words_of(both), *words])

    def rover(
        self, settings: Mapping[str, Any] | None = None, *words: str, name: str = "rover-1", port: int | None = None
    ) -> Daemon:
        """Start a roverd with the synthetic robot in lock-step and these settings; ``name`` is its id."""
        place = self.folder / name
        both = {
            **QUICK_ROVER,
            "rover_id": name,
            "link.trainer": f"tcp://127.0.0.1:{port or self.port}",
            "state_dir": place,
            "link.curve": self.curve,
            **(settings or {}),
        }
        if both["link.curve"] and "link.trainer_key" not in both:
            both["link.trainer_key"] = self.introduce(both["rover_id"], Path(both["state_dir"]))
        return self._add("roverd", name, Path(both["state_dir"]), [*words_of(both), *words])

    def introduce(self, rover_id: str, state_dir: Path) -> str:
        """Let a rover in at the newest trainerd, running or not; return the trainer's public key."""
        known = self._key_files.setdefault(rover_id, state_dir / "keys" / "curve.json")
        public = load_or_make(known).public
        if not (state_dir / "keys" / "curve.json").exists():  # another folder of the same rover
            shutil.copytree(known.parent, state_dir / "keys")
        trainer = load_or_make(self.trainer_dir / "keys" / "curve.json").public
        running = [each for each in self.daemons if each.name == "trainerd" and each.is_running]
        if running:
            body = {"public": public}
            wait_until(lambda: running[-1].post(f"/rovers/{rover_id}/keys", body), what="trainerd lets a rover in")
        else:
            Access(self.trainer_dir / "rovers.json").add(rover_id, public)
        return trainer

    def _add(self, daemon: str, name: str, state_dir: Path, words: Sequence[str]) -> Daemon:
        taken = sum(each.log.stem.split("+")[0] == name for each in self.daemons)
        label = f"{name}+{taken}" if taken else name
        control = self.sockets / f"{label}.sock"
        all_words = [*words, "--set", f"control_socket={control}"]
        made = Daemon(daemon, control, self.folder / f"{label}.log", all_words, self.env, self.folder)
        made.state_dir = state_dir
        self.daemons.append(made)
        return made.start()

    def run(self, daemon: str, *words: str, env: Mapping[str, str] | None = None) -> Answer:
        """Run a daemon that is expected to end by itself."""
        done = subprocess.run(
            [sys.executable, "-c", DIE_WITH_PARENT, "-m", daemon, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=self.folder,
            env={**self.env, **(env or {})},
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def check(self) -> None:
        """Fail at once where a daemon ended by itself, rather than after everybody's patience."""
        for each in self.daemons:
            status = each.process.poll() if each.process else None
            assert each.was_killed or not status, f"{each.log.stem} ended by itself with {status}"

    def close(self) -> list[str]:
        """Stop everything; return what was wrong with how it ended: there must be nothing."""
        wrong = []
        running = [each for each in self.daemons if each.is_running]
        for each in running:
            each.terminate()
        for each in running:
            try:
                status = each.wait(STOP_S)
            except subprocess.TimeoutExpired:
                wrong.append(f"{each.log.stem}: still runs {STOP_S:g} s after SIGTERM")
                each.kill()
            else:
                if status != 0:
                    wrong.append(f"{each.log.stem}: ended with {status} after SIGTERM")
        wrong += [f"{each.log.stem}: a traceback in the log" for each in self.daemons if "Traceback" in each.log_text()]
        wrong += self._end_leftovers()
        shutil.rmtree(self.sockets, ignore_errors=True)
        return wrong

    def _end_leftovers(self) -> list[str]:
        end = time.monotonic() + 5.0
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return [f"process {pid} ({name}) outlived its daemon" for pid, name in left.items()]

    def _left(self) -> dict[int, str]:
        mark = f"{MARK}={self.mark}".encode()
        left = {}
        for pid, parent in _processes():
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in environ.split(b"\0"):
                left[pid] = f"child of {parent}: {name[-160:]}"
        return left


def _processes() -> Iterator[tuple[int, int]]:
    """Return (pid, pid of the parent) of everything that runs; not of what waits to be reaped."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                yield int(entry.name), int(parent)


def driving(rover: Daemon, deadline_s: float = PATIENCE_S) -> dict[str, Any]:
    """Wait until a rover drives, and return its status."""

    def is_driving() -> dict[str, Any] | None:
        status = rover.get()
        return status if status["policy"]["policy_id"] and status["ticks"] else None

    status: dict[str, Any] = wait_until(is_driving, deadline_s, what=f"{rover.log.stem} drives")
    return status


def unbalanced(steps: Mapping[str, int]) -> int:
    """Return how many of the received steps of a trainer's status are in none of its counters."""
    fates = (
        *("trained", "demonstration", "stale", "broken", "quarantined", "evaluation", "collection"),
        *("alarmed", "frozen", "normaliser", "rolled_back", "unused", "pending", "collected"),
    )
    return steps["received"] - sum(steps[name] for name in fates)
