"""The tanh-squashed Gaussian over u (before tanh), in numpy and in torch.

Every log-prob here is log N(u; mean, std): the Jacobian of tanh cancels in every ratio, so it is left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from protocol.spec import Element

FloatArray = npt.NDArray[np.float32]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
CLONED_SHARE = 0.999
"""Share of an action's range at which a demonstrated action is clipped before atanh."""


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
