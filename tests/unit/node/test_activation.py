"""Sockets that systemd opened for the daemon."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from protocol.node.socket import ControlClient, ControlError, ControlSocket, Route, turn_away

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAKE = """
import os, socket, sys
from protocol.node.activation import inherited
pid, names, kinds = sys.argv[1:]
opened = []
for kind in kinds.split():
    opened.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM))
    opened[-1].bind("")
    if kind == "stream":
        opened[-1].listen()
assert [each.fileno() for each in opened] == list(range(3, 3 + len(opened)))
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=str(len(opened)), LISTEN_FDNAMES=names)
found = inherited("control")
assert not [key for key in os.environ if key.startswith("LISTEN_")], "a child would take them for its own"
print(-1 if found is None else found.fileno(), found is not None and os.get_inheritable(found.fileno()))
"""


def take(*, pid: str = "", names: str, kinds: str) -> str:
    words = [sys.executable, "-c", TAKE, pid, names, kinds]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"names": "control", "kinds": "stream"}, "3 False"),
        ({"names": "other:control", "kinds": "stream stream"}, "4 False"),
        ({"names": "other", "kinds": "stream"}, "-1 False"),
        ({"names": "control", "kinds": "datagram"}, "-1 False"),
        ({"names": "control", "kinds": "deaf"}, "-1 False"),
        ({"names": "control", "kinds": "stream", "pid": "1"}, "-1 False"),
    ],
    ids=["ours", "second", "another name", "no stream", "not listening", "for another process"],
)
def test_the_socket_of_our_name_is_taken_and_no_other(facts: dict[str, str], found: str) -> None:
    assert take(**facts) == found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.bind(str(tmp_path / "control.sock"))
        opened.listen()
        opened.setblocking(False)
        yield opened


async def ask(path: Path) -> dict[str, object]:
    return await asyncio.to_thread(ControlClient(path, timeout_s=5.0).get, "/status")


async def test_a_socket_of_systemd_is_served_and_stays_when_the_daemon_ends(
    tmp_path: Path, listener: socket.socket
) -> None:
    async def status(_request: object) -> dict[str, object]:
        return {"pid": 1}

    path = tmp_path / "control.sock"
    early = asyncio.create_task(ask(path))  # it connects before the daemon serves
    await asyncio.sleep(0.05)
    service = ControlSocket(path, [Route("GET", "/status", status, mutating=False)], listener=listener.dup())
    task = asyncio.create_task(service.run())
    assert (await early)["pid"] == 1
    assert (await ask(path))["pid"] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert path.exists()
    late = asyncio.create_task(ask(path))
    await asyncio.sleep(0.05)
    assert not late.done()
    turn_away(listener, "trainerd cannot start; a.toml: no option ppo.gama")
    with pytest.raises(ControlError, match=r"no option ppo\.gama"):
        await late


async def test_who_calls_a_daemon_that_cannot_start_hears_why(tmp_path: Path, listener: socket.socket) -> None:
    calls = [asyncio.create_task(ask(tmp_path / "control.sock")) for _ in range(3)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(tmp_path / "control.sock"))
        await asyncio.sleep(0.1)
        turn_away(listener, "no")
    for call in calls:
        with pytest.raises(ControlError, match=r"^no$") as caught:
            await call
        assert caught.value.status == 503


def test_who_may_not_use_the_socket_is_told_which_group_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_connection: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "control.sock").touch()
    monkeypatch.setattr("protocol.node.socket._UnixConnection.connect", refuse)
    with pytest.raises(ControlError, match=r"not allowed; members of group \S+ may: sudo usermod -aG"):
        ControlClient(tmp_path / "control.sock").get("/status")
