#!/usr/bin/env python3
"""Install roverloop on a robot or a GPU machine: a virtual environment, systemd's units, users, settings.

    sudo ./dev install rover                    the robot: /opt/roverloop, roverd.service
    sudo ./dev install trainer                  the GPU machine: trainerd.service, trainerd.socket
    sudo ./dev install rover --extra sim        with the simulated rover
    ./dev install rover --root /mnt/card        into another system's files, such as a mounted card

It may be run again at any time: what is there and right stays as it is. Settings in /etc/roverloop that somebody
changed are never overwritten; a new default is then put beside them as NAME.new. pip's own settings hold, such as
PIP_FIND_LINKS on a machine without a network, and ROVERLOOP_TORCH="torch==2.13.0+cu130" names another build of torch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCE = Path(__file__).resolve().parents[1]
PACKAGES = ("protocol", "plugins", "roverd", "trainerd")
PROJECT_FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
DEFAULT_PREFIX = "/opt/roverloop"
DAEMONS = {"rover": "roverd", "trainer": "trainerd"}
TOOLS = {"rover": "roverctl", "trainer": "trainerctl"}
UNITS = {"rover": ("roverd.service",), "trainer": ("trainerd.service", "trainerd.socket")}
HIDDEN = ("/home", "/root", "/run/user")
"""What ProtectHome= hides from the daemons."""


class InstallError(Exception):
    """Something stands in the way; the message says what to do."""


@dataclass(frozen=True)
class Place:
    """Where to install: the final paths, and the root that they are below for now."""

    root: Path
    prefix: Path
    python: Path

    def at(self, path: str | Path) -> Path:
        """Return where a final path lies now."""
        return self.root / str(path).lstrip("/")

    @property
    def venv(self) -> Path:
        """The virtual environment as it lies now."""
        return self.at(self.prefix)

    @property
    def is_staged(self) -> bool:
        """True where the files are for another system, or for a look."""
        return self.root != Path("/")


def main(arguments: Sequence[str] | None = None) -> int:
    """Install; return 0, or 1 where something stands in the way."""
    options = parse(arguments)
    os.umask(0o022)  # a careful administrator's 077 would lock the daemons' users out
    try:
        place = Place(options.root.resolve(), options.prefix, find_python(options.python))
        check(place)
        make_venv(place)
        install_package(place, [*options.machines, *options.extra])
        correct_scripts(place)
        for machine in options.machines:
            install_files(place, machine)
    except (InstallError, OSError) as error:
        print(f"dev install: {error}", file=sys.stderr)
        return 1
    tell_next(place, options.machines)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="./dev install", description=__doc__, formatter_class=form)
    parser.add_argument("machines", nargs="+", choices=sorted(DAEMONS), metavar="rover|trainer", help="what it is for")
    prefix, root = Path(DEFAULT_PREFIX), Path("/")
    parser.add_argument("--prefix", type=Path, default=prefix, metavar="DIR", help=f"default {DEFAULT_PREFIX}")
    parser.add_argument("--root", type=Path, default=root, metavar="DIR", help="the system's files are below this")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME", help="sim, rknn")
    parser.add_argument(
        "--python", type=Path, metavar="FILE", help="3.10 to 3.13; default: this one, or /usr/bin/python3"
    )
    options = parser.parse_args(arguments)
    if not options.prefix.is_absolute():
        parser.error(f"--prefix {options.prefix}: an absolute path is needed")
    return options


# -- what has to be there first ------------------------------------------------------------------------------------


def find_python(given: Path | None) -> Path:
    """Return the interpreter of the daemons: one that their users can reach, too."""
    here = Path(getattr(sys, "_base_executable", "") or sys.executable)
    reasons = []
    for each in [given] if given else [here, Path("/usr/bin/python3")]:
        path = each.resolve()
        reason = why_not_python(path)
        if not reason:
            return path
        reasons.append(f"{path}: {reason}")
    raise InstallError(f"no Python for the daemons: {'; '.join(reasons)}; name one with --python FILE")


def why_not_python(path: Path) -> str:
    """Say why an interpreter will not do; empty where it will."""
    if reason := why_hidden(path):
        return reason
    question = "import sys, ensurepip, venv; print(sys.version_info >= (3, 10))"
    try:
        done = subprocess.run([path, "-c", question], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error.strerror)
    if done.returncode:
        return f"it cannot make virtual environments; apt install {path.name}-venv"
    return "" if done.stdout.strip() == "True" else "too old, 3.10 is needed"


def why_hidden(path: Path) -> str:
    """Say why the daemons' users cannot reach a path of this system; empty where they can."""
    for hidden in HIDDEN:
        if path.is_relative_to(hidden):
            return f"it lies in {hidden}, which the daemons cannot see"
    for parent in path.parents:
        if parent.exists() and not parent.stat().st_mode & stat.S_IXOTH:
            return f"{parent} is closed to other users"
    return ""


def check(place: Place) -> None:
    """Refuse a place where the daemons could not run, before anything is written."""
    reason = why_hidden(place.prefix) if not place.is_staged else ""
    if reason:
        raise InstallError(f"--prefix {place.prefix}: {reason}; {DEFAULT_PREFIX} is the usual place")
    if not place.root.is_dir():
        raise InstallError(f"--root {place.root}: no such folder")
    venv = place.venv
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        raise InstallError(f"{venv}: something else is here; choose another --prefix")
    for path in (venv, place.at("/etc/roverloop"), place.at("/usr/local/lib/systemd/system")):
        nearest = next(each for each in (path, *path.parents) if each.exists())
        if not os.access(nearest, os.W_OK):
            raise InstallError(f"{nearest}: you may not write here; sudo ./dev install ..., or --root DIR for a look")


# -- the virtual environment -----------------------------------------------------------------------------------------


def make_venv(place: Place) -> None:
    """Make the virtual environment, unless it is there and of the same Python."""
    config = place.venv / "pyvenv.cfg"
    home = f"home = {place.python.parent}"
    is_there = config.is_file() and home in config.read_text().splitlines() and (place.venv / "bin/python").exists()
    if is_there and run_python(place, "-c", "import pip").returncode == 0:
        tell("unchanged", place.prefix)
        return
    place.venv.mkdir(parents=True, exist_ok=True)
    subprocess.run([place.python, "-m", "venv", "--clear", place.venv], check=True)
    tell("made", place.prefix)


def install_package(place: Place, extras: Sequence[str]) -> None:
    """Install roverloop with its extras, unless just this is there."""
    stamp_file = place.venv / ".roverloop"
    already = stamp_file.read_text().split() if stamp_file.is_file() else []
    extras = sorted({*already[1:], *extras})  # a machine may be both
    stamp = " ".join([wanted_stamp(place), *extras])
    if already and " ".join(already) == stamp:
        tell("unchanged", f"roverloop[{','.join(extras)}] in {place.prefix}")
        return
    with tempfile.TemporaryDirectory(prefix="roverloop-install-") as folder:
        wheel = build_wheel(place, Path(folder))
        constraints = write_constraints(place, Path(folder))
        if torch := os.environ.get("ROVERLOOP_TORCH") if "trainer" in extras else None:
            pip(place, "install", *constraints, torch)
        pip(place, "install", *constraints, f"{wheel}[{','.join(extras)}]")
        if already:  # pip takes the same version for the same package
            pip(place, "install", "--no-deps", "--force-reinstall", str(wheel))
    stamp_file.write_text(stamp + "\n")
    tell("installed", f"roverloop[{','.join(extras)}] in {place.prefix}")


def wanted_stamp(place: Place) -> str:
    """Return a hash of everything that decides what is installed."""
    digest = hashlib.sha256(f"{place.prefix} {place.python} {os.environ.get('ROVERLOOP_TORCH', '')}".encode())
    for path in sorted(source_files()):
        digest.update(f"\0{path.relative_to(SOURCE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def source_files() -> Iterator[Path]:
    """List what the package is made of."""
    yield from (SOURCE / name for name in (*PROJECT_FILES, "constraints.txt"))
    for package in PACKAGES:
        for path in (SOURCE / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def build_wheel(place: Place, folder: Path) -> Path:
    """Build the package from a copy: setuptools leaves files beside its sources, and takes up what it left before."""
    copy = folder / "source"
    for path in source_files():
        target = copy / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    pip(place, "wheel", "--no-deps", "--wheel-dir", str(folder), str(copy))
    return next(folder.glob("roverloop-*.whl"))


def write_constraints(place: Place, folder: Path) -> list[str]:
    """Give pip the tested versions; older Pythons lack some of them and take what fits setup.cfg."""
    if "3.10." in run_python(place, "--version").stdout:
        return []
    lines = (SOURCE / "constraints.txt").read_text().splitlines()
    is_ours = "ROVERLOOP_TORCH" not in os.environ
    wanted = folder / "constraints.txt"
    wanted.write_text("\n".join(line for line in lines if is_ours or not line.startswith("torch==")) + "\n")
    return ["-c", str(wanted)]


def pip(place: Place, *words: str) -> None:
    """Run pip of the virtual environment; its output is shown where it fails."""
    done = run_python(place, "-m", "pip", "--disable-pip-version-check", "--no-input", *words)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise InstallError(f"pip {words[0]} failed:\n{tail}")


def run_python(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the virtual environment's Python to its end; nothing of the caller's environment gets into it."""
    environ = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    command = [str(place.venv / "bin" / "python"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd="/")


def correct_scripts(place: Place) -> None:
    """Let the scripts of a staged environment name the interpreter where it will be."""
    if not place.is_staged:
        return
    staged, final = os.fsencode(place.venv), os.fsencode(place.prefix)
    for path in [place.venv / "pyvenv.cfg", *(place.venv / "bin").iterdir()]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if staged in content and b"\0" not in content:
            path.write_bytes(content.replace(staged, final))


# -- files of the system ---------------------------------------------------------------------------------------------


def install_files(place: Place, machine: str) -> None:
    """Write units, users, folders and settings of a machine."""
    daemon, folder = DAEMONS[machine], SOURCE / "systemd"
    for unit in UNITS[machine]:
        content = (folder / unit).read_text().replace(DEFAULT_PREFIX, str(place.prefix))
        write(place, f"/usr/local/lib/systemd/system/{unit}", content)
        if place.at(f"/etc/systemd/system/{unit}").exists():
            tell("shadowed", f"/usr/local/lib/systemd/system/{unit} by /etc/systemd/system/{unit}: remove that one")
    for kind in ("sysusers.d", "tmpfiles.d"):
        source = folder / kind / f"{daemon}.conf"
        if source.is_file():
            write(place, f"/usr/local/lib/{kind}/{daemon}.conf", source.read_text())
    install_settings(place, daemon)
    link_tool(place, TOOLS[machine])


def install_settings(place: Place, daemon: str) -> None:
    """Write the default settings where there are none, or those of an earlier version that nobody touched."""
    path = f"/etc/roverloop/{daemon}.toml"
    default = (SOURCE / "systemd" / "config" / f"{daemon}.toml").read_text()
    given = place.venv / "share" / "roverloop" / f"{daemon}.toml"
    there = place.at(path)
    is_ours = not there.exists() or (given.is_file() and there.read_bytes() == given.read_bytes())
    if is_ours or there.read_text(errors="replace") == default:
        write(place, path, default)
    elif given.is_file() and given.read_text() == default:
        tell("kept", f"{path}, which was changed here")
    else:
        write(place, f"{path}.new", default)
        tell("kept", f"{path}, which was changed here; the new default is {path}.new")
    write(place, str(given.relative_to(place.root)), default, is_quiet=True)


def link_tool(place: Place, tool: str) -> None:
    """Put the control tool where everybody's PATH finds it."""
    link, target = place.at(f"/usr/local/bin/{tool}"), str(place.prefix / "bin" / tool)
    if link.is_symlink() and str(link.readlink()) == target:
        tell("unchanged", f"/usr/local/bin/{tool}")
        return
    if link.exists() and not link.is_symlink():
        tell("kept", f"/usr/local/bin/{tool}, which is something else; ours is {target}")
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    tell("wrote", f"/usr/local/bin/{tool}")


def write(place: Place, final: str, content: str, *, is_quiet: bool = False) -> None:
    """Write a file as a whole, unless it has just this content."""
    path = place.at(final)
    if path.is_file() and path.read_text(errors="replace") == content:
        if not is_quiet:
            tell("unchanged", final)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(content)
    beside.replace(path)
    if not is_quiet:
        tell("wrote", final)


def tell(what: str, path: str | Path) -> None:
    """Say what became of a path."""
    print(f"{what:<10} {path}", flush=True)


def tell_next(place: Place, machines: Sequence[str]) -> None:
    """Say what is left to a person."""
    names = " ".join(DAEMONS[machine] for machine in machines)
    settings = " ".join(f"/etc/roverloop/{DAEMONS[machine]}.toml" for machine in machines)
    units = " ".join(unit for machine in machines for unit in UNITS[machine])
    if place.is_staged:
        print(f"\nNext, on the system that {place.root} belongs to:")
    else:
        print("\nNext:")
    print(f"  look through            {settings}")
    print("  users and folders       systemd-sysusers && systemd-tmpfiles --create")
    print(f"  start, now and at boot  systemctl daemon-reload && systemctl enable --now {units}")
    print(f"  after an update         systemctl daemon-reload && systemctl restart {names}")
    print("  what is missing         " + " && ".join(f"{TOOLS[machine]} doctor" for machine in machines))


if __name__ == "__main__":
    sys.exit(main())
