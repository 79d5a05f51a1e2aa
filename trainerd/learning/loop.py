"""Drive and learn in turns, in one process and one thread: what the in-process runners share.

The records are the same ``Step`` and ``EpisodeEnd`` that come over the link, and the assembler and the learner are the
daemon's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainerd.learning.assembler import Assembler
from trainerd.learning.drive import FrozenPolicy, Rover, explore
from trainerd.learning.learner import Learner
from trainerd.learning.rollout import Rollouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainerd.learning.rollout import Rollout


@dataclass
class Run:
    """Everything of one run."""

    learner: Learner
    rollouts: Rollouts
    assembler: Assembler
    rovers: list[Rover]
    newest: FrozenPolicy
    policies: list[FrozenPolicy]
    rng: np.random.Generator
    delayed_swap: bool


def advance(run: Run) -> Iterator[dict[str, float]]:
    """Take one decision of every rover and learn from what filled; gives the metrics of each update.

    With ``delayed_swap`` a rover takes a new policy only between two episodes, as a real one does.
    """
    for index, rover in enumerate(run.rovers):
        if rover.is_fresh or not run.delayed_swap:
            run.policies[index] = run.newest
    for records in explore(run.rovers, run.policies, run.rng):
        for record in records:
            if not run.assembler.add(record):
                raise RuntimeError("in-process run: a rollout was not given back")
            filled = run.assembler.take_filled()
            if filled is not None:
                yield learn(run, filled)


def learn(run: Run, rollout: Rollout) -> dict[str, float]:
    """Run one update to its end."""
    returns = [episode.return_ for episode in rollout.episodes]
    steps = run.learner.update(rollout)
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        result = stop.value
    run.rollouts.release(rollout)
    run.assembler.settle(result.steps, result.fate)
    run.assembler.policy_counter = result.policy_counter
    run.newest = FrozenPolicy.of(run.learner)
    figures = {**result.metrics, "update": result.update, "decisions": result.decisions, "successes": result.successes}
    return {**figures, "episodes": len(returns), "return": sum(returns) / len(returns) if returns else float("nan")}


def train(run: Run, decisions: int, report: Callable[[int, dict[str, float]], None]) -> None:
    """Drive and learn until so many decisions came to the learner; ``report`` hears of every update."""
    while run.learner.decisions < decisions:
        for metrics in advance(run):
            report(run.learner.decisions, metrics)
