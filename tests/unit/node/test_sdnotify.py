"""The messages to systemd."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from protocol.node import sdnotify

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_gets_every_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool) -> None:  # noqa: FBT001
    name = f"roverloop-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if is_abstract else name)
        sent = [sdnotify.ready(), sdnotify.status("a\nb"), sdnotify.watchdog(), sdnotify.stopping()]
        assert sent == [True] * 4
        assert [systemd.recv(99) for _ in sent] == [b"READY=1", b"STATUS=a b", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "nonsense"])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sdnotify.ready()


def test_the_watchdog_is_fed_twice_an_interval_and_only_where_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert sdnotify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    assert sdnotify.watchdog_interval_s() == 5.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_interval_s() is None
