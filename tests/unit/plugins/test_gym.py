"""Gymnasium environments as robots: spaces become a spec, and nothing of a step gets lost."""

import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from plugins.rewards.environment import environment
from plugins.robots.gym import FALLBACK_RATE_HZ, GymError, GymRobot, GymSettings
from plugins.tasks.environment import EnvironmentTask, NoVerdictError
from plugins.testing import check_reward, check_robot, check_task
from protocol.moment import Moment, Pose, Reading
from protocol.spec import RobotSpec, TaskSpec
from protocol.transform import InputTransform


class Scripted(gymnasium.Env):
    """Ends after five steps as it is told to; shows what it was given."""

    metadata = {"render_modes": []}  # noqa: RUF012 - gymnasium's form

    def __init__(self, observation=None, action=None, facts=None, ends="terminated", reward=1.5):
        self.observation_space = observation or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = action or spaces.Discrete(3)
        self.facts, self.ends, self.reward = facts or {}, ends, reward
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.actions = []
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(action)
        is_over = len(self.actions) == 5
        ends = [is_over and self.ends in {name, "both"} for name in ("terminated", "truncated")]
        return self.observation_space.sample(), self.reward, *ends, self.facts


@pytest.fixture
def scripted():
    """Make a robot of a Scripted environment; removes it from gymnasium's registry afterwards."""
    gymnasium.register("Scripted-v0", Scripted, disable_env_checker=True)
    yield lambda **options: GymRobot(GymSettings("Scripted-v0", options))
    del gymnasium.registry["Scripted-v0"]


def inner(robot):
    return robot._env.unwrapped


def cartpole():
    return GymRobot(GymSettings("CartPole-v1"))


def drive(robot, action, steps):
    for _ in range(steps):
        robot.advance(robot.safe_action, action)
    return robot.read(images=False)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_environments_keep_the_rules_of_robots_and_tasks(name):
    robot = GymRobot(GymSettings(name))
    check_robot(robot)
    check_task(EnvironmentTask(robot.spec), robot)


def test_the_reward_term_keeps_the_rules():
    check_reward(environment)


def test_discrete_actions_become_choices():
    spec = cartpole().spec
    assert (spec.action_space, [e.name for e in spec.action]) == ("discrete", ["choice_0", "choice_1"])
    assert {(e.low, e.high) for e in spec.action} == {(0.0, 1.0)}
    assert (spec.name, spec.control_rate_hz, spec.action_delay_ms) == ("gym:CartPole-v1", 50.0, 0.0)


def test_a_choice_counts_from_the_first_action_of_the_space(scripted):
    robot = scripted(action=spaces.Discrete(3, start=-1))
    for action in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        robot.advance(robot.safe_action, action)
    assert inner(robot).actions == [-1, 0, 1]
    assert robot.safe_action == (1.0, 0.0, 0.0)


def test_boxes_of_floats_become_action_elements_with_their_bounds(scripted):
    box = spaces.Box(np.array([[-2.0, 1.0]], np.float32), np.array([[2.0, 3.0]], np.float32))
    robot = scripted(action=box)
    assert [(e.name, e.low, e.high) for e in robot.spec.action] == [("a_0", -2.0, 2.0), ("a_1", 1.0, 3.0)]
    assert robot.safe_action == (0.0, 1.0), "zero, or the bound that is nearest to it"
    robot.advance(robot.safe_action, (2.0000001, 1.5))
    given = inner(robot).actions[0]
    assert given.shape == (1, 2)
    assert box.contains(given)


def test_bounded_numbers_span_minus_one_to_one_and_others_have_no_range():
    state = cartpole().spec.state
    assert (state[0].low, state[0].centre, state[0].scale) == (pytest.approx(-4.8), 0.0, pytest.approx(4.8))
    assert (state[1].low, state[1].high, state[1].scale) == (0.0, 0.0, 10.0), "low not below high: no range"


def test_a_discrete_observation_is_one_hot(scripted):
    robot = scripted(observation=spaces.Discrete(4))
    state = robot.read(images=False).state
    assert [e.name for e in robot.spec.state] == ["obs_0", "obs_1", "obs_2", "obs_3"]
    assert sorted(state.tolist()) == [0.0, 0.0, 0.0, 1.0]


def test_a_dict_is_flattened_in_its_order_and_its_images_are_cameras(scripted):
    robot = scripted(
        observation=spaces.Dict(
            goal=spaces.Box(0.0, 2.0, (2,), np.float32),
            Wrist=spaces.Box(0, 255, (6, 8, 3), np.uint8),
            mode=spaces.Discrete(2),
        )
    )
    assert [(c.key, c.shape) for c in robot.spec.cameras] == [("observation.images.wrist", (6, 8, 3))]
    assert [e.name for e in robot.spec.state] == ["goal_0", "goal_1", "mode_0", "mode_1"]
    check_robot(robot, ticks=4)


def test_an_observation_that_is_an_image_is_a_camera_and_no_state(scripted):
    robot = scripted(observation=spaces.Box(0, 255, (6, 8, 3), np.uint8))
    reading = robot.read(images=True)
    assert reading.state.shape == (0,)
    assert reading.images["observation.images.pixels"].shape == (6, 8, 3)
    assert robot.read(images=False).images == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"action": spaces.MultiBinary(3)}, "MultiBinary"),
        ({"action": spaces.Box(-np.inf, np.inf, (1,), np.float32)}, "no finite bounds"),
        ({"action": spaces.Box(0, 3, (1,), np.int64)}, "neither a Box of floats nor Discrete"),
        ({"observation": spaces.Sequence(spaces.Discrete(2))}, "Sequence"),
        ({"observation": spaces.Box(0, 255, (84, 84), np.uint8)}, "7056 observed numbers"),
    ],
)
def test_spaces_that_do_not_fit_are_named(scripted, given, words):
    with pytest.raises(GymError, match=words):
        scripted(**given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (GymSettings(), "--robot gym:CartPole-v1"),
        (GymSettings("CartPool-v1"), "CartPole"),
        (GymSettings("no_such_module:Env-v0"), "no_such_module"),
        (GymSettings("CartPole-v1", {"wheels": 4}), "wheels"),
    ],
)
def test_an_environment_that_cannot_be_made_says_why(settings, words):
    with pytest.raises(GymError, match=words):
        GymRobot(settings)


@pytest.mark.parametrize(("ends", "verdict"), [("terminated", (True, False)), ("truncated", (False, True))])
def test_reward_and_verdict_are_the_environments_own(scripted, ends, verdict):
    robot = scripted(ends=ends)
    assert robot.read(images=False).reward == 0.0
    going = drive(robot, robot.safe_action, 4)
    assert (going.reward, going.verdict[:2]) == (1.5, (False, False))
    over = drive(robot, robot.safe_action, 1)
    assert (over.reward, over.verdict[:2], over.verdict.reason) == (1.5, verdict, ends)


def test_an_end_that_is_both_is_a_termination(scripted):
    robot = scripted(ends="both")
    assert drive(robot, robot.safe_action, 5).verdict[:2] == (True, False)


def test_an_environment_that_has_ended_is_not_stepped_on(scripted):
    robot = scripted()
    drive(robot, robot.safe_action, 5)
    reading = drive(robot, robot.safe_action, 3)
    assert len(inner(robot).actions) == 5
    assert reading.reward == 0.0
    assert reading.verdict.terminated


def test_the_time_limit_of_the_environment_cuts_off():
    robot = GymRobot(GymSettings("Pendulum-v1"))
    assert not drive(robot, (0.0,), 199).verdict.truncated
    assert drive(robot, (0.0,), 1).verdict[:2] == (False, True)


@pytest.mark.parametrize(("facts", "success"), [({"is_success": True}, True), ({"success": 0}, False), ({}, False)])
def test_success_is_the_environments_word(scripted, facts, success):
    robot = scripted(facts=facts)
    assert drive(robot, robot.safe_action, 5).verdict.success is success


@pytest.mark.parametrize(("threshold", "success"), [(7.5, True), (7.6, False)])
def test_without_a_word_success_is_the_return_at_which_the_environment_counts_as_solved(threshold, success):
    gymnasium.register("Solved-v0", Scripted, reward_threshold=threshold, disable_env_checker=True)
    try:
        robot = GymRobot(GymSettings("Solved-v0"))
        assert drive(robot, robot.safe_action, 5).verdict.success is success
    finally:
        del gymnasium.registry["Solved-v0"]


def test_the_rate_is_what_the_environment_says_else_thirty(scripted):
    assert scripted().spec.control_rate_hz == FALLBACK_RATE_HZ
    assert GymRobot(GymSettings("CartPole-v1", control_rate_hz=12.5)).spec.control_rate_hz == 12.5


def test_equal_seeds_give_equal_episodes_whatever_came_before():
    robot = cartpole()
    robot.reset(7)
    first = drive(robot, (0.0, 1.0), 5).state.tolist()
    drive(robot, (1.0, 0.0), 3)
    robot.reset(7)
    assert drive(robot, (0.0, 1.0), 5).state.tolist() == first
    robot.reset(8)
    assert drive(robot, (0.0, 1.0), 5).state.tolist() != first


def test_what_a_reading_holds_belongs_to_the_reader():
    robot = GymRobot(GymSettings("Pendulum-v1"))
    reading = robot.read(images=False)
    reading.state[:] = math.nan
    assert np.isfinite(robot.read(images=False).state).all()


def test_the_policy_sees_the_observation_and_not_the_action_in_flight():
    robot = cartpole()
    task = EnvironmentTask(robot.spec)
    transform = InputTransform.of(robot.spec, task.spec, ())
    state = np.array([1.0, 1.0, 0.1, 1.0], np.float32)
    one, other = (
        transform.vector(state, np.empty(0, np.float32), np.array(action, np.float32))
        for action in ((1.0, 0.0), (0.0, 1.0))
    )
    assert one.tolist() == other.tolist()
    assert np.count_nonzero(one) == 4


def test_a_spec_survives_the_wire():
    spec = cartpole().spec
    assert RobotSpec.from_map(spec.to_map()) == spec
    task = EnvironmentTask(spec).spec
    assert TaskSpec.from_map(task.to_map()) == task


def test_the_reward_term_passes_on_what_the_task_measured():
    task = EnvironmentTask(cartpole().spec)
    reading = Reading(0, np.zeros(4, np.float32), {}, Pose(0.0, 0.0, 0.0), reward=-2.5)
    moment = Moment({}, task.measure(reading), (1.0, 0.0))
    assert environment(moment, moment) == -2.5
    assert environment(moment, Moment({}, {}, (1.0, 0.0))) == 0.0


def test_the_task_refuses_a_world_that_gives_no_verdict():
    with pytest.raises(NoVerdictError, match="gives no verdict"):
        EnvironmentTask(cartpole().spec).reset(Reading(0, np.zeros(4, np.float32), {}, Pose(0.0, 0.0, 0.0)))


def test_closing_twice_is_harmless():
    robot = cartpole()
    robot.close()
    robot.close()
