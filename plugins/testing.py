"""Checks for plugin authors: call one in a test of yours; it raises AssertionError naming what is wrong."""

# ruff: noqa: S101 - an assertion is what a failed check looks like in a test

from __future__ import annotations

import copy
import math
from time import thread_time
from typing import TYPE_CHECKING, Any

import numpy as np

from plugins.guard import is_finite
from protocol.moment import Moment, Outcome, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plugins.contracts import RewardFunction, Robot, Task

REWARD_BUDGET_MS = 1.0
TASK_BUDGET_MS = 2.0


def example_moments(count: int = 50, seed: int = 0) -> list[tuple[Moment, Moment]]:
    """Return pairs of plausible moments with the built-in robots' state names, ends of every kind among them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    ends = (
        Outcome(terminated=False, truncated=False, success=False),
        Outcome(terminated=True, truncated=False, success=True, reason="goal"),
        Outcome(terminated=True, truncated=False, success=False, reason="collision"),
        Outcome(terminated=False, truncated=True, success=False, reason="time"),
    )
    pairs = []
    for index in range(count):
        before, after = (
            Moment(
                state={
                    "linear_vel": float(rng.uniform(-0.5, 0.5)),
                    "angular_vel": float(rng.uniform(-1.5, 1.5)),
                    "roll": float(rng.normal(0, 0.02)),
                    "pitch": float(rng.normal(0, 0.02)),
                    "accel_mag": float(rng.normal(9.81, 0.3)),
                    "min_forward_dist": float(rng.uniform(0.15, 8.0)),
                },
                task={"distance_m": float(rng.uniform(0.0, 5.0))},
                action=(float(rng.uniform(0.0, 0.5)), float(rng.uniform(-1.5, 1.5))),
            )
            for _ in range(2)
        )
        after.outcome = ends[index % len(ends)]
        after.collided = after.outcome.reason == "collision"
        pairs.append((before, after))
    return pairs


def check_reward(
    function: RewardFunction,
    *,
    low: float = -100.0,
    high: float = 100.0,
    budget_ms: float = REWARD_BUDGET_MS,
    moments: Sequence[tuple[Moment, Moment]] | None = None,
) -> None:
    """Check that a reward term is pure, finite, within a range and fast on example moments (or the given ones)."""
    pairs = list(moments) if moments is not None else example_moments()
    kept = copy.deepcopy(pairs)
    first = [_timed(function, pair, budget_ms) for pair in pairs]
    again = [function(*pair) for pair in reversed(pairs)][::-1]
    assert pairs == kept, f"{_name(function)} changes the moments that it looks at"
    for value, repeated in zip(first, again, strict=True):
        assert isinstance(value, (int, float)), f"{_name(function)} returned {value!r}, expected a number"
        assert math.isfinite(value), f"{_name(function)} returned {value!r}, expected a finite number"
        assert low <= value <= high, f"{_name(function)} returned {value}, expected {low} to {high}"
        assert value == repeated, (
            f"{_name(function)} gave {value} and then {repeated} for the same moments: keep no state"
        )


def check_task(task: Task, robot: Robot, *, episodes: int = 2, budget_ms: float = TASK_BUDGET_MS) -> None:
    """Check a task on a robot: lengths, finite numbers, no verdict before the start, an end, equal repeats, time."""
    for seed in range(episodes):
        assert _task_run(task, robot, seed, budget_ms) == _task_run(task, robot, seed, budget_ms), (
            f"task {task.spec.name}: two runs of arena {seed} differ: keep no state between episodes"
        )


def check_robot(robot: Robot, *, ticks: int = 20) -> None:
    """Check that a robot's readings fit its spec, stay finite, move its clock on, and repeat for equal arena seeds."""
    first = _robot_run(robot, 1, ticks)
    _robot_run(robot, 2, 3)
    assert first == _robot_run(robot, 1, ticks), "two runs of arena 1 differ: reset must restore everything"


def _still(robot: Robot) -> tuple[float, ...]:
    """Return a robot's safe action; an element that holds was never anywhere but at 0."""
    return tuple(0.0 if value is None else value for value in robot.safe_action)


def _task_run(task: Task, robot: Robot, seed: int, budget_ms: float) -> list[Any]:
    robot.reset(seed)
    reading = robot.read(images=False)
    task.reset(reading)
    outcome = task.judge(reading)
    is_over = outcome.terminated or outcome.truncated
    assert not is_over, f"task {task.spec.name}: over before it began: {outcome}"
    seen: list[Any] = []
    for _ in range(100_000):
        robot.advance(_still(robot), _still(robot))
        reading = robot.read(images=False)
        features = _timed(task.features, (reading,), budget_ms)
        measures = _timed(task.measure, (reading,), budget_ms)
        outcome = _timed(task.judge, (reading,), budget_ms)
        shape, expected = features.shape, (len(task.spec.features),)
        assert shape == expected, f"task {task.spec.name}: features of shape {shape}, expected {expected}"
        assert features.dtype == np.float32, f"task {task.spec.name}: features are {features.dtype}, expected float32"
        assert is_finite(features), f"task {task.spec.name}: features are not finite: {features}"
        assert is_finite(measures), f"task {task.spec.name}: measures are not finite: {measures}"
        seen.append((features.tolist(), measures, outcome))
        if outcome.terminated or outcome.truncated:
            return seen
    raise AssertionError(f"task {task.spec.name}: no end for a robot that stands still")


def _robot_run(robot: Robot, seed: int, ticks: int) -> list[Any]:
    robot.reset(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    low, high = ([getattr(element, end) for element in robot.spec.action] for end in ("low", "high"))
    action: Sequence[float] = _still(robot)
    assert len(action) == len(low), f"safe action has {len(action)} elements, expected {len(low)}"
    stamp_ns, seen = -1, []
    for _ in range(ticks):
        reading = robot.read(images=True)
        _check_reading(robot, reading)
        assert reading.stamp_ns > stamp_ns, f"stamp {reading.stamp_ns} ns is not after {stamp_ns} ns"
        stamp_ns = reading.stamp_ns
        pixels = {key: image.tobytes() for key, image in reading.images.items()}
        seen.append((reading.state.tobytes(), pixels, reading.pose, reading.odometry, reading.goal, reading.collided))
        in_flight, action = action, rng.uniform(low, high).tolist()
        robot.advance(in_flight, action)
    return seen


def _check_reading(robot: Robot, reading: Reading) -> None:
    size = len(robot.spec.state)
    assert reading.state.shape == (size,), f"state of shape {reading.state.shape}, expected {(size,)}"
    assert reading.state.dtype == np.float32, f"state is {reading.state.dtype}, expected float32"
    assert is_finite(reading.state), f"state is not finite: {reading.state}"
    keys = {camera.key for camera in robot.spec.cameras}
    assert set(reading.images) == keys, f"images {sorted(reading.images)}, expected {sorted(keys)}"
    for camera in robot.spec.cameras:
        image = reading.images[camera.key]
        assert image.shape == camera.shape, f"{camera.key}: shape {image.shape}, expected {camera.shape} (height first)"
        assert image.dtype == camera.dtype, f"{camera.key}: {image.dtype}, expected {camera.dtype}"


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...], budget_ms: float) -> Any:
    start_s = thread_time()
    result = function(*arguments)
    used_ms = 1000 * (thread_time() - start_s)
    assert used_ms <= budget_ms, f"{_name(function)} took {used_ms:.2f} ms of processor time, budget {budget_ms} ms"
    return result


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
