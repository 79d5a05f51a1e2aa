"""trainerctl: the command line of trainerd, one table of commands."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from protocol.errors import RoverError
from protocol.node.checkup.check import render
from protocol.node.checkup.command import ask, daemon_arguments
from protocol.node.config import load, show
from protocol.node.ctl import Command, Outcome, getting, posting, render_facts, render_table, run_command_line
from protocol.node.socket import ControlClient, ControlError
from trainerd.episodes import audit_command
from trainerd.options import parse
from trainerd.profiles import profile_layers
from trainerd.rover import realtime_words
from trainerd.settings import DEFAULT_CONTROL_SOCKET, UNIT_SOCKET, Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

POLL_S = 0.5
SHORT = 12
ALWAYS_SHOWN = frozenset({"received", "trained", "lost"})
"""Counters of steps that are worth a look also when they are 0."""


class EvaluationFailedError(RoverError):
    """An evaluation or a lint came to no end; the message says why."""


def _named(method: str, path: str) -> Callable[[ControlClient, argparse.Namespace], Outcome]:
    def run(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
        filled = path.format(name=arguments.name)
        return (client.get(filled) if method == "GET" else client.post(filled)), 0

    return run


def _name(what: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", metavar=what.upper(), help=f"the {what}")

    return add


def _status(client: ControlClient, _arguments: argparse.Namespace) -> Outcome:
    payload = client.get("/status")
    return payload, 0 if payload["health"]["ok"] else 1


def _examine_without(problem: str, words: Sequence[str], cause: BaseException | None) -> dict[str, Any]:
    from trainerd.doctor import examine_without  # noqa: PLC0415 - imports torch, which no other command needs

    return examine_without(problem, words, cause)


def _doctor(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return ask(
        client,
        arguments,
        "trainerd",
        default_socket(),
        socket_of=lambda words: parse(words).value.socket_path,
        examine_without=_examine_without,
    )


def _evaluate(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    body = {
        "policy": arguments.policy,
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "rover": arguments.rover,
    }
    asked = client.post("/evaluate", body)
    if arguments.no_wait:
        return asked, 0
    return _wait(client, f"/evaluations/{asked['id']}", "evaluation"), 0


def _lint(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    body = {"episodes": arguments.episodes, "seed": arguments.seed, "rover": arguments.rover}
    answer = _wait(client, f"/reward/lints/{client.post('/reward/lint', body)['id']}", "reward lint")
    return answer, 0 if answer["passed"] else 1


def _wait(client: ControlClient, path: str, what: str) -> dict[str, Any]:
    """Poll until it is over, with its progress on a terminal."""
    while True:
        answer = client.get(path)
        if answer["stage"] == "failed":
            raise EvaluationFailedError(f"{what}: {answer['reason']}")
        if sys.stderr.isatty():
            print(f"\r{what}: {answer['episodes_done']}/{answer['episodes']} episodes ", end="", file=sys.stderr)
        if answer["stage"] == "finished":
            if sys.stderr.isatty():
                print(file=sys.stderr)
            return answer
        time.sleep(POLL_S)


def _rovers(client: ControlClient, _arguments: argparse.Namespace) -> Outcome:
    return {**client.get("/rovers"), "keys": client.get("/keys")["keys"]}, 0


def _confirm(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post("/pairing/confirm", {"code": " ".join(arguments.code), "again": arguments.again}), 0


def _add_key(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    body = {"public": arguments.key, "again": arguments.again}
    return client.post(f"/rovers/{quote(arguments.name, safe='')}/keys", body), 0


def _revoke(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    return client.post(f"/rovers/{quote(arguments.name, safe='')}/revoke", {"key": arguments.key}), 0


def _key(client: ControlClient, _arguments: argparse.Namespace) -> Outcome:
    answer = client.get("/keys")
    facts = {name: answer[name] for name in ("ok", "public", "fingerprint")}
    return {**facts, "at_the_rover": f"roverctl trust {shlex.quote(answer['public'])}"}, 0


def _config(client: ControlClient, arguments: argparse.Namespace) -> Outcome:
    """Ask the daemon; without one, or where sources are named, load the settings here."""
    is_local = arguments.profile is not None or arguments.config is not None or arguments.set
    rows: list[dict[str, str]] | None = None
    if not is_local:
        try:
            rows = client.get("/config")["config"]
        except ControlError as error:
            if error.status is not None:
                raise
            print(f"trainerctl: {error}; these are the settings a daemon would start with here", file=sys.stderr)
    if rows is None:
        layers = profile_layers(arguments.profile or "default")
        loaded = load(
            Settings,
            layers=layers,
            file=arguments.config,
            env_prefix="TRAINERD_",
            environ=os.environ,
            overrides=arguments.set,
        )
        rows = [{"name": n, "value": v, "origin": o} for n, v, o in show(loaded, with_origin=True)]
    if not arguments.origin:
        rows = [{"name": row["name"], "value": row["value"]} for row in rows]
    return {"ok": True, "config": rows}, 0


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--origin", action="store_true", help="say where each value comes from")
    parser.add_argument("--profile", metavar="NAME", help="show what a daemon with this profile would start with")
    parser.add_argument("--config", type=Path, metavar="FILE", help="likewise with this file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="likewise with this option")


def _confirm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="+", metavar="CODE", help="the six digits that roverctl pair shows")
    _again_argument(parser)


def _add_key_arguments(parser: argparse.ArgumentParser) -> None:
    _name("rover")(parser)
    parser.add_argument("key", metavar="KEY", help="its public key, in single quotes: roverctl key show")
    _again_argument(parser)


def _again_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="also a key that was revoked before")


def _revoke_arguments(parser: argparse.ArgumentParser) -> None:
    _name("rover")(parser)
    parser.add_argument("--key", default="", help="only this one, by its fingerprint or in full (default: all)")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", default="latest", help="latest, a policy's id, or a controller: random, reactive")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the result")
    _batch_arguments(parser, episodes=400, seed=1_000_000)


def _lint_arguments(parser: argparse.ArgumentParser) -> None:
    _batch_arguments(parser, episodes=20, seed=2_000_000)


def _batch_arguments(parser: argparse.ArgumentParser, *, episodes: int, seed: int) -> None:
    parser.add_argument("--episodes", type=int, default=episodes, metavar="N", help=f"episodes (default {episodes})")
    parser.add_argument("--seed", type=int, default=seed, metavar="N", help=f"first arena (default {seed})")
    parser.add_argument("--rover", default="", metavar="NAME", help="the rover (default: the one with least to do)")


def _store_line(store: dict[str, Any]) -> str:
    state = store["state"] if store["state"] == "ok" else f"{store['state']}: {store['reason']}"
    written = f"{store['records']} records, {store['bytes'] / 1e6:.1f} MB since the start"
    return f"{state}, {written}, {store['open_episodes']} episodes open, sync {store['sync_ms_last']:.1f} ms"


def _render_status(payload: dict[str, Any]) -> str:
    steps, policy, health = payload["steps"], payload["policy"], payload["health"]
    budget = f" of {payload['decision_budget']}" if payload["decision_budget"] else ""
    rate = payload["success"]["rate"]
    driving = policy["update_to_driving_s"]
    facts: dict[str, Any] = {
        "state": payload["state"] + (" (frozen)" if payload["is_frozen"] else ""),
        "health": "ok" if health["ok"] else "degraded: " + "; ".join(health["causes"]),
        "run": f"{payload['run_id']}, up {payload['uptime_s']:.0f} s, port {payload['port']}",
        "rovers": payload["rovers"],
        "updates": payload["updates"],
        "decisions": f"{payload['decisions']}{budget}, {payload['decisions_per_second']:.1f} a second",
        "steps": ", ".join(f"{name} {count}" for name, count in steps.items() if count or name in ALWAYS_SHOWN),
        "store": _store_line(payload["store"]),
        "success": "-" if rate is None else f"{100 * rate:.1f} % of {payload['success']['n']} episodes",
        "policy": f"{(policy['wanted'] or '-')[:SHORT]}, counter {policy['wanted_counter']}",
        "exports": f"{policy['exports']}, {policy['export_failed']} failed",
        "to driving": "-" if not driving["n"] else f"mean {driving['mean']:.2f} s, worst {driving['max']:.2f} s",
        "checkpoint": payload["checkpoint"]["latest"] or "-",
        "tensorboard": payload["tensorboard_dir"],
    }
    return render_facts(facts)


def _render_rows(key: str, *columns: str) -> Callable[[dict[str, Any]], str]:
    def render(payload: dict[str, Any]) -> str:
        rows = [[_cell(name, row.get(name)) for name in columns] for row in payload[key]]
        return render_table(rows, [name.removesuffix("_id") for name in columns])

    return render


def _render_rovers(payload: dict[str, Any]) -> str:
    """List the rovers of this process, then those that have a key and did not come yet."""
    columns = ("rover_id", "connected", "steps", "policy_id", "policy_counter", "order_id")
    owners = {row["rover_id"] for row in payload["keys"]}
    seen = {row["rover_id"] for row in payload["rovers"]}
    rows = [*payload["rovers"], *({"rover_id": owner} for owner in sorted(owners - seen))]
    texts = []
    for row in rows:
        keys = [each for each in payload["keys"] if each["rover_id"] == row["rover_id"]]
        prints = [each["fingerprint"] + (" (revoked)" if each["state"] == "revoked" else "") for each in keys]
        granted = realtime_words(row.get("settings", {}).get("realtime")) or "-"
        texts.append([*(_cell(name, row.get(name)) for name in columns), granted, ", ".join(prints) or "-"])
    return render_table(texts, [*(name.removesuffix("_id") for name in columns), "realtime", "keys"])


def _render_pending(payload: dict[str, Any]) -> str:
    if not payload["enabled"]:
        return "pairing is off (link.pairing); by hand: trainerctl key show, trainerctl rover add NAME KEY"
    if not payload["pending"]:
        return f"no rover waits; at the rover: roverctl pair HOST (port {payload['port']})"
    rows = [
        (row["rover_id"], row["address"], row["fingerprint"], f"{row['left_s']:.0f}", row["tries_left"], _note(row))
        for row in payload["pending"]
    ]
    return render_table(rows, ("rover", "address", "key", "s left", "tries left", "note"))


def _note(row: dict[str, Any]) -> str:
    """Say what a person should know before the code is typed."""
    if row["was_revoked"]:
        return "this key was revoked"
    if row["known_as"]:
        return f"its key is let in already, as {row['known_as']}"
    return "another key of this name is let in already" if row["keys"] else ""


def _render_paired(payload: dict[str, Any]) -> str:
    text = f"paired {payload['paired']}, key {payload['fingerprint']}"
    if payload["keys"] > 1:
        name = payload["paired"]
        hint = f"shut the old one out: trainerctl rover revoke {name} --key KEY"
        text += f"\n{name} has {payload['keys']} keys now; {hint}"
    return text


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in {"policy_id", "parent"}:
        return str(value)[:SHORT] or "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _render_evaluation(payload: dict[str, Any]) -> str:
    result = payload["result"]
    if payload["stage"] != "finished" or result is None:
        return f"{payload['id']}  {payload['stage']}, {payload['episodes_done']} of {payload['episodes']} episodes"
    name = f"{payload['policy']} {payload['policy_id'][:SHORT]}".strip()
    rate = f"{100 * result['success']:.1f} % [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"
    words = [f"{name}: success {rate} of {result['n']}", f"collisions {result['collisions']}"]
    words.append(f"time-outs {result['timeouts']}")
    if result["duration_s"] is not None:
        words.append(f"mean time {result['duration_s']:.1f} s")
    if result["path_efficiency"] is not None:
        words.append(f"path efficiency {result['path_efficiency']:.2f}")
    return ", ".join(words)


def _render_lint(payload: dict[str, Any]) -> str:
    lines = []
    for pair in payload["pairs"]:
        earned = [f"{pair[name]:.3f}" if pair[name] is not None else "-" for name in ("better_return", "worse_return")]
        words = "earns more than" if pair["passed"] else "should earn more than"
        verdict = f"{pair['better']} {words} {pair['worse']}: {earned[0]}, {earned[1]}"
        lines.append(f"{'ok  ' if pair['passed'] else 'FAIL'}  {verdict}")
    return "\n".join(lines)


COMMANDS: Sequence[Command] = (
    Command(("status",), "how training goes; exit status 1 when degraded", _status, render=_render_status),
    Command(
        ("doctor",),
        "check machine, GPU, port, firewall, rovers, policies and disks, with or without a daemon; 1 when one fails",
        _doctor,
        daemon_arguments,
        render,
    ),
    Command(("train", "start"), "train", posting("/train/start")),
    Command(("train", "pause"), "rest after the present minibatch; the rovers stand", posting("/train/pause")),
    Command(("train", "resume"), "go on after pause or stop", posting("/train/resume")),
    Command(("train", "stop"), "finish the update, write a checkpoint; the rovers stand", posting("/train/stop")),
    Command(
        ("checkpoint", "list"),
        "list the checkpoints",
        getting("/checkpoints"),
        render=_render_rows("checkpoints", "name", "update"),
    ),
    Command(("checkpoint", "save"), "write a checkpoint after the present update", posting("/checkpoints")),
    Command(
        ("checkpoint", "restore"),
        "go on from a checkpoint",
        _named("POST", "/checkpoints/{name}/restore"),
        _name("checkpoint"),
    ),
    Command(
        ("policy", "list"),
        "list the policies, newest first",
        getting("/policies"),
        render=_render_rows("policies", "policy_id", "counter", "update", "decisions", "parent", "is_wanted"),
    ),
    Command(("policy", "show"), "show a policy and its manifest", _named("GET", "/policies/{name}"), _name("policy")),
    Command(
        ("policy", "deploy"),
        "let the rovers drive a policy; latest: follow the newest",
        _named("POST", "/policies/{name}/deploy"),
        _name("policy"),
    ),
    Command(("policy", "rollback"), "let the rovers drive the policy before this one", posting("/policies/rollback")),
    Command(
        ("rover", "list"),
        "list the rovers",
        _rovers,
        render=_render_rovers,
    ),
    Command(("rover", "pending"), "list the rovers that ask to be let in", getting("/pairing"), render=_render_pending),
    Command(
        ("rover", "confirm"),
        "let the rover in that shows this code",
        _confirm,
        _confirm_arguments,
        _render_paired,
    ),
    Command(("rover", "add"), "let a rover in by its public key", _add_key, _add_key_arguments),
    Command(("rover", "revoke"), "shut a rover out and cut its connection", _revoke, _revoke_arguments),
    Command(("key", "show"), "show the public key of this trainer", _key),
    Command(
        ("plugins",),
        "list the plugins",
        getting("/plugins"),
        render=_render_rows("plugins", "group", "name", "distribution", "version", "state", "last_error"),
    ),
    Command(
        ("evaluate",),
        "drive a policy without exploration in unseen arenas and count",
        _evaluate,
        _evaluate_arguments,
        _render_evaluation,
    ),
    Command(
        ("reward", "lint"),
        "check that the reward ranks scripted driving as the task declares",
        _lint,
        _lint_arguments,
        _render_lint,
    ),
    Command(
        ("audit",),
        "check stored episodes; exit status 1 when one is wrong, 2 when none could be checked",
        audit_command.run,
        audit_command.add_arguments,
        audit_command.render,
    ),
    Command(
        ("config", "show"),
        "show every option",
        _config,
        _config_arguments,
        _render_rows("config", "name", "value", "origin"),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run trainerctl; the exit status tells: 0 well, 1 refused, failed or degraded, 2 wrong usage."""
    words = "Ask and command a running trainerd."
    return run_command_line("trainerctl", words, COMMANDS, default_socket=default_socket(), arguments=arguments)


def default_socket() -> Path:
    """Return the socket of ``TRAINERD_CONTROL_SOCKET``, of the default state folder, or of the installed unit."""
    is_installed = UNIT_SOCKET.exists() and not DEFAULT_CONTROL_SOCKET.exists()
    return Path(os.environ.get("TRAINERD_CONTROL_SOCKET") or (UNIT_SOCKET if is_installed else DEFAULT_CONTROL_SOCKET))


if __name__ == "__main__":
    sys.exit(main())
