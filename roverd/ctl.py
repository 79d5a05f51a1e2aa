"""roverctl: ask and steer a running roverd."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from protocol.node.config import show
from protocol.node.ctl import Command, getting, posting, render_facts, render_table, run_command_line
from protocol.pairing import DEFAULT_PORT
from roverd.doctorctl import COMMANDS as DOCTOR_COMMANDS
from roverd.options import DEFAULT_SOCKET, parse
from roverd.pairing import PairingError
from roverd.policy_commands import POLICY_COMMANDS
from roverd.teleopctl import COMMANDS as TELEOP_COMMANDS

if TYPE_CHECKING:
    import argparse

    from protocol.node.ctl import Outcome
    from protocol.node.socket import ControlClient

POLL_S = 0.25
LINK_S = 5.0
"""How long pair waits to see what becomes of the link."""


def _status(client: ControlClient, _: argparse.Namespace) -> Outcome:
    answer = client.get("/status")
    return answer, 0 if answer["health"]["ok"] else 1


def _render_status(answer: dict[str, Any]) -> str:
    health = answer["health"]
    return render_facts({**answer, "health": "ok" if health["ok"] else "degraded: " + "; ".join(health["causes"])})


def _e_stop(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post("/e_stop", {"reason": arguments.reason}), 0


def _start(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    body = {}
    if arguments.controller:
        body = {"controller": arguments.controller, "episodes": arguments.episodes, "seed": arguments.seed}
    return client.post("/episode/start", body), 0


def _start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--controller", default="", help="let a scripted controller drive instead of the policy")
    parser.add_argument("--episodes", type=int, default=1, help="how many episodes the controller drives")
    parser.add_argument("--seed", type=int, default=2_000_000, help="arena of its first episode")


def _e_stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="roverctl", help="what the log and status shall say")


def _key(client: ControlClient, _: argparse.Namespace) -> Outcome:
    answer = client.get("/keys")
    return {**answer, "at_the_trainer": f"trainerctl rover add {answer['rover_id']} {shlex.quote(answer['public'])}"}, 0


def _trust(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post("/trust", {"key": arguments.key, "address": arguments.address}), 0


def _trust_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="the trainer's public key, in single quotes: trainerctl key show")
    parser.add_argument("--address", default="", metavar="URL", help="where it listens, such as tcp://10.0.0.2:5555")


def _pair(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    """Show the code, wait for the trainer, ask the person, wait for the link."""
    if not arguments.yes and not sys.stdin.isatty():
        raise PairingError("pair: nobody is here to be asked; run it in a terminal, or with --yes")
    answer = client.post("/pair", {"host": arguments.host, "port": arguments.port})
    try:
        answer = _await_trainer(client, answer)
        if not arguments.yes and not _ask(f"did trainerctl print 'paired {answer['rover_id']}'? [y/N] "):
            client.post("/pair/cancel")
            text = "not paired: the code was not accepted at your trainer, so somebody else answered here"
            raise PairingError(f"pair: {text}; try again from a network that you trust")
    except KeyboardInterrupt:
        client.post("/pair/cancel")
        raise
    answer = client.post("/pair/accept", {"code": answer["code"]})
    deadline_s = time.monotonic() + LINK_S
    while answer["link"]["state"] not in {"linked", "refused"} and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        answer = {**answer, **client.get("/pair")}
    return answer, 0 if answer["link"]["state"] != "refused" else 1


def _await_trainer(client: ControlClient, answer: dict[str, Any]) -> dict[str, Any]:
    """Wait until the trainer has confirmed; what people need to know meanwhile goes to stderr."""
    shown = ""
    while answer["state"] != "confirmed":
        if answer["state"] not in {"connecting", "comparing"}:
            raise PairingError(answer["reason"] or f"pair: {answer['state']}")
        if answer["code"] and answer["code"] != shown:
            shown = answer["code"]
            print(f"code {shown}, trainer {answer['trainer_fingerprint']}", file=sys.stderr)
            print(f"at the trainer: trainerctl rover confirm {shown}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
        answer = client.get("/pair")
    return answer


def _ask(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _pair_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="the trainer's name or address")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"its pairing port (default {DEFAULT_PORT})")
    parser.add_argument("--yes", action="store_true", help="do not ask whether trainerctl accepted the code")


def _paired(answer: dict[str, Any]) -> str:
    link = answer["link"]
    lines = [f"paired with trainer {answer['trainer_fingerprint']} at {answer['address']}"]
    lines.append(f"link: {link['state']}" + (f": {link['refusal']}" if link["refusal"] else ""))
    return "\n".join([*lines, *filter(None, [answer.get("hint")])])


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
    Command(("status",), "rates, policy, link, health; exit status 1 when degraded", _status, render=_render_status),
    *DOCTOR_COMMANDS,
    *POLICY_COMMANDS,
    Command(("episode", "start"), "drive, after an episode stop", _start, arguments=_start_arguments),
    Command(("episode", "stop"), "end the episode and stand still", posting("/episode/stop")),
    *TELEOP_COMMANDS,
    Command(("estop",), "stop now and stay stopped", _e_stop, arguments=_e_stop_arguments),
    Command(("clear",), "release the emergency stop", posting("/clear")),
    Command(("pair",), "come to trust a trainer, and it this rover", _pair, arguments=_pair_arguments, render=_paired),
    Command(("key", "show"), "the public keys of this rover and of its trainer", _key),
    Command(("trust",), "trust the trainer of this key", _trust, arguments=_trust_arguments),
    Command(("plugins",), "plugins, their calls and faults", getting("/plugins"), render=_plugins),
    Command(("config", "show"), "effective options", _config, arguments=_config_arguments, render=_options),
)


def main() -> None:
    """Run one command; exit 0 when done, 1 when refused, 2 for wrong usage."""
    sys.exit(run_command_line("roverctl", "Ask and steer a running roverd.", COMMANDS, default_socket=DEFAULT_SOCKET))


if __name__ == "__main__":
    main()
