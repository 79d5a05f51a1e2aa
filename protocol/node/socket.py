"""The control socket: HTTP over a Unix socket, one route table, an audit log; and its client."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import http.client
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from protocol.errors import RoverError
from protocol.framing import MAX_DEPTH, is_deeper
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

log = get_logger()

_PEER = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_MODE = 0o660


class ControlSocketError(RoverError):
    """The control socket cannot be opened: another daemon has it, or something else lies at its path."""


class RequestError(RoverError):
    """A handler refuses a request; the message is for the person who asked, ``status`` is an HTTP status 4xx."""

    def __init__(self, status: int, message: str) -> None:
        """Refuse with a status and a reason."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What a handler gets to know, whatever way the request came in."""

    params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    uid: int = -1
    pid: int = -1
    method: str = "GET"
    path: str = "/"


Handler = Callable[[Request], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Route:
    """One entry of a route table; ``path`` may have ``{name}`` parts. Mutating routes are written to the audit log."""

    method: str
    path: str
    handler: Handler
    mutating: bool


async def answer(route: Route, request: Request) -> tuple[int, dict[str, Any]]:
    """Call a handler inside the wall that keeps its errors from the daemon; give the status and the JSON answer."""
    try:
        payload = await route.handler(request)
    except RequestError as error:
        return error.status, {"ok": False, "error": str(error)}
    except Exception as error:
        hint = "a request failed, the daemon goes on"
        log.exception("request.failed", method=request.method, path=request.path, hint=hint)
        return 500, {"ok": False, "error": f"{request.method} {request.path}: {type(error).__name__}: {error}"}
    return 200, {"ok": True, **payload}


class AuditLog:
    """JSON lines with every mutating command: time, uid, pid, method, path, body. Written before it is carried out."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``, which is made on the first write."""
        self._path = path

    def write(self, request: Request) -> None:
        """Append one command; a disk that refuses is logged and does not stop the command."""
        facts = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "uid": request.uid, "pid": request.pid}
        facts |= {"method": request.method, "path": request.path, "body": dict(request.body)}
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:
            log.error("audit.write_failed", path=str(self._path), error=str(error), hint="commands go unrecorded")  # noqa: TRY400


class ControlSocket:
    """The service that answers on the control socket. ``listening`` is set once it does."""

    name = "control_socket"

    def __init__(
        self,
        path: Path,
        routes: Sequence[Route],
        *,
        audit: Path | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        """Serve ``routes`` at ``path``; with ``audit`` mutating commands are appended to that file.

        ``listener`` is the socket that systemd opened at the path; it stays there when the daemon ends.
        """
        self.listening = asyncio.Event()
        self._listener = listener
        self._path = path
        self._routes = routes
        self._audit = AuditLog(audit) if audit is not None else None

    async def run(self) -> None:
        """Listen until cancelled, then remove the socket unless it is systemd's."""
        listener = self._listener or _bind(self._path)
        inode = self._path.lstat().st_ino if self._listener is None else None
        application = web.Application(middlewares=[_in_json])
        for route in self._routes:
            application.router.add_route(route.method, route.path, self._endpoint(route))
        # nobody compresses a request here, and what is inflated could be a bomb
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, auto_decompress=False)
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            self.listening.set()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                if inode is not None and self._path.lstat().st_ino == inode:
                    self._path.unlink()

    def _endpoint(self, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def endpoint(http_request: web.Request) -> web.Response:
            request = await read_request(http_request)
            if self._audit is not None and route.mutating:
                self._audit.write(request)
            status, payload = await answer(route, request)
            return _json(status, payload)

        return endpoint


async def read_request(http_request: web.Request) -> Request:
    """Read an HTTP request into what handlers get; the caller's uid and pid where it came over a Unix socket.

    Raises:
        RequestError: the body is not a JSON object, or not encoded as it says.

    """
    pid, uid = _peer(http_request)
    try:
        raw = await http_request.read()
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:  # or the caller hung up
        raise RequestError(400, f"request body: {str(error)[:200]}") from error
    try:
        body = json.loads(raw) if raw else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"request body: not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(400, f"request body: a JSON object was expected, not {type(body).__name__}")
    if is_deeper(body, MAX_DEPTH):
        raise RequestError(400, f"request body: more than {MAX_DEPTH} objects and lists within each other")
    params, query = dict(http_request.match_info), dict(http_request.query)
    return Request(params, query, body, uid, pid, http_request.method, http_request.path)


def turn_away(listener: socket.socket, reason: str) -> None:
    """Tell whoever waits at systemd's socket that the daemon cannot start; an unanswered call would start it again."""
    listener.setblocking(False)
    content = json.dumps({"ok": False, "error": reason}) + "\n"
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = f"{head}Content-Length: {len(content.encode())}\r\n\r\n{content}".encode()
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        with caller, contextlib.suppress(OSError):
            caller.settimeout(0.2)
            caller.recv(1 << 16)  # closed with something unread, the connection would end in an error
            caller.sendall(answer)


class ControlError(RoverError):
    """A request on the control socket got no or a bad answer; ``status`` is the HTTP status, None without one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the reason and the status."""
        super().__init__(message)
        self.status = status


class ControlClient:
    """Ask a daemon over its control socket; every call is one connection. Blocking, for command lines and tests."""

    def __init__(self, path: Path, timeout_s: float = 30.0) -> None:
        """Talk to the daemon behind ``path``."""
        self.path = path
        self.timeout_s = timeout_s

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Read; ``query`` becomes the query string.

        Raises:
            ControlError: nobody answers, or the daemon refuses.

        """
        return self._ask("GET", f"{path}?{urlencode(query)}" if query else path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Command; see ``get``."""
        return self._ask("POST", path, body or {})

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        connection = _UnixConnection(self.path, self.timeout_s)
        raw = None if body is None else json.dumps(body)
        headers = {} if raw is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, raw, headers)
            response = connection.getresponse()
            payload = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            hint = "is the daemon running? start it or give --control-socket"
            raise ControlError(f"{self.path}: no daemon answers here; {hint}") from error
        except PermissionError as error:
            raise ControlError(f"{self.path}: not allowed; {_who_may(self.path)}") from error
        except TimeoutError as error:
            raise ControlError(f"{self.path}: {method} {path}: no answer within {self.timeout_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ControlError(f"{self.path}: {method} {path}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()
        if not payload.get("ok"):
            raise ControlError(str(payload.get("error", "refused without a reason")), response.status)
        return dict(payload)


def _who_may(path: Path) -> str:
    """Say how to be let in, as far as the socket can be seen."""
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "ask who administers this machine"
    return f"members of group {group} may: sudo usermod -aG {group} USER, then log in anew"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the path in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@web.middleware
async def _in_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give the server's own refusals (no such route, body too large) the form of all other answers."""
    try:
        return await handler(request)
    except RequestError as error:
        return _json(error.status, {"ok": False, "error": str(error)})
    except web.HTTPException as error:
        reason = {404: "no such route", 405: "not with this method"}.get(error.status, error.reason.lower())
        return _json(error.status, {"ok": False, "error": f"{request.method} {request.path}: {reason}"})


def _json(status: int, payload: Mapping[str, Any]) -> web.Response:
    return web.Response(text=json.dumps(payload) + "\n", status=status, content_type="application/json")


def _peer(http_request: web.Request) -> tuple[int, int]:
    """Give (pid, uid) of the caller on a Unix socket, (-1, -1) elsewhere."""
    connection = http_request.transport.get_extra_info("socket") if http_request.transport else None
    if connection is None or connection.family != socket.AF_UNIX:
        return -1, -1
    pid, uid, _gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def _bind(path: Path) -> socket.socket:
    """Open the socket at ``path``; a stale one of a daemon that died is removed, a live one is left alone."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(_MODE)  # nobody can connect before listen()
    except OSError as error:
        listener.close()
        hint = "the folder must exist and be writable; choose another --control-socket"
        raise ControlSocketError(f"control socket {path}: {error.strerror or error}; {hint}") from error
    return listener


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise ControlSocketError(f"control socket {path}: something else lies here; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise ControlSocketError(f"control socket {path}: {error}") from error
    hint = "stop it or choose another --control-socket"
    raise ControlSocketError(f"control socket {path}: another daemon is running; {hint}")
