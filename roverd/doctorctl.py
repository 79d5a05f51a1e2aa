"""The part of roverctl that looks whether everything is well: doctor and selfcheck."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node.checkup.check import FAIL, MARKS, render
from protocol.node.checkup.command import ask, daemon_arguments
from protocol.node.ctl import Command
from protocol.node.socket import ControlClient
from roverd.options import DEFAULT_SOCKET, parse

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from protocol.node.ctl import Outcome

SELFCHECK_S = 120.0


class NotAskedError(RoverError):
    """The robot would move and nobody was there, or willing, to let it."""


def _examine_without(problem: str, words: Sequence[str], cause: BaseException | None) -> dict[str, Any]:
    from roverd.doctor import examine_without  # noqa: PLC0415 - imports the daemon, which no other command needs

    return examine_without(problem, words, cause)


def _doctor(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return ask(
        client,
        arguments,
        "roverd",
        DEFAULT_SOCKET,
        socket_of=lambda words: parse(words).value.control_socket,
        examine_without=_examine_without,
    )


def _selfcheck(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    """Show the newest, or tell the person what will happen, ask, and make one."""
    answer = client.get("/selfcheck")
    if arguments.show:
        return answer, 0 if answer["armed"] else 1
    print(_warning(answer["pulses"]), file=sys.stderr, flush=True)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise NotAskedError("selfcheck: nobody is here to be asked; run it in a terminal, or with --yes")
        print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise NotAskedError("selfcheck: not made; the robot did not move")
    try:
        answer = ControlClient(client.path, SELFCHECK_S).post("/selfcheck")
    except KeyboardInterrupt:
        client.post("/selfcheck/cancel")
        raise
    return answer, 0 if answer["passed"] else 1


def _warning(pulses: Sequence[dict[str, Any]]) -> str:
    """Say in centimetres and degrees what the robot will do."""
    words = [_way(pulse) for pulse in pulses]
    text = f"the robot will move by itself: {', then '.join(words)}"
    return f"{text}\nclear half a metre around it, and keep a hand at its stop; roverctl estop stops it too"


def _way(pulse: dict[str, Any]) -> str:
    distance_cm = abs(100 * pulse["forward_mps"] * pulse["seconds"])
    if distance_cm:
        return f"{pulse['name']} {distance_cm:.0f} cm"
    return f"{pulse['name']} {abs(math.degrees(pulse['left_radps'] * pulse['seconds'])):.0f} degrees"


def _selfcheck_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask whether the robot may move")
    parser.add_argument("--show", action="store_true", help="show the newest result; the robot does not move")


def _render_selfcheck(answer: dict[str, Any]) -> str:
    lines = []
    for row in answer["checks"]:
        lines.append(f"  {MARKS[row['state']]}  {row['check']}: {row['measured']}")
        if row["state"] == FAIL:
            lines += [f"        expected: {row['expected']}", f"        do: {row['hint']}"]
    lines.append(_verdict(answer))
    return "\n".join([*lines, *(f"while driving: {told}" for told in answer["contradictions"].values())])


def _verdict(answer: dict[str, Any]) -> str:
    armed = "a policy may drive" if answer["armed"] else "no policy may drive"
    if answer["passed"] is None:
        return f"never made; {armed}"
    if not answer["passed"]:
        return f"failed at {answer['at']}: {answer['fault']}; {armed}"
    old = f", but {answer['refusal']}" if answer["refusal"] else ""
    return f"passed at {answer['at']}{old}; {armed}"


COMMANDS = (
    Command(
        ("doctor",),
        "check the computer, punctuality, sensors, link, policy and disk, with or without a daemon; 1 when one fails",
        _doctor,
        daemon_arguments,
        render,
    ),
    Command(
        ("selfcheck",),
        "move a little and see whether wheels, odometry and IMU agree; a robot is armed by it",
        _selfcheck,
        _selfcheck_arguments,
        _render_selfcheck,
    ),
)
