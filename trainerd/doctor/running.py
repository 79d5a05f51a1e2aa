"""The doctor of a trainerd that runs: the checks of its machine, and those of what it does."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from protocol.node.checkup import firewall, machine
from protocol.node.checkup.address import own_address
from protocol.node.checkup.check import Check, answer_of, gather, judge
from protocol.node.checkup.listening import listeners
from protocol.node.checkup.systemd import unit, unit_facts
from protocol.node.reach import is_loopback
from trainerd.doctor import fleet, gpu, learning, listening, places
from trainerd.learning import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trainerd.assemble import Daemon
    from trainerd.doctor.fleet import RoverFacts

LINK_THREAD_S = 5.0


async def examine(daemon: Daemon) -> dict[str, Any]:
    """Run every check; what takes time runs beside the loop."""
    rovers: list[RoverFacts] | None
    alarms: list[str] = []
    faults: dict[str, int] = {}
    try:
        asking = daemon.mailbox.call(
            lambda: (
                fleet.rovers_of(daemon.fleet, time.monotonic()),
                daemon.collection.alarms(),
                daemon.collection.faults(),
            )
        )
        rovers, alarms, faults = await asyncio.wait_for(asking, LINK_THREAD_S)
    except asyncio.TimeoutError:
        rovers = None
    checks = await asyncio.to_thread(_checks, daemon, rovers, alarms, faults)
    return answer_of(checks, is_running=True)


def _checks(daemon: Daemon, rovers: list[RoverFacts] | None, alarms: list[str], faults: dict[str, int]) -> list[Check]:
    return [
        *_machine_checks(daemon),
        *_link_checks(daemon, rovers),
        *_rover_checks(daemon, rovers or []),
        *_learning_checks(daemon, alarms, faults),
        *gather("plugins", lambda: learning.plugins(daemon.plugins.listing())),
    ]


def _machine_checks(daemon: Daemon) -> list[Check]:
    settings = daemon.settings
    return [
        *places.machine_checks(settings),
        *gather("machine", lambda: unit("trainerd", unit_facts("trainerd"), is_running=True)),
        *gather("machine", lambda: listening.other_trainers(os.getpid(), settings.state_dir)),
        *gather("gpu", lambda: gpu.gpu(settings.device, gpu.measure(settings.device))),
        *places.storage_checks(settings),
        *gather("storage", lambda: learning.store(daemon.store.status())),
    ]


def _link_checks(daemon: Daemon, rovers: Sequence[RoverFacts] | None) -> list[Check]:
    settings, number = daemon.settings, daemon.link.port
    here = [each.rover_id for each in rovers or () if each.connected]
    known = sorted({row["rover_id"] for row in daemon.access.rows() if row["state"] == "allowed"})
    address = own_address()
    zap = daemon.link.zap
    ports = [number, *([daemon.pairing.port] if daemon.pairing else [])]
    target = f"tcp://{address or 'THIS-MACHINE'}:{number}"
    return gather(
        "link",
        partial(_link_thread, rovers),
        lambda: listening.port("port", settings.host, number, listeners(number), is_running=True),
        lambda: listening.reach(settings.host, number, here=here, away=sorted(set(known) - set(here)), address=address),
        lambda: firewall.judge_firewall(
            firewall.read_firewall(), ports, is_needed=not here and not is_loopback(settings.host)
        ),
        lambda: fleet.presence(rovers or (), known, address=target, refusal=daemon.fleet.last_refusal),
        lambda: fleet.keys(
            daemon.access.rows(),
            zap.last_refusal if zap else "",
            sum(zap.refusals.values()) if zap else 0,
            is_anybody_here=bool(here),
        ),
    )


def _link_thread(rovers: Sequence[RoverFacts] | None) -> Iterator[Check]:
    if rovers is None:
        hint = "the thread of the link hangs: journalctl -u trainerd, then restart trainerd"
        measured = f"no answer within {LINK_THREAD_S:g} s"
        yield judge("link thread", measured, "an answer at once", hint, ok=False)


def _rover_checks(daemon: Daemon, rovers: Sequence[RoverFacts]) -> list[Check]:
    ours = machine.installed(machine.DISTRIBUTION)
    specs = daemon.run_file.run.specs
    robot = f"{specs[0].name} {specs[0].hash[:12]}" if specs else ""
    checks = []
    for each in rovers:
        if each.connected:
            checks += gather("rovers", partial(fleet.rover, each, ours), partial(_spec_of, each.rover_id, robot))
    return checks


def _spec_of(rover_id: str, robot: str) -> Iterator[Check]:
    """Say which robot it is: one that differs from the run's is refused at its greeting."""
    yield judge(f"robot spec of {rover_id}", f"as the run's: {robot}", "as the run's", "", ok=True)


def _learning_checks(daemon: Daemon, alarms: list[str], faults: dict[str, int]) -> list[Check]:
    training, publisher = daemon.training, daemon.publisher
    specs, wanted = daemon.run_file.run.specs, publisher.wanted
    pipeline = training.parts.pipeline if training.parts else None
    return gather(
        "policy",
        lambda: learning.training(
            training.state,
            causes=training.refused,
            updates=training.parts.learner.updates if training.parts else 0,
            decisions_per_s=daemon.collection.decisions.per_second(time.monotonic()),
        ),
        lambda: learning.signal(alarms, faults, steps=daemon.collection.steps.total),
        lambda: learning.checkpoint(_checkpoint_facts(daemon)),
        lambda: learning.export(
            exports=publisher.exports,
            failed=pipeline.failed if pipeline else 0,
            last_error=pipeline.last_error if pipeline else "",
        ),
        lambda: learning.spec(specs[0].to_map() if specs else None, wanted.manifest.robot if wanted else None),
        lambda: learning.converter(machine.installed("rknn-toolkit2")),
    )


def _checkpoint_facts(daemon: Daemon) -> learning.CheckpointFacts:
    training, settings = daemon.training, daemon.settings
    learner = training.parts.learner if training.parts else None
    found = checkpoint.found(settings.checkpoint_dir)
    facts = learning.CheckpointFacts(
        updates=learner.updates if learner else 0,
        interval=settings.checkpoint_interval,
        error=training.checkpoint_error,
    )
    if not found:
        return facts
    age_s = time.time() - found[-1].stat().st_mtime
    return facts._replace(name=found[-1].name, update=checkpoint.update_of(found[-1]), age_s=max(0.0, age_s))
