"""The power goes while policies come to the robot and drive: a start afterwards finds one that loads and is not old."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from roverd.policies import PolicyStore
from roverd.policies.store import Note
from tests.faults import powercut
from tests.unit.protocol.samples import ROBOT, TASK, packed

pytestmark = pytest.mark.component


@pytest.fixture
def disk(tmp_path):
    if reason := powercut.why_not():
        pytest.skip(reason)
    with powercut.Disk(tmp_path, size_mb=32) as made:
        yield made


def content(counter: int) -> bytes:
    """Return a policy of some hundred kilobytes, so that a cut finds it half written."""
    return packed(np.random.default_rng(counter).bytes(200_000), counter=counter)


class Installer(threading.Thread):
    """Install one policy after the other and let it drive, as the service does, until the disk refuses."""

    def __init__(self, folder, number: int) -> None:
        super().__init__(daemon=True)
        self.ids: dict[str, int] = {}
        self.noted = 0
        self.number = number
        self._folder = folder

    def run(self) -> None:
        try:
            store = PolicyStore(self._folder, ROBOT, TASK)
            previous = store.current()
            while True:
                self.number += 1
                made = content(self.number)
                policy_id = store.add(made)
                self.ids[policy_id] = self.number
                store.keep(Note(policy_id, previous), {policy_id})
                self.noted, previous = self.number, policy_id
        except OSError:
            return


@pytest.mark.parametrize("cuts", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_row_16_a_power_cut_at_any_moment_leaves_a_policy_that_loads(disk, cuts: int, record_property) -> None:
    draw = random.Random(seed := random.randrange(1 << 30))
    print(f"seed {seed}")
    folder, ids, noted, number = disk.root / "policies", {}, 0, 0
    for _ in range(cuts):
        installer = Installer(folder, number)
        installer.start()
        installer.join(draw.uniform(0.003, 0.08))
        disk.cut()
        installer.join(10.0)
        assert not installer.is_alive()
        disk.restore()
        ids, noted, number = ids | installer.ids, max(noted, installer.noted), installer.number
        current = PolicyStore(folder, ROBOT, TASK).current()
        if not current:
            assert noted == 0, f"policy {noted} drove, and none loads"
            continue
        assert ids[current] >= noted, "an older policy than the one that drove"
        kept = PolicyStore(folder, ROBOT, TASK)
        if previous := kept.note().previous:
            assert kept.verify(previous).policy_id == previous, "there is none to go back to"
        assert not list(folder.glob(".*")), "half written files stay"
    record_property("policies", number)
    assert noted >= 3, "hardly anything was installed: nothing was tested"
