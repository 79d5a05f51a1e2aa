"""The doctor of a roverd that runs: the checks of its machine, and those of what it does."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.node.checkup.address import reach
from protocol.node.checkup.check import Check, answer_of, gather
from protocol.node.checkup.systemd import control_socket, unit, unit_facts
from roverd.doctor import driving, link, places, realtime, sensors, storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from protocol.spec import RobotSpec
    from roverd.assemble import Parts


class Facts(NamedTuple):
    """What a running roverd says of itself; taken on the loop thread, judged on another."""

    state_dir: Path
    control_socket: Path
    spec: RobotSpec
    is_clocked: bool
    is_real: bool
    """Neither simulated nor in lock-step: it moves in the world, so lateness matters."""
    decisions_only: bool
    stale_after_ms: float
    realtime: Mapping[str, Mapping[str, Any]]
    lateness: Mapping[str, float]
    counts: Mapping[str, int]
    control: Mapping[str, Any]
    rates: tuple[float, float] | None
    ages_ms: Mapping[str, float]
    clearance_m: float
    state: Mapping[str, Any]
    is_driving: bool
    own_key: str
    trainer_key: str
    is_curve: bool
    link_state: str
    address: str
    refusal: str
    degraded: str
    round_trip_ms: float
    clock_skew_s: float
    driving: str
    policy_refusal: str
    policy_file: Path | None
    """The bundle that drives, where a policy does."""
    crashes: int
    refusals: int
    selfcheck: Mapping[str, Any]
    e_stop: str
    wheel: Mapping[str, Any]
    mode: str
    spool: Mapping[str, Any]
    spool_causes: Sequence[str]
    plugins: Sequence[Mapping[str, Any]]


async def examine(parts: Parts) -> dict[str, Any]:
    """Run every check; what takes time runs beside the loop."""
    facts = facts_of(parts)
    return answer_of(await asyncio.to_thread(_checks, facts), is_running=True)


def facts_of(parts: Parts) -> Facts:
    """Take what is judged; on the loop thread."""
    settings, drive, policies, uplink = parts.settings, parts.drive, parts.policies, parts.uplink
    target = policies.target
    is_clocked = settings.control.rate_hz > 0
    return Facts(
        state_dir=settings.state_dir,
        control_socket=settings.control_socket,
        spec=parts.robot.spec,
        is_clocked=is_clocked,
        is_real=is_clocked and not parts.robot.is_simulated,
        decisions_only=settings.record.images == "decisions",
        stale_after_ms=settings.control.stale_after_ms,
        realtime=parts.realtime(),
        lateness=drive.lateness.report(),
        counts=dict(drive.counts),
        control={
            "needs_spare": parts.control.needs_spare,
            "has_spare": parts.control.has_spare,
            "takeovers": parts.control.takeovers,
            "actuator": settings.actuator or "simulated",
            "actuator_failure": parts.control.actuator_failure,
        },
        rates=parts.rates.per_second(),
        ages_ms=drive.sensor_ages_ms(),
        clearance_m=parts.rates.clearance_m,
        state=parts.teleop.telemetry.to_map()["state"],
        is_driving=drive.is_in_episode,
        own_key=parts.keys.public,
        trainer_key=uplink.trainer_public,
        is_curve=settings.link.curve,
        link_state=uplink.state,
        address=uplink.address,
        refusal=uplink.refusal,
        degraded=uplink.degraded,
        round_trip_ms=uplink.round_trip_ms,
        clock_skew_s=uplink.clock_skew_s,
        driving=policies.slot_name(policies.active),
        policy_refusal=policies.refusal(target) if target else "",
        policy_file=parts.store.path(policies.driving_id) if policies.driving_id else None,
        crashes=policies.crashes,
        refusals=policies.refusals,
        selfcheck=parts.selfcheck.to_map(),
        e_stop=drive.e_stop,
        wheel=parts.teleop.wheel.status(),
        mode=drive.mode,
        spool=parts.spool.report(),
        spool_causes=parts.spool.causes(),
        plugins=parts.plugins.listing(),
    )


def _checks(facts: Facts) -> list[Check]:
    return [
        *places.machine_checks(is_real=facts.is_real),
        *gather(
            "machine",
            lambda: control_socket(facts.control_socket),
            lambda: unit("roverd", unit_facts("roverd"), is_running=True),
        ),
        *_realtime(facts),
        *_sensors(facts),
        *_driving(facts),
        *_link(facts),
        *gather(
            "storage",
            lambda: storage.spool(facts.spool, facts.spool_causes),
            lambda: places.disk(facts.state_dir),
        ),
        *gather("plugins", lambda: storage.plugins(facts.plugins)),
    ]


def _realtime(facts: Facts) -> list[Check]:
    kind = {"is_clocked": facts.is_clocked, "is_real": facts.is_real}
    period_ms = 1000 * facts.spec.period_s
    return gather(
        "realtime",
        partial(realtime.processes, facts.realtime, **kind),
        partial(realtime.lateness, facts.lateness, period_ms, **kind),
        partial(realtime.ticks, facts.counts, **kind),
        lambda: realtime.control(facts.control),
    )


def _sensors(facts: Facts) -> list[Check]:
    return gather(
        "sensors",
        lambda: sensors.rates(
            facts.spec, facts.rates, decisions_only=facts.decisions_only, is_clocked=facts.is_clocked
        ),
        lambda: sensors.ages(facts.spec, facts.ages_ms, facts.stale_after_ms),
        lambda: sensors.clearance(facts.spec, facts.clearance_m, is_driving=facts.is_driving),
        lambda: sensors.state(facts.spec, facts.state),
    )


def _driving(facts: Facts) -> list[Check]:
    return gather(
        "policy",
        lambda: driving.policy(
            facts.driving, refusal=facts.policy_refusal, crashes=facts.crashes, refusals=facts.refusals
        ),
        lambda: driving.policy_file(facts.spec, facts.policy_file),
        lambda: driving.selfcheck(facts.selfcheck),
        lambda: driving.stop(facts.e_stop),
        lambda: driving.wheel(facts.wheel),
        lambda: driving.mode(facts.mode),
    )


def _link(facts: Facts) -> list[Check]:
    is_linked = facts.link_state == "linked"
    return gather(
        "link",
        lambda: link.keys(facts.own_key, facts.trainer_key, is_curve=facts.is_curve),
        lambda: link.link(facts.link_state, facts.address, refusal=facts.refusal, degraded=facts.degraded),
        lambda: link.port(facts.address, None if is_linked else reach(facts.address)),
        lambda: link.quality(facts.round_trip_ms, facts.clock_skew_s) if is_linked else (),
        lambda: link.spec(facts.spec.hash, facts.refusal),
    )
