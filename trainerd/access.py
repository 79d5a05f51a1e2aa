"""Who may connect: the allow-list of rovers by their keys, and its voice at ZeroMQ's door (ZAP)."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils import z85

from protocol.errors import RoverError
from protocol.keys import KeyFileError, fingerprint, read_private, valid_public, write_private
from protocol.messages import NAME
from protocol.node.log import RepeatLimiter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = get_logger()

KEYS_PER_ROVER = 2
"""The old key and the new one, while a rover changes its key."""
ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_DOMAIN = "roverloop"
"""The link's socket must set the same ``ZAP_DOMAIN``."""
NAMED_STRANGERS = 256
"""So many refused keys get log lines of their own; those after them share one count, so that nobody fills the disk."""
_NAME = re.compile(NAME)


class AccessError(RoverError):
    """The allow-list does not take this: the name, the key or the file is not what it must be."""


@dataclass(frozen=True)
class Grant:
    """One key of one rover; ``revoked_at`` is empty while it opens the door. Times are UTC, ISO 8601."""

    rover_id: str
    public: str
    added_at: str
    revoked_at: str = ""


class Access:
    """The allow-list, kept whole in one file of mode 0600; any thread may ask and change it.

    ``on_revoked`` is called with the rover and its revoked keys, on the thread that revoked, once they open no door
    any more: ZeroMQ asks at the handshake only, so whoever listens there must cut the connections that exist.
    """

    def __init__(self, path: Path) -> None:
        """Read the list; raises AccessError where the file is damaged, KeyFileError where others may change it."""
        self.on_revoked: list[Callable[[str, list[str]], None]] = []
        self._path = path
        self._lock = threading.Lock()
        self._is_unsaved = False
        """True where a revocation did not reach the disk."""
        self._grants: dict[str, Grant] = self._read()
        """By key; replaced whole at each change, so that readers need no lock."""

    def name_of(self, public: str) -> str | None:
        """Return the rover to whom a key belongs, or None where it is unknown or revoked."""
        grant = self._grants.get(public)
        return grant.rover_id if grant is not None and not grant.revoked_at else None

    def was_revoked(self, public: str) -> bool:
        """Return True for a key that was let in once and is not any more."""
        grant = self._grants.get(public)
        return grant is not None and bool(grant.revoked_at)

    def keys_of(self, rover_id: str) -> list[str]:
        """Return the keys with which a rover may connect, oldest first."""
        return [each.public for each in self._grants.values() if each.rover_id == rover_id and not each.revoked_at]

    def add(self, rover_id: str, public: str, *, again: bool = False) -> bool:
        """Let a key in under a name; on disk before it returns.

        Args:
            rover_id: the rover's name; it may have two keys while it changes from one to the other.
            public: its public key.
            again: let in also a key that was revoked before.

        Returns:
            False where it was let in already.

        Raises:
            AccessError: no such name or key is possible, the key is another rover's or was revoked, or the rover has
                two keys already.

        """
        if not _NAME.fullmatch(rover_id):
            hint = "a name has lower-case letters, digits, dot, dash and underscore"
            raise AccessError(f"rover {rover_id[:64]!r}: {hint}")
        if not valid_public(public):
            hint = "it has 40 characters, see roverctl key show; put it in single quotes"
            raise AccessError(f"rover {rover_id}: {public[:64]!r} is no public key; {hint}")
        with self._lock:
            known = self._grants.get(public)
            if known is not None and not known.revoked_at:
                if known.rover_id == rover_id:
                    return False
                hint = f"trainerctl rover revoke {known.rover_id}, or give the rover a key of its own"
                raise AccessError(f"rover {rover_id}: key {fingerprint(public)} is {known.rover_id}'s; {hint}")
            if known is not None and not again:
                hint = "give the rover a new key (remove its curve.json and restart it), or insist with --again"
                text = f"key {fingerprint(public)} was revoked {known.revoked_at}"
                raise AccessError(f"rover {rover_id}: {text}; {hint}")
            if len(self.keys_of(rover_id)) >= KEYS_PER_ROVER:
                prints = " and ".join(map(fingerprint, self.keys_of(rover_id)))
                hint = f"trainerctl rover revoke {rover_id} --key FINGERPRINT, or choose another name"
                raise AccessError(f"rover {rover_id}: it has two keys already, {prints}; {hint}")
            grants = {key: each for key, each in self._grants.items() if key != public}
            grants[public] = Grant(rover_id, public, _now())
            self._write(grants)
            self._grants = grants
        log.info("rover.key_added", rover_id=rover_id, fingerprint=fingerprint(public))
        return True

    def revoke(self, rover_id: str, public: str | None = None) -> list[str]:
        """Shut the door to a rover's keys, or to one of them (its key or fingerprint), and cut its connections.

        Returns:
            The keys that opened the door until now; none where all were revoked before.

        Raises:
            AccessError: the rover never had such a key; or the disk refuses, and the keys are shut out only until the
                daemon ends.

        """
        with self._lock:
            own = {key: each for key, each in self._grants.items() if each.rover_id == rover_id}
            chosen = {key: each for key, each in own.items() if public is None or public in (key, fingerprint(key))}
            if not chosen:
                has = ", ".join(map(fingerprint, own)) or "no key"
                which = "" if public is None else f" {public[:64]!r}"
                hint = "see trainerctl rover list"
                raise AccessError(f"rover {rover_id[:64]}: no key{which} to revoke; it has {has}; {hint}")
            revoked = [key for key, each in chosen.items() if not each.revoked_at]
            if not revoked and not self._is_unsaved:
                return []
            now = _now()
            grants = dict(self._grants)
            grants |= {key: Grant(rover_id, key, own[key].added_at, now) for key in revoked}
            self._grants = grants  # before the disk is asked: a full one must not keep the door open
            self._is_unsaved = True
        for callback in self.on_revoked if revoked else ():
            callback(rover_id, revoked)
        for key in revoked:
            hint = "its connections are cut"
            log.warning("rover.key_revoked", rover_id=rover_id, fingerprint=fingerprint(key), hint=hint)
        with self._lock:
            try:
                self._write(self._grants)
            except AccessError as error:
                text = "revoked, but only until this daemon ends"
                raise AccessError(f"rover {rover_id}: {text}: {error}; then revoke it again") from error
        return revoked

    def rows(self) -> list[dict[str, Any]]:
        """Describe every key, as the API shows it; revoked ones stay."""
        return [
            {**asdict(each), "fingerprint": fingerprint(key), "state": "revoked" if each.revoked_at else "allowed"}
            for key, each in self._grants.items()
        ]

    def _read(self) -> dict[str, Grant]:
        content = read_private(self._path)
        if content is None:
            return {}
        try:
            grants = [Grant(**row) for row in json.loads(content)["keys"]]
            is_whole = all(isinstance(value, str) for each in grants for value in asdict(each).values()) and all(
                _NAME.fullmatch(each.rover_id) and valid_public(each.public) for each in grants
            )
        except (ValueError, KeyError, TypeError) as error:
            raise AccessError(f"{self._path}: damaged: {error!r}; move it away and pair the rovers again") from error
        if not is_whole:
            raise AccessError(f"{self._path}: a row is no rover with its key; mend it, or move it away and pair again")
        return {each.public: each for each in grants}

    def _write(self, grants: dict[str, Grant]) -> None:
        content = json.dumps({"keys": [asdict(each) for each in grants.values()]}, indent=1).encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_private(self._path, content)
        except (KeyFileError, OSError) as error:
            raise AccessError(str(error)) from error
        self._is_unsaved = False


class ZapHandler:
    """Answer ZeroMQ's question whether a peer may connect: only with CURVE, and only with a key of the list.

    Belongs to the thread of the link. Make it before the link's socket binds, register ``socket`` in the poller, and
    call ``answer`` when it is readable. The User-Id of a connection is its public key.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], access: Access) -> None:
        """Listen inside ``context``, whose other sockets must have the ``ZAP_DOMAIN`` of this module."""
        self.refusals: Counter[str] = Counter()
        """Refused handshakes by reason: unknown, revoked, mechanism, malformed."""
        self.last_refusal = ""
        """The newest refusal in words, for the daemon's status."""
        self._access = access
        self._repeats = RepeatLimiter()
        self._strangers: set[str] = set()
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ZAP_ADDRESS)

    def answer(self) -> None:
        """Answer every request that waits; does not block."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def close(self) -> None:
        """Free the address."""
        self.socket.close(linger=0)

    def _answer(self, frames: list[bytes]) -> None:
        # identity, delimiter; version, request id, domain, address, routing id, mechanism, credentials (RFC 27)
        if len(frames) < 8 or frames[2] != b"1.0":
            self._refuse("malformed", "", "", "?")
            return  # nobody whom an answer would reach
        address, mechanism = frames[5].decode("utf-8", "replace")[:64], frames[7]
        public = _public(frames)
        if public is None:
            reason = "mechanism" if mechanism != b"CURVE" else "malformed"
            self._refuse(reason, mechanism.decode("utf-8", "replace")[:16], "", address)
        elif self._access.name_of(public) is None:
            self._refuse("revoked" if self._access.was_revoked(public) else "unknown", "", public, address)
            public = None
        verdict = [b"400", b"not allowed", b""] if public is None else [b"200", b"OK", public.encode()]
        with contextlib.suppress(zmq.ZMQError):  # the asker is gone
            self.socket.send_multipart([*frames[:2], b"1.0", frames[3], *verdict, b""], zmq.NOBLOCK)

    def _refuse(self, reason: str, mechanism: str, public: str, address: str) -> None:
        self.refusals[reason] += 1
        who = fingerprint(public) if public else mechanism
        self.last_refusal = f"{address}: {reason} {'key' if public else 'handshake'} {who}".rstrip()
        key = f"{reason} {who}"
        if key not in self._strangers:
            if len(self._strangers) >= NAMED_STRANGERS:
                key = "others"
            self._strangers.add(key)
        if count := self._repeats.count(key):
            facts = {"reason": reason, "fingerprint": who, "address": address, "count": count}
            log.warning("rover.key_refused", **facts, hint="if it is yours, pair it: roverctl pair HOST")


def _public(frames: list[bytes]) -> str | None:
    """Return the client's key of a ZAP request with CURVE in our domain, else None."""
    if frames[7] != b"CURVE" or frames[4] != ZAP_DOMAIN.encode() or len(frames) != 9 or len(frames[8]) != 32:
        return None
    return z85.encode(frames[8]).decode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
