"""What control reads from a depth image: the free distance ahead, and whether the camera repeats itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from roverd.control.corridor import Corridor, FrameWatch

HEIGHT, WIDTH, FOV_DEG = 240, 424, 69.0
CAMERA_M, HALF_M, ROBOT_M = 0.2, 0.2, 0.4
FOCAL = WIDTH / 2 / math.tan(math.radians(FOV_DEG) / 2)
RIGHT = ((np.arange(WIDTH) - (WIDTH - 1) / 2) / FOCAL)[None, :]
DOWN = ((np.arange(HEIGHT) - (HEIGHT - 1) / 2) / FOCAL)[:, None]
CORRIDOR = Corridor(HEIGHT, WIDTH, FOV_DEG, camera_height_m=CAMERA_M, half_width_m=HALF_M)


WALL_M = 7.5
"""A backdrop this far away bounds every scene, as the walls of a hall do."""


def floor() -> np.ndarray:
    """Return the depth of a floor that ends at a far wall."""
    below = CAMERA_M / np.maximum(DOWN, 1e-9)
    depth = np.broadcast_to(np.where(DOWN > 0, np.minimum(below, WALL_M), WALL_M), (HEIGHT, WIDTH))
    return np.round(depth * 1000).astype(np.int16)


def is_free(depth: np.ndarray) -> bool:
    return CORRIDOR.clearance_m(depth) >= WALL_M


def with_box(depth: np.ndarray, distance_m: float, left: float, right: float, top: float = 2.0) -> np.ndarray:
    """Stand a box on the floor; metres to the right of the axis, height above the floor."""
    x, y = RIGHT * distance_m, CAMERA_M - DOWN * distance_m
    hit = (x >= left) & (x <= right) & (y >= 0) & (y <= top)
    nearer = hit & (depth > distance_m * 1000)
    return np.where(nearer, round(distance_m * 1000), depth).astype(np.int16)


@pytest.mark.parametrize("distance_m", [0.15, 0.3, 1.0, 3.0])
def test_a_wall_ahead_is_as_far_as_it_is(distance_m: float) -> None:
    assert CORRIDOR.clearance_m(with_box(floor(), distance_m, -9, 9)) == pytest.approx(distance_m, abs=0.001)


def test_the_floor_alone_is_free() -> None:
    assert is_free(floor())


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("distance_m", [0.3, 0.6])
def test_a_pole_beside_the_path_is_free(side: int, distance_m: float) -> None:
    left, right = sorted((side * 0.22, side * 0.3))
    assert is_free(with_box(floor(), distance_m, left, right))


@pytest.mark.parametrize("side", [-1, 1])
def test_a_pole_within_the_path_is_seen(side: int) -> None:
    left, right = sorted((side * 0.1, side * 0.14))
    assert CORRIDOR.clearance_m(with_box(floor(), 0.5, left, right)) == pytest.approx(0.5, abs=0.001)


def test_a_low_step_within_the_floor_margin_is_floor() -> None:
    assert is_free(with_box(floor(), 0.5, -9, 9, top=0.04))


def test_a_box_of_fifteen_centimetres_is_an_obstacle() -> None:
    assert CORRIDOR.clearance_m(with_box(floor(), 0.8, -9, 9, top=0.15)) == pytest.approx(0.8, abs=0.001)


def test_what_hangs_above_the_robot_is_free() -> None:
    depth = floor()
    above = (CAMERA_M - DOWN * 0.5 > ROBOT_M + 0.02) & (RIGHT < 9)
    assert is_free(np.where(above, 500, depth).astype(np.int16))


def test_a_single_false_return_stops_nothing() -> None:
    depth = floor()
    depth[HEIGHT // 2, WIDTH // 2] = 100
    assert is_free(depth)


@pytest.mark.parametrize("value", [0, -1])
def test_a_blind_camera_means_no_room_at_all(value: int) -> None:
    assert CORRIDOR.clearance_m(np.full((HEIGHT, WIDTH), value, np.int16)) == 0.0


@pytest.mark.parametrize("third", [0, 1, 2])
def test_a_third_of_the_view_without_readings_means_that_something_is_too_near_to_see(third: int) -> None:
    depth = floor()
    depth[:, third * WIDTH // 3 : (third + 1) * WIDTH // 3] = 0
    assert CORRIDOR.clearance_m(depth) == 0.0


def test_scattered_holes_in_the_view_are_no_obstacle() -> None:
    depth = floor()
    depth[np.random.default_rng(0).random(depth.shape) < 0.3] = 0
    assert is_free(depth)


def test_nothing_within_range_is_the_farthest_clearance() -> None:
    assert CORRIDOR.clearance_m(np.full((HEIGHT, WIDTH), 32767, np.int16)) == Corridor.FAR_M


@pytest.mark.parametrize(("height", "width"), [(12, 20), (48, 64), (60, 106), (480, 848)])
def test_images_of_any_size_see_the_same_wall(height: int, width: int) -> None:
    corridor = Corridor(height, width, FOV_DEG, camera_height_m=CAMERA_M, half_width_m=HALF_M)
    assert corridor.clearance_m(np.full((height, width), 400, np.int16)) == pytest.approx(0.4)


# -- false returns (a stereo camera's flying pixels) ----------------------------------------------------------------


def with_false_returns(count: int) -> np.ndarray:
    """Put so many single near pixels, of those that are looked at, into the picture of a free floor."""
    depth = floor()
    columns = 4 * np.arange(20, 20 + count)
    depth[HEIGHT // 2, columns] = 150
    return depth


@pytest.mark.parametrize("count", [1, 2, 3])
def test_up_to_three_false_returns_stop_nothing(count: int) -> None:
    assert is_free(with_false_returns(count))


def test_as_many_as_an_obstacle_has_are_one() -> None:
    assert CORRIDOR.clearance_m(with_false_returns(4)) == pytest.approx(0.15)


@pytest.mark.parametrize(("share", "near_mm"), [(0.01, 200), (0.0001, 100)])
def test_noise_in_every_image_is_no_phantom_obstacle(share: float, near_mm: int) -> None:
    rng = np.random.default_rng(33)
    for _ in range(100):
        depth = floor()
        is_false = rng.random(depth.shape) < share
        depth[is_false] = rng.integers(near_mm, 8000 if share > 0.001 else 250, np.count_nonzero(is_false))
        assert CORRIDOR.clearance_m(depth) > 0.25


@pytest.mark.parametrize("width_m", [0.02, 0.04])
def test_a_thin_pole_at_the_safety_distance_is_no_false_return(width_m: float) -> None:
    pole = with_box(floor(), 0.25, 0.05, 0.05 + width_m)
    assert CORRIDOR.clearance_m(pole) == pytest.approx(0.25, abs=0.001)


# -- frozen pictures ------------------------------------------------------------------------------------------------

FROZEN_AFTER_NS = 150_000_000
PERIOD_NS = 33_000_000


def picture(seed: int, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 8000, shape).astype(np.int16)


@pytest.fixture
def watch() -> FrameWatch:
    return FrameWatch(FROZEN_AFTER_NS)


def shown(watch: FrameWatch, pictures, period_ns: int = PERIOD_NS) -> list[bool]:
    return [watch.see(each, 7_000_000_000 + k * period_ns) for k, each in enumerate(pictures)]


def test_a_camera_whose_pictures_differ_is_not_frozen(watch: FrameWatch) -> None:
    assert not any(shown(watch, [picture(seed) for seed in range(20)]))


def test_a_picture_that_stays_though_its_stamps_go_on_is_frozen(watch: FrameWatch) -> None:
    assert shown(watch, [picture(0)] * 8) == [False] * 5 + [True] * 3
    assert watch.is_frozen


def test_the_limit_itself_is_not_too_long(watch: FrameWatch) -> None:
    assert shown(watch, [picture(0)] * 3, FROZEN_AFTER_NS // 2) == [False, False, False]


def test_a_new_picture_ends_it_and_begins_the_time_anew(watch: FrameWatch) -> None:
    shown(watch, [picture(0)] * 8)
    assert shown(watch, [picture(1)] * 6) == [False] * 5 + [True]


def test_the_same_image_seen_on_many_ticks_is_not_frozen(watch: FrameWatch) -> None:
    assert not any(shown(watch, [picture(0)] * 20, period_ns=0))


def test_a_clock_that_went_back_begins_the_time_anew(watch: FrameWatch) -> None:
    shown(watch, [picture(0)] * 8)
    assert not watch.see(picture(0), 0)
    assert not watch.is_frozen


@pytest.mark.parametrize("value", [0, -1])
def test_a_covered_camera_is_not_frozen_so_that_the_robot_may_back_away(watch: FrameWatch, value: int) -> None:
    assert not any(shown(watch, [np.full((HEIGHT, WIDTH), value, np.int16)] * 20))


def test_the_watch_can_be_switched_off() -> None:
    assert not any(shown(FrameWatch(0), [picture(0)] * 20))


def test_one_pixel_of_sixteen_that_differs_is_enough(watch: FrameWatch) -> None:
    changing = [picture(0) for _ in range(20)]
    for k, each in enumerate(changing):
        each[HEIGHT // 2, WIDTH // 2] = 1000 + k
    assert not any(shown(watch, changing))


@pytest.mark.parametrize("shape", [(12, 20), (60, 106), (480, 848), (240, 424, 3)])
def test_pictures_of_any_shape_are_compared(watch: FrameWatch, shape: tuple[int, ...]) -> None:
    assert shown(watch, [picture(0, shape)] * 6)[-1]
    assert not any(shown(watch, [picture(seed, shape) for seed in range(9)]))
