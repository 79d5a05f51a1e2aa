"""The arithmetic of the safety gate, one number at a time."""

from __future__ import annotations

import math

import pytest

from roverd.control.motion import (
    Stall,
    Stop,
    clamp,
    gain,
    is_stalled,
    is_tilted,
    ramp,
    speed_cap,
    watch_clearance,
    watch_speed,
)

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(("value", "clamped"), [(-2.0, -1.0), (-1.0, -1.0), (0.5, 0.5), (3.0, 2.0)])
def test_a_value_is_clamped_to_its_limits(value: float, clamped: float) -> None:
    assert clamp(value, -1.0, 2.0) == clamped


def test_at_first_nothing_is_stopped_and_nothing_is_known() -> None:
    assert tuple(Stop()) == (False, -1, 0)
    assert tuple(Stall()) == (0.0, 0, None, None)


# -- ramps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("wanted", "last", "speed"),
    [
        (1.0, 0.0, 0.25),
        (1.0, 0.5, 0.75),
        (0.6, 0.5, 0.6),
        (0.5, 0.5, 0.5),
        (0.1, 0.5, 0.1),
        (0.0, 0.5, 0.0),
        (-1.0, 0.5, -0.25),
        (-0.125, 0.5, -0.125),
    ],
)
def test_only_speeding_up_takes_time(sign: int, wanted: float, last: float, speed: float) -> None:
    assert ramp(sign * wanted, sign * last, 0.0, 0.25, INF) == sign * speed


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("last", "gained", "speed"),
    [
        (0.5, 0.0, 0.625),
        (0.5, 0.0625, 0.6875),
        (0.5, 0.25, 0.75),
        (0.5, -0.25, 0.625),
        (0.0, 0.25, 0.125),
        (-0.5, 0.25, 0.125),
    ],
)
def test_a_tick_gains_only_so_much_more_than_the_one_before(
    sign: int, last: float, gained: float, speed: float
) -> None:
    assert ramp(sign * 1.0, sign * last, sign * gained, 0.25, 0.125) == sign * speed


@pytest.mark.parametrize("wanted", [-1e300, -0.0, 0.0, 7.0])
def test_without_limits_speed_is_what_is_wanted(wanted: float) -> None:
    assert ramp(wanted, 0.5, 0.0, INF, INF) == wanted


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("speed", "last", "gained"),
    [(0.5, 0.25, 0.25), (0.25, 0.5, -0.25), (0.25, -0.5, 0.25), (0.25, 0.0, 0.25), (0.0, 0.5, 0.0)],
)
def test_what_a_tick_gained_counts_from_zero_where_the_direction_changed(
    sign: int, speed: float, last: float, gained: float
) -> None:
    assert gain(sign * speed, sign * last) == sign * gained


# -- obstacles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clearance_m", "cap"), [(-1.0, 0.0), (0.25, 0.0), (0.5, 0.5), (0.75, 1.0), (1.25, 2.0)])
def test_the_cap_of_the_speed_falls_with_the_clearance(clearance_m: float, cap: float) -> None:
    assert speed_cap(clearance_m, 0.25, 0.75, 1.0) == cap


@pytest.mark.parametrize("slow_distance_m", [0.0, 0.2, 0.25])
def test_there_is_no_cap_within_the_safety_distance(slow_distance_m: float) -> None:
    assert speed_cap(0.1, 0.25, slow_distance_m, 1.0) == INF


def watched(stop: Stop, clearance_m: float, frame: int) -> Stop:
    return watch_clearance(stop, clearance_m, frame, stop_at_m=0.25, free_from_m=0.5, frames=2)


@pytest.mark.parametrize("clearance_m", [0.0, 0.2, -1.0, NAN])
def test_one_image_stops(clearance_m: float) -> None:
    assert watched(Stop(), clearance_m, 7) == Stop(is_stopped=True, frame=7, free_frames=0)


def test_a_free_image_does_not_stop() -> None:
    assert watched(Stop(), 0.25, 7) == Stop()


def test_an_obstacle_begins_the_count_of_free_images_anew() -> None:
    assert watched(Stop(True, 7, 1), 0.2, 8) == Stop(True, 8, 0)


@pytest.mark.parametrize(
    ("before", "clearance_m", "frame", "after"),
    [
        (Stop(True, 7, 0), 0.5, 8, Stop(True, 8, 1)),
        (Stop(True, 7, 1), 0.5, 8, Stop(False, 8, 2)),
        (Stop(True, 7, 1), 0.5, 6, Stop(False, 6, 2)),
        (Stop(True, 7, 1), 0.5, 7, Stop(True, 7, 1)),
        (Stop(True, 7, 1), 0.49, 8, Stop(True, 8, 0)),
    ],
)
def test_only_new_images_in_a_row_that_are_clearly_free_release(
    before: Stop, clearance_m: float, frame: int, after: Stop
) -> None:
    assert watched(before, clearance_m, frame) == after


# -- tilt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roll", "pitch", "was", "now"),
    [
        (0.5, 0.0, False, False),
        (0.0, -0.5, False, False),
        (0.51, 0.0, False, True),
        (0.0, -0.51, False, True),
        (0.4, 0.31, False, True),
        (0.41, 0.0, True, True),
        (0.4, 0.0, True, False),
        (NAN, 0.0, False, True),
        (INF, NAN, False, True),
    ],
)
def test_a_robot_leans_by_both_angles_and_stands_upright_again_at_less(
    roll: float,
    pitch: float,
    was: bool,  # noqa: FBT001
    now: bool,  # noqa: FBT001
) -> None:
    assert is_tilted(roll, pitch, 0.5, was_tilted=was) is now


# -- stalls ---------------------------------------------------------------------------------------------------------

T = 1000


def looked(stall: Stall, command: float, speed: float, now_ns: int = T) -> Stall:
    return watch_speed(stall, command, speed, now_ns, least=0.25, after_ns=100)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("speed", [0.0, 0.09, -0.09])
def test_a_robot_that_stands_though_told_to_move_is_watched_from_then_on(sign: float, speed: float) -> None:
    assert looked(Stall(), sign * 0.5, speed) == Stall(sign, T)
    assert looked(Stall(), sign * 0.25, 0.0) == Stall(sign, T)
    assert looked(Stall(sign, T), sign * 0.5, speed, T + 99) == Stall(sign, T)


@pytest.mark.parametrize(("sign", "stopped"), [(1.0, {"forward_ns": T + 100}), (-1.0, {"back_ns": T + 100})])
def test_when_it_stood_for_long_its_direction_is_stopped(sign: float, stopped: dict[str, int]) -> None:
    assert looked(Stall(sign, T), sign * 0.5, 0.0, T + 100) == Stall(0.0, T, **stopped)


def test_a_stop_of_one_direction_leaves_that_of_the_other() -> None:
    assert looked(Stall(1.0, T, None, 5), 0.5, 0.0, T + 100) == Stall(0.0, T, T + 100, 5)
    assert looked(Stall(-1.0, T, 5, None), -0.5, 0.0, T + 100) == Stall(0.0, T, 5, T + 100)


@pytest.mark.parametrize(("command", "speed"), [(0.5, 0.1), (0.5, -0.1), (-0.5, 0.1), (0.24, 0.0), (0.0, 0.0)])
def test_a_robot_that_moves_or_was_told_nothing_is_watched_no_more(command: float, speed: float) -> None:
    assert looked(Stall(1.0, 5, 6, 7), command, speed) == Stall(0.0, 5, 6, 7)


def test_the_other_direction_is_watched_from_its_own_beginning() -> None:
    assert looked(Stall(1.0, 5), -0.5, 0.0, T + 100) == Stall(-1.0, T + 100)


@pytest.mark.parametrize(
    ("wanted", "now_ns", "waits"),
    [
        (0.5, T, True),
        (0.5, T + 49, True),
        (0.5, T + 50, False),
        (0.5, T - 1, False),
        (0.0, T, False),
        (-0.5, T, False),
    ],
)
def test_a_stopped_direction_waits_and_no_other_motion_does(wanted: float, now_ns: int, waits: bool) -> None:  # noqa: FBT001
    assert is_stalled(Stall(forward_ns=T), wanted, now_ns, 50) is waits
    assert is_stalled(Stall(back_ns=T), -wanted, now_ns, 50) is waits


def test_nothing_waits_where_nothing_was_stopped() -> None:
    assert not is_stalled(Stall(), 0.5, 0, 50)
    assert not is_stalled(Stall(), -0.5, 0, 50)
