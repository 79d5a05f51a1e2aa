"""Two ranks against one on this machine's processor: the same weights, and how much sooner."""

import time

import numpy as np

from tests.bench.figures import Figure, median
from tests.bench.peers.ours import fill, finish, make_learner
from tests.bench.peers.practice import make_rollout
from tests.bench.peers.rollout import Source
from trainerd.learning.ranks import Plan, Ranks

SMALL, LARGE = (60, 106), (240, 424)
STEPS = {"rows": 400, "minibatch": 16, "epochs": 4}
"""100 optimiser steps."""
LONG, SHORT = {"rows": 64, "minibatch": 32, "epochs": 2}, {"rows": 16, "minibatch": 8, "epochs": 1}
PATIENCE_S = 120.0


def measure(folder, repetitions, *, quick=False):
    """Return the largest difference of a weight after 100 optimiser steps, and the ratio of two updates' wall time.

    The difference is that of the demo's network with a reward that can be learned. Where there is nothing but noise to
    fit, or with the network of the comparison, rounding alone grows by orders of magnitude: one rank whose minibatches
    are cut in two then departs as far from itself as two ranks do from one.
    """
    alone, shared = learners(folder, SMALL, "column", **STEPS)
    updated(*alone)
    updated(*shared)
    ours, theirs = (learner.network.state_dict() for learner, _ in (alone, shared))
    difference = max(float((ours[name] - theirs[name]).abs().max()) for name in ours if ours[name].numel())
    shared[0].close()
    alone, shared = learners(folder, LARGE, "rgbd", **(SHORT if quick else LONG))
    ratios = [updated(*alone) / updated(*shared) for _ in range(repetitions + 1)]
    shared[0].close()
    return [
        Figure("ddp.max_difference", difference, "", 1, difference, difference),
        median("ddp.speedup_2", ratios[1:], "x"),  # the first shares the rollout's memory
    ]


def learners(folder, size, encoder, *, rows, minibatch, epochs):
    """Return two equal learners, each with a rollout: one alone, and one with a second rank that is up."""
    path = folder / "ranks.npz"
    make_rollout(path, rows, size, encoder=encoder)
    source = Source(path)
    teach(source)
    settings = {"encoder": encoder, "rollout": rows, "minibatch": minibatch, "epochs": epochs}
    found = []
    for ranks in (None, Ranks(Plan(("cpu", "cpu"), encoder, {}))):
        learner = make_learner(*size, ranks=ranks, **settings)
        learner.warm_up()
        found.append((learner, fill(learner, source, rows)))
    ranks.wait(PATIENCE_S)
    return found


def teach(source):
    """Reward the action that follows the first element of the vector, in episodes of one decision."""
    wanted, done = np.tanh(source["vector"][:-1, 0]), np.tanh(source["u"][:, 0])
    source.arrays["reward"] = (-((done - wanted) ** 2)).astype(np.float32)
    source.arrays["terminated"][:] = True


def updated(learner, rollout):
    """Update once and return the seconds; where there are ranks, both of them must have taken part."""
    began = time.perf_counter()
    result = finish(learner.update(rollout))
    spent = time.perf_counter() - began
    wanted = 1.0 if learner.ranks is None else len(learner.ranks.plan.devices)
    if result.metrics.get("ranks", 1.0) != wanted or result.metrics["rolled_back"]:
        raise SystemExit(f"bench learner: an update in {wanted:.0f} ranks: {result.metrics}")
    return spent
