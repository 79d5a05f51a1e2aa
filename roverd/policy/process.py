"""The policy process: it loads what roverd names, proves it, and answers control's ticks.

Start: ``python -m roverd.policy.process LINK_FD CONTROL_FD RING_FD``. The first message on the link is the
configuration. Requests on the link are msgpack maps ``{"do": "load", "path": ..}`` or ``{"do": "controller", "name":
..}``; each is answered by one map with ``ok`` and, if refused, ``reason``. What drove before stays when a load fails.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from plugins.manager import PluginManager
from protocol.bundle import unpack_bundle
from protocol.errors import RoverError
from protocol.spec import RobotSpec, TaskSpec
from roverd.control import wire
from roverd.control.ring import RingReader
from roverd.policy.runner import ControllerRunner, OnnxRunner, Runner

PR_SET_PDEATHSIG = 1


class PolicyProcess:
    """Serve one runner until a socket closes."""

    def __init__(self, link: socket.socket, control: socket.socket, ring_fd: int, config: dict[str, Any]) -> None:
        """Take the configuration of roverd (robot and task spec, seed)."""
        self._robot = RobotSpec.from_map(config["robot"])
        self._task = TaskSpec.from_map(config["task"])
        self._seed = int(config["seed"])
        self._layout = wire.Layout(len(self._robot.action), len(self._robot.state) + len(self._task.features))
        self._link, self._control = link, control
        self._ring = RingReader(ring_fd, self._robot.cameras)
        self._runner: Runner | None = None

    def run(self) -> None:
        """Answer ticks and requests until roverd or control is gone."""
        try:
            self._link.send(bytes([wire.READY]))
        except OSError:  # roverd was stopped meanwhile
            return
        while True:
            ready, _, _ = select.select([self._control, self._link], [], [])
            if self._control in ready and not self._answer_tick():
                return
            if self._link in ready and not self._answer_request():
                return

    def _answer_tick(self) -> bool:
        message = self._newest_tick()
        if message is None:
            return False
        try:
            self._control.send(self._propose(self._layout.unpack_tick(message)))
        except OSError:
            return False
        return True

    def _propose(self, tick: wire.Tick) -> bytes:
        """Return a PROPOSAL message; one of nothing, so that control need not wait, where there is no action."""
        if self._runner is not None:
            try:
                return self._layout.pack_proposal(self._runner.propose(tick, self._ring.slots[tick.slot]))
            except (ValueError, ArithmeticError, struct.error) as error:  # a non-finite input, a controller's mistake
                print(f"policy: tick {tick.tick}: {error}", file=sys.stderr)
        zero = (0.0,) * self._layout.actions
        nothing = wire.Proposal(wire.NOTHING, tick.tick, tick.decision, 1, 0, 0, 0.0, zero, zero, zero, zero)
        return self._layout.pack_proposal(nothing)

    def _newest_tick(self) -> bytes | None:
        newest = b""
        while True:
            try:
                message = self._control.recv(wire.MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return newest or None
            except OSError:
                return None
            if not message:
                return None
            newest = message

    def _answer_request(self) -> bool:
        try:
            message = self._link.recv(wire.MAX_MESSAGE_BYTES)
        except OSError:
            return False
        if not message:
            return False
        request = msgpack.unpackb(message)
        start = time.monotonic()
        try:
            self._runner = runner = self._load(request)
            answer: dict[str, Any] = {
                "ok": True,
                "golden_error": runner.golden_error,
                "latency_ms": runner.latency_ms,
                "counter": runner.counter,
            }
        except (RoverError, OSError) as error:
            answer = {"ok": False, "reason": str(error)}
        answer["seconds"] = time.monotonic() - start
        try:
            self._link.send(msgpack.packb(answer))
        except OSError:  # roverd was stopped while the policy loaded
            return False
        gc.collect()
        return True

    def _load(self, request: dict[str, Any]) -> Runner:
        if request["do"] == "controller":
            plugins = PluginManager(groups=("controllers",))
            controller = plugins.controller(request["name"]).create(self._robot, self._task, self._seed)
            return ControllerRunner(controller, self._robot, int(request.get("seed", self._seed)))
        return OnnxRunner(unpack_bundle(Path(request["path"]).read_bytes()), self._robot, self._task, self._seed)


def main() -> None:
    """Read the configuration from the inherited link and serve."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    link = socket.socket(fileno=int(sys.argv[1]))
    control = socket.socket(fileno=int(sys.argv[2]))
    config = msgpack.unpackb(link.recv(wire.MAX_MESSAGE_BYTES))
    PolicyProcess(link, control, int(sys.argv[3]), config).run()
    os._exit(0)


if __name__ == "__main__":
    main()
