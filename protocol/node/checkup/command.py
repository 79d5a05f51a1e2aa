"""How doctor is told which settings a daemon that does not run would have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

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
