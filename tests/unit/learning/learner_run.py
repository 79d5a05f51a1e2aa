"""A run of the learner in a process of its own, for the tests that kill it.

``learner_run.py FOLDER UPDATES [UPDATE:MINIBATCHES]``: learn from made-up rollouts, the same ones in each run, go on
from the newest checkpoint in FOLDER, write one after each update, and kill this process after so many minibatches of
the update that follows UPDATE.
"""

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Toy

from trainerd.learning import checkpoint

RECIPE = {"kl_target": 0.02, "normalise_reward": True, "network": {"normalise_vector": True}}


def main(folder, updates, killed=""):
    torch.set_num_threads(1)
    toy = Toy()
    learner, driver = toy.learner(**RECIPE), toy.learner(**RECIPE)
    newest, _ = checkpoint.latest(Path(folder))
    if newest is not None:
        checkpoint.resume(newest.path, learner)
    at, _, minibatches = killed.partition(":")
    while learner.updates < int(updates):
        steps = learner.update(toy.filled(driver, seed=learner.updates))
        is_last = bool(killed) and learner.updates == int(at)
        for number, _ in enumerate(steps):
            if is_last and number >= int(minibatches):
                os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save(Path(folder), learner)


if __name__ == "__main__":
    main(*sys.argv[1:])
