"""Every option of roverd, with its help and limits; the defaults are those of the real rover."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.messages import NAME
from protocol.node.config import option


@dataclass(frozen=True)
class ControlSettings:
    """Timing and limits of the control process."""

    rate_hz: float = option(
        10.0, help="control ticks per second; 0 is lock-step with a simulator, as fast as it goes", low=0, high=1000
    )
    max_speed_mps: float = option(0.18, help="limit of the forward action, m/s", low=0, high=10)
    safety_distance_m: float = option(
        0.25, help="forward motion stops when an obstacle is nearer, m; 0 switches it off", low=0, high=5
    )
    camera_height_m: float = option(0.20, help="height of the depth camera above the floor, m", low=0, high=3)
    half_width_m: float = option(0.20, help="half of the width that the robot needs to pass, m", low=0.01, high=3)
    image_stale_after_ms: float = option(
        500.0, help="without a newer image than this the safe action is commanded, ms", low=10, high=60_000
    )


@dataclass(frozen=True)
class LinkSettings:
    """The connection to trainerd."""

    trainer: str = option("tcp://127.0.0.1:5555", help="address of trainerd", pattern=r"(tcp|ipc)://.+")
    outbox_records: int = option(
        8192, help="unacknowledged records kept in memory; a simulator in lock-step waits when it is full", low=64
    )
    ping_s: float = option(1.0, help="seconds between pings", low=0.05, high=60)
    dead_after_s: float = option(5.0, help="silence after which the link is made anew, s", low=0.2, high=600)
    reconnect_min_s: float = option(0.05, help="first bound of the reconnect delay (full jitter), s", low=0.001)
    reconnect_max_s: float = option(2.0, help="last bound of the reconnect delay, s", low=0.01)


@dataclass(frozen=True)
class RecordSettings:
    """What is recorded of each tick."""

    images: str = option("all", help="images of every tick, or of those that decide", choices=("all", "decisions"))
    digest_ticks: int = option(
        0, help="hash this many ticks and show the digest in status, to compare two runs; 0 is off", low=0
    )


@dataclass(frozen=True)
class RewardSettings:
    """The weighted sum of reward terms."""

    weights: dict[str, float] = option(dict, help="weight of each reward term; empty: the task's own defaults")
    budget_ms: float = option(5.0, help="time a reward term may take, ms; three overruns disable it", low=0.01)


@dataclass(frozen=True)
class Settings:
    """All of roverd's options."""

    rover_id: str = option("rover-1", help="name of this rover, unique at its trainer", pattern=NAME)
    state_dir: Path = option(Path("roverd-state"), help="folder for policies and counters")
    control_socket: Path = option(Path("/run/roverd/control.sock"), help="Unix socket of roverctl")
    robot: str = option("sim", help="robot plugin")
    task: str = option("goal", help="task plugin")
    seed: int = option(0, help="seed of arenas and exploration", low=0, high=2**63 - 1)
    autostart: bool = option(True, help="drive as soon as a verified policy is there")
    policy: str = option("", help="policy bundle to install at start")
    cpus: tuple[int, ...] = option((), help="processor cores to run on, such as 4,5,6,7; empty: all", low=0)
    log_level: str = option("info", help="lowest level that is logged", choices=("debug", "info", "warning", "error"))
    control: ControlSettings = field(default_factory=ControlSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    plugins: dict[str, Any] = option(dict, help="settings of plugins, one table each, such as [plugins.sim]")
