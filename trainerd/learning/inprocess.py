"""Learn in one process and one thread, without daemons: the check that the recipe itself learns.

The records are the same ``Step`` and ``EpisodeEnd`` that come over the link, and the assembler and the learner are the
daemon's. ``python -m trainerd.learning.inprocess --decisions 300000 --seed 0``
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plugins.encoders.cameras import CameraSettings, rgbd_planes
from plugins.encoders.column import build_column
from plugins.rewards.collision import collision
from plugins.rewards.progress import progress
from plugins.rewards.success import success
from plugins.rewards.tick_cost import tick_cost
from plugins.robots.sim.robot import SimRobot
from plugins.robots.sim.settings import SimSettings
from plugins.tasks.goal import GoalSettings, GoalTask
from protocol.transform import InputTransform
from trainerd.learning.assembler import Assembler
from trainerd.learning.drive import FrozenPolicy, Rover, success_rate
from trainerd.learning.learner import Learner
from trainerd.learning.loop import Run, train
from trainerd.learning.rollout import Rollouts
from trainerd.learning.settings import DEMO, NetworkSettings, PpoSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT_SEED = 1_000_000
"""First arena seed of reported figures; training stays below."""
CHOICE_SEED = 2_000_000
"""First arena seed of anything that a choice is made by."""
SEEDS_A_ROVER = 20_000
REWARDS = {
    "progress": (progress, 0.2),
    "success": (success, 1.0),
    "collision": (collision, -0.8),
    "tick_cost": (tick_cost, -0.002),
}
"""1 a metre, 5 success, -4 collision, -0.01 a tick, all times 0.2."""


def make_rover(name: str, arena_seeds: Iterator[int]) -> Rover:
    """Make a simulated rover with the goal task."""
    robot = SimRobot(SimSettings())
    return Rover(name, robot, GoalTask(GoalSettings(), robot.spec, 0), REWARDS, arena_seeds)


def make_run(*, seed: int, decisions: int, rovers: int = 1, delayed_swap: bool = False, **ppo: Any) -> Run:
    """Make a run of the demo's recipe; ``ppo`` overrides its hyperparameters."""
    first = (seed * rovers) * SEEDS_A_ROVER
    lanes = [make_rover(f"rover-{i}", itertools.count(first + i * SEEDS_A_ROVER)) for i in range(rovers)]
    robot, task = lanes[0].robot.spec, lanes[0].task.spec
    settings = PpoSettings(**{**DEMO["ppo"], **ppo})
    transform = InputTransform.of(robot, task, rgbd_planes(robot, CameraSettings()))
    learner = Learner(
        robot,
        task,
        transform,
        lambda shape: build_column(shape, CameraSettings()),
        network=NetworkSettings(**DEMO["network"]),
        ppo=settings,
        seed=seed,
        budget_decisions=decisions,
    )
    pool = Rollouts(robot, task, transform, settings.rollout)
    assembler = Assembler(pool, staleness_limit=settings.staleness_limit)
    newest = FrozenPolicy.of(learner)
    return Run(learner, pool, assembler, lanes, newest, [newest] * rovers, np.random.default_rng(seed), delayed_swap)


def evaluate(learner: Learner, episodes: int, first_seed: int) -> float:
    """Return the success rate of the present deterministic policy in arenas from ``first_seed`` on."""
    seeds = itertools.count(first_seed)
    rovers = [make_rover("evaluation", seeds) for _ in range(min(16, episodes))]
    return success_rate(FrozenPolicy.of(learner), rovers, episodes)


def main(arguments: list[str] | None = None) -> int:
    """Run the check and print its curve; the last line is the success over unseen arenas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=300_000)
    parser.add_argument("--stop", type=int, default=0, help="stop after so many decisions of the schedules' budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rovers", type=int, default=1)
    parser.add_argument("--delayed-swap", action="store_true", help="swap policies only between episodes")
    parser.add_argument("--every", type=int, default=30_000, help="decisions between evaluations")
    parser.add_argument("--episodes", type=int, default=400, help="unseen arenas of the final figure")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="a PPO hyperparameter")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    changed = {name: json.loads(value) for name, _, value in (text.partition("=") for text in options.set)}
    run = make_run(
        seed=options.seed,
        decisions=options.decisions,
        rovers=options.rovers,
        delayed_swap=options.delayed_swap,
        **changed,
    )
    curve: list[dict[str, float]] = []
    began, spent_on_evaluation = time.perf_counter(), 0.0

    def report(decisions: int, metrics: dict[str, float]) -> None:
        nonlocal spent_on_evaluation
        if decisions // options.every == (decisions - run.rollouts.capacity) // options.every:
            return
        pause = time.perf_counter()
        rate = evaluate(run.learner, 100, CHOICE_SEED)
        spent_on_evaluation += time.perf_counter() - pause
        curve.append({**metrics, "seconds": time.perf_counter() - began - spent_on_evaluation, "success": rate})
        shown = ("seconds", "success", "approx_kl", "lr", "std", "explained_variance", "clip_fraction", "importance")
        print(decisions, *(f"{key}={curve[-1].get(key, 0.0):.3g}" for key in shown), flush=True)

    train(run, options.stop or options.decisions, report)
    seconds = time.perf_counter() - began - spent_on_evaluation
    final = evaluate(run.learner, options.episodes, REPORT_SEED)
    print(f"success={final:.4f} episodes={options.episodes} decisions={run.learner.decisions} seconds={seconds:.1f}")
    if options.json is not None:
        result = {"seed": options.seed, "success": final, "seconds": seconds, "curve": curve}
        options.json.write_text(json.dumps({**result, "counters": run.assembler.counters}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
