import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.step import Intervention
from trainerd.learning.assembler import Assembler
from trainerd.learning.gae import TERMINATED


@pytest.fixture
def assembler(toy):
    return Assembler(toy.rollouts(8), staleness_limit=2)


def rollout_of(assembler):
    return assembler._rollout


def feed(assembler, *records):
    for record in records:
        assert assembler.add(record)
    assert assembler.is_balanced


def test_a_decisions_reward_is_the_sum_of_its_ticks(assembler, script):
    feed(assembler, script.step(1.0), script.step(2.0), script.step(4.0))
    assert assembler.rows == 1
    assert rollout_of(assembler).reward[0] == 3.0
    assert assembler.counters["collected"] == 2
    assert assembler.counters["pending"] == 1


def test_a_terminated_episode_bootstraps_nothing_and_may_end_within_a_decision(assembler, script):
    feed(assembler, script.step(), script.step(), script.step(5.0), script.end())
    rollout = rollout_of(assembler)
    assert rollout.successor[:2].tolist() == [1, TERMINATED]
    assert rollout.final_rows == 0


@pytest.mark.parametrize("reason", ["truncated", "takeover", "link_cut", "swap"])
def test_every_other_end_bootstraps_from_the_final_observation(assembler, script, reason):
    feed(assembler, script.step(), script.step(), end := script.end(reason))
    rollout = rollout_of(assembler)
    assert rollout.successor[0] == rollout.capacity
    np.testing.assert_array_equal(rollout.state[rollout.capacity], end.final.state)


def test_a_break_within_an_episode_lets_it_go_on_in_a_new_segment(assembler, script):
    feed(assembler, script.step(), script.step(), script.end("takeover"), script.step(), script.step(), script.end())
    rollout = rollout_of(assembler)
    assert rollout.successor[:2].tolist() == [rollout.capacity, TERMINATED]
    assert assembler.counters["collected"] == 4


def test_a_change_of_policy_within_an_episode_cuts_the_segment(assembler, script):
    feed(assembler, script.step(), script.step())
    feed(assembler, *(script.step(policy_id="b") for _ in range(3)))
    rollout = rollout_of(assembler)
    assert rollout.successor[0] == rollout.capacity
    assert rollout.rows == 2


def test_a_gap_drops_the_pending_decision_as_broken(assembler, script):
    feed(assembler, *(script.step() for _ in range(4)))
    script.step()
    feed(assembler, *(script.step() for _ in range(3)))
    counters = assembler.counters
    assert counters["broken"] == 3
    assert rollout_of(assembler).successor[0] >= rollout_of(assembler).capacity
    assert counters["collected"] == 2


def test_a_stale_decision_is_dropped_and_cuts_its_segment(assembler, script):
    assembler.policy_counter = 5
    feed(assembler, *(script.step(policy_counter=3) for _ in range(2)))
    feed(assembler, *(script.step(policy_counter=2) for _ in range(2)))
    feed(assembler, *(script.step(policy_counter=3) for _ in range(3)))
    assert assembler.counters["stale"] == 2
    assert rollout_of(assembler).successor[0] == rollout_of(assembler).capacity
    assert rollout_of(assembler).rows == 2


@pytest.mark.parametrize(
    "flag", [Intervention.MISSED, Intervention.LATE, Intervention.FAILOVER, Intervention.ACTUATOR_FAILED]
)
def test_what_the_policy_did_not_decide_has_no_policy_gradient(assembler, script, flag):
    feed(assembler, script.step(), script.step(interventions=int(flag)), script.step())
    rollout = rollout_of(assembler)
    assert rollout.policy_weight[0] == 0.0
    assert rollout.value_weight[0] == 1.0


def test_what_the_gate_changed_keeps_its_gradient(assembler, script):
    limited = int(Intervention.LIMITED | Intervention.FORWARD_STOP)
    feed(assembler, script.step(source="gate", interventions=limited), script.step(), script.step())
    assert rollout_of(assembler).policy_weight[0] == 1.0


def test_a_humans_decision_is_a_demonstration_with_their_action(assembler, script):
    human = {"source": "human", "behaviour": None, "human_action": np.array([0.25, 0.75], np.float32)}
    feed(assembler, script.step(**human), script.step(**human), script.step())
    rollout = rollout_of(assembler)
    assert rollout.steps == {"demonstration": 2}
    assert (rollout.policy_weight[0], rollout.value_weight[0], rollout.cloning_weight[0]) == (0.0, 0.0, 1.0)
    np.testing.assert_allclose(np.tanh(rollout.u[0]), [0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize("failed", [0, 1])
def test_a_humans_action_that_the_actuator_refused_is_no_demonstration(assembler, script, failed):
    human = {"source": "human", "behaviour": None, "human_action": np.array([0.25, 0.75], np.float32)}
    for tick in range(2):
        feed(assembler, script.step(**human, interventions=int(Intervention.ACTUATOR_FAILED) if tick == failed else 0))
    feed(assembler, script.step())
    rollout = rollout_of(assembler)
    assert rollout.steps == {"trained": 2}
    assert (rollout.policy_weight[0], rollout.cloning_weight[0]) == (0.0, 0.0)


@pytest.mark.parametrize("purpose", ["evaluation", "collection"])
def test_other_purposes_never_enter(assembler, script, purpose):
    feed(assembler, *(script.step(purpose=purpose) for _ in range(4)), script.end(purpose=purpose))
    assert assembler.counters[purpose] == 4
    assert assembler.rows == 0


def test_a_reward_that_is_no_number_is_quarantined_and_its_term_named(assembler, script):
    terms = {"progress": 1.0, "mine": math.nan}
    feed(assembler, *(script.step() for _ in range(3)), script.step(math.nan, reward_terms=terms))
    feed(assembler, *(script.step() for _ in range(3)))
    assert assembler.faults == {"reward.mine": 1}
    counted = {fate: count for fate, count in assembler.counters.items() if count}
    assert counted == {"collected": 4, "broken": 1, "quarantined": 1, "pending": 1}
    assert np.isfinite(rollout_of(assembler).reward[:2]).all()


def test_a_vector_that_is_not_finite_is_quarantined_and_named(assembler, script, toy):
    observation = toy.observation()
    observation.task[0] = np.inf
    feed(assembler, script.step(observation=observation))
    assert assembler.faults == {"observation.task": 1}


def test_a_decision_without_the_encoders_images_is_broken(seeing, script):
    assembler = Assembler(seeing.rollouts(8), staleness_limit=2)
    observation = replace(seeing.observation(), images={})
    feed(assembler, script.step(observation=observation), script.step(), script.step())
    assert assembler.counters["broken"] == 2


def test_a_filled_rollout_closes_every_open_segment_and_the_next_one_goes_on(assembler, script, second_script):
    for _ in range(8):
        feed(assembler, script.step(), second_script.step())
    feed(assembler, script.step())
    assert assembler.take_filled() is None
    feed(assembler, second_script.step())
    first = assembler.take_filled()
    assert (first.rows, first.final_rows) == (8, 2)
    assert (first.successor >= 0).all()
    feed(assembler, script.step(), script.step())
    assert assembler.rows == 1


def test_when_all_rollouts_are_busy_a_record_is_refused_until_one_is_released(toy, script, second_script):
    rollouts = toy.rollouts(2)
    assembler = Assembler(rollouts, staleness_limit=2)
    feed(assembler, *(script.step() for _ in range(9)))
    refused = script.step()
    before = assembler.counters
    assert not assembler.add(refused)
    assert assembler.counters == before
    assert assembler.add(second_script.step(purpose="evaluation"))
    rollouts.release(assembler.take_filled())
    assert assembler.add(refused)


def test_segments_cut_again_and_again_fill_a_rollout_early_and_lose_nothing(toy, script):
    assembler = Assembler(toy.rollouts(400), staleness_limit=2)
    while assembler.take_filled() is None:
        feed(assembler, script.step(), script.step(), script.end("truncated"))
    assert assembler.counters["collected"] >= 60


def test_a_constant_reward_and_an_endless_episode_raise_alarms_that_clear(toy, script):
    assembler = Assembler(toy.rollouts(64), staleness_limit=2, alarm_steps=10)
    feed(assembler, *(script.step(0.5) for _ in range(10)))
    assert [alarm.name for alarm in assembler.alarms] == ["reward_constant", "no_terminal"]
    feed(assembler, script.step(0.6), script.end())
    assert assembler.alarms == ()


def test_an_alarm_travels_with_the_rollout(toy, script):
    assembler = Assembler(toy.rollouts(8), staleness_limit=2, alarm_steps=10)
    feed(assembler, *(script.step() for _ in range(17)))
    assert assembler.take_filled().alarms == ("reward_constant", "no_terminal")


def filled_of(assembler, script):
    while (filled := assembler.take_filled()) is None:
        feed(assembler, script.step())
    return filled


def test_steps_count_as_trained_only_once_their_rollout_was_trained_on(assembler, script):
    human = {"source": "human", "behaviour": None}
    feed(assembler, script.step(**human), script.step(**human))
    filled = filled_of(assembler, script)
    assert (assembler.counters["trained"], assembler.counters["collected"]) == (0, 16)
    assembler.settle(filled.steps, "trained")
    counters = assembler.counters
    assert (counters["trained"], counters["demonstration"], counters["collected"]) == (14, 2, 0)
    assert assembler.is_balanced


@pytest.mark.parametrize("fate", ["alarmed", "frozen", "normaliser", "rolled_back", "unused"])
def test_steps_of_a_rollout_that_was_not_trained_on_are_told_apart(assembler, script, fate):
    assembler.settle(filled_of(assembler, script).steps, fate)
    assert (assembler.counters[fate], assembler.counters["trained"], assembler.counters["collected"]) == (16, 0, 0)
    assert assembler.is_balanced


def test_a_released_rollout_forgets_its_steps(toy, script):
    rollouts = toy.rollouts(2, 1)
    assembler = Assembler(rollouts, staleness_limit=2)
    filled = filled_of(assembler, script)
    rollouts.release(filled)
    assert sum(filled.steps.values()) == 0


def test_what_is_skipped_is_unused_and_what_follows_begins_a_new_segment(assembler, script):
    feed(assembler, *(script.step() for _ in range(3)))
    for record in (script.step(), script.step(), script.end()):
        assembler.skip(record)
        assert assembler.is_balanced
    feed(assembler, *(script.step() for _ in range(3)))
    counted = {fate: count for fate, count in assembler.counters.items() if count}
    assert counted == {"collected": 4, "broken": 1, "unused": 2, "pending": 1}
    assert rollout_of(assembler).successor[0] == rollout_of(assembler).capacity


def test_skipping_needs_no_free_rollout(toy, script):
    assembler = Assembler(toy.rollouts(2), staleness_limit=2)
    feed(assembler, *(script.step() for _ in range(9)))
    record = script.step()
    assert not assembler.add(record)
    assembler.skip(record)
    assert assembler.counters["unused"] == 1
    assert assembler.is_balanced


def test_a_discarded_rollout_is_free_again_and_its_steps_are_unused(toy, script):
    rollouts = toy.rollouts(8, 1)
    assembler = Assembler(rollouts, staleness_limit=2)
    feed(assembler, *(script.step() for _ in range(5)))
    assembler.discard()
    assembler.discard()
    assert (assembler.counters["unused"], assembler.counters["collected"]) == (4, 0)
    assert assembler.is_balanced
    assert rollouts.acquire().rows == 0


def test_closing_a_boot_drops_what_is_pending(assembler, script):
    feed(assembler, *(script.step() for _ in range(3)))
    assembler.close("rover-1", "boot")
    assert assembler.counters["pending"] == 0
    assert assembler.is_balanced


EVENTS = st.lists(
    st.sampled_from(["step"] * 6 + ["nan", "skip", "stale", "evaluation", "human", "swap", "terminated", "truncated"]),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, EVENTS)
def test_whatever_comes_every_step_is_counted_once_and_every_row_has_a_successor(first, second):
    from tests.unit.learning.conftest import Script, Toy

    toy = Toy()
    rollouts = toy.rollouts(8)
    assembler = Assembler(rollouts, staleness_limit=2)
    assembler.policy_counter = 5
    scripts = [(Script(toy, "rover-1"), first), (Script(toy, "rover-2"), second)]
    changes = {
        "step": {"policy_counter": 5},
        "nan": {"reward": math.nan},
        "stale": {"policy_counter": 1},
        "evaluation": {"purpose": "evaluation"},
        "human": {"source": "human", "behaviour": None},
    }
    steps = 0
    fates = ["trained", "alarmed", "normaliser", "rolled_back", "unused", "frozen"] * 20
    for index in range(max(len(first), len(second))):
        for script, events in scripts:
            event = events[index] if index < len(events) else "step"
            if event in {"swap", "terminated", "truncated"}:
                record = script.end(event)
            else:
                record = script.step(**changes.get(event, {}))
                if event == "skip":
                    continue
                steps += 1
            assert assembler.add(record)
            filled = assembler.take_filled()
            if filled is not None:
                assembler.settle(filled.steps, fates.pop())
                rows = np.arange(filled.rows)
                successor = filled.successor[: filled.rows]
                assert ((successor == TERMINATED) | (successor > rows)).all()
                assert (successor < filled.capacity + filled.final_rows).all()
                rollouts.release(filled)
            assert assembler.is_balanced
    assert assembler.steps_in == steps
