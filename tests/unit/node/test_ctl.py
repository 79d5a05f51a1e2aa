"""The command lines: tables of commands, output and exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from protocol.node.ctl import Command, render_table, run_command_line
from protocol.node.socket import ControlError

if TYPE_CHECKING:
    import argparse

    from protocol.node.socket import ControlClient


def listed(client: ControlClient, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    return {"ok": True, "socket": str(client.path), "limit": arguments.limit}, 0


def refused(client: ControlClient, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    raise ControlError("policy b: unknown")


def degraded(client: ControlClient, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    return {"ok": True}, 1


COMMANDS = [
    Command(("policy", "list"), "list policies", listed, lambda parser: parser.add_argument("--limit", type=int)),  # type: ignore[arg-type,return-value]
    Command(("policy", "use"), "use a policy", refused),
    Command(("doctor",), "check this machine", degraded, render=lambda _: "one check failed"),
]


def call(*arguments: str) -> int:
    return run_command_line("roverctl", "control", COMMANDS, default_socket=Path("/run/x.sock"), arguments=arguments)


def test_an_answer_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("policy", "list", "--limit", "3") == 0
    assert capsys.readouterr().out == "socket  /run/x.sock\nlimit   3\n"


@pytest.mark.parametrize("arguments", [("--json", "policy", "list"), ("policy", "list", "--json")])
def test_json_may_be_asked_for_before_or_behind_the_words(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "socket": "/run/x.sock", "limit": None}


@pytest.mark.parametrize(
    "arguments", [("--control-socket", "/a", "policy", "list"), ("policy", "list", "--control-socket", "/a")]
)
def test_another_socket_may_be_given(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    assert "/a" in capsys.readouterr().out


def test_a_refusal_is_one_line_on_stderr_and_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("policy", "use") == 1
    assert capsys.readouterr() == ("", "roverctl: policy b: unknown\n")


def test_a_refusal_is_json_on_stdout_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("policy", "use", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"ok": False, "error": "policy b: unknown"}


def test_a_command_may_choose_its_exit_status_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 1
    assert capsys.readouterr().out == "one check failed\n"


@pytest.mark.parametrize("arguments", [(), ("policy",), ("policy", "eat"), ("policy", "list", "--limit", "x")])
def test_wrong_usage_exits_with_status_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        call(*arguments)
    assert raised.value.code == 2
    assert "usage: roverctl" in capsys.readouterr().err


def test_a_table_is_aligned() -> None:
    assert render_table([("a", 1), ("bbb", 22)], ("name", "n")) == "name  n\na     1\nbbb   22"
