"""The robot's end of the link: a ZeroMQ DEALER in the event loop, with CURVE.

It greets, sends records within the credit, frees them on acknowledgement, pings, and makes the connection anew with
full jitter after silence. After each welcome it sends again whatever the trainer has not received. Whatever is wrong
with the link, the robot drives on: its records stay in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

import zmq

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import ProtocolError, unpack
from protocol.messages import (
    Ack,
    Gone,
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
from protocol.node.liveness import Pulse
from protocol.node.log import RepeatLimiter, get_logger
from roverd import handshake
from roverd.handshake import HandshakeMonitor
from roverd.settings import DEFAULT_TRAINER

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.keys import KeyPair
    from roverd.settings import LinkSettings
    from roverd.spool import Spool

log = get_logger()
SEND_HIGH_WATER = 4096
MAX_MESSAGE_BYTES = 16 << 20
REFUSED_RETRY_S = 2.0
TICK_S = 0.05
DEGRADED_S = 10.0
"""So long a driving robot may go without an acknowledgement before somebody is told."""
REOFFER_S = 30.0
HANG_S = 30.0
"""It looks after the link twenty times a second, and waits a few seconds at most between two connections."""
LAST_ACKS_S = 1.5
"""At a stop the trainer has so long to acknowledge the last records: it syncs once a second."""
BROKEN_OFF_TRIES = 4
"""A trainer that stops or just starts ends a handshake or two; one that has another key ends all."""
UNREACHABLE_S = 8.0
"""So long without a trainer, and the log says where it was looked for."""
GONE_RANGES = 256
UNPAIRED = "not paired: run `roverctl pair HOST` with the trainer's host"
UNKNOWN_HERE = "the trainer does not know this rover's key: roverctl pair HOST (or trainerctl rover add NAME KEY)"


class Uplink:
    """Service: keep the link and move records; other messages go to ``on_message``.

    ``hello`` and ``ping`` build those messages when they are due, so that they state the present.
    """

    name = "uplink"

    def __init__(
        self,
        settings: LinkSettings,
        spool: Spool,
        hello: Callable[[], Hello],
        ping: Callable[[], Ping],
        *,
        keys: KeyPair | None = None,
        trainer_public: str = "",
        address: Callable[[], str] | None = None,
    ) -> None:
        """Prepare; ``run`` connects.

        Args:
            settings: of the link.
            spool: the records.
            hello: makes a greeting.
            ping: makes a ping.
            keys: this rover's; None without CURVE.
            trainer_public: the key that the trainer must have; empty: not paired.
            address: says where the trainer is, each time that the link is made; None: as in the settings.

        """
        self.pulse = Pulse(self.name, HANG_S)
        self._settings = settings
        self._spool = spool
        self._hello, self._ping = hello, ping
        self._keys, self._trainer_public = keys, trainer_public
        self._address = address or (lambda: settings.trainer or DEFAULT_TRAINER)
        self.address = self._address()
        self.on_message: Callable[[Message], None] = lambda _: None
        self.on_room: Callable[[], None] = lambda: None
        """Called when there may be room for records again."""
        self.state = "connecting"
        """connecting, linked, refused or unpaired."""
        self.refusal = ""
        self.degraded = ""
        """Why a driving robot gets no acknowledgements; empty while it does."""
        self.trainer_id = ""
        self.credit = 0
        self.counts = {"sent": 0, "acknowledged": 0, "reconnects": 0, "malformed": 0}
        self.round_trip_ms = float("nan")
        self.clock_skew_s = float("nan")
        """The trainer's wall clock minus this one, as good as half a round trip."""
        self._repeats = RepeatLimiter()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: HandshakeMonitor | None = None
        self._heard = 0.0
        self._retry_at = 0.0
        self._drain_scheduled = False
        self._is_to_remake = False
        self._was_answered = False
        """The present connection got as far as TCP."""
        self._broken_off = 0
        self._rekeyed = asyncio.Event()
        self._appended_at = self._progress_at = time.monotonic()
        self._apart_since, self._is_apart_told = time.monotonic(), False
        self._offered: set[str] = set()
        self._offered_at = 0.0
        spool.on_change = self._spool_changed

    @property
    def is_linked(self) -> bool:
        """True between a welcome and the next loss."""
        return self.state == "linked"

    @property
    def trainer_public(self) -> str:
        """The key that the trainer must have."""
        return self._trainer_public

    def rekey(self, keys: KeyPair, trainer_public: str) -> None:
        """Make the link anew with other keys."""
        self._keys, self._trainer_public = keys, trainer_public
        self.state, self.refusal = "connecting", ""
        self._broken_off = 0
        self._rekeyed.set()

    async def run(self) -> None:
        """Connect, watch and reconnect until cancelled; says goodbye at the end."""
        loop = asyncio.get_running_loop()
        context = zmq.Context()
        attempt = 0
        try:
            while True:
                self._rekeyed.clear()
                if self._settings.curve and (self._keys is None or not self._trainer_public):
                    await self._wait_for_keys()
                    continue
                if self._open(loop, context):
                    attempt = 0 if await self._watch() else attempt
                    self._close(loop)
                attempt += 1
                self.counts["reconnects"] += 1
                bound = min(self._settings.reconnect_max_s, self._settings.reconnect_min_s * 2 ** min(attempt, 16))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._rekeyed.wait(), random.uniform(0, bound))
                self._watch_progress()
        finally:
            self.on_room, self.on_message = lambda: None, lambda _: None  # nobody is there any more
            if self._socket is not None:
                await self._wait_for_last_acks()
                self.send(Goodbye("stopped"))
            self._close(loop, linger_ms=200)
            context.term()

    def send_record(self, seq: int, frames: list[bytes]) -> None:
        """Keep a record until it is acknowledged, and send it when there is credit."""
        self._appended_at = time.monotonic()
        self._spool.append(seq, frames)
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

    # -- the connection ---------------------------------------------------------------------------------------------

    def _open(self, loop: asyncio.AbstractEventLoop, context: zmq.Context[zmq.Socket[bytes]]) -> bool:
        """Begin to connect; False where that cannot be."""
        self.address = self._address()
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a trainer that is not there
        sock.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        sock.setsockopt(zmq.RCVHWM, SEND_HIGH_WATER)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        sock.setsockopt(zmq.RECONNECT_IVL, max(1, int(self._settings.reconnect_min_s * 1e3)))
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, int(self._settings.reconnect_max_s * 1e3))
        monitor: HandshakeMonitor | None = None
        try:
            if self._settings.curve and self._keys is not None:
                sock.curve_publickey = self._keys.public.encode()
                sock.curve_secretkey = self._keys.secret.encode()
                sock.curve_serverkey = self._trainer_public.encode()
            monitor = HandshakeMonitor(sock)
            sock.connect(self.address)
        except zmq.ZMQError as error:
            if monitor is not None:
                monitor.close()
            sock.close(linger=0)
            self._be_refused("address", f"link.trainer {self.address}: {error}; write tcp://HOST:PORT")
            return False
        self._socket, self._monitor = sock, monitor
        self._heard = time.monotonic()
        self._is_to_remake = self._was_answered = False
        if self.state == "unpaired":
            self.state, self.refusal = "connecting", ""
        loop.add_reader(sock.fileno(), self._drain)
        loop.add_reader(monitor.fileno(), self._watch_handshake)
        return True

    def _close(self, loop: asyncio.AbstractEventLoop, linger_ms: int = 0) -> None:
        if self._socket is None or self._monitor is None:
            return
        if self.state == "linked":
            log.warning("link.lost", trainer=self.address, hint="records are kept and sent again")
        self.state = "connecting" if self.state != "refused" else "refused"
        self.credit = 0
        loop.remove_reader(self._monitor.fileno())
        self._monitor.close()
        loop.remove_reader(self._socket.fileno())
        self._socket.close(linger=linger_ms)
        self._socket = self._monitor = None

    async def _watch(self) -> bool:
        """Greet and ping until the other side has been silent too long; return True if it was ever linked."""
        was_linked = False
        next_ping = 0.0
        while time.monotonic() - self._heard < self._settings.dead_after_s and not self._rekeyed.is_set():
            now = time.monotonic()
            was_linked = was_linked or self.is_linked
            if now >= next_ping and now >= self._retry_at:
                self._greet(now)
                next_ping = now + (self._settings.ping_s if self.is_linked else min(0.25, self._settings.ping_s))
            self._watch_handshake()
            self._drain()  # the descriptors are edge-triggered: an edge that was missed must not stall the link
            if self._is_to_remake:
                break
            if self.is_linked:
                self._offer_again(now)
                self._push()  # an idle robot's share of the bandwidth grows by time alone
            self._watch_progress()
            await asyncio.sleep(TICK_S)
        return was_linked

    def _greet(self, now: float) -> None:
        if self.is_linked:
            self.send(self._ping())
        else:
            self._say_hello(now)

    def _say_hello(self, now: float) -> None:
        self._offered, self._offered_at = set(self._spool.offered_ids()), now
        self.send(self._hello())

    def _offer_again(self, now: float) -> None:
        """Say hello again when there are other earlier boots to offer: it changes nothing else."""
        is_news = not self._offered.issuperset(self._spool.offered_ids())
        if is_news or (self._spool.has_unwanted and now - self._offered_at > REOFFER_S):
            self._say_hello(now)

    async def _wait_for_keys(self) -> None:
        if self.state != "unpaired":
            self.state, self.refusal = "unpaired", UNPAIRED
            log.error("link.unpaired", hint=f"{UNPAIRED}; until then this rover's steps stay here")
        while not self._rekeyed.is_set():
            self._watch_progress()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._rekeyed.wait(), 1.0)

    async def _wait_for_last_acks(self) -> None:
        until = time.monotonic() + LAST_ACKS_S
        while self.is_linked and 0 < len(self._spool) <= self.credit and time.monotonic() < until:
            self._push()
            self._drain()
            await asyncio.sleep(0.01)

    def _watch_handshake(self) -> None:
        for event in self._monitor.events() if self._monitor is not None else ():
            if event == handshake.CONNECTED:
                self._was_answered = True
            elif event == handshake.SUCCEEDED:
                self._broken_off = 0
                if self.state == "refused":
                    self.state, self.refusal = "connecting", ""
            elif event == handshake.REFUSED_KEY:
                self._be_refused("key", UNKNOWN_HERE)
                self._is_to_remake = True  # ZeroMQ does not try again by itself
            elif event == handshake.OTHER_PROTOCOL:
                self._be_refused("protocol", self._no_trainer())
            elif event == handshake.BROKEN_OFF:
                self._broken_off += 1
                if self._broken_off >= BROKEN_OFF_TRIES:
                    self._be_refused("trainer_key", self._no_trainer())

    def _no_trainer(self) -> str:
        if not self._settings.curve:
            return f"{self.address} is no trainerd without CURVE: leave link.curve on and run roverctl pair HOST"
        text = f"the trainer at {self.address} has another key than the one that is trusted here, or is no trainerd"
        return f"{text}: if its key was changed, roverctl pair HOST"

    def _be_refused(self, code: str, reason: str) -> None:
        """Note why there is no link, and log it once."""
        if reason != self.refusal:
            log.error("link.refused", code=code, reason=reason, hint="this rover's steps stay here")
        self.state, self.refusal = "refused", reason

    def _watch_progress(self) -> None:
        """Tell when a driving robot's records are not acknowledged, and why, as far as this side can know."""
        now = time.monotonic()
        self.pulse.beat()
        self._watch_reach(now)
        if not self._spool.waiting:
            self._progress_at = now
        if now - self._progress_at < DEGRADED_S:
            if self.degraded:
                self.degraded = ""
                log.info("link.restored", trainer=self.address)
            return
        if not self.degraded and now - self._appended_at > DEGRADED_S:
            return  # the robot rests
        cause = self._cause()
        if cause != self.degraded:
            self.degraded = cause
            hint = "the robot drives on and its steps are kept; roverctl doctor"
            log.warning("link.degraded", cause=cause, records=self._spool.waiting, hint=hint)

    def _watch_reach(self, now: float) -> None:
        """Say once that nobody answers, whether or not there is anything to send."""
        if self.state in {"linked", "refused", "unpaired"}:
            self._apart_since, self._is_apart_told = now, False
        elif now - self._apart_since > UNREACHABLE_S and not self._is_apart_told:
            self._is_apart_told = True
            log.warning("link.unreachable", cause=self._cause(), hint="it is tried again all the time; roverctl doctor")

    def _cause(self) -> str:
        if self.refusal:
            return self.refusal
        if self.is_linked:
            return f"{self.address} acknowledges nothing: its disk may be full, or it is overloaded; trainerctl status"
        if self._was_answered:
            return f"no answer from {self.address}: something listens there, but does not answer as a trainer"
        return f"no answer from {self.address}: wrong address, no trainerd, or a firewall"

    # -- records ----------------------------------------------------------------------------------------------------

    def _spool_changed(self) -> None:
        if self.is_linked:
            self._push()
        self.on_room()

    def _push(self) -> None:
        sock = self._socket
        if sock is None:
            return
        while (frames := self._spool.peek(self.credit)) is not None:
            try:
                sock.send_multipart(frames, zmq.NOBLOCK, copy=True)
            except zmq.Again:
                return
            self._spool.mark_sent()
            self.counts["sent"] += 1
        for boot_id, ranges, reason in self._spool.take_gone():
            self._tell_gone(boot_id, ranges, reason)
        self._schedule_drain()

    def _tell_gone(self, boot_id: str, ranges: list[list[int]], reason: str) -> None:
        for start in range(0, len(ranges), GONE_RANGES):
            self.send(Gone(boot_id, ranges[start : start + GONE_RANGES], reason))

    def _schedule_drain(self) -> None:
        if not self._drain_scheduled:
            self._drain_scheduled = True
            asyncio.get_running_loop().call_soon(self._drain)

    # -- what comes in ----------------------------------------------------------------------------------------------

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
            self.credit = message.credit
            self._acknowledged(self._spool.acknowledge(message.boot_id, ranges_of(message.ranges, "ack")))
        elif isinstance(message, Pong):
            self._ponged(message)
        elif isinstance(message, Ping):
            self.send(Pong(message.sent_ns))
        elif isinstance(message, Welcome):
            self._welcomed(message)
        elif isinstance(message, Resend):
            self._asked_again(message)
        elif isinstance(message, Refuse):
            self._refused(message)
        elif isinstance(message, Goodbye):
            if self.is_linked:
                log.info("link.lost", trainer=self.address, reason=f"goodbye: {message.reason}")
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
        if not OLDEST_PROTOCOL_VERSION <= message.version <= PROTOCOL_VERSION:
            ours = f"this rover {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}"
            older = "the rover" if message.version > PROTOCOL_VERSION else "trainerd"
            text = f"the trainer at {self.address} speaks protocol {message.version}, {ours}: update {older}"
            self._be_refused("version", text)
            self._retry_at = time.monotonic() + REFUSED_RETRY_S
            return
        received = {message.boot_id: ranges_of(message.received, "welcome")}
        backlog = {boot_id: _ranges(values) for boot_id, values in message.backlog.items()}
        if self.state != "linked":  # else the answer to a hello that was said twice: nothing is sent again for it
            log.info("link.welcomed", trainer_id=message.trainer_id, run_id=message.run_id, credit=message.credit)
            self._spool.rewind()
        self.state, self.refusal, self.trainer_id = "linked", "", message.trainer_id
        self.credit = message.credit
        freed = self._spool.acknowledge(message.boot_id, received[message.boot_id]) + self._spool.welcome(backlog)
        self._acknowledged(freed)
        self.send(self._ping())

    def _acknowledged(self, freed: int) -> None:
        self.counts["acknowledged"] += freed
        if freed:
            self._progress_at = time.monotonic()
        if self.is_linked:
            self._push()
        if freed:
            self.on_room()

    def _asked_again(self, message: Resend) -> None:
        gone = self._spool.resend(message.boot_id, ranges_of(message.ranges, "resend"))
        self._push()
        self._tell_gone(message.boot_id, [list(each) for each in gone], "the rover does not have them any more")

    def _refused(self, message: Refuse) -> None:
        if message.code == "hello_first":
            self.state = "connecting"
            return
        self._be_refused(message.code, message.reason)
        self._retry_at = time.monotonic() + REFUSED_RETRY_S


def _ranges(values: Any) -> list[tuple[int, int]]:
    if not isinstance(values, list):
        raise ProtocolError(f"welcome: backlog {str(values)[:60]} is no list of ranges")
    return ranges_of(values, "welcome backlog")
