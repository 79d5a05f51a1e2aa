"""The robot's end of the link: a ZeroMQ DEALER in the event loop.

It greets, sends records within the credit, frees them on acknowledgement, pings, and makes the connection anew with
full jitter after silence. After each welcome it sends again whatever the trainer has not received.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import zmq

from protocol.framing import ProtocolError, unpack
from protocol.messages import (
    Ack,
    Goodbye,
    Hello,
    Message,
    Ping,
    Pong,
    Refuse,
    Resend,
    Welcome,
    decode,
    encode,
    ranges_of,
)
from protocol.node.log import RepeatLimiter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from roverd.outbox import Outbox
    from roverd.settings import LinkSettings

log = get_logger()
SEND_HIGH_WATER = 4096
MAX_MESSAGE_BYTES = 16 << 20
REFUSED_RETRY_S = 2.0


class Uplink:
    """Service: keep the link and move records; other messages go to ``on_message``.

    ``hello`` and ``ping`` build those messages when they are due, so that they state the present.
    """

    name = "uplink"

    def __init__(
        self,
        settings: LinkSettings,
        outbox: Outbox,
        hello: Callable[[], Hello],
        ping: Callable[[], Ping],
    ) -> None:
        """Prepare; ``run`` connects."""
        self._settings = settings
        self._outbox = outbox
        self._hello, self._ping = hello, ping
        self.on_message: Callable[[Message], None] = lambda _: None
        self.on_room: Callable[[], None] = lambda: None
        """Called when acknowledgements freed records."""
        self.state = "connecting"
        self.refusal = ""
        self.trainer_id = ""
        self.credit = 0
        self.counts = {"sent": 0, "acknowledged": 0, "reconnects": 0, "malformed": 0}
        self.round_trip_ms = float("nan")
        self.clock_skew_s = float("nan")
        """The trainer's wall clock minus this one, as good as half a round trip."""
        self._repeats = RepeatLimiter()
        self._socket: zmq.Socket[bytes] | None = None
        self._heard = 0.0
        self._retry_at = 0.0
        self._drain_scheduled = False

    @property
    def is_linked(self) -> bool:
        """True between a welcome and the next loss."""
        return self.state == "linked"

    async def run(self) -> None:
        """Connect, watch and reconnect until cancelled; says goodbye at the end."""
        loop = asyncio.get_running_loop()
        context = zmq.Context()
        attempt = 0
        try:
            while True:
                self._open(loop, context)
                if await self._watch():
                    attempt = 0
                self._close(loop)
                attempt += 1
                self.counts["reconnects"] += 1
                bound = min(self._settings.reconnect_max_s, self._settings.reconnect_min_s * 2 ** min(attempt, 16))
                await asyncio.sleep(random.uniform(0, bound))
        finally:
            if self._socket is not None:
                self.send(Goodbye("stopped"))
            self._close(loop, linger_ms=200)
            context.term()

    def send_record(self, seq: int, frames: list[bytes]) -> None:
        """Keep a record until it is acknowledged, and send it when there is credit."""
        self._outbox.append(seq, frames)
        if self.is_linked:
            self._push()

    def send(self, message: Message) -> None:
        """Send a message now, or drop it when there is no connection: all of them are stated again."""
        if self._socket is None:
            return
        try:
            self._socket.send_multipart(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return
        self._schedule_drain()

    def _open(self, loop: asyncio.AbstractEventLoop, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a trainer that is not there
        sock.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        sock.setsockopt(zmq.RCVHWM, SEND_HIGH_WATER)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        sock.setsockopt(zmq.RECONNECT_IVL, max(1, int(self._settings.reconnect_min_s * 1e3)))
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, int(self._settings.reconnect_max_s * 1e3))
        sock.connect(self._settings.trainer)
        self._socket = sock
        self._heard = time.monotonic()
        loop.add_reader(sock.fileno(), self._drain)

    def _close(self, loop: asyncio.AbstractEventLoop, linger_ms: int = 0) -> None:
        if self._socket is None:
            return
        if self.state == "linked":
            log.warning("link.lost", trainer=self._settings.trainer, hint="records are kept and sent again")
        self.state = "connecting" if self.state != "refused" else "refused"
        self.credit = 0
        loop.remove_reader(self._socket.fileno())
        self._socket.close(linger=linger_ms)
        self._socket = None

    async def _watch(self) -> bool:
        """Greet and ping until the other side has been silent too long; return True if it was ever linked."""
        was_linked = False
        next_ping = 0.0
        while time.monotonic() - self._heard < self._settings.dead_after_s:
            now = time.monotonic()
            was_linked = was_linked or self.is_linked
            if now >= next_ping and now >= self._retry_at:
                self.send(self._ping() if self.is_linked else self._hello())
                next_ping = now + (self._settings.ping_s if self.is_linked else min(0.25, self._settings.ping_s))
            self._drain()  # the descriptor is edge-triggered: an edge that was missed must not stall the link
            await asyncio.sleep(0.05)
        return was_linked

    def _push(self) -> None:
        sock = self._socket
        if sock is None:
            return
        while (frames := self._outbox.peek(self.credit)) is not None:
            try:
                sock.send_multipart(frames, zmq.NOBLOCK, copy=True)
            except zmq.Again:
                return
            self._outbox.mark_sent()
            self.counts["sent"] += 1
        self._schedule_drain()

    def _schedule_drain(self) -> None:
        if not self._drain_scheduled:
            self._drain_scheduled = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        self._drain_scheduled = False
        while self._socket is not None:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            try:
                self._receive(decode(unpack(frames[0]), frames[1:]))
            except ProtocolError as error:
                self.counts["malformed"] += 1
                if count := self._repeats.count("malformed"):
                    log.warning("link.malformed", error=str(error), count=count, hint="the trainer sent nonsense")

    def _receive(self, message: Message) -> None:
        if isinstance(message, Ack):
            self._acknowledged(message.boot_id, message.ranges, message.credit)
        elif isinstance(message, Pong):
            self._ponged(message)
        elif isinstance(message, Ping):
            self.send(Pong(message.sent_ns))
        elif isinstance(message, Welcome):
            self._welcomed(message)
        elif isinstance(message, Resend):
            if message.boot_id == self._hello().boot_id:
                self._outbox.resend(ranges_of(message.ranges, "resend"))
                self._push()
        elif isinstance(message, Refuse):
            self._refused(message)
        elif isinstance(message, Goodbye):
            self.state = "connecting"
            self._heard = 0.0
        else:
            self.on_message(message)

    def _ponged(self, message: Pong) -> None:
        self.round_trip_ms = (time.monotonic_ns() - message.sent_ns) * 1e-6
        wall_ns = message.status.get("wall_ns")
        if isinstance(wall_ns, int):
            self.clock_skew_s = (wall_ns - time.time_ns()) * 1e-9 + self.round_trip_ms * 0.5e-3

    def _welcomed(self, message: Welcome) -> None:
        if self.state != "linked":  # else the answer to a hello that was said twice: nothing is sent again for it
            log.info("link.welcomed", trainer_id=message.trainer_id, run_id=message.run_id, credit=message.credit)
            self._outbox.rewind()
        self.state, self.refusal, self.trainer_id = "linked", "", message.trainer_id
        self._acknowledged(message.boot_id, message.received, message.credit)
        self.send(self._ping())

    def _acknowledged(self, boot_id: str, ranges: list[Any], credit: int) -> None:
        if boot_id != self._hello().boot_id:
            return
        self.credit = credit
        freed = self._outbox.acknowledge(ranges_of(ranges, "ack"))
        self.counts["acknowledged"] += freed
        if self.is_linked:
            self._push()
        if freed:
            self.on_room()

    def _refused(self, message: Refuse) -> None:
        if message.code == "hello_first":
            self.state = "connecting"
            return
        if message.reason != self.refusal:
            log.error("link.refused", code=message.code, reason=message.reason, hint="this rover's steps stay here")
        self.state, self.refusal = "refused", message.reason
        self._retry_at = time.monotonic() + REFUSED_RETRY_S
