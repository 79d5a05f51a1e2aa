"""Pull a bundle from the trainer, piece by piece."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from protocol.bundle import MAX_BUNDLE_BYTES, BundleError
from protocol.messages import MAX_CHUNK_BYTES, Chunk, ChunkRequest, Offer

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.messages import Message

PIECE_TIMEOUT_S = 2.0
MAX_OFFERS = 16


class StalledError(Exception):
    """The trainer did not send a piece in time; asking again may help."""


class Fetcher:
    """Ask for the pieces of one bundle after the other; the answers come in through ``received``."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        """Take what sends a message to the trainer."""
        self._send = send
        self._offers: dict[str, Offer] = {}
        self._piece: asyncio.Future[Chunk] | None = None

    def offered(self, offer: Offer) -> None:
        """Remember what a bundle must be like."""
        self._offers.pop(offer.policy_id, None)
        self._offers[offer.policy_id] = offer
        for oldest in list(self._offers)[:-MAX_OFFERS]:
            del self._offers[oldest]

    def received(self, chunk: Chunk) -> None:
        """Take a piece; one that nobody waits for is dropped."""
        if self._piece is not None and not self._piece.done():
            self._piece.set_result(chunk)

    async def fetch(self, policy_id: str) -> bytes:
        """Return a bundle's bytes.

        Raises:
            BundleError: they are not what was offered.
            StalledError: the trainer is silent.

        """
        content = bytearray()
        while True:
            chunk = await self._ask(policy_id, len(content))
            if chunk.policy_id != policy_id or chunk.offset != len(content):
                continue
            content += chunk.content
            if len(content) > MAX_BUNDLE_BYTES:
                raise BundleError(f"policy {policy_id[:12]}: larger than {MAX_BUNDLE_BYTES} bytes")
            if len(chunk.content) < MAX_CHUNK_BYTES:
                break
        offer = self._offers.get(policy_id)
        if offer is not None and offer.sha256:
            digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
            if digest != offer.sha256:
                what = f"{len(content)} bytes with sha256 {digest[:12]} came, {offer.sha256[:12]} was offered"
                raise BundleError(f"policy {policy_id[:12]}: {what}")
        return bytes(content)

    async def _ask(self, policy_id: str, offset: int) -> Chunk:
        self._piece = asyncio.get_running_loop().create_future()
        self._send(ChunkRequest(policy_id, offset, MAX_CHUNK_BYTES))
        done, _ = await asyncio.wait([self._piece], timeout=PIECE_TIMEOUT_S)
        if not done:
            raise StalledError(f"policy {policy_id[:12]}: no piece at byte {offset} in {PIECE_TIMEOUT_S:g} s")
        return self._piece.result()
