"""Many simulated rovers in one event loop: the real protocol on real sockets, with records of a world that is made up.

Each keeps what is not acknowledged, as roverd does, and connects anew with full jitter. It trusts nothing that it was
told: what was acknowledged is noted with the record's digest, to be compared with the trainer's store.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, messages
from protocol.framing import RecordEncoder, encode_record, unpack
from protocol.images import CODECS
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Behaviour, EpisodeEnd, Observation, Step
from tests.faults.ledger import digest
from tests.faults.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

RATE_HZ = 10.0
ROBOT = RobotSpec(
    name="simulated",
    cameras=(Camera("front", "rgb", 12, 20, RATE_HZ), Camera("front", "depth", 12, 20, RATE_HZ)),
    state=(Element("speed", "m/s", -1.0, 1.0), Element("turn", "rad/s", -1.0, 1.0)),
    action=(Element("linear", "m/s", 0.0, 0.5), Element("angular", "rad/s", -1.5, 1.5)),
    control_rate_hz=RATE_HZ,
)
TASK = TaskSpec("goal", (Element("distance", "m", 0.0, 10.0),))
EPISODE_TICKS = 50
LOOK_S = 0.05
"""How often a rover looks at its socket: the descriptors of ZeroMQ are edge-triggered, and a fleet has time."""
PING_S, DEAD_AFTER_S = 1.0, 5.0
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 2.0


@dataclass(frozen=True)
class Keys:
    """CURVE keys of a rover (z85), and the trainer's public one."""

    public: str
    secret: str
    trainer: str


def make_keys(trainer_public: str) -> Keys:
    public, secret = zmq.curve_keypair()
    return Keys(public.decode(), secret.decode(), trainer_public)


class Scenes:
    """A few encoded observations that all rovers share: encoding images is not what a fleet measures."""

    def __init__(self, count: int = 8, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        encoder = RecordEncoder(ROBOT)
        self.encoded = []
        for _ in range(count):
            images = {}
            for camera in ROBOT.cameras:
                high = 256 if camera.kind == "rgb" else 4000
                images[camera.key] = draw.integers(0, high, camera.shape).astype(camera.dtype)
            self.encoded.append(encoder.encode_images(images))


@dataclass
class SimulatedRover:
    """One rover; ``run`` is a task. Its counters may be read from other threads."""

    rover_id: str
    address: str
    scenes: Scenes
    keys: Keys | None = None
    rate_hz: float = RATE_HZ
    boot_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    state: str = "connecting"
    refusal: str = ""
    linked_at: float = 0.0
    acked_at: float = 0.0
    """When an acknowledgement freed something last."""
    is_driving: bool = True
    digests: dict[int, bytes] = field(default_factory=dict)
    acked: Spans = field(default_factory=Spans)
    kept: dict[int, list[bytes]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seq: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.rover_id)
        self._noise = np.random.default_rng(abs(hash(self.rover_id)) % (1 << 32))
        self._unsent: deque[int] = deque()
        self._credit = 0
        self._policy = ("", 0)
        self._order_id = ""
        self._episode, self._tick = 1, 0
        self._heard = 0.0
        self._retry_at = 0.0
        self._socket: zmq.Socket[bytes] | None = None

    async def run(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Drive and keep the link until cancelled."""
        driving = asyncio.get_running_loop().create_task(self._drive())
        attempt = 0
        try:
            while True:
                self._open(context)
                attempt = 0 if await self._keep_link() else attempt + 1
                self._close()
                self.counts["reconnects"] += 1
                bound = min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2 ** min(attempt + 1, 16))
                await asyncio.sleep(self._draw.uniform(0, bound))
        finally:
            driving.cancel()
            self._close()

    def _open(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        made = context.socket(zmq.DEALER)
        for name, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, 4096),
            (zmq.RCVHWM, 4096),
            (zmq.RECONNECT_IVL, int(1000 * RECONNECT_MIN_S)),
            (zmq.RECONNECT_IVL_MAX, int(1000 * RECONNECT_MAX_S)),
        ):
            made.setsockopt(name, value)
        if self.keys is not None:
            made.setsockopt_string(zmq.CURVE_PUBLICKEY, self.keys.public)
            made.setsockopt_string(zmq.CURVE_SECRETKEY, self.keys.secret)
            made.setsockopt_string(zmq.CURVE_SERVERKEY, self.keys.trainer)
        made.connect(self.address)
        self._socket = made
        self._heard = time.monotonic()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        self.state = "connecting"
        self._credit = 0

    async def _keep_link(self) -> bool:
        """Talk until the other side has been silent for too long; return whether it was ever linked."""
        was_linked, next_word = False, 0.0
        await asyncio.sleep(self._draw.uniform(0, LOOK_S))
        while time.monotonic() - self._heard < DEAD_AFTER_S:
            now = time.monotonic()
            self._listen()
            was_linked = was_linked or self.state == "linked"
            if now >= max(next_word, self._retry_at):
                self._send(self._ping() if self.state == "linked" else self._hello())
                next_word = now + (PING_S if self.state == "linked" else 0.25)
            self._push()
            await asyncio.sleep(LOOK_S)
        return was_linked

    async def _drive(self) -> None:
        period_s = 1.0 / self.rate_hz
        due = time.monotonic() + self._draw.uniform(0, period_s)
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + period_s, time.monotonic() - 1.0)  # a busy machine is not asked for what it missed long ago
            if self.is_driving:
                self._make_records()

    def _make_records(self) -> None:
        self._keep(self._step())
        self._tick += 1
        if self._tick == EPISODE_TICKS:
            self._keep(self._end())
            self._episode, self._tick = self._episode + 1, 0

    def _keep(self, record: Step | EpisodeEnd) -> None:
        frames = encode_record(record, self.scenes.encoded[self.seq % len(self.scenes.encoded)])
        self.kept[self.seq] = frames
        self.digests[self.seq] = digest(frames)
        self._unsent.append(self.seq)
        self.seq += 1

    def _push(self) -> None:
        while self.state == "linked" and self._unsent and len(self.kept) - len(self._unsent) < self._credit:
            assert self._socket is not None
            try:
                self._socket.send_multipart(self.kept[self._unsent[0]], zmq.NOBLOCK)
            except zmq.Again:
                return
            self._unsent.popleft()
            self.counts["sent"] += 1

    def _send(self, message: messages.Message) -> None:
        if self._socket is not None:
            try:
                self._socket.send_multipart(messages.encode(message), zmq.NOBLOCK)
            except zmq.Again:
                self.counts["unsendable"] += 1

    def _listen(self) -> None:
        while self._socket is not None:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            self._take(messages.decode(unpack(frames[0]), frames[1:]))

    def _take(self, message: messages.Message) -> None:
        if isinstance(message, messages.Ack):
            self._credit = message.credit
            self._acknowledge(message.boot_id, message.ranges)
        elif isinstance(message, messages.Welcome):
            if self.state != "linked":
                self.state, self.refusal, self.linked_at = "linked", "", time.monotonic()
                self._unsent = deque(self.kept)
                self.counts["welcomes"] += 1
            self._credit = message.credit
            self._acknowledge(message.boot_id, message.received)
        elif isinstance(message, messages.Ping):
            self._send(messages.Pong(message.sent_ns))
        elif isinstance(message, messages.Resend):
            self._resend(message)
        elif isinstance(message, messages.Refuse):
            self._refused(message)
        elif isinstance(message, messages.Goodbye):
            self.state, self._heard = "connecting", 0.0
        elif isinstance(message, messages.Offer):
            self._policy = (message.policy_id, message.counter)  # it drives at once: bundles are another test's matter
        elif isinstance(message, messages.Order):
            self._order_id = message.order_id

    def _resend(self, message: messages.Resend) -> None:
        wanted = set(self._unsent)
        for low, high in message.ranges:
            wanted.update(seq for seq in self.kept if low <= seq <= high)
        self.counts["resends"] += len(wanted) - len(self._unsent)
        self._unsent = deque(sorted(wanted))

    def _refused(self, message: messages.Refuse) -> None:
        self.state = "connecting"
        if message.code != "hello_first":
            self.refusal = message.reason
            self.counts["refusals"] += 1
            self._retry_at = time.monotonic() + 2.0

    def _acknowledge(self, boot_id: str, ranges: Sequence[Sequence[int]]) -> None:
        if boot_id != self.boot_id:
            return
        before = len(self.kept)
        for low, high in ranges:
            self.acked.add(low, high)
        freed = [seq for seq in self.kept if seq in self.acked]
        for seq in freed:
            del self.kept[seq]
        if freed:
            self._unsent = deque(seq for seq in self._unsent if seq in self.kept)
            self.acked_at = time.monotonic()
        self.counts["acknowledged"] += before - len(self.kept)

    def _hello(self) -> messages.Hello:
        return messages.Hello(
            rover_id=self.rover_id,
            boot_id=self.boot_id,
            oldest_version=OLDEST_PROTOCOL_VERSION,
            newest_version=PROTOCOL_VERSION,
            robot=ROBOT.to_map(),
            task=TASK.to_map(),
            codecs=list(CODECS),
            software="simulated",
            next_seq=self.seq,
            oldest_unacked=min(self.kept, default=self.seq),
            policy_id=self._policy[0],
            policy_counter=self._policy[1],
            order_id=self._order_id,
        )

    def _ping(self) -> messages.Ping:
        oldest = min(self.kept, default=self.seq)
        return messages.Ping(time.monotonic_ns(), *self._policy, self._order_id, {}, oldest)

    def _observation(self) -> Observation:
        zeros = np.zeros(2, np.float32)
        stamp_ns = time.monotonic_ns()
        return Observation(self._noise.random(2, np.float32), np.ones(1, np.float32), zeros, stamp_ns=stamp_ns)

    def _step(self) -> Step:
        log_std = np.full(2, -0.7, np.float32)
        u = (self._noise.normal(size=2) * np.exp(-0.7)).astype(np.float32)
        log_prob = float(-0.5 * np.sum((u / np.exp(log_std)) ** 2 + 2 * log_std + np.log(2 * np.pi)))
        action = np.array([0.25 * (np.tanh(u[0]) + 1), 1.5 * np.tanh(u[1])], np.float32)
        return Step(
            self.rover_id,
            self.boot_id,
            self.seq,
            self._episode,
            self._tick,
            self.seq,
            0,
            self._observation(),
            action,
            "policy",
            float(u[0]),
            policy_id=self._policy[0],
            policy_counter=self._policy[1],
            behaviour=Behaviour(u=u, mean=np.zeros(2, np.float32), log_std=log_std, log_prob=log_prob),
            policy_action=action,
            terminated=self._tick + 1 == EPISODE_TICKS,
            success=self._episode % 2 == 0,
            tick=self.seq,
            tick_ns=time.monotonic_ns(),
        )

    def _end(self) -> EpisodeEnd:
        return EpisodeEnd(
            self.rover_id,
            self.boot_id,
            self.seq,
            self._episode,
            EPISODE_TICKS,
            "terminated",
            self._observation(),
            success=self._episode % 2 == 0,
            terminated=True,
            policy_id=self._policy[0],
            episode_serial=self._episode,
        )


class Fleet:
    """Rovers on a thread of their own; a context manager."""

    def __init__(self, address: str, rover_ids: Sequence[str], keys: dict[str, Keys] | None = None) -> None:
        scenes = Scenes()
        self.rovers = [SimulatedRover(name, address, scenes, (keys or {}).get(name)) for name in rover_ids]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="fleet", daemon=True)
        self._error: BaseException | None = None
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10.0)
        assert self._error is None, self._error

    @property
    def linked(self) -> int:
        return sum(rover.state == "linked" for rover in self.rovers)

    @property
    def unacknowledged(self) -> int:
        return sum(len(rover.kept) for rover in self.rovers)

    def counts(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for rover in self.rovers:
            total.update(rover.counts)
        return dict(total)

    def stand(self) -> None:
        """Let all rovers stop driving; they go on sending what they have."""
        for rover in self.rovers:
            rover.is_driving = False

    def back_since(self, moment: float) -> int:
        """Return how many rovers were linked after a moment of the monotonic clock, and heard an acknowledgement."""
        return sum(rover.linked_at > moment and rover.acked_at > rover.linked_at for rover in self.rovers)

    def lost(self, stored: dict[tuple[str, str], dict[int, bytes]]) -> dict[str, Any]:
        """Compare what was acknowledged with a store's digests."""
        lost = wrong = 0
        for rover in self.rovers:
            there = stored.get((rover.rover_id, rover.boot_id), {})
            lost += len(rover.acked.without(there))
            wrong += sum(rover.digests.get(seq) != value for seq, value in there.items())
        return {"acked_lost": lost, "undetected_corruption": wrong, "acked": sum(len(r.acked) for r in self.rovers)}

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        except BaseException as error:  # noqa: BLE001 - raised when it is left
            self._error = error
        finally:
            self._loop.close()

    async def _run(self) -> None:
        with zmq.Context(2) as context:
            context.set(zmq.MAX_SOCKETS, 4096)
            tasks = [self._loop.create_task(rover.run(context)) for rover in self.rovers]
            stop = self._loop.create_task(self._stop.wait())
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
            for task in done - {stop}:
                task.result()
