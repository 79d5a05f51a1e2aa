"""Policies made here, without a trainer: linear ones for the synthetic robot, whose actions tell which one it was."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.manager import PluginManager
from protocol.bundle import GOLDEN, ONNX, Golden, Manifest, Signature, golden_bytes, pack_bundle
from protocol.node.config import validate_table
from protocol.spec import RobotSpec, TaskSpec
from protocol.transform import InputTransform
from tests.unit.roverd import graphs

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RATE_HZ = 30.0
DELAY_MS = 20.0
SYNTHETIC = {"control_rate_hz": RATE_HZ, "action_delay_ms": DELAY_MS, "action_repeat": 1}
EPISODE_S = 2.0
CLOCKED = {
    "robot": "synthetic",
    "task": "goal",
    "control.rate_hz": RATE_HZ,
    "control.max_speed_mps": 0.5,
    "control.safety_distance_m": 0.0,
    "control.slow_distance_m": 0.0,
    "control.max_acceleration_mps2": 0.0,
    "control.max_acceleration_radps2": 0.0,
    "control.max_jerk_mps3": 0.0,
    "control.max_jerk_radps3": 0.0,
    "control.stall_after_ms": 0.0,
    **{f"plugins.synthetic.{name}": value for name, value in SYNTHETIC.items()},
    "plugins.goal.time_limit_s": EPISODE_S,
    "teleop.port": 0,
}
"""A rover with a clock whose safety changes nothing: what is applied is what was proposed."""
LOG_STD = -1.0
VECTOR_SIZE = 8
SPEED_PLACE = 0
"""Where the speed stands in a policy's input, in units of 0.5 m/s."""


def specs(**synthetic: Any) -> tuple[RobotSpec, TaskSpec]:
    """Return the specs of the robot and task of ``CLOCKED``, with other settings of the robot."""
    plugins = PluginManager(groups=("robots", "tasks"))
    robot_plugin, task_plugin = plugins.robot("synthetic"), plugins.task("goal")
    settings = validate_table(robot_plugin.settings, {**SYNTHETIC, **synthetic}, "[plugins.synthetic]")
    robot = robot_plugin.create(settings).spec
    table = validate_table(task_plugin.settings, {"time_limit_s": EPISODE_S}, "[plugins.goal]")
    return robot, task_plugin.create(table, robot, 0).spec


@dataclass
class Maker:
    """Make bundles for a robot; the ``number`` of one shows in its mean."""

    robot: RobotSpec
    task: TaskSpec
    made: dict[str, int] = field(default_factory=dict)
    biases: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, **synthetic: Any) -> Maker:
        return cls(*specs(**synthetic))

    @property
    def transform(self) -> InputTransform:
        return InputTransform.of(self.robot, self.task, ())

    def golden_vectors(self) -> npt.NDArray[np.float32]:
        return np.linspace(-1, 1, 8 * self.transform.size, dtype=np.float32).reshape(8, self.transform.size)

    def bundle(
        self,
        number: int,
        *,
        graph: bytes | None = None,
        bias: float | None = None,
        signature: Signature | None = None,
        **changes: Any,
    ) -> bytes:
        """Return policy ``number``: straight ahead, more or less; its golden outputs are those of the right graph."""
        bias = self.biases[number] = bias_of(number) if bias is None else bias
        vectors = self.golden_vectors()
        vectors[:, SPEED_PLACE] = 0.0
        size = self.transform.size
        mean = vectors @ graphs.weights(size) * np.float32(0.1) + np.float32(bias)
        onnx = graph if graph is not None else graphs.scaled(size, scale=0.1, bias=bias)
        golden = golden_bytes(Golden(np.zeros((8, 0, 0, 0), np.float32), vectors, mean.astype(np.float32)))
        manifest = Manifest(**({**self._facts(number, onnx, golden), **changes}))
        content = pack_bundle(manifest, onnx, golden, signature)
        self.made[manifest.policy_id] = number
        return content

    def _facts(self, number: int, onnx: bytes, golden: bytes) -> dict[str, Any]:
        robot = self.robot
        return {
            "counter": number,
            "parent": "",
            "run_id": "made-here",
            "robot": robot.to_map(),
            "task": self.task.to_map(),
            "transform": self.transform.to_map(),
            "runner": "single",
            "inputs": [["vector", [1, self.transform.size], "float32"]],
            "outputs": [["mean", [1, 2], "float32"]],
            "control_rate_hz": robot.control_rate_hz,
            "action_repeat": robot.action_repeat,
            "action_delay_ms": robot.action_delay_ms,
            "action_low": [e.low for e in robot.action],
            "action_high": [e.high for e in robot.action],
            "log_std": [LOG_STD, LOG_STD],
            "files": {ONNX: hashlib.sha256(onnx).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()},
            "weights_sha256": hashlib.sha256(onnx).hexdigest(),
            "keys_sha256": "0" * 64,
        }

    def write(self, folder: Path, number: int, **changes: Any) -> Path:
        """Write policy ``number`` into a folder and return its path."""
        path = folder / f"policy-{number}.bundle"
        path.write_bytes(self.bundle(number, **changes))
        return path

    def mean(self, number: int, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what policy ``number`` answers to a row or rows of its input."""
        rows = vector @ graphs.weights(self.transform.size) * np.float32(0.1)
        answer: npt.NDArray[np.float32] = rows + np.float32(self.biases[number])
        return answer


def bias_of(number: int) -> float:
    """Return what is added to both means of a policy: no two of ten thousand are alike."""
    return 0.3 + 1e-4 * number
