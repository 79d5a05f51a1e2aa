"""A disk that is full, broken or slow: nothing is acknowledged that is not safe, and nothing ends the daemon."""

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from tests.unit.episodes.making import BOOT, ROVER, Bench, begin, end, episode, put, step
from trainerd.episodes import disk, mcap
from trainerd.episodes import store as module
from trainerd.episodes.reader import open_episode
from trainerd.episodes.settings import StoreSettings


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.02)


@pytest.fixture
def small_disk(monkeypatch):
    """Give a disk with so many bytes of room for episodes, which ends a write short before it refuses the next."""
    left = [1 << 40]
    write, write_one = os.pwritev, os.pwrite

    def pwritev(fd, buffers, offset):
        content = b"".join(buffers)
        return pwrite(fd, content, offset) if len(content) > left[0] else write_down(write(fd, buffers, offset))

    def pwrite(fd, content, offset):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_down(write_one(fd, bytes(content)[: left[0]], offset))

    def write_down(count):
        left[0] -= count
        return count

    monkeypatch.setattr(mcap.os, "pwritev", pwritev)
    monkeypatch.setattr(mcap.os, "pwrite", pwrite)
    return left


def wait(condition):
    tick = threading.Event()
    for _ in range(500):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("room", [0, 1, 100, 900])
def test_a_full_disk_takes_nothing_acknowledges_nothing_and_goes_on_when_there_is_room(bench, small_disk, room, capsys):
    store = bench.store()
    put(store, [step(0), step(1)])
    small_disk[0] = room
    assert store.append(step(2))
    wait(lambda: store.state == "full")
    assert "No space left" in store.reason
    assert not store.append(step(3))
    assert not store.flush(0.1)
    assert bench.durable.seqs == [0, 1]
    assert store.received(ROVER, BOOT) == [[0, 1]]
    file = open_episode(bench.path())
    assert ([record.seq for record in file.records()], file.torn_bytes) == ([0, 1], 0)
    assert not (bench.folder / disk.RESERVE).exists()
    small_disk[0] = 1 << 40
    wait(lambda: store.state == "ok")
    assert store.flush(5)
    assert bench.durable.seqs == [0, 1, 2]
    put(store, [step(3), end(4)])
    assert [record.seq for record in bench.read()] == [0, 1, 2, 3, 4]
    assert store.catalogue.episodes()[0].state == "complete"
    assert (bench.folder / disk.RESERVE).stat().st_size == disk.RESERVE_BYTES
    lines = capsys.readouterr().out
    assert lines.count("store.full") == lines.count("store.recovered") == 1


def test_a_disk_that_fills_up_while_an_episode_is_begun_leaves_no_half_file(bench, small_disk):
    store = bench.store()
    small_disk[0] = 700
    assert store.append(step(0))
    wait(lambda: store.state == "full")
    assert not bench.path().exists()
    small_disk[0] = 1 << 40
    assert store.flush(5)
    assert bench.durable.seqs == [0]


def test_free_space_is_kept_for_others(bench, monkeypatch):
    free = [600 << 20]
    monkeypatch.setattr(disk.Disk, "free_bytes", property(lambda self: free[0]))
    store = bench.store(StoreSettings(sync_interval_ms=1, min_free_mb=512))
    put(store, [step(0)])
    free[0] = 500 << 20
    assert store.append(step(1))
    wait(lambda: store.state == "full")
    assert "500 MB are free, min_free_mb is 512" in store.reason
    free[0] = 515 << 20  # not enough for the reserve as well
    assert not store.flush(0.1)
    assert store.state == "full"
    free[0] = 600 << 20
    assert store.flush(5)
    assert bench.durable.seqs == [0, 1]


@pytest.mark.parametrize("call", ["fdatasync", "pwritev", "fsync"])
def test_a_disk_that_fails_is_tried_again_and_what_it_lost_is_written_again(bench, monkeypatch, call):
    store = bench.store()
    real, fails = getattr(os, call), [True]

    def broken(fd, *rest):
        if fails[0] and threading.current_thread().name.startswith("store"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, *rest)

    if call != "fsync":  # folders are synced when an episode is begun
        put(store, [step(0)])
    monkeypatch.setattr(os, call, broken)
    assert store.append(step(1))
    wait(lambda: store.state == "failed")
    assert "Input/output error" in store.reason
    assert not store.append(step(2))
    assert 1 not in bench.durable.seqs
    fails[0] = False
    assert store.flush(5)
    assert store.state == "ok"
    put(store, [step(2), end(3)])
    assert sorted(bench.durable.seqs)[-3:] == [1, 2, 3]
    assert [record.seq for record in bench.read()] == sorted(bench.durable.seqs)


def test_one_bad_file_does_not_hold_up_the_others(bench, monkeypatch):
    store = bench.store()
    begin(store, rover_id="rover-2")
    put(store, [step(0), step(0, rover_id="rover-2")])
    sync, fails = module.EpisodeWriter.sync, [True]

    def broken(writer):
        if fails[0] and "rover-2" in str(writer.path):
            raise OSError(errno.EIO, "bad sector")
        sync(writer)

    monkeypatch.setattr(module.EpisodeWriter, "sync", broken)
    bench.durable.all.clear()
    with store._wake:  # both in one batch
        assert store.append(step(1))
        assert store.append(step(1, rover_id="rover-2"))
    wait(lambda: bench.durable.all)
    assert bench.durable.all == [(ROVER, BOOT, 1)]
    fails[0] = False
    assert store.flush(5)
    assert bench.durable.all == [(ROVER, BOOT, 1), ("rover-2", BOOT, 1)]


def test_a_bug_in_the_store_ends_neither_the_thread_nor_loses_a_record(bench, monkeypatch):
    store = bench.store()
    real, fails = module.EpisodeWriter.append, [True]

    def broken(writer, builder):
        real(writer, builder)
        if fails[0]:
            raise ZeroDivisionError

    monkeypatch.setattr(module.EpisodeWriter, "append", broken)
    assert store.append(step(0))
    wait(lambda: store.state == "failed")
    assert bench.durable.seqs == []
    fails[0] = False
    assert store.flush(5)
    put(store, [end(1)])
    assert bench.durable.seqs == [0, 1]
    assert [record.seq for record in bench.read()] == [0, 1]


def test_stopping_with_a_full_disk_ends_soon_and_loses_nothing_that_was_announced(bench, small_disk):
    store = bench.store()
    put(store, [step(0)])
    small_disk[0] = 0
    assert store.append(step(1))
    wait(lambda: store.state == "full")
    bench.stop()
    assert not store._thread.is_alive()
    small_disk[0] = 1 << 40
    assert bench.store().received(ROVER, BOOT) == [[0, 0]]


def test_a_locked_catalogue_stops_no_acknowledgement(bench):
    store = bench.store()
    put(store, episode(2))
    with closing(sqlite3.connect(store.catalogue.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        bench.durable.came.clear()
        for record in episode(2, 1, first=3):
            assert store.append(record)
        wait(lambda: 5 in bench.durable.seqs)
        assert not store.flush(0.3)
        assert store.state == "ok"
        other.execute("ROLLBACK")
    assert store.flush(5)
    assert [row.state for row in store.catalogue.episodes()] == ["complete", "complete"]


@pytest.mark.component
def test_a_catalogue_that_another_process_locks_stops_no_acknowledgement(bench):
    store = bench.store()
    code = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "d.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read(); d.execute('ROLLBACK')"
    )
    command = [sys.executable, "-c", code, str(store.catalogue.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        for record in episode(4):
            assert store.append(record)
        wait(lambda: len(bench.durable.seqs) == 5)
        assert store.catalogue.episodes() == []
        other.stdin.close()
        other.wait(10)
    assert store.flush(10)
    assert store.catalogue.episodes()[0].state == "complete"


@pytest.mark.component
def test_a_file_system_that_is_full_for_real(tmp_path):
    at = tmp_path / "small"
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    bench = Bench(at)
    try:
        store = bench.store()
        filler = at / "filler"
        put(store, [step(0), step(1)])
        filler.write_bytes(bytes((1 << 20) // 2))
        big = {"observation.images.front": ("jpeg", os.urandom(60_000))}
        seq = 2
        while store.state == "ok" and seq < 100:
            store.append(step(seq, images=big))
            seq += 1
            threading.Event().wait(0.005)
        wait(lambda: store.state == "full")
        announced = sorted(bench.durable.seqs)
        assert [record.seq for record in open_episode(bench.path()).records()] == announced
        filler.unlink()
        wait(lambda: store.state == "ok")
        wait(lambda: len(bench.durable.seqs) > len(announced) or not store.status()["waiting"])
        bench.stop()
        assert [record.seq for record in bench.read()] == sorted(bench.durable.seqs)
    finally:
        bench.stop()
        subprocess.run(["umount", str(at)], check=True)
