"""The trainer's end of pairing: rovers ask, a person types the code that the rover shows, the key is let in.

A request proves nothing by itself. What counts is the code (``protocol.keys.short_code``): it is computed here from
the keys that were seen here, and it matches the one at the rover only if nobody stands in between. Each code that is
computed for a stranger is a try at guessing, so they are rationed, and a try is used up however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import secrets
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol import pairing as wire
from protocol.errors import RoverError
from protocol.framing import ProtocolError
from protocol.keys import CODE_DIGITS, NONCE_BYTES, commit, fingerprint, short_code, valid_public
from protocol.messages import NAME
from protocol.node.log import RepeatLimiter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.framing import Fields
    from protocol.keys import KeyPair
    from trainerd.access import Access

log = get_logger()
MAX_CONNECTIONS = 64
_NAME = re.compile(NAME)


class PairingError(RoverError):
    """The code fits no rover that waits, or the port cannot be listened on."""


class RefusedError(RoverError):
    """A rover's request is turned down; the message is sent to it."""


@dataclass(frozen=True)
class PairingLimits:
    """How long and how often a stranger may try."""

    window_s: float = wire.WINDOW_S
    requests: int = 16
    """Codes computed within ``window_s`` for all; so somebody in the middle is lucky 16 in a million times."""
    requests_per_address: int = 6
    """The same for one address, so that one machine cannot keep all others from pairing."""
    wrong_codes: int = 3
    answer_s: float = 10.0
    keepalive_s: float = 2.0


@dataclass
class PairingRequest:
    """A rover that waits for a person to type its code."""

    rover_id: str
    public: str
    address: str
    code: str = field(repr=False)
    asked_s: float
    wrong_codes: int = 0
    verdict: asyncio.Future[str] = field(default_factory=asyncio.Future, repr=False)
    """Empty where the rover is let in, else why not."""


class PairingDesk:
    """The service that rovers ask to be let in; everything happens in the event loop.

    ``start`` listens, so that ``port`` is known; ``run`` answers.
    """

    name = "pairing"

    def __init__(
        self,
        host: str,
        port: int,
        keys: KeyPair,
        access: Access,
        *,
        link_port: Callable[[], int],
        limits: PairingLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen at ``host`` (as the link does) and ``port`` (0: any free one); rovers are told ``link_port``."""
        self.port = port
        self.malformed: Counter[str] = Counter()
        self._host, self._keys, self._access, self._link_port = host, keys, access, link_port
        self._limits = limits or PairingLimits()
        self._clock = clock
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: list[PairingRequest] = []
        self._tries: deque[tuple[float, str]] = deque()
        """When and for which address a code was computed, as far as ``window_s`` goes back."""
        self._paired: dict[str, tuple[float, str, str]] = {}
        """Codes that were confirmed lately: when, rover, key."""
        self._repeats = RepeatLimiter()

    def start(self) -> None:
        """Listen; raises PairingError where that is not possible."""
        host = "" if self._host == "*" else self._host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, self.port), family=family)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            hint = "set link.pairing_port to a free port, or link.pairing to false"
            raise PairingError(f"pairing: {self._host}:{self.port}: {reason}; {hint}") from error
        self.port = self._listener.getsockname()[1]

    async def run(self) -> None:
        """Answer rovers until cancelled."""
        if self._listener is None:
            self.start()
        server = await asyncio.start_server(self._connected, sock=self._listener, limit=4 * wire.MAX_BYTES)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def rows(self) -> list[dict[str, Any]]:
        """Describe the rovers that wait. Their codes are not in it: the person has to read them at the rover."""
        now_s = self._clock()
        return [
            {
                "rover_id": each.rover_id,
                "fingerprint": fingerprint(each.public),
                "address": each.address,
                "age_s": round(now_s - each.asked_s, 1),
                "left_s": round(max(0.0, each.asked_s + self._limits.window_s - now_s), 1),
                "tries_left": self._limits.wrong_codes - each.wrong_codes,
                "known_as": self._access.name_of(each.public),
                "keys": len(self._access.keys_of(each.rover_id)),
                "was_revoked": self._access.was_revoked(each.public),
            }
            for each in self._waiting
        ]

    def confirm(self, code: str, *, again: bool = False) -> dict[str, Any]:
        """Let the rover in that shows this code.

        Args:
            code: as a person types it, ``417-902`` or ``417902``.
            again: also where its key was revoked before.

        Raises:
            PairingError: it is no code, or no rover that waits has it.
            AccessError: the allow-list does not take the rover; it goes on waiting.

        """
        digits = re.sub(r"[\s-]", "", code)
        if not re.fullmatch(f"[0-9]{{{CODE_DIGITS}}}", digits):
            raise PairingError(f"pairing: {code[:40]!r} is no code; type the six digits that roverctl shows")
        wanted = f"{digits[:3]}-{digits[3:]}"
        matching = [each for each in self._waiting if hmac.compare_digest(each.code, wanted)]
        if len(matching) > 1:
            self._turn_down(matching, "another request has the same code: run roverctl pair again")
            raise PairingError(f"pairing: {len(matching)} requests have code {wanted}; run roverctl pair again")
        if not matching:
            return self._confirmed_before(wanted) or self._missed(wanted)
        request = matching[0]
        is_new = self._access.add(request.rover_id, request.public, again=again)
        self._waiting.remove(request)
        request.verdict.set_result("")
        self._paired[wanted] = (self._clock(), request.rover_id, request.public)
        log.info("rover.paired", rover_id=request.rover_id, fingerprint=fingerprint(request.public))
        return self._answer(request.rover_id, request.public, is_already=not is_new)

    def _answer(self, rover_id: str, public: str, *, is_already: bool) -> dict[str, Any]:
        answer = {"paired": rover_id, "fingerprint": fingerprint(public), "keys": len(self._access.keys_of(rover_id))}
        return {**answer, "already_paired": True} if is_already else answer

    def _confirmed_before(self, code: str) -> dict[str, Any] | None:
        at_s, rover_id, public = self._paired.get(code, (0.0, "", ""))
        is_valid = bool(public) and self._clock() - at_s < self._limits.window_s
        return self._answer(rover_id, public, is_already=True) if is_valid and self._access.name_of(public) else None

    def _missed(self, code: str) -> dict[str, Any]:
        """Count a wrong code against all that wait: nobody can tell whose it should have been. Raises."""
        if not self._waiting:
            raise PairingError(f"pairing: no rover waits; run roverctl pair HOST at the rover (code {code})")
        for request in self._waiting:
            request.wrong_codes += 1
        burnt = [each for each in self._waiting if each.wrong_codes >= self._limits.wrong_codes]
        names = ", ".join(each.rover_id for each in self._waiting)
        self._turn_down(burnt, f"{self._limits.wrong_codes} wrong codes were typed at the trainer")
        if burnt:
            hint = "too many wrong codes: start anew with roverctl pair"
        else:
            hint = "if it reads so at the rover, somebody may stand between the two: do not go on"
        log.warning("pairing.code_refused", waiting=names, hint=hint)
        raise PairingError(f"pairing: code {code} fits none of {names}; {hint}")

    def _turn_down(self, requests: list[PairingRequest], reason: str) -> None:
        for request in requests:
            self._waiting.remove(request)
            request.verdict.set_result(reason)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        address = str((writer.get_extra_info("peername") or ["?"])[0])
        try:
            await self._serve(reader, writer, address)
        except RefusedError as error:
            if count := self._repeats.count("refused"):
                hint = "the reason was sent to the rover"
                log.warning("pairing.refused", address=address, reason=str(error), count=count, hint=hint)
            writer.write(wire.encode("pair_refused", reason=str(error)[:500]))
        except ProtocolError as error:
            self.malformed[str(error).partition(":")[0]] += 1
            if count := self._repeats.count("malformed"):
                hint = "no rover of ours speaks like this"
                log.warning("pairing.malformed", address=address, error=str(error), count=count, hint=hint)
            writer.write(wire.encode("pair_refused", reason=str(error)[:500]))
        except (wire.PeerLeftError, asyncio.TimeoutError, OSError):
            pass  # it asks again if it means it
        except asyncio.CancelledError:
            pass  # only run() cancels; until Python 3.12 asyncio reports a cancelled handler as an error
        finally:
            self._connections.discard(task)
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), 1.0)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        kind, fields = await asyncio.wait_for(wire.receive(reader), self._limits.answer_s)
        rover_id, public, commitment = _asked(kind, fields)
        self._ration(address)
        nonce = secrets.token_bytes(NONCE_BYTES)
        own = self._keys.public
        writer.write(wire.encode("pair_key", public=own, nonce=nonce, link_port=self._link_port()))
        kind, fields = await asyncio.wait_for(wire.receive(reader), self._limits.answer_s)
        rover_nonce = fields.get("nonce", bytes)
        if kind != "pair_nonce" or not hmac.compare_digest(commit(rover_nonce, public), commitment):
            raise RefusedError("the nonce is not the one that was committed to")
        code = short_code(rover_id, public, own, rover_nonce, nonce)
        request = PairingRequest(rover_id, public, address, code, self._clock())
        self._waiting.append(request)
        facts = {"rover_id": rover_id, "fingerprint": fingerprint(public), "address": address}
        log.info("pairing.requested", **facts, hint="type the code that roverctl shows: trainerctl rover confirm CODE")
        try:
            await self._wait(request, reader, writer)
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    def _ration(self, address: str) -> None:
        """Count a try; raises RefusedError where there were too many.

        A try counts before our nonce is told, and whatever the rover does next: somebody who has to hit a certain code
        knows after our nonce whether he did, and would otherwise leave and come again until he did.
        """
        now_s = self._clock()
        while self._tries and now_s - self._tries[0][0] >= self._limits.window_s:
            self._tries.popleft()
        own = [each for each in self._tries if each[1] == address]
        for tries, limit in ((self._tries, self._limits.requests), (own, self._limits.requests_per_address)):
            if len(tries) >= limit:
                wait_s = self._limits.window_s - (now_s - tries[len(tries) - limit][0])
                hint = f"try again in {wait_s:.0f} s, or exchange the keys by hand: roverctl key show"
                raise RefusedError(f"{limit} pairings were begun in {self._limits.window_s:g} s; {hint}")
        self._tries.append((now_s, address))

    async def _wait(self, request: PairingRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep the rover waiting until the person's word, the end of the time, or its own leaving."""
        left = asyncio.ensure_future(reader.read(1))
        try:
            while not request.verdict.done():
                if left.done():
                    raise wire.PeerLeftError(f"{request.rover_id}: left")
                if self._clock() - request.asked_s >= self._limits.window_s:
                    raise RefusedError(f"nobody typed the code within {self._limits.window_s:g} s")
                writer.write(wire.encode("pair_wait"))
                await writer.drain()
                step_s = min(self._limits.keepalive_s, self._limits.window_s)
                await asyncio.wait((request.verdict, left), timeout=step_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await left
        if reason := request.verdict.result():
            raise RefusedError(reason)
        writer.write(wire.encode("pair_done"))


def _asked(kind: str, fields: Fields) -> tuple[str, str, bytes]:
    """Check a request; return the rover's name, its key and its commitment."""
    if kind != "pair":
        raise ProtocolError(f"pairing: the first message is {kind[:40]!r}, expected pair")
    version = fields.count("version")
    if version != wire.VERSION:
        older = "the rover" if version < wire.VERSION else "the trainer"
        raise RefusedError(f"the rover pairs with version {version}, the trainer with {wire.VERSION}; update {older}")
    rover_id, public, commitment = fields.get("rover_id", str), fields.get("public", str), fields.get("commit", bytes)
    if not _NAME.fullmatch(rover_id) or not valid_public(public) or len(commitment) != 32:
        raise ProtocolError("pairing: the rover's name, key or commitment is not what it must be")
    return rover_id, public, commitment
