"""One client drives any robot: pushes of -1 to 1 become actions in its units and limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.spec import Element, RobotSpec
from roverd.axes import JOG_S, KEYS, Axes, AxisError
from tests.unit.roverd.steered import ARM, ROVER


@pytest.fixture
def rover():
    return Axes(ROVER, (0.0, 0.0), max_speed_mps=0.3)


@pytest.fixture
def arm():
    return Axes(ARM, (None, None, 0.0), max_speed_mps=0.3)


@pytest.mark.parametrize(
    ("pushes", "action"),
    [
        ((0, 0), (0, 0)),
        ((1, 0), (0.3, 0)),
        ((-1, 0), (-0.2, 0)),
        ((0.5, -1), (0.15, -1.5)),
        ((7, 0.5), (0.3, 0.75)),
    ],
)
def test_a_velocity_follows_the_push_within_the_spec_and_the_speed_limit(rover, pushes, action):
    assert rover.action(pushes, held=(0.4, 0.4), seconds=0.05) == pytest.approx(action)


def test_a_robot_that_cannot_reverse_stands_where_it_is_told_to(rover):
    spec = RobotSpec("forward", (), (), (Element("linear_cmd", "m/s", 0.0, 0.5),), 10.0)
    assert Axes(spec, (0.0,), max_speed_mps=1.0).action((-1,), held=(0,), seconds=0.1) == (0.0,)


def test_a_held_element_moves_on_from_where_it_is_and_stays_within_its_range(arm):
    assert arm.rest((0.5, 0.2, 0.7)) == (0.5, 0.2, 0.0)
    moved = arm.action((1, -1, 0.5), held=(0.5, 0.2, 0), seconds=0.1)
    assert moved == pytest.approx((0.5 + 4.0 * 0.1 / JOG_S, 0.2 - 0.1 / JOG_S, 0.5))
    assert arm.action((1, -1, 0), held=(1.99, 0.01, 0), seconds=0.1)[:2] == (2.0, 0.0)


def test_a_long_silence_makes_no_long_move(arm):
    assert arm.action((1, 0, 0), held=(0, 0, 0), seconds=60.0)[0] < 0.3


def test_keys_are_given_by_name_first_and_then_in_order(rover, arm):
    assert [(axis["role"], axis["keys"]) for axis in rover.to_list()] == [("forward", ["w", "s"]), ("turn", ["a", "d"])]
    assert [axis["keys"] for axis in arm.to_list()] == [list(pair) for pair in KEYS[:3]]
    turned = RobotSpec("t", (), (), (ARM.action[0], ROVER.action[1], ROVER.action[0]), 10.0)
    keys = [axis["keys"] for axis in Axes(turned, (None, 0.0, 0.0), max_speed_mps=1).to_list()]
    assert keys == [["t", "g"], ["a", "d"], ["w", "s"]]


def test_a_robot_with_more_elements_than_keys_has_some_without():
    spec = RobotSpec("many", (), (), tuple(Element(f"joint_{i}", "rad", -1, 1) for i in range(9)), 10.0)
    keys = [tuple(axis["keys"]) for axis in Axes(spec, (None,) * 9, max_speed_mps=1).to_list()]
    assert keys == [*KEYS, ("", ""), ("", "")]


@pytest.mark.parametrize(
    "pushes", [None, "ww", [1], [1, 2, 3], [1, "a"], [math.nan, 0], [math.inf, 0], [10**400, 0], {"w": 1}]
)
def test_what_is_no_list_of_finite_numbers_is_refused_with_the_names(rover, pushes):
    with pytest.raises(AxisError, match="linear_cmd, angular_cmd"):
        rover.check(pushes)


@given(
    pushes=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    held=st.tuples(st.floats(-2, 2), st.floats(0, 1), st.floats(-1, 1)),
    seconds=st.floats(0, 1e4),
)
def test_no_push_leaves_the_limits(pushes, held, seconds):
    axes = Axes(ARM, (None, None, 0.0), max_speed_mps=0.3)
    for value, element in zip(axes.action(axes.check(pushes), held=held, seconds=seconds), ARM.action, strict=True):
        assert element.low <= value <= element.high
