"""Checks that need no daemon: the computer, its Python, its NPU and the state folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.checkup import machine
from protocol.node.checkup.check import Check, gather
from roverd.doctor import board, npu

if TYPE_CHECKING:
    from collections.abc import Iterator


def machine_checks(*, is_real: bool) -> list[Check]:
    """Check what every robot stands on; ``is_real``: lateness there means a robot that drives badly."""
    return gather(
        "machine",
        machine.python,
        machine.modules,
        lambda: machine.packages(machine.requirements(["rover"])),
        machine.jpeg,
        lambda: machine.memory(Path("/proc/meminfo").read_text()),
        lambda: machine.measure_stolen(is_needed=is_real),
        lambda: machine.clock(is_synchronised=machine.is_clock_synchronised()),
        lambda: board.frequency(is_needed=is_real),
        lambda: board.temperature(is_needed=is_real),
        board.voltage,
        lambda: npu.npu(npu.measure()),
    )


def disk(state_dir: Path) -> Iterator[Check]:
    """Judge whether the state folder can be written, and the space on its disk."""
    for check in machine.folder("state dir", state_dir, "set state_dir to another folder"):
        yield check if check.check == "state dir" else Check("disk", *_rest(check))


def _rest(check: Check) -> tuple[str, str, str, str]:
    return check.measured, check.expected, check.hint, check.state
