"""Turn a raw observation into network input: the one transform that trainer and robot share.

It is fixed and versioned; what is learned about the input (per-pixel statistics) belongs to the network's graph.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.spec import Camera, Element, RobotSpec, SpecError, TaskSpec, canonical_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FloatArray = npt.NDArray[np.float32]

VERSION = 1
NEAR_MM = 300
"""Inverse depth is 1 at this distance and nearer."""
CLIP = 10.0
"""Normalised vector elements are clipped to this size."""
KINDS = {"rgb": 3, "gray": 1, "inverse_depth": 1}
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""


def inverse_depth_table() -> FloatArray:
    """Return float32[65536] indexed by int16 millimetres seen as uint16: min(1, 300 / mm), and 0 for no reading."""
    millimetres = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float32)
    table = np.zeros(65536, np.float32)
    valid = millimetres > 0
    table[valid] = np.minimum(1.0, NEAR_MM / millimetres[valid])
    return table


INVERSE_DEPTH = inverse_depth_table()
UNIT_BYTE = (np.arange(256) / np.float32(255)).astype(np.float32)
"""float32[256]: a byte as a fraction of 255."""


@dataclass(frozen=True)
class Plane:
    """Name one group of input channels: a camera's blob key and how it becomes floats (a key of KINDS)."""

    camera: str
    kind: str

    @property
    def channels(self) -> int:
        """Number of channels of the group."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class InputTransform:
    """Map (images, state, task features, action in flight) to (float32[C, H, W], float32[n]).

    Vector elements are (x - centre) / scale, clipped to +-10, zero where masked; a non-finite element raises
    ValueError when it is transformed. Image planes follow each other in the order of ``planes``.
    """

    planes: tuple[Plane, ...]
    height: int
    width: int
    elements: tuple[Element, ...]
    masked: tuple[str, ...] = ()
    version: int = VERSION

    @classmethod
    def of(
        cls, robot: RobotSpec, task: TaskSpec, planes: Sequence[Plane], masked: Sequence[str] = ()
    ) -> InputTransform:
        """Build the transform of a robot and a task for an encoder's planes.

        Raises:
            SpecError: a plane names no camera, the wrong kind of camera, or cameras of different sizes.

        """
        cameras = [_checked_camera(robot, plane) for plane in planes]
        if len({(c.height, c.width) for c in cameras}) > 1:
            raise SpecError(f"input planes: cameras differ in size: {[(c.key, c.height, c.width) for c in cameras]}")
        height, width = (cameras[0].height, cameras[0].width) if cameras else (0, 0)
        in_flight = tuple(
            Element(f"{e.name}_in_flight", e.unit, e.low, e.high, (e.low + e.high) / 2, (e.high - e.low) / 2)
            for e in robot.action
        )
        names = tuple(dict.fromkeys((*task.masked_state, *masked)))
        elements = (*robot.state, *task.features, *in_flight)
        unknown = [name for name in names if name not in {e.name for e in elements}]
        if unknown:
            raise SpecError(f"input transform: masked elements {unknown} are not in the observation")
        return cls(tuple(planes), height, width, elements, names)

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return sum(plane.channels for plane in self.planes)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return len(self.elements)

    @cached_property
    def _scaling(self) -> tuple[FloatArray, FloatArray]:
        centre = np.array([e.centre for e in self.elements], np.float32)
        gain = np.array([0.0 if e.name in self.masked else 1.0 / e.scale for e in self.elements], np.float32)
        return centre, gain

    def image(self, images: Mapping[str, npt.NDArray[np.generic]], out: FloatArray | None = None) -> FloatArray:
        """Return float32[C, H, W]; writes into ``out`` where given; raises ValueError on a wrong shape or dtype."""
        if out is None:
            out = np.empty((self.channels, self.height, self.width), np.float32)
        place = 0
        for plane in self.planes:
            pixels = images[plane.camera]
            self._check(plane, pixels)
            target = out[place : place + plane.channels]
            if plane.kind == "inverse_depth":
                np.take(INVERSE_DEPTH, pixels.view(np.uint16), out=target[0], mode="clip")
            elif plane.kind == "rgb":
                np.take(UNIT_BYTE, pixels.transpose(2, 0, 1), out=target, mode="clip")
            else:
                rgb = UNIT_BYTE[pixels]
                red, green, blue = (np.float32(weight) for weight in LUMA)
                target[0] = rgb[..., 0] * red + rgb[..., 1] * green + rgb[..., 2] * blue
            place += plane.channels
        return out

    def vector(self, state: FloatArray, task: FloatArray, in_flight: FloatArray) -> FloatArray:
        """Return float32[n]; raises ValueError on a wrong length or a non-finite element, naming it."""
        raw = np.concatenate((state, task, in_flight), dtype=np.float32)
        if raw.shape != (self.size,):
            raise ValueError(f"input vector: {raw.size} elements, expected {[e.name for e in self.elements]}")
        if not np.isfinite(raw).all():
            raise ValueError(f"input vector: {self.elements[int(np.argmin(np.isfinite(raw)))].name} is not finite")
        centre, gain = self._scaling
        scaled: FloatArray = np.clip((raw - centre) * gain, -CLIP, CLIP, dtype=np.float32)
        return scaled

    def to_map(self) -> dict[str, Any]:
        """Return plain lists, maps and numbers, as kept in a bundle's manifest."""
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> InputTransform:
        """Build from what ``to_map`` gave; raises SpecError on another version or malformed values."""
        try:
            if values["version"] != VERSION:
                raise SpecError(f"input transform: version {values['version']}, this side has {VERSION}: update it")
            return cls(
                planes=tuple(Plane(str(p["camera"]), str(p["kind"])) for p in values["planes"]),
                height=int(values["height"]),
                width=int(values["width"]),
                elements=tuple(Element(**e) for e in values["elements"]),
                masked=tuple(values["masked"]),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise SpecError(f"input transform: {error!r}") from error

    @property
    def hash(self) -> str:
        """Sha256 (hex) of the canonical form."""
        return canonical_hash(self.to_map())

    def _check(self, plane: Plane, pixels: npt.NDArray[np.generic]) -> None:
        expected: tuple[int, ...] = (self.height, self.width)
        if plane.kind != "inverse_depth":
            expected = (*expected, 3)
        dtype = np.int16 if plane.kind == "inverse_depth" else np.uint8
        if pixels.shape != expected or pixels.dtype != dtype:
            raise ValueError(
                f"{plane.camera}: {pixels.dtype}{list(pixels.shape)}, expected {dtype.__name__}{list(expected)} "
                "(height first)"
            )


def _checked_camera(robot: RobotSpec, plane: Plane) -> Camera:
    if plane.kind not in KINDS:
        raise SpecError(f"input plane {plane.camera}: kind {plane.kind!r} is none of {sorted(KINDS)}")
    camera = robot.camera(plane.camera)
    if (camera.kind == "depth") != (plane.kind == "inverse_depth"):
        raise SpecError(f"input plane {plane.camera}: {plane.kind} cannot be made from a {camera.kind} camera")
    return camera
