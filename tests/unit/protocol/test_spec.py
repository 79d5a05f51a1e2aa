"""Specs name what differs, refuse what cannot be, and survive the wire."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from protocol.spec import Camera, Element, RobotSpec, SpecError, TaskSpec
from tests.unit.protocol.samples import ROBOT, TASK


def test_equal_specs_have_no_difference() -> None:
    assert ROBOT.differences(RobotSpec.from_map(ROBOT.to_map())) == []


def test_a_difference_names_the_element_and_both_values() -> None:
    other = replace(ROBOT, state=(replace(ROBOT.state[0], scale=2.0), ROBOT.state[1]))
    assert ROBOT.differences(other) == ["state.linear_vel.scale: 0.5 here, 2.0 there"]


def test_a_camera_with_height_and_width_swapped_is_named() -> None:
    rgb, depth = ROBOT.cameras
    other = replace(ROBOT, cameras=(rgb, replace(depth, height=10, width=6)))
    assert ROBOT.differences(other) == [
        "cameras.front.height: 6 here, 10 there",
        "cameras.front.width: 10 here, 6 there",
    ]


def test_another_order_of_elements_is_a_difference() -> None:
    other = replace(ROBOT, state=ROBOT.state[::-1])
    assert ROBOT.differences(other) == ["state: ['linear_vel', 'roll'] here, ['roll', 'linear_vel'] there"]


def test_every_difference_is_named_at_once() -> None:
    other = replace(ROBOT, name="other", action_repeat=5, control_rate_hz=5.0)
    assert [line.partition(":")[0] for line in ROBOT.differences(other)] == ["action_repeat", "control_rate_hz", "name"]


def test_a_task_difference_is_marked_as_the_tasks() -> None:
    assert TASK.differences(replace(TASK, masked_state=())) == ["task.masked_state: ['roll'] here, [] there"]


@pytest.mark.parametrize("spec", [ROBOT, TASK])
def test_a_spec_keeps_its_hash_over_msgpack(spec: RobotSpec | TaskSpec) -> None:
    there = type(spec).from_map(msgpack.unpackb(msgpack.packb(spec.to_map())))
    assert (there, there.hash) == (spec, spec.hash)


def test_unknown_keys_of_a_newer_spec_are_ignored() -> None:
    values = ROBOT.to_map()
    values["colour"] = "red"
    values["cameras"] = [{**camera, "lens": "wide"} for camera in values["cameras"]]
    assert RobotSpec.from_map(values) == ROBOT


@pytest.mark.parametrize(
    "values",
    [
        {},
        {**ROBOT.to_map(), "cameras": None},
        {**ROBOT.to_map(), "cameras": [1]},
        {**ROBOT.to_map(), "state": [{"name": "x"}]},
        {**ROBOT.to_map(), "control_rate_hz": "fast"},
        {**ROBOT.to_map(), "cameras": [{**ROBOT.cameras[0].__dict__, "height": "6"}]},
    ],
)
def test_a_malformed_robot_spec_is_a_spec_error(values: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        RobotSpec.from_map(values)


@pytest.mark.parametrize(
    "values", [{}, {"name": "x", "features": 3, "masked_state": []}, {"name": "x", "features": [3]}]
)
def test_a_malformed_task_spec_is_a_spec_error(values: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        TaskSpec.from_map(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": (ROBOT.state[0], ROBOT.state[0])}, "state element linear_vel is declared twice"),
        ({"action": ()}, "no action element"),
        ({"action": (Element("stuck", "m", 1.0, 1.0),)}, "low 1.0 is not below high 1.0"),
        ({"control_rate_hz": 0.0}, "control_rate_hz 0.0 is not positive"),
        ({"action_delay_ms": 101.0}, "not within one period"),
        ({"action_repeat": 0}, "action_repeat 0 is below 1"),
    ],
)
def test_an_impossible_robot_is_refused_with_its_reason(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(ROBOT, **change)


@pytest.mark.parametrize(
    "change", [{"kind": "thermal"}, {"height": 0}, {"width": -1}, {"name": "Front"}, {"name": "a/b"}]
)
def test_an_impossible_camera_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Camera(**{"name": "front", "kind": "rgb", "height": 6, "width": 10, "rate_hz": 10.0, **change})


def test_a_shape_has_the_height_first() -> None:
    assert [camera.shape for camera in ROBOT.cameras] == [(6, 10, 3), (6, 10)]


def test_an_unknown_camera_or_state_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"observation\.images\.front"):
        ROBOT.camera("observation.images.rear")
    with pytest.raises(SpecError, match="linear_vel"):
        ROBOT.state_index("linear_velocity")
