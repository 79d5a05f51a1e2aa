"""Protocol version 0: the packet of the first data collector, decoded and encoded; pure, no socket.

``[4 bytes: length][JSON metadata][RGB: JPEG or raw][depth: float32 metres][proprio: float32][action: float32]`` in one
message, without identity, sequence or acknowledgement. Numbers are little-endian; the length may be big-endian, which
no allowed length leaves in doubt.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.framing import ProtocolError
from protocol.images import ImageError, check_jpeg
from protocol.spec import Camera, Element, RobotSpec

FloatArray = npt.NDArray[np.float32]

HEIGHT, WIDTH = 240, 424
FAR_M = 10.0
"""What the collector says of the distance ahead while it knows none."""
ROBOT = RobotSpec(
    name="legacy",
    cameras=(Camera("front", "rgb", HEIGHT, WIDTH, 10.0), Camera("front", "depth", HEIGHT, WIDTH, 10.0)),
    state=(
        Element("linear_vel", "m/s", -1.0, 1.0),
        Element("angular_vel", "rad/s", -3.0, 3.0, 0.0, 3.0),
        Element("roll", "rad", -math.pi, math.pi),
        Element("pitch", "rad", -math.pi / 2, math.pi / 2),
        Element("accel_mag", "m/s2", 0.0, 40.0, 9.81, 9.81),
        Element("min_forward_dist", "m", 0.0, FAR_M, 0.0, FAR_M),
    ),
    action=(Element("linear_cmd", "m/s", -1.0, 1.0), Element("angular_cmd", "rad/s", -3.0, 3.0)),
    control_rate_hz=10.0,
)
"""The one robot of version 0, which cannot describe itself; 10 Hz is the collector's rate unless it was changed."""
RGB, DEPTH = (camera.key for camera in ROBOT.cameras)
DISTANCE = ROBOT.state_index("min_forward_dist")

RGB_BYTES, DEPTH_BYTES = HEIGHT * WIDTH * 3, HEIGHT * WIDTH * 4
PROPRIO_BYTES, ACTION_BYTES = 4 * len(ROBOT.state), 4 * len(ROBOT.action)
LENGTH_BYTES = 4
MAX_METADATA_BYTES = 4096
MAX_JPEG_BYTES = 2 * RGB_BYTES + 4096
MAX_PACKET_BYTES = LENGTH_BYTES + MAX_METADATA_BYTES + MAX_JPEG_BYTES + DEPTH_BYTES + PROPRIO_BYTES + ACTION_BYTES
END_OF_JPEG = b"\xff\xd9"
MAX_TIMESTAMP_S = 2.0**32
MAX_EPISODE_STEP = 1 << 31
SHAPES = {
    "rgb_shape": [HEIGHT, WIDTH, 3],
    "depth_shape": [HEIGHT, WIDTH],
    "proprio_shape": [len(ROBOT.state)],
    "action_shape": [len(ROBOT.action)],
}
FLOATS = np.dtype("<f4")


@dataclass(frozen=True)
class LegacyPacket:
    """One packet, checked. ``rgb`` is the JPEG as it came, or uint8[240, 424, 3] where it was sent raw."""

    timestamp_s: float
    """Wall clock of the collector."""
    episode_step: int
    reward: float
    """NaN or infinity where the collector had none."""
    done: bool
    rgb: bytes | npt.NDArray[np.uint8]
    depth_mm: npt.NDArray[np.int16]
    """int16[240, 424] millimetres, 0: no reading."""
    proprio: FloatArray
    """float32[6] in the order of ``ROBOT.state``."""
    action: FloatArray
    """float32[2] in the order of ``ROBOT.action``."""


def decode_legacy(packet: bytes) -> LegacyPacket:
    """Return what a packet says; every size is checked before anything is allocated for it.

    Raises:
        ProtocolError: the message begins with the field that is wrong.

    """
    if len(packet) > MAX_PACKET_BYTES:
        raise ProtocolError(f"packet: {len(packet)} bytes, at most {MAX_PACKET_BYTES} are allowed")
    begin = LENGTH_BYTES + _metadata_bytes(packet)
    metadata = _metadata(packet[LENGTH_BYTES:begin])
    for name, expected in SHAPES.items():
        if metadata.get(name) != expected:
            raise ProtocolError(f"{name}: {str(metadata.get(name))[:60]}, version 0 has {expected}")
    end = len(packet) - DEPTH_BYTES - PROPRIO_BYTES - ACTION_BYTES
    rgb = _rgb(metadata, packet, begin, end)
    return LegacyPacket(
        timestamp_s=_number(metadata, "timestamp", 0.0, MAX_TIMESTAMP_S),
        episode_step=_whole(metadata, "episode_step"),
        reward=_reward(metadata),
        done=_flag(metadata, "done"),
        rgb=rgb,
        depth_mm=_millimetres(np.frombuffer(packet, FLOATS, HEIGHT * WIDTH, end)),
        proprio=_proprio(packet, end + DEPTH_BYTES),
        action=_finite("action", packet, end + DEPTH_BYTES + PROPRIO_BYTES, len(ROBOT.action)),
    )


def encode_legacy(packet: LegacyPacket, *, depth_m: FloatArray | None = None, big_endian: bool = False) -> bytes:
    """Return the bytes of a packet, with ``depth_m`` (float32[240, 424]) in place of its rounded depth if given."""
    is_jpeg = isinstance(packet.rgb, bytes)
    metadata = {
        "timestamp": packet.timestamp_s,
        "episode_step": packet.episode_step,
        "reward": packet.reward,
        "done": packet.done,
        **SHAPES,
        "rgb_compressed": is_jpeg,
    }
    text = json.dumps(metadata).encode()
    metres = packet.depth_mm * np.float32(1e-3) if depth_m is None else depth_m
    return b"".join(
        (
            len(text).to_bytes(LENGTH_BYTES, "big" if big_endian else "little"),
            text,
            packet.rgb if isinstance(packet.rgb, bytes) else packet.rgb.tobytes(),
            *(values.astype(FLOATS).tobytes() for values in (metres, packet.proprio, packet.action)),
        )
    )


def _metadata_bytes(packet: bytes) -> int:
    """Return the length of the metadata: little-endian, or big-endian where only that is possible."""
    head = packet[:LENGTH_BYTES]
    sizes = [int.from_bytes(head, "little"), int.from_bytes(head, "big")]
    allowed = [size for size in sizes if 2 <= size <= min(MAX_METADATA_BYTES, len(packet) - LENGTH_BYTES)]
    if len(head) < LENGTH_BYTES or not allowed:
        text = f"{sizes[0]} bytes in a packet of {len(packet)}, at most {MAX_METADATA_BYTES} are allowed"
        raise ProtocolError(f"metadata_length: {text}")
    return allowed[0]


def _metadata(content: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"metadata: not JSON: {str(error)[:200]}") from error
    if not isinstance(metadata, dict):
        raise ProtocolError(f"metadata: {type(metadata).__name__}, expected a map")
    return metadata


def _rgb(metadata: dict[str, Any], packet: bytes, begin: int, end: int) -> bytes | npt.NDArray[np.uint8]:
    is_jpeg = _flag(metadata, "rgb_compressed")
    size = end - begin
    if not is_jpeg and size != RGB_BYTES:
        raise ProtocolError(f"rgb: {size} raw bytes are left for it, expected {RGB_BYTES}")
    if not is_jpeg:
        pixels: npt.NDArray[np.uint8] = np.frombuffer(packet, np.uint8, RGB_BYTES, begin).copy()
        return pixels.reshape(HEIGHT, WIDTH, 3)
    if not 0 < size <= MAX_JPEG_BYTES:
        raise ProtocolError(f"rgb: {size} bytes are left for the JPEG, expected 1 to {MAX_JPEG_BYTES}")
    jpeg = packet[begin:end]
    try:
        check_jpeg(jpeg, HEIGHT, WIDTH)
    except ImageError as error:
        raise ProtocolError(f"rgb: {error}") from error
    if not jpeg.endswith(END_OF_JPEG):  # its size is stated nowhere: a packet that was cut shows only here
        raise ProtocolError(f"rgb: JPEG of {size} bytes does not end where it should")
    return jpeg


def _millimetres(metres: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Return int16[240, 424]; what is not finite, not positive or beyond int16 becomes 0, no reading."""
    with np.errstate(over="ignore", invalid="ignore"):
        millimetres = np.rint(metres * np.float32(1000.0))
        is_reading = (millimetres > 0) & (millimetres <= np.iinfo(np.int16).max)  # False for NaN
    depth: npt.NDArray[np.int16] = np.where(is_reading, millimetres, 0).astype(np.int16).reshape(HEIGHT, WIDTH)
    return depth


def _proprio(packet: bytes, offset: int) -> FloatArray:
    """Return float32[6]; nothing ahead within range (infinity) is the far end of the range."""
    values = np.frombuffer(packet, FLOATS, len(ROBOT.state), offset).astype(np.float32)
    if values[DISTANCE] == np.inf:
        values[DISTANCE] = FAR_M
    _check_finite("proprio", values)
    return values


def _finite(name: str, packet: bytes, offset: int, count: int) -> FloatArray:
    values = np.frombuffer(packet, FLOATS, count, offset).astype(np.float32)
    _check_finite(name, values)
    return values


def _check_finite(name: str, values: FloatArray) -> None:
    if not np.isfinite(values).all():
        raise ProtocolError(f"{name}: {values.tolist()} is not finite")


def _number(metadata: dict[str, Any], name: str, low: float, high: float) -> float:
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ProtocolError(f"{name}: {str(value)[:40]} is not a number from {low:g} to {high:g}")
    return float(value)


def _reward(metadata: dict[str, Any]) -> float:
    value = metadata.get("reward")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return float(value)
    if not isinstance(value, float):
        raise ProtocolError(f"reward: {str(value)[:40]} is not a number")
    return value


def _whole(metadata: dict[str, Any], name: str) -> int:
    value = metadata.get(name)
    if type(value) is not int or not 0 <= value < MAX_EPISODE_STEP:
        raise ProtocolError(f"{name}: {str(value)[:40]} is not a count")
    return value


def _flag(metadata: dict[str, Any], name: str) -> bool:
    value = metadata.get(name)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name}: {str(value)[:40]} is not true or false")
    return value
