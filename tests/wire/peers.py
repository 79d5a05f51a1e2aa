"""Peers of other protocol versions, as bytes: what a rover or a trainer of version N-1 or N+1 would say.

``python -m tests.wire.peers`` writes golden bytes of version N+1, whose messages have keys that are unknown here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import pack, unpack
from protocol.messages import Hello, Message, Welcome, encode
from tests.wire.examples import MESSAGES
from tests.wire.generate import write

FOLDER = Path(__file__).parent / "next"
UNKNOWN: dict[str, Any] = {
    "lidar": {"beams": 1081, "codec": "polar"},
    "signature": b"\x00\xff" * 32,
    "lanes": [["live", 0], ["backfill", 3]],
    "pressure_hpa": 1013.25,
    "nothing": None,
}
"""Keys that a later version may have; they say nothing to this one."""

RANGES = {
    "older": (OLDEST_PROTOCOL_VERSION - 1, OLDEST_PROTOCOL_VERSION - 1),
    "newer": (PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 1),
    "older_to_this": (OLDEST_PROTOCOL_VERSION - 1, PROTOCOL_VERSION),
    "this_to_newer": (PROTOCOL_VERSION, PROTOCOL_VERSION + 1),
}
"""Ranges of versions (oldest, newest) that a peer may speak: neither of the first two has one in common with us."""


def hello(oldest: int, newest: int, **changes: Any) -> Hello:
    """Return the greeting of a rover that speaks these versions."""
    message = MESSAGES["hello"]
    assert isinstance(message, Hello)
    return replace(message, oldest_version=oldest, newest_version=newest, **changes)


def welcome(version: int, **changes: Any) -> Welcome:
    """Return the welcome of a trainer that chose this version."""
    message = MESSAGES["welcome"]
    assert isinstance(message, Welcome)
    return replace(message, version=version, **changes)


def with_unknown_keys(message: Message) -> list[bytes]:
    """Return a message's frames with keys in its map that this version does not know."""
    frames = encode(message)
    return [pack({**UNKNOWN, **unpack(frames[0])}), *frames[1:]]


def main() -> None:
    """Write what is missing."""
    FOLDER.mkdir(exist_ok=True)
    newer = RANGES["this_to_newer"]
    for message in (hello(*newer), hello(*RANGES["newer"]), welcome(PROTOCOL_VERSION + 1), welcome(PROTOCOL_VERSION)):
        speaks = message.version if isinstance(message, Welcome) else message.oldest_version
        write(FOLDER / f"message.{message.kind}_{speaks}.bin", with_unknown_keys(message))


if __name__ == "__main__":
    main()
