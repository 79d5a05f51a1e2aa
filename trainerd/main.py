"""trainerd: build settings and services, hand them to each other, run them."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from plugins.manager import PluginManager
from protocol.errors import RoverError
from protocol.node import log as logs
from protocol.node import sdnotify
from protocol.node.affinity import pin
from protocol.node.config import ConfigError, Loaded, load
from protocol.node.require import check_ownership
from protocol.node.services import Service, ServiceFailedError, install_signal_stop, run_services
from protocol.node.socket import ControlSocket
from trainerd import start
from trainerd.api import Api
from trainerd.cockpit.metrics import Metrics
from trainerd.collection import Collection
from trainerd.design import Design
from trainerd.fleet import Fleet
from trainerd.ingest import Link
from trainerd.mailbox import Mailbox
from trainerd.profiles import PROFILES, profile_layers
from trainerd.release.publish import Publisher
from trainerd.release.registry import Registry
from trainerd.run import Run, RunFile
from trainerd.settings import Settings
from trainerd.training import STANDING_MODE, Training

if TYPE_CHECKING:
    from collections.abc import Sequence


log = logs.get_logger()
STOP_S = 8.0
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


@dataclass
class Daemon:
    """The parts of a running trainerd, for its API and its doctor."""

    settings: Settings
    run_file: RunFile
    mailbox: Mailbox
    plugins: PluginManager
    registry: Registry
    publisher: Publisher
    metrics: Metrics
    collection: Collection
    training: Training
    fleet: Fleet
    link: Link


def parse(arguments: Sequence[str] | None) -> Loaded[Settings]:
    """Return the settings of a command line; raises ConfigError with every mistake."""
    parser = argparse.ArgumentParser(prog="trainerd", description="Learn from rovers, and send them what was learned.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    parser.add_argument("--profile", default="default", metavar="NAME", help=f"one of {', '.join(PROFILES)}")
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


def compose(settings: Settings, loop: asyncio.AbstractEventLoop) -> Daemon:
    """Build every part and hand them to each other; nothing runs yet. Raises RoverError."""
    run_file = start.open_run(settings)
    specified: asyncio.Future[Run] = loop.create_future()
    if run_file.run.specs is not None:
        specified.set_result(run_file.run)
    plugins = PluginManager(("encoders", "tasks", "rewards", "controllers"))
    design = Design(settings, plugins)
    registry = Registry(settings.state_dir / "policies", keep=settings.train.keep_policies)
    metrics = Metrics(settings.tensorboard_dir)
    collection = Collection(metrics)
    mailbox = Mailbox()
    fleet = Fleet(
        run_file,
        settings.link,
        check_specs=design.transform,
        on_specs=lambda run: loop.call_soon_threadsafe(specified.set_result, run),
        on_evaluated=collection.evaluated,
    )
    publisher = Publisher(
        registry,
        run_file.run.run_id,
        settings.state_dir / "deployed.json",
        lambda offer, finished_s: mailbox.post(partial(fleet.want, offer, finished_s)),
    )
    training = Training(
        settings,
        collection,
        design,
        publisher,
        registry,
        metrics,
        specified=specified,
        post=mailbox.post,
        on_state=lambda state: mailbox.post(partial(fleet.set_mode, STANDING_MODE[state], time.monotonic())),
    )
    link = Link(settings, mailbox, fleet, collection, registry)
    return Daemon(settings, run_file, mailbox, plugins, registry, publisher, metrics, collection, training, fleet, link)


async def serve(loaded: Loaded[Settings]) -> None:
    """Run the daemon until a signal; raises RoverError where it cannot go on."""
    settings, loop, stop = loaded.value, asyncio.get_running_loop(), asyncio.Event()
    daemon = compose(settings, loop)
    api = Api(daemon, loaded)
    socket = ControlSocket(settings.socket_path, api.routes(), audit=settings.state_dir / "audit.jsonl")
    install_signal_stop(loop, stop)
    daemon.link.start()
    daemon.publisher.resume()
    log.info("daemon.started", port=daemon.link.port, run_id=daemon.publisher.run_id, pid=os.getpid())
    services: list[Service] = [daemon.training, daemon.link, socket, start.Readiness(daemon.training, socket)]
    try:
        await run_services(services, stop, grace_s=STOP_S)
    finally:
        sdnotify.stopping()
        daemon.link.stop()
        daemon.metrics.close()
        log.info("daemon.stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run trainerd; return 0 when stopped, 1 when a service failed, 2 for bad configuration."""
    try:
        check_ownership()
        loaded = parse(arguments)
        logs.configure("trainerd", level=loaded.value.log_level)
        pin(loaded.value.cpus)
        uvloop.run(serve(loaded))
    except ConfigError as error:
        for mistake in error.mistakes:
            print(f"trainerd: {mistake}", file=sys.stderr)
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
