"""A robot with frames higher than wide, its task, a step, and a bundle around a given graph."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from protocol.bundle import GOLDEN, ONNX, Golden, Manifest, golden_bytes, pack_bundle
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Behaviour, Observation, Step
from protocol.transform import InputTransform, Plane

RGB = "observation.images.front"
DEPTH = "observation.depth.front"

ROBOT = RobotSpec(
    name="asymmetric",
    cameras=(Camera("front", "rgb", 6, 10, 10.0), Camera("front", "depth", 6, 10, 10.0)),
    state=(Element("linear_vel", "m/s", -0.5, 0.5, scale=0.5), Element("roll", "rad", -3.2, 3.2, 0.1, 0.2)),
    action=(Element("linear_cmd", "m/s", 0.0, 0.5), Element("angular_cmd", "rad/s", -1.5, 1.5)),
    control_rate_hz=10.0,
    action_repeat=2,
    action_delay_ms=20.0,
)
TASK = TaskSpec("goal", (Element("distance", "m", 0.0, 8.0, scale=4.0),), masked_state=("roll",))
PLANES = (Plane(RGB, "rgb"), Plane(RGB, "gray"), Plane(DEPTH, "inverse_depth"))
BLIND_SIZE = 5
"""Two state elements, one of the task, two of the action in flight."""


def pixels(height: int = 6, width: int = 10) -> dict[str, np.ndarray]:
    """Return frames in which every pixel tells its row and column."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    rgb = np.stack(np.broadcast_arrays(rows * 40, columns * 25, rows * 10 + columns), axis=2).astype(np.uint8)
    return {RGB: rgb, DEPTH: (300 + 1000 * rows + 100 * columns).astype(np.int16)}


def step(**changes) -> Step:
    """Return a step of the robot that a policy decided."""
    values = {
        "rover_id": "rover-1",
        "boot_id": "0123456789abcdef",
        "seq": 7,
        "episode_id": 2,
        "episode_step": 3,
        "decision_id": 4,
        "tick_in_decision": 0,
        "observation": Observation(
            state=np.array([0.25, 0.1], np.float32),
            task=np.array([2.0], np.float32),
            in_flight=np.array([0.1, -0.5], np.float32),
            stamp_ns=1_000,
        ),
        "action": np.array([0.2, 0.75], np.float32),
        "source": "policy",
        "reward": -0.5,
        "policy_id": "a" * 64,
        "policy_counter": 9,
        "behaviour": Behaviour(
            u=np.array([0.5, -0.25], np.float32),
            mean=np.array([0.0, 0.25], np.float32),
            log_std=np.array([-0.5, -1.0], np.float32),
            log_prob=-1.25,
        ),
        "reward_terms": {"progress": -0.5},
    }
    return Step(**{**values, **changes})


def manifest(onnx: bytes, golden: bytes, **changes) -> Manifest:
    """Return the manifest of a policy for ROBOT and TASK without images."""
    transform = InputTransform.of(ROBOT, TASK, ())
    made = Manifest(
        counter=3,
        parent="",
        run_id="run",
        robot=ROBOT.to_map(),
        task=TASK.to_map(),
        transform=transform.to_map(),
        runner="single",
        inputs=[["vector", [1, transform.size], "float32"]],
        outputs=[["mean", [1, 2], "float32"]],
        control_rate_hz=ROBOT.control_rate_hz,
        action_repeat=ROBOT.action_repeat,
        action_delay_ms=ROBOT.action_delay_ms,
        action_low=[e.low for e in ROBOT.action],
        action_high=[e.high for e in ROBOT.action],
        log_std=[-0.5, -1.0],
        files={ONNX: hashlib.sha256(onnx).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()},
        weights_sha256="w" * 64,
        keys_sha256="k" * 64,
    )
    return replace(made, **changes)


def golden(count: int = 2, *, mean: np.ndarray | None = None, channels: int = 0) -> Golden:
    """Return golden arrays of a policy; without images unless channels are asked for."""
    size = (6, 10) if channels else (0, 0)
    vector = np.linspace(-1, 1, count * BLIND_SIZE, dtype=np.float32).reshape(count, BLIND_SIZE)
    return Golden(
        image=np.full((count, channels, *size), 0.5, np.float32),
        vector=vector,
        mean=np.zeros((count, 2), np.float32) if mean is None else mean,
    )


def packed(onnx: bytes = b"a graph", arrays: Golden | None = None, **changes) -> bytes:
    """Return a bundle file around a graph."""
    content = golden_bytes(arrays or golden())
    return pack_bundle(manifest(onnx, content, **changes), onnx, content)
