"""Send log lines to journald in its own protocol, so that ``journalctl ROVERLOOP_EVENT=policy.swapped`` finds them.

Every key becomes a field: ``event`` is ``ROVERLOOP_EVENT``, ``rover_id`` is ``ROVERLOOP_ROVER_ID``, and so on;
``MESSAGE`` is the line for people. Source: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
PREFIX = "ROVERLOOP_"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}
MAX_NAME = 64
"""Characters that journald takes in a field's name; longer ones it drops without a word."""
_SEND_BUFFER_BYTES = 1 << 20
_PATIENCE_US = 50_000
_TOO_LONG = {errno.EMSGSIZE, errno.ENOBUFS}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]")


def is_journal(stream: TextIO) -> bool:
    """Say whether a stream of this process leads to journald, as systemd tells in ``JOURNAL_STREAM``."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(facts.st_dev), str(facts.st_ino))


def render(_logger: Any, _method: str, line: Mapping[str, Any]) -> bytes:
    """Return the datagram of a log line; the last of structlog's processors."""
    return encode(fields_of(line))


def fields_of(line: Mapping[str, Any]) -> dict[str, str]:
    """Turn a log line's keys into journal fields; ``level``, ``daemon`` and ``exception`` have fields of their own."""
    facts = {key: value for key, value in line.items() if key not in {"level", "daemon", "event", "timestamp"}}
    event, trace = str(line.get("event", "")), str(facts.pop("exception", ""))
    words = [event, *(f"{key}={_text(value)}" for key, value in facts.items())]
    fields = {
        "MESSAGE": "\n".join(filter(None, (" ".join(words), trace))),
        "PRIORITY": str(PRIORITIES.get(str(line.get("level")), PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": str(line.get("daemon", "roverloop")),
        f"{PREFIX}EVENT": event,
    }
    if trace:
        fields[f"{PREFIX}EXCEPTION"] = trace
    return {**{_name(key): _text(value) for key, value in facts.items()}, **fields}


def encode(fields: Mapping[str, str]) -> bytes:
    """Return a datagram: ``NAME=value`` lines, or name, length and value where the value has lines of its own."""
    parts = []
    for name, text in fields.items():
        value = text.encode(errors="replace")
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


class JournalLogger:
    """What structlog hands the datagrams to. A journald that hangs costs lines, and 50 ms once; it stops nobody."""

    def __init__(self, address: str = SOCKET) -> None:
        """Send to journald's socket, from any thread."""
        self.dropped = 0
        """Lines that journald did not take since the last one that it took."""
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, _PATIENCE_US))

    def msg(self, content: bytes) -> None:
        """Send one line."""
        if self.dropped:
            content += f"{PREFIX}DROPPED={self.dropped}\n".encode()
        try:
            self._send(content, socket.MSG_DONTWAIT if self.dropped else 0)
        except OSError:  # no journald, or one that does not read: nobody is left to be told
            self.dropped += 1
        else:
            self.dropped = 0

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    debug = info = warning = error = critical = msg

    def _send(self, content: bytes, flags: int) -> None:
        try:
            self._socket.sendto(content, flags, self._address)
        except OSError as error:
            if error.errno not in _TOO_LONG:
                raise
            self._send_long(content, flags)

    def _send_long(self, content: bytes, flags: int) -> None:
        """Send what no datagram holds as a sealed file in memory."""
        file = os.memfd_create("roverloop-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(file, "wb", buffering=0) as writer:
            writer.write(content)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
            self._socket.sendmsg([], rights, flags, self._address)


def _name(key: str) -> str:
    return (PREFIX + _NOT_IN_NAMES.sub("_", key.upper()))[:MAX_NAME]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)
