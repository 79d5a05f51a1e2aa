"""What a self-check says of a recorded robot: which sensor is wrong, in which way, and what to do."""

from __future__ import annotations

import math

import pytest

from protocol.moment import Pose
from protocol.step import Intervention
from roverd.selfcheck.judge import (
    AGREES,
    OPPOSITE,
    STILL,
    TOO_MUCH,
    Recording,
    Thresholds,
    at_rest,
    compare,
    findings,
    first_fault,
    gravity,
    level,
    pulse,
)
from roverd.selfcheck.signals import axes_of, speeds, travelled
from tests.unit.roverd.recordings import drive, recording, whole

LIMITS = Thresholds()


def failed(checks):
    return {each.check: each for each in checks if not each.ok}


def test_a_robot_that_is_right_passes_with_its_numbers():
    checks = findings(whole(accel_mag=9.79, roll=0.02, pitch=-0.03), LIMITS)
    assert failed(checks) == {}
    assert first_fault(checks) == ""
    names = [each.check for each in checks]
    assert names[:5] == ["linear_vel at rest", "angular_vel at rest", "gravity", "roll at rest", "pitch at rest"]
    assert {"forward: linear_vel", "backward: odometry", "left: angular_vel", "right: odometry yaw"} <= set(names)
    measured = next(each.measured for each in checks if each.check == "left: angular_vel")
    assert measured == "+0.300 rad/s was commanded, +0.300 was measured"


@pytest.mark.parametrize(
    ("factors", "check", "told", "remedy"),
    [
        (
            {"wheel": -0.96},
            "forward: linear_vel",
            "the encoder of the wheels counts backwards: +0.050 m/s",
            "linear_vel",
        ),
        ({"gyro": -1.0}, "left: angular_vel", "the gyroscope counts backwards: +0.300 rad/s", "angular_vel"),
        ({"odometry": (-1.0, 1.0)}, "forward: odometry", "odometry counts backwards", "swap its sign"),
        ({"odometry": (1.0, -1.0)}, "left: odometry yaw", "the heading of odometry counts", "left and right encoder"),
        ({"wheel": 0.0}, "forward: linear_vel", "the encoder of the wheels stays still", "unplugged"),
        ({"gyro": 0.0}, "left: angular_vel", "the gyroscope stays still", "unplugged"),
        ({"odometry": (0.0, 1.0)}, "forward: odometry", "odometry stays still", "unplugged"),
        ({"wheel": 1000.0}, "forward: linear_vel", "says too much", "m/s are expected"),
        ({"gyro": 57.3}, "left: angular_vel", "the gyroscope says too much", "rad/s are expected"),
    ],
)
def test_a_wrong_sensor_is_named_with_what_was_commanded_and_measured(factors, check, told, remedy):
    checks = findings(whole(**factors), LIMITS)
    wrong = failed(checks)
    assert check in wrong
    assert told in wrong[check].measured
    assert remedy in wrong[check].hint
    assert first_fault(checks).startswith(wrong[check].measured)
    axis = check.partition(": ")[0]
    assert all(name == check or not name.startswith(axis) for name in wrong), "only the one that is wrong is blamed"


def test_where_every_sensor_says_backwards_a_person_has_to_look():
    wrong = failed(findings(whole(wheel=-1.0, odometry=(-1.0, 1.0)), LIMITS))
    assert "every sensor says that it goes backwards" in wrong["forward: linear_vel"].measured
    assert "look at it" in wrong["forward: odometry"].hint
    assert "left: angular_vel" not in wrong


def test_a_robot_that_does_not_move_is_not_blamed_on_a_sensor():
    wrong = failed(findings(whole(wheel=0.0, odometry=(0.0, 0.0), gyro=0.0), LIMITS))
    assert "nothing moved" in wrong["forward: linear_vel"].measured
    assert "selfcheck.speed_mps" in wrong["forward: odometry"].hint
    assert "selfcheck.turn_radps" in wrong["left: angular_vel"].hint


def test_an_encoder_without_direction_is_found_on_the_way_back():
    recordings = [recording(), recording("backward", -0.05, wheel=-1.0)]
    assert list(failed([check for each in recordings for check in pulse(each, LIMITS)])) == ["backward: linear_vel"]


def test_a_pulse_that_the_gate_held_back_proves_nothing():
    held = recording(wheel=0.0, odometry=(0.0, 1.0), flags=Intervention.FORWARD_STOP | Intervention.LIMITED)
    (check,) = pulse(held, LIMITS)
    assert "forward_stop" in check.measured
    assert "limited" not in check.measured
    assert "free space" in check.hint


def test_ramps_and_limits_are_no_interference():
    assert failed(pulse(recording(flags=Intervention.RAMPED | Intervention.LIMITED | Intervention.HUMAN), LIMITS)) == {}


def test_a_pulse_of_one_reading_is_too_short():
    assert "selfcheck.seconds" in failed(pulse(recording(ticks=1), LIMITS))["forward"].hint


def test_an_axis_that_nothing_measures_is_only_noted():
    bare = [each._replace(state={}, odometry=Pose(0, 0, 0), stamp_ns=0) for each in drive(0.05, 0.0)]
    (check,) = pulse(Recording(recording().phase, bare), LIMITS)
    assert (check.ok, check.state) == (True, "note")


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(0.03, AGREES), (0.0299, STILL), (0.3, AGREES), (0.3001, TOO_MUCH), (-0.0299, STILL), (-0.03, OPPOSITE)],
)
def test_the_bounds_of_a_share_belong_to_agreement_and_those_below_zero_to_the_opposite(measured, verdict):
    assert compare(0.1, measured, LIMITS) == verdict
    assert compare(-0.1, -measured, LIMITS) == verdict


def test_measuring_without_a_command_says_too_much():
    assert compare(0.0, 0.1, LIMITS) == TOO_MUCH


@pytest.mark.parametrize(("value", "ok"), [(0.02, True), (-0.02, True), (0.0201, False), (-0.0201, False)])
def test_a_speed_at_rest_is_judged_by_its_limit(value, ok):
    samples = [each._replace(state={"linear_vel": value}) for each in drive(0.0, 0.0)]
    (check,) = at_rest(samples, LIMITS)
    assert check.ok is ok


def test_no_readings_at_rest_is_a_fault():
    assert not next(iter(at_rest([], LIMITS))).ok


@pytest.mark.parametrize(
    ("value", "ok", "word"),
    [(9.81, True, ""), (11.31, True, ""), (11.32, False, "scale"), (8.31, True, ""), (8.30, False, "scale")],
)
def test_gravity_is_known(value, ok, word):
    check = gravity(value, LIMITS)
    assert check.ok is ok
    assert word in check.hint


def test_an_accelerometer_that_says_g_is_told_so():
    assert "report g" in gravity(1.0, LIMITS).hint


@pytest.mark.parametrize(("degrees", "ok"), [(14.99, True), (-14.99, True), (15.01, False), (-15.01, False)])
def test_a_robot_stands_level(degrees, ok):
    assert level("roll", math.radians(degrees), LIMITS).ok is ok


def test_an_imu_that_is_upside_down_is_told_so():
    assert "upside down" in level("roll", math.radians(-178), LIMITS).hint


def test_a_path_is_measured_along_its_own_heading():
    forward = [Pose(0, 0, math.pi), Pose(-1, 0, math.pi), Pose(-2, 0, -math.pi)]
    assert travelled(forward) == pytest.approx((2.0, 0.0), abs=1e-6)
    assert travelled(forward[::-1]) == pytest.approx((-2.0, 0.0), abs=1e-6)
    assert travelled([Pose(0, 0, 3.0), Pose(0, 0, -3.0)])[1] == pytest.approx(math.tau - 6.0)


def test_speeds_of_a_curve_are_those_that_were_driven():
    found = speeds(drive(0.2, 0.5, ticks=20))
    assert found["odometry"] == pytest.approx(0.2, rel=1e-3)
    assert found["odometry yaw"] == pytest.approx(0.5)
    assert speeds([]) == {}


def test_axes_are_found_by_name_and_unit():
    from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings

    axes = axes_of(SyntheticRobot(SyntheticSettings()).spec, 0.18)
    assert axes == (0, 1, (0.18, 1.5), 0.0, 2)
    assert axes.commands((0.1, -0.2)) == (0.1, -0.2)
    assert axes.action(0.1, 0.2) == (0.1, 0.2)
