"""Generalised advantage estimation over interleaved segments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainerd.compiled import njit

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

TERMINATED = -1
"""Successor of a row after which the task ended: nothing bootstraps."""


def gae(reward: FloatArray, value: FloatArray, successor: IntArray, *, gamma: float, lam: float) -> FloatArray:
    """Estimate the advantage of every row of a rollout.

    Args:
        reward: float32[T], in the order of arrival; rows of several rovers interleave.
        value: float32[T + F]; behind the T rows come the final observations that segments bootstrap from.
        successor: int64[T]; the row that follows (always a later one), TERMINATED, or the index (T or above) of the
            final observation where a segment was cut off.
        gamma: discount of a row.
        lam: decay of the estimate.

    Returns:
        float32[T], not normalised.

    Raises:
        ValueError: a successor is no later row, or lies beyond the values.

    Source: Schulman et al. 2016, eq. 16, one recursion a segment, in float64.

    """
    is_wrong = (successor != TERMINATED) & ((successor <= np.arange(len(reward))) | (successor >= len(value)))
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise ValueError(f"row {row}: successor {int(successor[row])} is neither later nor one of {len(value)} values")
    return _advantages(reward, value, successor, gamma, gamma * lam)


@njit
def _advantages(reward: FloatArray, value: FloatArray, successor: IntArray, gamma: float, decay: float) -> FloatArray:
    rows = len(reward)
    # Places from T on are never written, so the recursion stops at a final observation.
    advantage = np.zeros(len(value), np.float64)
    for row in range(rows - 1, -1, -1):
        then = successor[row]
        own = np.float64(value[row])
        if then == TERMINATED:
            advantage[row] = np.float64(reward[row]) - own
        else:
            advantage[row] = np.float64(reward[row]) + gamma * np.float64(value[then]) - own + decay * advantage[then]
    return advantage[:rows].astype(np.float32)
