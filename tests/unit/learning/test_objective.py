"""The loss of a minibatch and its gradient against a reference that goes row by row in float64."""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from protocol.spec import Element
from trainerd.learning.gae import TERMINATED
from trainerd.learning.ppo import ALONE, COLUMNS, REWARD_CLIP, _Descent, _proximal_pass
from trainerd.learning.rollout import RowDecision

pytestmark = pytest.mark.component

ROWS = 22
CLONING = 0.3


@pytest.fixture(params=["continuous", "discrete"])
def robot_toy(toy, request):
    if request.param == "continuous":
        return toy
    choices = (Element("left", "", 0.0, 1.0), Element("right", "", 0.0, 1.0))
    return type(toy)(robot=replace(toy.robot, action=choices, action_space="discrete"))


def driven(toy, learner, *, seed=0):
    """A rollout of two interleaved segments, cut, ended and taken over, by a policy that is not quite the learner's."""
    rng = np.random.default_rng(seed)
    rollout = toy.rollouts(ROWS, 1).acquire()
    log_std = np.asarray(learner.network.log_std.detach().numpy() + 0.1, np.float32)
    if not learner.distribution.has_std:
        log_std[:] = 0.0
    for row in range(ROWS):
        observation = toy.observation(float(rng.uniform(-1, 1)), seed=seed)
        mean = rng.normal(size=2).astype(np.float32) * np.float32(0.1)
        u = learner.distribution.sample(mean, log_std, rng)
        density = float(learner.distribution.log_prob_numpy(u, mean, log_std))
        is_demonstration = row in {4, 9}
        own = float(not is_demonstration)
        decision = RowDecision(u, mean, log_std, density, float(rng.normal()) * 3, 0, own, own, 1.0 - own)
        rollout.append(observation, decision)
    for row in range(ROWS - 2):
        rollout.link(row, row + 2)
    rollout.terminate(8)
    rollout.cut(11, toy.observation(0.3))
    rollout.terminate(ROWS - 2)
    rollout.cut(ROWS - 1, toy.observation(-0.6))
    return rollout


@dataclass
class Reference:
    """Everything about a rollout in float64: lists with one entry a row."""

    vector: torch.Tensor
    proximal: list
    behaviour: list
    value: list
    advantage: list
    target: list


def density(learner, u, mean, log_std):
    if not learner.distribution.has_std:
        return sum(u[i] * (mean[i] - torch.logsumexp(mean, dim=0)) for i in range(len(u)))
    total = 0.0
    for i in range(len(u)):
        z = (u[i] - mean[i]) / torch.exp(log_std[i])
        total = total - 0.5 * z * z - log_std[i] - 0.5 * math.log(2 * math.pi)
    return total


def disorder(learner, mean, log_std):
    """The entropy of one decision; that of tanh(u) by numerical integration."""
    if not learner.distribution.has_std:
        p = torch.softmax(mean, dim=0)
        return -sum(p[i] * torch.log(p[i]) for i in range(len(mean)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    total = 0.0
    for i in range(len(mean)):
        total = total + 0.5 + 0.5 * math.log(2 * math.pi) + log_std[i]
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            u = mean[i] + torch.exp(log_std[i]) * node
            total = total + weight * torch.log(1 - torch.tanh(u) ** 2)
    return total


def look_back(learner, rollout, scale):
    """Values, advantages and densities before the update."""
    network, settings = copy.deepcopy(learner.network).double(), learner.ppo_settings
    vector = torch.from_numpy(learner.inputs.gather.vectors(rollout, rollout.used)).double()
    with torch.no_grad():
        mean, value = network(torch.zeros(len(vector), 0, 0, 0), vector)
    advantage = [0.0] * ROWS
    for row in reversed(range(ROWS)):
        reward = float(rollout.reward[row]) * scale
        if settings.normalise_reward:
            reward = max(-REWARD_CLIP, min(REWARD_CLIP, reward))
        then = int(rollout.successor[row])
        if then == TERMINATED:
            advantage[row] = reward - float(value[row])
        elif then >= rollout.capacity:
            final = float(value[ROWS + then - rollout.capacity])
            advantage[row] = reward + settings.gamma * final - float(value[row])
        else:
            delta = reward + settings.gamma * float(value[then]) - float(value[row])
            advantage[row] = delta + settings.gamma * settings.lambda_ * advantage[then]
    log_std = network.log_std.detach()
    u = torch.from_numpy(rollout.u).double()
    proximal = [float(density(learner, u[row], mean[row], log_std)) for row in range(ROWS)]
    target = [advantage[row] + float(value[row]) for row in range(ROWS)]
    return Reference(vector, proximal, [float(x) for x in rollout.log_prob], value.tolist(), advantage, target)


def slow_loss(learner, rollout, reference, places, network):
    """Return the minibatch's loss as a float64 scalar with a graph to ``network``, and its parts."""
    settings = learner.ppo_settings
    weights = [float(rollout.policy_weight[row]) for row in places]
    count = max(1.0, sum(weights))
    mean_advantage = sum(w * reference.advantage[row] for w, row in zip(weights, places, strict=True)) / count
    variance = (
        sum(w * (reference.advantage[row] - mean_advantage) ** 2 for w, row in zip(weights, places, strict=True))
        / count
    )
    policy = value_loss = bonus = cloning = kl = clipped_share = 0.0
    for row in places:
        mean, value = network(torch.zeros(1, 0, 0, 0), reference.vector[row][None])
        mean, value = mean[0], value[0]
        now = density(learner, torch.from_numpy(rollout.u[row]).double(), mean, network.log_std)
        advantage = reference.advantage[row]
        if settings.normalise_advantage:
            advantage = (advantage - mean_advantage) / (math.sqrt(variance) + 1e-8)
        weight = float(rollout.policy_weight[row])
        before = reference.behaviour[row] if settings.objective == "plain" else reference.proximal[row]
        importance = 1.0
        if settings.objective == "decoupled":
            importance = min(settings.importance_limit, math.exp(reference.proximal[row] - reference.behaviour[row]))
        ratio = torch.exp(now - before)
        bounded = min(max(ratio.item(), 1 - settings.clip), 1 + settings.clip)
        first, second = ratio * advantage, bounded * advantage
        policy = policy - weight * importance * (first if first.item() <= second else ratio * 0.0 + second)
        error = (value - reference.target[row]) ** 2
        if settings.value_clip:
            step = value.item() - reference.value[row]
            if abs(step) > settings.value_clip:
                near = reference.value[row] + math.copysign(settings.value_clip, step)
                other = (near - reference.target[row]) ** 2
                error = error if error.item() >= other else error * 0.0 + other
        value_loss = value_loss + float(rollout.value_weight[row]) * error
        bonus = bonus + weight * disorder(learner, mean, network.log_std)
        cloning = cloning - float(rollout.cloning_weight[row]) * now
        shift = now.item() - reference.proximal[row]
        kl += weight * (math.exp(shift) - 1 - shift)
        clipped_share += weight * (abs(ratio.item() - 1) > settings.clip)
    policy = policy / count
    value_loss = value_loss / max(1.0, float(sum(rollout.value_weight[row] for row in places)))
    cloning = cloning / max(1.0, float(sum(rollout.cloning_weight[row] for row in places)))
    loss = policy + settings.value * value_loss - settings.entropy * bonus / count + CLONING * cloning
    return loss, (policy.item(), value_loss.item(), cloning.item(), kl / count, clipped_share / count, loss.item())


def descent_of(learner, rollout, finish, *, scale=1.0, exchange=ALONE):
    """The descent of an update, with a network that has moved since the update began."""
    batch, _ = finish(
        _proximal_pass(
            learner.network, rollout, learner.inputs, learner.ppo_settings, learner.distribution, ALONE, scale
        )
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in learner.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return _Descent(
        learner.network, learner.optimizer, learner.inputs, learner.ppo_settings, CLONING, learner.distribution,
        exchange, batch,
    )  # fmt: skip


def gradient_of(descent, places):
    parts = descent._gradient(descent._shared(places))
    return [p.grad.clone() for p in descent.network.parameters()], parts


VARIANTS = {
    "default": {},
    "plain objective": {"objective": "plain"},
    "clipped values": {"value_clip": 0.05},
    "raw advantages": {"normalise_advantage": False},
    "normalised rewards": {"normalise_reward": True},
    "no entropy": {"entropy": 0.0},
    "a tight importance limit": {"importance_limit": 1.05},
    "a wide clip": {"clip": 0.9},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_equal_those_of_a_slow_reference(robot_toy, finish, variant):
    learner = robot_toy.learner(**{"entropy": 0.02, "gamma": 0.9, **VARIANTS[variant]})
    rollout = driven(robot_toy, learner)
    scale = 4.0 if variant == "normalised rewards" else 0.7
    reference = look_back(learner, rollout, scale)
    descent = descent_of(learner, rollout, finish, scale=scale)
    places = torch.tensor([3, 4, 0, 17, 9, 21, 8, 11, 12, 5])
    gradient, parts = gradient_of(descent, places)
    network = copy.deepcopy(learner.network).double()
    network.zero_grad()
    loss, slow_parts = slow_loss(learner, rollout, reference, places.tolist(), network)
    loss.backward()
    np.testing.assert_allclose(parts.numpy(), slow_parts, rtol=2e-5, atol=2e-6)
    for ours, parameter in zip(gradient, network.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), parameter.grad, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 100])
def test_micro_batches_give_the_gradient_of_the_whole_minibatch(robot_toy, finish, micro_batch):
    learner = robot_toy.learner()
    rollout = driven(robot_toy, learner)
    descent = descent_of(learner, rollout, finish)
    places = torch.randperm(ROWS)[:19]
    whole, parts = gradient_of(descent, places)
    descent.settings = replace(descent.settings, micro_batch=micro_batch)
    cut, cut_parts = gradient_of(descent, places)
    torch.testing.assert_close(cut_parts, parts, rtol=1e-5, atol=1e-6)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@dataclass
class Part:
    """A rank whose part is not added to that of the others."""

    rank: int
    world: int

    def sum_(self, tensors):
        pass


@pytest.mark.parametrize("rows", [19, 2, 1])
def test_the_ranks_gradients_add_up_to_the_whole_one_also_where_a_rank_has_no_rows(robot_toy, finish, rows):
    learner = robot_toy.learner()
    rollout = driven(robot_toy, learner)
    descent = descent_of(learner, rollout, finish)
    places = torch.randperm(ROWS)[:rows]
    whole, parts = gradient_of(descent, places)
    shares = []
    for rank in range(3):
        descent.exchange = Part(rank, 3)
        shares.append(gradient_of(descent, places))
    torch.testing.assert_close(sum(p for _, p in shares), parts, rtol=1e-5, atol=1e-6)
    for index, one in enumerate(whole):
        torch.testing.assert_close(sum(gradient[index] for gradient, _ in shares), one, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_masked_on_the_device_equals_one_that_the_host_decides_on(toy, finish):
    """What a GPU does, so that the host need not wait: also with a minibatch that is not finite in between."""

    def weights(*, waits):
        learner = toy.learner()
        rollout = driven(toy, learner)
        descent = descent_of(learner, rollout, finish)
        descent.waits = waits
        for places in (torch.arange(9), torch.arange(9, ROWS), torch.arange(5)):
            if len(places) == ROWS - 9:
                descent._columns[COLUMNS.index("target"), 12] = torch.nan
            descent.step(places)
        return [*learner.network.state_dict().values(), descent.totals]

    waited, masked = weights(waits=True), weights(waits=False)
    assert all(torch.equal(one, other) for one, other in zip(waited, masked, strict=True))
    assert waited[-1][-2:].tolist() == [2.0, 1.0]


def test_human_steps_change_no_term_of_the_policy_gradient(toy, finish):
    learner = toy.learner(entropy=0.02)
    rollout = driven(toy, learner)
    places = torch.arange(ROWS)
    descent = descent_of(learner, rollout, finish)
    descent.cloning = 0.0
    gradient, parts = gradient_of(descent, places)
    human = rollout.cloning_weight > 0
    batch = descent.batch
    u, advantage = batch.u.clone(), batch.advantage.clone()
    u[human], advantage[human] = 7.0, -50.0
    descent = replace(descent, batch=replace(batch, u=u, advantage=advantage))
    changed, changed_parts = gradient_of(descent, places)
    assert torch.equal(parts, changed_parts)
    assert all(torch.equal(one, other) for one, other in zip(gradient, changed, strict=True))
