"""The command ``doctor`` of both control tools, and the settings that a daemon that does not run would have."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from protocol.node.checkup.check import Check, judge
from protocol.node.config import ConfigError
from protocol.node.socket import ControlClient, ControlError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from protocol.node.config import Loaded
    from protocol.node.ctl import Outcome

T = TypeVar("T")
DOCTOR_S = 15.0
"""A daemon that needs longer for it hangs."""

CONFIG = Path("/etc/roverloop")
"""Where ``./dev install`` puts the settings of the daemons."""


def daemon_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the sources of a daemon's settings."""
    text = "of the daemon, where it does not run"
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"settings file {text}")
    parser.add_argument("--profile", metavar="NAME", help=f"profile {text}")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=f"option {text}")


def installed_words(daemon: str, folder: Path = CONFIG) -> list[str]:
    """Return the words that name the settings of an installed daemon; none where there are no such settings."""
    path = folder / f"{daemon}.toml"
    return ["--config", str(path)] if os.access(path, os.R_OK) else []


def daemon_words(arguments: argparse.Namespace) -> list[str]:
    """Return them as words of the daemon's own command line."""
    words = []
    if arguments.config is not None:
        words += ["--config", str(arguments.config)]
    if arguments.profile:
        words += ["--profile", arguments.profile]
    return words + [word for each in arguments.set for word in ("--set", each)]


def ask(
    client: ControlClient,
    arguments: argparse.Namespace,
    daemon: str,
    default: Path,
    *,
    socket_of: Callable[[Sequence[str]], Path],
    examine_without: Callable[[str, Sequence[str], BaseException | None], dict[str, Any]],
) -> Outcome:
    """Ask a daemon how it is; where none answers, look at what it would stand on. Exit status 1 where not healthy.

    Args:
        client: as the command line says.
        arguments: have the options of ``daemon_arguments``.
        daemon: ``roverd`` or ``trainerd``.
        default: its socket, where nothing says otherwise.
        socket_of: returns the socket that a daemon of these words has; raises ConfigError.
        examine_without: checks what such a daemon would stand on, given why nobody answers, the words, and the cause.

    """
    words, is_default = daemon_words(arguments), client.path == default
    if words and is_default:
        with contextlib.suppress(ConfigError):
            client = ControlClient(socket_of(words))
    try:
        answer = ControlClient(client.path, DOCTOR_S).get("/doctor")
    except ControlError as error:
        if error.status is not None:
            raise
        words = words or (installed_words(daemon) if is_default else [])
        words = [*words, "--control-socket", str(client.path)]
        answer = examine_without(str(error), words, error.__cause__)
    return answer, 0 if answer["healthy"] else 1


def read_settings(parse: Callable[[Sequence[str]], Loaded[T]], words: Sequence[str], default: T) -> tuple[T, list[str]]:
    """Return the settings of a command line; where they are wrong, the defaults and every mistake."""
    try:
        return parse(words).value, []
    except ConfigError as error:
        return default, error.mistakes


def configuration(mistakes: Sequence[str], words: Sequence[str], prefix: str) -> Iterator[Check]:
    """Judge whether the settings can be read; ``prefix`` is that of the daemon's environment variables."""
    where = " ".join(words) or f"defaults and {prefix}... of the environment"
    hint = "correct each; the checks below look at the defaults instead"
    yield judge("configuration", "; ".join(mistakes) or f"fine ({where})", "no mistake", hint, ok=not mistakes)
