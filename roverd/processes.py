"""The two kinds of child processes of roverd, control and policy: start them, wire them up, notice their death."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgpack

from protocol.errors import RoverError
from roverd.control import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from roverd.controls import Controls

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 3.0
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ProcessError(RoverError):
    """A child process did not start, died, or did not answer."""


class NotRunningError(ProcessError):
    """A request reached no process: the one before had ended already, and is started again."""


def _spawn(module: str, *sockets: int) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (a terminal's Ctrl-C must not reach it before roverd says stop).

    Called from the main thread only: PR_SET_PDEATHSIG fires when the forking thread ends.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, sockets)],
        pass_fds=sockets,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
        start_new_session=True,
    )


class Child:
    """One child with its link; ``on_message`` gets what it sends, ``on_death`` is called once at EOF."""

    def __init__(self, name: str, module: str, config: dict[str, Any], *fds: int) -> None:
        """Start the process, which gets its link and ``fds`` as words of its command line; the caller closes those."""
        self.name = name
        self.report: dict[str, Any] = {}
        """What the kernel granted it (see roverd.control.realtime), once it has started."""
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = _spawn(module, theirs.fileno(), *fds)
        theirs.close()  # else this process would keep the child's end open and EOF would never come
        self.link.send(msgpack.packb(config))
        self.link.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._on_message: Callable[[bytes], None] = lambda _: None
        self._on_death: Callable[[], None] = lambda: None
        self.is_alive = True
        self._loop.add_reader(self.link.fileno(), self._readable)

    async def started(self) -> None:
        """Wait until the child serves; raises ProcessError when it dies or hangs instead."""
        # not wait_for: before Python 3.12 it can swallow a cancellation (python/cpython#81839)
        done, _ = await asyncio.wait([self._ready], timeout=START_TIMEOUT_S)
        if not done:
            raise ProcessError(f"process {self.name}: not ready after {START_TIMEOUT_S} s")
        self._ready.result()

    def listen(self, on_message: Callable[[bytes], None], on_death: Callable[[], None]) -> None:
        """Set who hears messages and the death of the child."""
        self._on_message, self._on_death = on_message, on_death

    def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send a message, with descriptors if there are any; a dead child is noticed at its EOF, not here."""
        try:
            if fds:
                socket.send_fds(self.link, [message], list(fds))
            else:
                self.link.send(message)
        except OSError:  # BlockingIOError among them: a child that stands still, and who watches it ends that
            return

    def _readable(self) -> None:
        try:
            message = self.link.recv(wire.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._died()
        elif not self._ready.done() and message[0] == wire.READY:
            self.report = msgpack.unpackb(message[1:])
            self._ready.set_result(None)
        else:
            self._on_message(message)

    def drain(self) -> None:
        """Read what a child that is gone sent before; nothing that it might still say is heard afterwards."""
        while self.is_alive:
            try:
                ready = select.select([self.link], [], [], 0)[0]
            except (OSError, ValueError):
                break
            if not ready:
                break
            self._readable()
        self.listen(lambda _: None, lambda: None)

    def _died(self) -> None:
        self._loop.remove_reader(self.link.fileno())
        self.is_alive = False
        if not self._ready.done():
            self._ready.set_exception(ProcessError(f"process {self.name}: died at start; its error is above"))
        self._on_death()

    async def stop(self) -> None:
        """End the child: shutdown of the link first, SIGKILL after a while."""
        if self.is_alive:
            self.is_alive = False
            self._loop.remove_reader(self.link.fileno())
        if not self._ready.done():
            self._ready.cancel()
        self.link.close()
        for _ in range(int(STOP_TIMEOUT_S * 100)):
            if self.process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        self.process.kill()
        self.process.wait()


class PolicyChild:
    """A policy process: one request at a time, its answer awaited."""

    def __init__(self, slot: int, ring_fd: int, config: dict[str, Any], controls: Controls) -> None:
        """Start the process and attach it to control at its slot."""
        self._slot, self._controls = slot, controls
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.child = Child(f"policy {slot}", "roverd.policy.process", config, theirs.fileno(), ring_fd)
        theirs.close()
        self._hand_over(ours)
        self.child.listen(self._answered, self._died)
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self.on_death: Callable[[], None] = lambda: None

    def attach(self) -> None:
        """Bring the process together with a control that is new; it keeps what it has loaded."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.child.send(bytes([wire.ATTACH]), (theirs.fileno(),))
        theirs.close()
        self._hand_over(ours)

    def _hand_over(self, control_end: socket.socket) -> None:
        self._controls.send(bytes([wire.ATTACH, self._slot]), (control_end.fileno(),))
        control_end.close()

    async def request(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            NotRunningError: there is no process that could have got it.
            ProcessError: the process died over it, or hangs and was killed.

        """
        if not self.child.is_alive or self.child.process.poll() is not None:  # its EOF may not be noticed yet
            raise NotRunningError(f"process {self.child.name}: it is not running")
        self._answer = asyncio.get_running_loop().create_future()
        self.child.send(msgpack.packb(request))
        done, _ = await asyncio.wait([self._answer], timeout=REQUEST_TIMEOUT_S)
        if not done:
            self.child.process.kill()
            raise ProcessError(f"process {self.child.name}: no answer in {REQUEST_TIMEOUT_S} s, killed")
        return self._answer.result()

    def _answered(self, message: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(msgpack.unpackb(message))

    def _died(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ProcessError(f"process {self.child.name}: died while it loaded"))
        self.on_death()
