"""Every option of trainerd, with its help and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.node.config import option
from protocol.node.log import LEVELS
from trainerd.episodes.settings import StoreSettings
from trainerd.learning.settings import NetworkSettings, PpoSettings
from trainerd.legacy import LegacySettings

DEFAULT_STATE_DIR = Path("./state/trainerd")
DEFAULT_CONTROL_SOCKET = DEFAULT_STATE_DIR / "control.sock"
UNIT_SOCKET = Path("/run/trainerd/control.sock")
"""Where systemd/trainerd.socket listens."""
ENDLESS_DECISIONS = 10**12


@dataclass(frozen=True)
class LinkSettings:
    """How rovers are listened to."""

    credit: int = option(512, help="records that a rover may have under way, unacknowledged", low=1, high=4096)
    ack_every: int = option(16, help="records after which an acknowledgement is sent at the latest", low=1)
    ack_interval_ms: int = option(100, help="time after which an acknowledgement is sent at the latest", low=1)
    ping_interval_s: float = option(1.0, help="time between two pings to a rover", low=0.05)
    dead_after_s: float = option(5.0, help="silence after which a rover counts as gone", low=0.2)
    gap_wait_s: float = option(0.25, help="how long a missing record is waited for before it is asked for", low=0.01)
    quiet_after_s: float = option(10.0, help="time without a step after which training is degraded", low=0.5)
    offer_interval_s: float = option(
        1.0, help="first time between two offers of a policy; it doubles up to 16 s", low=0.05
    )
    rover_mbytes_per_s: float = option(64.0, help="most that one rover may send on average, MB/s", low=0.1)
    curve: bool = option(
        default=True, help="encrypt the link and admit paired rovers only; false: plain, on loopback only"
    )
    pairing: bool = option(default=True, help="answer rovers that ask to be paired; a person confirms each")
    pairing_port: int = option(0, help="port for pairing; 0: two above the link's", low=0, high=65535)


@dataclass(frozen=True)
class TrainSettings:
    """What the run is for."""

    decisions: int = option(0, help="budget of decisions, which the schedules follow; 0: no end", low=0)
    frozen: bool = option(default=False, help="collect experience but never change the policy")
    autostart: bool = option(default=True, help="train from the start on; false: wait for train start")
    fresh: bool = option(default=False, help="do not resume from the newest checkpoint")
    keep_policies: int = option(20, help="policies to keep on disk besides those that drive", low=1)

    @property
    def budget(self) -> int:
        """Decisions that the schedules span; where there is no end they stay at their start."""
        return self.decisions or ENDLESS_DECISIONS


@dataclass(frozen=True)
class Settings:
    """The settings of trainerd."""

    host: str = option("127.0.0.1", help="address to listen on for rovers")
    port: int = option(5555, help="port to listen on for rovers; 0: any free one", low=0, high=65535)
    state_dir: Path = option(
        DEFAULT_STATE_DIR, help="folder of the run's identity, episodes, policies, keys and audit log"
    )
    checkpoint_dir: Path = option(Path("./checkpoints"), help="folder of the checkpoints")
    checkpoint_interval: int = option(10, help="updates between two checkpoints", low=1)
    tensorboard_dir: Path = option(Path("./runs"), help="folder of the TensorBoard logs")
    control_socket: Path | None = option(None, help="path of the control socket; none: control.sock in state_dir")
    seed: int = option(0, help="seed of the learner", low=0)
    device: str = option("auto", help="torch device: auto, cpu, cuda or cuda:1", pattern=r"auto|cpu|cuda(:\d+)?")
    devices: tuple[str, ...] = option(
        (),
        help="devices that share each update, such as cuda:0,cuda:1, or cpu,cpu; empty: the one of device",
        pattern=r"cpu|cuda:\d+",
    )
    cpus: tuple[int, ...] = option((), help="processor cores to run on, such as 4,5,6,7; empty: all", low=0)
    threads: int = option(0, help="torch threads on the CPU; 0: as torch chooses", low=0)
    log_level: str = option("info", help="least severe level that is logged", choices=LEVELS)
    link: LinkSettings = option(LinkSettings, help="how rovers are listened to")
    train: TrainSettings = option(TrainSettings, help="what the run is for")
    store: StoreSettings = option(StoreSettings, help="how episodes are kept on disk")
    legacy: LegacySettings = option(LegacySettings, help="input of version 0")
    ppo: PpoSettings = option(PpoSettings, help="the hyperparameters of PPO")
    network: NetworkSettings = option(NetworkSettings, help="the policy network")
    plugins: dict[str, Any] = option(dict, help="a table for each plugin, checked by the plugin")

    @property
    def socket_path(self) -> Path:
        """Path of the control socket."""
        return self.control_socket or self.state_dir / "control.sock"
