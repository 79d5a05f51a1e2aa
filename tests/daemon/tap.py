"""Third parties on the link: a tap between rover and trainer, and an end that only records."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq

from protocol import PROTOCOL_VERSION
from protocol.framing import ProtocolError, decode_record, record_kind, unpack
from protocol.messages import MAX_CHUNK_BYTES, Ack, Chunk, Hello, Message, Offer, Welcome, decode, encode
from protocol.spec import RobotSpec, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from protocol.step import Record

POLL_MS = 10
FRAMES_KEPT = 6000
"""Records whose images are kept: the newest ones."""


@dataclass
class Stream:
    """The records that passed, in the order they came, and the messages."""

    headers: list[bytes] = field(default_factory=list)
    frames: deque[list[bytes]] = field(default_factory=lambda: deque(maxlen=FRAMES_KEPT))
    hellos: dict[str, Hello] = field(default_factory=dict)
    messages: deque[tuple[float, str, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=5000))

    def see(self, frames: list[bytes], direction: str) -> dict[str, Any]:
        """Note a message and return its header; empty for one that is none."""
        try:
            header = unpack(frames[0])
        except ProtocolError:
            return {}
        if record_kind(header):
            self.headers.append(frames[0])
            self.frames.append(frames)
        else:
            self.messages.append((time.monotonic(), direction, header))
            if header.get("kind") == Hello.kind:
                hello = decode(header)
                assert isinstance(hello, Hello)
                self.hellos[hello.rover_id] = hello
        return header

    def headers_of(self, rover_id: str = "rover-1") -> list[dict[str, Any]]:
        """Return the headers of a rover's records by boot and seq, each record once."""
        seen = {}
        for raw in list(self.headers):
            header = unpack(raw)
            if header["rover_id"] == rover_id:
                seen.setdefault((header["boot_id"], header["seq"]), header)
        return list(seen.values())

    def specs(self, rover_id: str = "rover-1") -> tuple[RobotSpec, TaskSpec]:
        """Return what a rover said it is."""
        hello = self.hellos[rover_id]
        return RobotSpec.from_map(hello.robot), TaskSpec.from_map(hello.task)

    def decoded(self, rover_id: str = "rover-1") -> list[Record]:
        """Return the newest records, decoded."""
        specs = self.specs(rover_id)
        pairs = ((unpack(frames[0]), frames[1:]) for frames in list(self.frames))
        return [decode_record(header, frames, *specs) for header, frames in pairs if header["rover_id"] == rover_id]


class _Threaded:
    """A thread that owns its sockets; others hand it functions."""

    def __init__(self) -> None:
        self.stream = Stream()
        self._posted: deque[Callable[[], object]] = deque()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(10.0)
        assert self._error is None, self._error

    def _main(self) -> None:
        try:
            with zmq.Context() as context:
                self._loop(context)
        except BaseException as error:  # noqa: BLE001 - raised at the end of the test
            self._error = error

    def _loop(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        raise NotImplementedError

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()


class Tap(_Threaded):
    """Stand between rovers and a trainer: record, cut, change, and slip in messages of one's own.

    ``to_rover`` and ``to_trainer`` may change the frames of a message (given with its header) or return None to drop
    it; ``serve`` holds bundles that rovers get from here where they ask for them.
    """

    def __init__(self, port: int, trainer_port: int) -> None:
        super().__init__()
        self.port = port
        self.serve: dict[str, bytes] = {}
        self.to_rover: Callable[[dict[str, Any], list[bytes]], list[bytes] | None] = lambda _, frames: frames
        self.to_trainer: Callable[[dict[str, Any], list[bytes]], list[bytes] | None] = lambda _, frames: frames
        self._trainer = f"tcp://127.0.0.1:{trainer_port}"
        self._front: zmq.Socket[bytes] | None = None
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._rovers: dict[str, bytes] = {}
        self._closed_until = 0.0

    def cut(self, seconds: float) -> None:
        """Break every connection, and take none for a time."""

        def work() -> None:
            self._close_all()
            self._closed_until = time.monotonic() + seconds

        self._posted.append(work)

    def offer(self, bundle: bytes, policy_id: str, counter: int, rover_id: str = "rover-1") -> None:
        """Offer a rover a bundle in the trainer's name."""
        self.serve[policy_id] = bundle
        self.tell(Offer(policy_id, counter, len(bundle), ""), rover_id)

    def tell(self, message: Message, rover_id: str = "rover-1") -> None:
        """Send a rover a message in the trainer's name."""
        self._posted.append(lambda: self._send_front([self._rovers[rover_id], *encode(message)]))

    def _loop(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        poller = zmq.Poller()
        try:
            while not self._stop.is_set():
                self._run_posted()
                if self._front is None:
                    poller = zmq.Poller()
                    self._open(context, poller)
                    continue
                for sock, _ in poller.poll(POLL_MS):
                    if sock is self._front:
                        self._from_rovers(context, poller)
                for identity, back in self._backs.items():
                    self._from_trainer(identity, back)
        finally:
            self._close_all()

    def _open(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller) -> None:
        if time.monotonic() < self._closed_until:
            time.sleep(0.01)
            return
        front = context.socket(zmq.ROUTER)
        front.setsockopt(zmq.LINGER, 0)
        front.setsockopt(zmq.SNDHWM, 0)
        front.setsockopt(zmq.RCVHWM, 0)
        try:
            front.bind(f"tcp://127.0.0.1:{self.port}")
        except zmq.ZMQError:  # the old listener is closed by another thread of ZeroMQ's
            front.close()
            time.sleep(0.01)
            return
        self._front = front
        poller.register(front, zmq.POLLIN)

    def _close_all(self) -> None:
        for sock in (self._front, *self._backs.values()):
            if sock is not None:
                sock.close(linger=0)
        self._front = None
        self._backs = {}

    def _from_rovers(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller) -> None:
        assert self._front is not None
        for _ in range(512):
            try:
                identity, *frames = self._front.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            header = self.stream.see(frames, "to_trainer")
            if header.get("kind") == Hello.kind:
                self._rovers[header["rover_id"]] = identity
            if header.get("kind") == "chunk_request" and header["policy_id"] in self.serve:
                self._answer(identity, header)
                continue
            passed = self.to_trainer(header, frames)
            if passed is not None:
                self._back(context, poller, identity).send_multipart(passed)

    def _answer(self, identity: bytes, request: dict[str, Any]) -> None:
        start = request["offset"]
        content = self.serve[request["policy_id"]][start : start + MAX_CHUNK_BYTES]
        self._send_front([identity, *encode(Chunk(request["policy_id"], start, content))])

    def _back(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller, identity: bytes) -> zmq.Socket[bytes]:
        if identity not in self._backs:
            back = context.socket(zmq.DEALER)
            back.setsockopt(zmq.LINGER, 0)
            back.setsockopt(zmq.SNDHWM, 0)
            back.setsockopt(zmq.RCVHWM, 0)
            back.connect(self._trainer)
            self._backs[identity] = back
            poller.register(back, zmq.POLLIN)
        return self._backs[identity]

    def _from_trainer(self, identity: bytes, back: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = back.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            header = self.stream.see(frames, "to_rover")
            passed = self.to_rover(header, frames)
            if passed is not None:
                self._send_front([identity, *passed])

    def _send_front(self, frames: list[bytes]) -> None:
        if self._front is not None:
            self._front.send_multipart(frames)


class Recorder(_Threaded):
    """A trainer that welcomes rovers, takes their records, and wants nothing of them."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def _loop(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        with context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 0)
            router.bind(f"tcp://127.0.0.1:{self._port}")
            while not self._stop.is_set():
                if router.poll(POLL_MS):
                    identity, *frames = router.recv_multipart()
                    reply = self._reply(frames)
                    if reply is not None:
                        router.send_multipart([identity, *encode(reply)])

    def _reply(self, frames: list[bytes]) -> Message | None:
        header = self.stream.see(frames, "to_trainer")
        if header.get("kind") == Hello.kind:
            return Welcome(PROTOCOL_VERSION, "recorder", "run-recorder", 512, header["boot_id"])
        if record_kind(header):
            return Ack(header["boot_id"], [[header["seq"], header["seq"]]], 512)
        return None
