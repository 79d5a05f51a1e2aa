"""trainerd: read the settings, put the daemon together, run its services until a signal."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import uvloop

from protocol.errors import RoverError
from protocol.node import backoff
from protocol.node import log as logs
from protocol.node.activation import inherited
from protocol.node.affinity import pin
from protocol.node.config import ConfigError, Loaded
from protocol.node.liveness import Liveness, Watchdog
from protocol.node.require import check_ownership
from protocol.node.services import Service, ServiceFailedError, install_signal_stop, run_services
from protocol.node.socket import ControlSocket, turn_away
from trainerd.api import Api
from trainerd.assemble import compose
from trainerd.options import parse

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from trainerd.settings import Settings

log = logs.get_logger()
STOP_S = 8.0


async def serve(loaded: Loaded[Settings], listener: socket.socket | None) -> None:
    """Run the daemon until a signal; raises RoverError where it cannot go on."""
    settings, loop, stop = loaded.value, asyncio.get_running_loop(), asyncio.Event()
    daemon = compose(settings, loop)
    api = Api(daemon, loaded)
    audit = settings.state_dir / "audit.jsonl"
    control_socket = ControlSocket(settings.socket_path, api.routes(), audit=audit, listener=listener)
    install_signal_stop(loop, stop)
    await asyncio.to_thread(daemon.start)
    daemon.publisher.resume()
    log.info("daemon.started", port=daemon.link.port, run_id=daemon.publisher.run_id, pid=os.getpid())
    watchdog = Watchdog(control_socket.listening, Liveness(lambda: daemon.pulses))
    services: list[Service] = [*daemon.services, control_socket, watchdog]
    try:
        await run_services(services, stop, grace_s=STOP_S)
    finally:
        await asyncio.to_thread(daemon.stop)
        log.info("daemon.stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run trainerd; return 0 when stopped, 1 when a service failed, 2 for bad configuration."""
    listener = inherited("control")
    try:
        check_ownership()
        loaded = parse(arguments)
        logs.configure("trainerd", level=loaded.value.log_level)
        pin(loaded.value.cpus)
        uvloop.run(serve(loaded, listener))
        backoff.forget()
    except ConfigError as error:
        for mistake in error.mistakes:
            print(f"trainerd: {mistake}", file=sys.stderr)
        backoff.forget()  # whoever corrects the settings need not wait
        if listener is not None:
            turn_away(listener, "; ".join(("trainerd cannot start", *error.mistakes)))
        return 2
    except ServiceFailedError as error:
        is_bug = error.__cause__ is not None and not isinstance(error.__cause__, RoverError)
        hint = "systemd starts it again" + ("; this is a bug, please report it" if is_bug else "")
        log.error("daemon.failed", error=str(error), exc_info=error.__cause__ if is_bug else None, hint=hint)  # noqa: TRY400
        print(f"trainerd: {error}", file=sys.stderr)
        return 1
    except RoverError as error:
        print(f"trainerd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
