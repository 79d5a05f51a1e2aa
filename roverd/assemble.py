"""Make roverd's parts from its settings and hand them to each other."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.manager import PluginManager
from plugins.rewards import DRIVE_WEIGHTS, ENVIRONMENT_WEIGHTS, GOAL_WEIGHTS
from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.bundle import BundleError
from protocol.errors import RoverError
from protocol.images import CODECS
from protocol.keys import KeyPair, load_or_make
from protocol.messages import Chunk, Hello, Message, Offer, Order, Ping
from protocol.moment import Outcome
from protocol.node.config import check_plugin_tables, validate_table
from protocol.node.socket import AuditLog
from roverd.axes import Axes
from roverd.collect import Collecting
from roverd.control.ring import RingWriter
from roverd.control_config import check_clock, control_config
from roverd.controls import Controls
from roverd.drive import Drive
from roverd.episode import Rewards
from roverd.orders import own_number
from roverd.pairing import TrustedTrainer
from roverd.policies import Policies, PolicyStore
from roverd.processes import PolicyChild
from roverd.rates import Rates
from roverd.segment import BootFacts
from roverd.selfcheck import SelfCheck
from roverd.selfcheck.calibration import settings_hash
from roverd.settings import DEFAULT_TRAINER, LinkSettings, Settings
from roverd.spool import Spool
from roverd.telemetry import Telemetry
from roverd.teleop import LOCK_STEP, Teleop
from roverd.uplink import Uplink
from roverd.web.server import WebPage
from roverd.wheel import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugins.contracts import RobotPlugin, Task
    from plugins.guard import Guard
    from protocol.node.liveness import Pulse
    from protocol.spec import RobotSpec, TaskSpec
    from roverd.control.wire import Applied
    from roverd.episode import Observed

LEAST_WALL_NS = 1_600_000_000 * 10**9
"""A wall clock that shows less (2020) was never set: a board without a battery begins in 1970."""
TASK_WEIGHTS = {"goal": GOAL_WEIGHTS, "drive": DRIVE_WEIGHTS, "environment": ENVIRONMENT_WEIGHTS}


class AssemblyError(RoverError):
    """The settings name parts that do not fit together."""


@dataclass
class Parts:
    """Everything that runs, for the control socket and the shutdown."""

    settings: Settings
    boot_id: str
    plugins: PluginManager
    weights: dict[str, float]
    robot: Any
    task: Any
    ring: RingWriter
    control: Controls
    policies: Policies
    store: PolicyStore
    spool: Spool
    keys: KeyPair
    trust: TrustedTrainer
    uplink: Uplink
    drive: Drive
    teleop: Teleop
    page: WebPage
    selfcheck: SelfCheck
    rates: Rates
    started_s: float

    def realtime(self) -> dict[str, dict[str, Any]]:
        """What the kernel granted each process that must be punctual (see roverd.control.realtime)."""
        return {**self.control.reports, **self.policies.reports}

    @property
    def pulses(self) -> list[Pulse]:
        """What must get further for roverd to be alive."""
        return [self.drive.pulse, self.uplink.pulse, self.spool.disk.pulse]

    async def close(self) -> None:
        """Stop the control process, free the ring and let another process have the spool."""
        await self.control.stop()
        self.ring.close()
        self.spool.close()


async def make_parts(settings: Settings, *, boot_id: str, boot: int) -> Parts:
    """Load plugins, start the control process, and wire everything; raises RoverError on what does not fit."""
    plugins = PluginManager(groups=("robots", "actuators", "tasks", "rewards", "controllers"))
    known = [*plugins.names("robots"), *plugins.names("actuators"), *plugins.names("tasks")]
    check_plugin_tables(settings.plugins, known, "no plugin of that name has options")
    robot_plugin, task_plugin = plugins.robot(settings.robot_name), plugins.task(settings.task)
    robot = robot_plugin.create(robot_settings(robot_plugin, settings))
    task = task_plugin.create(_table(task_plugin.settings, settings, settings.task), robot.spec, settings.seed)
    check_clock(settings, robot.spec)
    _check_actuator(settings, plugins)
    task, task_guards = _guard_task(task, plugins, settings)
    weights = dict(settings.reward.weights) or dict(TASK_WEIGHTS.get(settings.task, {}))
    if not weights:
        raise AssemblyError(f"reward.weights: task {settings.task} has no default; name terms and their weights")
    rewards = Rewards({name: (_guarded(plugins, name, settings), weight) for name, weight in weights.items()})
    keys = load_or_make(settings.state_dir / "keys" / "curve.json")
    trust = TrustedTrainer(settings.state_dir / "keys" / "trainer.json")
    spool = _make_spool(settings, boot_id, boot, robot.spec, task.spec)
    ring = RingWriter(robot.spec.cameras)
    common: dict[str, Any] = {
        "robot": robot.spec.to_map(),
        "task": task.spec.to_map(),
        "task_size": len(task.spec.features),
        "realtime": settings.control.realtime and settings.control.rate_hz > 0,
    }
    is_clocked = settings.control.rate_hz > 0
    control = Controls({**common, **control_config(settings, robot)}, ring.fd, has_spare=is_clocked)
    await control.start()
    store = PolicyStore(settings.state_dir / "policies", robot.spec, task.spec)
    noise_seed = {"seed": (settings.seed << 32) + boot + own_number(settings) & (1 << 63) - 1}
    policies = Policies(
        store,
        control,
        lambda slot: PolicyChild(slot, ring.fd, {**common, **noise_seed}, control),
        settings.policy,
        robot=robot.spec,
        is_clocked=is_clocked,
    )
    control.on_promoted.append(policies.reattach)
    drive = Drive(
        settings,
        robot=robot,
        task=task,
        rewards=rewards,
        ring=ring,
        control=control,
        policies=policies,
        spool=spool,
        boot_id=boot_id,
        boot=boot,
        task_guards=task_guards,
    )
    parts: Parts

    def hello() -> Hello:
        return Hello(
            rover_id=settings.rover_id,
            boot_id=boot_id,
            oldest_version=OLDEST_PROTOCOL_VERSION,
            newest_version=PROTOCOL_VERSION,
            robot=common["robot"],
            task=common["task"],
            codecs=list(CODECS),
            software=importlib.metadata.version("roverloop"),
            next_seq=drive.next_seq,
            oldest_unacked=spool.oldest if spool.oldest is not None else drive.next_seq,
            policy_id=policies.driving_id,
            policy_counter=policies.counter,
            order_id=drive.order_id,
            settings={
                "weights": weights,
                "seed": settings.seed,
                "rate_hz": settings.control.rate_hz,
                "realtime": {**control.reports, **policies.reports},
            },
            live_seq=spool.live_seq if uplink.is_linked else spool.choose_live(),
            epoch_ns=spool.facts.epoch_ns,
            backlog=spool.offer(),
        )

    def ping() -> Ping:
        status: dict[str, Any] = {
            "mode": drive.mode,
            "collection": teleop.collecting.summary,
            "ticks_per_second": drive.rates[0],
            "episodes": drive.counts["episodes"],
            "round_trip_ms": _or_none(uplink.round_trip_ms),
            "clock_skew_s": _or_none(uplink.clock_skew_s),
            "overflow": spool.overflow,
            "spool": spool.disk.state,
            "unacknowledged": spool.waiting,
        }
        oldest = spool.oldest if spool.oldest is not None else drive.next_seq
        return Ping(time.monotonic_ns(), policies.driving_id, policies.counter, drive.order_id, status, oldest)

    uplink = Uplink(
        settings.link,
        spool,
        hello,
        ping,
        keys=keys,
        trainer_public=settings.link.trainer_key or trust.public,
        address=lambda: trainer_address(settings.link, trust),
    )
    _wire(uplink, drive, policies)
    _install(settings, store, policies)
    teleop = _make_teleop(settings, robot, drive, policies, uplink, plugins)
    selfcheck, rates = _make_selfcheck(settings, robot, drive, teleop.wheel), Rates()
    _watch_ticks(drive, selfcheck, rates)
    page = WebPage(
        settings.teleop,
        teleop,
        token_file=settings.state_dir / "keys" / "web.token",
        audit=AuditLog(settings.state_dir / "audit.jsonl"),
    )
    parts = Parts(
        settings,
        boot_id,
        plugins,
        weights,
        robot,
        task,
        ring,
        control,
        policies,
        store,
        spool,
        keys,
        trust,
        uplink,
        drive,
        teleop,
        page,
        selfcheck,
        rates,
        time.monotonic(),
    )
    return parts


def _make_selfcheck(settings: Settings, robot: Any, drive: Drive, wheel: Wheel) -> SelfCheck:
    selfcheck = SelfCheck(
        settings.selfcheck,
        spec=robot.spec,
        is_simulated=robot.is_simulated,
        max_speed_mps=settings.control.max_speed_mps,
        settings_hash=settings_hash(settings.robot, settings.actuator, settings.plugins),
        file=settings.state_dir / "calibration.json",
        driven=drive,
        wheel_owner=lambda: wheel.owner,
    )
    drive.is_armed, drive.is_checking = lambda: selfcheck.is_armed, lambda: selfcheck.is_running
    return selfcheck


def _watch_ticks(drive: Drive, selfcheck: SelfCheck, rates: Rates) -> None:
    others = drive.on_tick

    def on_tick(seen: Observed, applied: Applied | None) -> None:
        others(seen, applied)
        selfcheck.saw(seen, applied)
        rates.saw(seen, math.nan if applied is None else applied.clearance_m)

    drive.on_tick = on_tick


def trainer_address(link: LinkSettings, trust: TrustedTrainer) -> str:
    """Return where the trainer is: what was set, else where it was when this rover was paired with it."""
    return link.trainer or (trust.address if link.curve else "") or DEFAULT_TRAINER


def _make_teleop(
    settings: Settings, robot: Any, drive: Drive, policies: Policies, uplink: Uplink, plugins: PluginManager
) -> Teleop:
    wheel = Wheel(
        drive,
        Axes(robot.spec, robot.safe_action, max_speed_mps=settings.control.max_speed_mps),
        dead_man_s=settings.teleop.dead_man_ms * 1e-3,
        refusal="" if settings.control.rate_hz > 0 else LOCK_STEP,
        file=settings.state_dir / "wheel",
    )
    return Teleop(
        settings.rover_id,
        drive=drive,
        wheel=wheel,
        collecting=Collecting(
            drive,
            wheel,
            settings.state_dir / "collection.json",
            task=settings.task,
            controllers=lambda: plugins.names("controllers"),
        ),
        telemetry=Telemetry(robot.spec, drive.task_spec),
        policies=policies,
        uplink=uplink,
    )


def _make_spool(settings: Settings, boot_id: str, boot: int, robot: RobotSpec, task: TaskSpec) -> Spool:
    wall_ns = time.time_ns()
    epoch_ns = wall_ns - time.monotonic_ns() if wall_ns > LEAST_WALL_NS else 0
    specs = hashlib.sha256(f"{robot.hash} {task.hash}".encode()).hexdigest()
    return Spool(
        settings.spool,
        settings.state_dir / "spool",
        BootFacts(settings.rover_id, boot_id, boot, specs, epoch_ns),
        capacity=settings.link.outbox_records,
        live_records=settings.link.live_records,
        backfill_share=settings.link.backfill_share,
        is_clocked=settings.control.rate_hz > 0,
    )


def _check_actuator(settings: Settings, plugins: PluginManager) -> None:
    """Find mistakes about the actuator here, where their reason is seen, and not in the control process."""
    if settings.actuator:
        _table(plugins.actuator(settings.actuator).settings, settings, settings.actuator)


class _GuardedTask:
    """A task whose faults end the episode instead of the daemon; it is disabled when they repeat."""

    def __init__(self, task: Task, guard: Callable[..., Guard[Any]]) -> None:
        self.spec = task.spec
        self.reset = guard(task.reset, None)
        self.features = guard(task.features, np.zeros(len(task.spec.features), np.float32))
        self.measure = guard(task.measure, {})
        self.judge = guard(task.judge, Outcome(terminated=False, truncated=True, success=False, reason="task"))


def _guard_task(task: Task, plugins: PluginManager, settings: Settings) -> tuple[Task, list[Guard[Any]]]:
    guards: list[Guard[Any]] = []

    def guard(function: Callable[..., Any], default: Any) -> Guard[Any]:
        budget_ms = settings.reward.budget_ms
        guards.append(plugins.guard("tasks", settings.task, function, default=default, budget_ms=budget_ms))
        return guards[-1]

    return _GuardedTask(task, guard), guards


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _wire(uplink: Uplink, drive: Drive, policies: Policies) -> None:
    def on_message(message: Message) -> None:
        if isinstance(message, Offer):
            policies.offered(message)
        elif isinstance(message, Chunk):
            policies.received(message)
        elif isinstance(message, Order):
            drive.ordered(message)

    uplink.on_message = on_message
    uplink.on_room = drive.poke
    policies.send = uplink.send
    policies.on_change = drive.poke
    drive.orders.send = uplink.send
    drive.recording.send = uplink.send_record


def _install(settings: Settings, store: PolicyStore, policies: Policies) -> None:
    """Let the policy given on the command line drive, else the one that drove last."""
    if not settings.policy.file:
        if current := store.current():
            policies.want(current)
        return
    try:
        policies.choose(store.add(Path(settings.policy.file).read_bytes()))
    except (OSError, BundleError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        remedy = "give a bundle that was exported for this robot and task, or start without --policy"
        raise AssemblyError(f"--policy {settings.policy.file}: {reason}; {remedy}") from error


def _table(kind: type[Any], settings: Settings, name: str) -> Any:
    return validate_table(kind, settings.plugins.get(name, {}), f"[plugins.{name}]")


def robot_settings(plugin: RobotPlugin, settings: Settings) -> Any:
    """Return the settings of the robot, of its table and of what stands after the colon of its name.

    Raises:
        AssemblyError: the robot takes nothing after a colon.
        ConfigError: the table is wrong.

    """
    table = dict(settings.plugins.get(plugin.name, {}))
    if settings.robot_argument:
        if not plugin.argument:
            raise AssemblyError(f"robot {settings.robot}: {plugin.name} takes nothing after a colon")
        table[plugin.argument] = settings.robot_argument
    return validate_table(plugin.settings, table, f"[plugins.{plugin.name}]")


def _guarded(plugins: PluginManager, name: str, settings: Settings) -> Any:
    term = plugins.reward(name)
    return plugins.guard("rewards", name, term.function, default=math.nan, budget_ms=settings.reward.budget_ms)
