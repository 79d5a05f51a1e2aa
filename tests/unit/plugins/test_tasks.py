"""Tasks: when an episode ends, and what the robot knows of its goal."""

import math

import numpy as np
import pytest

from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings
from plugins.tasks.drive import DriveSettings, DriveTask
from plugins.tasks.goal import GoalError, GoalSettings, GoalTask
from plugins.testing import check_robot, check_task
from protocol.moment import Pose, Reading

EXACT = GoalSettings(pose_noise_m=0.0, heading_noise_rad=0.0)


@pytest.fixture
def robot():
    return SyntheticRobot(SyntheticSettings())


def reading(x=0.0, y=0.0, yaw=0.0, *, goal=(2.0, 0.0), odometry=(0.0, 0.0, 0.0), **others):
    pose = others.pop("pose", Pose(x, y, yaw))
    return Reading(0, np.zeros(3, np.float32), {}, Pose(*odometry), pose, goal, **others)


def goal_task(robot, settings=EXACT, start=None):
    task = GoalTask(settings, robot.spec, 0)
    task.reset(start or reading())
    return task


@pytest.mark.parametrize("make", [lambda r: GoalTask(GoalSettings(), r.spec, 0), lambda r: DriveTask(DriveSettings())])
def test_built_in_tasks_keep_the_rules(robot, make):
    check_task(make(robot), robot)


def test_the_synthetic_robot_keeps_the_rules():
    check_robot(SyntheticRobot(SyntheticSettings(cameras=("left", "right"), image_height=7, image_width=19)))
    check_robot(SyntheticRobot(SyntheticSettings(cameras=())))


def test_within_the_radius_is_success(robot):
    task = goal_task(robot)
    assert task.judge(reading(1.69)).terminated is False
    outcome = task.judge(reading(1.71))
    assert (outcome.terminated, outcome.truncated, outcome.success, outcome.reason) == (True, False, True, "goal")


def test_a_collision_at_the_goal_is_a_failure(robot):
    outcome = goal_task(robot).judge(reading(1.9, collided=True))
    assert (outcome.terminated, outcome.success, outcome.reason) == (True, False, "collision")


def test_time_cuts_off_and_does_not_terminate(robot):
    outcome = goal_task(robot).judge(reading(elapsed_s=20.0))
    assert (outcome.terminated, outcome.truncated, outcome.reason) == (False, True, "time")


def test_a_goal_to_the_left_has_a_positive_sine(robot):
    distance, sine, cosine = goal_task(robot, start=reading(goal=(1.0, 1.0))).features(reading(goal=(1.0, 1.0)))
    assert (distance, sine, cosine) == pytest.approx((math.sqrt(2), math.sqrt(0.5), math.sqrt(0.5)), abs=1e-6)


def test_odometry_is_aligned_with_the_true_frame_at_the_start(robot):
    settings = GoalSettings(pose_source="odometry", pose_noise_m=0.0, heading_noise_rad=0.0)
    start = reading(1.0, 1.0, math.pi / 2, goal=(1.0, 3.0), odometry=(5.0, -2.0, 0.3))
    features = goal_task(robot, settings, start).features(start)
    assert features == pytest.approx((2.0, 0.0, 1.0), abs=1e-6)


def test_odometry_drift_shows_in_the_features_and_not_in_the_verdict(robot):
    settings = GoalSettings(pose_source="odometry", pose_noise_m=0.0, heading_noise_rad=0.0)
    task = goal_task(robot, settings)
    lost = reading(1.9, odometry=(1.0, 0.0, 0.0))
    assert task.features(lost)[0] == pytest.approx(1.0)
    assert task.judge(lost).success
    assert task.measure(lost) == {"distance_m": pytest.approx(0.1)}


def test_a_robot_without_a_true_pose_is_judged_by_odometry(robot):
    settings = GoalSettings(pose_source="odometry", pose_noise_m=0.0, heading_noise_rad=0.0)
    start = reading(pose=None)
    task = goal_task(robot, settings, start)
    assert task.judge(reading(pose=None, odometry=(1.9, 0.0, 0.0))).success
    with pytest.raises(GoalError, match="pose_source = odometry"):
        goal_task(robot, EXACT, start)


def test_a_robot_without_a_goal_is_refused(robot):
    with pytest.raises(GoalError, match="no goal"):
        goal_task(robot, start=reading(goal=None))


def test_the_features_carry_small_noise_that_repeats(robot):
    task = goal_task(robot, GoalSettings())
    values = np.array([task.features(reading(elapsed_s=0.1 * tick))[0] for tick in range(200)])
    assert values.std() == pytest.approx(0.01, rel=0.3)
    assert values[3] == task.features(reading(elapsed_s=0.3))[0]


def test_the_goal_task_hides_the_forward_distance_from_the_policy(robot):
    assert GoalTask(EXACT, robot.spec, 0).spec.masked_state == ("min_forward_dist",)


def test_driving_until_the_time_limit_is_success():
    outcome = DriveTask(DriveSettings(time_limit_s=1.0)).judge(reading(elapsed_s=1.0))
    assert (outcome.terminated, outcome.truncated, outcome.success) == (False, True, True)
