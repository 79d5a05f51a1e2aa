"""Proximal policy optimisation with a decoupled objective, from a filled rollout to new weights.

Schulman et al. 2017 (PPO), 2016 (GAE); Hilton et al. 2021 (behaviour and proximal policy apart): the ratio is clipped
against the proximal policy, the weights as they were when the update began, and the gap between that one and the
policy that really drove is an importance weight. So an old or a quantised behaviour policy does no harm.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainerd.learning.distributions import entropy, log_prob
from trainerd.learning.gae import gae

if TYPE_CHECKING:
    from collections.abc import Generator

    from trainerd.learning.inputs import Inputs
    from trainerd.learning.networks import PolicyNetwork
    from trainerd.learning.rollout import Rollout
    from trainerd.learning.settings import PpoSettings

FloatArray = npt.NDArray[np.float32]
Metrics = dict[str, float]

PROXIMAL_CHUNK = 256
MINIBATCHES_LOST = 3
"""Minibatches of an update that may have a non-finite gradient before the whole update is taken back."""
LOG_STD_BOUNDS = (math.log(1e-2), math.log(5.0))


@dataclass(frozen=True)
class Batch:
    """A rollout as tensors, with what the proximal pass added; T rows."""

    vector: Tensor
    u: Tensor
    proximal_log_prob: Tensor
    importance: Tensor
    """Proximal / behaviour density, bounded above."""
    advantage: Tensor
    target: Tensor
    policy_weight: Tensor
    value_weight: Tensor
    cloning_weight: Tensor


def ppo_update(
    network: PolicyNetwork,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    inputs: Inputs,
    settings: PpoSettings,
    *,
    cloning: float,
    generator: torch.Generator,
) -> Generator[None, None, Metrics]:
    """Improve a network by one rollout; yields after every chunk and minibatch, so that a caller can stop or pause.

    Args:
        network: is changed in place.
        optimizer: its learning rate is the caller's business.
        rollout: filled; must not change meanwhile.
        inputs: for the network's device.
        settings: the hyperparameters.
        cloning: weight of the cloning loss on demonstrated decisions.
        generator: draws the minibatches; on the CPU.

    Returns:
        Means over the minibatches, explained variance, ``minibatches_skipped``, ``minibatches_halved`` (they did not
        fit into the GPU's memory, so each became two), and ``rolled_back`` (1.0 where weights
        and optimiser are as before, because three minibatches had a loss or gradient that was not finite).

    """
    batch, metrics = yield from _proximal_pass(network, rollout, inputs, settings)
    before = _copies(network, optimizer)
    sums = torch.zeros(6)
    steps = skipped = halved = 0
    for _ in range(settings.epochs):
        order = torch.randperm(rollout.rows, generator=generator).numpy()
        minibatches = deque(np.array_split(order, max(1, math.ceil(len(order) / settings.minibatch))))
        while minibatches:
            places = minibatches.popleft()
            optimizer.zero_grad(set_to_none=True)
            try:
                features = inputs.features(network, places, precise=False)
                loss, parts = _loss(network, features, batch, torch.from_numpy(places), settings, cloning)
                loss.backward()  # type: ignore[no-untyped-call]
            except torch.OutOfMemoryError:
                if len(places) == 1:
                    raise
                minibatches.extendleft(reversed(np.array_split(places, 2)))
                halved += 1
                continue
            norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
            if math.isfinite(norm.item()) and math.isfinite(loss.item()):
                optimizer.step()
                _bound_std(network)
                sums += torch.stack((*parts, norm.detach())).cpu()
                steps += 1
            else:
                skipped += 1
            if skipped >= MINIBATCHES_LOST:
                _restore(network, optimizer, before)
                return {**metrics, "minibatches_skipped": float(skipped), "rolled_back": 1.0}
            yield
    names = ("policy_loss", "value_loss", "cloning_loss", "approx_kl", "clip_fraction", "grad_norm")
    means = dict(zip(names, (sums / max(steps, 1)).tolist(), strict=True))
    counts = {"minibatches_skipped": float(skipped), "minibatches_halved": float(halved), "rolled_back": 0.0}
    return {**metrics, **means, **counts}


def _proximal_pass(
    network: PolicyNetwork, rollout: Rollout, inputs: Inputs, settings: PpoSettings
) -> Generator[None, None, tuple[Batch, Metrics]]:
    """Run the network as it is over the rollout in float32: values, advantages, proximal log-probs."""
    vector = inputs.load(rollout, network)
    means, values = [], []
    for start in range(0, len(vector), PROXIMAL_CHUNK):
        places = np.arange(start, min(start + PROXIMAL_CHUNK, len(vector)))
        with torch.no_grad():
            mean, value = network.heads(inputs.features(network, places, precise=True), vector[places])
        means.append(mean)
        values.append(value)
        yield
    rows, device = rollout.rows, vector.device
    value = torch.cat(values)
    mean = torch.cat(means)[:rows]
    # Finals lie behind the storage's capacity; behind the used rows here.
    successor = rollout.successor[:rows].copy()
    successor[successor >= rollout.capacity] += rows - rollout.capacity
    reward = rollout.reward[:rows] * np.float32(settings.reward_scale)
    advantage = gae(reward, value.cpu().numpy(), successor, gamma=settings.gamma, lam=settings.lambda_)
    target = advantage + value[:rows].cpu().numpy()
    u = torch.from_numpy(rollout.u[:rows]).to(device)
    log_std = network.log_std.detach()
    proximal = log_prob(u, mean, log_std)
    behaviour = torch.from_numpy(rollout.log_prob[:rows]).to(device)
    weight = torch.from_numpy(rollout.policy_weight[:rows]).to(device)
    batch = Batch(
        vector=vector[:rows],
        u=u,
        proximal_log_prob=proximal,
        importance=torch.exp((proximal - behaviour).clamp(max=math.log(settings.importance_limit))),
        advantage=torch.from_numpy(advantage).to(device),
        target=torch.from_numpy(target).to(device),
        policy_weight=weight,
        value_weight=torch.from_numpy(rollout.value_weight[:rows]).to(device),
        cloning_weight=torch.from_numpy(rollout.cloning_weight[:rows]).to(device),
    )
    metrics = {
        "explained_variance": explained_variance(value[:rows].cpu().numpy(), target),
        "entropy": _mean(entropy(mean, log_std), weight).item(),
        "importance": _mean(batch.importance, weight).item(),
        "value": float(value[:rows].mean()),
        "reward": float(reward.mean()),
        "policy_share": float(weight.mean()),
    }
    return batch, metrics


def _loss(
    network: PolicyNetwork, features: Tensor, batch: Batch, at: Tensor, settings: PpoSettings, cloning: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the loss of a minibatch, and policy loss, value loss, cloning loss, KL and clip fraction without graph."""
    at = at.to(batch.u.device)
    weight, u = batch.policy_weight[at], batch.u[at]
    mean, value = network.heads(features, batch.vector[at])
    log_density = log_prob(u, mean, network.log_std)
    log_ratio = log_density - batch.proximal_log_prob[at]
    log_ratio = torch.where(weight > 0, log_ratio, torch.zeros_like(log_ratio))
    ratio = log_ratio.exp()
    advantage = _standardised(batch.advantage[at], weight)
    clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage) * batch.importance[at]
    policy_loss = -_mean(surrogate, weight)
    value_loss = _mean((value - batch.target[at]) ** 2, batch.value_weight[at])
    loss = policy_loss + settings.value * value_loss
    if settings.entropy > 0.0:
        loss = loss - settings.entropy * _mean(entropy(mean, network.log_std), weight)
    cloning_loss = torch.zeros_like(loss)
    if cloning > 0.0:
        cloning_loss = -_mean(log_density, batch.cloning_weight[at])
        loss = loss + cloning * cloning_loss
    with torch.no_grad():
        kl = _mean((ratio - 1.0) - log_ratio, weight)
        clip_fraction = _mean(((ratio - 1.0).abs() > settings.clip).float(), weight)
    parts = (policy_loss.detach(), value_loss.detach(), cloning_loss.detach(), kl, clip_fraction)
    return loss, parts


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def _standardised(advantage: Tensor, weight: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 over the weighted rows."""
    centred = advantage - _mean(advantage, weight)
    return centred / (_mean(centred * centred, weight).sqrt() + 1e-8)


def explained_variance(value: FloatArray, target: FloatArray) -> float:
    """Return the share of the targets' variance that the values explain; 0 where they are constant or not finite."""
    if not np.isfinite(target).all():
        return 0.0
    variance = float(np.var(target))
    return 1.0 - float(np.var(target - value)) / variance if variance > 0.0 else 0.0


@torch.no_grad()
def _bound_std(network: PolicyNetwork) -> None:
    if isinstance(network.log_std, nn.Parameter):
        network.log_std.clamp_(*LOG_STD_BOUNDS)


def _copies(
    network: PolicyNetwork, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Copy weights and the optimiser's tensors."""
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in network.parameters()]
    return weights, moments


def _restore(
    network: PolicyNetwork,
    optimizer: torch.optim.Optimizer,
    copies: tuple[dict[str, Tensor], list[dict[str, Tensor]]],
) -> None:
    network.load_state_dict(copies[0])
    for parameter, moments in zip(network.parameters(), copies[1], strict=True):
        optimizer.state[parameter] = moments
