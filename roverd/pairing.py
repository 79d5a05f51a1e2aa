"""The rover's end of pairing: which trainer it trusts, and how it comes to trust one.

The trainer's key is pinned only after the trainer's person typed the code that is shown here, and the person here
saw that: whoever stands in between could say ``pair_done`` himself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from protocol import pairing as wire
from protocol.errors import RoverError
from protocol.framing import ProtocolError
from protocol.keys import (
    NONCE_BYTES,
    KeyFileError,
    commit,
    fingerprint,
    read_private,
    short_code,
    valid_public,
    write_private,
)
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from protocol.framing import Fields
    from protocol.keys import KeyPair

log = get_logger()
CONNECT_S = 5.0
SILENCE_S = 10.0
"""The trainer says every two seconds that it still waits."""


class PairingError(RoverError):
    """Pairing came to no end; the message says why and what to do."""


class TrustedTrainer:
    """The pinned trainer, in a file of mode 0600; ``public`` is empty while there is none."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises KeyFileError where it is damaged or others may change it."""
        self._path = path
        self.public = self.address = self.paired_at = ""
        content = read_private(path)
        if content is None:
            return
        try:
            values = json.loads(content)
            self.public, self.address = str(values["public"]), str(values.get("address", ""))
            self.paired_at = str(values.get("paired_at", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KeyFileError(f"{path}: damaged: {error!r}; move it away and pair again") from error
        if not valid_public(self.public):
            raise KeyFileError(f"{path}: {self.public[:64]!r} is no public key; move it away and pair again")

    def trust(self, public: str, address: str = "") -> bool:
        """Trust this trainer and no other from now on; on disk before it returns.

        Args:
            public: its public key.
            address: where its link listens, such as ``tcp://192.168.1.20:5555``; empty where that is not known.

        Returns:
            False where it was trusted already, at the same address.

        Raises:
            PairingError: it is no public key.
            KeyFileError: the disk refuses.

        """
        if not valid_public(public):
            hint = "it has 40 characters, see trainerctl key show; put it in single quotes"
            raise PairingError(f"trust: {public[:64]!r} is no public key; {hint}")
        if public == self.public and address in ("", self.address):
            return False
        paired_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values = {"public": public, "address": address, "paired_at": paired_at}
        write_private(self._path, json.dumps(values).encode())
        self.public, self.address, self.paired_at = public, address, paired_at
        log.info("trainer.trusted", fingerprint=fingerprint(public), address=address)
        return True


class Pairing:
    """One attempt to pair with the trainer at a host.

    ``state`` goes from ``connecting`` over ``comparing`` (there is a code; the trainer's person is to type it) and
    ``confirmed`` (the trainer says that he did; the person here is to say so too) to ``trusted``, or to ``failed``.
    """

    def __init__(
        self,
        keys: KeyPair,
        rover_id: str,
        host: str,
        port: int = wire.DEFAULT_PORT,
        *,
        window_s: float = wire.WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; ``run`` connects."""
        self.state, self.reason = "connecting", ""
        self.code = self.trainer_public = self.address = ""
        self.host, self.port = host, port
        self._keys, self._rover_id = keys, rover_id
        self._window_s, self._clock = window_s, clock
        self._ends_s = clock() + window_s

    @property
    def is_over(self) -> bool:
        """True where nothing more will come of it."""
        return self.state in {"trusted", "failed"}

    async def run(self) -> None:
        """Talk to the trainer until it has decided; what went wrong is in ``reason``."""
        try:
            await asyncio.wait_for(self._talk(), self._window_s)
        except asyncio.TimeoutError:
            self.fail(f"nobody typed the code within {self._window_s:g} s")
        except (PairingError, ProtocolError, wire.PeerLeftError) as error:
            self.fail(str(error))
        except asyncio.CancelledError:
            self.fail("it was given up")
            raise

    def accept(self, trust: TrustedTrainer) -> bool:
        """Trust the trainer, because the person saw that it printed this rover's name.

        Returns:
            False where it was trusted already.

        Raises:
            PairingError: the trainer has not confirmed, or too long ago.

        """
        if self.state == "trusted":
            return False
        if self.state == "confirmed" and self._clock() > self._ends_s:
            self.fail("too much time went by")
        if self.state != "confirmed":
            words = {"failed": self.reason, "comparing": f"trainerctl rover confirm {self.code} is still to come"}
            raise PairingError(f"pair: not yet confirmed: {words.get(self.state, self.state)}")
        is_news = trust.trust(self.trainer_public, self.address)
        self.state = "trusted"
        return is_news

    def fail(self, reason: str) -> None:
        """End the attempt, unless it ended before."""
        if not self.is_over:
            log.warning("pairing.failed", host=self.host, reason=reason, hint="roverctl pair tries again")
            self.state, self.reason = "failed", reason

    def to_map(self) -> dict[str, Any]:
        """Describe it, as the API shows it."""
        return {
            "state": self.state,
            "reason": self.reason,
            "rover_id": self._rover_id,
            "host": self.host,
            "port": self.port,
            "code": self.code,
            "trainer_fingerprint": fingerprint(self.trainer_public) if self.trainer_public else "",
            "address": self.address,
            "left_s": 0.0 if self.is_over else round(max(0.0, self._ends_s - self._clock()), 1),
        }

    async def _talk(self) -> None:
        reader, writer = await self._connect()
        try:
            link_port = await self._exchange(reader, writer)
            host = f"[{self.host}]" if ":" in self.host else self.host
            self.address = f"tcp://{host}:{link_port}"
            self.state = "comparing"
            log.info("pairing.compared", host=self.host, fingerprint=fingerprint(self.trainer_public))
            while (kind := (await self._hear(reader))[0]) != "pair_done":
                if kind != "pair_wait":
                    raise ProtocolError(f"pairing: the trainer says {kind[:40]!r}, expected pair_wait or pair_done")
            self.state = "confirmed"
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = f"{self.host}:{self.port}"
        opening = asyncio.open_connection(self.host, self.port, limit=4 * wire.MAX_BYTES)
        try:
            return await asyncio.wait_for(opening, CONNECT_S)
        except (OSError, UnicodeError, asyncio.TimeoutError) as error:
            reason = getattr(error, "strerror", None) or "no answer"
            hint = "is trainerd running there, with --host for more than loopback and link.pairing on? see --port"
            raise PairingError(f"pair: {where}: {reason}; {hint}") from error

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Show both keys and compute the code; return the port of the trainer's link.

        Our nonce is told last and only committed to before: so who stands in between cannot choose his to fit.
        """
        nonce, own = secrets.token_bytes(NONCE_BYTES), self._keys.public
        facts = {"version": wire.VERSION, "rover_id": self._rover_id, "public": own}
        writer.write(wire.encode("pair", **facts, commit=commit(nonce, own)))
        kind, fields = await self._hear(reader)
        if kind != "pair_key":
            raise ProtocolError(f"pairing: the trainer says {kind[:40]!r}, expected pair_key")
        public, trainer_nonce = fields.get("public", str), fields.get("nonce", bytes)
        link_port = fields.count("link_port")
        if not valid_public(public) or len(trainer_nonce) != NONCE_BYTES or not 0 < link_port < 1 << 16:
            raise ProtocolError("pairing: the trainer's key, nonce or port is not what it must be")
        writer.write(wire.encode("pair_nonce", nonce=nonce))
        self.trainer_public = public
        self.code = short_code(self._rover_id, own, public, nonce, trainer_nonce)
        return link_port

    async def _hear(self, reader: asyncio.StreamReader) -> tuple[str, Fields]:
        try:
            kind, fields = await asyncio.wait_for(wire.receive(reader), SILENCE_S)
        except asyncio.TimeoutError as error:
            raise PairingError(f"pair: {self.host}:{self.port}: silent for {SILENCE_S:g} s; try again") from error
        if kind == "pair_refused":
            raise PairingError(f"pair: the trainer refused: {fields.get('reason', str, 'it does not say why')[:500]}")
        return kind, fields


class PairingSlot:
    """The pairing that is under way, if any: a new one ends the one before it."""

    def __init__(self) -> None:
        """Begin with none."""
        self.current: Pairing | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self, pairing: Pairing) -> None:
        """Run a pairing in place of the one before it."""
        await self.cancel("another pairing was begun")
        self.current = pairing
        self._task = asyncio.create_task(pairing.run(), name="pairing")

    async def cancel(self, reason: str) -> bool:
        """End the pairing that is under way; False where there is none."""
        if self.current is None or self.current.is_over:
            return False
        self.current.fail(reason)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        return True
