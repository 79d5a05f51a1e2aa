"""What is behind the learner is not fed again, and nothing that is not behind it is left out."""

from __future__ import annotations

from protocol.ranges import Ranges
from trainerd.collection import CLOSED, OPEN, OVER, RESTING, Collection
from trainerd.learning.assembler import Assembler


class NoMetrics:
    def __getattr__(self, _name):
        return lambda *_values, **_facts: None


def test_marks_are_all_that_was_consumed_but_the_decision_that_has_no_successor_yet(toy, script):
    assembler = Assembler(toy.rollouts(8), staleness_limit=2)
    records = [script.step(float(number)) for number in range(5)]
    for record in records:
        assembler.add(record)
    key = (records[0].rover_id, records[0].boot_id)
    pending = assembler.counters["pending"]
    assert pending
    assert assembler.marks[key].to_list() == [[records[0].seq, records[-1].seq - pending]]
    assembler.close(*key)
    assert assembler.marks[key].to_list() == [[records[0].seq, records[-1].seq]]


def test_a_filled_rollout_carries_its_marks_and_a_resumed_learner_goes_on_from_them(toy, script):
    rollouts = toy.rollouts(4)
    first = Assembler(rollouts, staleness_limit=2)
    records = []
    while (rollout := first.take_filled()) is None:
        records.append(script.step(1.0))
        assert first.add(records[-1])
    key = (records[0].rover_id, records[0].boot_id)
    assert rollout.marks[key].last < records[-1].seq, "the last decision is the next rollout's"
    again = Assembler(toy.rollouts(4), staleness_limit=2)
    again.resume(rollout.marks)
    left = [each for each in records if each.seq not in rollout.marks[key]]
    for record in left:
        again.add(record)
    assert again.marks[key].first == 0
    assert again.steps_in == len(left)
    assert rollout.rows + again.rows + bool(again.counters["pending"]) == first.rows + rollout.rows + 1


def test_experience_of_policies_that_this_learner_never_made_is_stale(toy, script):
    assembler = Assembler(toy.rollouts(8), staleness_limit=2)
    assembler.policy_counter = 1
    for _ in range(5):
        assembler.add(script.step(policy_counter=500))
    assembler.close("rover-1", "boot-1")
    assert assembler.rows == 0
    assert assembler.counters["stale"] > 0


def test_stored_experience_waits_while_nothing_is_learned_and_is_unused_only_for_good(toy):
    collection = Collection(NoMetrics())
    collection.begin(toy.rollouts(4), lambda _: None, staleness_limit=2, policy_counter=0, decisions=0)
    waits = {}
    for intake in (OPEN, RESTING, CLOSED, OVER):
        collection.set_intake(intake)
        waits[intake] = not collection.takes_replay
    assert waits == {OPEN: False, RESTING: True, CLOSED: True, OVER: False}


def test_what_is_too_stale_is_counted_without_being_read(toy):
    assembler = Assembler(toy.rollouts(4), staleness_limit=2)
    assembler.skip_stale("rover-1", "boot-1", Ranges([(3, 9)]), 6)
    assert (assembler.counters["stale"], assembler.steps_in, assembler.is_balanced) == (6, 6, True)
    assert assembler.marks["rover-1", "boot-1"].to_list() == [[3, 9]]
