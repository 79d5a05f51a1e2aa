"""What a run is, fixed once and kept on disk: its name and the robot and task that it learns for."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.spec import RobotSpec, SpecError, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_CAMERA_BYTES = 64 << 20
"""All cameras of a robot together may have this many bytes in one observation."""
MAX_NUMBERS = 1024


class RunError(RoverError):
    """The file of the run is damaged; nothing is learned until somebody has looked at it."""


@dataclass(frozen=True)
class Run:
    """The identity of a run; the specs are unknown until the first rover was accepted."""

    run_id: str
    robot: RobotSpec | None = None
    task: TaskSpec | None = None

    @property
    def specs(self) -> tuple[RobotSpec, TaskSpec] | None:
        """Both specs, or None before the first rover."""
        return (self.robot, self.task) if self.robot and self.task else None


class RunFile:
    """``run.json`` in the state folder, read once and written whole."""

    def __init__(self, path: Path) -> None:
        """Read the run, or begin a new one; raises RunError where the file is damaged."""
        self._path = path
        self.run = self._read() or Run(f"run-{secrets.token_hex(4)}")

    def fix(self, robot: RobotSpec, task: TaskSpec, run_id: str | None = None) -> Run:
        """Fix the specs of the run (and its name, as a checkpoint has it), on disk before it returns."""
        self.run = Run(run_id or self.run.run_id, robot, task)
        values = {"run_id": self.run.run_id, "robot": robot.to_map(), "task": task.to_map()}
        write_atomic(self._path, json.dumps(values, indent=1).encode())
        return self.run

    def _read(self) -> Run | None:
        try:
            values = json.loads(self._path.read_bytes())
            return Run(str(values["run_id"]), *parse_specs(values["robot"], values["task"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SpecError) as error:
            raise RunError(f"{self._path}: {error}; move it away to begin a new run") from error


def parse_specs(robot: Mapping[str, Any], task: Mapping[str, Any]) -> tuple[RobotSpec, TaskSpec]:
    """Return both specs of what a rover (or a file) said; raises SpecError where a value is of no use.

    It checks sizes before anybody allocates for them.
    """
    try:
        specs = RobotSpec.from_map(robot), TaskSpec.from_map(task)
        for spec in specs:
            len(spec.hash)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SpecError(f"spec: {error!r}") from error
    sizes = [size for camera in specs[0].cameras for size in (camera.height, camera.width)]
    if not all(type(size) is int for size in sizes):
        raise SpecError(f"robot spec {specs[0].name}: camera sizes {sizes} are not whole numbers")
    total = sum(camera.nbytes for camera in specs[0].cameras)
    if total > MAX_CAMERA_BYTES:
        raise SpecError(f"robot spec {specs[0].name}: {total} bytes of images, at most {MAX_CAMERA_BYTES} are allowed")
    numbers = (*specs[0].state, *specs[0].action, *specs[1].features)
    if len(numbers) > MAX_NUMBERS or type(specs[0].action_repeat) is not int or specs[0].action_repeat > MAX_NUMBERS:
        raise SpecError(f"robot spec {specs[0].name}: {len(numbers)} numbers, action repeat {specs[0].action_repeat}")
    return specs
