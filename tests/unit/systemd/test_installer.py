"""The units as they are shipped, and the installer; tests/daemon/test_units.py runs them under a real systemd."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from protocol.node.config import load
from roverd.settings import Settings as RoverSettings
from trainerd.settings import Settings as TrainerSettings

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "systemd"
SERVICES = ["roverd", "trainerd"]
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roverloop_install", FOLDER / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def staged(installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install into a folder, without the virtual environment; return a function that does it again."""

    def make_venv(place: Any) -> None:
        (place.venv / "bin").mkdir(parents=True, exist_ok=True)
        if not (place.venv / "pyvenv.cfg").exists():
            (place.venv / "pyvenv.cfg").touch()

    monkeypatch.setattr(installer, "make_venv", make_venv)
    monkeypatch.setattr(installer, "install_package", lambda *_: None)

    def install(*words: str) -> Path:
        assert (
            installer.main([*(words or ("rover", "trainer")), "--root", str(tmp_path), "--python", "/usr/bin/python3"])
            == 0
        )
        return tmp_path

    monkeypatch.setattr(installer, "why_not_python", lambda _: "")
    return install


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / name)
    return parser


# -- the units ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("daemon", SERVICES)
def test_the_known_traps_of_systemd_are_closed(daemon: str) -> None:
    service, general = unit(f"{daemon}.service")["Service"], unit(f"{daemon}.service")["Unit"]
    assert general["StartLimitIntervalSec"] == "0", "five crashes, and the service and its socket are dead"
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("always", "2")
    assert "MemoryMax" in service
    assert "MemoryHigh" not in service, "a leak would be throttled until the watchdog fires"
    assert "Documentation" not in general, "verify fails where the page is not installed"
    assert not {"RestartSteps", "RestartMaxDelaySec"} & set(service), "systemd before 254 warns of them"
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert service["LimitCORE"] == "0"
    assert "AF_NETLINK" in service["RestrictAddressFamilies"], "ZeroMQ aborts the process without it"


def test_roverd_may_be_punctual_and_end_its_children_itself() -> None:
    service = unit("roverd.service")["Service"]
    assert "RestrictRealtime" not in service, "it forbids SCHED_FIFO"
    assert (service["LimitRTPRIO"], service["LimitMEMLOCK"]) == ("60", "infinity")
    assert service["KillMode"] == "control-group", "a crash would kill control before it stops the wheels"


def test_the_control_socket_outlives_crashes_and_is_not_for_everybody() -> None:
    socket, general = unit("trainerd.socket")["Socket"], unit("trainerd.socket")["Unit"]
    assert (socket["SocketMode"], socket["SocketGroup"]) == ("0660", "trainerd")
    assert socket["TriggerLimitIntervalSec"] == "0"
    assert socket["ListenStream"] == "/run/trainerd/control.sock"
    assert unit("trainerd.service")["Service"]["RuntimeDirectoryPreserve"] == "yes"
    assert "PropagatesStopTo" not in unit("trainerd.service")["Unit"], "callers would lose the socket at a crash"
    assert "Documentation" not in general


@needs_analyze
@pytest.mark.parametrize("daemon", SERVICES)
def test_a_unit_is_hardly_exposed(daemon: str) -> None:
    words = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(FOLDER / f"{daemon}.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot judge a file: {done.stderr.strip()[:200]}")
    assert float(found[1]) <= 2.0


@needs_analyze
def test_verify_has_nothing_to_say(staged: Any) -> None:
    root = staged()
    units = Path("/usr/lib/systemd/system")
    if not units.is_dir():
        pytest.skip("needs systemd's own units")
    shutil.copytree(units, root / "usr/lib/systemd/system", symlinks=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "lib").symlink_to("usr/lib")
    for program in ("usr/bin/sh", "opt/roverloop/bin/roverd", "opt/roverloop/bin/trainerd"):
        (root / program).touch(0o755)
    names = ["roverd.service", "trainerd.service", "trainerd.socket"]
    words = ["systemd-analyze", f"--root={root}", "verify", *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    own = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if any(each in line for each in ("roverd", "trainerd"))
    ]
    assert own == []


# -- the installer -----------------------------------------------------------------------------------------------------


def test_settings_that_are_shipped_are_valid_and_hold_on_an_installed_machine() -> None:
    rover = load(RoverSettings, file=FOLDER / "config/roverd.toml", env_prefix="ROVERD_", environ={}).value
    trainer = load(TrainerSettings, file=FOLDER / "config/trainerd.toml", env_prefix="TRAINERD_", environ={}).value
    assert (str(rover.state_dir), str(rover.control_socket)) == ("/var/lib/roverd", "/run/roverd/control.sock")
    places = (trainer.state_dir, trainer.checkpoint_dir, trainer.tensorboard_dir)
    assert all(each.is_relative_to("/var/lib/trainerd") for each in places)
    assert str(trainer.socket_path) == unit("trainerd.socket")["Socket"]["ListenStream"]


def test_installing_twice_changes_nothing(staged: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = staged()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    first = capsys.readouterr().out.partition("\nNext")[0]
    assert {line.split()[0] for line in first.splitlines()} == {"wrote"}
    staged()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    again = capsys.readouterr().out.partition("\nNext")[0]
    assert {line.split()[0] for line in again.splitlines()} == {"unchanged"}


def test_changed_settings_are_kept_and_untouched_ones_follow_the_default(staged: Any, installer: ModuleType) -> None:
    root = staged()
    mine, theirs = root / "etc/roverloop/roverd.toml", root / "etc/roverloop/trainerd.toml"
    mine.write_text(mine.read_text().replace("rover-1", "mine"))
    default = (FOLDER / "config/roverd.toml").read_text()
    staged()
    assert "mine" in mine.read_text()
    assert not mine.with_suffix(".toml.new").exists(), "the default is the one that was changed"
    for daemon in SERVICES:  # an older version installed another default
        (root / f"opt/roverloop/share/roverloop/{daemon}.toml").write_text("port = 1\n")
    theirs.write_text("port = 1\n")
    staged()
    assert "mine" in mine.read_text()
    assert mine.with_suffix(".toml.new").read_text() == default
    assert theirs.read_text() == (FOLDER / "config/trainerd.toml").read_text()


def test_another_prefix_is_in_every_unit(staged: Any) -> None:
    root = staged("trainer", "--prefix", "/srv/rl")
    text = (root / "usr/local/lib/systemd/system/trainerd.service").read_text()
    assert "ExecStart=/srv/rl/bin/trainerd " in text
    assert "/opt/roverloop" not in text
    assert str((root / "usr/local/bin/trainerctl").readlink()) == "/srv/rl/bin/trainerctl"
    assert not (root / "usr/local/lib/systemd/system/roverd.service").exists()


def test_somebody_elses_tool_of_the_same_name_stays(staged: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = staged("rover")
    link = root / "usr/local/bin/roverctl"
    link.unlink()
    link.write_text("mine")
    staged("rover")
    assert link.read_text() == "mine"
    assert "ours is /opt/roverloop/bin/roverctl" in capsys.readouterr().out


def test_a_place_where_the_daemons_could_not_run_is_refused(
    installer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert installer.why_hidden(Path("/root/.pyenv/bin/python3")) == "it lies in /root, which the daemons cannot see"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert "closed to other users" in installer.why_hidden(closed / "bin/python")
    (tmp_path / "opt/roverloop").mkdir(parents=True)
    (tmp_path / "opt/roverloop/thesis.doc").touch()
    words = ["rover", "--root", str(tmp_path), "--python", "/usr/bin/python3"]
    assert installer.main(words) == 1
    assert "something else is here; choose another --prefix" in capsys.readouterr().err


def test_a_staged_environment_names_the_interpreter_where_it_will_be(installer: ModuleType, tmp_path: Path) -> None:
    place = installer.Place(tmp_path, Path("/opt/roverloop"), Path("/usr/bin/python3"))
    scripts = place.venv / "bin"
    scripts.mkdir(parents=True)
    (place.venv / "pyvenv.cfg").write_text(f"command = /usr/bin/python3 -m venv {place.venv}\n")
    (scripts / "roverd").write_text(f"#!{place.venv}/bin/python\nimport sys\n")
    (scripts / "tool").write_bytes(b"\x7fELF\0" + str(place.venv).encode())
    (scripts / "python").symlink_to("/usr/bin/python3")
    installer.correct_scripts(place)
    assert (scripts / "roverd").read_text() == "#!/opt/roverloop/bin/python\nimport sys\n"
    assert (place.venv / "pyvenv.cfg").read_text() == "command = /usr/bin/python3 -m venv /opt/roverloop\n"
    assert str(place.venv).encode() in (scripts / "tool").read_bytes()
