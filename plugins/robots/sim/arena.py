"""Draw a room with obstacles, a start and a goal from a seed, and measure the shortest way between them.

An obstacle is an axis-aligned rectangle with rounded corners: a box has radius 0, a cylinder half sizes 0. So one
distance formula, exact for both, serves gaps, clearances and corridors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numba import njit

from protocol.moment import Pose

if TYPE_CHECKING:
    from plugins.robots.sim.settings import SimSettings

FloatArray = npt.NDArray[np.float64]

GAP_M = 0.7
CLEARANCE_M = 0.35
CORRIDOR_M = 0.17
GOAL_NEAREST_M, GOAL_FARTHEST_M = 1.5, 4.0
OBSTACLE_TRIES, PLACE_TRIES = 400, 100
BLOCKED_SHARE = 0.8
CELL_M = 0.05
INFLATION_M = 0.17


@dataclass(frozen=True)
class Arena:
    """A room of side 2 ``half_m`` around the origin.

    ``obstacles`` is float64[n, 9]: x, y, half size along x and y, corner radius, height, all in metres, then red,
    green and blue in 0-255. The goal is in the same frame as the start.
    """

    half_m: float
    obstacles: FloatArray
    start: Pose
    goal: tuple[float, float]

    @property
    def start_distance_m(self) -> float:
        """Straight distance from start to goal."""
        return math.hypot(self.goal[0] - self.start.x_m, self.goal[1] - self.start.y_m)


def draw_arena(seed: int, settings: SimSettings) -> Arena:
    """Return the arena of a seed: equal seeds and settings give equal arenas."""
    rng = np.random.Generator(np.random.PCG64(seed))
    half = settings.arena_m / 2
    while True:
        asked = int(rng.integers(settings.obstacles_least, max(settings.obstacles_most, settings.obstacles_least) + 1))
        obstacles = _place_obstacles(rng, half, asked)
        obstacles = np.hstack((obstacles, rng.uniform(40.0, 230.0, (len(obstacles), 3))))
        ends = _place_ends(rng, half, obstacles)
        if ends is not None:
            start, goal = ends
            pose = Pose(float(start[0]), float(start[1]), float(rng.uniform(-math.pi, math.pi)))
            return Arena(half, obstacles, pose, (float(goal[0]), float(goal[1])))


def clearance(points: FloatArray, obstacles: FloatArray) -> FloatArray:
    """Return the distance float64[p] from each point float64[p, 2] to the nearest obstacle; inf without obstacles."""
    if not len(obstacles):
        return np.full(len(points), np.inf)
    aside = np.maximum(np.abs(points[:, None, :] - obstacles[None, :, :2]) - obstacles[None, :, 2:4], 0.0)
    distances: FloatArray = (np.hypot(aside[..., 0], aside[..., 1]) - obstacles[None, :, 4]).min(axis=1)
    return distances


def is_blocked(start: FloatArray, goal: FloatArray, obstacles: FloatArray) -> bool:
    """Say whether an obstacle reaches into the straight corridor of the rover's width between two points."""
    steps = max(2, int(np.hypot(*(goal - start)) / 0.04))
    line = start + np.linspace(0.0, 1.0, steps)[:, None] * (goal - start)
    return bool((clearance(line, obstacles) < CORRIDOR_M).any())


def shortest_path_m(arena: Arena) -> float:
    """Estimate the shortest way from start to goal that keeps the rover's radius from everything.

    It solves the eikonal equation on a 0.05 m grid and comes out up to 6 % too long on ways around corners.
    """
    cells = round(2 * arena.half_m / CELL_M)
    centres: FloatArray = (np.arange(cells, dtype=np.float64) + 0.5) * CELL_M - arena.half_m
    free = _free(centres, arena.obstacles, arena.half_m - INFLATION_M)
    distance = np.full((cells, cells), np.inf)
    for i, j in _cells_around(arena.goal, arena.half_m, cells):
        distance[i, j] = math.hypot(centres[i] - arena.goal[0], centres[j] - arena.goal[1])
    _sweep(free, distance, CELL_M)
    found = min(
        distance[i, j] + math.hypot(centres[i] - arena.start.x_m, centres[j] - arena.start.y_m)
        for i, j in _cells_around(arena.start, arena.half_m, cells)
    )
    return max(float(found), arena.start_distance_m)


def _place_obstacles(rng: np.random.Generator, half: float, asked: int) -> FloatArray:
    draws = rng.random((OBSTACLE_TRIES, 7)).tolist()
    placed: list[tuple[float, ...]] = []
    for kind, a, b, turn, px, py, tall in draws:
        if len(placed) == asked:
            break
        height = 0.3 + 0.6 * tall
        if kind < 0.6:
            hx, hy, radius = 0.10 + 0.15 * a, 0.20 + 0.40 * b, 0.0
            if turn < 0.5:
                hx, hy = hy, hx
        else:
            hx, hy, radius = 0.0, 0.0, 0.12 + 0.20 * a
        room_x, room_y = half - hx - radius - GAP_M, half - hy - radius - GAP_M
        x, y = (2 * px - 1) * room_x, (2 * py - 1) * room_y
        if all(
            math.hypot(max(abs(x - o[0]) - hx - o[2], 0.0), max(abs(y - o[1]) - hy - o[3], 0.0)) - radius - o[4]
            >= GAP_M
            for o in placed
        ):
            placed.append((x, y, hx, hy, radius, height))
    return np.array(placed, np.float64).reshape(-1, 6)


def _place_ends(rng: np.random.Generator, half: float, obstacles: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Choose start and goal; None where no pair of all the tries is clear."""
    must_be_blocked = rng.random() < BLOCKED_SHARE
    pairs = rng.uniform(-half + CLEARANCE_M, half - CLEARANCE_M, (PLACE_TRIES, 2, 2))
    clear = (clearance(pairs.reshape(-1, 2), obstacles) >= CLEARANCE_M).reshape(PLACE_TRIES, 2).all(axis=1)
    apart = np.hypot(*(pairs[:, 1] - pairs[:, 0]).T)
    usable = pairs[clear & (apart >= GOAL_NEAREST_M) & (apart <= GOAL_FARTHEST_M)]
    for start, goal in usable:
        if not must_be_blocked or is_blocked(start, goal, obstacles):
            return start, goal
    return (usable[-1][0], usable[-1][1]) if len(usable) else None


def _cells_around(point: tuple[float, ...], half: float, cells: int) -> list[tuple[int, int]]:
    i, j = int((point[0] + half) / CELL_M), int((point[1] + half) / CELL_M)
    return [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < cells and 0 <= b < cells]


@njit(cache=True, nogil=True)
def _free(centres: FloatArray, obstacles: FloatArray, room_m: float) -> npt.NDArray[np.bool_]:
    """Return bool[n, n]: cells that keep INFLATION_M from obstacles and lie within ``room_m`` of the middle."""
    cells = len(centres)
    free = np.zeros((cells, cells), np.bool_)
    for i in range(cells):
        for j in range(cells):
            is_free = max(abs(centres[i]), abs(centres[j])) <= room_m
            for k in range(len(obstacles)):
                dx = max(abs(centres[i] - obstacles[k, 0]) - obstacles[k, 2], 0.0)
                dy = max(abs(centres[j] - obstacles[k, 1]) - obstacles[k, 3], 0.0)
                reach = obstacles[k, 4] + INFLATION_M
                is_free = is_free and dx * dx + dy * dy >= reach * reach
            free[i, j] = is_free
    return free


@njit(cache=True, nogil=True)
def _sweep(free: npt.NDArray[np.bool_], distance: FloatArray, cell: float) -> None:
    """Solve |grad d| = 1 by fast sweeping, in place (Zhao 2005, a fast sweeping method for eikonal equations)."""
    rows, columns = distance.shape
    for _ in range(12):
        changed = 0.0
        for sweep in range(4):
            for a in range(rows):
                i = a if sweep < 2 else rows - 1 - a
                for b in range(columns):
                    j = b if sweep % 2 == 0 else columns - 1 - b
                    if free[i, j]:
                        arrival = _arrival(distance, i, j, cell)
                        if arrival < distance[i, j] - 1e-9:
                            changed = max(changed, distance[i, j] - arrival)
                            distance[i, j] = arrival
        if changed < 1e-3:
            return


@njit(nogil=True)
def _arrival(distance: FloatArray, i: int, j: int, cell: float) -> float:
    """Return the distance of a cell as its nearest neighbours along both axes say it (inf where they know none)."""
    rows, columns = distance.shape
    p = min(distance[i - 1, j] if i > 0 else np.inf, distance[i + 1, j] if i < rows - 1 else np.inf)
    q = min(distance[i, j - 1] if j > 0 else np.inf, distance[i, j + 1] if j < columns - 1 else np.inf)
    near, far = min(p, q), max(p, q)
    if far - near < cell:
        return 0.5 * (near + far + math.sqrt(2.0 * cell * cell - (far - near) ** 2))
    return near + cell
