"""The encoders ``rgbd``, ``gray_depth`` and ``depth``: convolutions and an average."""

from __future__ import annotations

from typing import Any

from plugins import EncoderPlugin, hookimpl
from plugins.encoders.cameras import CameraSettings, depth_planes, gray_depth_planes, rgbd_planes


def build_rgbd(shape: tuple[int, int, int], settings: CameraSettings) -> Any:  # noqa: ARG001 - any image size
    """Build the encoder of colour and depth: 284,288 parameters."""
    from plugins.encoders.convolutional_net import (  # noqa: PLC0415 - robots have no torch
        Convolutional,
        colour_branch,
        plane_branch,
    )

    return Convolutional([colour_branch(), plane_branch()], [3, 1], [64, 32])


def build_gray_depth(shape: tuple[int, int, int], settings: CameraSettings) -> Any:  # noqa: ARG001
    """Build the encoder of brightness and depth."""
    from plugins.encoders.convolutional_net import Convolutional, plane_branch  # noqa: PLC0415

    return Convolutional([plane_branch(), plane_branch()], [1, 1], [32, 32])


def build_depth(shape: tuple[int, int, int], settings: CameraSettings) -> Any:  # noqa: ARG001
    """Build the encoder of depth alone."""
    from plugins.encoders.convolutional_net import Convolutional, plane_branch  # noqa: PLC0415

    return Convolutional([plane_branch()], [1], [32])


@hookimpl
def provide_encoders() -> list[EncoderPlugin]:
    """Return the convolutional encoders."""
    return [
        EncoderPlugin("rgbd", CameraSettings, rgbd_planes, build_rgbd),
        EncoderPlugin("gray_depth", CameraSettings, gray_depth_planes, build_gray_depth),
        EncoderPlugin("depth", CameraSettings, depth_planes, build_depth),
    ]
