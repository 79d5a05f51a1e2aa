"""The encoder ``blind``: no camera at all, for tasks whose state is enough and as a baseline."""

from __future__ import annotations

from typing import Any

from plugins import EncoderPlugin, hookimpl
from plugins.encoders.cameras import CameraSettings, no_planes


def build_blind(shape: tuple[int, int, int], settings: CameraSettings) -> Any:  # noqa: ARG001 - the contract's signature
    """Build the encoder of a policy that sees no camera."""
    from plugins.encoders.blind_net import Blind  # noqa: PLC0415 - robots have no torch

    return Blind()


@hookimpl
def provide_encoders() -> list[EncoderPlugin]:
    """Return the encoder that encodes nothing."""
    return [EncoderPlugin("blind", CameraSettings, no_planes, build_blind)]
