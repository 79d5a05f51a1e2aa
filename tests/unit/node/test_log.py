"""Logs: form, taming of fields, and repeats."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from protocol.node.log import FIELD_LIMIT, FloodLimiter, RepeatLimiter, configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_without_a_terminal_each_line_on_stdout_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("roverd")
    get_logger(rover_id="r1").info("policy.swapped", seconds=0.5)
    get_logger().debug("policy.seen")
    (line,) = lines(capsys)
    assert line.pop("timestamp")
    assert line == {"daemon": "roverd", "event": "policy.swapped", "level": "info", "rover_id": "r1", "seconds": 0.5}


def test_a_terminal_gets_a_line_for_people_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    configure("roverd")
    get_logger().info("policy.swapped", name="a\x1b[31m\nb")
    output = capsys.readouterr()
    assert output.out == ""
    assert "policy.swapped" in output.err
    assert len(output.err.splitlines()) == 1
    assert "\x1b[31m\n" not in output.err


def test_control_characters_are_escaped_and_long_fields_cut(capsys: pytest.CaptureFixture[str]) -> None:
    configure("roverd")
    get_logger().info("a.b", text="x\x1b\n", long="y" * 5000, nested={"k": ["\x07"]}, raw=b"\x00" * 5000)
    (line,) = lines(capsys)
    assert line["text"] == "x\\x1b\\n"
    assert line["nested"] == {"k": ["\\x07"]}
    assert line["long"] == "y" * FIELD_LIMIT + "... (5000 characters)"
    assert len(line["raw"]) < FIELD_LIMIT + 40


def test_an_exception_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("roverd")
    try:
        raise ValueError("bad")
    except ValueError:
        get_logger().exception("a.failed")
    (line,) = lines(capsys)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("\nValueError: bad")


def test_warnings_of_libraries_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    configure("roverd")
    logging.getLogger("aiohttp").warning("port %d", 3)
    logging.getLogger("aiohttp").info("hidden")
    logging.getLogger("aiohttp").error("broken")
    assert [(each["event"], each["text"]) for each in lines(capsys)] == [
        ("library.warned", "port 3"),
        ("library.failed", "broken"),
    ]


def test_repeats_are_logged_at_powers_of_ten() -> None:
    limiter = RepeatLimiter()
    assert [count for _ in range(150) if (count := limiter.count("a"))] == [1, 10, 100]
    assert limiter.count("b") == 1
    assert limiter.reset("a") == 150
    assert limiter.count("a") == 1


def test_a_flood_is_cut_and_counted() -> None:
    now = [0.0]
    limiter = FloodLimiter(burst=3, per_s=1.0, clock=lambda: now[0])

    def passes(event: str) -> Any:
        try:
            return limiter(None, "info", {"event": event})
        except structlog.DropEvent:
            return None

    assert [passes("a.b") is not None for _ in range(50_000)] == [True] * 3 + [False] * 49_997
    assert passes("c.d") == {"event": "c.d", "suppressed": {"a.b": 49_997}}
    assert passes("c.d") == {"event": "c.d"}
    assert passes("a.b") is None
    now[0] = 1.0
    assert passes("a.b") == {"event": "a.b", "suppressed": {"a.b": 1}}


def test_fifty_thousand_lines_at_once_leave_what_journald_takes(capsys: pytest.CaptureFixture[str]) -> None:
    configure("roverd")
    log = get_logger()
    for number in range(50_000):
        log.info("a.flooded", number=number)
    log.info("b.next")
    shown = lines(capsys)
    assert len(shown) < 500
    assert sum(each.get("suppressed", {}).get("a.flooded", 0) for each in shown) + len(shown) - 1 == 50_000
