"""The simulated RGB-D camera: a lens, and images of an arena from a pose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plugins.robots.sim.raycast import nearest_in_lane_m, paint

if TYPE_CHECKING:
    from plugins.robots.sim.arena import Arena

CLEAR_M = 8.0
"""What ``min_forward_dist`` says where nothing is in the way."""
HALF_LANE_M = 0.20
"""Half the width of the lane that must be free ahead: the rover's radius and 3 cm."""


@dataclass(frozen=True)
class Lens:
    """A pinhole camera: image size, focal length in pixels, height above the floor."""

    height: int
    width: int
    focal_px: float
    above_floor_m: float

    @classmethod
    def of(cls, height: int, width: int, horizontal_fov_deg: float, above_floor_m: float) -> Lens:
        """Build from the horizontal field of view."""
        return cls(height, width, width / 2 / math.tan(math.radians(horizontal_fov_deg) / 2), above_floor_m)


def render(
    lens: Lens, pose: tuple[float, float, float, float, float], arena: Arena, seed: int, noise: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16]]:
    """Return new uint8[H, W, 3] and int16[H, W] millimetres along the optical axis (0: no reading).

    Args:
        lens: the camera.
        pose: x, y, yaw, roll, pitch of the camera (REP-103 signs: positive pitch looks down).
        arena: what there is to see.
        seed: chooses the pixel noise; below 2**64.
        noise: scale of the noise; 0 gives exact images without dropouts.

    """
    rgb = np.empty((lens.height, lens.width, 3), np.uint8)
    depth = np.empty((lens.height, lens.width), np.int16)
    camera = (lens.focal_px, lens.above_floor_m)
    paint(rgb, depth, camera, pose, arena.half_m, arena.obstacles, np.uint64(seed), noise)
    return rgb, depth


def forward_clearance_m(depth: npt.NDArray[np.int16], lens: Lens) -> float:
    """Return the nearest valid reading in the lane ahead that the rover needs, 8.0 where there is none.

    The lane is 0.2 m to either side of the optical axis; rows from the horizon to a tenth of the image above it, so
    that no floor is in it.
    """
    return float(nearest_in_lane_m(depth, lens.focal_px, HALF_LANE_M, CLEAR_M))
