"""The command line of roverd, and what its settings come from."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.node.config import Layer, Loaded, load
from roverd.profiles import PROFILES
from roverd.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_SOCKET = Path(os.environ.get("ROVERD_CONTROL_SOCKET") or "/run/roverd/control.sock")
"""Where the control tool looks for the daemon."""


def parse(arguments: Sequence[str] | None = None) -> Loaded[Settings]:
    """Return the effective settings; raises ConfigError with all mistakes at once."""
    parser = argparse.ArgumentParser(prog="roverd", description="The robot's daemon.")
    parser.add_argument("--version", action="version", version=f"roverd {importlib.metadata.version('roverloop')}")
    parser.add_argument("--config", type=Path, help="TOML file")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="named set of options")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", dest="overrides")
    for flag, option, metavar in (
        ("--rover-id", "rover_id", "NAME"),
        ("--trainer", "link.trainer", "ADDRESS"),
        ("--state-dir", "state_dir", "DIR"),
        ("--control-socket", "control_socket", "PATH"),
        ("--policy", "policy.file", "FILE"),
        ("--robot", "robot", "NAME[:WHAT]"),
        ("--task", "task", "NAME"),
        ("--seed", "seed", "N"),
        ("--rate", "control.rate_hz", "HZ"),
        ("--max-speed", "control.max_speed_mps", "M_PER_S"),
        ("--safety-distance", "control.safety_distance_m", "M"),
    ):
        parser.add_argument(flag, dest=option, metavar=metavar, help=f"same as --set {option}={metavar}")
    parsed = parser.parse_args(arguments)
    given = [f"{k}={v}" for k, v in vars(parsed).items() if k not in {"config", "profile", "overrides"} and v]
    profile = parsed.profile or _profile_of(parsed.robot or "")
    layers = [Layer(f"profile {profile}", PROFILES[profile])] if profile else []
    return load(
        Settings,
        layers=layers,
        file=parsed.config,
        env_prefix="ROVERD_",
        environ=os.environ,
        overrides=[*parsed.overrides, *given],
    )


def _profile_of(robot: str) -> str:
    """Return the profile that a robot named on the command line brings along: the one of its own name."""
    name = robot.partition(":")[0]
    return name if name in PROFILES else ""
