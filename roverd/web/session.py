"""One open page: what it asks for, and what it is shown.

A page latches the emergency stop and never clears it: only ``roverctl clear`` does.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from roverd.collect import CollectError
from roverd.wheel import WheelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from roverd.teleop import Teleop

VIEW_S = 0.05
"""How often a page gets a view, and with it the stamp that its commands carry back."""
PICTURES_AHEAD = 2
"""Pictures under way that the page has not confirmed: more would only pile up in front of the newer ones."""
PICTURE = b"P"
LARGEST_STAMP = 1 << 53
COMMANDS = ("take", "release", "e_stop", "next", "judge")


class Session:
    """What the page is shown is always the newest; nothing is queued for it."""

    def __init__(
        self,
        owner: str,
        teleop: Teleop,
        stream: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        audit: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """Speak in the name of ``owner``."""
        self.owner, self.transport = owner, transport
        self._teleop, self._stream, self._audit = teleop, stream, audit
        self._newest_sent = 0
        self._sent = self._confirmed = 0
        self._lag_s = 0.0
        self._refusal = ""
        self._refusals = 0

    # -- to the page ------------------------------------------------------------------------------------------------

    async def send(self) -> None:
        """Send the newest view, and the newest picture where the page keeps up; until cancelled or cut."""
        teleop = self._teleop
        await self._stream.send_str(
            json.dumps({"kind": "hello", "you": self.owner, "rover_id": teleop.rover_id, "axes": teleop.axes.to_list()})
        )
        while not self._stream.closed:
            await self._stream.send_str(json.dumps(self._view()))  # waits while the page does not read
            await self._send_picture()
            await asyncio.sleep(VIEW_S)

    def _view(self) -> dict[str, Any]:
        return {
            "kind": "view",
            "t": time.monotonic_ns() // 1_000_000,
            "lag_ms": round(self._lag_s * 1e3),
            "refusal": self._refusal,
            "refusals": self._refusals,
            **self._teleop.view(),
        }

    async def _send_picture(self) -> None:
        picture = self._teleop.telemetry.picture
        if picture is None or picture.number == self._newest_sent:
            return
        if self._sent - self._confirmed >= PICTURES_AHEAD:
            return
        self._newest_sent = picture.number
        self._sent += 1
        await self._stream.send_bytes(PICTURE + self._sent.to_bytes(4, "big") + picture.content)

    # -- from the page ----------------------------------------------------------------------------------------------

    def hear(self, text: str) -> None:
        """Take one message of the page; what is wrong with it is shown there and raised nowhere."""
        try:
            asked = json.loads(text)
            self.obey(asked if isinstance(asked, dict) else {})
        except (RoverError, ValueError, RecursionError) as error:
            self.refuse(str(error))

    def obey(self, asked: dict[str, Any]) -> None:
        """Carry out one message; raises RoverError with a refusal for the person."""
        kind = asked.get("kind")
        if kind == "drive":
            self._drive(asked)
        elif kind in COMMANDS:
            body: dict[str, Any] = {key: asked[key] for key in ("force", "verdict") if key in asked}
            self._audit(f"/{kind}", {"owner": self.owner, **body})
            getattr(self, f"_{kind}")(asked)
            self._refusal = ""

    def refuse(self, reason: str) -> None:
        """Show the page why something was not done."""
        self._refusal, self._refusals = reason[:300], self._refusals + 1

    def _drive(self, asked: dict[str, Any]) -> None:
        stamp, seen = asked.get("t"), asked.get("seen")
        if type(seen) is int:
            self._confirmed = min(max(seen, self._confirmed), self._sent)
        if type(stamp) is not int or not 0 <= stamp < LARGEST_STAMP:
            raise WheelError("drive: no stamp of a view")
        self._lag_s = max(0.0, time.monotonic() - stamp * 1e-3)
        if self._teleop.wheel.owner == self.owner and "axes" in asked:
            self._teleop.push(self.owner, asked["axes"], age_s=self._lag_s)  # what hung in the network hung for both

    def _take(self, asked: dict[str, Any]) -> None:
        self._teleop.wheel.take(self.owner, by_force=asked.get("force") is True)

    def _release(self, asked: dict[str, Any]) -> None:
        self._teleop.wheel.release(self.owner, by_force=asked.get("force") is True)

    def _e_stop(self, _: dict[str, Any]) -> None:
        self._teleop.drive.latch_e_stop(self.owner)

    def _next(self, _: dict[str, Any]) -> None:
        self._teleop.collecting.next_episode()

    def _judge(self, asked: dict[str, Any]) -> None:
        verdict = asked.get("verdict")
        if not isinstance(verdict, str):
            raise CollectError(f"collect: verdict {verdict!r:.40} is not a text")
        self._teleop.collecting.judge(verdict)
