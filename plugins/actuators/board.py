"""A motor board that takes datagrams: one a tick, over UDP or a Unix socket.

A command is one line of text, ``roverloop 1 SEQ STAMP_NS A0 A1 ...``: a counter, the sender's monotonic clock, and the
action elements in the units of the robot's spec (m/s and rad/s for a base). The board must stop by itself when no
command comes; ``plugins.actuators.simulated_board`` is one in software.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugins import Actuator, ActuatorPlugin, hookimpl
from protocol.node.config import option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import RobotSpec

GREETING = "roverloop 1"


@dataclass(frozen=True)
class BoardSettings:
    """Where the board listens."""

    address: str = option(
        "udp:127.0.0.1:8889", help="udp:HOST:PORT or unix:PATH of the motor board", pattern=r"udp:.+:\d+|unix:/.+"
    )


class Board:
    """Send every command; a full or missing receiver is an OSError, which control shows and tries again."""

    def __init__(self, settings: BoardSettings) -> None:
        """Open the socket; the board itself may come later."""
        kind, _, place = settings.address.partition(":")
        self._target: str | tuple[str, int]
        if kind == "unix":
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._target = place
        else:
            host, _, port = place.rpartition(":")
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._target = (host, int(port))
        self._socket.setblocking(False)
        self._seq = 0

    def write(self, action: Sequence[float]) -> None:
        """Send one command."""
        self._seq += 1
        words = " ".join(f"{value:.6g}" for value in action)
        line = f"{GREETING} {self._seq} {time.monotonic_ns()} {words}\n"
        self._socket.sendto(line.encode(), self._target)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def create(settings: BoardSettings, _spec: RobotSpec) -> Actuator:
    """Make the actuator."""
    return Board(settings)


@hookimpl
def provide_actuators() -> list[ActuatorPlugin]:
    """Offer the board."""
    return [ActuatorPlugin("board", BoardSettings, create)]


def parse(line: bytes) -> tuple[int, int, tuple[float, ...]]:
    """Return (seq, stamp_ns, action) of a command, as a board reads it; raises ValueError."""
    words = line.decode("ascii", errors="strict").split()
    if " ".join(words[:2]) != GREETING or len(words) < len(GREETING.split()) + 3:
        raise ValueError(f"not a command of this version: {line[:80]!r}")
    return int(words[2]), int(words[3]), tuple(float(word) for word in words[4:])


def path_of(address: str) -> str:
    """Return the path of a Unix address, for whoever binds it; raises ValueError on another kind."""
    kind, _, place = address.partition(":")
    if kind != "unix":
        raise ValueError(f"{address}: not a Unix socket")
    return place
