"""Checks of the NPU of an RK3588: its kernel driver, runtime library and toolkit, and whether they fit each other."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protocol.node.checkup.check import Check, judge, note
from protocol.node.checkup.machine import installed, user
from roverd.doctor.board import number, text

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLKIT = "rknn-toolkit-lite2"
LIBRARIES = (
    "usr/lib/librknnrt.so",
    "usr/lib64/librknnrt.so",
    "usr/lib/aarch64-linux-gnu/librknnrt.so",
    "usr/local/lib/librknnrt.so",
)
OLDEST_DRIVER = (0, 9, 2)
_VERSION = re.compile(r"(\d+(?:\.\d+)+)")
_LIBRARY_VERSION = re.compile(rb"librknnrt version: (\d+(?:\.\d+)+)")


class Npu(NamedTuple):
    """What was found; empty texts where there is nothing."""

    is_board: bool = False
    """The board has one, says its device tree."""
    driver: str = ""
    """Version of the kernel driver rknpu; ``present`` where it is there and does not say."""
    is_mainline: bool = False
    """The driver is mainline's rocket, for which the runtime library is not made."""
    library: str = ""
    library_version: str = ""
    toolkit: str = ""
    denied: tuple[str, ...] = ()
    """Device files that this user may not open."""
    frequency_mhz: int = 0
    governor: str = ""


def measure(root: Path = Path("/")) -> Npu:
    """Look for it below ``root``."""
    compatible = text(root / "proc/device-tree/compatible")
    devfreq = next(iter(sorted((root / "sys/class/devfreq").glob("*.npu"))), root / "nowhere")
    library = next((root / each for each in LIBRARIES if (root / each).exists()), None)
    driver = _driver(root)
    return Npu(
        is_board="rk3588" in compatible,
        driver=driver,
        is_mainline=not driver and ((root / "dev/accel/accel0").exists() or (root / "sys/module/rocket").exists()),
        library=str(library or ""),
        library_version=library_version(library) if library else "",
        toolkit=installed(TOOLKIT),
        denied=_denied(root),
        frequency_mhz=(number(devfreq / "cur_freq") or 0) // 1_000_000,
        governor=text(devfreq / "governor"),
    )


def _driver(root: Path) -> str:
    for path in ("sys/kernel/debug/rknpu/version", "sys/module/rknpu/version", "proc/rknpu/version"):
        found = _VERSION.search(text(root / path))
        if found is not None:
            return found[1]
    is_there = (root / "sys/module/rknpu").exists() or list((root / "sys/class/devfreq").glob("*.npu"))
    return "present" if is_there else ""


def _denied(root: Path) -> tuple[str, ...]:
    files = sorted((root / "dev/dri").glob("*")) if (root / "dev/dri").is_dir() else []
    return tuple(str(each) for each in files if not each.is_dir() and not os.access(each, os.R_OK | os.W_OK))


def library_version(path: Path) -> str:
    """Return the version that a runtime library carries in its text, or nothing."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _LIBRARY_VERSION.search(content)
            return found[1].decode() if found else ""
    except (OSError, ValueError):
        return ""


def npu(found: Npu) -> Iterator[Check]:
    """Judge all of it; a machine without an NPU runs the policy on its CPU."""
    if not found.is_board and not found.driver:
        yield judge("npu driver", "no NPU: the CPU runs the policy", "one on an RK3588 board", "", ok=True)
        return
    yield from _driver_check(found)
    yield from _runtime_check(found)
    if found.denied:
        hint = f"sudo usermod -aG render,video {user()}, then log in again (a unit: SupplementaryGroups=render video)"
        yield judge("npu access", f"{user()} may not open {', '.join(found.denied)}", "may open them", hint, ok=False)
    if found.governor or found.frequency_mhz:
        hint = "echo performance | sudo tee /sys/class/devfreq/*.npu/governor"
        measured = f"{found.governor}, {found.frequency_mhz} MHz"
        ok = found.governor != "powersave"
        yield judge("npu frequency", measured, "not powersave", hint, ok=ok, is_needed=False)


def _driver_check(found: Npu) -> Iterator[Check]:
    expected = f"rknpu {'.'.join(map(str, OLDEST_DRIVER))} or newer"
    if found.is_mainline:
        hint = (
            "boot the vendor's kernel (rknpu): librknnrt does not work with mainline's driver; the CPU runs the policy"
        )
        yield judge("npu driver", "mainline's rocket (/dev/accel)", expected, hint, ok=False, is_needed=False)
        return
    if not found.driver:
        hint = "load it (modprobe rknpu), or boot the vendor's kernel; until then the CPU runs the policy"
        yield judge("npu driver", "none", expected, hint, ok=False, is_needed=False)
        return
    if found.driver == "present":
        hint = "sudo cat /sys/kernel/debug/rknpu/version says it (only root may read it)"
        yield note("npu driver", "rknpu, its version is not told to this user", expected, hint)
        return
    version = tuple(map(int, found.driver.split(".")))
    hint = "older drivers give only one core, or crash: update the board's kernel"
    yield judge("npu driver", f"rknpu {found.driver}", expected, hint, ok=version >= OLDEST_DRIVER)


def _runtime_check(found: Npu) -> Iterator[Check]:
    library, toolkit = found.library_version, found.toolkit
    expected = f"librknnrt and {TOOLKIT} of one version"
    unknown = "of unknown version" if found.library else "missing"
    measured = f"librknnrt {library or unknown}, {TOOLKIT} {toolkit or 'missing'}"
    hint = f"pip install 'roverloop[rknn]', and librknnrt.so of the same version into /usr/lib; {measured}"
    if not found.library or not toolkit:
        yield judge("npu runtime", measured, expected, hint, ok=False, is_needed=False)
        return
    hint = f"a policy converted by another version can crash the runtime: install both as {toolkit or library}"
    ok = bool(library) and library == toolkit
    yield judge("npu runtime", measured, expected, hint, ok=ok, is_needed=bool(library))
