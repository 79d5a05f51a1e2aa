"""The last word on every action, as pure functions: numbers in, numbers out.

First cut: finite, within limits, fresh, and no forward motion into what the depth camera sees. Priorities are
e-stop > human > policy > nothing.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.step import Intervention

Floats = tuple[float, ...]


@dataclass(frozen=True)
class Limits:
    """What an action may be.

    ``forward`` is the index of the action element that moves the robot forward (-1: none). ``safety_distance_m`` 0
    switches the forward stop off.
    """

    low: Floats
    high: Floats
    safe_action: Floats
    forward: int = 0
    safety_distance_m: float = 0.25
    release_margin_m: float = 0.05
    stale_after_ns: int = 200_000_000


class Verdict(NamedTuple):
    """The action to apply, who decided it (an index into protocol.step.SOURCES), the flags, and the gate's state."""

    action: Floats
    source: int
    interventions: int
    is_stopped: bool


POLICY, HUMAN, SCRIPTED, GATE, FALLBACK = range(5)


def decide(
    limits: Limits,
    *,
    proposal: Floats | None,
    proposal_source: int,
    human: Floats | None,
    e_stop: bool,
    clearance_m: float | None,
    age_ns: int,
    was_stopped: bool,
) -> Verdict:
    """Choose the action of a tick and make it safe.

    ``proposal`` is None when no valid one is there. ``clearance_m`` is the free distance ahead, None without a depth
    camera. ``age_ns`` is the age of the observation. ``was_stopped`` is the gate's state of the tick before.
    """
    if e_stop:
        return Verdict(limits.safe_action, FALLBACK, int(Intervention.E_STOP), is_stopped=True)
    flags = 0 if human is None or _finite(human) else int(Intervention.NON_FINITE)
    if human is not None and _finite(human):
        wanted, source = human, HUMAN
        flags |= Intervention.HUMAN
    elif proposal is not None and _finite(proposal):
        wanted, source = proposal, proposal_source
    else:
        missing = Intervention.MISSED if proposal is None else Intervention.NON_FINITE
        return Verdict(limits.safe_action, FALLBACK, int(missing) | flags, was_stopped)
    if age_ns > limits.stale_after_ns:
        return Verdict(limits.safe_action, FALLBACK, int(flags | Intervention.STALE), was_stopped)
    action = clamp(wanted, limits)
    if action != wanted:
        flags |= Intervention.LIMITED
    action, is_stopped = forward_stop(action, limits, clearance_m, was_stopped=was_stopped)
    if is_stopped and action != clamp(wanted, limits):
        flags |= Intervention.FORWARD_STOP
    if flags & (Intervention.LIMITED | Intervention.FORWARD_STOP) and source == POLICY:
        source = GATE
    return Verdict(action, source, int(flags), is_stopped)


def clamp(action: Floats, limits: Limits) -> Floats:
    """Return the action within the limits of each element."""
    return tuple(min(max(value, low), high) for value, low, high in zip(action, limits.low, limits.high, strict=True))


def forward_stop(
    action: Floats, limits: Limits, clearance_m: float | None, *, was_stopped: bool
) -> tuple[Floats, bool]:
    """Return the action without forward motion when an obstacle is nearer than the safety distance.

    It releases only ``release_margin_m`` farther away, so that noise does not make it chatter. Turning and reversing
    stay allowed.
    """
    if limits.forward < 0 or limits.safety_distance_m <= 0 or clearance_m is None:
        return action, False
    release = limits.safety_distance_m + (limits.release_margin_m if was_stopped else 0.0)
    if clearance_m >= release:
        return action, False
    if action[limits.forward] <= 0:
        return action, True
    stopped = list(action)
    stopped[limits.forward] = 0.0
    return tuple(stopped), True


def _finite(action: Floats) -> bool:
    return all(math.isfinite(value) for value in action)


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
