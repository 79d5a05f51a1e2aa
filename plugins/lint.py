"""Lint a reward: run scripted controllers and check that it ranks them as the task declares.

A reward that pays for spinning, standing or any other trick shows here, before a night of training finds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import RoverError
from protocol.moment import Moment, Outcome, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugins.contracts import Controller, ControllerPlugin, RewardFunction, Robot, Task

LONGEST_TICKS = 10_000
ERRORS_APART = 1.0
"""A pair passes when its returns differ by more than so many standard errors of the paired difference."""


class LintError(RoverError):
    """The reward cannot be linted: an unknown term, a controller that is missing, or a task that never ends."""


@dataclass(frozen=True)
class LintResult:
    """The verdict on one pair: whether ``better`` really earns more than ``worse``, over the same arenas."""

    better: str
    worse: str
    better_return: float
    worse_return: float
    standard_error: float
    """Of the mean difference, over the arenas."""
    passed: bool

    @property
    def verdict(self) -> str:
        """The result as a sentence."""
        returns = f"{self.better} {self.better_return:.3f}, {self.worse} {self.worse_return:.3f}"
        if self.passed:
            return f"{self.better} earns more than {self.worse}: {returns}"
        return f"{self.better} should earn more than {self.worse} and does not: {returns} (+-{self.standard_error:.3f})"


def lint(
    robot: Robot,
    task: Task,
    reward_terms: Mapping[str, RewardFunction],
    weights: Mapping[str, float],
    controllers: Mapping[str, ControllerPlugin],
    episodes: int,
    seed: int,
) -> list[LintResult]:
    """Judge every ranking pair of the task; an empty list means that the task declares none.

    Args:
        robot: any robot that can be reset to a seed.
        task: its ``spec.ranking`` names the pairs.
        reward_terms: the functions of the terms by name.
        weights: weight of each term that counts.
        controllers: at least those that the ranking names.
        episodes: arenas for each controller, ``seed`` and the following ones.
        seed: first arena.

    Raises:
        LintError: a weight without its term, a ranked controller that is missing, or an episode without an end.

    """
    unknown = sorted(set(weights) - set(reward_terms))
    names = list(dict.fromkeys(name for pair in task.spec.ranking for name in pair))
    missing = [name for name in names if name not in controllers]
    if unknown or missing:
        raise LintError(f"reward lint: unknown terms {unknown}, missing controllers {missing}")
    terms = [(weights[name], reward_terms[name]) for name in weights]
    returns = {
        name: episode_returns(robot, task, terms, controllers[name].create(robot.spec, task.spec, seed), episodes, seed)
        for name in names
    }
    return [_judged(better, worse, returns[better], returns[worse]) for better, worse in task.spec.ranking]


def episode_returns(
    robot: Robot,
    task: Task,
    terms: Sequence[tuple[float, RewardFunction]],
    controller: Controller,
    episodes: int,
    seed: int,
) -> list[float]:
    """Return the undiscounted return of each episode, with the robot's own action repeat and delay."""
    return [_episode(robot, task, terms, controller, seed + episode) for episode in range(episodes)]


def moment_of(robot: Robot, task: Task, reading: Reading, action: Sequence[float], outcome: Outcome) -> Moment:
    """Build what reward terms see from a reading and the action that was applied before it."""
    names = (element.name for element in robot.spec.state)
    state = dict(zip(names, reading.state.tolist(), strict=True))
    return Moment(state, task.measure(reading), tuple(action), reading.collided, outcome)


def _episode(
    robot: Robot, task: Task, terms: Sequence[tuple[float, RewardFunction]], controller: Controller, seed: int
) -> float:
    robot.reset(seed)
    controller.reset(seed)
    reading = robot.read(images=True)
    task.reset(reading)
    action: Sequence[float] = robot.safe_action
    previous = moment_of(robot, task, reading, action, Outcome(terminated=False, truncated=False, success=False))
    total = 0.0
    repeat = robot.spec.action_repeat
    for tick in range(LONGEST_TICKS):
        in_flight = action
        if tick % repeat == 0:
            action = controller.act(reading.images, reading.state, task.features(reading)).tolist()
        robot.advance(in_flight, action)
        reading = robot.read(images=(tick + 1) % repeat == 0)
        outcome = task.judge(reading)
        current = moment_of(robot, task, reading, action, outcome)
        total += sum(weight * term(previous, current) for weight, term in terms)
        if outcome.terminated or outcome.truncated:
            return total
        previous = current
    raise LintError(f"reward lint: task {task.spec.name} did not end within {LONGEST_TICKS} ticks")


def _judged(better: str, worse: str, high: Sequence[float], low: Sequence[float]) -> LintResult:
    count = len(high)
    gaps = [a - b for a, b in zip(high, low, strict=True)]
    mean = math.fsum(gaps) / count
    spread = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / max(1, count - 1) / count)
    # a non-finite return fails: no comparison with it holds
    passed = mean > ERRORS_APART * spread
    return LintResult(better, worse, math.fsum(high) / count, math.fsum(low) / count, spread, passed)
