"""The spool against a model: whatever happens in whatever order, nothing unacknowledged is lost or wrong."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.roverd.spools import Rig

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=3)


class SpoolMachine(RuleBasedStateMachine):
    """A model of sets: what each boot appended, and what of it was acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.rig = Rig(self.folder / "spool", segment_bytes=1024 + 150)
        self.unacked: dict[str, set[int]] = {self.own: set()}
        self.acked: dict[str, set[int]] = {self.own: set()}
        self.under_way: set[tuple[str, int]] = set()
        self.wanted: set[str] = set()
        self.written: set[int] = set()
        self.synced: set[int] = set()

    def teardown(self) -> None:
        self.rig.kill()
        shutil.rmtree(self.folder)

    @property
    def own(self) -> str:
        return self.rig.spool.boot_id

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        self.unacked[self.own] |= set(range(self.rig.seq, self.rig.seq + count))
        self.rig.append(count)

    @rule()
    def write(self) -> None:
        self.rig.spool.disk.step()
        self.rig.spool.collect()
        self.written |= self.unacked[self.own]

    @rule()
    def sync(self) -> None:
        self.rig.settle()
        self.written |= self.unacked[self.own]
        self.synced |= self.written

    @rule()
    def evict(self) -> None:
        self.rig.forget()

    @rule(credit=st.integers(0, 12))
    def send(self, credit: int) -> None:
        sent = self.rig.send(credit)
        self.write()
        for boot_id, seq in sent:
            assert (boot_id, seq) not in self.under_way
            assert seq in self.unacked[boot_id]
            assert boot_id == self.own or boot_id in self.wanted
        self.under_way |= set(sent)
        unsent = {(boot_id, seq) for boot_id in (*self.wanted, self.own) for seq in self.unacked[boot_id]}
        assert len(self.under_way) >= min(credit // 2, len(unsent))

    @rule(data=st.data(), ranges=RANGES)
    def acknowledge(self, data: st.DataObject, ranges: list[tuple[int, int]]) -> None:
        boot_id = data.draw(st.sampled_from([self.own, *sorted(self.wanted)]))
        pairs = [(low, low + length) for low, length in ranges]
        freed = {seq for seq in self.unacked[boot_id] if any(low <= seq <= high for low, high in pairs)}
        assert self.rig.spool.acknowledge(boot_id, pairs) == len(freed)
        self._free(boot_id, freed)

    def _free(self, boot_id: str, freed: set[int]) -> None:
        self.unacked[boot_id] -= freed
        self.acked[boot_id] |= freed
        self.under_way -= {(boot_id, seq) for seq in freed}

    @rule(data=st.data(), ranges=RANGES)
    def resend(self, data: st.DataObject, ranges: list[tuple[int, int]]) -> None:
        boot_id = data.draw(st.sampled_from([self.own, *sorted(self.wanted)]))
        pairs = [(low, low + length) for low, length in ranges]
        gone = self.rig.spool.resend(boot_id, pairs)
        asked = {seq for low, high in pairs for seq in range(low, high + 1)}
        assert not {seq for a, b in gone for seq in range(a, b + 1)} & self.unacked[boot_id]
        self.under_way -= {(boot_id, seq) for seq in asked}

    @rule()
    def welcome(self) -> None:
        """The trainer says what it has of each boot, and wants the rest of all."""
        self.rig.spool.rewind()
        offered = self.rig.spool.offered_ids()
        self.rig.spool.welcome({each: [(seq, seq) for seq in self.acked[each]] for each in offered})
        self.under_way.clear()
        self.wanted = {each for each in offered if self.unacked[each]}
        assert {each for each in self.unacked if each != self.own and self.unacked[each]} == self.wanted

    def _begin(self, kept: set[int]) -> None:
        self.unacked[self.own] &= kept
        self.rig.begin()
        self.unacked[self.own], self.acked[self.own] = set(), set()
        self.under_way, self.wanted, self.written, self.synced = set(), set(), set(), set()

    @rule()
    def kill(self) -> None:
        kept = self.written
        self.rig.kill()
        self._begin(kept)

    @rule(kept=st.integers(0, 80))
    def cut_power(self, kept: int) -> None:
        """What was synced is there; of the rest a prefix may be, of which the model only says that it was appended."""
        own, may, must = self.own, self.unacked[self.own], self.unacked[self.own] & self.synced
        self.rig.kill()
        self.rig.files.cut_power(kept)
        self._begin(self.unacked[own])
        found = next((boot for boot in self.rig.spool._earlier if boot.boot_id == own), None)
        held = {seq for a, b in (found.held.to_list() if found else []) for seq in range(a, b + 1)}
        assert must <= held | self.acked[own]
        self.unacked[own] = (held - self.acked[own]) & may

    @rule()
    def stop(self) -> None:
        kept = self.unacked[self.own]
        self.rig.stop()
        self._begin(set(kept))

    @precondition(lambda self: sum(map(len, self.unacked.values())) > 0)
    @rule()
    def all_that_is_held_is_sent_after_a_welcome(self) -> None:
        self.welcome()
        sent = self.rig.send()
        self.write()
        expected = {(boot_id, seq) for boot_id, seqs in self.unacked.items() for seq in seqs}
        assert len(sent) == len(set(sent))
        assert set(sent) == expected
        for boot_id in self.unacked:
            of_boot = [seq for each, seq in sent if each == boot_id]
            assert of_boot == sorted(of_boot)
        self.under_way = expected

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        own = self.unacked[self.own]
        spool = self.rig.spool
        assert (len(spool), spool.oldest) == (len(own), min(own, default=None))
        assert (spool.under_way, spool.overflow) == (len(self.under_way), 0)
        assert spool._memory_bytes == sum(len(f) for frames in spool._memory.values() for f in frames)
        durable = sum(len(f) for seq, frames in spool._memory.items() if seq >= spool._durable for f in frames)
        assert spool._undurable_bytes == durable

    @invariant()
    def a_file_that_nobody_needs_is_not_kept(self) -> None:
        needed = sum(bool(seqs) for boot_id, seqs in self.unacked.items() if boot_id != self.own)
        held = sum(bool(boot.held) for boot in self.rig.spool._earlier)
        assert held >= needed


TestSpoolAgainstItsModel = SpoolMachine.TestCase
TestSpoolAgainstItsModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
