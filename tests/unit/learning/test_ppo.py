from dataclasses import replace

import numpy as np
import pytest
import torch

from protocol.spec import Element
from trainerd.learning.ppo import explained_variance, masked_step
from trainerd.learning.rollout import RowDecision

pytestmark = pytest.mark.component


def test_the_ratio_begins_at_one_and_importance_too_with_the_policys_own_data(toy, finish):
    learner = toy.learner(minibatch=32, epochs=1, learning_rate=1e-8)
    result = finish(learner.update(toy.filled(learner)))
    assert result.metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert result.metrics["importance"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["behaviour_gap"] == pytest.approx(0.0, abs=1e-4)


def test_a_recorded_log_prob_of_another_distribution_shows_in_importance_and_gap(toy, finish):
    learner = toy.learner(minibatch=32, epochs=1, learning_rate=1e-8)
    rollout = toy.filled(learner)
    rollout.log_prob += np.float32(0.5)
    metrics = finish(learner.update(rollout)).metrics
    assert metrics["importance"] == pytest.approx(np.exp(-0.5), abs=1e-3)
    assert metrics["behaviour_gap"] == pytest.approx(0.5, abs=1e-3)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_rows_without_policy_weight_do_not_move_the_policy(toy, finish):
    learner = toy.learner(entropy=0.0)
    rollout = toy.filled(learner)
    rollout.policy_weight[:] = 0.0
    before = learner.snapshot()
    finish(learner.update(rollout))
    after = learner.snapshot()
    np.testing.assert_array_equal(before["policy.4.weight"], after["policy.4.weight"])
    assert not np.array_equal(before["value.4.weight"], after["value.4.weight"])


def test_demonstrations_pull_the_mean_towards_the_human(toy, finish):
    learner = toy.learner(entropy=0.0, demonstration_weight=1.0, learning_rate=1e-2, budget=10**9)
    rollout = toy.filled(learner)
    rollout.policy_weight[:] = rollout.value_weight[:] = 0.0
    rollout.cloning_weight[:] = 1.0
    rollout.u[:] = (0.8, -0.4)
    for _ in range(25):
        finish(learner.update(rollout))
    with torch.no_grad():
        mean, _ = learner.network(torch.zeros(1, 0, 0, 0), torch.zeros(1, learner.transform.size))
    np.testing.assert_allclose(mean[0].numpy(), (0.8, -0.4), atol=0.15)


def test_three_broken_minibatches_roll_the_update_back(toy, finish):
    learner = toy.learner()
    finish(learner.update(toy.filled(learner)))
    before, counter = learner.capture(), learner.policy_counter
    rollout = toy.filled(learner)
    rollout.reward[:] = np.inf
    result = finish(learner.update(rollout))
    assert result.metrics["rolled_back"] == 1.0
    assert result.metrics["minibatches_skipped"] == 3
    assert not result.is_new_policy
    assert learner.policy_counter == counter
    after = learner.capture()
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert all(torch.equal(before.optimizer[name], after.optimizer[name]) for name in before.optimizer)


def test_one_broken_minibatch_is_skipped_and_counted(toy, finish):
    learner = toy.learner(epochs=1, minibatch=16)
    rollout = toy.filled(learner)
    rollout.u[3] = np.nan
    result = finish(learner.update(rollout))
    assert result.metrics["minibatches_skipped"] == 1
    assert all(np.isfinite(value).all() for value in learner.snapshot().values())


def test_a_minibatch_that_does_not_fit_into_memory_becomes_two(toy, finish, monkeypatch):
    learner, roomy = toy.learner(epochs=2, minibatch=32), toy.learner(epochs=2, minibatch=32)
    features, rows = learner.inputs.features, []

    def small_memory(network, places, *, precise):
        if len(places) > 8 and not precise:
            raise torch.OutOfMemoryError("out of memory")
        rows.append(len(places))
        return features(network, places, precise=precise)

    monkeypatch.setattr(learner.inputs, "features", small_memory)
    rollout = toy.filled(learner)
    result = finish(learner.update(rollout))
    assert result.metrics["minibatches_halved"] == 2
    assert result.is_new_policy
    assert rows == [32, *[8] * 8], "what did not fit is not tried again"
    finish(roomy.update(rollout))
    for one, other in zip(learner.network.parameters(), roomy.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_proximal_pass_is_cut_too_where_it_does_not_fit(toy, finish, monkeypatch):
    learner, roomy = toy.learner(), toy.learner()
    features = learner.inputs.features

    def small_memory(network, places, *, precise):
        if len(places) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return features(network, places, precise=precise)

    monkeypatch.setattr(learner.inputs, "features", small_memory)
    rollout = toy.filled(learner)
    metrics = [finish(each.update(rollout)).metrics for each in (learner, roomy)]
    assert metrics[0]["value"] == pytest.approx(metrics[1]["value"], abs=1e-6)


def test_an_epoch_above_the_kl_limit_is_the_last_one(toy, finish):
    def epochs(**settings):
        learner = toy.learner(epochs=4, learning_rate=1e-2, **settings)
        return finish(learner.update(toy.filled(learner))).metrics

    free = epochs()
    assert free["epochs"] == 4
    assert epochs(kl_stop=1e-6)["epochs"] == 1
    assert epochs(kl_stop=1e-6)["approx_kl"] > 1e-6
    assert epochs(kl_stop=100.0)["approx_kl"] == free["approx_kl"]


def test_a_masked_step_changes_nothing_and_an_open_one_is_the_optimisers_own():
    def trained(*masks):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        optimizer = torch.optim.Adam(layer.parameters(), fused=True)
        for number, is_good in enumerate(masks):
            optimizer.zero_grad()
            (layer(torch.full((2, 5), number + 1.0)).square().sum() * (1.0 if is_good else np.inf)).backward()
            masked_step(optimizer, torch.tensor(is_good))
        state = optimizer.state[layer.weight]
        return [layer.weight, layer.bias, *state.values()]

    def plain(count):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        optimizer = torch.optim.Adam(layer.parameters(), fused=True)
        for number in range(count):
            optimizer.zero_grad()
            layer(torch.full((2, 5), number + 1.0)).square().sum().backward()
            optimizer.step()
        return [layer.weight, layer.bias, *optimizer.state[layer.weight].values()]

    assert all(torch.equal(one, other) for one, other in zip(trained(True, True), plain(2), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(trained(True, True, False), plain(2), strict=True))


def test_a_discrete_robot_learns_the_rewarded_choice(toy, finish):
    choices = (Element("left", "", 0.0, 1.0), Element("right", "", 0.0, 1.0))
    toy = type(toy)(robot=replace(toy.robot, action=choices, action_space="discrete"))
    learner = toy.learner(rollout=128, minibatch=32, learning_rate=3e-3, gamma=0.0, budget=10**6)
    rng = np.random.default_rng(0)

    def driven():
        rollout = toy.rollouts(128, 1).acquire()
        for _ in range(128):
            observation = toy.observation(float(rng.uniform(-1, 1)))
            vector = learner.transform.vector(observation.state, observation.task, observation.in_flight)
            with torch.no_grad():
                mean = learner.network(torch.zeros(1, 0, 0, 0), torch.from_numpy(vector)[None])[0][0].numpy()
            zeros = np.zeros(2, np.float32)
            u = learner.distribution.sample(mean, zeros, rng)
            density = float(learner.distribution.log_prob_numpy(u, mean, zeros))
            reward = float((u[1] > 0) == (observation.state[0] > 0))
            counter = learner.policy_counter
            decision = RowDecision(u, mean, zeros, density, reward, counter, 1.0, 1.0, 0.0)
            rollout.terminate(rollout.append(observation, decision))
        return rollout

    rewards = []
    for _ in range(15):
        rollout = driven()
        rewards.append(float(rollout.reward.mean()))
        metrics = finish(learner.update(rollout)).metrics
        assert metrics["behaviour_gap"] == pytest.approx(0.0, abs=1e-4)
    assert rewards[0] < 0.7
    assert rewards[-1] > 0.9
    assert learner.network.log_std.tolist() == [0.0, 0.0]
    assert "log_std" not in dict(learner.network.named_parameters())


def test_a_rollout_with_alarms_is_refused_unless_allowed(toy, finish):
    for allowed in (False, True):
        learner = toy.learner(allow_flat_reward=allowed)
        rollout = toy.filled(learner)
        rollout.alarms = ("reward_constant",)
        before = learner.snapshot()
        result = finish(learner.update(rollout))
        assert result.refused == (() if allowed else ("reward_constant",))
        assert allowed != all(np.array_equal(before[name], value) for name, value in learner.snapshot().items())


def test_it_learns_a_toy_task(toy, finish):
    learner = toy.learner(
        rollout=256, minibatch=64, learning_rate=3e-3, entropy=0.0, gamma=0.0, budget=256 * 14,
        network={"std": "schedule", "std_start": 0.6, "std_end": 0.2},
    )  # fmt: skip
    rewards = []
    for seed in range(14):
        rollout = toy.filled(learner, rows=256, seed=seed)
        rewards.append(float(rollout.reward.mean()))
        finish(learner.update(rollout))
    assert rewards[0] < -0.4
    assert rewards[-1] > -0.12


def test_explained_variance_is_one_for_perfect_and_zero_for_constant_targets():
    target = np.array([1.0, 2.0], np.float32)
    assert explained_variance(target, target) == 1.0
    assert explained_variance(target, np.ones(2, np.float32)) == 0.0
