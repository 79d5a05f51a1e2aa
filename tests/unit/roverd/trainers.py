"""A trainer in a few lines for the uplink's tests: a ROUTER in the event loop that answers as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import zmq

from protocol import messages
from protocol.framing import unpack
from protocol.keys import KeyPair
from roverd.segment import BootFacts
from roverd.settings import LinkSettings, SpoolSettings
from roverd.spool import Spool
from roverd.uplink import Uplink

if TYPE_CHECKING:
    from pathlib import Path

BOOT = "b" * 16


def key_pair() -> KeyPair:
    return KeyPair(*(half.decode() for half in zmq.curve_keypair()))


async def until(condition, deadline_s: float = 8.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)


class Trainer:
    """Collects what rovers say; ``allowed`` holds the public keys that are let in."""

    def __init__(self, keys: KeyPair | None = None, *, allowed: set[str] | None = None) -> None:
        self.keys, self.allowed = keys, allowed
        self.heard: list[messages.Message] = []
        self.records: list[dict] = []
        self.identities: set[bytes] = set()
        self.received: dict[str, list[list[int]]] = {}
        self.wants = True
        self.acknowledges = self.answers = True
        self.credit = 64
        self.port = 0

    async def __aenter__(self):
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.REP)
        if self.allowed is not None:
            self.zap.bind("inproc://zeromq.zap.01")
        self.listen()
        self.task = asyncio.ensure_future(self._serve())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.context.destroy(linger=0)

    def listen(self) -> None:
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        if self.keys is not None:
            self.router.curve_server = True
            self.router.curve_secretkey = self.keys.secret.encode()
            self.router.setsockopt(zmq.ZAP_DOMAIN, b"rover")
        if self.port:
            self.router.bind(f"tcp://127.0.0.1:{self.port}")
        else:
            self.port = self.router.bind_to_random_port("tcp://127.0.0.1")

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        while True:
            with contextlib.suppress(zmq.Again):
                while self.allowed is not None:
                    self._admit(self.zap.recv_multipart(zmq.NOBLOCK))
            with contextlib.suppress(zmq.Again):
                while True:
                    self._hear(*self.router.recv_multipart(zmq.NOBLOCK))
            await asyncio.sleep(0.002)

    def _admit(self, request: list[bytes]) -> None:
        from zmq.utils import z85

        is_known = z85.encode(request[6]).decode() in self.allowed
        status = (b"200", b"OK") if is_known else (b"400", b"no")
        self.zap.send_multipart([b"1.0", request[1], *status, b"", b""])

    def _hear(self, identity: bytes, *frames: bytes) -> None:
        self.identities.add(identity)
        self.identity = identity
        header = unpack(frames[0])
        if header["kind"] in {"step", "episode_end"}:
            self.records.append(header)
            if self.acknowledges and self.answers:
                self.acknowledge(header["boot_id"], header["seq"], header["seq"])
            return
        message = messages.decode(header, frames[1:])
        self.heard.append(message)
        if not self.answers:
            return
        if isinstance(message, messages.Hello):
            backlog = {each["boot_id"]: self.received.get(each["boot_id"], []) for each in message.backlog}
            own = self.received.get(message.boot_id, [])
            self.say(
                messages.Welcome(1, "trainerd", "run", self.credit, message.boot_id, own, backlog if self.wants else {})
            )
        elif isinstance(message, messages.Ping):
            self.say(messages.Pong(message.sent_ns))

    def acknowledge(self, boot_id: str, first: int, last: int) -> None:
        self.say(messages.Ack(boot_id, [[first, last]], self.credit))

    def say(self, message: messages.Message) -> None:
        self.router.send_multipart([self.identity, *messages.encode(message)], zmq.NOBLOCK)

    def of(self, kind: type) -> list:
        return [each for each in self.heard if isinstance(each, kind)]

    def seqs(self, boot_id: str = BOOT) -> list[int]:
        return [each["seq"] for each in self.records if each["boot_id"] == boot_id]


def record(boot_id: str, seq: int) -> list[bytes]:
    from protocol.framing import pack

    return [pack({"kind": "step", "boot_id": boot_id, "seq": seq}), b"image" * 20]


class Rover:
    """A spool and an uplink, without a robot."""

    def __init__(self, folder: Path, trainer: str, *, boot: int = 9, boot_id: str = BOOT, **options) -> None:
        keys, trainer_public = options.pop("keys", None), options.pop("trainer_public", "")
        options = {"curve": keys is not None, "ping_s": 0.1, "dead_after_s": 0.6, "reconnect_max_s": 0.1, **options}
        self.facts = BootFacts("rover-1", boot_id, boot, "specs", 7)
        self.spool = Spool(SpoolSettings(sync_ms=10.0), folder, self.facts)
        self.seq = 0
        self.uplink = Uplink(
            LinkSettings(trainer=trainer, **options),
            self.spool,
            self.hello,
            lambda: messages.Ping(time.monotonic_ns()),
            keys=keys,
            trainer_public=trainer_public,
        )

    def hello(self) -> messages.Hello:
        return messages.Hello(
            "rover-1", self.facts.boot_id, 1, 1, {}, {}, [], "test", self.seq, 0, backlog=self.spool.offer()
        )

    async def __aenter__(self):
        self.tasks = [asyncio.ensure_future(each.run()) for each in (self.spool, self.uplink)]
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        for task in reversed(self.tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for task in self.tasks:
            if not task.cancelled() and task.exception():
                raise task.exception()

    def drive(self, count: int) -> None:
        for _ in range(count):
            self.uplink.send_record(self.seq, record(self.facts.boot_id, self.seq))
            self.seq += 1

    async def linked(self) -> None:
        await until(lambda: self.uplink.is_linked)
