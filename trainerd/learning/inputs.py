"""Bring rows of a rollout to the network on its device, by the fastest way that the encoder and the device allow."""

from __future__ import annotations

import weakref
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from protocol.transform import LUMA, NEAR_MM
from trainerd.learning.gather import Gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import numpy.typing as npt

    from protocol.transform import InputTransform, Plane
    from trainerd.learning.networks import PolicyNetwork
    from trainerd.learning.rollout import Rollout

    Places = npt.NDArray[np.int64] | Tensor

NO_BFLOAT16 = ("gfx103",)
"""Beginnings of the names of GPUs that have no bfloat16 arithmetic and are slow at imitating it: RDNA 2."""
HALF = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


CHUNK = 256
"""Rows that go through the network at once where no gradient is wanted."""
CACHED_VALUES = 1_700_000
"""Values of images that a CPU computes at once: with more, activations of convolutions leave the cache, which costs a
third of the speed at 240x424, and fill memory."""


@dataclass(frozen=True)
class Way:
    """How the encoder is computed while learning; what a robot runs is float32 in any case."""

    precision: str = "none"
    """A key of HALF."""
    channels_last: bool = False
    """The encoder's weights are laid out as channels last."""
    compiled: str = ""
    """The mode of torch.compile, or empty; ``reduce-overhead`` replays CUDA graphs."""

    @property
    def name(self) -> str:
        """For a table."""
        parts = (
            self.precision.replace("none", "float32"),
            "channels_last" if self.channels_last else "",
            self.compiled,
        )
        return " ".join(part for part in parts if part)


class LossScale:
    """The factor that lifts a loss so that float16 gradients do not vanish (Micikevicius et al. 2018, section 3.2).

    It doubles after 2,000 good steps and halves at an overflow, all on the device.
    """

    LARGEST = 2.0**16
    GROWS_AFTER = 2000

    def __init__(self, device: torch.device) -> None:
        """Begin with the largest factor."""
        self.factor = torch.tensor(self.LARGEST, device=device)
        self._good = torch.tensor(0.0, device=device)

    def settle(self, is_good: Tensor) -> Tensor:
        """Take in whether a step's gradient was finite; return whether an overflow explains that it was not."""
        is_overflow = ~is_good & (self.factor > 1.0)
        good = torch.where(is_good, self._good + 1.0, 0.0)
        has_grown = good >= self.GROWS_AFTER
        factor = torch.where(is_good, torch.where(has_grown, self.factor * 2.0, self.factor), self.factor / 2.0)
        self.factor = factor.clamp(1.0, self.LARGEST)
        self._good = torch.where(has_grown, 0.0, good)
        return is_overflow

    def to_list(self) -> list[float]:
        """Return both numbers."""
        return [float(self.factor), float(self._good)]

    def set(self, values: list[float]) -> None:
        """Go on from what ``to_list`` gave."""
        factor, good = values
        self.factor.fill_(factor)
        self._good.fill_(good)


class Pins:
    """Rollouts' memory that a GPU may read by itself, so that nothing has to be copied for it first."""

    def __init__(self, runtime: Any) -> None:
        """Use a CUDA runtime, as ``torch.cuda.cudart()`` gives it; ROCm's has the same names."""
        self._runtime = runtime
        self._places: set[int] = set()

    def keep(self, store: npt.NDArray[np.generic]) -> None:
        """Pin an array's memory for as long as the array lives; where the driver refuses, it is copied as before."""
        place = store.ctypes.data
        if not store.nbytes or place in self._places:
            return
        if int(self._runtime.cudaHostRegister(place, store.nbytes, 0)):
            # The refusal would else be reported by the next kernel, which has nothing to do with it.
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda").add_(1.0)
            return
        self._places.add(place)
        weakref.finalize(store, self._free, place)

    def _free(self, place: int) -> None:
        """Forget memory before somebody else gets it: what is pinned there would no longer be what lies there."""
        self._places.discard(place)
        self._runtime.cudaHostUnregister(place)


class Inputs:
    """Feed a network from rollouts; ``load`` a rollout first. One thread only."""

    def __init__(self, transform: InputTransform, device: torch.device, autocast: str) -> None:
        """Plan for a device; ``autocast`` is the encoder's precision while learning, a key of HALF."""
        self.device = device
        self.gather = Gather(transform)
        self.rows_limit = 0
        """Most rows that fitted into the device's memory with a gradient, once some did not; else 0."""
        self.cached_rows = 0
        """Rows of the loaded rollout that a CPU's cache has room for, with a gradient or without; 0: never mind."""
        self._transform = transform
        self._rollout: Rollout | None = None
        self._images: dict[str, Tensor] = {}
        self._pins = Pins(cast("Any", torch.cuda).cudart() if device.type == "cuda" else None)
        self._normaliser: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
        """Of the network's pixels, where the CPU applies it while it gathers them."""
        self.use(Way(usable(autocast, architecture(device))))

    @property
    def chunk(self) -> int:
        """Rows of the loaded rollout that go through the network at once where no gradient is wanted."""
        return min(CHUNK, self.cached_rows or CHUNK)

    def use(self, way: Way) -> None:
        """Compute the encoder in this way from now on."""
        self.way = way
        self._half = HALF[way.precision]
        self.loss_scale = LossScale(self.device) if way.precision == "float16" else None
        self._encode: Callable[..., Tensor] = _encode
        if way.compiled:
            self._encode = torch.compile(_encode, mode=way.compiled, dynamic=False)

    def load(self, rollout: Rollout, network: PolicyNetwork) -> Tensor:
        """Prepare a rollout and return the vectors of its used rows, float32[rows + finals, n].

        A GPU gets the raw images once (1.4 kB to 509 kB a row); a CPU reads them where they lie.
        """
        self._rollout = rollout
        if self.device.type != "cpu":
            for key, store in rollout.images.items():
                self._upload(rollout, key, store)
        values = self._transform.channels * self._transform.height * self._transform.width
        is_cut = network.takes_channels_last and self.device.type == "cpu" and values > 0
        self.cached_rows = max(2, CACHED_VALUES // values) if is_cut else 0
        self._normaliser = (
            (network.pixel_mean.numpy().copy(), network.pixel_gain.numpy().copy())
            if (network.patch or network.takes_channels_last) and self.device.type == "cpu"
            else None
        )
        return torch.from_numpy(self.gather.vectors(rollout, rollout.used)).to(self.device)

    def features(self, network: PolicyNetwork, places: Places, *, precise: bool) -> Tensor:
        """Return the encoder's features float32[B, f] of places in the loaded rollout's used rows.

        ``precise`` computes in float32 without TF32, as the robot does; else in the way that was chosen.
        """
        half = None if precise else self._half
        with true_float32() if precise else self._precision(half):
            if not self._transform.planes:
                features = network.encode(torch.empty((len(places), 0, 0, 0), device=self.device))
            elif self.device.type != "cpu":
                chosen = places if isinstance(places, Tensor) else torch.from_numpy(places).to(self.device)
                raw = {key: store.index_select(0, chosen) for key, store in self._images.items()}
                encode = _encode if precise else self._encode
                features = encode(network, self._transform, raw)
            elif self._normaliser is not None:
                features = self._gathered(network, places, self._normaliser, is_half=half == torch.bfloat16)
            else:
                features = network.encode(self._whole(places))
        return features.float()

    def _upload(self, rollout: Rollout, key: str, store: npt.NDArray[np.generic]) -> None:
        """Copy the used rows into memory on the device that is kept from rollout to rollout."""
        used = rollout.rows + rollout.final_rows
        room = self._images.get(key)
        if room is None or len(room) < used:
            self._images.pop(key, None)
            room = self._images[key] = torch.empty(
                (used, *store.shape[1:]), dtype=torch.from_numpy(store[:0]).dtype, device=self.device
            )
        if self.device.type == "cuda":
            self._pins.keep(store)
        finals = slice(rollout.capacity, rollout.capacity + rollout.final_rows)
        room[: rollout.rows].copy_(torch.from_numpy(store[: rollout.rows]), non_blocking=True)
        room[rollout.rows : used].copy_(torch.from_numpy(store[finals]), non_blocking=True)

    def _gathered(
        self, network: PolicyNetwork, places: Places, normaliser: tuple[npt.NDArray[np.float32], ...], *, is_half: bool
    ) -> Tensor:
        """Encode what the gather made of the pixels in one pass: patches, or normalised images with channels last."""
        assert self._rollout is not None  # noqa: S101 - load comes first
        rows = self._rollout.used[np.asarray(places)]
        gather = self.gather.patches if network.patch else self.gather.normalised
        pixels = torch.from_numpy(gather(self._rollout, rows, *normaliser, half=is_half))
        pixels = pixels.view(torch.bfloat16) if is_half else pixels
        if network.patch:
            return network.encode_patches(pixels)
        return cast("Tensor", network.encoder(pixels.permute(0, 3, 1, 2)))

    def _whole(self, places: Places) -> Tensor:
        assert self._rollout is not None  # noqa: S101 - load comes first
        return torch.from_numpy(self.gather.images(self._rollout, self._rollout.used[np.asarray(places)]))

    def _precision(self, dtype: torch.dtype | None) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype) if dtype is not None else nullcontext()


@contextmanager
def true_float32() -> Iterator[None]:
    """Compute without TF32, which NVIDIA's "float32" convolutions use by default: factors of 10 bits instead of 23.

    The flags are the process's: what other threads compute meanwhile on that GPU is without TF32 too.
    """
    holders: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    allowing = [holder for holder in holders if holder.allow_tf32]
    try:
        for holder in allowing:
            holder.allow_tf32 = False
        yield
    finally:
        for holder in allowing:
            holder.allow_tf32 = True


def usable(precision: str, gpu: str) -> str:
    """Return the precision to begin with on a GPU (or a CPU, ``gpu`` empty): never bfloat16 where there is none."""
    if precision == "auto":
        return "none"
    return "float16" if precision == "bfloat16" and gpu.startswith(NO_BFLOAT16) else precision


def architecture(device: torch.device) -> str:
    """Return a GPU's architecture such as ``gfx1030`` (ROCm) or ``sm_90`` (CUDA), empty for a CPU."""
    if device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName)
    return f"sm_{properties.major}{properties.minor}"


def _encode(network: PolicyNetwork, transform: InputTransform, raw: Mapping[str, Tensor]) -> Tensor:
    return network.encode(transform_tensors(transform, raw))


def transform_tensors(transform: InputTransform, images: Mapping[str, Tensor]) -> Tensor:
    """Return float32[B, C, H, W] of raw uint8[B, H, W, 3] and int16[B, H, W], as ``InputTransform.image`` does."""
    return torch.cat([_plane(plane, images[plane.camera]) for plane in transform.planes], dim=1)


def _plane(plane: Plane, raw: Tensor) -> Tensor:
    if plane.kind == "inverse_depth":
        near = (NEAR_MM / raw.float()).clamp(max=1.0)
        return torch.where(raw > 0, near, 0.0).unsqueeze(1)
    colours = (raw.float() / 255.0).permute(0, 3, 1, 2)
    if plane.kind == "rgb":
        return colours
    red, green, blue = LUMA
    return colours[:, :1] * red + colours[:, 1:2] * green + colours[:, 2:] * blue
