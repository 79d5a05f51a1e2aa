"""Checks of the GPU: is there one, has it a driver, may this user reach it, does torch see it, and does it compute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protocol.node.checkup.check import Check, judge
from protocol.node.checkup.machine import user

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_FREE_BYTES = 1 << 30
NVIDIA, AMD = "0x10de", "0x1002"
MAKERS = {NVIDIA: "NVIDIA", AMD: "AMD"}
DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")
"""PCI classes of graphics and of processing accelerators."""


class Gpu(NamedTuple):
    """What was found of GPUs; empty where there is none."""

    torch: str = ""
    build: str = "CPU only"
    """What torch was built for: CUDA 12.8, ROCm 6.3, CPU only."""
    cards: tuple[str, ...] = ()
    """Makers of the cards on the bus."""
    driver: str = ""
    """Its name and version, such as nvidia 570.86."""
    denied: tuple[str, ...] = ()
    """Device files that this user may not open."""
    devices: tuple[str, ...] = ()
    """What torch sees."""
    free_bytes: int = 0
    total_bytes: int = 0
    fault: str = ""
    """Why a small product on the device came to nothing."""
    threads: int = 0


def measure(device: str, root: Path = Path("/")) -> Gpu:
    """Look at the bus, the drivers and torch; imports torch, which takes a second."""
    import torch  # noqa: PLC0415 - a second that the other checks need not pay

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    build = build or (f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only")
    found = Gpu(torch.__version__, build, cards(root), driver(root), denied(root), threads=torch.get_num_threads())
    if not torch.cuda.is_available() or device == "cpu":
        return found
    names = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    found = found._replace(devices=names)
    try:
        place = torch.device(device if device.startswith("cuda") else "cuda")
        free, total = torch.cuda.mem_get_info(place)
        product = torch.full((64, 64), 2.0, device=place) @ torch.full((64, 64), 0.5, device=place)
        fault = "" if float(product[0, 0]) == 64.0 else f"2 x 0.5 x 64 is {float(product[0, 0])} there"
    except (RuntimeError, ValueError, AssertionError) as error:
        return found._replace(fault=str(error).splitlines()[0][:200])
    return found._replace(free_bytes=free, total_bytes=total, fault=fault)


def cards(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the makers of the graphics cards and accelerators on the PCI bus."""
    makers = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        kind, vendor = _text(folder / "class"), _text(folder / "vendor")
        if vendor in MAKERS and kind.startswith(DISPLAY_CLASSES):
            makers.append(MAKERS[vendor])
    return tuple(makers)


def driver(root: Path = Path("/")) -> str:
    """Return the loaded driver and its version, or nothing."""
    nvidia = _text(root / "proc/driver/nvidia/version")
    if nvidia:
        words = nvidia.splitlines()[0].split()
        return "nvidia " + next((word for word in words if word[0].isdigit() and "." in word), "")
    if (root / "dev/nvidiactl").exists():
        return "nvidia"
    if (root / "dev/kfd").exists():
        return f"amdgpu {_text(root / 'sys/module/amdgpu/version')}".strip()
    return ""


def denied(root: Path = Path("/")) -> tuple[str, ...]:
    """Return device files of GPUs that are there and that this user may not open."""
    files = [root / "dev/kfd", root / "dev/nvidiactl", root / "dev/nvidia0", *(root / "dev/dri").glob("renderD*")]
    return tuple(str(each) for each in files if each.exists() and not os.access(each, os.R_OK | os.W_OK))


def gpu(device: str, found: Gpu) -> Iterator[Check]:
    """Judge it all; without a card the CPU is what is expected, unless the settings ask for more."""
    is_asked = device.startswith("cuda")
    yield from _driver(found, is_asked=is_asked)
    yield from _torch(device, found, is_asked=is_asked)
    if found.devices:
        hint = f"the driver and torch {found.torch} ({found.build}) do not fit each other, or the card is faulty: "
        hint += "install a torch for this driver (ROVERLOOP_TORCH); dmesg | tail"
        yield judge(
            "gpu computes", found.fault or "64 x 64 product right", "a small product is right", hint, ok=not found.fault
        )
    if found.total_bytes:
        free, total = found.free_bytes >> 20, found.total_bytes >> 20
        hint = "another program fills it (nvidia-smi, rocm-smi): stop it, or choose device cuda:1"
        ok, expected = found.free_bytes >= LEAST_FREE_BYTES, f"at least {LEAST_FREE_BYTES >> 20} MiB free"
        yield judge("gpu memory", f"{free} of {total} MiB free", expected, hint, ok=ok)


def _driver(found: Gpu, *, is_asked: bool) -> Iterator[Check]:
    if not found.cards and not found.driver:
        hint = "device asks for a GPU and none is on the bus: lspci, or set device = auto"
        yield judge("gpu driver", "no GPU in this machine", "one, if device asks for it", hint, ok=not is_asked)
        return
    what = found.driver or f"none for {', '.join(found.cards)}"
    hint = "install the card's driver (NVIDIA: nvidia-smi must work; AMD: rocminfo must list it) and restart"
    yield judge("gpu driver", what, "loaded", hint, ok=bool(found.driver))
    if found.denied:
        hint = f"sudo usermod -aG render,video {user()}, then log in again (a unit: SupplementaryGroups=render video)"
        measured = f"{user()} may not open {', '.join(found.denied)}"
        yield judge("gpu access", measured, "this user may open them", hint, ok=False, is_needed=not found.devices)


def _torch(device: str, found: Gpu, *, is_asked: bool) -> Iterator[Check]:
    has_driver, is_cpu_build = bool(found.driver), found.build == "CPU only"
    hint = "this machine has a GPU that this torch was not built for: install with ROVERLOOP_TORCH, such as "
    hint += "torch==2.13.0+rocm6.4" if "amdgpu" in found.driver else "torch==2.13.0+cu130"
    is_needed = device != "cpu"
    expected = "one for the machine's GPU" if has_driver else "any, there is no GPU"
    build = f"{found.torch}, {found.build}"
    yield judge("torch build", build, expected, hint, ok=not (is_cpu_build and has_driver), is_needed=is_needed)
    seen = ", ".join(found.devices) or f"the CPU, {found.threads} threads"
    hint = f"torch {found.torch} ({found.build}) sees no GPU: see the checks above, or set device = auto"
    is_blind = not found.devices and (is_asked or (has_driver and not is_cpu_build and device != "cpu"))
    yield judge("torch device", seen, f"device {device}", hint, ok=not is_blind)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
