"""Controllers: scripted ones do what they say, the reactive one avoids what it sees."""

import numpy as np
import pytest

from plugins.controllers import random, reactive, scripted
from plugins.robots.sim.robot import robot_spec
from plugins.robots.sim.settings import SimSettings
from plugins.tasks.goal import GoalSettings, GoalTask
from protocol.spec import TaskSpec

SPEC = robot_spec(SimSettings())
TASK = GoalTask(GoalSettings(), SPEC, 0).spec
CONTROLLERS = {c.name: c for module in (random, reactive, scripted) for c in module.provide_controllers()}
STATE = np.zeros(6, np.float32)
AHEAD = np.array((2.0, 0.0, 1.0), np.float32)
LEFT = np.array((2.0, 1.0, 0.0), np.float32)


def act(name, features=AHEAD, depth=None, spec=SPEC, task=TASK):
    controller = CONTROLLERS[name].create(spec, task, 0)
    controller.reset(0)
    return controller.act({} if depth is None else {"observation.depth.front": depth}, STATE, features)


@pytest.mark.parametrize(("name", "expected"), [("still", (0, 0)), ("spin", (0, 1.5)), ("drive", (0.5, 0))])
def test_scripts_do_what_their_names_say(name, expected):
    assert act(name) == pytest.approx(expected)


def test_driving_without_a_goal_goes_straight_ahead():
    assert act("drive", np.empty(0, np.float32), task=TaskSpec("drive")) == pytest.approx((0.5, 0.0))


def test_driving_turns_towards_the_goal_first():
    linear, angular = act("drive", LEFT)
    assert (linear, angular) == pytest.approx((0.0, 1.5), abs=1e-6)


def test_reversing_needs_a_robot_that_can():
    assert act("reverse")[0] == 0.0
    assert act("reverse", spec=robot_spec(SimSettings(linear_low_mps=-0.3)))[0] == pytest.approx(-0.3)


def test_random_actions_repeat_for_equal_seeds_and_stay_in_range():
    controller = CONTROLLERS["random"].create(SPEC, TASK, 3)
    runs = []
    for seed in (1, 2, 1):
        controller.reset(seed)
        runs.append(np.array([controller.act({}, STATE, AHEAD) for _ in range(50)]))
    assert (runs[0] == runs[2]).all()
    assert (runs[0] != runs[1]).any()
    assert (runs[0] >= (0.0, -1.5)).all()
    assert (runs[0] <= (0.5, 1.5)).all()


def test_a_free_view_means_straight_to_the_goal():
    linear, angular = act("reactive", depth=np.full((60, 106), 4000, np.int16))
    assert linear == pytest.approx(0.5)
    assert abs(angular) < 0.3


def test_an_obstacle_on_the_right_is_passed_on_the_left():
    depth = np.full((60, 106), 4000, np.int16)
    depth[:, 48:] = 600
    assert act("reactive", depth=depth)[1] > 0.3


def test_an_obstacle_is_remembered_when_it_leaves_the_view():
    controller = CONTROLLERS["reactive"].create(SPEC, TASK, 0)
    ahead = np.full((60, 106), 300, np.int16)
    free = np.full((60, 106), 4000, np.int16)
    for depth in (ahead, free):
        action = controller.act({"observation.depth.front": depth}, STATE, AHEAD)
    assert action[0] == 0.0
    controller.reset(1)
    assert controller.act({"observation.depth.front": free}, STATE, AHEAD)[0] > 0.4


def test_without_a_depth_camera_it_drives_as_the_script():
    spec = robot_spec(SimSettings(cameras="none"))
    assert act("reactive", LEFT, spec=spec) == pytest.approx(act("drive", LEFT))
