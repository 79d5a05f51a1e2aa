"""roverctl: ask and steer a running roverd."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.node.config import show
from protocol.node.ctl import Command, render_facts, render_table, run_command_line
from roverd.options import parse

if TYPE_CHECKING:
    import argparse

    from protocol.node.ctl import Outcome
    from protocol.node.socket import ControlClient

DEFAULT_SOCKET = Path(os.environ.get("ROVERD_CONTROL_SOCKET", "/run/roverd/control.sock"))


def _get(path: str) -> Any:
    def run(client: ControlClient, _: argparse.Namespace) -> Outcome:
        return client.get(path), 0

    return run


def _post(path: str) -> Any:
    def run(client: ControlClient, _: argparse.Namespace) -> Outcome:
        return client.post(path), 0

    return run


def _doctor(client: ControlClient, _: argparse.Namespace) -> Outcome:
    answer = client.get("/doctor")
    return answer, 0 if answer["healthy"] else 1


def _e_stop(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post("/e_stop", {"reason": arguments.reason}), 0


def _drive(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post("/drive", {"action": arguments.action, "seconds": arguments.seconds}), 0


def _start(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    body = {}
    if arguments.controller:
        body = {"controller": arguments.controller, "episodes": arguments.episodes, "seed": arguments.seed}
    return client.post("/episode/start", body), 0


def _start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--controller", default="", help="let a scripted controller drive instead of the policy")
    parser.add_argument("--episodes", type=int, default=1, help="how many episodes the controller drives")
    parser.add_argument("--seed", type=int, default=2_000_000, help="arena of its first episode")


def _drive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="+", type=float, help="one number per action element, in its unit")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long it holds")


def _e_stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="roverctl", help="what the log and status shall say")


def _checks(answer: dict[str, Any]) -> str:
    rows = [
        ("ok" if c["ok"] else "FAIL", c["check"], c["measured"], c["expected"], c["hint"]) for c in answer["checks"]
    ]
    return render_table(rows, ("", "check", "measured", "expected", "what to do"))


def _policies(answer: dict[str, Any]) -> str:
    rows = [
        ("*" if row["driving"] else "", row["policy_id"][:12], row["size_bytes"], row["age_s"])
        for row in answer["policies"]
    ]
    return render_table(rows, ("", "policy", "bytes", "age s"))


def _plugins(answer: dict[str, Any]) -> str:
    rows = [
        tuple(row.get(key, "") for key in ("group", "name", "state", "calls", "failures", "overruns", "last_error"))
        for row in answer["plugins"]
    ]
    return render_table(rows, ("group", "name", "state", "calls", "failures", "overruns", "last error"))


def _config(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    """Show the running daemon's options, or, where a profile is named, those that a daemon would have."""
    if arguments.profile:
        loaded = parse(["--profile", arguments.profile])
        rows = [{"name": n, "value": v, "origin": o} for n, v, o in show(loaded, with_origin=True)]
        answer: dict[str, Any] = {"config": rows}
    else:
        answer = client.get("/config")
    if not arguments.origin:
        answer["config"] = [{"name": row["name"], "value": row["value"]} for row in answer["config"]]
    return answer, 0


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--origin", action="store_true", help="say where each value comes from")
    parser.add_argument("--profile", default="", help="the options of a profile, without a daemon")


def _options(answer: dict[str, Any]) -> str:
    header = tuple(answer["config"][0])
    return render_table([tuple(row.values()) for row in answer["config"]], header)


COMMANDS = (
    Command(("status",), "rates, policy, link and health", _get("/status"), render=render_facts),
    Command(("doctor",), "check this machine, the link and the policy", _doctor, render=_checks),
    Command(("policy", "list"), "policies stored on this robot", _get("/policies"), render=_policies),
    Command(("policy", "reload"), "load the wanted policy again, without a restart", _post("/policies/reload")),
    Command(("policy", "rollback"), "let the policy before this one drive", _post("/policies/rollback")),
    Command(("episode", "start"), "drive, after an episode stop", _start, arguments=_start_arguments),
    Command(("episode", "stop"), "end the episode and stand still", _post("/episode/stop")),
    Command(("drive",), "take the wheel for a moment", _drive, arguments=_drive_arguments),
    Command(("estop",), "stop now and stay stopped", _e_stop, arguments=_e_stop_arguments),
    Command(("clear",), "release the emergency stop", _post("/clear")),
    Command(("plugins",), "plugins, their calls and faults", _get("/plugins"), render=_plugins),
    Command(("config", "show"), "effective options", _config, arguments=_config_arguments, render=_options),
)


def main() -> None:
    """Run one command; exit 0 when done, 1 when refused, 2 for wrong usage."""
    sys.exit(run_command_line("roverctl", "Ask and steer a running roverd.", COMMANDS, default_socket=DEFAULT_SOCKET))


if __name__ == "__main__":
    main()
