"""The policy network: input normaliser, encoder, vector branch, and the heads of policy and value."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainerd.learning.settings import NetworkSettings

FloatArray = npt.NDArray[np.float32]

STD_FLOOR = 0.05
"""Added to a pixel's standard deviation, so that a pixel that never changed is not blown up."""
VECTOR_CLIP = 10.0
"""Size to which the scaled vector is clipped."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}
ACTOR_LEFT_OUT = ("value.",)
"""Beginnings of the names of weights that only the learner needs."""


def orthogonal(module: nn.Module, gain: float) -> None:
    """Initialise every linear and convolutional layer below ``module`` orthogonally, biases to zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _layers(sizes: Sequence[int], activation: str) -> nn.Sequential:
    kind = ACTIVATIONS[activation]
    return nn.Sequential(*(part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), kind())))


def _head(sizes: Sequence[int], outputs: int, activation: str, gain: float) -> nn.Sequential:
    body = _layers(sizes, activation)
    orthogonal(body, math.sqrt(2.0))
    last = nn.Linear(sizes[-1], outputs)
    orthogonal(last, gain)
    return nn.Sequential(*body, last)


class PolicyNetwork(nn.Module):
    """Map (image float32[B, C, H, W], vector float32[B, n]) to (mean of u float32[B, a], value float32[B]).

    Images and vectors are what ``protocol.transform.InputTransform`` gives. ``pixel_mean`` and ``pixel_gain`` hold the
    learned per-pixel normaliser, ``vector_mean`` and ``vector_gain`` that of the vector: identity until they are
    fitted. ``log_std`` is a parameter, or a buffer: one that a schedule sets, or zeros where actions are choices.
    """

    pixel_mean: Tensor
    pixel_gain: Tensor
    vector_mean: Tensor
    vector_gain: Tensor
    log_std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        image_shape: tuple[int, int, int],
        vector_size: int,
        action_size: int,
        settings: NetworkSettings,
        *,
        has_std: bool = True,
    ) -> None:
        """Build the network around an encoder plugin's module, which has ``out_features``.

        Weights are drawn from torch's global generator: seed it before. ``has_std`` is False for a discrete action
        space, whose exploration has no width.
        """
        super().__init__()
        self.image_shape = image_shape
        self.vector_size = vector_size
        self.action_size = action_size
        self.encoder = encoder
        orthogonal(encoder, math.sqrt(2.0))
        self.proprio = _layers((vector_size, *settings.proprio_hidden), settings.activation)
        orthogonal(self.proprio, math.sqrt(2.0))
        features = cast("int", encoder.out_features) + (settings.proprio_hidden or (vector_size,))[-1]
        self.policy = _head((features, *settings.head_hidden), action_size, settings.activation, 0.01)
        self.value = _head((features, *settings.head_hidden), 1, settings.activation, 1.0)
        self.register_buffer("pixel_mean", torch.zeros(image_shape))
        self.register_buffer("pixel_gain", torch.ones(image_shape))
        self.register_buffer("vector_mean", torch.zeros(vector_size))
        self.register_buffer("vector_gain", torch.ones(vector_size))
        start = torch.full((action_size,), math.log(settings.std_start) if has_std else 0.0)
        if settings.std == "learned" and has_std:
            self.log_std = nn.Parameter(start)
        else:
            self.register_buffer("log_std", start)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of u and the value."""
        return self.heads(self.encode(image), vector)

    def encode(self, image: Tensor) -> Tensor:
        """Return the encoder's features of raw network input, float[B, f]."""
        return cast("Tensor", self.encoder((image - self.pixel_mean) * self.pixel_gain))

    def heads(self, features: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of u and the value from the encoder's features."""
        return self.answers(features, self.normalised(vector))

    def answers(self, features: Tensor, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of u and the value from the encoder's features and what ``normalised`` gave."""
        joined = torch.cat((features, self.proprio(normalised)), dim=1)
        return self.policy(joined), self.value(joined).squeeze(1)

    def normalised(self, vector: Tensor) -> Tensor:
        """Return the vector as the layers see it: scaled by the learned normaliser and clipped, float[B, n]."""
        return ((vector - self.vector_mean) * self.vector_gain).clamp(-VECTOR_CLIP, VECTOR_CLIP)

    @property
    def patch(self) -> int:
        """Side of the square patches that the encoder can take ready-cut, 0 where it takes images only."""
        return int(getattr(self.encoder, "patch", 0))

    @property
    def takes_channels_last(self) -> bool:
        """True where the encoder takes images whose memory has channels last, in half precision too."""
        return bool(getattr(self.encoder, "channels_last", False))

    def encode_patches(self, patches: Tensor) -> Tensor:
        """Return the encoder's features of normalised patches; only where ``patch`` is not 0."""
        forward = cast("Callable[[Tensor], Tensor]", self.encoder.forward_patches)
        return forward(patches)

    @torch.no_grad()
    def fit_normaliser(self, mean: FloatArray, std: FloatArray) -> None:
        """Freeze the per-pixel normaliser to float32[C, H, W] statistics."""
        self.pixel_mean.copy_(torch.from_numpy(mean))
        self.pixel_gain.copy_(torch.from_numpy(np.asarray(1.0 / (std + STD_FLOOR), np.float32)))

    @torch.no_grad()
    def fit_vector(self, mean: FloatArray, std: FloatArray) -> None:
        """Set the vector's normaliser to float32[n] statistics; ``std`` is positive."""
        self.vector_mean.copy_(torch.from_numpy(mean))
        self.vector_gain.copy_(torch.from_numpy(np.asarray(1.0 / std, np.float32)))

    @torch.no_grad()
    def set_std(self, std: float) -> None:
        """Set the standard deviation of u, as a schedule does."""
        self.log_std.fill_(math.log(std))

    def snapshot(self) -> dict[str, FloatArray]:
        """Copy every weight and buffer to float32 arrays on the CPU."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}


class Actor(nn.Module):
    """The part of a network that a robot runs: (image, vector) to the mean of u."""

    def __init__(self, network: PolicyNetwork) -> None:
        """Wrap a network; weights are shared, names keep their places below ``network.``."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        """Return the mean of u, float[B, a]."""
        mean, _ = self.network(image, vector)
        return cast("Tensor", mean)


def deployed_parameters(network: PolicyNetwork) -> int:
    """Count the parameters that travel to a robot: all but the value head's, log_std included."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(ACTOR_LEFT_OUT))
