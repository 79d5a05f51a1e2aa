"""Who may use the page: a token, once, for a cookie; and only pages of this server, under a name that is its own.

A page of somebody else's that a browser has open can send requests here, also by a name that he lets point to this
machine (DNS rebinding). So the Host must be known, a command must say that it comes from here (Origin), and the cookie
is neither sent along from elsewhere (SameSite=Strict) nor read by scripts (HttpOnly).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from protocol.keys import KeyFileError, read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

TOKEN_BYTES = 24


def load_token(path: Path) -> str:
    """Return the token of a file; at the first start it is made, readable by its owner only.

    Raises:
        KeyFileError: the file is open to others or holds no token.

    """
    content = read_private(path)
    if content is None:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        if write_private(path, token.encode(), replace=False):
            return token
        content = read_private(path)  # another process was first
    token = (content or b"").decode(errors="replace").strip()
    if len(token) < TOKEN_BYTES or not token.isascii() or not token.isprintable():
        raise KeyFileError(f"{path}: no token; remove it, and a new one is made")
    return token


class Access:
    """Decide about requests; knows neither sockets nor the clock."""

    def __init__(self, token: str, port: int, hosts: Collection[str]) -> None:
        """Take the token, the port, and the names by which the page may be opened, besides addresses.

        A name may have a port of its own, that of a reverse proxy.
        """
        self._token = token
        self._port = port
        self._hosts = {("localhost", port), *(_split(host.lower(), port) for host in hosts)}
        # the cookie follows from the token, so that a restart logs nobody out and a new token everybody
        self.cookie = hmac.new(token.encode(), b"roverd page cookie 1", hashlib.sha256).hexdigest()
        self.cookie_name = f"roverd-{port}"
        """Browsers do not tell ports apart: two robots on one machine have two cookies."""

    def knows_token(self, token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(token.encode(errors="replace"), self._token.encode())

    def knows_cookie(self, cookie: str | None) -> bool:
        """Say whether somebody has logged in."""
        return cookie is not None and hmac.compare_digest(cookie.encode(errors="replace"), self.cookie.encode())

    def knows_host(self, host: str | None) -> bool:
        """Say whether a Host header names this server: an address, localhost or a name of the settings; with its port.

        An address cannot be rebound: whoever asks for one reached the machine that has it.
        """
        if not _is_plain(host or ""):
            return False
        try:
            parts = urlsplit(f"//{host or ''}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return False
        ports = {80, 443} if port is None else {port}  # the header leaves out the one that its scheme implies
        return any((name, each) in self._hosts or (each == self._port and _is_address(name)) for each in ports)

    def knows_origin(self, origin: str | None) -> bool:
        """Say whether a page of this server sent a request; a reverse proxy that adds TLS keeps name and port."""
        if not _is_plain(origin or ""):
            return False
        try:
            parts = urlsplit(origin or "")
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and not parts.path and self.knows_host(parts.netloc)


def _is_plain(text: str) -> bool:
    """Say whether a header has nothing in it that ``urlsplit`` would leave out."""
    return text.isascii() and text.isprintable() and " " not in text


def _split(host: str, port: int) -> tuple[str, int]:
    name, _, own_port = host.partition(":")
    return name, int(own_port or port)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
