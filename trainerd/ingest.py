"""The link thread: one ROUTER socket, from which records go to the consumer in order and everything else to the fleet.

The socket, the fleet and the consumer's assembler belong to this thread. Others hand it functions to run (``post``,
``call``); an eventfd wakes it for them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import zmq

from protocol import messages
from protocol.errors import RoverError
from protocol.framing import Fields, ProtocolError, decode_record, record_kind, unpack
from protocol.node.log import RepeatLimiter, get_logger
from protocol.step import EpisodeEnd
from trainerd.image_ring import ImageRing
from trainerd.release.registry import NoSuchPolicyError

if TYPE_CHECKING:
    from protocol.step import Record
    from trainerd.fleet import Fleet
    from trainerd.mailbox import Mailbox
    from trainerd.release.registry import Registry
    from trainerd.rover import Rover
    from trainerd.settings import Settings

log = get_logger()
T = TypeVar("T")

MAX_FRAME_BYTES = 8 << 20
MAX_FRAMES = 66
HIGH_WATER = 8192
BURST = 512
"""Messages read before the other duties get their turn."""
MAX_AHEAD = 1 << 16
"""A record further ahead of the next one is no record: a rover that skips so much says so in its next hello."""
TICK_S = 0.1
PRESSED_MS = 2
"""How soon a consumer that was busy is asked again."""
HELLO_FIRST_S = 0.2
"""A stranger is told to say hello at most this often."""


class LinkError(RoverError):
    """The link cannot listen: the port is in use, or the address is not this machine's."""


class Consumer(Protocol):
    """Who takes records, in order within each boot; called on the link thread."""

    def consume(self, record: Record) -> bool:
        """Take a record; False: busy, offer it again."""

    def pass_over(self, record: Record) -> bool:
        """Count a record that was not taken, so that what is behind it gets through; False: it must wait."""

    def close(self, rover_id: str, boot_id: str) -> None:
        """Hear that a boot sends nothing more."""


class Link:
    """Listen for rovers. ``start`` binds, ``run`` is the service."""

    name = "link"

    def __init__(
        self,
        settings: Settings,
        mailbox: Mailbox,
        fleet: Fleet,
        consumer: Consumer,
        registry: Registry,
    ) -> None:
        """Listen at the settings' host and port (0: any free one) once started."""
        self.malformed: Counter[str] = Counter()
        """Malformed input by what was wrong."""
        self.port = settings.port
        self._host = settings.host
        self._settings = settings.link
        self._fleet = fleet
        self._consumer = consumer
        self._registry = registry
        self._mailbox = mailbox
        self._thread = threading.Thread(target=self._main, name="link", daemon=True)
        self._bound: Future[int] = Future()
        self._ended: Future[None] = Future()
        self._stop = False
        self._repeats = RepeatLimiter()
        self._strangers: dict[bytes, float] = {}
        self._rings: dict[tuple[str, str], ImageRing] = {}
        self._is_pressed = False
        self._pinged_s = 0.0
        self._ticked_s = 0.0

    def start(self) -> None:
        """Bind and begin; raises LinkError."""
        self._thread.start()
        self.port = self._bound.result()

    async def run(self) -> None:
        """Go on until cancelled; raises what ended the thread."""
        try:
            await asyncio.shield(asyncio.wrap_future(self._ended))
        finally:
            self.stop()
            await asyncio.to_thread(self._thread.join, 4.0)

    def stop(self) -> None:
        """Let the thread say goodbye and end."""
        self._stop = True
        self._mailbox.notify()

    def _main(self) -> None:
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        try:
            self._bind(router)
            self._bound.set_result(_port_of(router))
            self._loop(router)
            self._ended.set_result(None)
        except LinkError as error:
            self._bound.set_exception(error)
        except Exception as error:  # noqa: BLE001 - the service, or start, raises it in the loop thread
            (self._ended if self._bound.done() else self._bound).set_exception(error)
        finally:
            router.close(linger=200)
            context.term()

    def _bind(self, router: zmq.Socket[bytes]) -> None:
        for name, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.ROUTER_HANDOVER, 1),
            (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.LINGER, 0),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, int(1000 * self._settings.dead_after_s)),
        ):
            router.setsockopt(name, value)
        try:
            router.bind(f"tcp://{self._host}:{self.port or '*'}")
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                text = f"port {self.port}: in use; stop the other trainerd or choose another --port"
                raise LinkError(text) from error
            raise LinkError(f"{self._host}:{self.port}: {error}; choose another --host") from error

    def _loop(self, router: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._mailbox.wake, zmq.POLLIN)
        while not self._stop:
            poller.poll(PRESSED_MS if self._is_pressed else 20)
            self._mailbox.run_all()
            for _ in range(BURST):
                try:
                    parts = router.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._receive(parts, time.monotonic())
            now_s = time.monotonic()
            self._pump(now_s)
            self._keep_time(now_s)
            self._send(router)
        for rover in self._fleet.rovers.values():
            self._tell(rover, messages.Goodbye("trainerd stops"))
        self._send(router)

    def _receive(self, parts: list[bytes], now_s: float) -> None:
        identity, frames = parts[0], parts[1:]
        rover = self._fleet.rover_of(identity)
        try:
            header = _header(frames)
            if rover is not None:
                rover.heard_s = now_s
            if not record_kind(header):
                self._handle(identity, rover, messages.decode(header, frames[1:]), now_s)
            elif rover is None:
                self._demand_hello(identity, now_s)
            else:
                self._keep(rover, header, frames[1:], now_s)
        except ProtocolError as error:
            self._count_malformed(rover, error)
            if rover is None:
                self._demand_hello(identity, now_s)

    def _keep(self, rover: Rover, header: dict[str, object], frames: list[bytes], now_s: float) -> None:
        fields = Fields(str(header["kind"]), header)
        rover_id, boot_id = fields.get("rover_id", str), fields.get("boot_id", str)
        if (rover_id, boot_id) != (rover.rover_id, rover.boot_id):
            text = f"record of {rover_id[:64]!r}, boot {boot_id[:64]!r} on the connection of {rover.rover_id}"
            raise ProtocolError(f"identity: {text}, boot {rover.boot_id}")
        seq = fields.count("seq")
        if seq > rover.lane.next_seq + MAX_AHEAD:
            raise ProtocolError(f"seq: {seq} of {rover.rover_id} is far ahead of {rover.lane.next_seq}")
        if rover.lane.offer(seq, (header, frames)):
            rover.stepped_s = now_s
            rover.steps += 1

    def _handle(self, identity: bytes, rover: Rover | None, message: messages.Message, now_s: float) -> None:
        if isinstance(message, messages.Hello):
            self._fleet.greet(identity, message, now_s)
        elif rover is None:
            self._demand_hello(identity, now_s)
        elif isinstance(message, messages.Ping):
            self._tell(rover, messages.Pong(message.sent_ns, {"wall_ns": time.time_ns()}))
            self._acknowledge(rover, now_s)
            self._fleet.ping(rover, message, now_s)
        elif isinstance(message, messages.ChunkRequest):
            self._serve(rover, message)
        elif isinstance(message, messages.Verdict):
            self._fleet.verdict(rover, message, now_s)
        elif isinstance(message, messages.OrderUpdate):
            self._fleet.order_update(rover, message, now_s)
        elif isinstance(message, messages.Pong):
            rover.round_trip_ms = max(0.0, 1e-6 * (time.monotonic_ns() - message.sent_ns))
        elif isinstance(message, messages.Goodbye):
            self._fleet.part(rover, message.reason or "goodbye")
        else:
            raise ProtocolError(f"{message.kind}: a rover does not send this")

    def _demand_hello(self, identity: bytes, now_s: float) -> None:
        if now_s - self._strangers.get(identity, -1.0) >= HELLO_FIRST_S:
            if len(self._strangers) > HIGH_WATER:
                self._strangers.clear()
            self._strangers[identity] = now_s
            reason = "say hello first: this trainerd does not know the connection"
            self._fleet.outbox.append((identity, messages.Refuse("hello_first", reason, retry=True)))

    def _serve(self, rover: Rover, request: messages.ChunkRequest) -> None:
        if request.offset < 0 or not 0 < request.length <= messages.MAX_CHUNK_BYTES:
            raise ProtocolError(f"chunk_request: {request.length} bytes at {request.offset}")
        try:
            content = self._registry.read(request.policy_id, request.offset, request.length)
        except (NoSuchPolicyError, OSError) as error:
            if count := self._repeats.count(f"chunk {request.policy_id}"):
                hint = "the policy was removed from disk; the wanted one is offered again"
                log.warning("chunk.missing", rover_id=rover.rover_id, reason=str(error), count=count, hint=hint)
            return
        self._tell(rover, messages.Chunk(request.policy_id, request.offset, content))

    def _pump(self, now_s: float) -> None:
        """Hand what waits to the consumer, until it is busy."""
        self._is_pressed = False
        for rover in list(self._fleet.leftover):
            self._pump_lane(rover, now_s)
            rover.lane.give_up_gap()
            if not rover.lane.waiting:
                self._fleet.leftover.remove(rover)
                self._rings.pop((rover.rover_id, rover.boot_id), None)
                self._consumer.close(rover.rover_id, rover.boot_id)
        for rover in self._fleet.rovers.values():
            self._pump_lane(rover, now_s)
            if rover.connected:
                self._mend_gap(rover, now_s)
            is_due = now_s - rover.acked_s >= 1e-3 * self._settings.ack_interval_ms
            if rover.lane.unacked >= self._settings.ack_every or (rover.lane.unacked and is_due):
                self._acknowledge(rover, now_s)

    def _mend_gap(self, rover: Rover, now_s: float) -> None:
        """Ask again for records that are missing before later ones; give up only what the rover no longer has."""
        lane = rover.lane
        if lost := lane.give_up(rover.oldest_unacked):
            hint = "the rover no longer had them: its outbox was full while the link was down"
            log.warning("steps.lost", rover_id=rover.rover_id, boot_id=rover.boot_id, count=lost, hint=hint)
        missing = lane.overdue(now_s, self._settings.gap_wait_s)
        if missing is not None:
            self._tell(rover, messages.Resend(rover.boot_id, [list(missing)]))

    def _pump_lane(self, rover: Rover, now_s: float) -> None:
        lane = rover.lane
        while (raw := lane.head()) is not None:
            record = raw if not isinstance(raw, tuple) else self._decode(rover, *raw)
            if record is not None:
                if not self._hand_over(rover, record):
                    lane.waiting[lane.next_seq] = record  # decoded once, offered again
                    self._is_pressed = True
                    return
                if isinstance(record, EpisodeEnd):
                    self._fleet.evaluations.collect(record, now_s)
                    self._fleet.converge(rover, now_s)
            lane.take()

    def _hand_over(self, rover: Rover, record: Record) -> bool:
        """Let the consumer take a record, or pass over it where an evaluation's records come behind it."""
        if self._consumer.consume(record):
            return True
        return self._fleet.evaluations.current(rover.rover_id) is not None and self._consumer.pass_over(record)

    def _decode(self, rover: Rover, header: dict[str, object], frames: list[bytes]) -> Record | None:
        """Return the record, or None, counted, where it is malformed; it is then acknowledged and dropped."""
        specs = self._fleet.specs
        if specs is None:  # nobody is admitted before there are specs
            return None
        key = (rover.rover_id, rover.boot_id)
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = ImageRing(specs[0])
        try:
            return decode_record(header, frames, *specs, ring.take)
        except ProtocolError as error:
            self._count_malformed(rover, error)
            return None

    def _acknowledge(self, rover: Rover, now_s: float) -> None:
        rover.lane.unacked, rover.acked_s = 0, now_s
        ranges = rover.lane.received.to_list(64)
        self._tell(rover, messages.Ack(rover.boot_id, ranges, self._settings.credit))

    def _keep_time(self, now_s: float) -> None:
        if now_s - self._ticked_s < TICK_S:
            return
        self._ticked_s = now_s
        self._fleet.tick(now_s)
        if now_s - self._pinged_s >= self._settings.ping_interval_s:
            self._pinged_s = now_s
            status = {"mode": self._fleet.mode}
            for rover in self._fleet.rovers.values():
                self._tell(rover, messages.Ping(time.monotonic_ns(), status=status))

    def _tell(self, rover: Rover, message: messages.Message) -> None:
        if rover.connected:
            self._fleet.outbox.append((rover.identity, message))

    def _send(self, router: zmq.Socket[bytes]) -> None:
        while self._fleet.outbox:
            identity, message = self._fleet.outbox.popleft()
            try:
                router.send_multipart([identity, *messages.encode(message)], zmq.NOBLOCK)
            except zmq.Again:
                continue  # its queue is full: whatever matters is said again
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                rover = self._fleet.rover_of(identity)
                if rover is not None:
                    self._fleet.part(rover, "the connection is gone")

    def _count_malformed(self, rover: Rover | None, error: ProtocolError) -> None:
        reason = str(error).partition(":")[0][:40]
        if reason not in self.malformed and len(self.malformed) >= 100:
            reason = "other"
        self.malformed[reason] += 1
        if rover is not None:
            rover.malformed += 1
        if count := self._repeats.count(reason):
            rover_id = rover.rover_id if rover else ""
            hint = "the message was dropped, the connection goes on"
            log.warning("message.malformed", rover_id=rover_id, reason=str(error)[:400], count=count, hint=hint)


def _header(frames: list[bytes]) -> dict[str, Any]:
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise ProtocolError(f"message: {len(frames)} frames, expected 1 to {MAX_FRAMES}")
    return unpack(frames[0])


def _port_of(router: zmq.Socket[bytes]) -> int:
    endpoint = cast("bytes", router.getsockopt(zmq.LAST_ENDPOINT))
    return int(endpoint.decode().rstrip("\0").rpartition(":")[2])
