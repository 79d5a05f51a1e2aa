"""A convolutional encoder for several cameras, and the branches that its one-camera forms are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    # A convolution's gradient needs its input, not its output: in place saves a copy of the largest maps.
    return [nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2), nn.ReLU(inplace=True)]


def colour_branch() -> nn.Sequential:
    """Return conv 3-32 5x5 s2, 32-64 3x3 s2."""
    return nn.Sequential(*_convolution(3, 32, 5), *_convolution(32, 64, 3))


def plane_branch() -> nn.Sequential:
    """Return conv 1-16 5x5 s2, 16-32 3x3 s2, for one plane of depth or brightness."""
    return nn.Sequential(*_convolution(1, 16, 5), *_convolution(16, 32, 3))


class Convolutional(nn.Module):
    """Encode groups of planes in branches of their own, join them, and average over the image.

    float32[B, C, H, W] to float32[B, 128].
    """

    out_features = 128
    channels_last = True
    """A learner on a CPU gathers images in this layout."""

    def __init__(self, branches: list[nn.Sequential], channels: list[int], widths: list[int]) -> None:
        """Join branches that take ``channels`` input planes each and give ``widths`` feature maps each."""
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.channels = channels
        self.fusion = nn.Sequential(*_convolution(sum(widths), 128, 3), *_convolution(128, 128, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch of images."""
        image = image.contiguous(memory_format=torch.channels_last)
        groups = torch.split(image, self.channels, dim=1)
        maps = [branch(group) for branch, group in zip(self.branches, groups, strict=True)]
        fused: Tensor = self.fusion(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0])
        return fused.mean(dim=(2, 3))
