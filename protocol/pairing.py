"""The few messages with which a rover and a trainer show each other their keys, before there is a link.

Plain TCP on a port of its own: two bytes of length, then a msgpack map with its ``kind``. Nothing in it is secret, and
nothing in it is believed before a person has compared the code of both sides (``protocol.keys.short_code``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from protocol.errors import RoverError
from protocol.framing import Fields, ProtocolError, pack, unpack

VERSION = 1
PORT_ABOVE_LINK = 2
DEFAULT_PORT = 5555 + PORT_ABOVE_LINK
MAX_BYTES = 1024
WINDOW_S = 300.0
"""How long a pairing may take from its first message to the person's word."""


class PeerLeftError(RoverError):
    """The other side closed the connection in the middle of a pairing."""


def encode(kind: str, **values: Any) -> bytes:
    """Return a message as bytes for the connection."""
    body = pack({"kind": kind, **values})
    return len(body).to_bytes(2, "big") + body


async def receive(reader: asyncio.StreamReader) -> tuple[str, Fields]:
    """Return the kind and the fields of the next message.

    Raises:
        PeerLeftError: there is none to come.
        ProtocolError: it is too long, or no message.

    """
    try:
        size = int.from_bytes(await reader.readexactly(2), "big")
        if not 0 < size <= MAX_BYTES:
            raise ProtocolError(f"pairing: a message of {size} bytes, at most {MAX_BYTES} are allowed")
        header = unpack(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise PeerLeftError("the other side closed the connection") from error
    fields = Fields("pairing", header)
    return fields.get("kind", str), fields
