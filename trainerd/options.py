"""The command line of trainerd, and what its settings come from."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.config import Loaded, load
from trainerd.profiles import PROFILES, profile_layers
from trainerd.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIASES = {
    "port": "port",
    "host": "host",
    "update_interval": "ppo.rollout",
    "checkpoint_interval": "checkpoint_interval",
    "checkpoint_dir": "checkpoint_dir",
    "tensorboard_dir": "tensorboard_dir",
    "state_dir": "state_dir",
    "control_socket": "control_socket",
    "seed": "seed",
    "log_level": "log_level",
}
"""Options of the command line that are short for ``--set``."""


def parse(arguments: Sequence[str] | None = None) -> Loaded[Settings]:
    """Return the settings of a command line; raises ConfigError with every mistake."""
    parser = argparse.ArgumentParser(prog="trainerd", description="Learn from rovers, and send them what was learned.")
    parser.add_argument("--version", action="version", version=f"trainerd {importlib.metadata.version('roverloop')}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    parser.add_argument("--profile", default="default", metavar="NAME", help=f"one of {', '.join(PROFILES)}, gym:ID")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one option, like ppo.gamma=0.9"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin a new run; checkpoints of the old one are set aside"
    )
    for alias, name in ALIASES.items():
        parser.add_argument(f"--{alias.replace('_', '-')}", metavar="VALUE", help=f"short for --set {name}=VALUE")
    parsed = parser.parse_args(arguments)
    given = [f"{name}={value}" for alias, name in ALIASES.items() if (value := getattr(parsed, alias)) is not None]
    overrides = [*parsed.set, *given, *(["train.fresh=true"] if parsed.fresh else [])]
    layers = profile_layers(parsed.profile)
    return load(
        Settings, layers=layers, file=parsed.config, env_prefix="TRAINERD_", environ=os.environ, overrides=overrides
    )
