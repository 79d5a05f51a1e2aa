"""Hours without a link, in fast time: all of it is replayed, and none of it costs memory."""

from __future__ import annotations

import tracemalloc

import pytest

from protocol.ranges import Ranges
from tests.unit.roverd.spools import FailingFiles, Rig

pytestmark = [pytest.mark.component, pytest.mark.timeout(180)]
HOURS_6 = 6 * 3600 * 10


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "spool", memory_mb=1, size=8, is_clocked=True, segment_bytes=1 << 20)
    yield made
    made.kill()


def drive(rig: Rig, count: int) -> None:
    for _ in range(0, count, 600):
        rig.spool.mark_episode(rig.seq)
        rig.append(600)
        rig.work(0.6)
    rig.settle()


def replay(rig: Rig, boot_id: str, count: int) -> None:
    """Receive until nothing is held; each record once, in the order of its lane."""
    seen = bytearray(count)
    got = 0
    while got < count:
        sent = [seq for boot, seq in rig.send(credit=512) if boot == boot_id]
        assert sent, f"nothing came after {got} records"
        for seq in sent:
            seen[seq] += 1
        got += len(sent)
        older = [seq for seq in sent if seq < rig.spool.live_seq or boot_id != rig.spool.boot_id]
        assert older == sorted(older)
        runs = Ranges((seq, seq) for seq in sent)
        rig.spool.acknowledge(boot_id, runs.to_list())
    assert seen.count(1) == count


@pytest.mark.slow
def test_a_six_hour_outage_is_replayed_without_a_gap_or_a_duplicate(rig) -> None:
    drive(rig, HOURS_6)
    rig.forget()
    assert rig.spool.choose_live() == HOURS_6 - 600
    rig.welcome()
    rig.clock.now += 2.0
    replay(rig, rig.spool.boot_id, HOURS_6)
    rig.stop()
    assert [path.name for path in rig.folder.iterdir()] == ["lock"]


@pytest.mark.slow
def test_200000_records_cost_little_memory_and_the_start_is_quick(rig) -> None:
    drive(rig, 200_000)
    count = rig.seq
    rig.kill()
    reads = []

    class Counted(FailingFiles):
        def pread(self, fd, size, offset):
            reads.append(size)
            return super().pread(fd, size, offset)

    rig.files = Counted()
    tracemalloc.start()
    rig.begin()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert rig.spool.offer()[0]["next"] == count
    assert size < 2 << 20
    assert len(reads) < 30_000, "only the newest segment is looked through"
    rig.welcome()
    assert rig.seqs(credit=512) == list(range(256))
