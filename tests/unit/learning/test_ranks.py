"""Several processes, one update: gloo on the loopback."""

import os
import signal
import time

import numpy as np
import pytest

from plugins.encoders.blind import build_blind
from plugins.encoders.cameras import CameraSettings
from plugins.encoders.column import build_column
from plugins.encoders.rgbd import build_rgbd
from trainerd.learning.learner import Learner
from trainerd.learning.ranks import Plan, Ranks, RanksError
from trainerd.learning.settings import NetworkSettings, PpoSettings

pytestmark = [pytest.mark.component, pytest.mark.timeout(120)]

START_S = 60.0


def learner_of(toy, encoder="blind", ranks=None, network=None, **ppo):
    build = {"blind": build_blind, "column": build_column, "rgbd": build_rgbd}[encoder]
    return Learner(
        toy.robot,
        toy.task,
        toy.transform,
        lambda shape: build(shape, CameraSettings()),
        network=NetworkSettings(**{"encoder": encoder, "normaliser_frames": 0, **(network or {})}),
        ppo=PpoSettings(**{"rollout": 32, "minibatch": 16, **ppo}),
        seed=0,
        budget_decisions=10_000,
        ranks=ranks,
    )


@pytest.fixture
def ranked(request):
    """Makes ranks on the CPU and closes them."""
    made = []

    def make(count, encoder="blind", hang_s=30.0):
        ranks = Ranks(Plan(("cpu",) * count, encoder, {}), hang_s=hang_s)
        made.append(ranks)
        return ranks

    yield make
    for ranks in made:
        ranks.close()


def difference(one, other):
    ours, theirs = one.snapshot(), other.snapshot()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours if ours[name].size)


@pytest.mark.parametrize(("encoder", "cut"), [("column", {}), ("rgbd", {"micro_batch": 2, "learning_rate": 1e-3})])
def test_two_ranks_equal_one_within_1e_6_after_100_optimiser_steps(seeing, finish, ranked, encoder, cut):
    ranks = ranked(2, encoder)
    recipe = {"network": {"normalise_vector": True}, "normalise_reward": True, "minibatch": 7, **cut}
    together = learner_of(seeing, encoder, ranks, **recipe)
    alone = learner_of(seeing, encoder, **recipe)
    together.warm_up()
    ranks.wait(START_S)
    for seed in range(5):
        rollout = seeing.filled(alone, seed=seed)
        assert finish(alone.update(rollout)).metrics["rolled_back"] == 0.0
        metrics = finish(together.update(rollout)).metrics
        assert (metrics["ranks"], metrics["ranks_lost"]) == (2, 0)
    rollout.reward[:] = rollout.reward[::-1].copy()  # the pool's two rollouts are filled again and again
    for learner in (alone, together):
        finish(learner.update(rollout))
    assert int(together.optimizer.state[together.network.policy[0].weight]["step"]) == 6 * 4 * 5
    assert difference(alone, together) <= 1e-6


@pytest.mark.slow
def test_a_rank_that_is_killed_within_an_update_costs_no_step_and_comes_back(toy, finish, ranked):
    ranks = ranked(3)
    together, alone = learner_of(toy, ranks=ranks), learner_of(toy)
    together.warm_up()
    ranks.wait(START_S)
    rollouts = [toy.filled(alone, seed=seed) for seed in range(3)]
    finish(together.update(rollouts[0]))
    update = together.update(rollouts[1])
    for _ in range(4):
        next(update)
    victim = ranks.pids[1]
    os.kill(victim, signal.SIGKILL)
    metrics = finish(update).metrics
    assert (metrics["ranks"], metrics["ranks_lost"]) == (1, 1)
    assert victim not in ranks.pids
    ranks.wait(START_S)
    assert finish(together.update(rollouts[2])).metrics["ranks"] == 3
    for rollout in rollouts:
        finish(alone.update(rollout))
    assert difference(alone, together) <= 1e-6


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_in_time(toy, finish, ranked):
    ranks = ranked(2, hang_s=2.0)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    finish(together.update(toy.filled(together)))
    os.kill(ranks.pids[0], signal.SIGSTOP)
    began = time.monotonic()
    assert finish(together.update(toy.filled(together, seed=1))).metrics["ranks_lost"] == 1
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_an_update_that_was_given_up_does_not_confuse_the_next_one(toy, finish, ranked):
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    update = together.update(toy.filled(together))
    for _ in range(3):
        next(update)
    update.close()
    assert finish(together.update(toy.filled(together, seed=1))).metrics["ranks"] == 1
    ranks.wait(START_S)
    assert finish(together.update(toy.filled(together, seed=2))).metrics["ranks"] == 2


def test_ranks_end_with_the_learners_process(toy, ranked):
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    process = ranks._peers[0].process
    ranks._peers[0]._socket.close()
    assert process.wait(timeout=20) == 0


def test_a_device_that_cannot_be_one_of_several_is_refused():
    with pytest.raises(RanksError, match="name CPUs only"):
        Ranks(Plan(("cpu", "cuda:0"), "blind", {}))
    with pytest.raises(RanksError, match="cuda:0, cuda:0"):
        Ranks(Plan(("cuda:0", "cuda:0"), "blind", {}))
