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
    slow_distance_m: float = option(
        0.6, help="from this far before an obstacle the forward speed falls with the distance, m; 0: no", low=0, high=10
    )
    stale_after_ms: float = option(
        180.0, help="without a newer image and state than this the safe action is commanded, ms", low=10, high=200
    )
    frozen_after_ms: float = option(
        90.0,
        help="a camera that gives the same picture for so long is frozen, ms; 0: not looked at",
        low=0,
        high=60_000,
    )
    max_acceleration_mps2: float = option(
        0.5, help="limit of the forward acceleration; slowing down is free; 0: none", low=0, high=100
    )
    max_acceleration_radps2: float = option(6.0, help="limit of the turning acceleration; 0: none", low=0, high=1000)
    max_jerk_mps3: float = option(5.0, help="limit of the change of forward acceleration; 0: none", low=0, high=1000)
    max_jerk_radps3: float = option(
        120.0, help="limit of the change of turning acceleration; 0: none", low=0, high=10_000
    )
    max_tilt_deg: float = option(
        30.0, help="roll or pitch beyond which the robot stops, degrees; 0: none", low=0, high=90
    )
    stall_after_ms: float = option(
        1000.0, help="told to move and not moving for so long is a stall, ms; 0: not looked at", low=0, high=60_000
    )
    dead_man_ms: float = option(
        180.0,
        help="how long the motor controller goes on without a command, ms; simulators do likewise",
        low=10,
        high=300,
    )
    realtime: bool = option(
        True, help="ask the kernel for SCHED_FIFO and locked memory for control and policies (not in lock-step)"
    )
    cpus: tuple[int, ...] = option((), help="processor cores of control and its spare, such as 6,7; empty: all", low=0)


@dataclass(frozen=True)
class TeleopSettings:
    """How a person takes the wheel, and the page that he does it on."""

    dead_man_ms: float = option(
        250.0, help="how long one command of a person counts; then the robot stands, ms", low=50, high=250
    )
    port: int = option(8081, help="port of the page; 0: no page", low=0, high=65535)
    bind: str = option(
        "127.0.0.1", help="address that the page listens on; 0.0.0.0: every one, unencrypted", pattern=r"[0-9a-fA-F.:]+"
    )
    hosts: tuple[str, ...] = option(
        (),
        help="names by which the page is opened, besides addresses and localhost; NAME, or NAME:PORT behind a proxy",
        pattern=r"[A-Za-z0-9._-]+(:\d{1,5})?",
    )

    @property
    def is_exposed(self) -> bool:
        """True where other machines reach the page."""
        return not self.bind.startswith("127.") and self.bind != "::1"


@dataclass(frozen=True)
class PolicySettings:
    """How a policy comes to drive, and when the one before comes back (docs/policies.md)."""

    file: str = option("", help="policy bundle to install at start")
    max_latency_ms: float = option(
        0.0,
        help="a policy that answers later is refused, ms; 0: later than the robot's action delay (lock-step: no limit)",
        low=0,
        high=60_000,
    )
    shadow_ticks: int = option(
        8, help="live observations that a policy must answer beside the one that drives; 0: none", low=0, high=10_000
    )
    shadow_timeout_s: float = option(
        1.0, help="without a live observation for so long, because the robot stands, it passes, s", low=0.01, high=600
    )
    late_share: float = option(
        0.1, help="share of answers that may be late or missing, of a shadow and of a policy that drives", low=0, high=1
    )
    watch_ticks: int = option(
        64, help="decisions of a new policy that are watched; a bad one is rolled back; 0: none", low=0, high=100_000
    )
    intervention_rise: float = option(
        0.5,
        help="safety may step in at so much more of its decisions than before, as a share; 1: any",
        low=0,
        high=1,
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
class SelfCheckSettings:
    """The check that a robot moves as it is told and measures how it moves; a policy may drive once it is passed."""

    required: str = option(
        "auto",
        help="whether a policy may drive only after roverctl selfcheck: auto is every robot that is not simulated",
        choices=("auto", "always", "never"),
    )
    speed_mps: float = option(0.05, help="speed of its pulses forward and back, m/s", low=0.005, high=0.5)
    turn_radps: float = option(0.3, help="speed of its pulses to the left and right, rad/s", low=0.01, high=2)
    seconds: float = option(0.6, help="length of each pulse and of each rest before it, s", low=0.2, high=5)
    least_share: float = option(
        0.3, help="share of the commanded speed that must at least be measured", low=0.01, high=0.9
    )
    most_share: float = option(3.0, help="share of the commanded speed that may at most be measured", low=1.1, high=100)
    rest_mps: float = option(0.02, help="speed that may be measured at rest, m/s", low=0.0001, high=1)
    rest_radps: float = option(0.1, help="turning speed that may be measured at rest, rad/s", low=0.0001, high=1)
    gravity_tolerance_mps2: float = option(
        1.5, help="how far the acceleration at rest may be from 9.81 m/s^2", low=0.01, high=9
    )
    level_deg: float = option(15.0, help="roll and pitch that may be measured at rest, degrees", low=0.1, high=90)
    watch_s: float = option(
        10.0,
        help="seconds of driving over which commands and measurements are compared all along; 0: not",
        low=0,
        high=600,
    )


@dataclass(frozen=True)
class Settings:
    """All of roverd's options."""

    rover_id: str = option("rover-1", help="name of this rover, unique at its trainer", pattern=NAME)
    state_dir: Path = option(Path("roverd-state"), help="folder of keys, policies, the spool and counters")
    control_socket: Path = option(Path("/run/roverd/control.sock"), help="Unix socket of roverctl")
    robot: str = option(
        "sim", help="robot plugin; some take what they are after a colon, as in gym:CartPole-v1", pattern=r"[^:]+(:.+)?"
    )
    actuator: str = option("", help="actuator plugin that control commands; empty: the robot's own simulation")
    task: str = option("goal", help="task plugin")
    seed: int = option(0, help="seed of arenas and exploration", low=0, high=2**63 - 1)
    autostart: bool = option(True, help="drive as soon as a verified policy is there")
    cpus: tuple[int, ...] = option((), help="processor cores to run on, such as 4,5,6,7; empty: all", low=0)
    log_level: str = option("info", help="lowest level that is logged", choices=("debug", "info", "warning", "error"))
    control: ControlSettings = field(default_factory=ControlSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    teleop: TeleopSettings = field(default_factory=TeleopSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    spool: SpoolSettings = field(default_factory=SpoolSettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    selfcheck: SelfCheckSettings = field(default_factory=SelfCheckSettings)
    plugins: dict[str, Any] = option(dict, help="settings of plugins, one table each, such as [plugins.sim]")

    @property
    def robot_name(self) -> str:
        """Name of the robot plugin."""
        return self.robot.partition(":")[0]

    @property
    def robot_argument(self) -> str:
        """What stands after the colon, empty without one."""
        return self.robot.partition(":")[2]
