"""The encoder ``column``: colour and inverse depth, cheap enough to learn on one CPU core."""

from __future__ import annotations

from typing import Any

from plugins import EncoderPlugin, hookimpl
from plugins.encoders.cameras import CameraSettings, rgbd_planes


def build_column(shape: tuple[int, int, int], settings: CameraSettings) -> Any:  # noqa: ARG001 - the contract's signature
    """Build the column encoder: 28,000 parameters for four planes of 60x106."""
    from plugins.encoders.column_net import Column  # noqa: PLC0415 - robots have no torch

    return Column(shape)


@hookimpl
def provide_encoders() -> list[EncoderPlugin]:
    """Return the column encoder."""
    return [EncoderPlugin("column", CameraSettings, rgbd_planes, build_column)]
