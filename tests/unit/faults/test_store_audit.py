"""The audit reads the trainer's real store, whatever the power did to it, and sees what is wrong with it."""

from __future__ import annotations

import random
import time

import pytest

from protocol.framing import unpack
from protocol.messages import Ack, encode
from tests.daemon.strangers import hello
from tests.faults import powercut
from tests.faults.fleet import ROBOT, TASK, Scenes, SimulatedRover
from tests.faults.ledger import Ledger, Store
from tests.faults.world import flip_bits
from trainerd.episodes import store as stores
from trainerd.episodes.catalogue import Catalogue
from trainerd.episodes.records import StoredRecord
from trainerd.episodes.settings import StoreSettings

pytestmark = pytest.mark.component


class Shop:
    """A store that was opened, and the acknowledgements that a ledger hears of it."""

    def __init__(self, root, ledger):
        self.ledger = ledger
        self.durable = set()
        self.store = stores.Store(
            root / "episodes",
            Catalogue(root / "catalogue.sqlite"),
            StoreSettings(sync_interval_ms=1, min_free_mb=0),
            on_durable=self._acknowledge,
        )
        self.store.start()

    def _acknowledge(self, records):
        for _, boot_id, seq in records:
            self.durable.add(seq)
            self.ledger.see(1, encode(Ack(boot_id, [[seq, seq]], 512)), is_up=False)

    def take(self, rover, count):
        """Store the rover's next records."""
        self.store.begin_boot(rover.rover_id, rover.boot_id, run_id="run", robot=ROBOT, task=TASK, epoch_ns=0)
        for _ in range(count):
            rover._make_records()
        for seq, frames in sorted(rover.kept.items()):
            header = unpack(frames[0])
            self.ledger.see(1, frames, is_up=True)
            self.store.append(StoredRecord(rover.rover_id, rover.boot_id, seq, header["episode_id"], header, frames))

    def stop(self):
        self.store.stop()
        self.store.catalogue.close()


@pytest.fixture
def ledger():
    made = Ledger()
    made.see(1, encode(hello("rover-1", ROBOT.to_map(), TASK.to_map())), is_up=True)
    return made


@pytest.fixture
def rover():
    return SimulatedRover("rover-1", "", Scenes(2), boot_id="0123456789abcdef")


def test_what_a_store_acknowledged_is_there_and_the_audit_is_clean(tmp_path, ledger, rover):
    shop = Shop(tmp_path, ledger)
    shop.take(rover, 120)
    shop.stop()
    verdict = ledger.audit(Store(tmp_path / "episodes").read())
    assert verdict.is_clean, verdict
    assert verdict.stored == verdict.acked == verdict.sent == len(rover.kept) > 120


def test_a_file_that_vanished_or_was_changed_is_seen(tmp_path, ledger, rover):
    shop = Shop(tmp_path, ledger)
    shop.take(rover, 120)
    shop.stop()
    audit = Store(tmp_path / "episodes")
    files = sorted((tmp_path / "episodes").rglob("*.mcap"))
    assert len(files) == 3
    flip_bits(files[:1], random.Random(1), 40)
    read = audit.read()
    assert list(read.unreadable) == [str(files[0])]
    assert ledger.audit(read).acked_lost > 0
    files[1].unlink()
    assert ledger.audit(audit.read()).acked_lost > 50


def test_power_cuts_take_nothing_that_was_acknowledged(tmp_path, ledger, rover):
    if reason := powercut.why_not():
        pytest.skip(reason)
    draw = random.Random(seed := random.randrange(1 << 30))
    print(f"seed {seed}")
    with powercut.Disk(tmp_path, size_mb=64) as disk:
        for _ in range(4):
            shop = Shop(disk.root, ledger)
            received = {
                seq for low, high in shop.store.received("rover-1", rover.boot_id) for seq in range(low, high + 1)
            }
            rover.kept = {seq: frames for seq, frames in rover.kept.items() if seq not in received}
            shop.take(rover, 60)
            time.sleep(draw.uniform(0.001, 0.02))
            disk.cut()
            shop.stop()
            disk.restore()
        shop = Shop(disk.root, ledger)
        shop.take(rover, 1)
        shop.stop()
        verdict = ledger.audit(Store(disk.root / "episodes").read())
        assert verdict.acked_lost == verdict.duplicates == verdict.undetected_corruption == 0, verdict
        assert verdict.acked > 0
