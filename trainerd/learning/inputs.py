"""Bring rows of a rollout to the network on its device, by the fastest way that the encoder and the device allow."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocol.transform import INVERSE_DEPTH, LUMA
from trainerd.learning.gather import Gather

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from protocol.transform import InputTransform, Plane
    from trainerd.learning.networks import PolicyNetwork
    from trainerd.learning.rollout import Rollout

    IntArray = npt.NDArray[np.int64]

AUTOCAST = {"none": None, "bfloat16": torch.bfloat16}


class Inputs:
    """Feed a network from rollouts; ``load`` a rollout first. One thread only."""

    def __init__(self, transform: InputTransform, device: torch.device, autocast: str) -> None:
        """Plan for a device; ``autocast`` is the encoder's precision while learning."""
        self.device = device
        self._transform = transform
        self.gather = Gather(transform)
        self._autocast = AUTOCAST[autocast]
        self._rollout: Rollout | None = None
        self._images: dict[str, Tensor] = {}
        self._patches: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None

    def load(self, rollout: Rollout, network: PolicyNetwork) -> Tensor:
        """Prepare a rollout and return the vectors of its used rows, float32[rows + finals, n].

        A GPU gets the raw images once (1.4 kB to 509 kB a row); a CPU reads them where they lie.
        """
        self._rollout = rollout
        if self.device.type != "cpu":
            self._images = {key: self._uploaded(rollout, store) for key, store in rollout.images.items()}
        self._patches = (
            (network.pixel_mean.numpy().copy(), network.pixel_gain.numpy().copy())
            if network.patch and self.device.type == "cpu"
            else None
        )
        return torch.from_numpy(self.gather.vectors(rollout, rollout.used)).to(self.device)

    def features(self, network: PolicyNetwork, places: IntArray, *, precise: bool) -> Tensor:
        """Return the encoder's features float32[B, f] of places in the loaded rollout's used rows.

        ``precise`` computes in float32, as the robot does; else in the precision of ``autocast``.
        """
        half = None if precise else self._autocast
        with self._precision(half):
            if self._patches is not None:
                features = network.encode_patches(self._cut(places, self._patches, half=half == torch.bfloat16))
            else:
                features = network.encode(self._whole(places))
        return features.float()

    def _uploaded(self, rollout: Rollout, store: npt.NDArray[np.generic]) -> Tensor:
        finals = store[rollout.capacity : rollout.capacity + rollout.final_rows]
        return torch.cat([torch.from_numpy(part).to(self.device) for part in (store[: rollout.rows], finals)])

    def _cut(self, places: IntArray, normaliser: tuple[npt.NDArray[np.float32], ...], *, half: bool) -> Tensor:
        assert self._rollout is not None  # noqa: S101 - load comes first
        rows = self._rollout.used[places]
        patches = torch.from_numpy(self.gather.patches(self._rollout, rows, *normaliser, half=half))
        return patches.view(torch.bfloat16) if half else patches

    def _whole(self, places: IntArray) -> Tensor:
        assert self._rollout is not None  # noqa: S101 - load comes first
        if self.device.type == "cpu":
            return torch.from_numpy(self.gather.images(self._rollout, self._rollout.used[places]))
        chosen = torch.from_numpy(places).to(self.device)
        return transform_tensors(self._transform, {key: store[chosen] for key, store in self._images.items()})

    def _precision(self, dtype: torch.dtype | None) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype) if dtype is not None else nullcontext()


def transform_tensors(transform: InputTransform, images: Mapping[str, Tensor]) -> Tensor:
    """Return float32[B, C, H, W] of raw uint8[B, H, W, 3] and int16[B, H, W], as ``InputTransform.image`` does."""
    if not transform.planes:
        first = next(iter(images.values()), None)
        return torch.zeros((0 if first is None else len(first), 0, 0, 0))
    return torch.cat([_plane(plane, images[plane.camera]) for plane in transform.planes], dim=1)


def _plane(plane: Plane, raw: Tensor) -> Tensor:
    if plane.kind == "inverse_depth":
        table = torch.from_numpy(INVERSE_DEPTH).to(raw.device)
        return table[raw.long() & 0xFFFF].unsqueeze(1)
    colours = (raw.float() / 255.0).permute(0, 3, 1, 2)
    if plane.kind == "rgb":
        return colours
    weights = torch.tensor(LUMA, device=raw.device).view(1, 3, 1, 1)
    return (colours * weights).sum(dim=1, keepdim=True)
