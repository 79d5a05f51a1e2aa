"""Services whose ZeroMQ socket belongs to a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import cast

import zmq

JOIN_S = 4.0


class SocketThread:
    """A thread that binds a socket and serves it: ``start`` waits until it is bound, ``run`` is the service.

    A subclass makes its socket in ``_serve_socket``, calls ``_tell_bound`` once it listens, goes on until ``stop``, and
    closes what it made.
    """

    name = ""
    port = 0
    """Where it listens, once started."""

    def __init__(self) -> None:
        """Prepare; nothing listens yet."""
        self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        self._bound: Future[int] = Future()
        self._ended: Future[None] = Future()

    def start(self) -> None:
        """Bind and begin; raises what kept it from that."""
        self._thread.start()
        self.port = self._bound.result()

    async def run(self) -> None:
        """Go on until cancelled; raises what ended the thread."""
        try:
            await asyncio.shield(asyncio.wrap_future(self._ended))
        finally:
            self.stop()
            await asyncio.to_thread(self._thread.join, JOIN_S)

    def stop(self) -> None:
        """Let the thread end."""
        raise NotImplementedError

    def _serve_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        raise NotImplementedError

    def _tell_bound(self, listener: zmq.Socket[bytes]) -> None:
        endpoint = cast("bytes", listener.getsockopt(zmq.LAST_ENDPOINT))
        self._bound.set_result(int(endpoint.decode().rstrip("\0").rpartition(":")[2]))

    def _main(self) -> None:
        context = zmq.Context()
        try:
            self._serve_socket(context)
            self._ended.set_result(None)
        except Exception as error:  # noqa: BLE001 - the service, or start, raises it in the loop thread
            (self._ended if self._bound.done() else self._bound).set_exception(error)
        finally:
            context.term()
