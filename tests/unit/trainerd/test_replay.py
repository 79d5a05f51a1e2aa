"""After a restart the learner gets exactly what was stored and is not behind it, in order, once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from protocol.framing import unpack
from protocol.ranges import Ranges
from tests.unit.trainerd.rover import BARE, ROBOT, TASK, FakeRover
from trainerd.episodes.catalogue import Catalogue
from trainerd.episodes.records import StoredRecord
from trainerd.episodes.settings import StoreSettings
from trainerd.episodes.store import Store
from trainerd.replay import Found
from trainerd.run import Run

pytestmark = pytest.mark.component
KEY = ("rover-1", "boot-1")


@dataclass
class Learner:
    oldest_usable: int = 0
    is_busy_after: int = 10_000
    fed: list = field(default_factory=list)
    stale: list = field(default_factory=list)

    def consume(self, record, lane):
        assert lane == "live"
        if len(self.fed) >= self.is_busy_after:
            return False
        self.fed.append(record)
        return True

    def skip_stale(self, rover_id, boot_id, seqs, steps):
        self.stale.append((rover_id, boot_id, seqs.to_list(), steps))


@pytest.fixture
def found(tmp_path):
    """A store with 70 ticks of a rover: two whole episodes (31 records each) and 10 ticks of a third."""

    def store():
        catalogue, settings = Catalogue(tmp_path / "catalogue.sqlite"), StoreSettings(min_free_mb=0)
        return Store(tmp_path / "episodes", catalogue, settings, on_durable=lambda _: None)

    first = store()
    first.start()
    first.begin_boot(*KEY, run_id="run-1", robot=ROBOT, task=TASK, epoch_ns=0)
    rover = FakeRover(1)
    rover.policy_id = "p" * 16
    for record in rover.records(70):
        frames = rover.encode(record)
        header = unpack(frames[0])
        assert first.append(StoredRecord(*KEY, record.seq, record.episode_id, header, frames))
    rover.close()
    assert first.flush(10)
    first.stop()
    first.catalogue.close()
    again = store()
    again.start()
    yield Found.of(again, Run("run-1", ROBOT, TASK))
    again.stop()
    again.catalogue.close()


def fed_by(found, marks, learner):
    replay = found.replay(marks, learner)
    while not replay.pump(1.0):
        assert len(learner.fed) < 1000
    return [record.seq for record in learner.fed]


def test_everything_stored_is_fed_to_a_learner_that_has_nothing(found):
    assert fed_by(found, {}, Learner()) == list(range(72))


def test_what_is_behind_the_learner_is_not_fed_again(found):
    marks = {KEY: Ranges([(0, 39), (50, 50)])}
    assert fed_by(found, marks, Learner()) == [*range(40, 50), *range(51, 72)]
    assert fed_by(found, {KEY: Ranges([(0, 71)])}, Learner()) == []


def test_a_busy_learner_loses_nothing(found):
    learner = Learner(is_busy_after=25)
    replay = found.replay({}, learner)
    assert not replay.pump(1.0)
    assert [record.seq for record in learner.fed] == list(range(25))
    learner.is_busy_after = 1000
    assert replay.pump(1.0)
    assert [record.seq for record in learner.fed] == list(range(72))


def test_whole_episodes_of_policies_that_are_too_old_are_counted_unread(found):
    learner = Learner(oldest_usable=1)
    assert {row.max_counter for row in found.episodes} == {0}
    assert fed_by(found, {KEY: Ranges([(0, 4)])}, learner) == list(range(62, 72)), "an unfinished one is read"
    assert learner.stale == [(*KEY, [[5, 30]], 25), (*KEY, [[31, 61]], 30)]


def test_another_runs_episodes_and_another_robots_are_left_alone(tmp_path, found):
    store = Store(found.folder, Catalogue(tmp_path / "catalogue.sqlite"), StoreSettings(), on_durable=print)
    store.flush = lambda _: True  # it is only looked at
    for run in (Run("run-2", ROBOT, TASK), Run("run-1", BARE, TASK)):
        other = Found.of(store, run)
        assert not other.episodes or not other.boots
        assert fed_by(other, {}, Learner()) == []
    store.catalogue.close()
