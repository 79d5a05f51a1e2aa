"""What every measured process does: warm up, answer for its network, update once, say what that took."""

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.bench.linkbench.clock import say
from tests.bench.peers.rollout import Source

ANSWERS = 4
"""Rows for which a learner's mean and value are compared with ours before its time counts."""


def main(make):
    """Measure ``make(source, told)``, which has ``answers(rows)``, ``update()`` and ``parameters()``.

    Filling a learner's storage is collection and is not timed; everything that turns the filled storage into new
    weights is, advantages included.
    """
    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(told["seed"])
    source = Source(Path(told["rollout"]))
    warm = make(source, {**told, "rows": told["minibatch"], "epochs": 1})
    warm.update()
    del warm
    gc.collect()
    learner = make(source, told)
    mean, value = learner.answers(ANSWERS)
    synchronise(told["device"])
    if told["device"] != "cpu":
        torch.cuda.reset_peak_memory_stats()
    wall, cpu = time.perf_counter(), time.process_time()
    learner.update()
    synchronise(told["device"])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    parameters = learner.parameters()
    say(
        cpu_s=cpu,
        wall_s=wall,
        samples=told["rows"] * told["epochs"],
        peak_rss_mb=peak_rss_mb(),
        vram_gb=0.0 if told["device"] == "cpu" else torch.cuda.max_memory_reserved() / 1e9,
        answers=np.concatenate((mean.ravel(), value.ravel())).tolist(),
        parameters=sum(each.numel() for each in parameters),
        finite=all(bool(each.isfinite().all()) for each in parameters),
        torch=torch.__version__,
    )


def synchronise(device):
    """Wait for a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_rss_mb():
    """Return the largest resident memory of this process, in units of 10^6 bytes.

    ``getrusage`` would count what the process was before it became this program.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
