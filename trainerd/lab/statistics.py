"""Statistics of success counts: pure functions."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion; without trials it is [0, 1].

    Raises:
        ValueError: ``successes`` is not between 0 and ``trials``.

    Source: Wilson 1927; Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857), method 3.

    """
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson: {successes} successes of {trials} trials, expected 0 <= successes <= trials")
    if trials == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    scale = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / scale
    half = z / scale * (p * (1 - p) / trials + z * z / (4 * trials * trials)) ** 0.5
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low, high)
