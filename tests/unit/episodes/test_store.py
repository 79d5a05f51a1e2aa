import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from protocol.step import EpisodeEnd
from tests.unit.episodes.making import (
    BOOT,
    EPOCH_NS,
    FAST,
    OTHER_BOOT,
    ROBOT,
    ROVER,
    RUN,
    Bench,
    begin,
    end,
    episode,
    observation,
    put,
    step,
    stored,
)
from trainerd.episodes import recovery
from trainerd.episodes import store as module
from trainerd.episodes.catalogue import Catalogue
from trainerd.episodes.reader import open_episode
from trainerd.episodes.records import RecordError
from trainerd.episodes.settings import StoreSettings
from trainerd.episodes.store import Store, StoreError


def test_what_is_appended_is_read_again_and_listed(bench):
    store, records = bench.store(), episode(7)
    put(store, records)
    assert sorted(bench.durable.seqs) == list(range(8))
    assert bench.durable.all[0] == (ROVER, BOOT, 0)
    assert store.received(ROVER, BOOT) == [[0, 7]]
    assert bench.read() == records
    (row,) = store.catalogue.episodes()
    assert (row.state, row.first_seq, row.last_seq, row.records, row.steps) == ("complete", 0, 7, 8, 7)
    assert (row.success, row.reason, row.return_, row.purpose) == (True, "terminated", 1.5, "training")
    assert (row.policy_ids, row.min_counter, row.max_counter, row.human_steps) == (("ab" * 32,), 3, 4, 0)
    assert store.folder / row.path == bench.path()
    assert row.bytes == bench.path().stat().st_size
    (boot,) = store.catalogue.boots()
    assert (boot.run_id, boot.epoch_ns, boot.robot, boot.received) == (RUN, EPOCH_NS, ROBOT, [[0, 7]])
    status = store.status()
    assert (status["state"], status["records"], status["open_episodes"]) == ("ok", 8, 0)
    assert status["bytes"] == sum(len(frame) for record in records for frame in record.frames)


def test_nothing_is_announced_before_it_is_on_the_disk(bench, monkeypatch):
    synced, syncing, go_on = [], threading.Event(), threading.Event()
    sync = module.EpisodeWriter.sync

    def slow(writer):
        syncing.set()
        assert go_on.wait(5)
        sync(writer)
        synced.append(open_episode(writer.path).seqs)

    monkeypatch.setattr(module.EpisodeWriter, "sync", slow)
    store = bench.store()
    assert store.append(step(0))
    assert syncing.wait(5)
    assert bench.durable.seqs == []
    assert store.received(ROVER, BOOT) == []
    go_on.set()
    assert bench.durable.came.wait(5)
    assert synced[0] == bench.durable.seqs == [0]


def test_a_full_group_does_not_wait_for_the_interval(bench):
    store = bench.store(StoreSettings(sync_interval_ms=1000, min_free_mb=0))
    for seq in range(module.GROUP_RECORDS):
        assert store.append(step(seq))
    assert bench.durable.came.wait(0.8)


def test_records_in_any_order_and_twice_make_the_same_episode(bench):
    store, records = bench.store(), episode(40)
    shuffled = records * 2
    random.Random(3).shuffle(shuffled)
    put(store, shuffled)
    assert bench.read() == records
    assert set(bench.durable.seqs) == set(range(41))
    assert sum(len(group.entries) for group in open_episode(bench.path()).layout.groups) == 41
    assert store.catalogue.episodes()[0].state == "complete"
    assert store.counters.records == 41
    assert store.counters.duplicates == 41


def test_each_episode_has_a_file_of_its_own(bench):
    store = bench.store()
    begin(store, OTHER_BOOT)
    begin(store, rover_id="rover-2")
    put(
        store,
        [
            *episode(3, 0),
            *episode(4, 1, first=4),
            *episode(2, 0, boot_id=OTHER_BOOT),
            *episode(1, 0, rover_id="rover-2"),
        ],
    )
    assert [(row.rover_id, row.boot_id, row.episode_id, row.steps) for row in store.catalogue.episodes()] == [
        (ROVER, BOOT, 0, 3),
        (ROVER, BOOT, 1, 4),
        (ROVER, OTHER_BOOT, 0, 2),
        ("rover-2", BOOT, 0, 1),
    ]
    assert store.received(ROVER, BOOT) == [[0, 8]]
    assert store.received("rover-3", BOOT) == []


def test_an_episode_is_complete_only_when_its_gap_is_filled(bench):
    store, records = bench.store(), episode(6)
    put(store, records[:2] + records[3:])
    assert store.catalogue.episodes()[0].state == "open"
    assert not open_episode(bench.path()).is_finished
    assert store.received(ROVER, BOOT) == [[0, 1], [3, 6]]
    put(store, [records[2]])
    assert store.catalogue.episodes()[0].state == "complete"
    assert bench.read() == records


def test_a_break_does_not_end_the_episode(bench):
    store = bench.store()
    pause = EpisodeEnd(ROVER, BOOT, 1, 0, 1, "takeover", observation(1), ends_episode=False)
    put(store, [step(0, 0, 0), stored(pause, {}), step(2, 0, 1, source="human", purpose="collection")])
    assert store.catalogue.episodes()[0].state == "open"
    put(store, [end(3, 0, 2)])
    (row,) = store.catalogue.episodes()
    assert (row.state, row.records, row.steps, row.human_steps) == ("complete", 4, 2, 1)


def test_a_closed_boot_has_its_episodes_listed_as_they_are_and_a_late_record_opens_them_again(bench):
    store, records = bench.store(), episode(5)
    put(store, records[:3])
    store.close_boot(ROVER, BOOT)
    assert store.flush(5)
    assert store.catalogue.episodes()[0].state == "incomplete"
    assert open_episode(bench.path()).is_finished
    put(store, [records[4]])
    assert store.counters.reopened == 1
    assert not open_episode(bench.path()).is_finished
    put(store, [records[5], records[3]])
    (row,) = store.catalogue.episodes()
    assert (row.state, row.records) == ("complete", 6)
    assert bench.read() == records


def test_a_record_that_comes_again_after_its_episode_is_announced_and_not_written(bench):
    store, records = bench.store(), episode(3)
    put(store, records)
    before = bench.path().read_bytes()
    bench.durable.seqs.clear()
    put(store, [records[1]])
    assert bench.durable.seqs == [1]
    assert bench.path().read_bytes() == before
    assert store.counters.reopened == 0


def test_what_will_never_come_is_not_waited_for(bench):
    store, records = bench.store(), episode(5)
    put(store, records[:2] + records[4:])
    store.give_up(ROVER, BOOT, [[2, 3]], "gone at the rover")
    assert store.flush(5)
    (row,) = store.catalogue.episodes()
    assert (row.state, row.records) == ("incomplete", 4)
    assert store.gone(ROVER, BOOT) == store.catalogue.boots()[0].gone == [[2, 3]]
    assert "gone at the rover" in store.catalogue.events()[0].text
    bench.stop()
    again = bench.store()
    assert again.gone(ROVER, BOOT) == [[2, 3]]


def test_what_was_received_is_known_after_a_restart(bench):
    put(bench.store(), [*episode(3), step(4, 1, 0), step(6, 1, 2)])
    bench.stop()
    store = bench.store()
    assert store.received(ROVER, BOOT) == [[0, 4], [6, 6]]
    assert [row.state for row in store.catalogue.episodes()] == ["complete", "incomplete"]
    assert store.counters.recovered == 0
    put(store, [step(5, 1, 1), end(7, 1, 3)])
    assert [row.state for row in store.catalogue.episodes()] == ["complete", "complete"]
    assert store.received(ROVER, BOOT) == [[0, 7]]


def crash(bench, tmp_path):
    """Return a bench on a copy of the files as they are now, as they would be found after kill -9."""
    folder = tmp_path / f"after-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(bench.root, folder, ignore=lambda at, names: [n for n in names if n.startswith("after-")])
    return Bench(folder)


def test_what_was_announced_survives_a_kill(bench, tmp_path):
    store, records = bench.store(), episode(30)
    put(store, records[:20])
    for record in records[20:25]:
        store.append(record)
    again = crash(bench, tmp_path)
    announced = set(bench.durable.seqs)
    try:
        recovered = again.store()
        got = {seq for a, b in recovered.received(ROVER, BOOT) for seq in range(a, b + 1)}
        assert announced >= set(range(20))
        assert got >= set(range(20))
        assert recovered.counters.recovered == 1
        assert [record.seq for record in again.read()] == sorted(got)
        put(recovered, [record for record in records if record.seq not in got])
        assert again.read() == records
        assert recovered.catalogue.episodes()[0].state == "complete"
    finally:
        again.stop()


CHILD = """
import sys
from pathlib import Path
from tests.unit.episodes.making import Bench, episode

bench = Bench(Path(sys.argv[1]))
store = bench.store()
announced = 0
for number in range(100000):
    for record in episode(5, number, first=6 * number):
        while not store.append(record):
            pass
    done, bench.durable.seqs = bench.durable.seqs, []
    print(*done, flush=True)
"""


@pytest.mark.component
def test_nothing_that_was_announced_is_lost_by_kill_9(bench):
    root = Path(__file__).parents[3]
    for seconds in (0.05, 0.2, 0.4):
        command = [sys.executable, "-c", CHILD, str(bench.root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as child:
            announced = child.stdout.readline()
            threading.Event().wait(seconds)
            child.kill()
            announced += child.stdout.read()
        whole = announced[: announced.rfind("\n")]
        store = bench.store()
        received = {seq for first, last in store.received(ROVER, BOOT) for seq in range(first, last + 1)}
        assert {int(seq) for seq in whole.split()} <= received
        found = [record for row in store.catalogue.episodes() for record in bench.read(row.episode_id)]
        assert {record.seq for record in found} == received
        assert len(found) == len(received)
        assert all(record == episode(5, record.seq // 6, first=record.seq // 6 * 6)[record.seq % 6] for record in found)
        assert not store.findings.damaged
        bench.stop()


def test_the_catalogue_is_made_again_from_the_files(bench):
    store = bench.store()
    put(store, [*episode(3), *episode(4, 1, first=4)])
    before = store.catalogue.episodes()
    bench.stop()
    for path in bench.root.glob("catalogue.db*"):
        path.unlink()
    store = bench.store()
    assert store.catalogue.episodes() == before
    assert store.received(ROVER, BOOT) == [[0, 8]]
    bench.stop()
    (bench.root / "catalogue.db").write_bytes(b"\xff" * 5000)
    store = bench.store()
    assert store.catalogue.episodes() == before
    assert store.catalogue.events()[0].kind == "catalogue_damaged"


def test_a_catalogue_is_rebuilt_without_a_store(bench):
    store = bench.store()
    put(store, [*episode(3), *episode(4, 1, first=4)])
    before = store.catalogue.episodes()
    bench.stop()
    for path in bench.root.glob("catalogue.db*"):
        path.unlink()
    with closing(Catalogue(bench.root / "catalogue.db")) as catalogue:
        findings = recovery.rebuild(bench.folder, catalogue, bench.root / "quarantine")
        assert findings.scanned == 2
        assert catalogue.episodes() == before
        assert catalogue.boots()[0].received == [[0, 8]]


def test_a_damaged_open_file_is_put_into_the_quarantine_at_the_start(bench, tmp_path):
    store = bench.store()
    for start in range(0, 9, 3):
        put(store, [step(seq) for seq in range(start, start + 3)])
    again = crash(bench, tmp_path)
    try:
        content = bytearray(again.path().read_bytes())
        content[open_episode(again.path()).layout.groups[0].data_offset + 70] ^= 1
        again.path().write_bytes(content)
        recovered = again.store()
        assert recovered.counters.quarantined == 1
        assert len(list((again.root / "quarantine").iterdir())) == 1
        missing = [seq for seq in range(9) if seq not in {record.seq for record in again.read()}]
        assert missing
        (row,) = recovered.catalogue.episodes()
        assert row.state == "damaged"
        put(recovered, [step(seq) for seq in missing] + [end(9)])
        assert recovered.catalogue.episodes()[0].state == "complete"
    finally:
        again.stop()


def test_a_file_that_somebody_removed_is_listed_as_damaged_and_its_records_as_received(bench):
    put(bench.store(), episode(3))
    bench.stop()
    bench.path().unlink()
    store = bench.store()
    assert store.flush(5)
    (row,) = store.catalogue.episodes()
    assert (row.state, row.bytes) == ("damaged", 0)
    assert store.received(ROVER, BOOT) == [[0, 3]]


def test_few_files_are_held_open(bench, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN", 4)
    store = bench.store()
    for part in range(3):
        for number in range(10):
            assert store.append(step(3 * number + part, number, part))
    assert store.flush(10)
    for number in range(10):
        put(store, [step(100 + number, number, 5)])
        assert sum(writer.is_open for writer in store._writers.values()) <= 4
    assert store.status()["open_episodes"] == 10
    assert store.counters.reopened == 0
    bench.stop()
    assert [record.seq for record in bench.read(3)] == [9, 10, 11, 103]


def test_a_full_queue_takes_nothing_more(bench):
    store = bench.store(StoreSettings(sync_interval_ms=1000, min_free_mb=0, queue_mb=1), is_started=False)
    begin(store)
    taken = 0
    while store.append(step(taken)):
        taken += 1
    assert taken > 100
    assert store.counters.refused == 1
    store.start()
    assert store.flush(10)
    assert store.received(ROVER, BOOT) == [[0, taken - 1]]
    assert store.append(step(taken))


def test_a_boot_must_be_begun_with_the_same_robot(bench):
    store = bench.store()
    begin(store)
    other = type(ROBOT)(**{**vars(ROBOT), "control_rate_hz": 20.0})
    with pytest.raises(StoreError, match=r"another spec: control_rate_hz: 10.0 here, 20.0 there"):
        begin(store, robot=other)
    with pytest.raises(StoreError, match="not begun"):
        store.append(step(0, boot_id=OTHER_BOOT))
    with pytest.raises(StoreError, match="not begun"):
        store.give_up(ROVER, OTHER_BOOT, [], "")


@pytest.mark.parametrize(
    ("rover_id", "boot_id"), [("../etc", BOOT), ("a/b", BOOT), ("", BOOT), (ROVER, ".."), (ROVER, "")]
)
def test_a_name_that_is_no_folder_is_refused(bench, rover_id, boot_id):
    with pytest.raises(StoreError, match="not names of this protocol"):
        begin(bench.store(), boot_id, rover_id)


def test_a_malformed_record_is_refused_before_it_is_taken(bench):
    store = bench.store()
    bad = step(0)
    bad.header["blobs"] = []
    with pytest.raises(RecordError):
        store.append(bad)
    put(store, [step(1)])
    assert store.received(ROVER, BOOT) == [[1, 1]]


def test_a_folder_that_cannot_be_used_is_named_at_the_start(tmp_path):
    (tmp_path / "episodes").write_text("a file")
    catalogue = Catalogue(tmp_path / "catalogue.db")
    store = Store(tmp_path / "episodes", catalogue, FAST, on_durable=print)
    with pytest.raises(StoreError, match="episodes"):
        store.start()
    store.stop()
    catalogue.close()


def test_a_quota_deletes_only_used_training_episodes_and_their_records_stay_received(bench, monkeypatch):
    monkeypatch.setattr(module, "QUOTA_S", 0.0)
    asked = []

    def may_delete(row):
        asked.append(row.episode_id)
        return row.episode_id != 3

    settings = StoreSettings(sync_interval_ms=1, min_free_mb=0, quota_gb=1e-9)
    store = bench.store(settings, may_delete=may_delete)
    put(
        store,
        [
            *episode(3, 0, purpose="training"),
            *[step(4 + k, 1, k, purpose="evaluation") for k in range(2)],
            end(6, 1, 2, purpose="evaluation"),
            *[step(7 + k, 2, k, source="human") for k in range(2)],
            end(9, 2, 2),
            *episode(2, 3, first=10),
            *episode(2, 4, first=13),
            step(16, 5, 0),
        ],
    )
    _wait(lambda: store.counters.deleted == 2)
    assert [row.episode_id for row in store.catalogue.episodes()] == [1, 2, 3, 5]
    assert set(asked) == {0, 3, 4}
    assert not bench.path(0).exists()
    assert bench.path(3).exists()
    bench.stop()
    again = bench.store()
    assert again.received(ROVER, BOOT) == [[0, 16]]
    bench.durable.seqs.clear()
    put(again, [step(1, 0, 1)])
    assert bench.durable.seqs == [1]
    assert not bench.path(0).exists()


def test_a_deletion_that_a_crash_cut_short_is_ended_at_the_next_start(bench):
    store = bench.store()
    put(store, episode(3))
    store.catalogue.begin_deletion(store.catalogue.episodes())
    bench.stop()
    store = bench.store()
    assert store.catalogue.deleting() == store.catalogue.episodes() == []
    assert not bench.path().exists()
    assert store.received(ROVER, BOOT) == [[0, 3]]


def _wait(condition):
    tick = threading.Event()
    for _ in range(500):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it never came true")


def test_a_disk_that_does_not_answer_is_seen_from_outside(bench, monkeypatch):
    answers, sync = threading.Event(), module.EpisodeWriter.sync
    monkeypatch.setattr(module.EpisodeWriter, "sync", lambda writer: (answers.wait(10), sync(writer))[1])
    store = bench.store()
    store.pulse.limit_s = 0.6  # longer than it waits for records
    assert store.flush(10)  # it beats with this limit from now on
    assert store.append(episode(1)[0])
    wait_until(lambda: store.pulse.is_overdue)
    answers.set()
    assert store.flush(10)
    assert not store.pulse.is_overdue


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not within 10 s")
