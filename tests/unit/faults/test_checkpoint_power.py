"""The power goes while checkpoints are saved: the newest one that ``save`` returned is there, whole, or a newer one."""

from __future__ import annotations

import random
import threading

import pytest

from tests.faults import powercut
from tests.unit.learning.conftest import Toy
from trainerd.learning import checkpoint
from trainerd.learning.checkpoint import CheckpointError

pytestmark = pytest.mark.component


@pytest.fixture
def disk(tmp_path):
    if reason := powercut.why_not():
        pytest.skip(reason)
    with powercut.Disk(tmp_path, size_mb=32) as made:
        yield made


class Saver(threading.Thread):
    """Save one checkpoint after the other until the disk refuses."""

    def __init__(self, folder, learner):
        super().__init__(daemon=True)
        self.saved = learner.updates
        self._folder, self._learner = folder, learner

    def run(self):
        try:
            while True:
                self._learner.updates += 1
                checkpoint.save(self._folder, self._learner, keep=3)
                self.saved = self._learner.updates
        except CheckpointError:
            return


@pytest.mark.parametrize("cuts", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_row_28_a_power_cut_while_saving_always_leaves_a_loadable_checkpoint(disk, cuts):
    draw = random.Random(seed := random.randrange(1 << 30))
    print(f"seed {seed}")
    learner = Toy().learner()
    folder = disk.root / "checkpoints"
    for _ in range(cuts):
        saver = Saver(folder, learner)
        saver.start()
        saver.join(draw.uniform(0.005, 0.08))
        disk.cut()
        saver.join(10.0)
        assert not saver.is_alive()
        disk.restore()
        newest, reasons = checkpoint.latest(folder)
        if newest is None:
            assert saver.saved == 0, reasons
            continue
        assert checkpoint.update_of(newest.path) >= saver.saved, reasons
        learner.updates = checkpoint.update_of(newest.path)
    assert learner.updates >= 3, "hardly anything was saved: nothing was tested"
