"""Learn an environment of Gymnasium in one process and one thread: for long benchmarks.

Environments run in lock-step, so that the network answers all of them at once. Records, assembler and learner are the
daemon's. ``python -m trainerd.learning.gymrun --env HalfCheetah-v5 --seed 0 --steps 1000000 --json FILE``
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plugins.encoders.blind import build_blind
from plugins.encoders.cameras import CameraSettings
from plugins.rewards.environment import environment as environment_reward
from plugins.robots.gym import GymRobot, GymSettings
from plugins.tasks.environment import EnvironmentTask
from protocol.errors import RoverError
from protocol.node.config import ConfigError, validate_table
from protocol.step import EpisodeEnd
from protocol.transform import InputTransform
from trainerd.learning.assembler import Assembler
from trainerd.learning.distributions import distribution_of
from trainerd.learning.drive import FrozenPolicy, Rover
from trainerd.learning.learner import Learner
from trainerd.learning.loop import Run, train
from trainerd.learning.recipes import RECIPES, tables_of
from trainerd.learning.rollout import Rollouts
from trainerd.learning.settings import NetworkSettings, PpoSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ENVIRONMENTS = 8
SEEDS_AN_ENVIRONMENT = 20_000
REPORT_SEED = 1 << 60
"""First arena seed of reported figures; training stays below."""
RECENT_EPISODES = 100
"""Training episodes that the exploring return is the mean of."""
DEFAULT_STEPS = 1_000_000


def make_rover(name: str, environment: str, arena_seeds: Iterator[int]) -> Rover:
    """Make an environment with its own task and reward; raises GymError."""
    robot = GymRobot(GymSettings(environment))
    return Rover(name, robot, EnvironmentTask(robot.spec), {"environment": (environment_reward, 1.0)}, arena_seeds)


def make_run(
    environment: str,
    *,
    seed: int,
    steps: int,
    environments: int = ENVIRONMENTS,
    network: Mapping[str, Any] | None = None,
    ppo: Mapping[str, Any] | None = None,
) -> Run:
    """Make a run of an environment's recipe; ``network`` and ``ppo`` override its settings.

    Raises:
        GymError: the environment cannot be a robot.
        ConfigError: a setting is wrong.

    """
    tables = tables_of(environment)
    first = seed * environments * SEEDS_AN_ENVIRONMENT
    starts = (first + i * SEEDS_AN_ENVIRONMENT for i in range(environments))
    rovers = [make_rover(f"gym-{i}", environment, itertools.count(start)) for i, start in enumerate(starts)]
    robot, task = rovers[0].robot.spec, rovers[0].task.spec
    settings = validate_table(PpoSettings, {**tables["ppo"], **(ppo or {})}, "ppo")
    transform = InputTransform.of(robot, task, ())
    learner = Learner(
        robot,
        task,
        transform,
        lambda shape: build_blind(shape, CameraSettings()),
        network=validate_table(NetworkSettings, {**tables["network"], **(network or {})}, "network"),
        ppo=settings,
        seed=seed,
        budget_decisions=steps,
    )
    pool = Rollouts(robot, task, transform, settings.rollout)
    assembler = Assembler(pool, staleness_limit=settings.staleness_limit)
    newest = FrozenPolicy.of(learner)
    policies = [newest] * environments
    return Run(learner, pool, assembler, rovers, newest, policies, np.random.default_rng(seed), delayed_swap=False)


def evaluate(learner: Learner, environment: str, episodes: int, first_seed: int = REPORT_SEED) -> list[float]:
    """Return the returns of the present deterministic policy, one for each of the arenas from ``first_seed`` on."""
    policy, distribution = FrozenPolicy.of(learner), distribution_of(learner.robot)
    waiting = iter(range(first_seed, first_seed + episodes))
    driving = [make_rover("evaluation", environment, itertools.repeat(seed)) for seed in itertools.islice(waiting, 16)]
    returns: dict[int, float] = {}
    while driving:
        means = policy.means([rover.observation for rover in driving])
        for rover, mean in zip(tuple(driving), means, strict=True):
            action = distribution.action(distribution.mode(mean), learner.robot.action)
            for record in rover.act(action, None, "", 0):
                if isinstance(record, EpisodeEnd):
                    returns[record.arena_seed] = record.return_
            if rover.is_over:
                rover.robot.close()
                driving.remove(rover)
                driving += [
                    make_rover("evaluation", environment, itertools.repeat(n)) for n in itertools.islice(waiting, 1)
                ]
    return [returns[seed] for seed in sorted(returns)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn, print a line for every tenth of the way, evaluate; give the exit status, 2 for a mistake in the words."""
    options = parse(arguments)
    torch.set_num_threads(1)
    try:
        changed = changes(options.set)
        run = make_run(
            options.env,
            seed=options.seed,
            steps=options.steps,
            environments=options.environments,
            network=changed["network"],
            ppo=changed["ppo"],
        )
    except ConfigError as error:
        print("\n".join(f"gymrun: {mistake}" for mistake in error.mistakes), file=sys.stderr)
        return 2
    except RoverError as error:
        print(f"gymrun: {error}", file=sys.stderr)
        return 2
    result = {"environment": options.env, "seed": options.seed, **learned(run, options.steps)}
    returns = evaluate(run.learner, options.env, options.episodes)
    result.update({"return": fmean(returns), "returns": returns})
    print(
        f"return={fmean(returns):.1f} episodes={len(returns)} steps_per_cpu_second={result['steps_per_cpu_second']:.0f}"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake in it ends the process with status 2 before anything is learned."""
    parser = argparse.ArgumentParser(prog="python -m trainerd.learning.gymrun", description=__doc__)
    parser.add_argument("--env", required=True, metavar="ID", help="environment, such as CartPole-v1")
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="seed of weights, exploration and arenas")
    parser.add_argument("--steps", type=_positive, metavar="N", help="budget of decisions (default: the recipe's)")
    words = "environments side by side"
    parser.add_argument("--environments", type=_positive, default=ENVIRONMENTS, metavar="N", help=words)
    parser.add_argument("--episodes", type=_positive, default=20, metavar="N", help="unseen arenas of the last figure")
    words = "a setting, as in ppo.gamma=0.98 or network.std_start=0.5"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=words)
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = RECIPES[options.env].decisions if options.env in RECIPES else DEFAULT_STEPS
    return options


def _count(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _writable(text: str) -> Path:
    """Return the path of a file that can be written; hours of learning shall not end in an error."""
    path = Path(text)
    try:
        was_there = path.exists()
        path.open("ab").close()  # what permissions say is not enough: root has them all, /proc takes no file
        if not was_there:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from None
    return path


def changes(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return ``SECTION.NAME=JSON`` words by section; raises ConfigError with all that are none."""
    tables: dict[str, dict[str, Any]] = {"network": {}, "ppo": {}}
    mistakes = []
    for word in words:
        name, _, text = word.partition("=")
        section, _, key = name.partition(".")
        if section not in tables or not key or not text:
            mistakes.append(f"--set {word}: expected ppo.NAME=VALUE or network.NAME=VALUE")
            continue
        try:
            tables[section][key] = json.loads(text)
        except ValueError:
            tables[section][key] = text
    if mistakes:
        raise ConfigError(mistakes)
    return tables


def learned(run: Run, steps: int) -> dict[str, Any]:
    """Learn for so many decisions; return the curve, and what it took in processor time, evaluation not included."""
    curve: list[dict[str, float]] = []
    recent: deque[tuple[float, int]] = deque()
    began_s = time.process_time()

    def report(decisions: int, metrics: dict[str, float]) -> None:
        if metrics["episodes"]:
            recent.append((metrics["return"], int(metrics["episodes"])))
            while sum(count for _, count in recent) - recent[0][1] >= RECENT_EPISODES:
                recent.popleft()
        before = decisions - run.rollouts.capacity
        if not recent or decisions * 10 // steps == before * 10 // steps:
            return
        cpu_s = time.process_time() - began_s
        curve.append({**metrics, "decisions": decisions, "cpu_s": cpu_s, "return": _mean(recent)})
        shown = ("cpu_s", "return", "approx_kl", "clip_fraction", "explained_variance", "lr", "std")
        print(decisions, *(f"{key}={curve[-1].get(key, float('nan')):.3g}" for key in shown), flush=True)

    train(run, steps, report)
    cpu_s = time.process_time() - began_s
    return {
        "steps": run.learner.decisions,
        "cpu_seconds": cpu_s,
        "steps_per_cpu_second": run.learner.decisions / cpu_s,
        "return_exploring": _mean(recent) if recent else float("nan"),
        "curve": curve,
        "counters": run.assembler.counters,
    }


def _mean(recent: deque[tuple[float, int]]) -> float:
    """Return the mean of means, each of so many episodes."""
    return sum(mean * count for mean, count in recent) / sum(count for _, count in recent)


if __name__ == "__main__":
    sys.exit(main())
