"""Reach a goal: distance and bearing are added to the observation; success, collision or time end the episode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plugins import TaskPlugin, hookimpl
from protocol.errors import RoverError
from protocol.moment import Outcome, Pose, Reading
from protocol.node.config import option
from protocol.spec import Element, RobotSpec, TaskSpec

NOISE_ROWS = 512


class GoalError(RoverError):
    """The robot cannot serve the goal task: it sets no goal, or lacks the pose that the settings ask for."""


@dataclass(frozen=True)
class GoalSettings:
    """Say when the goal is reached and what the robot may know of it."""

    radius_m: float = option(0.3, help="distance at which the goal is reached", low=0.01, high=10.0)
    time_limit_s: float = option(20.0, help="time after which an episode is cut off", low=0.1, high=3600.0)
    pose_source: str = option("true", help="pose that the goal's bearing comes from", choices=("true", "odometry"))
    pose_noise_m: float = option(0.01, help="standard deviation of the position used for the features", low=0.0)
    heading_noise_rad: float = option(0.005, help="standard deviation of the heading used for the features", low=0.0)


class GoalTask:
    """Judge by the true pose where the robot has one, by odometry otherwise.

    The goal is kept in both frames: ``reset`` aligns the true frame with where odometry says the robot is. The
    features' noise depends on the seed, the episode's first reading and its time only, so reading twice gives the same.
    """

    def __init__(self, settings: GoalSettings, robot: RobotSpec, seed: int) -> None:
        masked = tuple(e.name for e in robot.state if e.name == "min_forward_dist")
        self.spec = TaskSpec(
            name="goal",
            features=(
                Element("goal_distance", "m", 0.0, 100.0, scale=4.0),
                Element("goal_sin", "", -1.0, 1.0),
                Element("goal_cos", "", -1.0, 1.0),
            ),
            masked_state=masked,
            ranking=(("reactive", "still"), ("reactive", "spin"), ("reactive", "reverse"), ("reactive", "drive")),
        )
        self._settings = settings
        self._seed = seed
        self._ticks_per_s = robot.control_rate_hz

    def reset(self, reading: Reading) -> None:
        """Fix the goal of the episode; raises GoalError where the robot sets none."""
        if reading.goal is None:
            raise GoalError("goal task: the robot's reading has no goal; use a robot that sets one or the drive task")
        if self._settings.pose_source == "true" and reading.pose is None:
            raise GoalError("goal task: the robot has no true pose; set pose_source = odometry")
        self._goal = reading.goal
        pose = reading.pose or reading.odometry
        turn = reading.odometry.yaw_rad - pose.yaw_rad
        dx, dy = reading.goal[0] - pose.x_m, reading.goal[1] - pose.y_m
        self._odometry_goal = (
            reading.odometry.x_m + dx * math.cos(turn) - dy * math.sin(turn),
            reading.odometry.y_m + dx * math.sin(turn) + dy * math.cos(turn),
        )
        place = np.array((*pose, *reading.goal), np.float64).view(np.uint64)
        rng = np.random.Generator(np.random.PCG64([self._seed, *(int(number) for number in place)]))
        settings = self._settings
        scale = (settings.pose_noise_m, settings.pose_noise_m, settings.heading_noise_rad)
        self._noise: list[list[float]] = (rng.standard_normal((NOISE_ROWS, 3)) * scale).tolist()

    def features(self, reading: Reading) -> npt.NDArray[np.float32]:
        """Return float32[3]: distance in metres, sine and cosine of the goal's bearing (left is positive)."""
        pose, goal = reading.odometry, self._odometry_goal
        if self._settings.pose_source == "true" and reading.pose is not None:
            pose, goal = reading.pose, self._goal
        noise = self._noise[round(reading.elapsed_s * self._ticks_per_s) % NOISE_ROWS]
        dx, dy = goal[0] - pose.x_m + noise[0], goal[1] - pose.y_m + noise[1]
        bearing = math.atan2(dy, dx) - pose.yaw_rad + noise[2]
        return np.array((math.hypot(dx, dy), math.sin(bearing), math.cos(bearing)), np.float32)

    def measure(self, reading: Reading) -> dict[str, float]:
        """Return ``distance_m`` without noise."""
        return {"distance_m": self._distance_m(reading)}

    def judge(self, reading: Reading) -> Outcome:
        """End with failure on a collision, with success within the radius, cut off at the time limit."""
        if reading.collided:
            return Outcome(terminated=True, truncated=False, success=False, reason="collision")
        if self._distance_m(reading) <= self._settings.radius_m:
            return Outcome(terminated=True, truncated=False, success=True, reason="goal")
        if reading.elapsed_s >= self._settings.time_limit_s - 1e-6:
            return Outcome(terminated=False, truncated=True, success=False, reason="time")
        return Outcome(terminated=False, truncated=False, success=False)

    def _distance_m(self, reading: Reading) -> float:
        pose: Pose = reading.odometry if reading.pose is None else reading.pose
        goal = self._odometry_goal if reading.pose is None else self._goal
        return math.hypot(goal[0] - pose.x_m, goal[1] - pose.y_m)


def create(settings: GoalSettings, robot: RobotSpec, seed: int) -> GoalTask:
    """Make the task."""
    return GoalTask(settings, robot, seed)


@hookimpl
def provide_tasks() -> list[TaskPlugin]:
    """Offer the goal task."""
    return [TaskPlugin("goal", GoalSettings, create)]
