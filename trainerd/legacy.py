"""The input of version 0: a ZeroMQ PULL socket on a port of its own, whose packets become demonstrations.

A PUSH peer has no name, no key and no acknowledgement, so this is off unless enabled and then listens on loopback
unless told otherwise. The socket and the episodes belong to one thread, which hands finished records on.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from protocol.errors import RoverError
from protocol.framing import ProtocolError, encode_record, unpack
from protocol.images import JPEG, DepthEncoder, encode_rgb
from protocol.legacy import DEPTH, DISTANCE, MAX_PACKET_BYTES, RGB, ROBOT, LegacyPacket, decode_legacy
from protocol.messages import NAME
from protocol.node.config import option
from protocol.node.log import RepeatLimiter, get_logger
from protocol.spec import TaskSpec
from protocol.step import EpisodeEnd, Intervention, Observation, Record, Step
from trainerd.episodes.records import StoredRecord
from trainerd.sockets import SocketThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = get_logger()

TASK = TaskSpec("drive")
"""Version 0 says nothing of a task: whoever drove, drove."""
HIGH_WATER = 16
"""Packets that wait for this thread, per peer; with the peer's own queue that is all that is ever held."""
POLL_MS = 50
BUSY_S = 0.005
"""How soon a consumer that was busy is asked again."""
PATIENCE_S = 1.0
"""How long a consumer that is busy is asked while this stops."""
TAKE_OVER_S = 1.0
"""A sender that was silent so long may be replaced by another connection: the collector was started again."""
Encoded = dict[str, tuple[str, bytes]]


class LegacyError(RoverError):
    """The input of version 0 cannot listen: the port is in use, or the address is not this machine's."""


@dataclass(frozen=True)
class LegacySettings:
    """The input of version 0, the packets of the first data collector."""

    enabled: bool = option(default=False, help="take packets of version 0; whoever reaches the port is believed")
    host: str = option("127.0.0.1", help="address to listen on; packets come in without a key")
    port: int = option(5556, help="port to listen on; 0: any free one", low=0, high=65535)
    rover_id: str = option("legacy", help="name under which the packets are kept", pattern=NAME)
    idle_s: float = option(5.0, help="silence that ends an episode", low=0.1)
    max_packets_per_s: float = option(60.0, help="packets taken in a second; more wait at their sender", low=1.0)
    max_bytes_per_s: float = option(32e6, help="bytes taken in a second; more wait at their sender", low=1e6)


class LegacyEpisodes:
    """Number packets into episodes of demonstrations: pure, no clock, no socket.

    A packet is a step whose human action is the packet's. ``done``, or a packet that does not follow the last one, ends
    the episode; version 0 has no observation behind the last step, so the last one stands for it.
    """

    def __init__(self, rover_id: str, boot_id: str) -> None:
        """Begin with seq 0 and episode 0."""
        self.seq = 0
        """The seq of the next record."""
        self.episode_id = 0
        self._rover_id, self._boot_id = rover_id, boot_id
        self._depth = DepthEncoder()
        self._last: Step | None = None
        self._encoded: Encoded = {}
        self._return = 0.0
        self._expected = 0
        """The collector's own number of the next step: its episodes may have begun before anybody listened."""

    def follow(self, packet: LegacyPacket) -> Iterator[tuple[Record, Encoded]]:
        """Give the records that a packet leads to, with their encoded images: one to three."""
        if self._last is not None and packet.episode_step != self._expected:
            yield from self.end("truncated" if packet.episode_step < self._expected else "link_cut")
        self._expected = packet.episode_step + 1
        self._encoded = {RGB: (JPEG, _jpeg(packet)), DEPTH: self._depth.encode(packet.depth_mm)}
        self._last = self._step(packet, self._last)
        self._return += packet.reward
        yield self._last, self._encoded
        if packet.done:
            yield from self.end("terminated")

    def end(self, reason: str) -> Iterator[tuple[Record, Encoded]]:
        """Give the end of the present episode, if there is one."""
        if self._last is None:
            return
        last, encoded = self._last, self._encoded
        self._last, self._encoded = None, {}
        record = EpisodeEnd(
            rover_id=self._rover_id,
            boot_id=self._boot_id,
            seq=self._take_seq(),
            episode_id=self.episode_id,
            episode_steps=last.episode_step + 1,
            reason=reason,
            final=last.observation,
            terminated=reason == "terminated",
            purpose="collection",
            return_=self._return,
        )
        self.episode_id += 1
        self._return = 0.0
        yield record, encoded

    def _step(self, packet: LegacyPacket, last: Step | None) -> Step:
        stamp_ns = int(packet.timestamp_s * 1e9)
        in_flight = np.zeros(len(ROBOT.action), np.float32) if last is None else last.action
        seq = self._take_seq()
        return Step(
            rover_id=self._rover_id,
            boot_id=self._boot_id,
            seq=seq,
            episode_id=self.episode_id,
            episode_step=0 if last is None else last.episode_step + 1,
            decision_id=seq,
            tick_in_decision=0,
            observation=Observation(packet.proprio, np.empty(0, np.float32), in_flight, stamp_ns=stamp_ns),
            action=packet.action,
            source="human",
            reward=packet.reward,
            purpose="collection",
            human_action=packet.action,
            interventions=int(Intervention.HUMAN),
            terminated=packet.done,
            tick=seq,
            tick_ns=stamp_ns,
            applied_ns=stamp_ns,
            clearance_m=float(packet.proprio[DISTANCE]),
        )

    def _take_seq(self) -> int:
        self.seq += 1
        return self.seq - 1


class Quota:
    """A bucket of tokens: at most so many a second in the long run, one second's worth at once."""

    def __init__(self, per_s: float) -> None:
        """Begin with a full bucket."""
        self._per_s = per_s
        self._tokens = per_s
        self._at_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait until something may be taken, 0 where that is now."""
        if self._at_s is not None:
            self._tokens = min(self._per_s, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return max(0.0, -self._tokens / self._per_s)

    def take(self, count: float) -> None:
        """Take tokens, if need be in advance."""
        self._tokens -= count


class LegacyInput(SocketThread):
    """Service: listen for packets of version 0. ``start`` binds, ``run`` goes on until cancelled."""

    name = "legacy"

    def __init__(self, settings: LegacySettings, deliver: Callable[[StoredRecord], bool], *, boot_id: str = "") -> None:
        """Hand records to ``deliver``, in order and on this input's thread; where it says False they are offered again.

        The boot gets a new name unless one is given.
        """
        super().__init__()
        self.port = settings.port
        self.boot_id = boot_id or secrets.token_hex(8)
        self.counts: Counter[str] = Counter(packets=0, bytes=0, steps=0, episodes=0, malformed=0, waits=0, strangers=0)
        self.malformed: Counter[str] = Counter()
        """Malformed packets by the field that was wrong."""
        self._settings = settings
        self._deliver = deliver
        self._episodes = LegacyEpisodes(settings.rover_id, self.boot_id)
        self._packets, self._bytes = Quota(settings.max_packets_per_s), Quota(settings.max_bytes_per_s)
        self._sender: tuple[str, int] | None = None
        self._heard_s = 0.0
        self._repeats = RepeatLimiter()
        self._stop = threading.Event()
        self._patient_until_s = float("inf")

    def start(self) -> None:
        """Bind and begin; raises LegacyError."""
        super().start()
        log.info("legacy.listening", host=self._settings.host, port=self.port, boot_id=self.boot_id)

    def stop(self) -> None:
        """Let the thread end its episode and itself."""
        self._patient_until_s = time.monotonic() + PATIENCE_S
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """Describe it, as the API shows it."""
        return {
            "port": self.port,
            "boot_id": self.boot_id,
            "rover_id": self._settings.rover_id,
            **self.counts,
            "malformed_by_field": dict(self.malformed),
        }

    def _serve_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        pull = context.socket(zmq.PULL)
        try:
            self._bind(pull)
            self._tell_bound(pull)
            self._loop(pull)
        finally:
            pull.close(linger=0)

    def _bind(self, pull: zmq.Socket[bytes]) -> None:
        pull.setsockopt(zmq.RCVHWM, HIGH_WATER)
        pull.setsockopt(zmq.MAXMSGSIZE, MAX_PACKET_BYTES)
        host, port = self._settings.host, self._settings.port
        try:
            pull.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            reason = "in use" if error.errno == zmq.EADDRINUSE else str(error)
            raise LegacyError(f"legacy input, {host}:{port}: {reason}; choose another legacy.port or host") from error

    def _loop(self, pull: zmq.Socket[bytes]) -> None:
        while not self._stop.is_set():
            now_s = time.monotonic()
            if now_s - self._heard_s > self._settings.idle_s:
                self._sender = None
                self._hand_on(lambda: self._episodes.end("link_cut"))
            if wait_s := max(self._packets.wait_s(now_s), self._bytes.wait_s(now_s)):
                self._throttle(wait_s)
            elif pull.poll(POLL_MS):
                self._receive(pull)
        self._hand_on(lambda: self._episodes.end("stopped"))

    def _receive(self, pull: zmq.Socket[bytes]) -> None:
        frames = pull.recv_multipart(copy=False)
        size = sum(len(frame.buffer) for frame in frames)
        self.counts["packets"] += 1
        self.counts["bytes"] += size
        self._packets.take(1)
        self._bytes.take(size)
        try:
            packet = _decode(frames)
        except ProtocolError as error:
            self._count_malformed(error)
            return
        if self._is_sender(frames[0]):
            self._heard_s = time.monotonic()
            self._hand_on(lambda: self._episodes.follow(packet))

    def _is_sender(self, frame: zmq.Frame) -> bool:
        """Tell whether a packet is of the connection that is listened to: two would mix their episodes."""
        sender = str(frame.get("Peer-Address")), int(frame.get(zmq.SRCFD))
        if sender == self._sender:
            return True
        if self._sender is None or time.monotonic() - self._heard_s > TAKE_OVER_S:
            self._hand_on(lambda: self._episodes.end("link_cut"))
            self._sender = sender
            return True
        self.counts["strangers"] += 1
        if count := self._repeats.count("strangers"):
            hint = f"one collector at a time; another is listened to after {TAKE_OVER_S:g} s of silence"
            log.warning("legacy.second_sender", address=sender[0], present=self._sender[0], count=count, hint=hint)
        return False

    def _hand_on(self, records: Callable[[], Iterator[tuple[Record, Encoded]]]) -> None:
        """Deliver records in order; while the consumer is busy nothing more is read, so that senders wait."""
        for record, encoded in records():
            frames = encode_record(record, encoded)
            place = (record.rover_id, record.boot_id, record.seq, record.episode_id)
            stored = StoredRecord(*place, unpack(frames[0]), frames)
            while not self._deliver(stored):
                self.counts["waits"] += 1
                if time.monotonic() > self._patient_until_s:
                    return
                time.sleep(BUSY_S)
            self.counts["steps" if isinstance(record, Step) else "episodes"] += 1
            if isinstance(record, EpisodeEnd):
                facts = {"episode_id": record.episode_id, "steps": record.episode_steps, "reason": record.reason}
                log.info("legacy.episode_ended", **facts)

    def _throttle(self, wait_s: float) -> None:
        if count := self._repeats.count("quota"):
            hint = "packets wait at their sender; legacy.max_packets_per_s and max_bytes_per_s allow more"
            log.warning("legacy.quota_reached", count=count, hint=hint)
        self._stop.wait(wait_s)

    def _count_malformed(self, error: ProtocolError) -> None:
        reason = str(error).partition(":")[0][:40]
        self.malformed[reason] += 1
        self.counts["malformed"] += 1
        if self.malformed[reason] == 1:
            hint = "the packet was dropped; later ones of this reason are only counted"
            log.warning("legacy.packet_malformed", reason=str(error)[:400], hint=hint)


def _jpeg(packet: LegacyPacket) -> bytes:
    return packet.rgb if isinstance(packet.rgb, bytes) else encode_rgb(packet.rgb)


def _decode(frames: list[zmq.Frame]) -> LegacyPacket:
    if len(frames) != 1:
        raise ProtocolError(f"frames: {len(frames)} in one message, expected 1")
    return decode_legacy(frames[0].bytes)
