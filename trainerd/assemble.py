"""Put trainerd together from its settings."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from plugins.manager import PluginManager
from protocol.keys import KeyPair, load_or_make
from protocol.legacy import ROBOT
from protocol.node.config import check_plugin_tables
from protocol.pairing import PORT_ABOVE_LINK
from trainerd import depth, start
from trainerd.access import Access
from trainerd.cockpit.metrics import Metrics
from trainerd.collection import Collection
from trainerd.design import Design
from trainerd.episodes.catalogue import Catalogue
from trainerd.episodes.store import Store
from trainerd.fleet import Fleet
from trainerd.ingest import Link
from trainerd.legacy import TASK, LegacyInput
from trainerd.mailbox import Mailbox
from trainerd.pairing import PairingDesk
from trainerd.release.publish import Publisher
from trainerd.release.registry import Registry
from trainerd.replay import Found
from trainerd.run import RunFile
from trainerd.settings import Settings
from trainerd.training import STANDING_MODE, Training

if TYPE_CHECKING:
    import asyncio

    from protocol.messages import Offer
    from protocol.node.liveness import Pulse
    from protocol.node.services import Service
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
    store: Store
    keys: KeyPair
    access: Access
    pairing: PairingDesk | None
    legacy: LegacyInput | None
    found: list[Found]
    """What lay in the store at the start, once that is known."""
    lock: int
    """Descriptor that keeps other trainerds out of the state folder."""

    @property
    def services(self) -> list[Service]:
        """What runs until a signal comes, the first to start first."""
        optional: list[Service | None] = [self.pairing, self.legacy]
        return [self.training, self.link, *(each for each in optional if each is not None)]

    @property
    def pulses(self) -> list[Pulse]:
        """The threads that must get further for trainerd to be alive."""
        return [self.link.pulse, self.store.pulse, *self.training.pulses]

    def start(self) -> None:
        """Wake the device, bring the store into order, then listen; raises RoverError."""
        self.training.wake_device()
        depth.install()
        self.store.start()
        self.found.append(Found.of(self.store, self.run_file.run))
        self.link.start()
        if self.pairing is not None:
            self.pairing.start()
        if self.legacy is not None:
            boot = (self.settings.legacy.rover_id, self.legacy.boot_id)
            self.store.begin_boot(*boot, run_id=self.run_file.run.run_id, robot=ROBOT, task=TASK, epoch_ns=0)
            self.legacy.start()

    def stop(self) -> None:
        """Write down what is there; to be called once, also without ``start``."""
        self.link.stop()
        if self.legacy is not None:
            self.legacy.stop()
        self.store.stop()
        self.store.catalogue.close()
        self.metrics.close()
        os.close(self.lock)


def compose(settings: Settings, loop: asyncio.AbstractEventLoop) -> Daemon:
    """Build every part and hand them to each other; nothing runs yet. Raises RoverError."""
    plugins = PluginManager(GROUPS)
    known = sorted({row["name"] for row in plugins.listing()})
    check_plugin_tables(settings.plugins, known, "the trainer has no plugin of that name")
    start.check_reach(settings)
    start.check_budget(settings)
    lock = start.hold(settings.state_dir)
    run_file = start.open_run(settings)
    keys = load_or_make(settings.state_dir / "keys" / "curve.json")
    access = Access(settings.state_dir / "rovers.json")
    specified: asyncio.Future[Run] = loop.create_future()
    if run_file.run.specs is not None:
        specified.set_result(run_file.run)
    design = Design(settings, plugins)
    registry = Registry(settings.state_dir / "policies", keep=settings.train.keep_policies)
    metrics = Metrics(settings.tensorboard_dir)
    collection = Collection(metrics)
    mailbox = Mailbox()
    found: list[Found] = []
    store = Store(
        settings.state_dir / "episodes",
        Catalogue(settings.state_dir / "catalogue.sqlite"),
        settings.store,
        on_durable=lambda records: mailbox.post(lambda: link.safe(records)),
        may_delete=lambda row: training.is_behind(row),  # noqa: PLW0108 - it is made below
    )
    fleet = Fleet(
        run_file,
        settings.link,
        store,
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
        replay=lambda marks: link.replay(found[0].replay(marks, collection)),
        on_state=lambda state: mailbox.post(partial(fleet.set_mode, STANDING_MODE[state], time.monotonic())),
        on_update=on_update,
    )
    curve_keys = keys if settings.link.curve else None
    link = Link(settings, mailbox, fleet, collection, registry, store, keys=curve_keys, access=access)
    access.on_revoked.append(lambda rover_id, revoked: mailbox.post(partial(link.cut, rover_id, revoked)))
    pairing_port = settings.link.pairing_port or (link.port + PORT_ABOVE_LINK if link.port else 0)
    is_pairing = settings.link.pairing and settings.link.curve
    return Daemon(
        settings,
        run_file,
        mailbox,
        plugins,
        registry,
        publisher,
        metrics,
        collection,
        training,
        fleet,
        link,
        store,
        keys,
        access,
        PairingDesk(settings.host, pairing_port, keys, access, link_port=lambda: link.port) if is_pairing else None,
        LegacyInput(settings.legacy, store.append) if settings.legacy.enabled else None,
        found,
        lock,
    )
