"""Checks of the machine itself: Python and its packages, memory, stolen time, clock, disk and folders."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protocol.images import jpeg_library
from protocol.node.checkup.check import Check, judge, note
from protocol.node.require import ShadowedPackageError, check_ownership

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DISTRIBUTION = "roverloop"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
LEAST_FREE_BYTES = 1 << 30
LEAST_MEMORY_BYTES = 256 << 20
MOST_STOLEN = 0.05
"""Share of the processors' time that a hypervisor may give to others before what is timed here says nothing."""
STOLEN_WINDOW_S = 0.5
TIME_ERROR = 5
"""What adjtimex(2) returns where nothing disciplines the clock."""
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(?P<bounds>[<>=!~0-9.,\s]*)(?:;(?P<marker>.*))?"
)
_EXTRA = re.compile(r"""^\s*extra\s*==\s*['"]([\w-]+)['"]\s*$""")


class Requirement(NamedTuple):
    """One package that an extra needs: its name, the oldest version that will do, and the first that will not."""

    name: str
    least: str = ""
    below: str = ""


def python(version: Sequence[int] = sys.version_info[:3]) -> Iterator[Check]:
    """Judge the version of Python."""
    ok = OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON
    expected = f"{_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)}"
    hint = f"install {DISTRIBUTION} in a virtual environment of a Python of these, such as python3.12"
    measured = f"{_dotted(version)} on {platform.machine()}, {sys.executable}"
    yield judge("python", measured, expected, hint, ok=ok)


def modules() -> Iterator[Check]:
    """Say whether ``protocol`` and ``plugins`` are this project's own."""
    try:
        check_ownership()
    except ShadowedPackageError as error:
        yield judge("modules", error, "protocol and plugins are ours", _remedy(str(error)), ok=False)
    else:
        yield judge("modules", "protocol and plugins are ours", "no other package has these names", "", ok=True)


def _remedy(message: str) -> str:
    return message.partition("; ")[2] or "start from another folder, or with PYTHONSAFEPATH=1"


def packages(wanted: Mapping[str, Sequence[Requirement]]) -> Iterator[Check]:
    """Judge the installed versions of what each extra needs (the empty name: what is always needed)."""
    for extra, requirements in wanted.items():
        versions = {each.name: installed(each.name) for each in requirements}
        faults = [fault for each in requirements if (fault := _fault(each, versions[each.name]))]
        name = f"packages of {extra}" if extra else "packages"
        measured = "; ".join(faults) or ", ".join(f"{key} {version}" for key, version in versions.items())
        target = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
        yield judge(name, measured, "installed, new enough", f"pip install '{target}'", ok=not faults)


def requirements(extras: Sequence[str], distribution: str = DISTRIBUTION) -> dict[str, list[Requirement]]:
    """Return what the distribution declares for no extra (as the empty name) and for these; empty if it is unknown."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[Requirement]] = {"": [], **{extra: [] for extra in extras}}
    for line in lines:
        parsed = parse_requirement(line)
        if parsed is not None and parsed[0] in found:
            found[parsed[0]].append(parsed[1])
    return {extra: each for extra, each in found.items() if each}


def parse_requirement(line: str) -> tuple[str, Requirement] | None:
    """Return (extra, requirement) of a line of metadata; None for one that holds on some platforms only."""
    matched = _REQUIREMENT.fullmatch(line.strip())
    if matched is None:
        return None
    extra = _EXTRA.match(matched["marker"] or "")
    if matched["marker"] and extra is None:
        return None
    bounds = {each.strip()[:2].rstrip("0123456789"): each.strip() for each in (matched["bounds"] or "").split(",")}
    least, below = bounds.get(">=", "")[2:], bounds.get("<", "")[1:]
    return (extra[1] if extra else ""), Requirement(matched["name"], least, below)


def installed(name: str) -> str:
    """Return the installed version of a distribution, or nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _fault(wanted: Requirement, version: str) -> str:
    if not version:
        return f"{wanted.name} is not installed"
    if wanted.least and numbers(version) < numbers(wanted.least):
        return f"{wanted.name} {version} is older than {wanted.least}"
    if wanted.below and numbers(version) >= numbers(wanted.below):
        return f"{wanted.name} {version} is not below {wanted.below}"
    return ""


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, such as (2, 3, 2), for comparisons."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def jpeg() -> Iterator[Check]:
    """Name the library that packs and unpacks images; the slow one is legal, so this only informs."""
    yield judge("jpeg library", jpeg_library().name, "PyTurboJPEG or simplejpeg", "", ok=True)


def memory(meminfo: str) -> Iterator[Check]:
    """Judge what ``/proc/meminfo`` says is to be had."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if found is None:
        return
    free, expected = int(found[1]) << 10, f"at least {LEAST_MEMORY_BYTES >> 20} MiB"
    hint = "stop what is not needed (ps aux --sort=-rss | head), or the kernel will choose"
    yield judge("memory", f"{free >> 20} MiB available", expected, hint, ok=free >= LEAST_MEMORY_BYTES)


class CpuTimes(NamedTuple):
    """Clock ticks of all processors since the machine started: all of them, and those that went to other guests."""

    total: int
    stolen: int


def cpu_times(stat: str) -> CpuTimes:
    """Read the first line of ``/proc/stat``."""
    ticks = [int(word) for word in stat.partition("\n")[0].split()[1:9]]
    return CpuTimes(sum(ticks), ticks[7] if len(ticks) > 7 else 0)


def stolen(before: CpuTimes, after: CpuTimes, *, is_needed: bool = True) -> Iterator[Check]:
    """Judge how much of the processors' time a hypervisor gave to others between two readings."""
    passed = after.total - before.total
    share = (after.stolen - before.stolen) / passed if passed > 0 else 0.0
    hint = "the host of this virtual machine gives its time to others: nothing timed here can be trusted"
    expected = f"at most {100 * MOST_STOLEN:g} % of the processors' time"
    yield judge("stolen time", f"{100 * share:.1f} %", expected, hint, ok=share <= MOST_STOLEN, is_needed=is_needed)


def measure_stolen(*, is_needed: bool = True) -> Iterator[Check]:
    """Look for half a second."""
    path = Path("/proc/stat")
    before = cpu_times(path.read_text())
    time.sleep(STOLEN_WINDOW_S)
    yield from stolen(before, cpu_times(path.read_text()), is_needed=is_needed)


def clock(*, is_synchronised: bool | None) -> Iterator[Check]:
    """Say whether something keeps the wall clock right; only people read it, so it is never more than a note."""
    hint = "timedatectl set-ntp true, or install chrony"
    if is_synchronised is None:
        yield note("clock", "unknown", "kept right by NTP", hint)
    else:
        measured = "kept right" if is_synchronised else "nothing keeps it right"
        yield judge("clock", measured, "kept right by NTP", hint, ok=is_synchronised, is_needed=False)


def is_clock_synchronised() -> bool | None:
    """Ask the kernel; None where it does not say."""
    buffer = ctypes.create_string_buffer(512)  # struct timex is 208 bytes on Linux; modes = 0 only reads
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (AttributeError, OSError):
        return None
    return None if state < 0 else bool(state != TIME_ERROR)


def disk(name: str, folder: Path, free_bytes: int, remedy: str, least_bytes: int = 0) -> Iterator[Check]:
    """Judge the free space of a folder's disk."""
    least = least_bytes or LEAST_FREE_BYTES
    measured, expected = f"{free_bytes >> 20} MiB free at {folder}", f"at least {least >> 20} MiB"
    yield judge(name, measured, expected, f"free space, or {remedy}", ok=free_bytes >= least)


def folder(name: str, path: Path, remedy: str) -> Iterator[Check]:
    """Judge whether this process may write a folder, which may still have to be made, and the space on its disk."""
    place = existing(path)
    ok = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    measured = "writable" if ok else f"{place} is not a folder that {user()} may write"
    hint = f"make it writable (chown {user()} {place}), or {remedy}"
    yield judge(name, measured, f"{path} can be written", hint, ok=ok)
    if ok:
        yield from disk(f"disk of {name}", path, shutil.disk_usage(place).free, remedy)


def lock(daemon: str, path: Path, state_dir: Path) -> Iterator[Check]:
    """Judge whether a daemon that was not asked holds the lock of a state folder."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # nobody ever held it, or it cannot be told
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        tool = daemon.removesuffix("d") + "ctl"
        hint = f"it answers on another socket ({tool} --control-socket PATH), or hangs: ps aux | grep {daemon}"
        yield judge("state folder", f"a {daemon} that runs has {state_dir}", "free", hint, ok=False)
    else:
        yield judge("state folder", f"{state_dir} is free", "free until the daemon starts", "", ok=True)
    finally:
        os.close(descriptor)


def existing(path: Path) -> Path:
    """Return the path, or the nearest above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def user() -> str:
    """Return who this process runs as."""
    import pwd  # noqa: PLC0415 - only where a sentence needs the name

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
