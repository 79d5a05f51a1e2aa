"""Checks that need no daemon: the machine and its Python, and the folders that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.checkup import machine
from protocol.node.checkup.check import Check, gather
from protocol.node.checkup.systemd import control_socket

if TYPE_CHECKING:
    from trainerd.settings import Settings


def machine_checks(settings: Settings) -> list[Check]:
    """Check what every trainer stands on."""
    return gather(
        "machine",
        machine.python,
        machine.modules,
        lambda: machine.packages(machine.requirements(["trainer"])),
        machine.jpeg,
        lambda: machine.memory(Path("/proc/meminfo").read_text()),
        lambda: machine.measure_stolen(is_needed=False),
        lambda: machine.clock(is_synchronised=machine.is_clock_synchronised()),
        lambda: control_socket(settings.socket_path),
    )


def storage_checks(settings: Settings) -> list[Check]:
    """Check every folder that is written to, and the space on its disk."""
    return gather(
        "storage",
        lambda: machine.folder("state dir", settings.state_dir, "set state_dir to another folder"),
        lambda: machine.folder("checkpoint dir", settings.checkpoint_dir, "set checkpoint_dir to another folder"),
        lambda: machine.folder("tensorboard dir", settings.tensorboard_dir, "set tensorboard_dir to another folder"),
    )
