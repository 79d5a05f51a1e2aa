"""The column encoder: one feature vector a column of the image, cheap enough to learn on one CPU core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 4
WIDTH = 16


class TiedMaximum(torch.autograd.Function):
    """Maximum over the rows of float[B, rows, columns, features] whose gradient goes to all ties undivided.

    ``max_pool2d`` copies on NHWC, and ``amax`` divides the gradient among ties.
    """

    @staticmethod
    def forward(context: Any, maps: Tensor) -> Tensor:
        """Return float[B, columns, features]."""
        maximum: Tensor = maps.amax(dim=1)
        context.save_for_backward(maps, maximum)
        return maximum

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Send each maximum's gradient to every row that reached it."""
        maps, maximum = context.saved_tensors
        is_largest: Tensor = maps == maximum.unsqueeze(1)
        return is_largest.to(gradients[0].dtype).mul_(gradients[0].unsqueeze(1))


class Column(nn.Module):
    """Encode patches of 4x4 pixels, then take each column's strongest features.

    conv 4x4 stride 4 to 16, ReLU, conv 1x1 to 16, maximum over image height, ReLU, linear to 64, ReLU.
    float32[B, C, H, W] to float32[B, 64]. ``forward_patches`` does the same from cut patches, as one matrix product;
    a learner on a CPU uses it, the exported graph has the convolutions.
    """

    out_features = 64
    patch = PATCH

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """Take images of ``shape`` (channels, height, width); rows and columns that fill no patch are cut."""
        super().__init__()
        channels, height, width = shape
        self.rows, self.columns = height // PATCH, width // PATCH
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, stride=PATCH)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.out = nn.Linear(WIDTH * self.columns, self.out_features)

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch of images."""
        maps = self.mix(functional.relu(self.patches(image)))
        if maps.requires_grad:
            strongest = TiedMaximum.apply(maps.permute(0, 2, 3, 1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        else:
            strongest = maps.amax(dim=2)
        return functional.relu(self.out(functional.relu(strongest).flatten(1)))

    def forward_patches(self, patches: Tensor) -> Tensor:
        """Encode float[B, rows, columns, C * 4 * 4] (see ``trainerd.learning.gather``)."""
        first = functional.relu(functional.linear(patches, self.patches.weight.flatten(1), self.patches.bias))
        maps = functional.linear(first, self.mix.weight.flatten(1), self.mix.bias)
        strongest: Tensor = TiedMaximum.apply(maps)  # type: ignore[no-untyped-call]
        return functional.relu(self.out(functional.relu(strongest).transpose(1, 2).flatten(1)))
