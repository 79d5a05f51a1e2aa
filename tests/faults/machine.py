"""A machine with systemd, for tests of the units: a Debian that debootstrap makes once, booted by systemd-nspawn.

The daemons get there as on a real machine, by ``./dev install``; only their dependencies are lent by this checkout's
virtual environment instead of being downloaded again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from protocol.node.socket import ControlClient
from tests.daemon.installing import install_plugin
from tests.faults import faulty
from tests.faults.mounts import mount, unmount

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
SUITE, MIRROR, PYTHON = "bookworm", "http://deb.debian.org/debian", (3, 11)
INCLUDED = "systemd,systemd-sysv,dbus,python3,python3-venv"
TOOLS = {"systemd-nspawn": "systemd-container", "debootstrap": "debootstrap", "nsenter": "util-linux"}
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "roverloop"
CGROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
SITE_PACKAGES = "lib/python{}.{}/site-packages".format(*PYTHON)
NOT_LENT = ("roverloop", "__editable__", "__pycache__", "pip", "distutils-precedence")
PREFIX = "rl-machine-"
BOOT_S, STOP_S = 30.0, 20.0
CAP_SYS_RESOURCE = 24
SIMULATED = {
    "roverd": "ROVERD_ROBOT=synthetic ROVERD_PLUGINS__SYNTHETIC__CONTROL_RATE_HZ=10 ROVERD_SELFCHECK__REQUIRED=never "
    "ROVERD_PLUGINS__SYNTHETIC__ACTION_DELAY_MS=20 ROVERD_TELEOP__PORT=0",
    "trainerd": "TRAINERD_LINK__PAIRING=false",
}
"""Settings of every test, beside those that ./dev install wrote."""
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"
SABOTAGE = """
# Break the daemon from inside: SIGUSR2 blocks its loop for good, SIGUSR1 lets the part hang that the file names.
import gc, os, signal, time
def hang(*_):
    time.sleep(1e6)
def stop_part(*_):
    from protocol.node.liveness import Pulse
    name = open("/run/sabotage").read()
    for each in gc.get_objects():
        if type(each) is Pulse and each.name == name:
            each.beat, each.rest, each._due_s = (lambda: None), (lambda: None), 0.0
if os.path.exists("/run/sabotage"):
    signal.signal(signal.SIGUSR2, hang)
    signal.signal(signal.SIGUSR1, stop_part)
"""


def why_not() -> str:
    """Say why no machine can be booted here; empty where it can."""
    if os.geteuid() != 0:
        return "booting a container with systemd-nspawn needs root"
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        return f"booting a container needs: apt install {' '.join(sorted(missing))}"
    if sys.version_info[:2] != PYTHON:
        ours = "{}.{}".format(*sys.version_info[:2])
        return f"{SUITE} has Python {'.'.join(map(str, PYTHON))}, which cannot use the packages of this one's {ours}"
    return ""


def tree() -> Path:
    """Return the Debian tree, made on the first call; raises OSError where that fails, such as without a network."""
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = CACHE / f"{SUITE}-1"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.is_dir():
            making = CACHE / f"{SUITE}.making"
            shutil.rmtree(making, ignore_errors=True)
            words = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", SUITE, str(making), MIRROR]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
            if done.returncode:
                raise OSError(f"debootstrap: {' '.join(done.stdout.splitlines()[-3:])}")
            making.rename(wanted)
    return wanted


def sweep() -> None:
    """Remove what machines left whose test was killed: mounts and control groups outlive it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder, (folder / "name").read_text())


def remove(folder: Path, name: str) -> None:
    """Remove every trace of a machine that does not run."""
    with contextlib.suppress(OSError):
        unmount(folder / "root")
    for hierarchy in CGROUPS:
        for each in sorted(Path(hierarchy, name).glob("**/"), reverse=True):
            with contextlib.suppress(OSError):
                each.rmdir()
    for place in ("propagate", "unix-export"):
        shutil.rmtree(f"/run/systemd/nspawn/{place}/{name}", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


class Machine:
    """A booted machine; a context manager, which raises OSError where none can be booted. Nothing of it is left."""

    def __init__(self) -> None:
        """Keep what it writes in a temporary folder."""
        sweep()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.name = f"rl-{uuid.uuid4().hex[:8]}"
        self.leader = 0
        """The machine's process 1, as it is called here."""
        self._folder = folder
        self._root = folder / "root"
        self._log = folder / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = (folder / "lock").open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (folder / "name").write_text(self.name)
        self._cgroups = [Path(each, self.name) for each in CGROUPS if Path(each, "cgroup.procs").exists()]

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Boot."""
        try:
            self._mount()
            self._boot()
        except BaseException:
            self.close()
            raise

    def _mount(self) -> None:
        """Lay a fresh file system over the tree."""
        parts = {name: self._folder / name for name in ("root", "upper", "work")}
        for each in parts.values():
            each.mkdir(parents=True)
        options = f"lowerdir={tree()},upperdir={parts['upper']},workdir={parts['work']}"
        mount("-t", "overlay", "overlay", "-o", options, str(self._root))

    def _boot(self) -> None:
        for each in self._cgroups:
            each.mkdir()
        lent = Path(sys.prefix) / SITE_PACKAGES
        nspawn = ["systemd-nspawn", "-D", str(self._root), "-M", self.name, "--register=no", "--keep-unit", "-b"]
        nspawn += ["--capability=CAP_IPC_LOCK"]  # else its seccomp filter refuses mlockall to everybody
        nspawn += ["--private-network", f"--bind-ro={ROOT}:/src", f"--bind-ro={lent}:/opt/lent"]
        enter = "".join(f"echo $$ > {each}/cgroup.procs; " for each in self._cgroups)
        words = [sys.executable, "-c", DIE_WITH_PARENT, "sh", "-c", f'{enter} exec "$@"', "sh", *nspawn]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait(self._is_up, BOOT_S, what="the machine is up")
        except AssertionError as error:
            raise OSError(f"systemd-nspawn: {error}: {self._log.read_text(errors='replace')[-400:]}") from error

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "it ended"
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):  # the first child only prepares the machine
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    self.leader = int(pid)
        return self.leader > 0 and self.call("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}

    def close(self) -> None:
        """Power off and remove every trace."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        remove(self._folder, self.name)
        self._lock.close()

    # -- commands ---------------------------------------------------------------------------------------------------

    def call(self, *words: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command there as root."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        own = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        command = [*enter, *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=180, env={**own, **(environ or {})}
        )

    def must(self, *words: str, **environ: str) -> str:
        """Run a command that has to succeed; return what it wrote."""
        done = self.call(*words, environ=environ)
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def path(self, inside: str) -> Path:
        """Return where a path of the machine lies here, its run folder too."""
        return Path(f"/proc/{self.leader}/root{inside}")

    def write(self, inside: str, text: str) -> None:
        self.must("mkdir", "-p", str(Path(inside).parent))
        self.path(inside).write_text(text)

    def client(self, daemon: str, timeout_s: float = 30.0) -> ControlClient:
        """Return a client of a daemon's control socket."""
        return ControlClient(self.path(f"/run/{daemon}/control.sock"), timeout_s)

    @staticmethod
    def wait(condition: Callable[[], Any], patience_s: float = 30.0, *, what: str, every_s: float = 0.02) -> float:
        """Wait until a condition is true; return the seconds that it took."""
        began_s = time.monotonic()
        while not condition():
            assert time.monotonic() - began_s < patience_s, f"{what}: not within {patience_s:g} s"
            time.sleep(every_s)
        return time.monotonic() - began_s

    # -- the daemons ------------------------------------------------------------------------------------------------

    def install(self, *machines: str) -> str:
        """Install the daemons as docs/install.md says; return what the installer wrote."""
        self.lend()
        self.configure()
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
        said = self.must("python3", "-B", "/src/dev", "install", *machines, **offline)
        self.must("systemd-sysusers")
        self.must("systemd-tmpfiles", "--create")
        self.must("systemctl", "daemon-reload")
        return said

    def lend(self, prefix: str = "/opt/roverloop") -> None:
        """Make the virtual environment, and put the lent packages where pip takes them for installed ones."""
        if self.path(f"{prefix}/pyvenv.cfg").exists():
            return
        self.must("/usr/bin/python3.11", "-m", "venv", prefix)
        site = self.path(prefix) / SITE_PACKAGES
        for each in [*site.glob("setuptools*"), *site.glob("_distutils_hack"), *site.glob("pkg_resources")]:
            shutil.rmtree(each)
        for each in self.path("/opt/lent").iterdir():
            if not each.name.startswith(NOT_LENT) and not (site / each.name).exists():
                (site / each.name).symlink_to(f"/opt/lent/{each.name}")
        (site / "sabotage.py").write_text(SABOTAGE)
        (site / "sabotage.pth").write_text("import sabotage\n")

    def configure(self, **more: str) -> None:
        """Write the daemons' environment: what every test needs, and a setting more for one of them."""
        for daemon, settings in SIMULATED.items():
            lines = [*settings.split(), *more.get(daemon, "").split()]
            self.write(f"/etc/roverloop/{daemon}.env", "\n".join(lines) + "\n")

    def sabotage(self, part: str) -> None:
        """Let daemons that start from now on be broken from inside; ``part`` is what SIGUSR1 lets hang."""
        self.write("/run/sabotage", part)

    def exposure(self, unit: str) -> float:
        """Return how exposed systemd calls a unit, from 0 to 10."""
        text = self.must("systemd-analyze", "security", "--no-pager", "--offline=true", unit)
        return float(text.rpartition("exposure level for")[2].split(":")[1].split()[0])

    @property
    def may_raise_limits(self) -> bool:
        """True where this systemd may grant more than it was given itself."""
        status = self.path("/proc/1/status").read_text()
        return bool(int(status.partition("CapBnd:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1)

    def show(self, unit: str) -> dict[str, str]:
        """Return a unit's properties."""
        lines = self.must("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def pid(self, unit: str) -> int:
        """Return the main process of a unit, as it is called there; 0 without one."""
        return int(self.must("systemctl", "show", "--value", "-p", "MainPID", unit))

    def pids_of(self, word: str) -> list[int]:
        """Return the processes there with a word in their command line, as they are called there."""
        found = []
        for each in self.path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if each.name.isdigit() and word.encode() in (each / "cmdline").read_bytes():
                    found.append(int(each.name))
        return found

    def kill(self, *pids: int, how: str = "KILL") -> None:
        """Send a signal to processes there."""
        self.must("sh", "-c", f"kill -{how} {' '.join(map(str, pids))}")

    def is_active(self, unit: str) -> bool:
        """Say whether a unit is up: a daemon has said READY."""
        return self.call("systemctl", "is-active", unit).stdout.strip() == "active"

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return the journal's entries, oldest first, with the fields of each."""
        lines = self.must("journalctl", "--no-pager", "--all", "-o", "json", *matches).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def break_down(self, unit: str, how: str) -> int:
        """Do something to the main process of a unit; return its number."""
        pid = self.pid(unit)
        assert pid, f"{unit} does not run"
        self.kill(pid, how=how)
        return pid

    def settle(self, daemon: str) -> None:
        """Wait until a daemon has served for so long that its start counts as good, and its watchdog is strict."""
        counted = self.path(f"/run/{daemon}/failed-starts")
        self.wait(lambda: self.is_active(daemon) and not counted.exists(), what=f"{daemon} has started well")

    def back_after(self, unit: str, how: str, patience_s: float = 60.0) -> float:
        """Break a unit's main process and return the seconds until another one has said READY."""
        began_s = time.monotonic()
        before = self.break_down(unit, how)
        self.wait(lambda: self.pid(unit) not in {0, before}, patience_s, what=f"another {unit} after {how}")
        self.wait(lambda: self.is_active(unit), patience_s, what=f"{unit} is up after {how}")
        return time.monotonic() - began_s

    # -- a robot that moves -----------------------------------------------------------------------------------------

    def give_controllers(self) -> None:
        """Install the controller that drives in a circle."""
        place = SimpleNamespace(folder=self._folder / "plugins", env={})
        place.folder.mkdir(exist_ok=True)
        install_plugin(place, "controllers", "circle", faulty.CONTROLLER)  # type: ignore[arg-type]
        shutil.copytree(
            place.folder / "installed", self.path("/opt/roverloop") / SITE_PACKAGES, dirs_exist_ok=True, symlinks=True
        )

    def board(self) -> Board:
        """Start a motor board, and give it to roverd from its next start on."""
        folder = "/run/board"
        program = ["/opt/roverloop/bin/python", "-m", "plugins.actuators.simulated_board", f"unix:{folder}/socket"]
        unit = [
            "--unit=board",
            "-p",
            "User=roverd",
            "-p",
            "RuntimeDirectory=board",
            "-p",
            "Environment=PYTHONSAFEPATH=1",
        ]
        self.call("systemctl", "stop", "board")
        self.must("systemd-run", "--collect", *unit, *program, "--journal", f"{folder}/journal", "--dead-man-ms", "250")
        settings = f"ROVERD_ACTUATOR=board ROVERD_PLUGINS__BOARD__ADDRESS=unix:{folder}/socket ROVERLOOP_FAULTS=/none"
        self.configure(roverd=settings)
        return Board(self.path(f"{folder}/journal"))

    def drive_in_circles(self) -> None:
        """Start roverd where it does not run, and let the robot drive."""
        self.must("systemctl", "start", "roverd")
        client = self.client("roverd")

        def is_ordered() -> bool:
            status = client.get("/status")
            if status["mode"] == "evaluate" and status["policy"]["driving"] == "controller:circle":
                return True
            if status["mode"] != "evaluate":
                client.post("/episode/start", {"controller": "circle", "episodes": 100_000, "seed": 2_000_000})
            return False

        self.wait(is_ordered, what="the rover follows the order", every_s=0.1)


@dataclass(frozen=True)
class Board:
    """What the motors were told, as their board wrote it down."""

    journal: Path

    def last(self) -> dict[str, Any]:
        """Return the newest change: its monotonic time, the action, and whether a command or the dead-man made it."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return dict(json.loads(lines[-1])) if lines else {"time_s": 0.0, "action": [], "cause": ""}

    def is_moving(self) -> bool:
        return any(self.last()["action"])
