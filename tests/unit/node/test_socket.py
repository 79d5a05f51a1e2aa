"""The control socket and its client, over a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from structlog.testing import capture_logs

from protocol.node.socket import ControlClient, ControlError, ControlSocket, ControlSocketError, RequestError, Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from protocol.node.socket import Request


async def echo(request: Request) -> dict[str, Any]:
    return {
        "params": dict(request.params),
        "query": dict(request.query),
        "body": dict(request.body),
        "uid": request.uid,
        "pid": request.pid,
    }


async def refuse(request: Request) -> dict[str, Any]:
    raise RequestError(409, "policy b: it is already running")


async def crash(request: Request) -> dict[str, Any]:
    raise KeyError("oops")


ROUTES = [
    Route("GET", "/echo/{name}", echo, mutating=False),
    Route("POST", "/echo", echo, mutating=True),
    Route("POST", "/refuse", refuse, mutating=True),
    Route("GET", "/crash", crash, mutating=False),
]


@contextlib.asynccontextmanager
async def serving(path: Path, audit: Path | None = None) -> AsyncIterator[ControlClient]:
    service = ControlSocket(path, ROUTES, audit=audit)
    running = asyncio.create_task(service.run())
    listening = asyncio.create_task(service.listening.wait())
    await asyncio.wait([running, listening], return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            running.result()
        yield ControlClient(path, timeout_s=5)
    finally:
        listening.cancel()
        running.cancel()
        await asyncio.wait([running])


async def test_a_request_reaches_its_handler_with_the_callers_uid(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        answer = await asyncio.to_thread(client.get, "/echo/b", limit=3)
        assert answer["ok"]
        assert (answer["params"], answer["query"]) == ({"name": "b"}, {"limit": "3"})
        assert (answer["uid"], answer["pid"]) == (os.getuid(), os.getpid())
        answer = await asyncio.to_thread(client.post, "/echo", {"a": [1]})
        assert answer["body"] == {"a": [1]}


def test_the_callers_uid_is_known_under_uvloop(tmp_path: Path) -> None:
    async def ask() -> dict[str, Any]:
        async with serving(tmp_path / "s") as client:
            return await asyncio.to_thread(client.get, "/echo/b")

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(ask())["uid"] == os.getuid()
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def test_only_owner_and_group_may_connect(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660


async def test_the_socket_is_gone_after_the_service(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        pass
    assert not (tmp_path / "s").exists()


async def test_a_refusal_gives_its_reason_and_status(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        with pytest.raises(ControlError, match="policy b: it is already running") as raised:
            await asyncio.to_thread(client.post, "/refuse")
    assert raised.value.status == 409


async def test_a_crash_in_a_handler_is_answered_and_logged_and_the_daemon_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        with capture_logs() as logs, pytest.raises(ControlError, match="GET /crash: KeyError: 'oops'") as raised:
            await asyncio.to_thread(client.get, "/crash")
        assert raised.value.status == 500
        assert [each["event"] for each in logs] == ["request.failed"]
        assert (await asyncio.to_thread(client.get, "/echo/b"))["ok"]


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [("GET", "/nothing", "GET /nothing: no such route"), ("POST", "/crash", "POST /crash: not with this method")],
)
async def test_an_unknown_route_is_answered_in_json(tmp_path: Path, method: str, path: str, error: str) -> None:
    async with serving(tmp_path / "s") as client:
        ask = client.get if method == "GET" else client.post
        with pytest.raises(ControlError, match=error):
            await asyncio.to_thread(ask, path)


def nested(depth: int) -> bytes:
    return b'{"a": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "error", "header"),
    [
        (b"{", b"not valid JSON", ""),
        (b"[1]", b"a JSON object was expected", ""),
        (nested(20), b"within each other", ""),
        (nested(900), b"request body: ", ""),
        (nested(100_000), b"not valid JSON", ""),
        (b"no gzip", b"request body: ", "Content-Encoding: gzip\r\n"),
    ],
    ids=["cut", "list", "deep", "very deep", "endless", "not compressed"],
)
async def test_a_body_that_is_no_json_object_is_refused(tmp_path: Path, body: bytes, error: bytes, header: str) -> None:
    async with serving(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        head = f"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{header}\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400")
    assert error in answer


async def test_only_mutating_commands_are_audited(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", audit=tmp_path / "audit.jsonl") as client:
        await asyncio.to_thread(client.get, "/echo/b")
        await asyncio.to_thread(client.post, "/echo", {"a": 1})
        with pytest.raises(ControlError):
            await asyncio.to_thread(client.post, "/refuse")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(each["path"], each["body"], each["uid"]) for each in lines] == [
        ("/echo", {"a": 1}, os.getuid()),
        ("/refuse", {}, os.getuid()),
    ]


async def test_an_audit_log_that_cannot_be_written_does_not_stop_a_command(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", audit=tmp_path / "missing" / "audit.jsonl") as client:
        with capture_logs() as logs:
            assert (await asyncio.to_thread(client.post, "/echo"))["ok"]
    assert [each["event"] for each in logs] == ["audit.write_failed"]


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    async with serving(tmp_path / "s") as client:
        assert (await asyncio.to_thread(client.get, "/echo/b"))["ok"]


async def test_a_live_daemon_is_left_alone(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as client:
        with pytest.raises(ControlSocketError, match="another daemon is running; stop it or choose another"):
            async with serving(tmp_path / "s"):
                pass
        assert (await asyncio.to_thread(client.get, "/echo/b"))["ok"]


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ControlSocketError, match="something else lies here"):
        async with serving(tmp_path / "s"):
            pass
    assert (tmp_path / "s").read_text() == "precious"


def test_a_missing_daemon_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no daemon answers here; is the daemon running"):
        ControlClient(tmp_path / "s").get("/status")


async def test_a_caller_that_hangs_up_in_the_middle_is_no_failure_of_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "s") as client:
        _, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await asyncio.sleep(0.05)  # so that the handler waits for the rest
        writer.close()
        await writer.wait_closed()
        assert (await asyncio.to_thread(client.get, "/echo/b"))["ok"]
    assert [record.getMessage() for record in caplog.records] == []
