"""Generalised advantage estimation of a mixed rollout: how long ours takes, and how far it is from the definition."""

import time

import numpy as np

from tests.bench.figures import Figure, median
from trainerd.learning.gae import TERMINATED, gae

ENDS = 0.01
"""Share of rows after which an episode terminates, and as many after which it is truncated."""


def mixed(rows, robots, seed):
    """Return (reward, value, successor) of robots whose rows interleave, with each kind of a segment's end."""
    rng = np.random.default_rng(seed)
    successor = np.full(rows, TERMINATED, np.int64)
    finals, last = 0, {}
    for row in range(rows):
        robot, drawn = int(rng.integers(robots)), rng.random()
        if robot in last:
            successor[last.pop(robot)] = row
        if drawn < ENDS:
            continue
        if drawn < 2 * ENDS:
            successor[row] = rows + finals
            finals += 1
        else:
            last[robot] = row
    for row in last.values():
        successor[row] = rows + finals
        finals += 1
    reward = rng.standard_normal(rows).astype(np.float32)
    return reward, rng.standard_normal(rows + finals).astype(np.float32), successor


def reference(reward, value, successor, gamma, lam):
    """Return float64[T] by the definition: the sum of (gamma lambda)^k delta over the rest of each row's segment.

    Source: Schulman et al. 2016, eq. 16, without its recursion.
    """
    reward, value = reward.astype(np.float64), value.astype(np.float64)
    bootstrap = np.where(successor == TERMINATED, 0.0, value[successor])
    delta = reward + gamma * bootstrap - value[: len(reward)]
    result = np.zeros(len(reward))
    for row in range(len(reward)):
        weight, at = 1.0, row
        while at != TERMINATED and at < len(reward):
            result[row] += weight * delta[at]
            weight, at = weight * gamma * lam, successor[at]
    return result


def measure(rows=8192, robots=3, repetitions=51, seed=0):
    """Return the figures: milliseconds of one call after the first, and the largest difference to the reference."""
    reward, value, successor = mixed(rows, robots, seed)
    gamma, lam = 0.99, 0.95
    spent = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        found = gae(reward, value, successor, gamma=gamma, lam=lam)
        spent.append(1e3 * (time.perf_counter() - began))
    error = float(np.abs(found - reference(reward, value, successor, gamma, lam)).max())
    return [median("gae.ms", spent[1:], "ms"), Figure("gae.max_error", error, "", 1, error, error)]
