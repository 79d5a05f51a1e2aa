"""The command line of a daemon: ``NOUN VERB [--json]``, one table of commands, one way to print and to fail."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import RoverError
from protocol.node.socket import ControlClient

Outcome = tuple[dict[str, Any], int]


def _no_arguments(_parser: argparse.ArgumentParser) -> None:
    return


def render_facts(payload: dict[str, Any]) -> str:
    """Print an answer for people as ``key  value`` lines, without the ``ok``."""
    facts = {key: value for key, value in payload.items() if key != "ok"}
    width = max(map(len, facts), default=0)
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in facts.items()}
    return "\n".join(f"{key:<{width}}  {text}" for key, text in texts.items()) or "ok"


def render_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Print rows below a header, columns aligned."""
    texts = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in texts)  # noqa: B905 - equal by construction


def getting(path: str) -> Callable[[ControlClient, argparse.Namespace], Outcome]:
    """Return the ``run`` of a command that shows what a GET answers."""
    return lambda client, _arguments: (client.get(path), 0)


def posting(path: str) -> Callable[[ControlClient, argparse.Namespace], Outcome]:
    """Return the ``run`` of a command that posts without facts."""
    return lambda client, _arguments: (client.post(path), 0)


@dataclass(frozen=True)
class Command:
    """One command of a control tool.

    ``run`` gives the answer, which is also what ``--json`` prints, and the exit status; it may raise RoverError.
    ``render`` turns the answer into text for people. The client connects only when asked, so that a command
    may do without a daemon.
    """

    words: tuple[str, ...]
    help: str
    run: Callable[[ControlClient, argparse.Namespace], Outcome]
    arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments
    render: Callable[[dict[str, Any]], str] = render_facts


def run_command_line(
    program: str,
    description: str,
    commands: Sequence[Command],
    *,
    default_socket: Path,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, ask the daemon, print; give the exit status: 0 done, 1 refused, 2 (by SystemExit) wrong usage."""
    parsed = build_parser(program, description, commands, default_socket=default_socket).parse_args(arguments)
    command: Command = parsed.command
    client = ControlClient(parsed.control_socket)
    try:
        payload, status = command.run(client, parsed)
    except RoverError as error:
        if parsed.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = json.dumps(payload, default=str) if parsed.json else command.render(payload)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
    return status


def build_parser(
    program: str, description: str, commands: Sequence[Command], *, default_socket: Path
) -> argparse.ArgumentParser:
    """Make the parser of a command table; the options every command has may stand before or behind its words."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    _add_common(parser, default_socket, is_root=True)
    tree: dict[tuple[str, ...], Any] = {(): parser.add_subparsers(metavar="COMMAND", required=True)}
    for command in commands:
        for depth in range(1, len(command.words)):
            noun = command.words[:depth]
            if noun not in tree:
                verbs = ", ".join(each.words[depth] for each in commands if each.words[:depth] == noun)
                branch = tree[noun[:-1]].add_parser(noun[-1], help=verbs)
                tree[noun] = branch.add_subparsers(metavar="VERB", required=True)
        leaf = tree[command.words[:-1]].add_parser(command.words[-1], help=command.help, description=command.help)
        command.arguments(leaf)
        _add_common(leaf, default_socket, is_root=False)
        leaf.set_defaults(command=command)
    return parser


def _add_common(parser: argparse.ArgumentParser, default_socket: Path, *, is_root: bool) -> None:
    unset: Any = argparse.SUPPRESS
    parser.add_argument(
        "--json", action="store_true", default=False if is_root else unset, help="print the answer as JSON"
    )
    parser.add_argument(
        "--control-socket",
        type=Path,
        metavar="PATH",
        default=default_socket if is_root else unset,
        help=f"the daemon's socket (default {default_socket})",
    )
