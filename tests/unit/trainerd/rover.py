"""A rover in a few lines: the real protocol over a real socket, with a world that is made up."""

from __future__ import annotations

import hashlib
import time
from collections import deque

import numpy as np
import zmq

from protocol import PROTOCOL_VERSION, messages
from protocol.bundle import unpack_bundle
from protocol.framing import RecordEncoder, encode_record, unpack
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Behaviour, EpisodeEnd, Observation, Step

ROBOT = RobotSpec(
    name="toy",
    cameras=(Camera("front", "rgb", 12, 20, 10.0), Camera("front", "depth", 12, 20, 10.0)),
    state=(Element("speed", "m/s", -1.0, 1.0), Element("turn", "rad/s", -1.0, 1.0)),
    action=(Element("linear", "m/s", 0.0, 0.5), Element("angular", "rad/s", -1.5, 1.5)),
    control_rate_hz=10.0,
    action_repeat=3,
)
TASK = TaskSpec("goal", (Element("distance", "m", 0.0, 10.0),), ranking=(("drive", "still"),))
BARE = RobotSpec("bare", (), ROBOT.state, ROBOT.action, 10.0)
TICKS = 30


def observation(robot: RobotSpec, generator: np.random.Generator, *, images: bool) -> Observation:
    pixels = {}
    for camera in robot.cameras if images else ():
        high = 256 if camera.kind == "rgb" else 4000
        pixels[camera.key] = generator.integers(0, high, camera.shape).astype(camera.dtype)
    vector = generator.normal(size=len(robot.state)).astype(np.float32)
    zeros = np.zeros(len(robot.action), np.float32)
    return Observation(vector, np.ones(1, np.float32), zeros, pixels, stamp_ns=1)


class FakeRover:
    """Makes records and keeps what is not acknowledged, as roverd does."""

    def __init__(self, port: int, name: str = "rover-1", *, boot: str = "boot-1", robot: RobotSpec = ROBOT) -> None:
        self.name, self.boot, self.robot, self.port = name, boot, robot, port
        self.generator = np.random.default_rng(0)
        self.encoder = RecordEncoder(robot)
        self.seq = self.episode = self.tick = self.decision = 0
        self.kept: dict[int, list[bytes]] = {}
        self.heard: deque[messages.Message] = deque(maxlen=5000)
        self.policy_id, self.policy_counter, self.order_id = "", 0, ""
        self.order: messages.Order | None = None
        self.refuses_policies = ""
        self.serial = 0
        self.credit = 0
        self.answers_resend = True
        self.counters: list[int] = []
        self._context = zmq.Context()
        self.connect()

    def connect(self) -> None:
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{self.port}")

    def reconnect(self) -> None:
        self.socket.close()
        self.connect()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, message: messages.Message) -> None:
        self.socket.send_multipart(messages.encode(message))

    def hello(self, **changes: object) -> None:
        values = {
            "rover_id": self.name,
            "boot_id": self.boot,
            "oldest_version": PROTOCOL_VERSION,
            "newest_version": PROTOCOL_VERSION,
            "robot": self.robot.to_map(),
            "task": TASK.to_map(),
            "codecs": [],
            "software": "fake",
            "next_seq": self.seq,
            "oldest_unacked": min(self.kept, default=self.seq),
            "policy_id": self.policy_id,
            "policy_counter": self.policy_counter,
            "order_id": self.order_id,
        }
        self.send(messages.Hello(**{**values, **changes}))

    def greet(self) -> messages.Welcome:
        self.hello()
        return self.wait_for(messages.Welcome)

    def ping(self) -> None:
        self.send(messages.Ping(time.monotonic_ns(), self.policy_id, self.policy_counter, self.order_id))

    def listen(self, timeout_ms: int = 0) -> int:
        """Take in what has come; return how many messages."""
        count = 0
        while self.socket.poll(timeout_ms if count == 0 else 0):
            frames = self.socket.recv_multipart()
            message = messages.decode(unpack(frames[0]), frames[1:])
            self.heard.append(message)
            self._react(message)
            count += 1
        return count

    def wait_for(self, kind: type, matching=lambda _message: True, timeout_s: float = 10.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for message in list(self.heard):
                if isinstance(message, kind) and matching(message):
                    self.heard.remove(message)
                    return message
            self.listen(20)
        raise AssertionError(f"no {kind.__name__}; heard {[m.kind for m in self.heard]}")

    def wait_until(self, condition, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            self.listen(20)

    def records(self, ticks: int, *, purpose: str = "training", reward: float | None = None) -> list[Step | EpisodeEnd]:
        """Make the records of so many ticks, an episode's end among them where it is due."""
        made: list[Step | EpisodeEnd] = []
        for _ in range(ticks):
            repeat = self.robot.action_repeat
            in_decision = self.tick % repeat
            if in_decision == 0:
                self.decision += 1
            made.append(self._step(in_decision, purpose, reward))
            self.tick += 1
            if self.tick == TICKS:
                made.append(self._end(purpose))
                self.tick = 0
                self.episode += 1
        return made

    def encode(self, record: Step | EpisodeEnd) -> list[bytes]:
        seen = record.observation if isinstance(record, Step) else record.final
        return encode_record(record, self.encoder.encode_images(seen.images))

    def drive(self, ticks: int, **facts: object) -> None:
        for record in self.records(ticks, **facts):
            self.kept[record.seq] = self.encode(record)
            self.socket.send_multipart(self.kept[record.seq])

    def resend(self) -> None:
        for seq in sorted(self.kept):
            self.socket.send_multipart(self.kept[seq])

    def wait_acked(self, timeout_s: float = 20.0) -> None:
        self.wait_until(lambda: not self.kept, timeout_s)

    def _step(self, in_decision: int, purpose: str, reward: float | None) -> Step:
        actions = len(self.robot.action)
        log_std = np.full(actions, -0.7, np.float32)
        mean = np.zeros(actions, np.float32)
        u = self.generator.normal(size=actions).astype(np.float32) * np.exp(log_std)
        log_prob = float(-0.5 * np.sum((u / np.exp(log_std)) ** 2 + 2 * log_std + np.log(2 * np.pi)))
        step = Step(
            self.name,
            self.boot,
            self.seq,
            self.episode,
            self.tick,
            self.decision,
            in_decision,
            observation(self.robot, self.generator, images=in_decision == 0),
            np.zeros(actions, np.float32),
            "policy",
            float(self.generator.normal()) if reward is None else reward,
            policy_id=self.policy_id,
            policy_counter=self.policy_counter,
            purpose=purpose,
            behaviour=Behaviour(u, mean, log_std, log_prob),
        )
        self.seq += 1
        return step

    def _end(self, purpose: str) -> EpisodeEnd:
        success = bool(self.generator.integers(0, 2))
        end = EpisodeEnd(
            self.name,
            self.boot,
            self.seq,
            self.episode,
            TICKS,
            "terminated" if success else "truncated",
            observation(self.robot, self.generator, images=True),
            success=success,
            terminated=success,
            purpose=purpose,
            metrics={"duration_s": 3.0, "path_m": 2.0, "shortest_path_m": 1.0, "collided": 0.0},
            return_=1.0 if self.order is not None and self.order.controller == "drive" else 0.5,
            policy_id=self.policy_id,
            episode_serial=self.serial,
            order_id=self.order.order_id if self.order and purpose == "evaluation" else "",
        )
        self.serial += 1
        self.seq += 1
        return end

    def _react(self, message: messages.Message) -> None:  # noqa: C901 - a branch for each message
        if isinstance(message, messages.Welcome):
            self.credit = message.credit
            self._forget(message.received)
        elif isinstance(message, messages.Ack):
            if message.boot_id == self.boot:
                self._forget(message.ranges)
            self.credit = message.credit
        elif isinstance(message, messages.Resend) and self.answers_resend:
            for first, last in message.ranges:
                for seq in [seq for seq in self.kept if first <= seq <= last]:
                    self.socket.send_multipart(self.kept[seq])
        elif isinstance(message, messages.Ping):
            self.send(messages.Pong(message.sent_ns))
            self.ping()
        elif isinstance(message, messages.Order):
            self.order, self.order_id, self.serial = message, message.order_id, 0
            self.send(messages.OrderUpdate(message.order_id, "running"))
        elif isinstance(message, messages.Offer):
            self._offered = message
            self._content = b""
            self.send(messages.ChunkRequest(message.policy_id, 0, messages.MAX_CHUNK_BYTES))
        elif isinstance(message, messages.Chunk):
            self._take(message)

    def _take(self, chunk: messages.Chunk) -> None:
        if chunk.policy_id != self._offered.policy_id or chunk.offset != len(self._content):
            return
        self._content += chunk.content
        if len(self._content) < self._offered.size_bytes:
            request = messages.ChunkRequest(chunk.policy_id, len(self._content), messages.MAX_CHUNK_BYTES)
            self.send(request)
            return
        assert hashlib.sha256(self._content).hexdigest() == self._offered.sha256
        bundle = unpack_bundle(self._content)
        if self.refuses_policies:
            self.send(messages.Verdict(bundle.policy_id, "refused", self.refuses_policies))
            return
        self.policy_id, self.policy_counter = bundle.policy_id, bundle.manifest.counter
        self.counters.append(self.policy_counter)
        self.send(messages.Verdict(bundle.policy_id, "driving", seconds=0.1))

    def _forget(self, ranges: list[list[int]]) -> None:
        for first, last in ranges:
            for seq in [s for s in self.kept if first <= s <= last]:
                del self.kept[seq]
