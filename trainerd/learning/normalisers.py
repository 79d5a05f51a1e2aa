"""Running statistics that scale what is learned from: of the vector input, and of discounted returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainerd.compiled import njit

if TYPE_CHECKING:
    from collections.abc import Mapping

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

EPSILON = 1e-8
"""Added to a variance before its root is taken."""


class RunningMoments:
    """Mean and variance of every row there was, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self, size: int) -> None:
        """Begin with no rows of ``size`` elements."""
        self.count = 0
        self.mean: DoubleArray = np.zeros(size)
        self.squares: DoubleArray = np.zeros(size)
        """Sum of the squared distances from the mean."""

    def add(self, rows: npt.NDArray[np.floating]) -> None:
        """Take in float[N, size]; a row that is not finite is left out, as it would spoil all later ones."""
        rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        shift = mean - self.mean
        total = self.count + len(rows)
        self.squares = (
            self.squares + np.square(rows - mean).sum(axis=0) + shift * shift * (self.count * len(rows) / total)
        )
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    @property
    def std(self) -> DoubleArray:
        """Standard deviation of each element; 1 before the first row."""
        if self.count == 0:
            return np.ones_like(self.mean)
        std: DoubleArray = np.sqrt(self.squares / self.count + EPSILON)
        return std

    def to_map(self) -> dict[str, Any]:
        """Return plain numbers and lists that give the same statistics bit for bit, also through JSON."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> RunningMoments:
        """Build from what ``to_map`` gave."""
        moments = cls(len(values["mean"]))
        moments.count = int(values["count"])
        moments.mean = np.array(values["mean"], np.float64)
        moments.squares = np.array(values["squares"], np.float64)
        return moments


@njit
def discounted_returns(reward: FloatArray, successor: IntArray, gamma: float) -> DoubleArray:
    """Return for each row the discounted sum of its segment's rewards up to it, float64[T].

    Args:
        reward: float32[T], in the order of arrival; segments interleave.
        successor: int64[T] as in ``gae``: a later row, or a number that is no row where the segment ends.
        gamma: discount of a row.

    The standard deviation of this is what rewards are divided by (Engstrom et al. 2020, "reward scaling"). A segment
    that another rollout began counts from its first row here.

    """
    rows = len(reward)
    returns = np.zeros(rows, np.float64)
    for row in range(rows):
        returns[row] += np.float64(reward[row])
        then = successor[row]
        if row < then < rows:
            returns[then] = gamma * returns[row]
    return returns
