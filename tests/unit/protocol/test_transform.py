"""The transform that trainer and robot share, against literal values of a frame that is not square."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.spec import Element, SpecError, TaskSpec
from protocol.transform import InputTransform, Plane, inverse_depth_table
from tests.unit.protocol.samples import DEPTH, PLANES, RGB, ROBOT, TASK, pixels

GOLDEN_VECTOR = [0.5, 0.0, 0.5, -0.6, -0.33333334]
GOLDEN_HASH = "3bbc4a53"


@pytest.fixture
def transform() -> InputTransform:
    return InputTransform.of(ROBOT, TASK, PLANES)


def swapped(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: np.ascontiguousarray(image.swapaxes(0, 1)) for key, image in images.items()}


def test_channels_come_first_and_rows_before_columns(transform: InputTransform) -> None:
    assert transform.image(pixels()).shape == (5, 6, 10)


# Every literal is the value at row 2, column 7 (and its mirror at row 5, column 1) of the asymmetric frame.
@pytest.mark.parametrize(
    ("channel", "at_2_7", "at_5_1"),
    [
        (0, 0.3137255, 0.78431374),
        (1, 0.6862745, 0.09803922),
        (2, 0.10588235, 0.2),
        (3, 0.50871766, 0.31485882),
        (4, 0.1, 0.055555556),
    ],
)
def test_each_channel_has_its_golden_values(
    transform: InputTransform, channel: int, at_2_7: float, at_5_1: float
) -> None:
    image = transform.image(pixels())
    assert [float(image[channel, 2, 7]), float(image[channel, 5, 1])] == pytest.approx([at_2_7, at_5_1], abs=1e-6)


def test_the_vector_has_its_golden_values(transform: InputTransform) -> None:
    vector = transform.vector(
        np.array([0.25, 3.0], np.float32), np.array([2.0], np.float32), np.array([0.1, -0.5], np.float32)
    )
    assert vector.tolist() == pytest.approx(GOLDEN_VECTOR, abs=1e-6)


def test_the_hash_is_the_golden_one(transform: InputTransform) -> None:
    assert transform.hash[:8] == GOLDEN_HASH


def test_another_scale_gives_another_hash(transform: InputTransform) -> None:
    robot = replace(ROBOT, state=(replace(ROBOT.state[0], scale=1.0), ROBOT.state[1]))
    assert InputTransform.of(robot, TASK, PLANES).hash != transform.hash


@pytest.mark.parametrize("plane", PLANES)
def test_height_and_width_swapped_are_refused_by_every_plane(plane: Plane) -> None:
    with pytest.raises(ValueError, match="height first"):
        InputTransform.of(ROBOT, TASK, (plane,)).image(swapped(pixels()))


@pytest.mark.parametrize(("key", "dtype"), [(RGB, np.float32), (RGB, np.int8), (DEPTH, np.uint16), (DEPTH, np.float32)])
def test_another_dtype_is_refused(transform: InputTransform, key: str, dtype: type) -> None:
    with pytest.raises(ValueError, match=key):
        transform.image({**pixels(), key: pixels()[key].astype(dtype)})


def test_cameras_of_swapped_sizes_cannot_be_stacked() -> None:
    rgb, depth = ROBOT.cameras
    robot = replace(ROBOT, cameras=(rgb, replace(depth, height=10, width=6)))
    with pytest.raises(SpecError, match="differ in size"):
        InputTransform.of(robot, TASK, PLANES)


@pytest.mark.parametrize(
    "plane", [Plane(DEPTH, "rgb"), Plane(RGB, "inverse_depth"), Plane(RGB, "hue"), Plane("x", "rgb")]
)
def test_a_plane_that_its_camera_cannot_give_is_refused(plane: Plane) -> None:
    with pytest.raises(SpecError):
        InputTransform.of(ROBOT, TASK, (plane,))


def test_inverse_depth_is_one_near_zero_without_reading_and_falls_with_distance() -> None:
    table = inverse_depth_table()
    values = np.array([0, -1, -32768, 1, 300, 600, 32767], np.int16).view(np.uint16)
    assert table[values].tolist() == pytest.approx([0, 0, 0, 1, 1, 0.5, 300 / 32767])


def test_a_masked_element_is_zero_whatever_it_was(transform: InputTransform) -> None:
    vector = transform.vector(np.array([0, 1e6], np.float32), np.zeros(1, np.float32), np.zeros(2, np.float32))
    assert vector[1] == 0.0


def test_an_unknown_masked_element_is_refused() -> None:
    with pytest.raises(SpecError, match="pitch"):
        InputTransform.of(ROBOT, replace(TASK, masked_state=("pitch",)), PLANES)


def test_normalised_elements_are_clipped(transform: InputTransform) -> None:
    vector = transform.vector(np.array([1e30, 0], np.float32), np.array([-1e30], np.float32), np.zeros(2, np.float32))
    assert vector[[0, 2]].tolist() == [10.0, -10.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_element_is_refused_by_name(transform: InputTransform, bad: float) -> None:
    with pytest.raises(ValueError, match="distance is not finite"):
        transform.vector(np.zeros(2, np.float32), np.array([bad], np.float32), np.zeros(2, np.float32))


def test_a_vector_of_another_length_is_refused(transform: InputTransform) -> None:
    with pytest.raises(ValueError, match="4 elements"):
        transform.vector(np.zeros(2, np.float32), np.zeros(0, np.float32), np.zeros(2, np.float32))


def test_the_action_in_flight_is_scaled_by_its_range(transform: InputTransform) -> None:
    low = transform.vector(np.zeros(2, np.float32), np.zeros(1, np.float32), np.array([0.0, -1.5], np.float32))
    high = transform.vector(np.zeros(2, np.float32), np.zeros(1, np.float32), np.array([0.5, 1.5], np.float32))
    assert (low[3:].tolist(), high[3:].tolist()) == ([-1, -1], [1, 1])


def test_a_given_buffer_is_filled_in_place(transform: InputTransform) -> None:
    out = np.empty((5, 6, 10), np.float32)
    assert transform.image(pixels(), out=out) is out


def test_a_transform_survives_its_map(transform: InputTransform) -> None:
    assert InputTransform.from_map(transform.to_map()) == transform


@pytest.mark.parametrize("change", [{"version": 2}, {"planes": [1]}, {"height": "x"}, {"elements": [{"name": "x"}]}])
def test_a_map_of_another_version_or_form_is_refused(transform: InputTransform, change: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="input transform"):
        InputTransform.from_map({**transform.to_map(), **change})


def test_a_transform_without_cameras_has_no_image() -> None:
    assert InputTransform.of(ROBOT, TaskSpec("blind", (Element("x", "m", 0, 1),)), ()).image({}).size == 0
