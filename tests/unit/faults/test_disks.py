"""A power cut loses exactly what was not synced; a small disk fills up and comes back; a clock steps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from tests.faults import clock, disk, powercut


def needs(why_not):
    if reason := why_not():
        pytest.skip(reason)


def sync(path):
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def write_all(file, content):
    while content:
        content = content[file.write(content) :]


@pytest.fixture
def cut_disk(tmp_path):
    needs(powercut.why_not)
    with powercut.Disk(tmp_path, size_mb=16) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path):
    needs(disk.why_not)
    with disk.SmallDisk(tmp_path / "small", size_kb=512) as made:
        yield made


def test_a_power_cut_keeps_what_was_synced_and_loses_the_rest(cut_disk):
    kept, lost = cut_disk.root / "kept", cut_disk.root / "lost"
    kept.write_bytes(b"k" * 5000)
    sync(kept)
    sync(cut_disk.root)
    lost.write_bytes(b"l" * 5000)
    with kept.open("ab") as more:
        more.write(b"m" * 5000)
        more.flush()
        cut_disk.cut()
        with pytest.raises(OSError, match="error"):
            os.write(more.fileno(), b"after the cut")
    cut_disk.restore()
    assert kept.read_bytes() == b"k" * 5000
    assert not lost.exists() or lost.read_bytes() == b""
    kept.write_bytes(b"it works again")
    assert cut_disk.cuts == 1


@pytest.mark.parametrize("name", ["cut_disk", "small_disk"])
def test_a_full_disk_refuses_writes_until_it_is_freed(request, name):
    made = request.getfixturevalue(name)
    made.fill()
    with (made.root / "file").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space") as caught:
        write_all(file, bytes(1_000_000))
    assert caught.value.errno == errno.ENOSPC
    made.free()
    (made.root / "file").write_bytes(bytes(100_000))


def test_a_nearly_full_disk_writes_short_first(small_disk):
    small_disk.fill(leave_bytes=28_672)
    with (small_disk.root / "file").open("wb", buffering=0) as file:
        assert 0 < file.write(bytes(40_000)) < 40_000


def test_the_wall_clock_steps_while_a_process_runs_and_the_monotonic_one_does_not(tmp_path):
    needs(clock.why_not)
    stepped = clock.Clock(tmp_path)
    code = "import sys, time\nfor line in sys.stdin:\n    print(time.time(), time.monotonic(), flush=True)\n"
    env = {**os.environ, **stepped.env}
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as child:

        def ask():
            child.stdin.write("\n")
            child.stdin.flush()
            return [float(word) for word in child.stdout.readline().split()]

        wall, monotonic = ask()
        for offset_s in (3600.0, -3600.0):
            stepped.set(offset_s)
            new_wall, new_monotonic = ask()
            assert new_wall - wall == pytest.approx(offset_s, abs=5.0)
            assert 0 <= new_monotonic - monotonic < 5.0
        stepped.set(-4e9)
        assert ask()[0] == 0.0, "1970"
        child.stdin.close()
