"""Records of a small robot as they come from the link, and stores that are quick to test."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from protocol.framing import RecordEncoder, encode_record, unpack
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Behaviour, EpisodeEnd, Observation, Step
from trainerd.episodes import mcap, recovery
from trainerd.episodes.catalogue import BootRow, Catalogue
from trainerd.episodes.reader import open_episode
from trainerd.episodes.records import Facts, Format, StoredRecord
from trainerd.episodes.settings import StoreSettings
from trainerd.episodes.store import Store
from trainerd.episodes.writer import EpisodeWriter

if TYPE_CHECKING:
    from pathlib import Path

ROVER, BOOT, OTHER_BOOT, RUN = "rover-1", "0123456789abcdef", "fedcba9876543210", "run-1"
EPOCH_NS = 1_700_000_000_000_000_000
ROBOT = RobotSpec(
    name="small",
    cameras=(Camera("front", "rgb", 6, 10, 10.0), Camera("front", "depth", 6, 10, 10.0)),
    state=(Element("v", "m/s", -1.0, 1.0),),
    action=(Element("a", "m/s", 0.0, 1.0),),
    control_rate_hz=10.0,
)
TASK = TaskSpec("drive")
WALL_NS = EPOCH_NS + 5_000_000_000
BOOT_ROW = BootRow(ROVER, BOOT, RUN, EPOCH_NS, ROBOT, TASK)
RGB, DEPTH = (camera.key for camera in ROBOT.cameras)
FAST = StoreSettings(sync_interval_ms=1, min_free_mb=0)
_ENCODER = RecordEncoder(ROBOT)
_RNG = np.random.default_rng(7)
_IMAGES = _ENCODER.encode_images(
    {
        "observation.images.front": _RNG.integers(0, 255, (6, 10, 3), np.uint8),
        "observation.depth.front": _RNG.integers(0, 4000, (6, 10), np.int16),
    }
)


def observation(seq: int) -> Observation:
    one = np.full(1, seq, np.float32)
    return Observation(state=one, task=np.empty(0, np.float32), in_flight=one, stamp_ns=1000 * seq % (1 << 62))


def stored(record: Step | EpisodeEnd, images=None) -> StoredRecord:
    frames = encode_record(record, _IMAGES if images is None else images)
    return StoredRecord(record.rover_id, record.boot_id, record.seq, record.episode_id, unpack(frames[0]), frames)


def step(seq, episode_id=0, episode_step=None, *, boot_id=BOOT, rover_id=ROVER, images=None, **changes) -> StoredRecord:
    number = np.full(1, 0.5, np.float32)
    values = {
        "decision_id": seq,
        "tick_in_decision": 0,
        "observation": observation(seq),
        "action": number,
        "source": "policy",
        "reward": 0.25,
        "policy_id": "ab" * 32,
        "policy_counter": 3 + seq % 2,
        "behaviour": Behaviour(number, number, number, -1.0),
    } | changes
    place = seq if episode_step is None else episode_step
    made = Step(rover_id=rover_id, boot_id=boot_id, seq=seq, episode_id=episode_id, episode_step=place, **values)
    return stored(made, images)


def end(seq, episode_id=0, episode_steps=None, *, boot_id=BOOT, rover_id=ROVER, **changes) -> StoredRecord:
    steps = seq if episode_steps is None else episode_steps
    values = {"reason": "terminated", "success": True, "return_": 1.5} | changes
    made = EpisodeEnd(rover_id, boot_id, seq, episode_id, steps, final=observation(seq), **values)
    return stored(made, {})


def episode(steps, episode_id=0, first=0, **where) -> list[StoredRecord]:
    """Return an episode of so many steps and its end."""
    made = [step(first + k, episode_id, k, **where) for k in range(steps)]
    return [*made, end(first + steps, episode_id, steps, **where)]


def write_file(path, groups, *, is_finished=True, epoch_ns=EPOCH_NS):
    """Write an episode's file, one group for each list of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = Format.of(ROBOT)
    metadata = recovery.episode_metadata(BOOT_ROW, 0, WALL_NS)
    writer = EpisodeWriter.create(path, form.prologue(metadata, ROBOT, TASK), Facts())
    for records in groups:
        builder = mcap.ChunkBuilder()
        for record in records:
            form.check(record)
            form.encode(record, builder, epoch_ns, WALL_NS)
        writer.append(builder)
    if is_finished:
        writer.finish()
    writer.close()
    return path


def file_path(folder):
    return folder / "episodes" / recovery.episode_path(ROVER, BOOT, 0)


class Durable:
    """Collect what a store says is durable."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.all: list[tuple[str, str, int]] = []
        self.came = threading.Event()

    def __call__(self, what) -> None:
        self.all += what
        self.seqs += [seq for _, _, seq in what]
        self.came.set()


class Bench:
    """A folder, and the stores that are started on it one after the other."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.folder = folder / "episodes"
        self.durable = Durable()
        self.open: list[tuple[Store, Catalogue]] = []

    def store(self, settings=FAST, *, is_started=True, **options) -> Store:
        catalogue = Catalogue(self.root / "catalogue.db")
        made = Store(self.folder, catalogue, settings, on_durable=self.durable, **options)
        self.open.append((made, catalogue))
        if is_started:
            made.start()
            begin(made)
        return made

    def stop(self) -> None:
        for store, catalogue in self.open:
            store.stop()
            catalogue.close()
        self.open.clear()

    def path(self, episode_id=0, boot_id=BOOT, rover_id=ROVER) -> Path:
        return self.folder / rover_id / boot_id / f"{episode_id:08d}.mcap"

    def read(self, episode_id=0) -> list[StoredRecord]:
        return list(open_episode(self.path(episode_id)).records())


def begin(store, boot_id=BOOT, rover_id=ROVER, **changes) -> None:
    values = {"run_id": RUN, "robot": ROBOT, "task": TASK, "epoch_ns": EPOCH_NS} | changes
    store.begin_boot(rover_id, boot_id, **values)


def put(store, records) -> None:
    """Append and wait until all is durable and in the catalogue."""
    for each in records:
        assert store.append(each)
    assert store.flush(10)
