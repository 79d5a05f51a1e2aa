"""Read ZeroMQ messages out of the bytes of a connection, without being part of it (ZMTP 3, mechanism NULL)."""

from __future__ import annotations

GREETING_BYTES = 64
MECHANISM = slice(12, 32)
MORE, LONG, COMMAND = 1, 2, 4


class ZmtpReader:
    """The messages of one direction of one connection; what is encrypted stays so and gives none."""

    def __init__(self) -> None:
        self.mechanism = ""
        self._left = bytearray()
        self._parts: list[bytes] = []

    def feed(self, content: bytes) -> list[list[bytes]]:
        """Take the next bytes; return the messages that they complete."""
        self._left += content
        if not self.mechanism:
            if len(self._left) < GREETING_BYTES:
                return []
            self.mechanism = bytes(self._left[MECHANISM]).rstrip(b"\0").decode("ascii", "replace") or "?"
            del self._left[:GREETING_BYTES]
        if self.mechanism != "NULL":
            self._left.clear()
            return []
        messages = []
        while (frame := self._frame()) is not None:
            flags, body = frame
            if flags & COMMAND:
                continue
            self._parts.append(body)
            if not flags & MORE:
                messages.append(self._parts)
                self._parts = []
        return messages

    def _frame(self) -> tuple[int, bytes] | None:
        if len(self._left) < 2:
            return None
        flags = self._left[0]
        start = 9 if flags & LONG else 2
        if len(self._left) < start:
            return None
        size = int.from_bytes(self._left[1:start], "big")
        if len(self._left) < start + size:
            return None
        body = bytes(self._left[start : start + size])
        del self._left[: start + size]
        return flags, body
