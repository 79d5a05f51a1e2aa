"""A page that drives, without a browser: log in, take the wheel, push; run as a process so that it can be killed."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

COMMAND_S = 0.04


class Page:
    """What the page's script does, in Python."""

    def __init__(self, session: aiohttp.ClientSession, stream: aiohttp.ClientWebSocketResponse, base: str) -> None:
        self.session, self._stream, self.base = session, stream, base
        self.me = ""
        self.view: dict[str, Any] = {}
        self.pictures: list[bytes] = []
        self.axes: list[float] | None = None
        self._tasks = [asyncio.ensure_future(each) for each in (self._hear(), self._command())]

    async def _hear(self) -> None:
        async for message in self._stream:
            if message.type is aiohttp.WSMsgType.BINARY:
                self.pictures.append(message.data)
                continue
            values = json.loads(message.data)
            if values["kind"] == "hello":
                self.me = values["you"]
            else:
                self.view = values

    async def _command(self) -> None:
        while True:
            if self.view:
                seen = int.from_bytes(self.pictures[-1][1:5], "big") if self.pictures else 0
                more = {} if self.axes is None else {"axes": self.axes}
                await self.say("drive", t=self.view["t"], seen=seen, **more)
            await asyncio.sleep(COMMAND_S)

    async def say(self, kind: str, **more: Any) -> None:
        await self._stream.send_json({"kind": kind, **more})

    async def until(self, condition: Callable[[dict[str, Any]], Any], deadline_s: float = 30.0) -> dict[str, Any]:
        async with asyncio.timeout(deadline_s) if hasattr(asyncio, "timeout") else _forever():
            while not self.view or not condition(self.view):
                await asyncio.sleep(0.01)
        return self.view

    async def take(self, *, by_force: bool = False) -> None:
        await self.say("take", force=by_force)
        await self.until(lambda view: view["wheel"]["owner"] == self.me)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stream.close()


@asynccontextmanager
async def _forever() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def opened(url: str, number: str = "test") -> AsyncIterator[Page]:
    """Open the address that ``roverctl web`` prints."""
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}"
    headers = {"Origin": base}
    token = parts.fragment.removeprefix("token=")
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), headers=headers) as session:
        async with session.post(f"{base}/login", json={"token": token}) as answer:
            answer.raise_for_status()
        stream = await session.ws_connect(f"{base}/drive?page={number}")
        page = Page(session, stream, base)
        try:
            yield page
        finally:
            await page.close()


async def drive(url: str, axes: list[float]) -> None:
    """Take the wheel and push until killed; say so once the robot obeys."""
    async with opened(url, "process") as page:
        await page.take()
        page.axes = axes
        await page.until(lambda view: view["source"] == "human")
        print("driving", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(drive(sys.argv[1], json.loads(sys.argv[2])))
