"""The network of the comparison as a peer's user writes it: convolutions on NCHW, heads on what they find.

The names of the weights are those of ``PolicyNetwork`` with the encoder ``rgbd``.
"""

import itertools
from typing import ClassVar

import torch
from torch import nn

FEATURES = 192
HEAD = (128, 64)


def layers(sizes):
    """Return linear layers with a ReLU behind each."""
    return nn.Sequential(*(part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())))


def head(outputs):
    """Return the layers from the features to a policy's mean or to a value."""
    return nn.Sequential(*layers((FEATURES, *HEAD)), nn.Linear(HEAD[-1], outputs))


def convolutions(*sizes):
    """Return convolutions with stride 2, given as (inputs, outputs, kernel), with a ReLU behind each."""
    parts = [(nn.Conv2d(i, o, kernel, stride=2, padding=kernel // 2), nn.ReLU()) for i, o, kernel in sizes]
    return nn.Sequential(*itertools.chain.from_iterable(parts))


class Encoder(nn.Module):
    """float32[B, 4, H, W] to float32[B, 128]: branches of colour and of depth, joined and averaged over the image."""

    def __init__(self):
        super().__init__()
        colour = convolutions((3, 32, 5), (32, 64, 3))
        depth = convolutions((1, 16, 5), (16, 32, 3))
        self.branches = nn.ModuleList([colour, depth])
        self.fusion = convolutions((96, 128, 3), (128, 128, 3))

    def forward(self, image):
        maps = (self.branches[0](image[:, :3]), self.branches[1](image[:, 3:]))
        return self.fusion(torch.cat(maps, dim=1)).mean(dim=(2, 3))


class Trunk(nn.Module):
    """(image, vector float32[B, n]) to float32[B, 192]: what both heads share."""

    PARTS: ClassVar = ("encoder", "proprio")

    def __init__(self, vector_size):
        super().__init__()
        self.encoder = Encoder()
        self.proprio = layers((vector_size, 64, 64))

    def forward(self, image, vector):
        return torch.cat((self.encoder(image), self.proprio(vector)), dim=1)

    def fill(self, weights):
        """Take over the weights of ``PolicyNetwork``."""
        wanted = {n: torch.from_numpy(v) for n, v in weights.items() if n.partition(".")[0] in self.PARTS}
        self.load_state_dict(wanted, strict=True)


@torch.no_grad()
def fill(name, linears, weights):
    """Give a head's linear layers, in order, the weights that ``PolicyNetwork`` has below ``name``."""
    for place, layer in zip(("0", "2", "4"), linears, strict=True):
        layer.weight.copy_(torch.from_numpy(weights[f"{name}.{place}.weight"]))
        layer.bias.copy_(torch.from_numpy(weights[f"{name}.{place}.bias"]))


def linears(module):
    """Return the linear layers of a module in order."""
    return [each for each in module.modules() if isinstance(each, nn.Linear)]
