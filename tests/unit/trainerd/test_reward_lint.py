"""The shipped rewards rank scripted driving as their tasks declare, and a reward that pays for tricks does not."""

import itertools

import pytest

from plugins.controllers import random, reactive, scripted
from plugins.manager import PluginManager
from plugins.rewards import DRIVE_WEIGHTS, GOAL_WEIGHTS
from plugins.robots.sim.robot import SimRobot
from plugins.robots.sim.settings import SimSettings
from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings
from plugins.tasks.drive import DriveSettings, DriveTask
from plugins.tasks.goal import GoalSettings, GoalTask
from trainerd.evaluate import judge_ranking
from trainerd.learning.drive import Rover

pytestmark = pytest.mark.component
CONTROLLERS = {c.name: c for module in (random, reactive, scripted) for c in module.provide_controllers()}


def returns_of(robot, task, rewards, name, episodes):
    """Drive a controller as a rover would; give the return of each arena."""
    controller = CONTROLLERS[name].create(robot.spec, task.spec, 0)
    rover = Rover("lint", robot, task, rewards, itertools.count())
    returns = {}
    for arena in range(episodes):
        controller.reset(arena)
        while not rover.is_over:
            seen = rover.observation
            *_, last = rover.act(controller.act(seen.images, seen.state, seen.task), None, "", 0)
        returns[arena] = last.return_
        rover.begin()
    return returns


def lint(robot, task, weights, episodes=5):
    manager = PluginManager(["rewards"])
    rewards = {name: (manager.reward(name).function, weight) for name, weight in weights.items()}
    names = {name for pair in task.spec.ranking for name in pair}
    returns = {name: returns_of(robot, task, rewards, name, episodes) for name in names}
    return {(each["better"], each["worse"]): each["passed"] for each in judge_ranking(task.spec.ranking, returns)}


def goal_task(robot):
    return GoalTask(GoalSettings(), robot.spec, 0)


def test_the_default_goal_reward_ranks_as_declared_in_the_simulator():
    robot = SimRobot(SimSettings())
    verdicts = lint(robot, goal_task(robot), GOAL_WEIGHTS)
    assert all(verdicts.values())
    assert {("reactive", "still"), ("reactive", "spin")} <= verdicts.keys()


def test_the_driving_reward_ranks_as_declared():
    assert all(lint(SyntheticRobot(SyntheticSettings()), DriveTask(DriveSettings()), DRIVE_WEIGHTS).values())


def test_a_reward_that_pays_for_spinning_fails():
    robot = SyntheticRobot(SyntheticSettings())
    verdicts = lint(robot, goal_task(robot), {"angular_velocity": 1.0, "progress": 1.0})
    assert not verdicts["reactive", "spin"]


def test_a_reward_of_nothing_but_zeros_fails():
    robot = SyntheticRobot(SyntheticSettings())
    assert not any(lint(robot, goal_task(robot), {"progress": 0.0}, episodes=2).values())
