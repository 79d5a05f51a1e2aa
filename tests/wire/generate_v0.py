"""Write the golden packets of protocol version 0: ``python -m tests.wire.generate_v0``.

A file is one packet as it stands on the wire, so that ``xxd`` shows its parts: length, JSON, image, depth, numbers. It
is put together here by hand, as the first data collector does, and not by the encoder that is tested with it. A file
that is there is never written again.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from protocol.images import encode_rgb

FOLDER = Path(__file__).parent / "v0"
METADATA = {
    "timestamp": 1234567890.125,
    "episode_step": 42,
    "reward": 0.5,
    "done": False,
    "rgb_shape": [240, 424, 3],
    "depth_shape": [240, 424],
    "proprio_shape": [6],
    "action_shape": [2],
}
PROPRIO = np.array([0.25, -0.5, 0.125, -0.0625, 9.75, 1.5], np.float32)
ACTION = np.array([0.18, -0.75], np.float32)
NO_READING = (np.nan, np.inf, -np.inf, -1.0, 0.0, 32.768, 1e30)
"""The first pixels of the golden depth: none of them is a distance that millimetres in int16 can hold."""


def rgb() -> np.ndarray:
    """Return uint8[240, 424, 3]: red grows with the row, green with the column."""
    rows, columns = np.arange(240)[:, None], np.arange(424)[None, :]
    return np.stack(np.broadcast_arrays(rows, columns // 2, 128), axis=2).astype(np.uint8)


def metres() -> np.ndarray:
    """Return float32[240, 424]: row * 0.1 m + 1 m in steps of a few columns, beginning with what is no reading."""
    rows, columns = np.arange(240)[:, None], np.arange(424)[None, :]
    depth = (1.0 + 0.1 * rows + 0.001 * (columns // 53)).astype(np.float32)
    depth[0, : len(NO_READING)] = NO_READING
    return depth


def packet(metadata: dict[str, object], pixels: bytes, order: str = "<") -> bytes:
    """Return a packet; ``order`` is the byte order of the length."""
    text = json.dumps(metadata).encode("utf-8")
    numbers = b"".join(each.astype("<f4").tobytes() for each in (metres(), PROPRIO, ACTION))
    return struct.pack(f"{order}I", len(text)) + text + pixels + numbers


def main() -> None:
    """Write what is missing."""
    FOLDER.mkdir(exist_ok=True)
    jpeg = encode_rgb(rgb())
    packets = {
        "packet.jpeg": packet({**METADATA, "rgb_compressed": True}, jpeg),
        "packet.jpeg_big_endian": packet({**METADATA, "rgb_compressed": True}, jpeg, ">"),
        "packet.raw_done": packet({**METADATA, "done": True, "rgb_compressed": False}, rgb().tobytes()),
    }
    for name, content in packets.items():
        path = FOLDER / f"{name}.bin"
        if not path.exists():
            path.write_bytes(content)


if __name__ == "__main__":
    main()
