"""Which camera planes the built-in encoders read; runs on both machines, so nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.node.config import option
from protocol.spec import SpecError
from protocol.transform import Plane

if TYPE_CHECKING:
    from protocol.spec import RobotSpec


@dataclass(frozen=True)
class CameraSettings:
    """Which cameras an encoder looks at; empty means the robot's first of that kind."""

    rgb: str = option("", help="blob key of the colour camera, empty for the first one")
    depth: str = option("", help="blob key of the depth camera, empty for the first one")


def camera_key(robot: RobotSpec, kind: str, wanted: str) -> str:
    """Return the blob key of the wanted camera, or of the first of a kind.

    Raises:
        SpecError: the robot has none.

    """
    if wanted:
        return robot.camera(wanted).key
    for camera in robot.cameras:
        if camera.kind == kind:
            return camera.key
    raise SpecError(f"robot {robot.name}: the encoder needs a camera of kind {kind}, there is none")


def rgbd_planes(robot: RobotSpec, settings: CameraSettings) -> tuple[Plane, ...]:
    """Return colour and inverse depth."""
    return (
        Plane(camera_key(robot, "rgb", settings.rgb), "rgb"),
        Plane(camera_key(robot, "depth", settings.depth), "inverse_depth"),
    )


def gray_depth_planes(robot: RobotSpec, settings: CameraSettings) -> tuple[Plane, ...]:
    """Return brightness and inverse depth."""
    return (
        Plane(camera_key(robot, "rgb", settings.rgb), "gray"),
        Plane(camera_key(robot, "depth", settings.depth), "inverse_depth"),
    )


def depth_planes(robot: RobotSpec, settings: CameraSettings) -> tuple[Plane, ...]:
    """Return inverse depth alone."""
    return (Plane(camera_key(robot, "depth", settings.depth), "inverse_depth"),)


def no_planes(robot: RobotSpec, settings: CameraSettings) -> tuple[Plane, ...]:  # noqa: ARG001 - the contract's signature
    """Return nothing: a policy that sees no camera."""
    return ()
