"""Log lines on their way to journald."""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from protocol.node import journal
from protocol.node.journal import JournalLogger, encode, fields_of, is_journal
from protocol.node.log import configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(5.0)
        yield listener


@pytest.fixture
def logger(journald: socket.socket) -> Iterator[JournalLogger]:
    logger = JournalLogger(journald.getsockname())
    yield logger
    logger.close()


def decode(content: bytes) -> dict[str, str]:
    """Read the native protocol as journald does."""
    fields = {}
    while content:
        line, _, rest = content.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        content = rest
    return fields


def test_every_key_of_a_line_is_a_field() -> None:
    line = {
        "level": "warning",
        "daemon": "roverd",
        "event": "policy.refused",
        "policy_id": "ab",
        "seconds": 0.5,
        "n": 3,
    }
    assert fields_of({**line, "timestamp": "2026", "counts": {"a": 1}, "is-new": True}) == {
        "MESSAGE": 'policy.refused policy_id=ab seconds=0.5 n=3 counts={"a": 1} is-new=true',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "roverd",
        "ROVERLOOP_EVENT": "policy.refused",
        "ROVERLOOP_POLICY_ID": "ab",
        "ROVERLOOP_SECONDS": "0.5",
        "ROVERLOOP_N": "3",
        "ROVERLOOP_COUNTS": '{"a": 1}',
        "ROVERLOOP_IS_NEW": "true",
    }


def test_a_key_cannot_take_the_place_of_a_field_that_journald_or_we_give() -> None:
    fields = fields_of({"event": "a.b", "level": "info", "message": "no", "_pid": 1, "priority": 0, "x" * 99: 1})
    assert (fields["MESSAGE"].split()[0], fields["PRIORITY"]) == ("a.b", "6")
    assert all(name in {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"} or name.startswith("ROVERLOOP_") for name in fields)
    assert max(map(len, fields)) == journal.MAX_NAME


def test_values_come_through_whatever_is_in_them() -> None:
    fields = {"MESSAGE": "one\ntwo\n\n", "A": "", "B": "x=y", "C": "é\x00\n", "D": "plain"}
    assert decode(encode(fields)) == fields


def test_an_exception_is_read_below_its_line_and_is_a_field() -> None:
    fields = fields_of({"event": "a.failed", "level": "error", "exception": "Traceback\n  line"})
    assert fields["MESSAGE"] == "a.failed\nTraceback\n  line"
    assert fields["ROVERLOOP_EXCEPTION"] == "Traceback\n  line"


def test_a_line_that_no_datagram_holds_goes_as_a_sealed_file(journald: socket.socket, logger: JournalLogger) -> None:
    content = encode({"MESSAGE": "x" * (4 << 20)})
    logger.msg(content)
    fds = array.array("i")
    received, ancillary, _, _ = journald.recvmsg(16, socket.CMSG_LEN(4))
    fds.frombytes(ancillary[0][2])
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)  # journald maps it
        assert (received, file.read() == content) == (b"", True)
        with pytest.raises(PermissionError):
            os.truncate(file.fileno(), 1)
    assert logger.dropped == 0


def test_a_journald_that_does_not_read_costs_lines_and_no_time(journald: socket.socket, logger: JournalLogger) -> None:
    for number in range(5000):
        logger.msg(encode({"N": str(number)}))
    dropped = logger.dropped
    assert 0 < dropped < 5000
    for number in range(5000 - dropped):
        assert decode(journald.recv(999)) == {"N": str(number)}
    logger.msg(encode({"N": "again"}))
    assert decode(journald.recv(999)) == {"N": "again", "ROVERLOOP_DROPPED": str(dropped)}
    logger.msg(encode({"N": "next"}))
    assert decode(journald.recv(999)) == {"N": "next"}


def test_without_journald_nothing_is_raised(tmp_path: Path) -> None:
    logger = JournalLogger(str(tmp_path / "nobody"))
    logger.msg(b"A=1\n")
    assert logger.dropped == 1
    logger.close()


def test_a_stream_is_the_journal_only_where_systemd_says_that_very_one_is(monkeypatch: Any, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        facts = os.fstat(stream.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
        assert is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino + 1}")
        assert not is_journal(stream)


def test_under_systemd_the_log_goes_to_the_journal(
    monkeypatch: Any, journald: socket.socket, logger: JournalLogger, capsys: Any
) -> None:
    monkeypatch.setattr(journal, "is_journal", lambda _: True)
    monkeypatch.setattr(journal, "JournalLogger", lambda: logger)
    configure("roverd")
    try:
        get_logger(rover_id="r1").error("link.lost", hint="look\nhere")
        fields = decode(journald.recv(9999))
    finally:
        structlog.reset_defaults()
    assert (fields["ROVERLOOP_EVENT"], fields["ROVERLOOP_ROVER_ID"], fields["PRIORITY"]) == ("link.lost", "r1", "3")
    assert fields["ROVERLOOP_HINT"] == "look\\nhere"
    assert capsys.readouterr().out == ""
