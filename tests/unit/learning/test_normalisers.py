import json

import numpy as np
import pytest
import torch

from trainerd.learning.gae import TERMINATED
from trainerd.learning.networks import VECTOR_CLIP
from trainerd.learning.normalisers import RunningMoments, discounted_returns

pytestmark = pytest.mark.component


def test_running_moments_are_those_of_all_rows_together():
    rng = np.random.default_rng(0)
    parts = [rng.normal(loc=1e3, scale=[0.1, 5.0], size=(n, 2)) for n in (1, 40, 7, 300)]
    moments = RunningMoments(2)
    assert moments.std.tolist() == [1.0, 1.0]
    for part in parts:
        moments.add(part)
    rows = np.concatenate(parts)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-6)


def test_a_row_that_is_not_finite_is_left_out():
    moments = RunningMoments(2)
    moments.add(np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, np.inf], [3.0, 4.0]]))
    moments.add(np.array([[np.nan, 0.0]]))
    assert (moments.count, moments.mean.tolist()) == (2, [2.0, 3.0])


def test_moments_survive_json_bit_for_bit():
    moments = RunningMoments(3)
    moments.add(np.random.default_rng(1).normal(size=(11, 3)) / 3)
    again = RunningMoments.from_map(json.loads(json.dumps(moments.to_map())))
    extra = np.random.default_rng(2).normal(size=(5, 3))
    moments.add(extra)
    again.add(extra)
    assert again.to_map() == moments.to_map()


def test_discounted_returns_run_along_each_segment():
    rng = np.random.default_rng(0)
    rows, gamma = 200, 0.9
    reward = rng.normal(size=rows).astype(np.float32)
    successor = np.full(rows, TERMINATED)
    for row in range(rows - 3):
        successor[row] = row + 3 if rng.random() < 0.9 else rng.choice([TERMINATED, rows + 1])
    returns = discounted_returns(reward, successor, gamma)
    for start in range(rows):
        if start in successor:
            continue
        row, total = start, 0.0
        while 0 <= row < rows:
            total = total * gamma + float(reward[row])
            assert returns[row] == pytest.approx(total, rel=1e-12)
            row = successor[row]


def test_the_vectors_normaliser_follows_the_rollouts_and_is_part_of_the_network(toy, finish):
    learner = toy.learner(network={"normalise_vector": True})
    assert learner.network.vector_gain.tolist() == [1.0] * learner.transform.size
    seen = []
    for seed in range(3):
        rollout = toy.filled(learner, seed=seed)
        seen.append(learner.inputs.gather.vectors(rollout, rollout.used))
        finish(learner.update(rollout))
        rows = np.concatenate(seen).astype(np.float64)
        np.testing.assert_allclose(learner.network.vector_mean.numpy(), rows.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(learner.network.vector_gain.numpy(), 1 / np.sqrt(rows.var(0) + 1e-8), rtol=1e-5)
    scaled = learner.network.normalised(torch.from_numpy(rows.astype(np.float32))).numpy()
    varies = rows.std(0) > 0
    np.testing.assert_allclose(scaled[:, varies].std(0), 1.0, rtol=1e-4)
    assert learner.network.normalised(torch.full((1, len(varies)), 1e6)).max() == VECTOR_CLIP
    assert {"vector_mean", "vector_gain"} <= learner.snapshot().keys()


def test_the_reward_is_divided_by_the_deviation_of_the_discounted_return(toy, finish):
    learner = toy.learner(normalise_reward=True, gamma=0.9, reward_scale=2.0)
    returns, shown = [], []
    for seed in range(2):
        rollout = toy.filled(learner, seed=seed)
        rollout.successor[:-1] = np.arange(1, rollout.rows)
        returns.append(discounted_returns(rollout.reward, rollout.successor, 0.9))
        shown.append(finish(learner.update(rollout)).metrics["reward"])
        scale = 2.0 / np.sqrt(np.concatenate(returns).var() + 1e-8)
        assert shown[-1] == pytest.approx(np.clip(rollout.reward * scale, -10, 10).mean(), rel=1e-5)


def test_a_rolled_back_update_takes_the_normalisers_back_too(toy, finish):
    learner = toy.learner(network={"normalise_vector": True}, normalise_reward=True)
    finish(learner.update(toy.filled(learner)))
    before = learner.capture()
    rollout = toy.filled(learner, seed=4)
    rollout.u[:] = np.nan
    assert finish(learner.update(rollout)).metrics["rolled_back"] == 1.0
    after = learner.capture()
    assert after.counters["statistics"] == before.counters["statistics"]
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
