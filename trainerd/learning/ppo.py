"""Proximal policy optimisation with a decoupled objective, from a filled rollout to new weights.

Schulman et al. 2017 (PPO), 2016 (GAE); Hilton et al. 2021 (behaviour and proximal policy apart): the ratio is clipped
against the proximal policy, the weights as they were when the update began, and the gap between that one and the
policy that really drove is an importance weight. So an old or a quantised behaviour policy does no harm.

The loss of a minibatch is a sum over its rows divided by constants of the whole minibatch. So its gradient is the same
however the rows are cut: into micro-batches that fit into a GPU's memory, or among several ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from protocol.errors import RoverError
from trainerd.learning.distributions import ActionDistribution, SquashedGaussian
from trainerd.learning.gae import gae
from trainerd.learning.inputs import Inputs
from trainerd.learning.networks import PolicyNetwork
from trainerd.learning.settings import PpoSettings

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from trainerd.learning.rollout import Rollout

FloatArray = npt.NDArray[np.float32]
Metrics = dict[str, float]

MINIBATCHES_LOST = 3
"""Minibatches of an update that may have a non-finite gradient before the whole update is taken back."""
REWARD_CLIP = 10.0
"""Size to which normalised rewards are clipped."""
LOG_STD_BOUNDS = (math.log(1e-2), math.log(5.0))
MEANS = ("policy_loss", "value_loss", "cloning_loss", "approx_kl", "clip_fraction", "grad_norm")
KL, LOSS = 3, 5
STEPS, LOST = 6, 7


class ExchangeError(RoverError):
    """A rank that takes part in an update is gone; the update cannot go on, and the weights are of no use."""


class Exchange(Protocol):
    """How the ranks of one update add up what each computed of it."""

    rank: int
    world: int

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum of all ranks' ones, bit for bit the same everywhere; raises ExchangeError."""


class Alone:
    """The exchange of a single rank."""

    rank = 0
    world = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leave everything as it is."""


GAUSSIAN = SquashedGaussian()
ALONE = Alone()


@dataclass(frozen=True)
class Batch:
    """Rows of a rollout as tensors, with what the proximal pass added."""

    vector: Tensor
    """As the network's normaliser gives it."""
    u: Tensor
    proximal: Tensor
    """Log-prob of u under the weights at the start of the update."""
    reference: Tensor
    """Log-prob of u under the policy that the ratio is clipped against: the proximal, or the behaviour policy."""
    importance: Tensor
    """Reference / behaviour density, bounded above."""
    value: Tensor
    """As estimated at the start of the update."""
    advantage: Tensor
    target: Tensor
    policy_weight: Tensor
    value_weight: Tensor
    cloning_weight: Tensor

    def __getitem__(self, rows: slice) -> Batch:
        """Return some of the rows."""
        return Batch(*(each[rows] for each in vars(self).values()))


@dataclass(frozen=True)
class Share:
    """Rows of a minibatch, with the constants of the whole of it."""

    places: Tensor
    """int64[B], on the network's device: where in the rollout they are."""
    rows: Batch
    """B rows; the advantage is standardised over the whole minibatch where that is wanted."""
    sums: Tensor
    """float32[3]: what policy, value and cloning losses are divided by."""

    def pieces(self, limit: int, least: int = 1) -> list[Share]:
        """Cut into the fewest pieces of at most ``limit`` rows, but into ``least`` where there are as many rows."""
        rows = len(self.places)
        count = max(math.ceil(rows / limit), min(least, rows))
        if count == 1:
            return [self]
        cuts = [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]
        return [Share(self.places[cut], self.rows[cut], self.sums) for cut in cuts]


COLUMNS = tuple(each.name for each in fields(Batch) if each.name not in {"vector", "u"})
"""What a batch has one number a row of."""


def ppo_update(  # noqa: PLR0913 - what an update depends on
    network: PolicyNetwork,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    inputs: Inputs,
    settings: PpoSettings,
    *,
    cloning: float,
    generator: torch.Generator,
    distribution: ActionDistribution = GAUSSIAN,
    exchange: Exchange = ALONE,
    reward_scale: float | None = None,
) -> Generator[None, None, Metrics]:
    """Improve a network by one rollout; yields after every chunk and minibatch, so that a caller can stop or pause.

    Args:
        network: is changed in place.
        optimizer: Adam, fused; its learning rate is the caller's business.
        rollout: filled; must not change meanwhile.
        inputs: for the network's device.
        settings: the hyperparameters.
        cloning: weight of the cloning loss on demonstrated decisions.
        generator: draws the minibatches; on the CPU, and equal on all ranks.
        distribution: of actions.
        exchange: adds up what several ranks computed; each calls this with equal arguments.
        reward_scale: factor on every reward; None: that of the settings.

    Returns:
        Means over the minibatches, explained variance, ``epochs`` (fewer than wanted after a KL stop),
        ``minibatches_skipped``, ``minibatches_halved`` (how often the rows at once were halved because they did not fit
        into the device's memory), and ``rolled_back`` (1.0 where weights and optimiser are as before, because three
        minibatches had a loss or gradient that was not finite).

    """
    reward_scale = settings.reward_scale if reward_scale is None else reward_scale
    batch, metrics = yield from _proximal_pass(network, rollout, inputs, settings, distribution, exchange, reward_scale)
    before = copies(network, optimizer)
    descent = _Descent(network, optimizer, inputs, settings, cloning, distribution, exchange, batch)
    totals = descent.totals
    epochs, now = 0, totals.tolist()
    while epochs < settings.epochs:
        order = torch.randperm(rollout.rows, generator=generator).to(totals.device)
        for places in order.tensor_split(max(1, math.ceil(len(order) / settings.minibatch))):
            descent.step(places)
            if descent.waits and totals[LOST] >= MINIBATCHES_LOST:
                break
            yield
        epochs += 1
        last, now = now, totals.tolist()  # the only transfer of an epoch from a GPU
        if now[LOST] >= MINIBATCHES_LOST:
            restore(network, optimizer, before)
            return {**metrics, "minibatches_skipped": now[LOST], "rolled_back": 1.0}
        if 0.0 < settings.kl_stop < (now[KL] - last[KL]) / max(now[STEPS] - last[STEPS], 1.0):
            break
    means = dict(zip(MEANS, (totals[: len(MEANS)] / max(now[STEPS], 1.0)).tolist(), strict=True))
    counts = {
        "optimiser_steps": now[STEPS],
        "minibatches_skipped": now[LOST],
        "minibatches_halved": float(descent.halved),
        "rolled_back": 0.0,
    }
    return {**metrics, **means, **counts, "epochs": float(epochs)}


def _proximal_pass(
    network: PolicyNetwork,
    rollout: Rollout,
    inputs: Inputs,
    settings: PpoSettings,
    distribution: ActionDistribution,
    exchange: Exchange,
    reward_scale: float,
) -> Generator[None, None, tuple[Batch, Metrics]]:
    """Run the network as it is over the rollout in float32: values, advantages, proximal log-probs."""
    vector = network.normalised(inputs.load(rollout, network))
    rows, device = rollout.rows, vector.device
    mean, value = yield from _outputs(network, inputs, vector, exchange)
    mean = mean[:rows]
    # Finals lie behind the storage's capacity; behind the used rows here.
    successor = rollout.successor[:rows].copy()
    successor[successor >= rollout.capacity] += rows - rollout.capacity
    reward = rollout.reward[:rows] * np.float32(reward_scale)
    if settings.normalise_reward:
        reward = np.clip(reward, -REWARD_CLIP, REWARD_CLIP)
    values = value.cpu().numpy()
    advantage = gae(reward, values, successor, gamma=settings.gamma, lam=settings.lambda_)
    target = advantage + values[:rows]
    u, behaviour, weight, value_weight, cloning_weight = (
        torch.from_numpy(column[:rows]).to(device)
        for column in (
            rollout.u,
            rollout.log_prob,
            rollout.policy_weight,
            rollout.value_weight,
            rollout.cloning_weight,
        )
    )
    log_std = network.log_std.detach()
    proximal = distribution.log_prob(u, mean, log_std)
    importance = torch.exp((proximal - behaviour).clamp(max=math.log(settings.importance_limit)))
    is_plain = settings.objective == "plain"
    batch = Batch(
        vector=vector[:rows],
        u=u,
        proximal=proximal,
        reference=behaviour if is_plain else proximal,
        importance=torch.ones_like(importance) if is_plain else importance,
        value=value[:rows],
        advantage=torch.from_numpy(advantage).to(device),
        target=torch.from_numpy(target).to(device),
        policy_weight=weight,
        value_weight=value_weight,
        cloning_weight=cloning_weight,
    )
    metrics = {
        "explained_variance": explained_variance(values[:rows], target),
        "entropy": _mean(distribution.entropy(mean, log_std), weight).item(),
        "importance": _mean(importance, weight).item(),
        "value": float(value[:rows].mean()),
        "reward": float(reward.mean()),
        "policy_share": float(weight.mean()),
    }
    return batch, metrics


@torch.no_grad()
def _forward(network: PolicyNetwork, inputs: Inputs, vector: Tensor, places: npt.NDArray[np.int64]) -> list[Tensor]:
    return list(network.answers(inputs.features(network, places, precise=True), vector[places]))


def _outputs(
    network: PolicyNetwork, inputs: Inputs, vector: Tensor, exchange: Exchange
) -> Generator[None, None, tuple[Tensor, Tensor]]:
    """Return means float32[N, a] and values float32[N] of all used rows, of which each rank computes some chunks."""
    rows = len(vector)
    mean = torch.zeros((rows, network.action_size), device=vector.device)
    value = torch.zeros(rows, device=vector.device)
    chunk = limit = inputs.chunk
    for start in range(exchange.rank * chunk, rows, exchange.world * chunk):
        at, end = start, min(start + chunk, rows)
        while at < end:
            places = np.arange(at, min(at + limit, end))
            try:
                mean[places], value[places] = _forward(network, inputs, vector, places)
            except torch.OutOfMemoryError:
                if len(places) == 1:
                    raise
                limit = math.ceil(len(places) / 2)
                continue
            at += len(places)
        yield
    exchange.sum_([mean, value])
    return mean, value


@dataclass
class _Descent:
    """Takes the optimiser's steps of one update."""

    network: PolicyNetwork
    optimizer: torch.optim.Optimizer
    inputs: Inputs
    settings: PpoSettings
    cloning: float
    distribution: ActionDistribution
    exchange: Exchange
    batch: Batch
    waits: bool = field(init=False)
    """The host looks at each gradient before it goes on, which costs a CPU nothing; a GPU masks the step instead."""
    totals: Tensor = field(init=False)
    """float32[8]: sums of MEANS, then steps taken and minibatches lost."""
    halved: int = 0

    def __post_init__(self) -> None:
        """Put what is gathered for each minibatch into one tensor."""
        device = self.batch.u.device
        self.waits = device.type == "cpu"
        self.totals = torch.zeros(8, device=device)
        self._columns = torch.stack([getattr(self.batch, name) for name in COLUMNS])
        self._taken = torch.tensor((1.0, 0.0), device=device)

    def step(self, places: Tensor) -> None:
        """Take one step on a minibatch, unless its loss or gradient is not finite."""
        parts = self._gradient(self._shared(places))
        scale = self.inputs.loss_scale
        if scale is not None:
            torch._foreach_div_([p.grad for p in self.network.parameters() if p.grad is not None], scale.factor)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm).detach()
        if not self.waits or scale is not None:
            self._step_masked(parts, norm)
        elif math.isfinite(norm.item()) and math.isfinite(parts[LOSS].item()):
            self.optimizer.step()
            self.totals += torch.cat((parts[:LOSS], norm.view(1), self._taken))
        else:
            self.totals[LOST] += 1.0
        _bound_std(self.network)

    def _step_masked(self, parts: Tensor, norm: Tensor) -> None:
        """Decide on the device, without telling the host."""
        is_good = norm.isfinite() & parts[LOSS].isfinite()
        masked_step(self.optimizer, is_good)
        is_lost = ~is_good
        if self.inputs.loss_scale is not None:
            is_lost &= ~(self.inputs.loss_scale.settle(is_good) & parts[LOSS].isfinite())
        row = torch.cat((parts[:LOSS], norm.view(1), self._taken))
        self.totals += torch.where(is_good, row, 0.0)
        self.totals[LOST] += is_lost

    def _shared(self, places: Tensor) -> Share:
        batch = self.batch
        columns = dict(zip(COLUMNS, self._columns.index_select(1, places).unbind(), strict=True))
        weight = columns["policy_weight"]
        if self.settings.normalise_advantage:
            columns["advantage"] = standardised(columns["advantage"], weight)
        weights = (weight, columns["value_weight"], columns["cloning_weight"])
        sums = torch.stack([each.sum() for each in weights]).clamp(min=1.0)
        return Share(places, Batch(batch.vector[places], batch.u[places], **columns), sums)

    def _gradient(self, share: Share) -> Tensor:
        """Compute the minibatch's gradient; return MEANS' first five and the loss."""
        wanted = self.settings.micro_batch or self.inputs.cached_rows or len(share.places)
        pieces = share.pieces(wanted, self.exchange.world)
        while True:
            largest = max(len(piece.places) for piece in pieces)
            limit = min(largest, self.inputs.rows_limit or largest)
            try:
                if self.exchange.world == 1 and limit == len(share.places):
                    return self._backward(share)
                return self._added(pieces, limit)
            except torch.OutOfMemoryError:
                if limit == 1:
                    raise
            self.inputs.rows_limit = math.ceil(limit / 2)
            self.halved += 1

    def _backward(self, share: Share) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self.loss(share)
        scale = self.inputs.loss_scale
        (loss if scale is None else loss * scale.factor).backward()  # type: ignore[no-untyped-call]
        return parts

    def _added(self, pieces: Sequence[Share], limit: int) -> Tensor:
        """Add up the gradients of all pieces, of which each rank computes some.

        In float64: the sum then hardly depends on the order, and so not on which rank computed what.
        """
        parameters = list(self.network.parameters())
        sizes = [each.numel() for each in parameters]
        device = pieces[0].places.device
        total = torch.zeros(sum(sizes) + LOSS + 1, dtype=torch.float64, device=device)
        for piece in pieces[self.exchange.rank :: self.exchange.world]:
            for part in piece.pieces(limit):
                parts = self._backward(part)
                gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
                total += torch.cat([*(each.reshape(-1) for each in gradients), parts])
        self.exchange.sum_([total])
        place = 0
        for parameter, size in zip(parameters, sizes, strict=True):
            gradient = total[place : place + size].view(parameter.shape)
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
            place += size
        return total[place:].float()

    def loss(self, share: Share) -> tuple[Tensor, Tensor]:
        """Return these rows' part of the loss; and of policy, value and cloning loss, KL, clip fraction and loss."""
        rows, settings = share.rows, self.settings
        features = self.inputs.features(self.network, share.places, precise=False)
        mean, value = self.network.answers(features, rows.vector)
        weight, log_std = rows.policy_weight, self.network.log_std
        policy_sum, value_sum, cloning_sum = share.sums
        log_density = self.distribution.log_prob(rows.u, mean, log_std)
        log_ratio = _where_weighted(log_density - rows.reference, weight)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
        surrogate = torch.minimum(ratio * rows.advantage, clipped * rows.advantage) * rows.importance
        policy_loss = -((surrogate * weight).sum() / policy_sum)
        value_loss = (self._value_errors(value, rows) * rows.value_weight).sum() / value_sum
        loss = policy_loss + settings.value * value_loss
        if settings.entropy > 0.0:
            loss = loss - settings.entropy * ((self.distribution.entropy(mean, log_std) * weight).sum() / policy_sum)
        cloning_loss = torch.zeros_like(loss)
        if self.cloning > 0.0:
            cloning_loss = -((log_density * rows.cloning_weight).sum() / cloning_sum)
            loss = loss + self.cloning * cloning_loss
        with torch.no_grad():
            if settings.objective == "plain":
                log_ratio = _where_weighted(log_density - rows.proximal, weight)
            shift = log_ratio.exp() if settings.objective == "plain" else ratio
            kl = (((shift - 1.0) - log_ratio) * weight).sum() / policy_sum
            clip_fraction = (((ratio - 1.0).abs() > settings.clip).float() * weight).sum() / policy_sum
            parts = torch.stack((policy_loss, value_loss, cloning_loss, kl, clip_fraction, loss))
        return loss, parts

    def _value_errors(self, value: Tensor, rows: Batch) -> Tensor:
        limit = self.settings.value_clip
        errors: Tensor = (value - rows.target) ** 2
        if limit == 0.0:
            return errors
        clipped = rows.value + (value - rows.value).clamp(-limit, limit)
        return torch.maximum(errors, (clipped - rows.target) ** 2)


def masked_step(optimizer: torch.optim.Optimizer, is_good: Tensor) -> None:
    """Take a step of fused Adam where ``is_good``, decided on the device: weights and moments stay otherwise."""
    optimizer.found_inf = (~is_good).float()  # type: ignore[attr-defined] # what GradScaler hands to fused optimisers
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def standardised(advantage: Tensor, weight: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 over the weighted rows."""
    centred = advantage - _mean(advantage, weight)
    return centred / (_mean(centred * centred, weight).sqrt() + 1e-8)


def explained_variance(value: FloatArray, target: FloatArray) -> float:
    """Return the share of the targets' variance that the values explain; 0 where they are constant or not finite."""
    if not np.isfinite(target).all():
        return 0.0
    variance = float(np.var(target))
    return 1.0 - float(np.var(target - value)) / variance if variance > 0.0 else 0.0


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def _where_weighted(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """Keep a row that does not count from spoiling the sum with an infinite ratio."""
    return torch.where(weight > 0, log_ratio, torch.zeros_like(log_ratio))


@torch.no_grad()
def _bound_std(network: PolicyNetwork) -> None:
    if isinstance(network.log_std, nn.Parameter):
        network.log_std.clamp_(*LOG_STD_BOUNDS)


def copies(
    network: PolicyNetwork, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Copy weights and the optimiser's tensors."""
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in network.parameters()]
    return weights, moments


def restore(
    network: PolicyNetwork,
    optimizer: torch.optim.Optimizer,
    before: tuple[dict[str, Tensor], list[dict[str, Tensor]]],
) -> None:
    """Take weights and optimiser back to what ``copies`` gave, which must not be used again."""
    network.load_state_dict(before[0])
    for parameter, moments in zip(network.parameters(), before[1], strict=True):
        optimizer.state[parameter] = moments
