"""The policy process: it loads what roverd names, proves it, and answers control's ticks.

Start: ``python -m roverd.policy.process LINK_FD CONTROL_FD RING_FD``. The first message on the link is the
configuration; READY, with what the kernel granted behind it, is the first answer. Then, on the link:

    {"do": "load", "path": ..}                      load and prove a bundle
    {"do": "controller", "name": .., "seed": ..}    make a scripted controller
    {"do": "ping"}                                  tell that it lives, and what it counted
    ATTACH with a descriptor                        this is the socket of a new control

Each request is answered by one map with ``ok`` and, if refused, ``reason``. What drove before stays when a load fails.
When control's socket ends, the loaded policy is kept and the next ATTACH awaited; when the link ends, so does this.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import statistics
import struct
import sys
import time
from collections import Counter, deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from plugins.manager import PluginManager
from protocol.bundle import unpack_bundle
from protocol.errors import RoverError
from protocol.node.log import RepeatLimiter
from protocol.spec import RobotSpec, TaskSpec
from roverd.control import realtime, wire
from roverd.control.ring import RingReader
from roverd.policy.runner import ControllerRunner, InferenceError, OnnxRunner, Runner

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_PDEATHSIG = 1
COLLECT_EVERY = 100
"""Proposals between two collections: some runtimes leave reference cycles behind at each inference (42 kB of them)."""
RECENT = 256
"""Proposals whose latencies a ping tells of."""


class PolicyProcess:
    """Serve one runner until roverd closes the link."""

    def __init__(self, link: socket.socket, control: socket.socket, ring_fd: int, config: dict[str, Any]) -> None:
        """Take the configuration of roverd: robot and task spec, seed, and whether to ask for punctuality."""
        self._robot = RobotSpec.from_map(config["robot"])
        self._task = TaskSpec.from_map(config["task"])
        self._seed = int(config["seed"])
        self._wants_punctuality = bool(config["realtime"])
        self._is_fifo = False
        self._layout = wire.Layout(len(self._robot.action), len(self._robot.state) + len(self._task.features))
        self._link = link
        self._control: socket.socket | None = control
        self._ring = RingReader(ring_fd, self._robot.cameras)
        self._runner: Runner | None = None
        self._repeats = RepeatLimiter()
        self._forget()

    def _forget(self) -> None:
        """Begin to count anew: another runner answers."""
        self._proposals = 0
        self._failures: Counter[str] = Counter()
        self._last_failure = ""
        self._latencies_ms: deque[float] = deque(maxlen=RECENT)

    def run(self) -> None:
        """Answer ticks and requests until roverd is gone."""
        report = self._settle()
        try:
            self._link.send(bytes([wire.READY]) + msgpack.packb(report))
            while True:
                sockets = [self._link] if self._control is None else [self._control, self._link]
                ready, _, _ = select.select(sockets, [], [])
                if self._control is not None and self._control in ready:
                    self._answer_tick()
                if self._link in ready and not self._answer_request():
                    return
        except OSError:  # roverd was stopped meanwhile
            return

    def _settle(self) -> dict[str, Any]:
        if not self._wants_punctuality:
            return realtime.ordinary()
        report = realtime.apply(realtime.POLICY_PRIORITY, realtime.POLICY_NICE, locks_memory=False)
        self._is_fifo = bool(report["fifo"])
        return report

    # -- ticks ------------------------------------------------------------------------------------------------------

    def _answer_tick(self) -> None:
        message = self._newest_tick()
        if not message:
            return
        proposal = self._propose(self._layout.unpack_tick(message))
        assert self._control is not None  # noqa: S101 - the tick came from it
        try:
            self._control.send(proposal)
        except OSError:
            self._lose_control()
        self._proposals += 1
        if self._proposals % COLLECT_EVERY == 0:
            gc.collect()  # now that nobody waits

    def _propose(self, tick: wire.Tick) -> bytes:
        """Return a PROPOSAL message; one of nothing, so that control need not wait, where there is no action."""
        kind, reason = "no_policy", "nothing is loaded"
        if self._runner is not None:
            try:
                proposal = self._runner.propose(tick, self._ring.slots[tick.slot])
                packed = self._layout.pack_proposal(proposal)
            except InferenceError as error:
                kind, reason = error.kind, str(error)
            except (ValueError, ArithmeticError, struct.error) as error:
                kind, reason = "input", str(error)
            else:
                self._latencies_ms.append(proposal.latency_ns * 1e-6)
                return packed
        self._note_failure(tick.tick, kind, reason)
        zero = (0.0,) * self._layout.actions
        nothing = wire.Proposal(wire.NOTHING, tick.tick, tick.decision, 1, 0, 0, 0.0, zero, zero, zero, zero)
        return self._layout.pack_proposal(nothing)

    def _note_failure(self, tick: int, kind: str, reason: str) -> None:
        self._failures[kind] += 1
        self._last_failure = reason
        if count := self._repeats.count(kind):
            print(f"policy: tick {tick}: {reason} ({kind}, {count} times)", file=sys.stderr, flush=True)

    def _newest_tick(self) -> bytes:
        """Return the newest waiting tick, empty where there is none any more because control is gone."""
        newest = b""
        while self._control is not None:
            try:
                message = self._control.recv(wire.MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                message = b""
            if not message:
                self._lose_control()
                return b""
            newest = message
        return newest

    def _lose_control(self) -> None:
        """Wait for the next control: its spare brings a new socket."""
        if self._control is not None:
            self._control.close()
        self._control = None

    # -- requests ---------------------------------------------------------------------------------------------------

    def _answer_request(self) -> bool:
        """Answer one message on the link; return False at its end."""
        message, fds, _, _ = socket.recv_fds(self._link, wire.MAX_MESSAGE_BYTES, 1)
        if not message:
            return False
        if message[0] == wire.ATTACH:
            self._lose_control()
            self._control = socket.socket(fileno=fds[0])
            return True
        request = msgpack.unpackb(message)
        answer = self._tell() if request["do"] == "ping" else self._load(request)
        self._link.send(msgpack.packb(answer))
        return True

    def _tell(self) -> dict[str, Any]:
        latencies_ms = self._latencies_ms or [0.0]
        return {
            "ok": True,
            "proposals": self._proposals,
            "failures": dict(self._failures),
            "last_failure": self._last_failure[:400],
            "latency_ms": statistics.median(latencies_ms),
            "latency_ms_max": max(latencies_ms),
        }

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        try:
            with self._unpunctual():
                runner = self._make(request)
            latency_ms = runner.warm_up()
        except (RoverError, OSError, InferenceError) as error:
            return {"ok": False, "reason": str(error), "seconds": time.monotonic() - start}
        self._runner = runner
        self._forget()
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # later collections look at what came since, which takes no time
        return {
            "ok": True,
            "golden_error": runner.golden_error,
            "latency_ms": latency_ms,
            "counter": runner.counter,
            "seconds": time.monotonic() - start,
        }

    @contextmanager
    def _unpunctual(self) -> Iterator[None]:
        """Load as an ordinary process: seconds at real-time priority would take them from the one that drives."""
        if not self._is_fifo:
            yield
            return
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        try:
            yield
        finally:
            punctual = os.sched_param(realtime.POLICY_PRIORITY)
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, punctual)

    def _make(self, request: dict[str, Any]) -> Runner:
        if request["do"] == "controller":
            plugins = PluginManager(groups=("controllers",))
            controller = plugins.controller(request["name"]).create(self._robot, self._task, self._seed)
            return ControllerRunner(controller, self._robot, int(request.get("seed", self._seed)))
        return OnnxRunner(unpack_bundle(Path(request["path"]).read_bytes()), self._robot, self._task, self._seed)


def main() -> None:
    """Read the configuration from the inherited link and serve."""
    realtime.ignore_group_signals()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    link = socket.socket(fileno=int(sys.argv[1]))
    control = socket.socket(fileno=int(sys.argv[2]))
    config = msgpack.unpackb(link.recv(wire.MAX_MESSAGE_BYTES))
    PolicyProcess(link, control, int(sys.argv[3]), config).run()
    os._exit(0)


if __name__ == "__main__":
    main()
