"""Cast one ray per image column, compiled: every surface stands upright on a flat floor.

Pitch and roll shift columns up and down (first order). The camera is lower than every obstacle, so no top is seen.
Compiled code lies in ``__pycache__`` beside this file; without it the first call takes some seconds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Rgb = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.int16]

NEAREST_M, FARTHEST_M = 0.15, 8.0
WALL_HEIGHT_M = 1.0
SQUARES_PER_M = 2.0
NO_HIT = (np.inf, 0.0)
WALL = -1


@njit(cache=True, nogil=True, error_model="numpy")
def paint(
    rgb: Rgb,
    depth: Depth,
    camera: tuple[float, float],
    pose: tuple[float, float, float, float, float],
    half_m: float,
    obstacles: FloatArray,
    seed: np.uint64,
    noise: float,
) -> None:
    """Fill uint8[H, W, 3] and int16[H, W] millimetres along the optical axis.

    Args:
        rgb: the image to fill.
        depth: the depth image to fill.
        camera: focal length in pixels, height above the floor in metres.
        pose: x, y, yaw, roll, pitch of the camera (REP-103 signs: positive pitch looks down).
        half_m: half the side of the room.
        obstacles: as in Arena.
        seed: chooses the pixel noise.
        noise: scale of the noise; 0 gives exact images without dropouts.

    """
    height, width = depth.shape
    focal, eye = camera
    x, y, yaw, roll, pitch = pose
    cos, sin = math.cos(yaw), math.sin(yaw)
    centre = 0.5 * (width - 1)
    spans = _spans(obstacles, x, y, cos, sin, focal, width)
    metres = np.empty(len(obstacles) + 1)
    shades = np.empty(len(obstacles) + 1)
    which = np.empty(len(obstacles) + 1, np.int64)
    bits = (seed ^ np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(31))) | np.uint64(1)
    for u in range(width):
        slope = (centre - u) / focal
        dx, dy = _away_from_zero(cos - slope * sin), _away_from_zero(sin + slope * cos)
        horizon = 0.5 * (height - 1) - focal * pitch + roll * (centre - u)
        count = _hits(obstacles, spans, u, x, y, dx, dy, half_m, metres, shades, which)
        covered = min(max(math.ceil(horizon + focal * eye / metres[0]), 0), height)
        for v in range(covered, height):
            away = focal * eye / (v - horizon)
            level = _chequer(x + away * dx, y + away * dy)
            bits = _pixel(rgb, depth, v, u, level, level, level, away, bits, noise)
        # from near to far: each surface shows above the nearer ones, the sky above them all
        for hit in range(count):
            away, red, green, blue, tall = _surface(obstacles, which[hit], metres[hit], shades[hit])
            top = min(max(math.ceil(horizon - focal * (tall - eye) / away), 0), height)
            for v in range(top, covered):
                bits = _pixel(rgb, depth, v, u, red, green, blue, away, bits, noise)
            covered = min(covered, top)
        for v in range(covered):
            bits = _pixel(rgb, depth, v, u, 190.0, 205.0, 225.0, 1e3, bits, noise)


@njit(cache=True, nogil=True)
def nearest_in_lane_m(depth: Depth, focal: float, half_lane_m: float, farthest_m: float) -> float:
    """Return the nearest reading within a lane around the optical axis, in the tenth of the rows above the horizon."""
    height, width = depth.shape
    centre = 0.5 * (width - 1)
    nearest = int(farthest_m * 1000)
    for v in range(height // 2 - max(1, height // 10), height // 2):
        for u in range(width):
            millimetres = int(depth[v, u])
            if 0 < millimetres < nearest and abs(u - centre) * millimetres <= half_lane_m * 1000 * focal:
                nearest = millimetres
    return nearest * 1e-3


@njit(nogil=True)
def _spans(obstacles: FloatArray, x: float, y: float, cos: float, sin: float, focal: float, width: int) -> IntArray:
    """Return int64[n, 2]: the first and last column that may see each obstacle, by its bounding circle."""
    spans = np.empty((len(obstacles), 2), np.int64)
    centre = 0.5 * (width - 1)
    for k in range(len(obstacles)):
        reach = math.hypot(obstacles[k, 2], obstacles[k, 3]) + obstacles[k, 4]
        ahead = (obstacles[k, 0] - x) * cos + (obstacles[k, 1] - y) * sin
        left = (obstacles[k, 1] - y) * cos - (obstacles[k, 0] - x) * sin
        spans[k, 0], spans[k, 1] = 0, width - 1
        if ahead + reach < 0.01:
            spans[k, 1] = -1
        elif ahead - reach > 0.05:
            most = (left + reach) / (ahead - reach if left + reach > 0 else ahead + reach)
            least = (left - reach) / (ahead - reach if left - reach < 0 else ahead + reach)
            spans[k, 0] = max(0, math.floor(centre - most * focal))
            spans[k, 1] = min(width - 1, math.ceil(centre - least * focal))
    return spans


@njit(nogil=True)
def _hits(  # noqa: PLR0913, PLR0917 - compiled: a ray and the buffers to fill
    obstacles: FloatArray,
    spans: IntArray,
    u: int,
    x: float,
    y: float,
    dx: float,
    dy: float,
    half_m: float,
    metres: FloatArray,
    shades: FloatArray,
    which: IntArray,
) -> int:
    """Fill distance, shade and index of all that a ray meets, nearest first, and return how many; a wall is always."""
    to_x = ((half_m if dx > 0 else -half_m) - x) / dx
    to_y = ((half_m if dy > 0 else -half_m) - y) / dy
    metres[0], which[0] = max(min(to_x, to_y), 0.001), WALL
    shades[0] = 150.0 if to_x < to_y else 190.0
    count = 1
    for k in range(len(obstacles)):
        if u < spans[k, 0] or u > spans[k, 1]:
            continue
        away, shade = _entry(obstacles[k], x - obstacles[k, 0], y - obstacles[k, 1], dx, dy)
        if not 0.001 < away < np.inf:
            continue
        place = count
        while place > 0 and metres[place - 1] > away:
            metres[place], shades[place], which[place] = metres[place - 1], shades[place - 1], which[place - 1]
            place -= 1
        metres[place], shades[place], which[place] = away, shade, k
        count += 1
    return count


@njit(nogil=True)
def _entry(obstacle: FloatArray, x: float, y: float, dx: float, dy: float) -> tuple[float, float]:
    """Return where a ray from (x, y) relative to an obstacle's centre enters it, and how bright that side is."""
    half_x, half_y, radius = obstacle[2], obstacle[3], obstacle[4]
    if radius > 0:
        square = dx * dx + dy * dy
        along = x * dx + y * dy
        root = along * along - square * (x * x + y * y - radius * radius)
        if root < 0:
            return NO_HIT
        away = (-along - math.sqrt(root)) / square
        return away, 0.8 + 0.2 * (x + away * dx) / radius
    ax, bx = (-half_x - x) / dx, (half_x - x) / dx
    ay, by = (-half_y - y) / dy, (half_y - y) / dy
    in_x, in_y = min(ax, bx), min(ay, by)
    if max(in_x, in_y) > min(max(ax, bx), max(ay, by)):
        return NO_HIT
    return max(in_x, in_y), 0.75 if in_x > in_y else 1.0


@njit(nogil=True)
def _surface(obstacles: FloatArray, k: int, metres: float, shade: float) -> tuple[float, float, float, float, float]:
    """Return distance, red, green, blue and height of what was hit."""
    if k == WALL:
        return metres, shade, shade, shade, WALL_HEIGHT_M
    return metres, obstacles[k, 6] * shade, obstacles[k, 7] * shade, obstacles[k, 8] * shade, obstacles[k, 5]


@njit(nogil=True)
def _away_from_zero(x: float) -> float:
    """Return x, or a tiny number where a ray would run exactly along an axis and divide by zero."""
    return x if abs(x) > 1e-9 else 1e-9


@njit(nogil=True)
def _chequer(x: float, y: float) -> float:
    """Return the grey level of the floor."""
    return 110.0 if (math.floor(x * SQUARES_PER_M) + math.floor(y * SQUARES_PER_M)) & 1 else 70.0


@njit(inline="always", nogil=True)
def _pixel(  # noqa: PLR0913, PLR0917 - compiled
    rgb: Rgb,
    depth: Depth,
    v: int,
    u: int,
    red: float,
    green: float,
    blue: float,
    metres: float,
    bits: np.uint64,
    noise: float,
) -> np.uint64:
    """Write one pixel and return the next random bits (xorshift64, Marsaglia 2003).

    Colour noise is +-8, depth noise 1 % of the distance squared (the sum of four bytes), 0.8 % have no depth.
    """
    bits ^= bits << np.uint64(13)
    bits ^= bits >> np.uint64(7)
    bits ^= bits << np.uint64(17)
    low, byte = np.uint64(15), np.uint64(255)
    rgb[v, u, 0] = int(red + noise * (int(bits & low) - 7.5))
    rgb[v, u, 1] = int(green + noise * (int((bits >> np.uint64(4)) & low) - 7.5))
    rgb[v, u, 2] = int(blue + noise * (int((bits >> np.uint64(8)) & low) - 7.5))
    total = int(
        ((bits >> np.uint64(16)) & byte)
        + ((bits >> np.uint64(24)) & byte)
        + ((bits >> np.uint64(32)) & byte)
        + ((bits >> np.uint64(40)) & byte)
    )
    metres += noise * 0.01 * metres * metres * (total - 510.0) / 147.8
    is_lost = noise > 0 and (bits >> np.uint64(56)) < np.uint64(2)
    depth[v, u] = 0 if is_lost or metres < NEAREST_M or metres > FARTHEST_M else int(metres * 1000 + 0.5)
    return bits
