"""Start roverd: build its parts, hand them to each other, run them. Reading this is reading the architecture."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.node import sdnotify
from protocol.node.affinity import pin
from protocol.node.config import ConfigError, Layer, Loaded, load
from protocol.node.log import configure, get_logger
from protocol.node.require import check_ownership
from protocol.node.services import ServiceFailedError, install_signal_stop, run_services
from protocol.node.socket import ControlSocket
from roverd import api
from roverd.assemble import make_parts
from roverd.profiles import PROFILES
from roverd.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

log = get_logger()


def parse(arguments: Sequence[str] | None = None) -> Loaded[Settings]:
    """Return the effective settings; raises ConfigError with all mistakes at once."""
    parser = argparse.ArgumentParser(prog="roverd", description="The robot's daemon.")
    parser.add_argument("--config", type=Path, help="TOML file")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="named set of options")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", dest="overrides")
    for flag, option, metavar in (
        ("--rover-id", "rover_id", "NAME"),
        ("--trainer", "link.trainer", "ADDRESS"),
        ("--state-dir", "state_dir", "DIR"),
        ("--control-socket", "control_socket", "PATH"),
        ("--policy", "policy", "FILE"),
        ("--task", "task", "NAME"),
        ("--seed", "seed", "N"),
        ("--rate", "control.rate_hz", "HZ"),
        ("--max-speed", "control.max_speed_mps", "M_PER_S"),
        ("--safety-distance", "control.safety_distance_m", "M"),
    ):
        parser.add_argument(flag, dest=option, metavar=metavar, help=f"same as --set {option}={metavar}")
    parsed = parser.parse_args(arguments)
    given = [f"{k}={v}" for k, v in vars(parsed).items() if k not in {"config", "profile", "overrides"} and v]
    layers = [Layer(f"profile {parsed.profile}", PROFILES[parsed.profile])] if parsed.profile else []
    return load(
        Settings,
        layers=layers,
        file=parsed.config,
        env_prefix="ROVERD_",
        environ=os.environ,
        overrides=[*parsed.overrides, *given],
    )


async def serve(loaded: Loaded[Settings]) -> None:
    """Run until a signal stops it; raises ServiceFailedError naming a service that failed."""
    settings = loaded.value
    pin(settings.cpus)
    stop = asyncio.Event()
    install_signal_stop(asyncio.get_running_loop(), stop)
    boot = next_boot(settings.state_dir)
    parts = await make_parts(settings, boot_id=uuid.uuid4().hex[:16], boot=boot)
    control_socket = ControlSocket(
        settings.control_socket, api.routes(parts, loaded), audit=settings.state_dir / "audit.jsonl"
    )
    sdnotify.ready()
    log.info("daemon.started", rover_id=settings.rover_id, boot_id=parts.boot_id, trainer=settings.link.trainer)
    try:
        await run_services([parts.policies, parts.uplink, control_socket, parts.drive], stop)
    finally:
        sdnotify.stopping()
        await parts.close()


def next_boot(state_dir: Path) -> int:
    """Count this start in the state folder, so that no two starts repeat the same arenas and noise."""
    path = state_dir / "boots"
    boot = int(path.read_text()) + 1 if path.is_file() else 0
    write_atomic(path, str(boot).encode())
    return boot


def main() -> None:
    """Run the daemon; exit 0 when stopped, 1 when a service failed, 2 for bad configuration."""
    try:
        check_ownership()
        loaded = parse()
    except ConfigError as error:
        for mistake in error.mistakes:
            print(f"roverd: {mistake}", file=sys.stderr)
        sys.exit(2)
    except RoverError as error:
        print(f"roverd: {error}", file=sys.stderr)
        sys.exit(1)
    configure("roverd", level=loaded.value.log_level)
    try:
        uvloop.run(serve(loaded))
    except (ServiceFailedError, RoverError, OSError) as error:
        print(f"roverd: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
