"""Write the golden files of the present protocol version: ``python -m tests.wire.generate``.

A file that is there is never written again: its bytes are what released robots send, for ever. A new message or a new
form of a record gets a file of its own.
"""

from __future__ import annotations

import struct
from pathlib import Path

from protocol import PROTOCOL_VERSION
from protocol.framing import RecordEncoder, encode_record
from protocol.messages import encode
from protocol.step import Step
from tests.wire.examples import MESSAGES, ROBOT, records

FOLDER = Path(__file__).parent


def read(path: Path) -> list[bytes]:
    """Return the frames of a golden file: each has its length before it, 4 bytes, little-endian."""
    content, frames = path.read_bytes(), []
    while content:
        (size,) = struct.unpack_from("<I", content)
        frames.append(content[4 : 4 + size])
        content = content[4 + size :]
    return frames


def write(path: Path, frames: list[bytes]) -> None:
    """Write a golden file unless it is there."""
    if not path.exists():
        path.write_bytes(b"".join(struct.pack("<I", len(frame)) + frame for frame in frames))


def main() -> None:
    """Write what is missing."""
    folder = FOLDER / f"v{PROTOCOL_VERSION}"
    folder.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        write(folder / f"message.{name}.bin", encode(message))
    for name, record in records().items():
        observation = record.observation if isinstance(record, Step) else record.final
        encoded = RecordEncoder(ROBOT).encode_images(observation.images)
        write(folder / f"record.{name}.bin", encode_record(record, encoded))


if __name__ == "__main__":
    main()
