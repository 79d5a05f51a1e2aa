"""Targets for the two services that strangers can talk to: the control socket and the pairing port."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import select
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from aiohttp.http_exceptions import BadHttpMessage

from protocol import pairing as wire
from protocol.keys import NONCE_BYTES, commit, load_or_make, valid_public
from protocol.node.socket import ControlSocket, Request, Route
from trainerd.access import Access
from trainerd.pairing import PairingDesk, PairingLimits

ANSWER_S = 5.0
PATIENCE_S = 0.01
"""A whole request is answered sooner; to one that is cut the end must be said, which would cut the others short."""
PUBLIC = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
"""A public key of the ZeroMQ documentation."""


class Complaints(logging.Handler):
    """Keeps what libraries log as errors: an exception that nobody caught, other than that bytes are not HTTP."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.found = []

    def emit(self, log_record):
        if log_record.exc_info and isinstance(log_record.exc_info[1], BadHttpMessage):
            return
        self.found.append(self.format(log_record))


class Server:
    """A control socket in a thread of its own, with a route that gives back what it was asked."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="roverloop-fuzz-")
        self.path = Path(self.folder.name) / "control.sock"
        self.complaints = Complaints()
        for name in ("aiohttp.server", "aiohttp.web", "asyncio"):
            logging.getLogger(name).addHandler(self.complaints)
        self._ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.thread.start()
        assert self._ready.wait(10)
        atexit.register(self.stop)

    async def _run(self):
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        routes = [Route("GET", "/echo/{name}", echo, False), Route("POST", "/echo/{name}", echo, True)]
        service = ControlSocket(self.path, routes, audit=Path(self.folder.name) / "audit.jsonl")
        task = asyncio.create_task(service.run())
        await service.listening.wait()
        self._ready.set()
        await self._stopped.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def stop(self):
        self._loop.call_soon_threadsafe(self._stopped.set)
        self.thread.join(5)
        self.folder.cleanup()


async def echo(request: Request):
    return {"params": dict(request.params), "query": dict(request.query), "body": dict(request.body)}


@functools.cache
def server():
    """Start the server once."""
    return Server()


def request(data):
    """Return what is sent: the bytes behind the first one, as they are or, where that is odd, as the body of a POST."""
    body = data[1:]
    if data and data[0] & 1:
        return b"POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    return body


def control(data):
    """Send bytes to a control socket; it answers in HTTP or hangs up, nothing goes uncaught, and it lives on."""
    target = server()
    answer = asked(target.path, request(data))
    assert not answer or answer.startswith(b"HTTP/"), answer[:100]
    assert b" 500 " not in answer.partition(b"\r\n")[0], answer[:2000]
    complaints, target.complaints.found = target.complaints.found, []
    assert not complaints, complaints[0]
    assert target.thread.is_alive()


def asked(path, data):
    """Return what the server answers; it is waited for a little before the sending side is closed."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_S)
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
            select.select([client], [], [], PATIENCE_S)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(1 << 16):
                answer += piece
    return answer


def control_seeds():
    get = b"GET /echo/a%20b?x=1&y=z%20z HTTP/1.1\r\nHost: localhost\r\n\r\n"
    gzip = b"POST /echo/z HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\0"
    chunked = b"POST /echo/z HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    bodies = (b'{"a": [1, 2.5, null, "x"]}', b"[]", b"[" * 3000)
    return [*(b"\0" + each for each in (get, get + get, gzip, chunked)), *(b"\x01" + each for each in bodies)]


class Writer:
    """Where the desk's answers go."""

    def __init__(self):
        self.sent = 0
        self.is_closed = False

    def write(self, content):
        self.sent += len(content)

    async def drain(self):
        pass

    def close(self):
        self.is_closed = True

    def get_extra_info(self, _name):
        return ("192.0.2.1", 1)


@functools.cache
def desk():
    """Return (a loop, a desk that is not listening)."""
    folder = tempfile.mkdtemp(prefix="roverloop-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    keys = load_or_make(Path(folder) / "keys" / "curve.json")
    limits = PairingLimits(requests=1 << 60, requests_per_address=1 << 60)
    made = PairingDesk(
        "127.0.0.1", 0, keys, Access(Path(folder) / "rovers.json"), link_port=lambda: 5555, limits=limits
    )
    return asyncio.new_event_loop(), made


def pairing(data):
    """Let a stranger say anything at the pairing desk and leave; he is answered little, and nothing stays of him."""
    loop, made = desk()
    made._tries.clear()

    async def visit():
        reader, writer = asyncio.StreamReader(limit=4 * wire.MAX_BYTES), Writer()
        reader.feed_data(data)
        reader.feed_eof()
        await made._connected(reader, writer)
        assert writer.is_closed
        assert writer.sent < 4096

    loop.run_until_complete(visit())
    assert not made._waiting
    assert not made._connections


def pairing_seeds():
    assert valid_public(PUBLIC)
    nonce = bytes(range(NONCE_BYTES))
    ask = wire.encode("pair", version=1, rover_id="rover-1", public=PUBLIC, commit=commit(nonce, PUBLIC))
    tell = wire.encode("pair_nonce", nonce=nonce)
    older = wire.encode("pair", version=0, rover_id="rover-1", public=PUBLIC, commit=bytes(32))
    return [
        ask + tell,
        ask,
        ask + wire.encode("pair_nonce", nonce=bytes(32)),
        older,
        b"\x00\x01\x80",
        b"GET / HTTP/1.1",
    ]
