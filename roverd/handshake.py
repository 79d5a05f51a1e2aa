"""What ZeroMQ says of a connection before a message goes through it: a refused key shows nowhere else."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTED = int(zmq.EVENT_CONNECTED)
SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
REFUSED_KEY = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
BROKEN_OFF = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
OTHER_PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_WANTED = CONNECTED | SUCCEEDED | REFUSED_KEY | BROKEN_OFF | OTHER_PROTOCOL
_EVENT = struct.Struct("=HI")


class HandshakeMonitor:
    """The monitor of one socket; made before it connects, closed before it."""

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        """Begin to watch."""
        self._watched = watched
        self._socket = watched.get_monitor_socket(_WANTED)
        self._socket.setsockopt(zmq.LINGER, 0)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there may be events."""
        return int(self._socket.fileno())

    def events(self) -> Iterator[int]:
        """Give what happened since the last call, without waiting."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if frames and len(frames[0]) == _EVENT.size:
                yield int(_EVENT.unpack(frames[0])[0])

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self._socket.close(linger=0)
