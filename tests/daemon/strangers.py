"""Peers that send what no rover sends: raw sockets with hellos and records of their own making."""

from __future__ import annotations

import pickle
import random
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import zmq
import zstandard

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import unpack
from protocol.images import CODECS, DELTA, JPEG, encode_rgb
from protocol.messages import Hello, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from protocol.spec import RobotSpec, TaskSpec

HEIGHT, WIDTH = 12, 20


class Stranger:
    """A DEALER with nothing behind it."""

    def __init__(self, port: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._context.term()

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames or (b"",))

    def answer(self, *kinds: str, deadline_s: float = 20.0) -> dict[str, Any]:
        """Return the next message of these kinds."""
        end = time.monotonic() + deadline_s
        while (left_s := end - time.monotonic()) > 0:
            if self._socket.poll(int(1000 * left_s)):
                header = unpack(self._socket.recv_multipart()[0])
                if header["kind"] in kinds:
                    return header
        raise AssertionError(f"none of {kinds} came within {deadline_s:g} s")

    def greet(self, rover_id: str, robot: RobotSpec, task: TaskSpec, boot_id: str = "boot-1") -> dict[str, Any]:
        """Say hello as a rover of this spec; return welcome or refuse."""
        self.send(*encode(hello(rover_id, robot.to_map(), task.to_map(), boot_id)))
        return self.answer("welcome", "refuse")


def hello(rover_id: str, robot: dict[str, Any], task: dict[str, Any], boot_id: str = "boot-1") -> Hello:
    return Hello(
        rover_id=rover_id,
        boot_id=boot_id,
        oldest_version=OLDEST_PROTOCOL_VERSION,
        newest_version=PROTOCOL_VERSION,
        robot=robot,
        task=task,
        codecs=list(CODECS),
        software="stranger",
        next_seq=0,
        oldest_unacked=0,
    )


def knock(port: int, content: bytes) -> None:
    """Send bytes that are not even ZeroMQ's."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(content)


class _Run:
    """Pickled, it would run a command where it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch /tmp/roverloop-was-here",)


PICKLES = tuple(pickle.dumps(_Run(), protocol) for protocol in range(6))


def nonsense(seed: int) -> Iterator[tuple[bytes, ...]]:
    """Return messages that are none, equal for equal seeds; each must be counted."""
    draw = random.Random(seed)
    for _ in range(60):
        yield tuple(draw.randbytes(draw.randrange(1, 300)) for _ in range(draw.randrange(1, 5)))
    for each in PICKLES:
        yield (each,)
    yield (b"",)
    yield (msgpack.packb({"kind": "step", "filler": b"x" * (70 << 10)}),)
    yield (msgpack.packb(["step"]),)
    yield (msgpack.packb({1: 2}),)
    yield (msgpack.packb({"kind": "nobody"}),)
    yield (msgpack.packb({"kind": ["step"]}),)
    yield (b"\x81\xa4kind" + b"\x91" * 5000,)
    yield (b"\xdd\xff\xff\xff\xff" + b"\xc0" * 100,)
    yield (msgpack.packb({"kind": "hello", "rover_id": 7}),)
    yield (msgpack.packb({"kind": "ping"}),) * 70


def records(rover_id: str, boot_id: str = "boot-1") -> Iterator[tuple[bytes, ...]]:
    """Return steps of an admitted rover that are wrong in one way each, ``seq`` rising from 0."""
    good_jpeg, good_depth = encode_rgb(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), _depth(np.zeros((HEIGHT, WIDTH)))
    images = [["observation.images.front", JPEG], ["observation.depth.front", DELTA]]
    pixels = HEIGHT * WIDTH * 2
    unstated = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(40 << 20))
    lying = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20))
    cases: list[tuple[dict[str, Any], list[bytes]]] = [
        ({}, [_jpeg_of_size(65535, 65535), good_depth]),
        ({}, [_jpeg_of_size(WIDTH, HEIGHT), good_depth]),
        ({}, [good_jpeg[:40], good_depth]),
        ({}, [b"\xff\xd8" + b"\xff" * 400, good_depth]),
        ({}, [PICKLES[4], good_depth]),
        ({}, [good_jpeg, lying]),
        ({}, [good_jpeg, unstated]),
        ({}, [good_jpeg, PICKLES[2]]),
        ({}, [good_jpeg, good_depth[: len(good_depth) // 2]]),
        ({}, [good_jpeg, _compressed(bytes(pixels - 2))]),
        ({}, [good_jpeg, bytes(1 << 20)]),
        ({}, [good_jpeg]),
        ({}, [good_jpeg, good_depth, good_depth]),
        ({"blobs": [["observation.images.rear", JPEG], images[1]]}, [good_jpeg, good_depth]),
        ({"blobs": [images[0], images[0]]}, [good_jpeg, good_jpeg]),
        ({"blobs": [["observation.images.front", "pickle"], images[1]]}, [good_jpeg, good_depth]),
        ({"state": b"\0" * 4}, [good_jpeg, good_depth]),
        ({"state": PICKLES[3]}, [good_jpeg, good_depth]),
        ({"action": b""}, [good_jpeg, good_depth]),
        ({"reward": "much"}, [good_jpeg, good_depth]),
        ({"source": "nobody"}, [good_jpeg, good_depth]),
        ({"episode_step": -1}, [good_jpeg, good_depth]),
        ({"tick": 1 << 63}, [good_jpeg, good_depth]),
        ({"behaviour": {"kind": "squashed_gaussian", "u": b"1"}}, [good_jpeg, good_depth]),
        ({"behaviour": [1, 2]}, [good_jpeg, good_depth]),
        ({"reward_terms": {"a": "b"}}, [good_jpeg, good_depth]),
    ]
    for seq, (changes, frames) in enumerate(cases):
        header = {**_step(rover_id, boot_id, seq), "blobs": images, **changes}
        yield (msgpack.packb(header), *frames)


def good_step(rover_id: str, boot_id: str, seq: int, **changes: Any) -> tuple[bytes, ...]:
    """Return a step that is as it should be, but for the changes."""
    return (msgpack.packb({**_step(rover_id, boot_id, seq), **changes}),)


def _step(rover_id: str, boot_id: str, seq: int) -> dict[str, Any]:
    return {
        "kind": "step",
        "rover_id": rover_id,
        "boot_id": boot_id,
        "seq": seq,
        "episode_id": 1,
        "episode_step": seq,
        "decision_id": seq,
        "tick_in_decision": 0,
        "state": bytes(12),
        "task": bytes(12),
        "in_flight": bytes(8),
        "action": bytes(8),
        "stamp_ns": seq,
        "source": "policy",
        "reward": 0.1,
        "blobs": [],
    }


def _depth(values: np.ndarray) -> bytes:
    return _compressed(values.astype(np.int16).tobytes())


def _compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(content)


def _jpeg_of_size(height: int, width: int) -> bytes:
    """Return a JPEG whose header says another size than it has."""
    content = bytearray(encode_rgb(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)
