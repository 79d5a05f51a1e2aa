"""From new weights to a policy file that ONNX Runtime was seen to run like torch, after the first export."""

import time

import numpy as np

from tests.bench.figures import median
from tests.bench.peers.ours import TASK, make_learner
from trainerd.release.export import Exporter


def measure(height, width, repetitions=10):
    """Return the milliseconds of an export; the weights differ each time, as they do after an update."""
    learner = make_learner(height, width)
    exporter = Exporter(learner.network, robot=learner.robot, task=TASK, transform=learner.transform, run_id="bench")
    exporter.prepare()
    rng = np.random.default_rng(0)
    weights = learner.snapshot()
    spent = []
    for counter in range(repetitions + 1):
        snapshot = {name: noisy(value, rng) for name, value in weights.items()}
        began = time.perf_counter()
        exporter.build(snapshot, counter=counter, parent="", update=counter, decisions=0, log_std=snapshot["log_std"])
        spent.append(1e3 * (time.perf_counter() - began))
    return [median("export.ms", spent[1:], "ms")]


def noisy(value, rng):
    return (value + 1e-3 * rng.standard_normal(value.shape)).astype(np.float32)
