"""The recipe learns to reach goals in the simulator, without daemons."""

import pytest
import torch

from trainerd.learning.inprocess import CHOICE_SEED, evaluate, make_run, train


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_recipe_reaches_goals_in_unseen_arenas_after_40000_decisions():
    torch.set_num_threads(1)
    run = make_run(seed=3, decisions=300_000, rovers=4, delayed_swap=True)
    train(run, 40_000, lambda decisions, metrics: None)
    assert run.assembler.is_balanced
    assert evaluate(run.learner, 200, CHOICE_SEED) >= 0.35
