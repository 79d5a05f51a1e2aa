"""A headless Chromium, steered over the DevTools protocol with aiohttp: real keys, real focus, screenshots."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--window-size=1280,800",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S = 20.0
CODES = {" ": ("Space", 32), "Enter": ("Enter", 13)}


def find_chromium() -> str:
    """Return the program, or an empty text."""
    return next(filter(None, map(shutil.which, NAMES)), "")


class Page:
    """One tab."""

    def __init__(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        self._stream = stream
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        """What the page complained of: exceptions, console errors, refused resources."""
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self._stream:
            values = message.json()
            if "id" in values:
                self._answers.pop(values["id"]).set_result(values)
            elif values["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(values["params"]["exceptionDetails"])[:500])
            elif values["method"] == "Log.entryAdded" and values["params"]["entry"]["level"] == "error":
                self.errors.append(str(values["params"]["entry"])[:500])
            elif values["method"] == "Page.javascriptDialogOpening":
                await self._stream.send_json(
                    {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                )
                self._answers[0] = asyncio.get_running_loop().create_future()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._stream.send_json({"id": number, "method": method, "params": params})
        values = await asyncio.wait_for(answer, 15.0)
        assert "error" not in values, values
        return dict(values["result"])

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, deadline_s: float = 10.0) -> Any:
        """Ask until it is true; a page that is not there yet counts as false."""
        end = asyncio.get_running_loop().time() + deadline_s
        tried = f"(() => {{ try {{ return {expression}; }} catch {{ return null; }} }})()"
        while not (value := await self.evaluate(tried)):
            assert asyncio.get_running_loop().time() < end, f"{expression}: not within {deadline_s} s; {self.errors}"
            await asyncio.sleep(0.03)
        return value

    async def key(self, key: str, *, is_down: bool) -> None:
        code, number = CODES.get(key, (f"Key{key.upper()}", ord(key[0].upper())))
        text = {"text": key} if len(key) == 1 and is_down else {}
        kind = "keyDown" if is_down else "keyUp"
        await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number, **text)

    async def click(self, element: str) -> None:
        x, y = await self.middle(element)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Put fingers down (touchStart), move them (touchMove), or lift them (touchEnd, without points)."""
        await self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    async def middle(self, element: str) -> tuple[float, float]:
        box = await self.evaluate(
            f"(() => {{ const b = document.querySelector('{element}').getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return box[0], box[1]

    async def screenshot(self) -> bytes:
        """Return a PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    async def close(self) -> None:
        self._reader.cancel()
        await self._stream.close()


class Chromium:
    """The browser; ``page`` opens a tab, which then is the one that is looked at."""

    def __init__(self, session: aiohttp.ClientSession, port: int, process: asyncio.subprocess.Process) -> None:
        self._session, self._port, self._process = session, port, process
        self._pages: list[Page] = []

    async def page(self, url: str) -> Page:
        async with self._session.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as answer:
            target = await answer.json()
        made = Page(await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        self._pages.append(made)
        await made.open(url)
        return made

    def stop(self) -> None:
        """Let no process of the browser run, as a machine does that hangs."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        for each in self._pages:
            await each.close()


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Chromium]:
    """Start a browser with a profile of its own, and end it with all of its processes."""
    process = await asyncio.create_subprocess_exec(
        find_chromium(),
        *FLAGS,
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = await asyncio.to_thread(_port, folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            browser = Chromium(session, port, process)
            yield browser
            await browser.close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _port(path: Path) -> int:
    end = time.monotonic() + START_S
    while True:
        lines = path.read_text().splitlines() if path.is_file() else []
        if len(lines) >= 2:
            return int(lines[0])
        assert time.monotonic() < end, f"chromium did not start within {START_S} s"
        time.sleep(0.05)
