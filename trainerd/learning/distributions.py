"""The distributions of actions in torch: the tanh-squashed Gaussian over u (before tanh), and the categorical.

Every log-prob of the Gaussian is log N(u; mean, std): the Jacobian of tanh cancels in every ratio, so it is left out.
The categorical's u is one-hot and its mean holds logits (see protocol.distribution).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from protocol.spec import Element, RobotSpec

FloatArray = npt.NDArray[np.float32]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
CLONED_SHARE = 0.999
"""Share of an action's range at which a demonstrated action is clipped before atanh."""


class ActionDistribution(Protocol):
    """What the learner needs of a distribution; the numpy half serves those who drive in this process.

    Tensors are float[B, a] unless said otherwise; ``log_std`` is float[a] or float[B, a], and means nothing where
    ``has_std`` is False.
    """

    @property
    def kind(self) -> str:
        """As ``Behaviour.kind`` names it."""

    @property
    def has_std(self) -> bool:
        """True where exploration has a width of its own, learned or scheduled."""

    def log_prob(self, u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the log-density of u, float[B]."""

    def entropy(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the entropy of the action, float[B]."""

    def kl(self, mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:
        """Return KL(p || q) over u, float[B]."""

    def log_prob_numpy(self, u: FloatArray, mean: FloatArray, log_std: FloatArray) -> FloatArray:
        """Return ``log_prob`` of float32[..., a]."""

    def sample(self, mean: FloatArray, log_std: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Draw u, float32[a]."""

    def mode(self, mean: FloatArray) -> FloatArray:
        """Return the u of the deterministic policy, float32[a]."""

    def action(self, u: FloatArray, elements: Sequence[Element]) -> FloatArray:
        """Return the action of u in its units, float32[a]."""

    def u_of(self, action: FloatArray, elements: Sequence[Element]) -> FloatArray:
        """Return the u that gives an action, as near as there is one, float32[a]."""


class SquashedGaussian:
    """N(mean, exp(log_std)) over u, squashed by tanh and stretched to each element's range."""

    kind = "squashed_gaussian"
    has_std = True

    def log_prob(self, u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return log N(u), float[B]."""
        return log_prob(u, mean, log_std)

    def entropy(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """Estimate the entropy of tanh(u), float[B]."""
        return entropy(mean, log_std)

    def kl(self, mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:
        """Return KL(p || q), float[B]; tanh changes nothing about it."""
        shift = (mean_p - mean_q) * torch.exp(-log_std_q)
        ratio = torch.exp(2.0 * (log_std_p - log_std_q))
        return (0.5 * (ratio + shift * shift - 1.0) + log_std_q - log_std_p).sum(dim=-1)

    def log_prob_numpy(self, u: FloatArray, mean: FloatArray, log_std: FloatArray) -> FloatArray:
        """Return ``log_prob`` of float32[..., a]."""
        return log_prob_numpy(u, mean, log_std)

    def sample(self, mean: FloatArray, log_std: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Draw u."""
        return np.asarray(mean + np.exp(log_std) * rng.standard_normal(mean.shape, np.float32), np.float32)

    def mode(self, mean: FloatArray) -> FloatArray:
        """Return the mean."""
        return mean

    def action(self, u: FloatArray, elements: Sequence[Element]) -> FloatArray:
        """Return the action in its units."""
        return squash(u, elements)

    def u_of(self, action: FloatArray, elements: Sequence[Element]) -> FloatArray:
        """Return u of an action; one at its limits is taken a little inside."""
        return unsquash(action, elements)


class Categorical:
    """Softmax over logits; u and the action are one-hot."""

    kind = "categorical"
    has_std = False

    def log_prob(self, u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:  # noqa: ARG002 - there is no width
        """Return the log-probability of the choice, float[B]."""
        return (torch.log_softmax(mean, dim=-1) * u).sum(dim=-1)

    def entropy(self, mean: Tensor, log_std: Tensor) -> Tensor:  # noqa: ARG002 - there is no width
        """Return the entropy of the choice, float[B]."""
        logs = torch.log_softmax(mean, dim=-1)
        return -(logs.exp() * logs).sum(dim=-1)

    def kl(self, mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:  # noqa: ARG002
        """Return KL(p || q), float[B]."""
        logs = torch.log_softmax(mean_p, dim=-1)
        return (logs.exp() * (logs - torch.log_softmax(mean_q, dim=-1))).sum(dim=-1)

    def log_prob_numpy(self, u: FloatArray, mean: FloatArray, log_std: FloatArray) -> FloatArray:  # noqa: ARG002
        """Return ``log_prob`` of float32[..., a]."""
        shifted = mean - mean.max(axis=-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return np.asarray((logs * u).sum(axis=-1), np.float32)

    def sample(self, mean: FloatArray, log_std: FloatArray, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002
        """Draw a choice: the largest of the logits with Gumbel noise."""
        return self.mode(np.asarray(mean + rng.gumbel(size=mean.shape), np.float32))

    def mode(self, mean: FloatArray) -> FloatArray:
        """Return the likeliest choice."""
        return np.asarray(np.eye(mean.shape[-1], dtype=np.float32)[np.argmax(mean, axis=-1)], np.float32)

    def action(self, u: FloatArray, elements: Sequence[Element]) -> FloatArray:  # noqa: ARG002 - choices have no range
        """Return the choice itself."""
        return u

    def u_of(self, action: FloatArray, elements: Sequence[Element]) -> FloatArray:  # noqa: ARG002 - no range
        """Return the choice that an action is nearest to."""
        return self.mode(action)


def distribution_of(robot: RobotSpec) -> ActionDistribution:
    """Return the distribution that a robot's action space calls for."""
    return Categorical() if robot.is_discrete else SquashedGaussian()


def log_prob(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(u), float[B], of float[B, a]; ``log_std`` is float[a] or float[B, a]."""
    z = (u - mean) * torch.exp(-log_std)
    return (-0.5 * z * z - log_std - HALF_LOG_2PI).sum(dim=-1)


def log_prob_numpy(u: FloatArray, mean: FloatArray, log_std: FloatArray) -> FloatArray:
    """Return log N(u) as ``log_prob`` does, float32[...] of float32[..., a]."""
    z = (u - mean) * np.exp(-log_std)
    return np.asarray((-0.5 * z * z - log_std - HALF_LOG_2PI).sum(axis=-1), np.float32)


def entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Estimate the entropy of a = tanh(u), float[B]: that of u plus E[log(1 - tanh(u)^2)], by 7 Gauss-Hermite nodes."""
    nodes = torch.as_tensor(_NODES, dtype=mean.dtype, device=mean.device)
    weights = torch.as_tensor(_NODE_WEIGHTS, dtype=mean.dtype, device=mean.device)
    u = mean.unsqueeze(-1) + torch.exp(log_std).unsqueeze(-1) * nodes
    log_slope = 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))
    return (0.5 + HALF_LOG_2PI + log_std + (log_slope * weights).sum(dim=-1)).sum(dim=-1)


def squash(u: FloatArray, action: Sequence[Element]) -> FloatArray:
    """Return the action in its units: centre + half range x tanh(u), float32[..., a]."""
    centre, half = action_scaling(action)
    return np.asarray(centre + half * np.tanh(u), np.float32)


def unsquash(values: FloatArray, action: Sequence[Element]) -> FloatArray:
    """Return u of an action in its units; an action at its limits is taken a little inside."""
    centre, half = action_scaling(action)
    return np.asarray(np.arctanh(np.clip((values - centre) / half, -CLONED_SHARE, CLONED_SHARE)), np.float32)


def action_scaling(action: Sequence[Element]) -> tuple[FloatArray, FloatArray]:
    """Return centre and half range of each action element."""
    low = np.array([e.low for e in action], np.float32)
    high = np.array([e.high for e in action], np.float32)
    return np.asarray((low + high) / 2, np.float32), np.asarray((high - low) / 2, np.float32)
