"""Put trainerd together from its settings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from plugins.manager import PluginManager
from protocol.node.config import check_plugin_tables
from trainerd import start
from trainerd.cockpit.metrics import Metrics
from trainerd.collection import Collection
from trainerd.design import Design
from trainerd.fleet import Fleet
from trainerd.ingest import Link
from trainerd.mailbox import Mailbox
from trainerd.release.publish import Publisher
from trainerd.release.registry import Registry
from trainerd.run import RunFile
from trainerd.settings import Settings
from trainerd.training import STANDING_MODE, Training

if TYPE_CHECKING:
    import asyncio

    from protocol.messages import Offer
    from trainerd.learning.learner import UpdateResult
    from trainerd.run import Run

GROUPS = ("encoders", "tasks", "rewards", "controllers")
"""Plugins that a trainer has a use for; robots are the rover's."""


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


def compose(settings: Settings, loop: asyncio.AbstractEventLoop) -> Daemon:
    """Build every part and hand them to each other; nothing runs yet. Raises RoverError."""
    plugins = PluginManager(GROUPS)
    known = sorted({row["name"] for row in plugins.listing()})
    check_plugin_tables(settings.plugins, known, "the trainer has no plugin of that name")
    run_file = start.open_run(settings)
    specified: asyncio.Future[Run] = loop.create_future()
    if run_file.run.specs is not None:
        specified.set_result(run_file.run)
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

    def on_wanted(offer: Offer, is_chosen: bool) -> None:  # noqa: FBT001 - Publisher calls it
        mailbox.post(partial(fleet.want, offer, is_chosen=is_chosen))

    def on_update(result: UpdateResult, finished_s: float) -> None:
        if result.is_new_policy and publisher.is_following:
            mailbox.post(partial(fleet.expect, result.policy_counter, finished_s))
        mailbox.post(lambda: collection.write_rates(fleet.round_trips_ms(), result.decisions))

    publisher = Publisher(registry, run_file.run.run_id, settings.state_dir / "deployed.json", on_wanted)
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
        on_update=on_update,
    )
    link = Link(settings, mailbox, fleet, collection, registry)
    return Daemon(settings, run_file, mailbox, plugins, registry, publisher, metrics, collection, training, fleet, link)
