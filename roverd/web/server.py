"""Serve the page on which a person drives: three files, a WebSocket each way, and an emergency stop.

Nothing here may hold the robot up. Each page has one task that sends the newest view and the newest picture, never one
after the other from a queue, so a page that does not read costs nothing but its own buffer. Where the port is taken
roverd runs all the same, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from importlib import resources
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

from protocol.keys import KeyFileError
from protocol.node.log import get_logger
from protocol.node.socket import Request
from roverd.web.access import Access, load_token
from roverd.web.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from protocol.node.socket import AuditLog
    from roverd.settings import TeleopSettings
    from roverd.teleop import Teleop

log = get_logger()
FILES = {
    "/": ("index.html", "text/html"),
    "/drive.js": ("drive.js", "text/javascript"),
    "/inputs.js": ("inputs.js", "text/javascript"),
    "/panel.js": ("panel.js", "text/javascript"),
    "/drive.css": ("drive.css", "text/css"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_CONNECTIONS = 32
MAX_PAGES = 8
MAX_BODY_BYTES = MAX_MESSAGE_BYTES = 4096
HEARTBEAT_S = 5.0
RETRY_S = 5.0
TELL_AT = {1, 10, 100, 1000, 10_000}


class WebPage:
    """Service: the page, on loopback unless the settings say otherwise."""

    name = "web"

    def __init__(self, settings: TeleopSettings, teleop: Teleop, *, token_file: Path, audit: AuditLog) -> None:
        """Take what people can see and do; commands are written to the audit log."""
        self._settings, self._teleop, self._token_file, self._audit = settings, teleop, token_file, audit
        self._is_off = settings.port == 0 or bool(teleop.wheel.refusal)
        self._access: Access | None = None
        self._server: web.Server | None = None
        self._sessions: dict[str, Session] = {}
        self._files: dict[str, tuple[str, bytes]] = {}
        self.token = ""
        self.state = "off" if self._is_off else "starting"
        self.reason = ""
        self.counts = dict.fromkeys(("refused", "pages", "turned_away"), 0)
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled; a port that is taken is tried again."""
        if self._is_off:
            await asyncio.Event().wait()
        try:
            self.token = load_token(self._token_file)
            self._files = {path: (kind, _content(name)) for path, (name, kind) in FILES.items()}
        except (KeyFileError, OSError) as error:
            self._fail(str(error))
            await asyncio.Event().wait()
        while True:
            try:
                listener = self._bind()
            except OSError as error:
                where = f"{self._settings.bind}:{self._settings.port}"
                self._fail(f"{where}: {error.strerror or error}; set teleop.port to another one, or 0")
                await asyncio.sleep(RETRY_S)
            else:
                await self._serve(listener)

    @property
    def causes(self) -> list[str]:
        """What health is to be told."""
        return [f"web page: {self.reason}"] if self.state == "failed" else []

    @property
    def url(self) -> str:
        """Where the page is; with the token behind ``#``, which no browser sends to anybody."""
        bind, hosts = self._settings.bind, self._settings.hosts
        host = f"[{bind}]" if ":" in bind else bind
        if bind in {"0.0.0.0", "::"}:  # noqa: S104 - it is asked, not bound
            host = hosts[0] if hosts else _own_address()
        return f"http://{host}:{self._settings.port}/#token={self.token}"

    def status(self) -> dict[str, Any]:
        """Return what is shown of it; the shape is append-only."""
        return {"state": self.state, "reason": self.reason, "open": len(self._sessions), **self.counts}

    def _fail(self, reason: str) -> None:
        if self.reason != reason:
            log.warning("web.failed", reason=reason, hint="the robot drives all the same; see roverctl web")
        self.state, self.reason = "failed", reason

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.bind else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._settings.bind, self._settings.port))
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    async def _serve(self, listener: socket.socket) -> None:
        port = int(listener.getsockname()[1])
        self._access = Access(self.token, port, self._settings.hosts)
        application = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        for path in FILES:
            application.router.add_get(path, self._file)
        application.router.add_post("/login", self._login)
        application.router.add_post("/e_stop", self._e_stop)
        application.router.add_get("/drive", self._drive)
        logger = _sober_logger(self.counts)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, auto_decompress=False, logger=logger)
        server: asyncio.Server | None = None
        try:
            await runner.setup()
            self._server = runner.server
            server = await asyncio.get_running_loop().create_server(self._connect, sock=listener, backlog=16)
            self.state, self.reason = "serving", ""
            log.info("web.serving", bind=self._settings.bind, port=port, hint="roverctl web prints the address")
            if self._settings.is_exposed:
                log.warning("web.exposed", bind=self._settings.bind, hint="not encrypted; better ssh -L, or a proxy")
            self.listening.set()
            await asyncio.Event().wait()
        finally:
            if server is not None:
                server.close()
            for session in self._sessions.values():
                if session.transport is not None:
                    session.transport.abort()
            await runner.cleanup()
            listener.close()

    def _connect(self) -> asyncio.Protocol:
        """Take a connection; the oldest one that is no open page makes room for it where there are too many."""
        assert self._server is not None  # noqa: S101 - set before anybody can connect
        connections = self._server.connections
        if len(connections) >= MAX_CONNECTIONS:
            pages = {session.transport for session in self._sessions.values()}
            idle = next((each for each in connections if each.transport not in pages), None)
            if idle is not None and idle.transport is not None:
                self.counts["turned_away"] += 1
                idle.transport.abort()
        return self._server()

    # -- requests ---------------------------------------------------------------------------------------------------

    @property
    def _guard(self) -> Any:
        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            refusal = self._refusal(request)
            if refusal:
                self._note_refusal(request, refusal)
                return web.json_response({"ok": False, "error": refusal}, status=403, headers=HEADERS)
            try:
                response = await handler(request)
            except web.HTTPException as error:
                error.headers.update(HEADERS)
                raise
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return guard

    def _note_refusal(self, request: web.Request, reason: str) -> None:
        self.counts["refused"] += 1
        if (count := self.counts["refused"]) in TELL_AT:
            hint = "see docs/teleop.md"
            log.warning("web.refused", reason=reason, address=request.remote or "", count=count, hint=hint)

    def _refusal(self, request: web.Request) -> str:
        """Say why a request is not served, or return an empty text."""
        access = self._access
        assert access is not None  # noqa: S101 - set before anybody can ask
        if not access.knows_host(request.headers.get("Host")):
            return "this server is not called that; see teleop.hosts"
        if request.path in FILES and request.method in {"GET", "HEAD"}:
            return ""
        if not access.knows_origin(request.headers.get("Origin")):
            return "only the page of this server may ask that"
        if request.path != "/login" and not access.knows_cookie(request.cookies.get(access.cookie_name)):
            return "not logged in; open the address that roverctl web prints"
        return ""

    async def _file(self, request: web.Request) -> web.Response:
        kind, content = self._files[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _login(self, request: web.Request) -> web.Response:
        access = self._access
        assert access is not None  # noqa: S101 - set before anybody can ask
        body = await _json_body(request)
        if not access.knows_token(str(body.get("token", ""))):
            self._note_refusal(request, "a wrong token; roverctl web prints the right address")
            return web.json_response({"ok": False, "error": "this is not the token; see roverctl web"}, status=403)
        response = web.json_response({"ok": True})
        response.set_cookie(access.cookie_name, access.cookie, httponly=True, samesite="Strict", path="/")
        return response

    async def _e_stop(self, request: web.Request) -> web.Response:
        """Stop the robot; a second way beside the WebSocket, for a page whose connection hangs."""
        body = await _json_body(request)
        self.audit("/e_stop", {"address": request.remote, "page": str(body.get("page", ""))[:64]})
        self._teleop.drive.latch_e_stop(f"web page {request.remote or ''}".strip())
        return web.json_response({"ok": True})

    async def _drive(self, request: web.Request) -> web.StreamResponse:
        """Speak with one page until it is gone."""
        if len(self._sessions) >= MAX_PAGES:
            return web.json_response({"ok": False, "error": f"{MAX_PAGES} pages are open already"}, status=503)
        stream = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False, autoping=True
        )
        stream.headers.update(HEADERS)
        await stream.prepare(request)
        session = Session(self._owner(request), self._teleop, stream, request.transport, self.audit)
        self._sessions[session.owner] = session
        self.counts["pages"] += 1
        tasks = [asyncio.create_task(each) for each in (session.send(), self._hear(session, stream))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(ConnectionError):
                for task in done:
                    task.result()
        finally:
            del self._sessions[session.owner]
            self._teleop.wheel.lose(session.owner)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return stream

    async def _hear(self, session: Session, stream: web.WebSocketResponse) -> None:
        async for message in stream:
            if message.type is not WSMsgType.TEXT:
                return
            session.hear(message.data)

    def _owner(self, request: web.Request) -> str:
        """Name a page by its own number, so that one that connects again still has the wheel; no two have the same."""
        page = "".join(each for each in request.query.get("page", "") if each.isascii() and each.isalnum())[:12]
        owner = f"page {page or 'x'}"
        count = 1
        while owner in self._sessions:
            count += 1
            owner = f"page {page or 'x'}.{count}"
        return owner

    def audit(self, path: str, body: dict[str, Any]) -> None:
        """Write down a command, before it is carried out."""
        self._audit.write(Request(body=body, method="WEB", path=path))


def _content(name: str) -> bytes:
    return resources.files("roverd.web").joinpath(name).read_bytes()


def _own_address() -> str:
    """Return the address by which others reach this machine; a datagram socket that connects sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


async def _json_body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError, web.RequestPayloadError, HttpProcessingError, ConnectionError):
        body = {}  # also where it was not encoded as it says, or its sender hung up
    return body if isinstance(body, dict) else {}


def _sober_logger(counts: dict[str, int]) -> logging.Logger:
    """Return a logger for aiohttp that counts bytes which are no HTTP: a port scan is not worth a trace each time."""

    def is_worth_it(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        counts["refused"] += isinstance(error, HttpProcessingError)
        return not isinstance(error, HttpProcessingError)

    logger = logging.Logger("aiohttp.server")  # noqa: LOG001 - its filter is this server's, not every one's
    logger.parent = logging.getLogger("aiohttp.server")
    logger.addFilter(is_worth_it)
    return logger
