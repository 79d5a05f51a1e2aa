"""What the learner keeps away from a policy: robots that act otherwise, humans' pay, moments of another line."""

import numpy as np
import pytest
import torch

from trainerd.learning.learner import LearnerError
from trainerd.learning.settings import PpoSettings, adapt, lowered

pytestmark = pytest.mark.component


def mixed(toy, learner, *, wrong_from):
    """Return a rollout of two robots; the second one's means are off by one standard deviation."""
    rollout = toy.filled(learner)
    rollout.rovers = ["good", "bad"]
    rollout.rover[wrong_from:] = 1
    rollout.mean[wrong_from:] += np.exp(rollout.log_std[wrong_from:])
    return rollout


def test_of_a_robot_whose_policy_acts_otherwise_nothing_is_learned_and_of_the_others_all(toy, finish):
    learner = toy.learner()
    rollout = mixed(toy, learner, wrong_from=24)
    result = finish(learner.update(rollout))
    assert (result.suspects, result.refused, result.update) == (("bad",), (), 1)
    assert result.metrics["behaviour_kl"] == pytest.approx(1.0, abs=0.05)  # two elements, 1/2 each
    assert rollout.policy_weight[:24].all()
    assert not rollout.policy_weight[24:32].any()
    assert not rollout.value_weight[24:32].any()


def test_a_rollout_of_nobody_else_is_refused(toy, finish):
    learner = toy.learner()
    before = learner.snapshot()
    result = finish(learner.update(mixed(toy, learner, wrong_from=0)))
    assert (result.refused, result.suspects, result.update) == (("behaviour",), ("bad",), 0)
    for name, value in learner.snapshot().items():
        np.testing.assert_array_equal(value, before[name])


def test_an_older_policy_that_is_remembered_is_compared_too(toy, finish):
    learner = toy.learner(staleness_limit=8)
    old = mixed(toy, learner, wrong_from=0)
    for _ in range(6):
        finish(learner.update(toy.filled(learner)))
    assert finish(learner.update(old)).suspects == ("bad",)


def test_the_guard_is_quiet_over_updates_that_move_the_normaliser_and_after_a_new_number(toy, finish):
    learner = toy.learner(network={"normalise_vector": True})
    for update in range(10):
        result = finish(learner.update(toy.filled(learner, seed=update)))
        assert result.metrics["behaviour_kl"] < 1e-6
    learner.renumber(100)
    result = finish(learner.update(toy.filled(learner)))
    assert result.metrics["behaviour_kl"] < 1e-6, "weights that were published again are compared"


def test_the_guard_may_be_changed_in_a_run_that_goes_on(toy):
    state = toy.learner().capture()
    toy.learner(behaviour_limit=0.0, allow_flat_reward=True, staleness_limit=2).restore(state)
    with pytest.raises(LearnerError, match="other ones"):
        toy.learner(gamma=0.5).restore(state)


def test_what_a_human_was_paid_changes_no_weight(toy, finish):
    """Only cloning may learn from a human, and here it is switched off."""
    weights = []
    for paid in (0.0, 1000.0):
        learner = toy.learner(normalise_reward=True, demonstration_weight=0.0)
        for seed in range(3):
            rollout = toy.filled(learner, seed=seed)
            rollout.policy_weight[20:32] = rollout.value_weight[20:32] = 0.0
            rollout.cloning_weight[20:32] = 1.0
            rollout.reward[20:32] = paid
            rollout.u[20:32] = paid / 1000.0
            finish(learner.update(rollout))
        weights.append(learner.snapshot())
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])


def test_a_restored_state_without_moments_has_none(toy, finish):
    learner = toy.learner()
    fresh = learner.capture()
    finish(learner.update(toy.filled(learner)))
    assert learner.capture().optimizer
    learner.restore(fresh)
    assert not learner.capture().optimizer


def test_the_last_update_of_a_falling_learning_rate_still_learns(toy, finish):
    learner = toy.learner(anneal=True, budget=64)
    rates = [finish(learner.update(toy.filled(learner))).metrics["lr"] for _ in range(2)]
    assert rates == pytest.approx([1e-3, 5e-4])
    assert learner.is_spent


def test_a_bound_never_moves_the_learning_rate_the_wrong_way():
    settings = PpoSettings(kl_target=0.01, learning_rate_low=5e-5, learning_rate_high=1e-3)
    assert adapt(settings, 1e-5, 1.0, 0.0) == 1e-5
    assert adapt(settings, 1e-2, 0.0, 0.0) == 1e-2
    assert lowered(settings, 1e-5, 2.0) == 1e-5
    assert lowered(settings, 8e-5, 2.0) == 5e-5


def test_an_update_without_any_step_leaves_the_learning_rate(toy, finish):
    learner = toy.learner(minibatch=32, epochs=1, kl_target=0.01)
    rollout = toy.filled(learner)
    rollout.reward[0] = np.nan
    before = learner.learning_rate
    metrics = finish(learner.update(rollout)).metrics
    assert metrics["optimiser_steps"] == 0.0
    assert learner.learning_rate == before
    assert all(torch.isfinite(value).all() for value in learner.network.state_dict().values())
