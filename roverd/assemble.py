"""Make roverd's parts from its settings and hand them to each other."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.manager import PluginManager
from plugins.rewards import DRIVE_WEIGHTS, GOAL_WEIGHTS
from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.errors import RoverError
from protocol.images import CODECS
from protocol.keys import KeyPair, load_or_make
from protocol.messages import Chunk, Hello, Message, Offer, Order, Ping
from protocol.moment import Outcome
from protocol.node.config import check_plugin_tables, validate_table
from roverd.control.ring import RingWriter
from roverd.control.safety import Limits
from roverd.drive import Drive, own_number
from roverd.episode import Rewards
from roverd.pairing import TrustedTrainer
from roverd.policies import Policies, PolicyStore
from roverd.processes import Child, PolicyChild
from roverd.segment import BootFacts
from roverd.settings import DEFAULT_TRAINER, LinkSettings, Settings
from roverd.spool import Spool
from roverd.uplink import Uplink

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugins.contracts import Task
    from plugins.guard import Guard
    from protocol.spec import RobotSpec, TaskSpec

LEAST_WALL_NS = 1_600_000_000 * 10**9
"""A wall clock that shows less (2020) was never set: a board without a battery begins in 1970."""
TASK_WEIGHTS = {"goal": GOAL_WEIGHTS, "drive": DRIVE_WEIGHTS}


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
    control: Child
    policies: Policies
    store: PolicyStore
    spool: Spool
    keys: KeyPair
    trust: TrustedTrainer
    uplink: Uplink
    drive: Drive
    started_s: float

    async def close(self) -> None:
        """Stop the control process, free the ring and let another process have the spool."""
        await self.control.stop()
        self.ring.close()
        self.spool.close()


async def make_parts(settings: Settings, *, boot_id: str, boot: int) -> Parts:
    """Load plugins, start the control process, and wire everything; raises RoverError on what does not fit."""
    plugins = PluginManager(groups=("robots", "tasks", "rewards", "controllers"))
    known = [*plugins.names("robots"), *plugins.names("tasks")]
    check_plugin_tables(settings.plugins, known, "no plugin of that name has options")
    robot_plugin, task_plugin = plugins.robot(settings.robot), plugins.task(settings.task)
    robot_settings = _table(robot_plugin.settings, settings, settings.robot)
    robot = robot_plugin.create(robot_settings)
    task = task_plugin.create(_table(task_plugin.settings, settings, settings.task), robot.spec, settings.seed)
    _check_clock(settings, robot.spec)
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
    }
    control = Child("control", "roverd.control.process", ring.fd, {**common, **_control_config(settings, robot)})
    await control.started()
    store = PolicyStore(settings.state_dir / "policies", robot.spec, task.spec)
    noise_seed = {"seed": (settings.seed << 32) + boot + own_number(settings) & (1 << 63) - 1}
    policies = Policies(store, control, lambda slot: PolicyChild(slot, ring.fd, {**common, **noise_seed}, control))
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
            settings={"weights": weights, "seed": settings.seed, "rate_hz": settings.control.rate_hz},
            live_seq=spool.live_seq if uplink.is_linked else spool.choose_live(),
            epoch_ns=spool.facts.epoch_ns,
            backlog=spool.offer(),
        )

    def ping() -> Ping:
        status: dict[str, Any] = {
            "mode": drive.mode,
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
        time.monotonic(),
    )
    return parts


def trainer_address(link: LinkSettings, trust: TrustedTrainer) -> str:
    """Return where the trainer is: what was set, else where it was when this rover was paired with it."""
    return link.trainer or (trust.address if link.curve else "") or DEFAULT_TRAINER


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


def _check_clock(settings: Settings, spec: RobotSpec) -> None:
    """A clock must be the one that the robot declares, and leave the policy time; else nothing recorded is true."""
    rate_hz = settings.control.rate_hz
    if rate_hz == 0:
        return
    if rate_hz != spec.control_rate_hz:
        raise AssemblyError(f"control.rate_hz {rate_hz:g}: robot {spec.name} declares {spec.control_rate_hz:g}, or 0")
    if spec.action_delay_ms <= 0:
        raise AssemblyError(f"control.rate_hz {rate_hz:g}: robot {spec.name} has no action delay: no time to decide")


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
    drive.send = uplink.send
    drive.send_record = uplink.send_record


def _install(settings: Settings, store: PolicyStore, policies: Policies) -> None:
    """Let the policy given on the command line drive, else the one that drove last."""
    if settings.policy:
        try:
            policies.want(store.add(Path(settings.policy).read_bytes()))
        except OSError as error:
            raise AssemblyError(f"--policy {settings.policy}: {error.strerror}") from error
    elif current := store.current():
        policies.want(current)


def _table(kind: type[Any], settings: Settings, name: str) -> Any:
    return validate_table(kind, settings.plugins.get(name, {}), f"[plugins.{name}]")


def _guarded(plugins: PluginManager, name: str, settings: Settings) -> Any:
    term = plugins.reward(name)
    return plugins.guard("rewards", name, term.function, default=math.nan, budget_ms=settings.reward.budget_ms)


def _control_config(settings: Settings, robot: Any) -> dict[str, Any]:
    control, spec = settings.control, robot.spec
    forward = next((i for i, e in enumerate(spec.action) if e.name.startswith("linear")), -1)
    low, high = [e.low for e in spec.action], [e.high for e in spec.action]
    if forward >= 0:
        high[forward] = min(high[forward], control.max_speed_mps)
        low[forward] = max(low[forward], -control.max_speed_mps)
    limits = Limits(
        low=tuple(low),
        high=tuple(high),
        safe_action=tuple(robot.safe_action),
        forward=forward,
        safety_distance_m=control.safety_distance_m,
        stale_after_ns=int(control.image_stale_after_ms * 1e6),
    )
    return {
        "rate_hz": control.rate_hz,
        "limits": asdict(limits),
        "geometry": {"camera_height_m": control.camera_height_m, "half_width_m": control.half_width_m},
    }
