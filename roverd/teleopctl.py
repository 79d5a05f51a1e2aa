"""The commands of roverctl with which a person drives and collects episodes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node.ctl import Command, posting, render_facts

if TYPE_CHECKING:
    import argparse

    from protocol.node.ctl import Outcome
    from protocol.node.socket import ControlClient


class TerminalError(RoverError):
    """There is no terminal to drive in."""


def _drive(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    """Apply one action, or, without one, drive with the keys until the person quits."""
    if arguments.action:
        return client.post("/drive", {"action": arguments.action, "seconds": arguments.seconds}), 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TerminalError("drive: give an action, or run it in a terminal to drive with the keys")
    from roverd.terminal import drive_in_terminal  # noqa: PLC0415 - termios only where there is a terminal

    return drive_in_terminal(client, hold_first_ms=arguments.hold_first_ms, by_force=arguments.force), 0


def _drive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="*", type=float, help="one number per action element, in its unit; none: drive with the keys"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="how long an action that is given holds")
    parser.add_argument(
        "--hold-first-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="keys: hold the first press of a key for so long, until the keyboard repeats it (often 500 to 660)",
    )
    parser.add_argument("--force", action="store_true", help="keys: take the wheel from somebody who drives")


def _get_wheel(client: ControlClient, _: argparse.Namespace) -> Outcome:
    return client.get("/wheel")["view"]["wheel"], 0


def _release(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post("/wheel/release", {"force": arguments.force}), 0


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="whoever has it; the policy then drives on")


def _collect_start(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    body = {key: getattr(arguments, key) for key in ("mode", "episodes", "name", "task", "controller", "seed")}
    return client.post("/collect/start", body), 0


def _collect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=("teleop", "controller"), default="teleop", help="a person, or a controller")
    parser.add_argument("--episodes", type=int, default=100, help="how many to keep; discarded ones do not count")
    parser.add_argument("--name", default="", help="label of the collection (default: the time)")
    parser.add_argument("--task", default="", help="the task that is expected to run; refused where another one does")
    parser.add_argument("--controller", default="", metavar="NAME", help="who drives with --mode controller")
    parser.add_argument("--seed", type=int, default=None, help="arena of the first episode, for simulated robots")


def _judge(verdict: str) -> Any:
    def run(client: ControlClient, _: argparse.Namespace) -> Outcome:
        return client.post("/collect/judge", {"verdict": verdict}), 0

    return run


def _collect_status(client: ControlClient, _: argparse.Namespace) -> Outcome:
    return client.get("/collect"), 0


def _render_collection(answer: dict[str, Any]) -> str:
    facts = answer["collection"]
    if facts is None:
        return "nothing was ever collected; roverctl collect start"
    text = f"{facts['name']}: {facts['state']}, {facts['kept']} of {facts['target']} episodes by {facts['mode']}"
    text += f" ({facts['successes']} successes, {facts['failures']} failures; {facts['discarded']} discarded)"
    if facts["is_waiting"]:
        text += "\nwaiting for the operator: take the wheel, or roverctl collect next"
    return text


def _web(client: ControlClient, _: argparse.Namespace) -> Outcome:
    answer = client.get("/web")
    return answer, 0 if answer["state"] == "serving" else 1


def _render_web(answer: dict[str, Any]) -> str:
    if answer["state"] == "serving":
        return str(answer["url"])
    return f"{answer['state']}: {answer['reason'] or 'no page; see teleop.port, and control.rate_hz must not be 0'}"


def _collect(verb: str, text: str, run: Any, arguments: Any = None) -> Command:
    more = {} if arguments is None else {"arguments": arguments}
    return Command(("collect", verb), text, run, render=_render_collection, **more)


COMMANDS = (
    Command(
        ("drive",), "take the wheel: with the keys, or one action for a moment", _drive, arguments=_drive_arguments
    ),
    Command(("wheel", "show"), "who drives", _get_wheel, render=render_facts),
    Command(("wheel", "release"), "let the policy drive on", _release, arguments=_release_arguments),
    Command(("web",), "the address of the page to drive on, with its token", _web, render=_render_web),
    _collect("start", "collect episodes by hand or from a controller", _collect_start, _collect_arguments),
    _collect("status", "how far the collection is", _collect_status),
    _collect("next", "let the next episode begin", posting("/collect/next")),
    _collect("success", "end the episode: it is good", _judge("success")),
    _collect("failure", "end the episode: it failed, and counts", _judge("failure")),
    _collect("discard", "end the episode: it does not count", _judge("discard")),
    _collect("stop", "end the collection", posting("/collect/stop")),
)
