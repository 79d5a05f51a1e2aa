"""The routes of roverd's control socket that are about policies."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any

from protocol.bundle import MAX_BUNDLE_BYTES
from protocol.errors import RoverError
from protocol.node.socket import Request, RequestError, Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from roverd.assemble import Parts

MAX_NAME = 400


def policy_routes(parts: Parts) -> list[Route]:
    """Return the routes."""
    api = PolicyApi(parts)
    return [
        Route("GET", "/policies", api.listing, mutating=False),
        Route("GET", "/policies/transaction", api.transaction, mutating=False),
        Route("POST", "/policies/upload", api.upload, mutating=False),  # it would fill the audit log
        Route("POST", "/policies/install", api.install, mutating=True),
        Route("POST", "/policies/reload", api.reload, mutating=True),
        Route("POST", "/policies/rollback", api.rollback, mutating=True),
    ]


class PolicyApi:
    """The handlers; they see only ``parts``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._upload = bytearray()

    async def listing(self, _: Request) -> dict[str, Any]:
        """List the stored policies and mark the one that drives."""
        driving = self._parts.policies.driving_id
        return {"policies": [{**row, "driving": row["policy_id"] == driving} for row in self._parts.store.listing()]}

    async def transaction(self, _: Request) -> dict[str, Any]:
        """Show what drives, and how far the newest policy is on its way to that."""
        return {"driving": self._parts.policies.slot_name(self._parts.policies.active), **self._parts.policies.report()}

    async def upload(self, request: Request) -> dict[str, Any]:
        """Take a piece of a bundle; one at the beginning begins a new one."""
        offset, content = request.body.get("offset"), request.body.get("content")
        if type(offset) is not int or not isinstance(content, str):
            raise RequestError(400, "policy upload: offset must be a whole number and content a text in base64")
        try:
            piece = base64.b64decode(content, validate=True)
        except (ValueError, binascii.Error) as error:
            raise RequestError(400, f"policy upload: content is not base64: {error}") from error
        if offset == 0:
            self._upload.clear()
        if offset != len(self._upload):
            raise RequestError(409, f"policy upload: {len(self._upload)} bytes are here, not {offset}; begin again")
        if offset + len(piece) > MAX_BUNDLE_BYTES:
            self._upload.clear()
            raise RequestError(400, f"policy upload: more than {MAX_BUNDLE_BYTES} bytes; this is no policy bundle")
        self._upload += piece
        return {"size_bytes": len(self._upload)}

    async def install(self, request: Request) -> dict[str, Any]:
        """Verify and store the bundle that was uploaded, and let it drive."""
        name, sha256 = str(request.body.get("name", "FILE"))[:MAX_NAME], request.body.get("sha256")
        is_now = _is_now(request)
        content = bytes(self._upload)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        if not content or digest != sha256:
            what = f"{len(content)} bytes with sha256 {digest[:12]} are here, {str(sha256)[:12]} was announced"
            raise RequestError(409, f"policy install {name}: {what}; upload it first")
        self._upload.clear()
        before = self._parts.policies.driving_id
        try:
            policy_id = await self._parts.policies.install(content, now=is_now)
        except (RoverError, OSError) as error:
            remedy = "nothing was changed; give a bundle that was exported for this robot and task"
            raise RequestError(400, f"policy install {name}: {error}; {remedy}") from error
        return {"policy_id": policy_id, "already_driving": policy_id == before}

    async def reload(self, request: Request) -> dict[str, Any]:
        """Load the wanted policy again."""
        return {"policy_id": _refusing(lambda: self._parts.policies.reload(now=_is_now(request)))}

    async def rollback(self, request: Request) -> dict[str, Any]:
        """Let the policy before drive."""
        return {"policy_id": _refusing(lambda: self._parts.policies.rollback(now=_is_now(request)))}


def _is_now(request: Request) -> bool:
    now = request.body.get("now", False)
    if not isinstance(now, bool):
        raise RequestError(400, f"policy: now {str(now)[:20]!r} is not true or false")
    return now


def _refusing(call: Callable[[], str]) -> str:
    try:
        return call()
    except RoverError as error:
        raise RequestError(409, str(error)) from error
