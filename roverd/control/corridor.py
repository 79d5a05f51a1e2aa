"""What control reads from a depth image itself: the free distance ahead, and whether the camera repeats itself."""

from __future__ import annotations

import itertools
import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


class Corridor:
    """Measure the free distance ahead in a depth image: the nearest thing in the robot's own path.

    A pixel counts when, at its depth, it lies within the robot's half width and between the floor and the robot's
    height. Not the single nearest pixel but a small rank of them decides, so that one false return stops nothing.
    """

    RANK = 3
    MIN_VALID = 0.5
    """Where fewer of the pixels about the horizon have a reading, something is nearer than the camera can see."""
    SECTORS = 3
    FAR_M = 8.0

    def __init__(
        self,
        height: int,
        width: int,
        horizontal_fov_deg: float,
        *,
        camera_height_m: float,
        half_width_m: float,
        floor_margin_m: float = 0.06,
        robot_height_m: float = 0.4,
    ) -> None:
        """Precompute the rays of every n-th pixel of an image of this size."""
        self._stride = max(1, width // 106)
        focal = width / 2 / math.tan(math.radians(horizontal_fov_deg) / 2)
        rows = np.arange(0, height, self._stride)
        columns = np.arange(0, width, self._stride)
        rows = rows[(rows - (height - 1) / 2) > -0.35 * height]
        self._first_row = int(rows[0])
        right = (columns - (width - 1) / 2) / focal
        down = (rows - (height - 1) / 2) / focal
        with np.errstate(divide="ignore"):
            reach = np.where(right == 0, np.inf, half_width_m / np.abs(right))
            floor = np.where(down > 0, (camera_height_m - floor_margin_m) / np.maximum(down, 1e-9), np.inf)
            roof = np.where(down < 0, (robot_height_m - camera_height_m) / np.maximum(-down, 1e-9), np.inf)
        depth_limit = np.minimum(reach[None, :], np.minimum(floor, roof)[:, None])
        self._limit_mm = np.minimum(depth_limit * 1000, 32767).astype(np.int16)
        about_horizon = np.flatnonzero(np.abs(rows - (height - 1) / 2) < 0.1 * height)
        horizon = slice(int(about_horizon[0]), int(about_horizon[-1]) + 1)
        edges = [len(columns) * i // self.SECTORS for i in range(self.SECTORS + 1)]
        self._sectors = [(horizon, slice(low, high)) for low, high in itertools.pairwise(edges)]

    def clearance_m(self, depth: npt.NDArray[np.int16]) -> float:
        """Return the free distance in metres, 8.0 when nothing is in the way, 0.0 when too little can be seen.

        depth: int16[H, W] millimetres, 0 or negative for no reading.
        """
        seen = depth[self._first_row :: self._stride, :: self._stride]
        valid = seen > 0
        for sector in self._sectors:
            pixels = valid[sector]
            if np.count_nonzero(pixels) < self.MIN_VALID * pixels.size:
                return 0.0
        near = seen[valid & (seen < self._limit_mm)]
        if near.size <= self.RANK:
            return self.FAR_M
        return float(np.partition(near, self.RANK)[self.RANK]) * 1e-3


class FrameWatch:
    """Notice a camera that gives the same picture again and again, though with new stamps.

    Every real depth image differs from the one before by its noise. Images without any reading do not count: something
    covers the lens, the clearance is 0 then, and the robot must be able to back away from it. A simulated camera
    without noise would count as frozen while the robot stands; for it the watch is to be switched off.
    """

    def __init__(self, frozen_after_ns: int) -> None:
        """Begin with no picture; 0 switches the watch off."""
        self.is_frozen = False
        self._frozen_after_ns = frozen_after_ns
        self._checksum = -1
        self._since_ns = 0

    def see(self, image: npt.NDArray[Any], stamp_ns: int) -> bool:
        """Take a new image with the stamp of its capture; return, and keep, whether the camera is frozen.

        image: [H, W] or [H, W, channels], 0 or negative for no reading; one pixel in sixteen is compared at 424x240,
        which takes less than 0.01 ms.
        """
        stride = max(1, image.shape[1] // 106)
        seen = np.ascontiguousarray(image[::stride, ::stride])
        checksum = zlib.crc32(seen.data)
        is_same = checksum == self._checksum and stamp_ns >= self._since_ns and bool(seen.max() > 0)
        if not is_same:
            self._checksum, self._since_ns = checksum, stamp_ns
        self.is_frozen = self._frozen_after_ns > 0 and stamp_ns - self._since_ns > self._frozen_after_ns
        return self.is_frozen
