"""Inputs on which trainer and robot must agree before a policy drives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.bundle import golden_count

if TYPE_CHECKING:
    from protocol.spec import Camera, Element, RobotSpec, TaskSpec
    from protocol.transform import InputTransform

FloatArray = npt.NDArray[np.float32]

SEED = 17


def synthetic_inputs(robot: RobotSpec, task: TaskSpec, transform: InputTransform) -> tuple[FloatArray, FloatArray]:
    """Return made-up network inputs for a run that has recorded none yet, equal on every machine.

    Raw observations go through the transform, so that it is part of what is proved. Rows and columns of the images
    differ in kind: height and width cannot be exchanged without notice.

    Returns:
        float32[G, C, H, W] and float32[G, n].

    """
    random = np.random.default_rng(SEED)
    images, vectors = [], []
    for index in range(golden_count(transform)):
        raw = {camera.key: synthetic_frame(camera, index, random) for camera in robot.cameras}
        images.append(transform.image(raw))
        state, features, action = (_draw(elements, random) for elements in (robot.state, task.features, robot.action))
        vectors.append(transform.vector(state, features, action))
    return np.stack(images), np.stack(vectors)


def synthetic_frame(camera: Camera, index: int, random: np.random.Generator) -> npt.NDArray[np.generic]:
    """Return a frame that ramps along its width, waves along its height, and has one bright corner and some noise."""
    height, width = camera.height, camera.width
    along = np.linspace(0.0, 1.0, width)[np.newaxis, :]
    down = 0.5 + 0.5 * np.sin(np.arange(height) * (0.3 + 0.1 * index))[:, np.newaxis]
    frame = 0.6 * along + 0.3 * down + 0.1 * random.random((height, width))
    frame[: max(1, height // 4), : max(1, width // 8)] = 1.0
    if camera.kind == "rgb":
        tints = np.array((1.0, 0.7, 0.4))
        return np.asarray(frame[..., np.newaxis] * tints * 255, np.uint8)
    depth = np.asarray(300 + frame * 5000, np.int16)
    depth[random.random((height, width)) < 0.01] = 0
    return depth


def _draw(elements: tuple[Element, ...], random: np.random.Generator) -> FloatArray:
    """Return float32[n] uniformly within each element's nominal span, cut to its range."""
    centre = np.array([e.centre for e in elements])
    scale = np.array([e.scale for e in elements])
    low, high = np.array([e.low for e in elements]), np.array([e.high for e in elements])
    return np.asarray(np.clip(centre + scale * random.uniform(-1, 1, len(elements)), low, high), np.float32)
