"""The spool sends every record until it is acknowledged, in order, within the credit, from memory or from disk."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib

import pytest

from roverd.disk import Disk, SpoolError
from roverd.settings import SpoolSettings
from roverd.spool import Spool
from tests.unit.roverd.spools import SPECS, FailingFiles, Rig


@pytest.fixture
def make(tmp_path):
    rigs = []

    def make(count: int = 0, **options) -> Rig:
        rigs.append(Rig(tmp_path / "spool", **options))
        rigs[-1].append(count)
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.kill()


# -- the verbs, in memory ------------------------------------------------------------------------------------------


def test_records_leave_in_the_order_of_their_seq(make) -> None:
    assert make(5).seqs() == [0, 1, 2, 3, 4]


def test_no_more_than_the_credit_is_under_way(make) -> None:
    assert make(5).seqs(credit=3) == [0, 1, 2]


def test_without_credit_nothing_is_sent(make) -> None:
    assert make(1).spool.peek(0) is None


def test_an_acknowledgement_makes_room_for_as_many(make) -> None:
    rig = make(6)
    rig.seqs(credit=3)
    rig.acknowledge((0, 1))
    assert rig.seqs(credit=3) == [3, 4]


def test_a_sent_record_is_not_sent_again_by_itself(make) -> None:
    rig = make(3)
    rig.seqs()
    assert rig.seqs() == []


def test_a_rewind_resends_each_unacknowledged_record_once(make) -> None:
    rig = make(5)
    rig.seqs(credit=4)
    rig.acknowledge((1, 2))
    rig.spool.rewind()
    assert (rig.seqs(), rig.spool.resent) == ([0, 3, 4], 2)


def test_ranges_out_of_order_free_what_they_name(make) -> None:
    rig = make(10)
    rig.seqs()
    freed = rig.acknowledge((7, 8), (0, 2), (5, 5), (0, 2))
    rig.spool.rewind()
    assert (freed, rig.seqs()) == (6, [3, 4, 6, 9])


def test_an_acknowledged_record_behind_an_unsent_one_is_not_sent(make) -> None:
    rig = make(6)
    rig.seqs()
    rig.spool.rewind()
    rig.acknowledge((2, 4))
    assert rig.seqs() == [0, 1, 5]


def test_acknowledging_unsent_records_keeps_the_count_under_way_right(make) -> None:
    rig = make(6)
    rig.acknowledge((2, 4))
    assert rig.spool.under_way == 0


@pytest.mark.parametrize(("ranges", "freed"), [([(50, 60)], 0), ([(0, 2**62)], 3), ([(2**62, 2**63 - 1)], 0)])
def test_a_range_of_unknown_records_is_harmless(make, ranges, freed) -> None:
    rig = make(3)
    rig.seqs()
    assert rig.acknowledge(*ranges) == freed


def test_what_is_asked_for_again_is_sent_again_and_the_rest_is_not(make) -> None:
    rig = make(6)
    rig.seqs()
    rig.acknowledge((1, 2))
    assert rig.spool.resend(rig.spool.boot_id, [(1, 3), (5, 9)]) == [(1, 2)]
    assert rig.seqs() == [3, 5]


def test_the_oldest_is_the_first_unacknowledged(make) -> None:
    rig = make(4)
    rig.acknowledge((0, 0), (2, 2))
    assert rig.spool.oldest == 1
    rig.acknowledge((0, 9))
    assert rig.spool.oldest is None


def test_who_can_wait_is_told_before_the_last_place_is_taken(make) -> None:
    rig = make(capacity=64)
    rig.append(56)
    assert rig.spool.has_room
    rig.append(1)
    assert not rig.spool.has_room
    rig.acknowledge((0, 0))
    assert rig.spool.has_room


def test_who_can_wait_waits_for_a_disk_that_does_not_write(make) -> None:
    rig = make(memory_mb=1, size=100_000)
    rig.files.broken.add("writev")
    rig.append(6)
    rig.work()
    assert not rig.spool.has_room
    rig.files.broken.clear()
    rig.work(5.0)
    rig.settle()
    assert rig.spool.has_room


# -- what a restart finds ------------------------------------------------------------------------------------------


def test_after_a_kill_all_that_was_written_is_offered_and_sent(make) -> None:
    rig = make(7)
    rig.work()
    rig.kill()
    rig.begin()
    assert rig.spool.offer() == [{"boot_id": "0" * 16, "first": 0, "next": 7, "epoch_ns": 1000}]
    assert rig.send() == [], "nothing of an earlier boot is sent before the trainer wants it"
    rig.welcome()
    assert rig.send() == [("0" * 16, seq) for seq in range(7)]


@pytest.mark.parametrize("kept", [0, 1, 30, 60, 10_000])
def test_after_a_power_cut_all_that_was_synced_is_there(make, kept) -> None:
    rig = make(5)
    rig.settle()
    rig.append(3)
    rig.work()
    rig.kill()
    rig.files.cut_power(kept)
    rig.begin()
    rig.welcome()
    sent = rig.seqs()
    assert sent[:5] == [0, 1, 2, 3, 4]
    assert sent == list(range(len(sent)))


def test_every_record_is_synced_within_the_time_that_is_published(make) -> None:
    rig = make()
    disk = rig.spool.disk
    for _ in range(200):
        rig.append()
        rig.clock.now += 0.02
        disk.step()
    rig.spool.collect()
    assert disk.figures.syncs >= 7
    assert disk.figures.exposed_ms_max <= 521
    assert rig.spool._durable >= 200 - 26


def test_what_was_acknowledged_is_not_offered_after_a_clean_stop(make) -> None:
    rig = make(6)
    rig.settle()
    rig.acknowledge((0, 1), (4, 4))
    rig.stop()
    rig.begin()
    rig.welcome()
    assert rig.seqs() == [2, 3, 5]


def test_a_spool_is_empty_after_all_was_acknowledged_and_it_was_stopped(make) -> None:
    rig = make(6)
    rig.settle()
    rig.acknowledge((0, 5))
    rig.stop()
    assert [path.name for path in rig.folder.iterdir()] == ["lock"]


def test_the_folder_of_a_boot_vanishes_with_its_last_record(make) -> None:
    rig = make(6)
    rig.settle()
    rig.kill()
    rig.begin()
    rig.welcome()
    rig.spool.acknowledge("0" * 16, [(0, 4)])
    rig.work()
    assert len(rig.segments()) == 1
    rig.spool.acknowledge("0" * 16, [(5, 5)])
    rig.work()
    assert [path.name for path in rig.folder.iterdir()] == ["lock"]
    assert rig.spool.offer() == []


def test_a_note_of_acknowledgements_that_is_damaged_is_not_believed(make) -> None:
    rig = make(4)
    rig.settle()
    rig.acknowledge((0, 1))
    rig.stop()
    note = next(rig.folder.glob("*/acked.json"))
    text = json.dumps([[0, 3]])
    note.write_text(json.dumps([text, zlib.crc32(b"other")]))
    rig.begin()
    assert rig.spool.offer()[0]["first"] == 0


def test_segments_are_deleted_as_soon_as_all_their_records_are_acknowledged(make) -> None:
    rig = make(segment_bytes=2000, size=400)
    for _ in range(12):
        rig.append()
        rig.work()
    assert len(rig.segments()) > 4
    rig.acknowledge((3, 11))
    rig.work()
    left = [int(path.stem) for path in rig.segments()]
    assert left[0] == 0
    assert len(left) <= 3
    rig.acknowledge((0, 2))
    rig.work()
    assert len(rig.segments()) == 1, "only the open one is left"


def test_records_that_were_acknowledged_before_they_were_written_are_not_written(make) -> None:
    rig = make(5)
    rig.acknowledge((0, 3))
    rig.settle()
    assert rig.spool.disk.figures.written == 1


def test_a_second_roverd_in_the_same_folder_is_refused(make, tmp_path) -> None:
    make()
    with pytest.raises(SpoolError, match="another roverd uses it"):
        Rig(tmp_path / "spool")


@pytest.mark.parametrize(
    ("changes", "words"), [({"specs": "other"}, "another robot or task"), ({"rover_id": "rover-2"}, "of rover rover-1")]
)
def test_records_of_another_robot_are_held_back_and_shown(make, changes, words) -> None:
    rig = make(4)
    rig.settle()
    rig.kill()
    rig.begin(**changes)
    rig.welcome()
    assert (rig.spool.offer(), rig.send(), rig.spool.waiting) == ([], [], 0)
    (held,) = rig.spool.report()["held_back"]
    assert (held["records"], words in held["why"]) == (4, True)
    assert any("cannot be sent" in cause for cause in rig.spool.causes())
    rig.stop()
    rig.begin()
    rig.welcome()
    assert rig.seqs() == [0, 1, 2, 3], "with the robot of then they are sent"


def test_at_most_32_boots_are_offered_the_oldest_first_and_the_others_in_turn(make) -> None:
    rig = make(1)
    for _ in range(40):
        rig.settle()
        rig.kill()
        rig.begin()
        rig.append()
    ids = rig.spool.offered_ids()
    assert ids == tuple(f"{boot:016x}" for boot in range(32))
    rig.welcome()
    rig.spool.acknowledge(ids[0], [(0, 0)])
    assert rig.spool.offered_ids() == tuple(f"{boot:016x}" for boot in range(1, 33))
    assert rig.spool.has_unwanted


def test_a_boot_that_the_trainer_does_not_want_now_is_not_sent(make) -> None:
    rig = make(2)
    for _ in range(2):
        rig.settle()
        rig.kill()
        rig.begin()
        rig.append(2)
    rig.spool.rewind()
    rig.spool.welcome({f"{1:016x}": [(0, 0)]})
    own = rig.spool.boot_id
    assert rig.send() == [(own, 0), (own, 1), (f"{1:016x}", 1)]
    assert rig.spool.has_unwanted


def test_the_own_boot_is_never_taken_for_an_earlier_one(make) -> None:
    rig = make(3)
    rig.settle()
    assert rig.spool.offer() == []


# -- damage --------------------------------------------------------------------------------------------------------


def recorded(make, count: int = 3) -> tuple[Rig, bytes]:
    rig = make(count)
    rig.settle()
    rig.kill()
    (path,) = rig.segments()
    return rig, path.read_bytes()


def test_every_flipped_byte_of_a_segment_is_detected(make) -> None:
    rig, whole = recorded(make)
    (path,) = rig.segments()
    outcomes = set()
    for place in (*range(0, 1024, 8), *range(1024, len(whole))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        rig.begin()
        rig.welcome()
        sent = rig.seqs()  # which compares each record with what was appended
        outcomes.add(tuple(sent))
        lost = [each for each in rig.spool.take_gone() if each[0] == "0" * 16]
        if place >= 1024:  # a damaged header of the file has a second copy
            assert len(sent) == 2
            is_told = sum(b - a + 1 for _, ranges, _ in lost for a, b in ranges) == 1
            is_torn = rig.spool.disk.figures.torn_bytes > 0
            assert is_told or is_torn
        else:
            assert sent == [0, 1, 2]
        rig.kill()
        path.parent.mkdir(exist_ok=True)
    assert outcomes == {(0, 1, 2), (1, 2), (0, 2), (0, 1)}


def test_a_segment_that_was_cut_at_any_length_gives_its_whole_records(make) -> None:
    rig, whole = recorded(make)
    (path,) = rig.segments()
    size = (len(whole) - 1024) // 3
    for length in (*range(0, 1024, 64), *range(1023, len(whole))):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[:length])
        rig.begin()
        rig.welcome()
        assert rig.seqs() == list(range(max(0, length - 1024) // size)), length
        rig.kill()


def test_a_damaged_record_is_counted_told_and_never_sent(make) -> None:
    rig, whole = recorded(make)
    (path,) = rig.segments()
    path.write_bytes(whole[:-60] + bytes([whole[-60] ^ 1]) + whole[-59:])
    rig.begin()
    rig.welcome()
    assert len(rig.seqs()) == 2
    assert (rig.spool.damaged, rig.spool.overflow) == (1, 1)
    ((boot_id, ranges, reason),) = rig.spool.take_gone()
    assert (boot_id, len(ranges), "damaged" in reason) == ("0" * 16, 1, True)
    assert any("damaged" in cause for cause in rig.spool.causes())
    assert rig.spool.resend(boot_id, ranges) == [tuple(ranges[0])]


def test_records_of_another_boot_are_not_believed(make) -> None:
    rig, whole = recorded(make)
    rig.begin()
    rig.append(3)
    rig.settle()
    rig.kill()
    other = rig.segments()[1]
    other.write_bytes(other.read_bytes()[:1024] + whole[1024:])
    rig.begin()
    rig.welcome()
    assert rig.send() == [("0" * 16, seq) for seq in range(3)]


def test_a_damaged_header_of_a_file_in_both_copies_holds_its_records_back(make) -> None:
    rig, whole = recorded(make)
    (path,) = rig.segments()
    path.write_bytes(b"?" + whole[1:512] + b"?" + whole[513:])
    rig.begin()
    assert rig.spool.offer() == []
    assert "header" in rig.spool.report()["held_back"][0]["why"]


def test_rubbish_in_the_folder_is_left_alone(make) -> None:
    rig = make(2)
    rig.settle()
    rig.kill()
    folder = rig.segments()[0].parent
    (folder / "notes.txt").write_text("mine")
    (rig.folder / "readme").write_text("mine")
    (rig.folder / "00000007-ffffffffffffffff").mkdir()
    rig.begin()
    rig.welcome()
    assert rig.seqs() == [0, 1]
    rig.spool.acknowledge("0" * 16, [(0, 1)])
    rig.work()
    assert (folder / "notes.txt").exists()
    assert not (rig.folder / "00000007-ffffffffffffffff").exists()


def test_a_disk_that_cannot_be_read_is_tried_again_before_a_record_is_given_up(make) -> None:
    rig, _ = recorded(make)
    rig.begin()
    rig.welcome()
    rig.files.broken.add("pread")
    assert rig.seqs() == []
    rig.files.broken.clear()
    assert rig.seqs() == [], "not at once"
    rig.clock.now += 4.0
    assert rig.seqs() == [0, 1, 2]
    assert rig.spool.damaged == 0


def test_a_record_that_can_never_be_read_is_given_up_and_told(make) -> None:
    rig, _ = recorded(make)
    rig.begin()
    rig.welcome()
    rig.files.broken.add("pread")
    for _ in range(3):
        rig.seqs()
        rig.clock.now += 4.0
    rig.files.broken.clear()
    assert rig.seqs() == [1, 2]
    assert rig.spool.take_gone()[0][1] == [[0, 0]]


# -- a disk that is full or fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 500, 1024, 1030, 1100, 1500])
def test_a_disk_that_takes_only_a_part_loses_nothing_that_memory_can_hold(make, room) -> None:
    rig = make(files=FailingFiles(room), size=200, when_full="newest", min_free_mb=0)
    rig.append(5)
    rig.settle()
    assert (rig.spool.disk.state, len(rig.spool), rig.spool.overflow) == ("full", 5, 0)
    assert rig.seqs() == [0, 1, 2, 3, 4]
    rig.files.room = 1 << 20
    rig.work(40.0)
    rig.settle()
    rig.kill()
    rig.begin()
    rig.welcome()
    assert rig.seqs() == [0, 1, 2, 3, 4], "once there is room all of it is on disk"


def test_a_full_disk_costs_the_oldest_unacknowledged_segment_and_the_robot_drives_on(make) -> None:
    rig = make(files=FailingFiles(9000), size=200, segment_bytes=2500, min_free_mb=0)
    for _ in range(60):
        rig.append()
        rig.work(0.1)
    rig.settle()
    assert rig.spool.disk.state == "full"
    assert 0 < rig.spool.overflow < 60
    first = rig.spool.oldest
    assert first == rig.spool.overflow, "the oldest went, in order"
    assert rig.seqs() == list(range(first, 60))
    assert rig.spool.take_gone() == [(rig.spool.boot_id, [[0, first - 1]], "the rover's disk is full")]
    assert any("spool full" in cause for cause in rig.spool.causes())


def test_what_is_acknowledged_goes_before_anything_else_goes(make) -> None:
    rig = make(files=FailingFiles(9000), size=200, segment_bytes=1 << 20, min_free_mb=0)
    for _ in range(200):
        rig.append()
        rig.work(0.1)
        rig.acknowledge((0, rig.seq - 1))
    rig.settle()
    assert (rig.spool.overflow, rig.spool.disk.state) == (0, "ok")


def test_the_quota_is_kept_by_the_oldest_records(make) -> None:
    rig = make(max_mb=8, size=100_000)
    for _ in range(120):
        rig.append()
        rig.work(0.1)
    assert rig.spool.disk.figures.bytes <= 8 << 20
    assert sum(path.stat().st_size for path in rig.segments()) == rig.spool.disk.figures.bytes
    assert rig.spool.overflow > 30
    assert "spool.max_mb 8" in rig.spool.disk.reason


def test_the_quota_is_kept_by_the_newest_records_where_policy_says_so(make) -> None:
    rig = make(max_mb=8, memory_mb=1, size=100_000, when_full="newest")
    for _ in range(120):
        rig.append()
        rig.work(0.1)
    assert rig.spool.disk.figures.bytes <= 8 << 20
    rig.settle()
    sent = rig.seqs()
    assert sent == list(range(len(sent)))
    assert (len(sent) + rig.spool.overflow, rig.spool.overflow > 20) == (120, True)


def test_space_that_others_need_is_left_free_and_the_spool_is_not_emptied_for_it(make) -> None:
    rig = make(size=1000, segment_bytes=20_000, min_free_mb=256)
    for _ in range(100):
        rig.append()
        rig.work(0.1)
    before = rig.spool.disk.figures.bytes
    rig.files.free = 100 << 20
    for _ in range(100):
        rig.append()
        rig.work(0.1)
    assert before - 25_000 <= rig.spool.disk.figures.bytes <= before + 2_000
    assert "100 MiB are free" in rig.spool.disk.reason


@pytest.mark.parametrize("call", ["writev", "fdatasync", "open", "sync_folder", "free_bytes"])
def test_a_failing_disk_leaves_the_records_in_memory_until_it_works_again(make, call) -> None:
    rig = make(3)
    rig.settle()
    rig.files.broken.add(call)
    if call in {"open", "sync_folder"}:
        rig.spool.disk._close_segment()
    rig.append(3)
    rig.settle()
    rig.work(4.0)
    assert rig.spool.disk.state == "failed"
    assert (len(rig.spool), rig.spool._durable) == (6, 3)
    assert "Input/output error" in rig.spool.disk.reason
    rig.files.broken.clear()
    rig.work(4.0)
    rig.settle()
    assert (rig.spool.disk.state, rig.spool._durable) == ("ok", 6)
    rig.kill()
    rig.begin()
    rig.welcome()
    assert rig.seqs() == [0, 1, 2, 3, 4, 5]


def test_what_a_failed_sync_may_have_lost_is_written_again(make) -> None:
    rig = make(3)
    rig.settle()
    rig.append(3)
    rig.work()
    rig.files.broken.add("fdatasync")
    rig.work(1.0)
    rig.kill()
    rig.files.broken.clear()
    rig.work(4.0)
    rig.settle()
    rig.files.cut_power()
    assert rig.spool._durable == 6
    assert len(rig.segments()) == 2
    rig.kill()
    rig.begin()
    rig.welcome()
    assert rig.seqs() == [0, 1, 2, 3, 4, 5]


def test_memory_is_bounded_when_the_disk_fails_for_long(make) -> None:
    rig = make(memory_mb=1, size=50_000)
    rig.files.broken.add("writev")
    for _ in range(60):
        rig.append()
        rig.work(0.1)
    assert rig.spool._memory_bytes <= 1 << 20
    assert rig.spool.overflow == 60 - len(rig.spool)
    assert rig.seqs() == list(range(rig.spool.overflow, 60))


def test_a_folder_that_cannot_be_made_leaves_the_robot_driving(tmp_path) -> None:
    (tmp_path / "spool").write_text("a file is in the way")
    rig = Rig(tmp_path / "spool")
    rig.append(3)
    rig.work(4.0)
    assert rig.spool.disk.state == "failed"
    assert rig.seqs() == [0, 1, 2]


def test_the_alarm_is_raised_once_for_each_change(make, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr("roverd.spool.log.error", lambda event, **facts: lines.append(event), raising=False)
    rig = make(files=FailingFiles(9000), size=200, segment_bytes=2500, min_free_mb=0)
    for _ in range(60):
        rig.append()
        rig.work(0.1)
    assert lines == ["spool.full"]


def test_after_acknowledgements_a_full_disk_is_whole_again(make) -> None:
    rig = make(files=FailingFiles(6000), size=200, segment_bytes=1500, when_full="newest", min_free_mb=0)
    for _ in range(40):
        rig.append()
        rig.work(0.1)
    assert rig.spool.disk.state == "full"
    rig.acknowledge((0, 35))
    rig.work(40.0)
    rig.append()
    rig.settle()
    assert (rig.spool.disk.state, rig.spool.overflow, rig.spool._durable) == ("ok", 0, 41)


# -- lanes ---------------------------------------------------------------------------------------------------------


def clocked(make, waiting: int, **options) -> Rig:
    """Return a rover that drove while the link was down, three episodes of it."""
    rig = make(is_clocked=True, live_records=10, **options)
    rig.append(waiting - 6)
    rig.spool.mark_episode(rig.seq)
    rig.append(6)
    return rig


def test_with_much_waiting_live_begins_at_the_running_episode(make) -> None:
    rig = clocked(make, 40)
    assert rig.spool.choose_live() == 34
    rig.clock.now += 2.0
    assert rig.seqs() == [*range(34, 40), *range(34)]


def test_with_little_waiting_all_of_it_is_live(make) -> None:
    rig = clocked(make, 10)
    assert rig.spool.choose_live() == 0
    assert rig.seqs() == list(range(10))


def test_in_lock_step_nothing_becomes_stale(make) -> None:
    rig = make(is_clocked=False, live_records=10)
    rig.append(30)
    rig.spool.mark_episode(30)
    rig.append(30)
    assert rig.spool.choose_live() == 0


def test_live_never_goes_back(make) -> None:
    rig = clocked(make, 40)
    rig.spool.choose_live()
    rig.spool.mark_episode(3)
    rig.append(40)
    assert rig.spool.choose_live() == 34


def test_older_records_get_their_share_of_the_bandwidth_while_the_robot_drives(make) -> None:
    rig = clocked(make, 1000, size=1000, backfill_share=0.2)
    rig.spool.choose_live()
    rig.welcome()
    rig.seqs()
    live = older = 0
    for _ in range(500):
        rig.append()
        rig.clock.now += 0.1
        for seq in rig.seqs():
            if seq >= rig.spool.live_seq:
                live += 1
            else:
                older += 1
    assert live == 500
    assert 0.19 * live <= older <= 0.2 * live + 2


def test_older_records_have_the_link_for_themselves_while_the_robot_rests(make) -> None:
    rig = clocked(make, 1000, size=1000)
    rig.spool.choose_live()
    rig.welcome()
    assert len(rig.seqs()) < 20
    rig.clock.now += 1.5
    rig.seqs()
    assert rig.spool.under_way == 1000


def test_half_of_the_credit_is_kept_for_live_records(make) -> None:
    rig = clocked(make, 1000)
    rig.spool.choose_live()
    rig.welcome()
    rig.clock.now += 2.0
    assert len(rig.seqs(credit=64)) == 6 + 32
    rig.append(20)
    assert len(rig.seqs(credit=64)) == 20


def test_live_records_go_first_whenever_there_are_any(make) -> None:
    rig = clocked(make, 100)
    rig.spool.choose_live()
    rig.clock.now += 2.0
    rig.seqs(credit=20)
    rig.append(1)
    assert rig.spool.peek(1000) is not None
    assert rig.spool._chosen[0] == "live"


def test_an_older_record_that_is_asked_for_again_comes_in_its_lane(make) -> None:
    rig = clocked(make, 40)
    rig.spool.choose_live()
    rig.clock.now += 2.0
    rig.seqs()
    rig.spool.resend(rig.spool.boot_id, [(3, 5), (36, 36)])
    assert rig.seqs() == [36, 3, 4, 5]


# -- much ----------------------------------------------------------------------------------------------------------


def test_what_memory_cannot_hold_is_read_from_disk(make) -> None:
    rig = make(memory_mb=1, size=30_000)
    for _ in range(100):
        rig.append()
        rig.work(0.6)
    rig.settle()
    assert rig.spool._memory_bytes <= 1 << 20
    assert rig.spool.overflow == 0
    assert rig.seqs() == list(range(100))


# -- the service ---------------------------------------------------------------------------------------------------


def real(folder) -> Spool:
    from roverd.segment import BootFacts

    facts = BootFacts("rover-1", "b" * 16, 0, SPECS, 0)
    return Spool(SpoolSettings(sync_ms=20.0), folder, facts)


async def test_the_service_makes_records_durable_and_tidies_up_at_the_stop(tmp_path) -> None:
    spool = real(tmp_path / "spool")
    task = asyncio.ensure_future(spool.run())
    await asyncio.sleep(0)
    for seq in range(20):
        spool.append(seq, [b"x" * 100])
    while spool._durable < 20:
        await asyncio.sleep(0.005)
    spool.acknowledge("b" * 16, [(0, 19)])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["lock"]


async def test_the_service_writes_what_was_appended_just_before_the_stop(tmp_path) -> None:
    spool = real(tmp_path / "spool")
    task = asyncio.ensure_future(spool.run())
    await asyncio.sleep(0.01)
    for seq in range(20):
        spool.append(seq, [b"x" * 100])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    again = Rig(tmp_path / "spool")
    again.kill()
    assert again.spool.offer()[0]["next"] == 20 if again.spool.offer() else again.spool.held_back()


async def test_a_fault_of_the_disks_thread_ends_the_service(tmp_path, monkeypatch) -> None:
    spool = real(tmp_path / "spool")
    monkeypatch.setattr(Disk, "step", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(spool.run(), 5.0)


@pytest.mark.component
def test_a_full_file_system_costs_the_oldest_records_and_never_an_error(tmp_path) -> None:
    import subprocess

    from roverd.segment import Files

    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        rig = Rig(folder / "spool", files=Files(), size=27_000, segment_bytes=1 << 20, min_free_mb=0)
        for _ in range(400):
            rig.append()
            rig.work(0.2)
        rig.settle()
        assert rig.spool.disk.state == "full"
        assert rig.spool.overflow > 200
        assert rig.seqs() == list(range(rig.spool.overflow, 400))
        rig.stop()
        rig.begin()
        rig.welcome()
        sent = rig.seqs()
        assert sent == list(range(sent[0], 400))
        assert len(sent) > 60
        rig.kill()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_does_not_answer_is_seen_from_outside(tmp_path) -> None:
    answers = threading.Event()

    class Stalled(FailingFiles):
        def fdatasync(self, fd):
            answers.wait(10)
            super().fdatasync(fd)

    rig = Rig(tmp_path, files=Stalled(), sync_ms=1)
    disk = rig.spool.disk
    disk._clock = time.monotonic
    disk.pulse.limit_s = 0.05
    disk.start()
    rig.append()
    while not disk.pulse.is_overdue:
        await asyncio.sleep(0.01)
    answers.set()
    while disk.pulse.is_overdue:
        await asyncio.sleep(0.01)
    disk.stop()
    while disk.is_running:
        await asyncio.sleep(0.01)
    disk.release_lock()
