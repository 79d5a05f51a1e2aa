"""Start roverd: build its parts, hand them to each other, run them. Reading this is reading the architecture."""

from __future__ import annotations

import asyncio
import errno
import sys
import uuid
from typing import TYPE_CHECKING

import uvloop

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.node import backoff
from protocol.node.affinity import pin
from protocol.node.config import ConfigError
from protocol.node.liveness import Liveness, Watchdog
from protocol.node.log import configure, get_logger
from protocol.node.require import check_ownership
from protocol.node.services import Service, ServiceFailedError, install_signal_stop, run_services
from protocol.node.socket import ControlSocket
from roverd import api
from roverd.assemble import make_parts
from roverd.options import parse

if TYPE_CHECKING:
    from pathlib import Path

    from protocol.node.config import Loaded
    from roverd.settings import Settings

log = get_logger()


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""A disk that is full or fails must not keep the robot from driving."""


class StateError(RoverError):
    """A file of the state folder is damaged."""


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
    log.info("daemon.started", rover_id=settings.rover_id, boot_id=parts.boot_id, trainer=parts.uplink.address)
    watchdog = Watchdog(control_socket.listening, Liveness(lambda: parts.pulses))
    teleop = parts.teleop
    services: list[Service] = [parts.spool, parts.policies, parts.uplink, control_socket]
    services += [teleop.wheel, teleop.collecting, parts.page, parts.drive, watchdog]
    try:
        await run_services(services, stop)
    finally:
        await parts.close()


def next_boot(state_dir: Path) -> int:
    """Count this start in the state folder, so that no two starts repeat the same arenas and noise."""
    path = state_dir / "boots"
    try:
        boot = int(path.read_text()) + 1 if path.is_file() else 0
    except ValueError as error:
        raise StateError(f"{path}: {error}; remove the file, and the count of starts begins anew") from error
    try:
        write_atomic(path, str(boot).encode())
    except OSError as error:
        if error.errno not in FULL:
            raise StateError(f"{path}: {error.strerror}; choose another --state-dir") from error
        hint = "the next start repeats this one's arenas and noise; free space"
        log.error("boot.unwritten", file=str(path), error=str(error), hint=hint)  # noqa: TRY400 - no trace for a full disk
    return boot


def main() -> None:
    """Run the daemon; exit 0 when stopped, 1 when a service failed, 2 for bad configuration."""
    try:
        check_ownership()
        loaded = parse()
    except ConfigError as error:
        for mistake in error.mistakes:
            print(f"roverd: {mistake}", file=sys.stderr)
        backoff.forget()  # whoever corrects the settings need not wait
        sys.exit(2)
    except RoverError as error:
        print(f"roverd: {error}", file=sys.stderr)
        sys.exit(1)
    configure("roverd", level=loaded.value.log_level)
    try:
        uvloop.run(serve(loaded))
        backoff.forget()
    except ConfigError as error:  # a plugin's own table
        for mistake in error.mistakes:
            print(f"roverd: {mistake}", file=sys.stderr)
        backoff.forget()  # whoever corrects the settings need not wait
        sys.exit(2)
    except (ServiceFailedError, RoverError, OSError) as error:
        print(f"roverd: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
