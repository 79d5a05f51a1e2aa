"""Two network namespaces with an emulated network between them: packets that are late, lost, doubled or out of order.

Each namespace has a TUN device; a thread carries the packets from one to the other. Needs root, but no kernel module
for emulation. TCP, ZeroMQ and the daemons run in the namespaces as they are: ``in_rover`` and ``in_trainer`` prefix a
command.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import threading
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.mounts import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
DEVICE = "rl0"
ROVER_ADDRESS, TRAINER_ADDRESS = "10.213.0.1", "10.213.0.2"
MTU = 1500
LINE_PACKETS = 1000
"""What waits at most for its turn at a rate; more is dropped, as at a router."""


@dataclass
class Lane:
    """One direction; plain values, which any thread may set at any time."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """At random on top of the delay: packets overtake each other."""
    loss: float = 0.0
    """Share of packets, 0 to 1."""
    duplicate: float = 0.0
    rate_bytes_per_s: float = 0.0
    is_cut: bool = False
    passed: int = 0
    dropped: int = 0


class Netem:
    """A context manager; both directions begin without a fault."""

    def __init__(self, seed: int = 0) -> None:
        self.up, self.down = Lane(), Lane()
        mark = uuid.uuid4().hex[:6]
        self._names = (f"rl-rover-{mark}", f"rl-train-{mark}")
        self.in_rover = ("ip", "netns", "exec", self._names[0])
        self.in_trainer = ("ip", "netns", "exec", self._names[1])
        self._draw = random.Random(seed)
        self._ends: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="netem", daemon=True)

    def __enter__(self) -> Self:
        try:
            for name, own, other in (
                (self._names[0], ROVER_ADDRESS, TRAINER_ADDRESS),
                (self._names[1], TRAINER_ADDRESS, ROVER_ADDRESS),
            ):
                run("ip", "netns", "add", name)
                self._ends.append(_tun_in(name))
                inside = ("ip", "-n", name)
                run(*inside, "addr", "add", own, "peer", other, "dev", DEVICE)
                run(*inside, "link", "set", DEVICE, "mtu", str(MTU), "up")
                run(*inside, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(5.0)
        self._remove()

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Let processes that this thread starts meanwhile live in a namespace (``rover`` or ``trainer``)."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._names[("rover", "trainer").index(name)])
            yield
        finally:
            _set_namespace(own)
            os.close(own)

    def heal(self) -> None:
        for each in (self.up, self.down):
            each.delay_s = each.jitter_s = each.loss = each.duplicate = each.rate_bytes_per_s = 0.0
            each.is_cut = False

    def _remove(self) -> None:
        for end in self._ends:
            os.close(end)
        self._ends = []
        for name in self._names:
            with contextlib.suppress(OSError):
                run("ip", "netns", "del", name)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        free_at = {self._ends[0]: 0.0, self._ends[1]: 0.0}
        ways = {self._ends[0]: (self.up, self._ends[1]), self._ends[1]: (self.down, self._ends[0])}
        number = 0
        while not self._stop.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, end, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):  # its device went down: the packet is lost
                    os.write(end, packet)
            wait_s = min(0.05, waiting[0][0] - now) if waiting else 0.05
            for source in select.select(self._ends, [], [], max(0.0, wait_s))[0]:
                packet = os.read(source, MTU + 64)
                way, target = ways[source]
                for due in self._due(way, len(packet), free_at, source):
                    number += 1
                    heapq.heappush(waiting, (due, number, target, packet))

    def _due(self, way: Lane, size: int, free_at: dict[int, float], source: int) -> list[float]:
        """Return when a packet arrives: never, once or twice."""
        now = time.monotonic()
        start = max(now, free_at[source])
        rate = way.rate_bytes_per_s
        if way.is_cut or self._draw.random() < way.loss or (rate and (start - now) * rate > LINE_PACKETS * MTU):
            way.dropped += 1
            return []
        free_at[source] = start = start + (size / rate if rate else 0.0)
        way.passed += 1
        count = 2 if self._draw.random() < way.duplicate else 1
        return [start + way.delay_s + self._draw.uniform(0, way.jitter_s) for _ in range(count)]


def _tun_in(name: str) -> int:
    """Make a TUN device in a namespace and return its file; a thread enters the namespace for it and ends there."""
    made: list[int | BaseException] = []

    def work() -> None:
        try:
            _enter(name)
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
            made.append(end)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


def _enter(name: str) -> None:
    with Path(f"/run/netns/{name}").open() as namespace:
        _set_namespace(namespace.fileno())


def _set_namespace(descriptor: int) -> None:
    """Move this thread; the others stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: cannot enter a network namespace")


@cache
def why_not() -> str:
    """Return why no network can be emulated here; empty where it can."""
    if os.geteuid() != 0:
        return "an emulated network needs root for network namespaces"
    if shutil.which("ip") is None:
        return "an emulated network needs the tool ip"
    try:
        with Netem():
            return ""
    except OSError as error:
        return f"an emulated network cannot be made on this machine: {error}"
