"""Start both daemons as processes of their own, ask them how it goes, and stop them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.keys import load_or_make
from protocol.node.socket import ControlClient, ControlError
from trainerd.access import Access

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (sun_path less its terminator)."""
ROVER_ID = "rover-1"
STOP_S = 20.0
TAIL_LINES = 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class DaemonDiedError(RoverError):
    """A daemon ended by itself; the message has the last lines of its log."""


class Daemon:
    """One daemon as a child process, its log in a file, its control socket at a short path."""

    def __init__(self, name: str, arguments: Sequence[str], *, control_socket: Path, log: Path) -> None:
        """Start ``python -m NAME ARGUMENTS``."""
        self.name = name
        self.log = log
        self.client = ControlClient(control_socket, timeout_s=10.0)
        words = [sys.executable, "-m", name, *arguments, "--set", f"control_socket={control_socket}"]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which stops its daemons in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl call, which takes no lock
            )

    def check(self) -> None:
        """Raise DaemonDiedError if it has ended."""
        status = self.process.poll()
        if status is not None:
            raise DaemonDiedError(f"{self.name} ended with status {status}; the end of {self.log}:\n{tail(self.log)}")

    def get(self, path: str, patience_s: float = 60.0) -> dict[str, Any]:
        """Ask until it answers.

        Raises:
            DaemonDiedError: it ended.
            ControlError: it refused, or gave no answer for ``patience_s``.

        """
        began = time.monotonic()
        while True:
            self.check()
            try:
                return self.client.get(path)
            except ControlError as error:
                if error.status is not None or time.monotonic() - began > patience_s:
                    raise
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as systemd would: SIGTERM, and SIGKILL where that is not enough; may be called twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pair:
    """A trainerd and a roverd that know each other; a context manager that stops both, the producer first."""

    def __init__(self, output: Path, *, trainerd: Sequence[str], roverd: Sequence[str]) -> None:
        """Start both with their state below ``output`` and further command-line arguments each."""
        output.mkdir(parents=True, exist_ok=True)
        port = free_port()
        trainer_key = introduce(output / "trainerd", output / "roverd", ROVER_ID)
        self.sockets = short_folder()
        self._started: list[Daemon] = []
        try:
            self.trainerd = self._start("trainerd", output, trainer_arguments(output, port, trainerd))
            self.roverd = self._start("roverd", output, rover_arguments(output, port, trainer_key, roverd))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both; may be called twice."""
        for daemon in reversed(self._started):
            daemon.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop both."""
        self.stop()

    def _start(self, name: str, output: Path, arguments: Sequence[str]) -> Daemon:
        daemon = Daemon(name, arguments, control_socket=self.sockets / f"{name}.sock", log=output / f"{name}.log")
        self._started.append(daemon)
        return daemon


def introduce(trainer_dir: Path, rover_dir: Path, rover_id: str) -> str:
    """Let a rover and a trainer know each other by their state folders, as pairing does; return the trainer's key."""
    rover, trainer = (load_or_make(folder / "keys" / "curve.json") for folder in (rover_dir, trainer_dir))
    Access(trainer_dir / "rovers.json").add(rover_id, rover.public)
    return trainer.public


def shares() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split this machine's cores into (trainerd's, roverd's); empty ones where there is nothing to split.

    In lock-step the rover's processes take turns, so one core serves them all and a turn costs no wake-up of another
    core; the learner has the rest to itself.
    """
    cores = sorted(os.sched_getaffinity(0))
    return (tuple(cores[:-1]), tuple(cores[-1:])) if len(cores) > 1 else ((), ())


def trainer_arguments(output: Path, port: int, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of the demo's trainerd."""
    settings = {
        "state_dir": output / "trainerd",
        "checkpoint_dir": output / "checkpoints",
        "tensorboard_dir": output / "runs",
        "cpus": ",".join(map(str, shares()[0])),
        "link.pairing": "false",
    }
    return ["--profile", "demo", "--port", str(port), *assignments(settings), *more]


def rover_arguments(output: Path, port: int, trainer_key: str, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of the demo's roverd."""
    trainer = f"tcp://127.0.0.1:{port}"
    settings = {
        "rover_id": ROVER_ID,
        "state_dir": output / "roverd",
        "cpus": ",".join(map(str, shares()[1])),
        "link.trainer_key": trainer_key,
    }
    return ["--profile", "demo", "--trainer", trainer, *assignments(settings), *more]


def assignments(settings: dict[str, Any]) -> list[str]:
    """Return settings as ``--set name=value`` words."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log, or why there are none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error})"


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def short_folder() -> Path:
    """Make a folder whose path leaves room for a Unix socket's name, wherever the output goes."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes it private
        if base and len(os.fsencode(base)) < MAX_SOCKET_PATH - 40:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="roverloop-", dir=base))
    raise RoverError("no folder for control sockets: none of XDG_RUNTIME_DIR, TMPDIR and /tmp can be written")


def _die_with_parent() -> None:
    """Have the kernel stop this child when the demo dies, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
