"""The simulated rover: equal seeds, true geometry, honest physics."""

import math

import numpy as np
import pytest

from plugins.robots.sim.arena import GAP_M, Arena, clearance, draw_arena, is_blocked, shortest_path_m
from plugins.robots.sim.camera import CLEAR_M, Lens, forward_clearance_m, render
from plugins.robots.sim.physics import RADIUS_M
from plugins.robots.sim.robot import SimRobot, _chunks
from plugins.robots.sim.settings import SimSettings
from plugins.testing import check_robot
from protocol.moment import Pose

pytestmark = pytest.mark.component

DEPTH, RGB = "observation.depth.front", "observation.images.front"


def room(*obstacles, start=(0.0, 0.0, 0.0), goal=(2.0, 0.0)):
    grey = (100.0, 100.0, 100.0)
    rows = np.array([(*obstacle, *grey) for obstacle in obstacles]).reshape(-1, 9)
    return Arena(3.0, rows, Pose(*start), goal)


def box(x, y, half_x, half_y, height=0.5):
    return (x, y, half_x, half_y, 0.0, height)


def cylinder(x, y, radius, height=0.5):
    return (x, y, 0.0, 0.0, radius, height)


@pytest.fixture(scope="module")
def robot():
    return SimRobot(SimSettings())


@pytest.fixture(scope="module")
def exact():
    return SimRobot(SimSettings(noise=0.0))


def put(robot, arena):
    robot.reset(0)
    robot.arena = arena
    robot._base.place(arena)
    robot._place = arena.start[:2]


def test_equal_seeds_give_equal_pixels_whatever_happened_before(robot):
    check_robot(robot)


def test_two_robots_agree_bit_by_bit(robot):
    other = SimRobot(SimSettings())
    for each in (robot, other):
        each.reset(7)
        for _ in range(5):
            each.advance((0.2, 0.1), (0.5, -0.4))
    a, b = robot.read(images=True), other.read(images=True)
    assert a.state.tobytes() == b.state.tobytes()
    assert all(a.images[key].tobytes() == b.images[key].tobytes() for key in a.images)


def test_other_seeds_give_other_arenas(robot):
    robot.reset(1)
    first = robot.read(images=True)
    robot.reset(2)
    assert (robot.read(images=True).images[DEPTH] != first.images[DEPTH]).mean() > 0.5


@pytest.mark.parametrize(("mode", "cameras"), [("none", 0), ("front", 2), ("front_rear", 4)])
def test_the_robot_carries_as_many_cameras_as_asked(mode, cameras):
    robot = SimRobot(SimSettings(cameras=mode, image_height=24, image_width=42))
    check_robot(robot, ticks=3)
    assert len(robot.spec.cameras) == cameras


def test_images_are_height_first(robot):
    reading = robot.read(images=True)
    assert reading.images[RGB].shape == (60, 106, 3)
    assert reading.images[DEPTH].shape == (60, 106)


def test_an_image_of_the_real_cameras_size_shows_the_same_scene():
    arena = draw_arena(3, SimSettings())
    pose = (*arena.start, 0.0, 0.0)
    small = render(Lens.of(60, 106, 69.0, 0.2), pose, arena, 0, 0.0)[1]
    large = render(Lens.of(240, 424, 69.0, 0.2), pose, arena, 0, 0.0)[1]
    middle = large[2::4, 2::4].astype(float)
    assert np.median(np.abs(middle - small) / np.maximum(small, 1)) < 0.02


def test_depth_is_planar_and_exact_without_noise():
    lens = Lens.of(60, 106, 69.0, 0.2)
    depth = render(lens, (0.0, 0.0, 0.0, 0.0, 0.0), room(box(2.0, 0.0, 0.5, 1.2)), 0, 0.0)[1]
    assert (depth[25, 10:96] == 1500).all()  # a flat face has one planar depth, not one ray length


def test_a_cylinder_is_nearest_where_its_analytic_hit_is():
    lens = Lens.of(60, 107, 69.0, 0.2)
    depth = render(lens, (0.0, 0.0, 0.0, 0.0, 0.0), room(cylinder(1.5, 0.1, 0.3)), 0, 0.0)[1][28] * 1e-3
    for u in (53, 48, 60):
        slope = (53 - u) / lens.focal_px
        a, b, c = 1 + slope**2, -2 * (1.5 + 0.1 * slope), 1.5**2 + 0.1**2 - 0.3**2
        assert depth[u] == pytest.approx((-b - math.sqrt(b * b - 4 * a * c)) / (2 * a), abs=6e-4)


def test_the_floor_has_the_depth_of_its_row():
    lens = Lens.of(60, 106, 69.0, 0.2)
    depth = render(lens, (0.0, 0.0, 0.0, 0.0, 0.0), room(), 0, 0.0)[1]
    for v in (45, 52, 59):
        assert depth[v, 40] == pytest.approx(1000 * lens.focal_px * 0.2 / (v - 29.5), abs=1)


def test_walls_are_seen_and_the_sky_has_no_depth():
    depth = render(Lens.of(60, 106, 69.0, 0.2), (0.0, 0.0, 0.0, 0.0, 0.0), room(), 0, 0.0)[1]
    assert depth[28, 53] == 3000
    assert depth[0, 53] == 0


def test_left_is_left_in_the_image():
    depth = render(Lens.of(60, 106, 69.0, 0.2), (0.0, 0.0, 0.0, 0.0, 0.0), room(cylinder(1.0, 0.4, 0.2)), 0, 0.0)[1]
    assert depth[28, :53].min() < 1000 < depth[28, 60:].min()


def test_a_tall_obstacle_shows_above_a_low_one():
    arena = room(box(1.0, 0.0, 0.1, 0.5, height=0.3), box(2.0, 0.0, 0.1, 0.5, height=0.9))
    column = render(Lens.of(60, 106, 69.0, 0.2), (0.0, 0.0, 0.0, 0.0, 0.0), arena, 0, 0.0)[1][:, 53]
    assert column[28] == 900
    assert 1900 in column[:20]


def test_looking_down_moves_the_scene_up():
    lens, arena = Lens.of(60, 106, 69.0, 0.2), room(box(1.5, 0.0, 0.2, 0.2))
    level, down = (render(lens, (0.0, 0.0, 0.0, 0.0, pitch), arena, 0, 0.0)[1][:, 53] for pitch in (0.0, 0.1))
    assert np.flatnonzero(down == 1300).mean() < np.flatnonzero(level == 1300).mean() - 5


def test_depth_noise_and_holes_are_as_large_as_declared():
    depth = render(Lens.of(120, 212, 69.0, 0.2), (0.0, 0.0, 0.0, 0.0, 0.0), room(box(2.2, 0.0, 0.2, 2.5)), 5, 1.0)[1]
    band = depth[40:58, 20:190]
    assert (band == 0).mean() == pytest.approx(0.008, abs=0.004)
    assert band[band > 0].std() == pytest.approx(40, rel=0.1)  # 1 % of (2 m) squared is 40 mm


def test_only_the_lane_ahead_counts_as_forward_distance():
    lens = Lens.of(60, 106, 69.0, 0.2)
    far = 8 * np.ones((60, 106), np.int16) * 1000
    far[28, 53] = 700
    assert forward_clearance_m(far, lens) == pytest.approx(0.7)
    far[28, 53], far[28, 5] = 8000, 700  # 0.43 m to the side
    assert forward_clearance_m(far, lens) == CLEAR_M


def test_arenas_keep_their_gaps_and_start_clear():
    for seed in range(40):
        arena = draw_arena(seed, SimSettings())
        ends = np.array((arena.start[:2], arena.goal))
        assert clearance(ends, arena.obstacles).min() >= 0.35
        assert 1.5 <= arena.start_distance_m <= 4.0
        for index, o in enumerate(arena.obstacles):
            assert 3.0 - abs(o[0]) - o[2] - o[4] >= GAP_M - 1e-9
            for other in arena.obstacles[index + 1 :]:
                aside = np.maximum(np.abs(o[:2] - other[:2]) - o[2:4] - other[2:4], 0)
                assert math.hypot(*aside) - o[4] - other[4] >= GAP_M - 1e-9


def test_most_goals_are_hidden_behind_something():
    arenas = [draw_arena(seed, SimSettings()) for seed in range(100)]
    share = np.mean([is_blocked(np.array(a.start[:2]), np.array(a.goal), a.obstacles) for a in arenas])
    assert 0.85 <= share <= 1.0


def test_the_shortest_path_goes_around():
    assert shortest_path_m(room()) == pytest.approx(2.0, rel=0.03)
    corner, spare = math.hypot(0.9, 0.7), 0.17
    tangent, turn = math.sqrt(corner**2 - spare**2), math.atan2(0.7, 0.9) + math.asin(spare / corner)
    around = 2 * (tangent + spare * turn) + 0.2  # a taut string around two corners
    found = shortest_path_m(room(box(1.0, 0.0, 0.1, 0.7)))
    assert around <= found <= 1.07 * around


def test_driving_straight_goes_where_the_command_says(exact):
    put(exact, room(start=(-2.0, 0.0, 0.0)))
    for _ in range(60):
        exact.advance((0.5, 0.0), (0.5, 0.0))
    reading = exact.read(images=False)
    assert reading.pose.x_m == pytest.approx(-2.0 + 0.5 * (6.0 - 0.13), abs=0.05)  # the lag costs 0.13 s
    assert abs(reading.pose.y_m) < 0.01
    assert reading.odometry.x_m == pytest.approx(reading.pose.x_m + 2.0, abs=0.05)


def test_turning_left_is_positive(exact):
    put(exact, room())
    for _ in range(10):
        exact.advance((0.0, 1.0), (0.0, 1.0))
    reading = exact.read(images=False)
    assert reading.pose.yaw_rad == pytest.approx(1.0 - 0.13, abs=0.05)
    assert reading.state[1] == pytest.approx(1.0, abs=0.02)


def test_the_action_in_flight_holds_for_the_delay(exact):
    put(exact, room())
    exact.advance((0.0, 0.0), (0.5, 0.0))
    assert exact.read(images=False).state[0] == pytest.approx(0.5 * 0.35, abs=1e-3)


@pytest.mark.parametrize("obstacle", [box(1.0, 0.0, 0.2, 0.4), cylinder(1.0, 0.0, 0.2)])
def test_touching_an_obstacle_is_a_collision_at_the_rovers_radius(exact, obstacle):
    put(exact, room(obstacle))
    while not exact.read(images=False).collided:
        exact.advance((0.5, 0.0), (0.5, 0.0))
        assert exact.read(images=False).elapsed_s < 5
    assert exact.read(images=False).pose.x_m == pytest.approx(0.8 - RADIUS_M, abs=0.03)


def test_touching_a_wall_is_a_collision_and_stays_one(exact):
    put(exact, room(start=(2.4, 0.0, 0.0)))
    for _ in range(20):
        exact.advance((0.5, 0.0), (0.5, 0.0))
    assert exact.read(images=False).collided
    for _ in range(20):
        exact.advance((0.0, 1.0), (0.0, 1.0))
    assert exact.read(images=False).collided
    exact.reset(0)
    assert not exact.read(images=False).collided


def test_the_imu_feels_gravity_and_acceleration(robot):
    robot.reset(0)
    at_rest = robot.read(images=False).state
    assert at_rest[4] == pytest.approx(9.81, abs=0.3)
    assert abs(at_rest[2]) < 0.02
    assert abs(at_rest[3]) < 0.02


def test_odometry_drifts_from_the_true_pose(robot):
    gaps = []
    for seed in range(5):
        robot.reset(seed)
        for _ in range(30):
            robot.advance((0.0, 1.0), (0.0, 1.0))
        reading = robot.read(images=False)
        turned = reading.pose.yaw_rad - robot.arena.start.yaw_rad
        gaps.append(abs(math.remainder(turned - reading.odometry.yaw_rad, math.tau)))
    assert 0.05 < np.mean(gaps) < 0.6


def test_a_command_that_is_no_number_stops_the_rover(exact):
    put(exact, room())
    exact.advance((math.nan, 0.0), (math.inf, 0.0))
    assert exact.read(images=False).state[0] == 0.0


def test_commands_beyond_the_limits_are_clipped(exact):
    put(exact, room())
    for _ in range(30):
        exact.advance((9.0, 0.0), (9.0, 0.0))
    assert exact.read(images=False).state[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("delay_s", "steps"), [(0.0, [(1, 5), (1, 5)]), (0.03, [(0, 3), (1, 5), (1, 2)])])
def test_a_period_is_cut_at_the_delay(delay_s, steps):
    assert [(which, count) for which, count, _ in _chunks(0.1, delay_s)] == steps


def test_the_stamp_is_the_simulated_clock(robot):
    robot.reset(0)
    before = robot.read(images=False).stamp_ns
    robot.advance((0.0, 0.0), (0.0, 0.0))
    assert robot.read(images=False).stamp_ns - before == 100_000_000
    robot.reset(0)
    assert robot.read(images=False).stamp_ns == before + 100_000_000


def test_the_path_driven_is_counted(exact):
    put(exact, room(start=(-2.0, 0.0, 0.0)))
    for _ in range(20):
        exact.advance((0.5, 0.0), (0.5, 0.0))
    reading = exact.read(images=False)
    assert reading.world["path_m"] == pytest.approx(reading.pose.x_m + 2.0, abs=0.01)
