"""A TCP link that misbehaves on command: a proxy in user space, so that it works on every machine and needs no rights.

What TCP shows of a bad network is what a program sees of it: bytes come late, in bursts, not at all, or the connection
is reset. Loss and reordering of packets are TCP's own business; ``tests.faults.netem`` does those where it may.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

UP, DOWN = "up", "down"
"""From the rover to the trainer, and back."""
CHUNK_BYTES = 16 << 10
HELD_BYTES = 1 << 20
"""What a direction holds back at most; the sender then feels back-pressure, as with a full socket buffer."""
GATE_S = 0.004
HANDSHAKE_BYTES = 2048
"""Bytes of a connection that are never corrupted: a link that cannot even be made is another fault."""


@dataclass
class Way:
    """One direction of the link; plain values, which any thread may set at any time."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Added at random to the delay; the order of bytes stays."""
    rate_bytes_per_s: float = 0.0
    """0: unlimited."""
    is_cut: bool = False
    """Nothing passes; what comes meanwhile is held and passes later, as TCP sends again what was not confirmed."""
    flip_every_bytes: int = 0
    """Flip one bit in each so many bytes; 0: none."""
    bytes: int = 0
    """Passed so far."""
    flipped: int = 0


class Wire:
    """Listen on ``port`` and pass every connection to ``target``; a context manager that runs a thread.

    ``observe(connection, direction, bytes)`` sees the bytes as their sender sent them, before any fault; it is called
    on the wire's thread.
    """

    def __init__(
        self,
        target: int,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        observe: Callable[[int, str, bytes], object] | None = None,
        seed: int = 0,
    ) -> None:
        self.up, self.down = Way(), Way()
        self.port = port
        self.connections = 0
        """Connections that were ever made through it."""
        self._host, self._target = host, target
        self._observe = observe
        self._draw = random.Random(seed)
        self._open: dict[int, tuple[asyncio.StreamWriter, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="wire", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10.0), "the wire does not listen"
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def cut(self) -> None:
        """Let nothing pass either way; connections stay open, half-open at both ends."""
        self.up.is_cut = self.down.is_cut = True

    def heal(self) -> None:
        """Make it a good link again."""
        for way in (self.up, self.down):
            way.is_cut = False
            way.delay_s = way.jitter_s = way.rate_bytes_per_s = 0.0
            way.flip_every_bytes = 0
        self._call(self._listen())

    def slow(self, *, delay_s: float = 0.0, jitter_s: float = 0.0, rate_bytes_per_s: float = 0.0) -> None:
        """Set delay and rate of both directions."""
        for way in (self.up, self.down):
            way.delay_s, way.jitter_s, way.rate_bytes_per_s = delay_s, jitter_s, rate_bytes_per_s

    def reset(self) -> None:
        """Break every connection with an RST; new ones are taken."""
        self._loop.call_soon_threadsafe(self._reset)

    def refuse(self) -> None:
        """Break every connection and refuse new ones until ``heal``."""
        self._call(self._close_server())
        self.reset()

    def _call(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        except BaseException as error:  # noqa: BLE001 - raised where it is entered
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        await self._close_server()
        self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self._host, self.port, backlog=512)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _reset(self) -> None:
        for writers in self._open.values():
            for writer in writers:
                _abort(writer)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._open[number] = (writer,)
        try:
            while self.up.is_cut:
                await asyncio.sleep(GATE_S)
            far_reader, far_writer = await asyncio.open_connection(self._host, self._target)
            self._open[number] = (writer, far_writer)
            ends = [
                asyncio.create_task(self._pass(number, UP, self.up, reader, far_writer)),
                asyncio.create_task(self._pass(number, DOWN, self.down, far_reader, writer)),
            ]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        except OSError:
            pass  # nobody listens behind it: the near end is closed, as a refused connection is
        finally:
            for each in self._open.pop(number):
                _abort(each)

    async def _pass(
        self, number: int, name: str, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_BYTES // CHUNK_BYTES)
        sender = asyncio.create_task(self._send(way, line, writer))
        free_at = 0.0
        seen = 0
        try:
            with contextlib.suppress(OSError):
                while content := await reader.read(CHUNK_BYTES):
                    if self._observe is not None:
                        self._observe(number, name, content)
                    now = time.monotonic()
                    free_at = max(now, free_at)
                    if way.rate_bytes_per_s:
                        free_at += len(content) / way.rate_bytes_per_s
                    due = free_at + way.delay_s + self._draw.uniform(0, way.jitter_s)
                    passed = content if seen < HANDSHAKE_BYTES else self._flip(way, content)
                    seen += len(content)
                    await line.put((due, passed))
            await line.put((0.0, b""))
            await sender
        finally:
            sender.cancel()

    async def _send(self, way: Way, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, content = await line.get()
                if not content:
                    return
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                while way.is_cut:
                    await asyncio.sleep(GATE_S)
                writer.write(content)
                way.bytes += len(content)
                await writer.drain()

    def _flip(self, way: Way, content: bytes) -> bytes:
        if not way.flip_every_bytes or self._draw.random() > len(content) / way.flip_every_bytes:
            return content
        changed = bytearray(content)
        changed[self._draw.randrange(len(changed))] ^= 1 << self._draw.randrange(8)
        way.flipped += 1
        return bytes(changed)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with an RST, as a machine does that knows nothing of the connection."""
    near = writer.get_extra_info("socket")
    if near is not None:
        with contextlib.suppress(OSError):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
