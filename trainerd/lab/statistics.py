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


def newcombe(successes_a: int, trials_a: int, successes_b: int, trials_b: int, confidence: float = 0.95) -> Interval:
    """Return the interval of the difference of two proportions, a minus b.

    Source: Newcombe 1998 (Statistics in Medicine 17:873-890), method 10.

    """
    if not (trials_a and trials_b):
        return Interval(-1.0, 1.0)
    p_a, p_b = successes_a / trials_a, successes_b / trials_b
    a, b = wilson(successes_a, trials_a, confidence), wilson(successes_b, trials_b, confidence)
    low = p_a - p_b - ((p_a - a.low) ** 2 + (b.high - p_b) ** 2) ** 0.5
    high = p_a - p_b + ((a.high - p_a) ** 2 + (p_b - b.low) ** 2) ** 0.5
    return Interval(low, high)
