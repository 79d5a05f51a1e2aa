"""Every option of roverd, with its help and limits; the defaults are those of the real rover."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.messages import NAME
from protocol.node.config import option

DEFAULT_TRAINER = "tcp://127.0.0.1:5555"
LOCAL_TRAINER = re.compile(r"ipc://.+|tcp://(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+")


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

    trainer: str = option(
        "",
        help=f"address of trainerd; empty: where it was when it was paired with, else {DEFAULT_TRAINER}",
        pattern=r"tcp://.+:\d+|ipc://.+|",
    )
    curve: bool = option(
        True, help="encrypt the link and check both sides' keys; false only where the trainer is on this machine"
    )
    trainer_key: str = option(
        "", help="public key of trainerd, 40 characters; empty: the one that roverctl pair kept", pattern=r"\S{40}|"
    )
    outbox_records: int = option(
        8192, help="unacknowledged records; with more a simulator in lock-step waits, a real robot never does", low=64
    )
    live_records: int = option(
        512,
        help="with more than these waiting when the link is back, live begins at the running episode",
        low=1,
    )
    backfill_share: float = option(
        0.2, help="bytes of older records for each byte of live ones, while the robot drives", low=0.001, high=10
    )
    ping_s: float = option(1.0, help="seconds between pings", low=0.05, high=60)
    dead_after_s: float = option(3.0, help="silence after which the link is made anew, s", low=0.2, high=600)
    reconnect_min_s: float = option(0.05, help="first bound of the reconnect delay (full jitter), s", low=0.001)
    reconnect_max_s: float = option(2.0, help="last bound of the reconnect delay, s", low=0.01)

    def __post_init__(self) -> None:
        """Refuse an open link to another machine."""
        if not self.curve and self.trainer and not LOCAL_TRAINER.fullmatch(self.trainer):
            text = f"curve is off and the trainer {self.trainer} is on another machine, where anybody could be it"
            raise ValueError(f"{text}; leave link.curve on and run roverctl pair HOST")


@dataclass(frozen=True)
class SpoolSettings:
    """Unacknowledged records on disk, in the folder spool of state_dir."""

    memory_mb: int = option(64, help="memory for records, MiB; older ones are read from disk", low=1, high=65536)
    sync_ms: float = option(
        500.0, help="time after which a record is synced, ms; a power cut costs so much and one sync", low=1, high=900
    )
    max_mb: int = option(8192, help="quota of the spool, MiB", low=8)
    min_free_mb: int = option(256, help="space that the spool leaves free on its disk, MiB", low=0)
    when_full: str = option(
        "oldest",
        help="what is dropped when there is no room for unacknowledged records: the oldest on disk, or the newest",
        choices=("oldest", "newest"),
    )


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
    state_dir: Path = option(Path("roverd-state"), help="folder of keys, policies, the spool and counters")
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
    spool: SpoolSettings = field(default_factory=SpoolSettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    plugins: dict[str, Any] = option(dict, help="settings of plugins, one table each, such as [plugins.sim]")
