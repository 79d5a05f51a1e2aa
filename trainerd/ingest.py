"""The link thread: one ROUTER socket, from which records go to the store and, in order, to the consumer.

A record is acknowledged once the store says that it is safe; when it is learned from is another matter. Everything
else that comes goes to the fleet. The socket, the fleet and the consumer's assembler belong to this thread. Others hand
it functions to run (``post``, ``call``); an eventfd wakes it for them.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import zmq

from protocol import messages
from protocol.errors import RoverError
from protocol.framing import Fields, ProtocolError, decode_record, record_kind, unpack
from protocol.node.liveness import Pulse
from protocol.node.log import RepeatLimiter, get_logger
from protocol.step import EpisodeEnd
from trainerd.access import ZAP_DOMAIN, ZapHandler
from trainerd.episodes.records import RecordError, StoredRecord
from trainerd.image_ring import ImageRing
from trainerd.lane import Verdict
from trainerd.release.registry import NoSuchPolicyError
from trainerd.sockets import SocketThread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocol.keys import KeyPair
    from protocol.step import Record
    from trainerd.access import Access
    from trainerd.fleet import Fleet
    from trainerd.lane import Boot, Lane
    from trainerd.mailbox import Mailbox
    from trainerd.release.registry import Registry
    from trainerd.replay import Replay
    from trainerd.rover import Rover, Waiting
    from trainerd.settings import Settings

log = get_logger()
T = TypeVar("T")

MAX_FRAME_BYTES = 8 << 20
MAX_FRAMES = 66
HIGH_WATER = 1024
BURST = 512
"""Messages read before the other duties get their turn."""
MAX_AHEAD = 1 << 16
"""A record further ahead of the newest one is no record: a rover that skips so much says so in its next hello."""
HANDSHAKE_MS = 5000
ACK_RANGES = 64
REPLAY_S = 0.02
"""Time for stored records in each round, so that rovers are answered meanwhile."""
TICK_S = 0.1
PRESSED_MS = 2
"""How soon a consumer that was busy is asked again."""
HANG_S = 30.0
"""A round takes milliseconds; one that opens a large stored episode on a slow disk takes seconds."""
HELLO_FIRST_S = 0.2
"""A stranger is told to say hello at most this often."""


class LinkError(RoverError):
    """The link cannot listen: the port is in use, or the address is not this machine's."""


class Consumer(Protocol):
    """Who takes records, in order within each lane of a boot; called on the link thread."""

    @property
    def takes_replay(self) -> bool:
        """False while stored records wait for better times, and new ones do not wait for them."""

    def consume(self, record: Record, lane: str) -> bool:
        """Take a record; False: busy, offer it again."""

    def pass_over(self, record: Record, lane: str) -> bool:
        """Count a record that was not taken, so that what is behind it gets through; False: it must wait."""

    def close(self, rover_id: str, boot_id: str) -> None:
        """Hear that a boot sends nothing more."""


class Safekeeper(Protocol):
    """Who makes records safe."""

    @property
    def is_open(self) -> bool:
        """False while nothing can be made safe."""

    def append(self, record: StoredRecord) -> bool:
        """Take a record, to say later that it is safe; False: not now."""


class Link(SocketThread):
    """Listen for rovers. ``start`` binds or raises LinkError, ``run`` is the service."""

    name = "link"

    def __init__(
        self,
        settings: Settings,
        mailbox: Mailbox,
        fleet: Fleet,
        consumer: Consumer,
        registry: Registry,
        store: Safekeeper,
        *,
        keys: KeyPair | None = None,
        access: Access | None = None,
    ) -> None:
        """Listen at the settings' host and port (0: any free one) once started; plain without ``keys``."""
        super().__init__()
        self.malformed: Counter[str] = Counter()
        """Malformed input by what was wrong."""
        self.port = settings.port
        self.zap: ZapHandler | None = None
        """Who answers at the door; None where the link is plain."""
        self._host = settings.host
        self._settings = settings.link
        self.pulse = Pulse("link", HANG_S)
        self._fleet = fleet
        self._consumer = consumer
        self._registry = registry
        self._store = store
        self._keys, self._access = keys, access
        self._mailbox = mailbox
        self._stop = False
        self._repeats = RepeatLimiter()
        self._strangers: dict[bytes, float] = {}
        self._rings: dict[tuple[str, str, str], ImageRing] = {}
        self._replay: Replay | None = None
        self._is_pressed = False
        self._pinged_s = 0.0
        self._ticked_s = 0.0

    def stop(self) -> None:
        """Let the thread say goodbye and end."""
        self._stop = True
        self._mailbox.notify()

    def safe(self, records: Iterable[tuple[str, str, int]]) -> None:
        """Hear which records (rover_id, boot_id, seq) are on disk; on the link thread."""
        for rover_id, boot_id, seq in records:
            boot = self._fleet.boots.get((rover_id, boot_id))
            if boot is not None:
                boot.safe(seq)

    def replay(self, replay: Replay) -> None:
        """Hand what was stored and not learned from to the consumer before anything new; on the link thread."""
        self._replay = replay

    def cut(self, rover_id: str, keys: Iterable[str]) -> None:
        """End the connection of a rover whose keys were revoked; on the link thread."""
        rover = self._fleet.rovers.get(rover_id)
        if rover is not None and rover.connected and rover.key in keys:
            self._fleet.part(rover, "its key was revoked")
            _shut(rover.fd, self.port)

    def _serve_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        router = context.socket(zmq.ROUTER)
        if self._keys is not None and self._access is not None:
            self.zap = ZapHandler(context, self._access)
        try:
            self._bind(router)
            self._tell_bound(router)
            self._loop(router, self.zap)
        finally:
            router.close(linger=200)
            if self.zap is not None:
                self.zap.close()

    def _bind(self, router: zmq.Socket[bytes]) -> None:
        for name, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.LINGER, 0),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, int(1000 * self._settings.dead_after_s)),
        ):
            router.setsockopt(name, value)
        if self._keys is not None:
            router.curve_server = True
            router.curve_secretkey = self._keys.secret.encode()
            router.zap_domain = ZAP_DOMAIN.encode()
        try:
            router.bind(f"tcp://{self._host}:{self.port or '*'}")
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                text = f"port {self.port}: in use; stop the other trainerd or choose another --port"
                raise LinkError(text) from error
            raise LinkError(f"{self._host}:{self.port}: {error}; choose another --host") from error

    def _loop(self, router: zmq.Socket[bytes], zap: ZapHandler | None) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._mailbox.wake, zmq.POLLIN)
        if zap is not None:
            poller.register(zap.socket, zmq.POLLIN)
        while not self._stop:
            self.pulse.beat()
            poller.poll(PRESSED_MS if self._is_pressed else 20)
            if zap is not None:
                zap.answer()
            self._mailbox.run_all()
            self._fleet.is_open = self._store.is_open
            for _ in range(BURST):
                try:
                    peer = router.recv(zmq.NOBLOCK, copy=False)  # a frame, not bytes: it knows whose key it is
                except zmq.Again:
                    break
                self._receive(peer, router.recv_multipart(), time.monotonic())
            now_s = time.monotonic()
            self._pump(now_s)
            self._keep_time(now_s)
            self._send(router)
        self.pulse.rest()
        for rover in self._fleet.rovers.values():
            self._tell(rover, messages.Goodbye("trainerd stops"))
        self._send(router)

    def _receive(self, peer: zmq.Frame, frames: list[bytes], now_s: float) -> None:
        identity = peer.bytes
        rover = self._fleet.rover_of(identity)
        try:
            header = _header(frames)
            if rover is not None:
                rover.heard_s = now_s
            if header.get("kind") == messages.Hello.kind:
                self._greet(peer, messages.decode(header), now_s)
            elif not record_kind(header):
                self._handle(identity, rover, messages.decode(header, frames[1:]), now_s)
            elif rover is None:
                self._demand_hello(identity, now_s)
            else:
                self._keep(rover, header, frames, now_s)
        except ProtocolError as error:
            self._count_malformed(rover, error)
            if rover is None:
                self._demand_hello(identity, now_s)

    def _greet(self, peer: zmq.Frame, message: messages.Message, now_s: float) -> None:
        """Let a rover say who it is; under CURVE its key says so."""
        assert isinstance(message, messages.Hello)  # noqa: S101 - its kind was looked at
        identity, key = peer.bytes, ""
        if self._access is not None and self._keys is not None:
            key = str(peer.get("User-Id"))
            owner = self._access.name_of(key)
            if not identity.startswith(b"\0"):  # chosen by the peer: it could be another rover's
                raise ProtocolError("identity: connections are named by this side only")
            if owner != message.rover_id:
                reason = f"{message.rover_id[:80]!r}: the key of this connection is that of {owner!r}; pair it anew"
                self._fleet.refuse(identity, messages.Refuse("identity", reason))
                return
        rover = self._fleet.greet(identity, message, now_s)
        if rover is not None:
            rover.key, rover.fd = key, int(peer.get(zmq.SRCFD))

    def _keep(self, rover: Rover, header: dict[str, object], frames: list[bytes], now_s: float) -> None:
        fields = Fields(str(header["kind"]), header)
        rover_id, boot_id, seq = fields.get("rover_id", str), fields.get("boot_id", str), fields.count("seq")
        boot = self._fleet.boots.get((rover.rover_id, boot_id))
        if rover_id != rover.rover_id or boot is None:
            text = f"record of {rover_id[:64]!r}, boot {boot_id[:64]!r} on the connection of {rover.rover_id}"
            raise ProtocolError(f"identity: {text}, boot {rover.boot_id}")
        if seq >= boot.bound + MAX_AHEAD:
            raise ProtocolError(f"seq: {seq} of {rover.rover_id} is far ahead of {boot.bound}")
        verdict = boot.judge(seq)
        if verdict is Verdict.AGAIN:
            return
        try:
            record = StoredRecord(rover_id, boot_id, seq, fields.count("episode_id"), header, frames)
            lane = boot.lane_of(seq)
            has_room = verdict is Verdict.LATE or lane.room > 0 or seq == lane.next_seq
            if not has_room or not self._has_quota(rover, frames, now_s) or not self._store.append(record):
                boot.refuse(seq)
                return
        except (RecordError, ProtocolError) as error:  # it could not be kept however often it came
            boot.drop(seq)
            raise ProtocolError(str(error)) from error
        if verdict is Verdict.LATE:
            boot.keep_late(seq)
        else:
            boot.keep(seq, record)
        rover.stepped_s = now_s
        rover.steps += 1

    def _has_quota(self, rover: Rover, frames: list[bytes], now_s: float) -> bool:
        """Say whether a rover sent less than its share of bytes lately; nobody starves the others."""
        limit = 1e6 * self._settings.rover_mbytes_per_s
        rover.allowance = min(2 * limit, rover.allowance + (now_s - rover.allowed_s) * limit)
        rover.allowed_s = now_s
        size = sum(map(len, frames))
        if rover.allowance <= 0:
            return False
        rover.allowance -= size  # below zero for one that is larger than the allowance
        return True

    def _handle(self, identity: bytes, rover: Rover | None, message: messages.Message, now_s: float) -> None:
        if rover is None:
            self._demand_hello(identity, now_s)
        elif isinstance(message, messages.Ping):
            self._tell(rover, messages.Pong(message.sent_ns, {"wall_ns": time.time_ns()}))
            for boot in self._fleet.boots_of(rover):
                self._acknowledge(rover, boot, now_s)
            self._fleet.ping(rover, message, now_s)
        elif isinstance(message, messages.Gone):
            self._fleet.gone(rover, message)
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
        """Hand what waits to the consumer, until it is busy; mend gaps and acknowledge."""
        self._is_pressed = False
        is_replaying = self._replay is not None and self._consumer.takes_replay
        if self._replay is not None and is_replaying:
            self._is_pressed = True
            if self._replay.pump(REPLAY_S):
                self._replay, is_replaying = None, False
        for boot in list(self._fleet.boots.values()):
            if boot.waiting and not is_replaying:
                for lane in boot.lanes:
                    self._pump_lane(boot, lane, now_s)
            rover = self._fleet.rovers[boot.rover_id]
            if boot.boot_id != rover.boot_id:
                self._tidy(boot)
            if rover.connected:
                self._mend_gaps(rover, boot, now_s)
                self._acknowledge_if_due(rover, boot, now_s)

    def _tidy(self, boot: Boot[Waiting]) -> None:
        """Close an earlier boot that is all here; give up what a rover does not hold any more, and forget the boot."""
        if boot.is_over and boot.waiting:
            self._fleet.give_up(boot, "the rover started anew and does not have them")
        if not boot.is_shut and (boot.is_whole or (boot.is_over and not boot.waiting)):
            boot.is_shut = True
            for lane in boot.lanes:
                self._rings.pop((*boot.key, lane.name), None)
            self._consumer.close(*boot.key)
            self._fleet.shut(boot)
        if boot.is_over and boot.is_shut:
            self._fleet.forget(boot)

    def _mend_gaps(self, rover: Rover, boot: Boot[Waiting], now_s: float) -> None:
        """Ask again for records that are missing before later ones."""
        for lane in boot.lanes:
            missing = lane.overdue(now_s, self._settings.gap_wait_s)
            if missing is not None and self._fleet.is_open:
                self._tell(rover, messages.Resend(boot.boot_id, [list(missing)]))

    def _pump_lane(self, boot: Boot[Waiting], lane: Lane[Waiting], now_s: float) -> None:
        while (waiting := lane.head()) is not None:
            record = self._decode(boot, lane, waiting) if isinstance(waiting, StoredRecord) else waiting
            if record is not None:
                if not self._hand_over(record, lane.name):
                    lane.replace_head(record)  # decoded once, offered again
                    self._is_pressed = True
                    return
                if isinstance(record, EpisodeEnd):
                    self._fleet.evaluations.collect(record, now_s)
                    self._fleet.converge(self._fleet.rovers[boot.rover_id], now_s)
            lane.take()

    def _hand_over(self, record: Record, lane: str) -> bool:
        """Let the consumer take a record, or pass over it where an evaluation's records come behind it."""
        if self._consumer.consume(record, lane):
            return True
        is_evaluated = self._fleet.evaluations.current(record.rover_id) is not None
        return is_evaluated and self._consumer.pass_over(record, lane)

    def _decode(self, boot: Boot[Waiting], lane: Lane[Waiting], record: StoredRecord) -> Record | None:
        """Return the record, or None, counted, where it is malformed; it lies in the store as it came."""
        specs = self._fleet.specs
        if specs is None:  # nobody is admitted before there are specs
            return None
        key = (*boot.key, lane.name)
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = ImageRing(specs[0])
        try:
            return decode_record(record.header, record.frames[1:], *specs, ring.take)
        except ProtocolError as error:
            self._count_malformed(self._fleet.rovers.get(boot.rover_id), error)
            return None

    def _acknowledge_if_due(self, rover: Rover, boot: Boot[Waiting], now_s: float) -> None:
        is_late = now_s - boot.acked_s >= 1e-3 * self._settings.ack_interval_ms
        told = rover.told_credit
        is_misled = 3 * told < self._settings.credit or boot.room < told or not self._fleet.is_open
        has_news = bool(boot.unacked) or (is_misled and self._fleet.credit_of(rover) != told)
        if boot.unacked >= self._settings.ack_every or (is_late and has_news):
            self._acknowledge(rover, boot, now_s)

    def _acknowledge(self, rover: Rover, boot: Boot[Waiting], now_s: float) -> None:
        boot.unacked, boot.acked_s = 0, now_s
        rover.told_credit = self._fleet.credit_of(rover)
        self._tell(rover, messages.Ack(boot.boot_id, boot.acks(ACK_RANGES), rover.told_credit))

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


def _shut(fd: int, port: int) -> None:
    """Cut a TCP connection of this process, unless its descriptor means another thing by now."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            if connection.getsockname()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)
    except (OSError, IndexError):
        return
