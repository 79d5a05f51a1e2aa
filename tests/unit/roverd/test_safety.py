"""The last word on every action, and the free distance it depends on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.step import SOURCES, Intervention
from roverd.control.safety import (
    FALLBACK,
    GATE,
    HUMAN,
    POLICY,
    SCRIPTED,
    Corridor,
    Limits,
    Verdict,
    decide,
    forward_stop,
)

LIMITS = Limits(low=(-0.5, -1.5), high=(0.5, 1.5), safe_action=(0.0, 0.0))
NAN, INF = math.nan, math.inf


def decided(**changes) -> Verdict:
    """Decide an ordinary tick on which the policy proposes to drive through free space."""
    ordinary = {
        "proposal": (0.25, 0.5),
        "proposal_source": POLICY,
        "human": None,
        "e_stop": False,
        "clearance_m": 8.0,
        "age_ns": 0,
        "was_stopped": False,
    }
    limits = changes.pop("limits", LIMITS)
    return decide(limits, **{**ordinary, **changes})


def test_an_ordinary_proposal_is_applied_as_it_is() -> None:
    assert decided() == Verdict((0.25, 0.5), POLICY, 0, is_stopped=False)


def test_the_sources_are_those_of_the_record() -> None:
    names = [SOURCES[index] for index in (POLICY, HUMAN, SCRIPTED, GATE, FALLBACK)]
    assert names == ["policy", "human", "scripted", "gate", "fallback"]


def test_a_human_beats_the_policy() -> None:
    verdict = decided(human=(0.1, -0.1))
    assert (verdict.action, verdict.source, verdict.interventions) == ((0.1, -0.1), HUMAN, Intervention.HUMAN)


def test_the_emergency_stop_beats_the_human() -> None:
    verdict = decided(human=(0.1, -0.1), e_stop=True)
    assert (verdict.action, verdict.source, verdict.interventions) == ((0.0, 0.0), FALLBACK, Intervention.E_STOP)


def test_without_a_proposal_the_safe_action_is_applied() -> None:
    verdict = decided(proposal=None)
    assert (verdict.action, verdict.source, verdict.interventions) == ((0.0, 0.0), FALLBACK, Intervention.MISSED)


@pytest.mark.parametrize("bad", [(NAN, 0.0), (0.0, INF), (-INF, NAN)])
def test_a_non_finite_proposal_is_replaced_by_the_safe_action(bad: tuple[float, float]) -> None:
    verdict = decided(proposal=bad)
    assert (verdict.action, verdict.source, verdict.interventions) == ((0.0, 0.0), FALLBACK, Intervention.NON_FINITE)


def test_a_non_finite_human_does_not_take_the_wheel() -> None:
    assert decided(human=(NAN, 0.0)).source == POLICY


@pytest.mark.parametrize(("age_ns", "is_stale"), [(200_000_000, False), (200_000_001, True)])
def test_an_observation_is_stale_beyond_its_limit(age_ns: int, is_stale: bool) -> None:  # noqa: FBT001
    assert (decided(age_ns=age_ns).interventions == Intervention.STALE) == is_stale


def test_on_a_stale_observation_not_even_a_human_moves_the_robot() -> None:
    assert decided(human=(0.5, 0.0), age_ns=10**9).action == (0.0, 0.0)


def test_an_action_beyond_the_limits_is_clamped_and_belongs_to_the_gate() -> None:
    verdict = decided(proposal=(9.0, -9.0))
    assert (verdict.action, verdict.source, verdict.interventions) == ((0.5, -1.5), GATE, Intervention.LIMITED)


@pytest.mark.parametrize("source", [HUMAN, SCRIPTED])
def test_a_clamped_action_of_others_stays_theirs(source: int) -> None:
    action = (9.0, 0.0)
    verdict = decided(human=action) if source == HUMAN else decided(proposal=action, proposal_source=SCRIPTED)
    assert verdict.source == source


def test_an_obstacle_stops_forward_motion_only() -> None:
    verdict = decided(clearance_m=0.2)
    assert (verdict.action, verdict.source, verdict.interventions) == ((0.0, 0.5), GATE, Intervention.FORWARD_STOP)


def test_reversing_and_turning_before_an_obstacle_is_no_intervention() -> None:
    verdict = decided(proposal=(-0.3, 1.0), clearance_m=0.0)
    assert (verdict.action, verdict.source, verdict.interventions) == ((-0.3, 1.0), POLICY, 0)


def test_a_human_is_stopped_before_an_obstacle_too() -> None:
    assert decided(human=(0.5, 0.0), clearance_m=0.1).action == (0.0, 0.0)


@pytest.mark.parametrize(
    ("clearance_m", "was_stopped", "is_stopped"),
    [(0.249, False, True), (0.25, False, False), (0.299, True, True), (0.3, True, False), (NAN, False, True)],
)
def test_the_stop_releases_only_farther_away_than_it_stopped(
    clearance_m: float,
    was_stopped: bool,  # noqa: FBT001
    is_stopped: bool,  # noqa: FBT001
) -> None:
    assert decided(clearance_m=clearance_m, was_stopped=was_stopped).is_stopped == is_stopped


def test_a_missing_proposal_does_not_release_the_stop() -> None:
    assert decided(proposal=None, was_stopped=True, clearance_m=0.28).is_stopped


@pytest.mark.parametrize("off", [{"safety_distance_m": 0.0}, {"forward": -1}])
def test_the_stop_can_be_switched_off(off: dict[str, float]) -> None:
    limits = Limits(low=(-0.5,), high=(0.5,), safe_action=(0.0,), **off)
    assert forward_stop((0.5,), limits, 0.0, was_stopped=False) == ((0.5,), False)


def test_without_a_depth_camera_nothing_is_stopped() -> None:
    assert decided(clearance_m=None).action == (0.25, 0.5)


numbers = st.floats(allow_nan=True, allow_infinity=True)
actions = st.none() | st.tuples(numbers, numbers)


@settings(max_examples=150, deadline=None)
@given(
    proposal=actions,
    human=actions,
    proposal_source=st.sampled_from([POLICY, SCRIPTED]),
    e_stop=st.booleans(),
    clearance_m=st.none() | st.floats(0, 8) | st.just(NAN),
    age_ns=st.integers(-(10**9), 10**9),
    was_stopped=st.booleans(),
)
def test_the_action_is_always_finite_within_limits_and_never_forward_into_an_obstacle(**tick) -> None:
    action = decided(**tick).action
    assert all(low <= value <= high for value, low, high in zip(action, LIMITS.low, LIMITS.high, strict=True))
    if tick["clearance_m"] is not None and not tick["clearance_m"] >= LIMITS.safety_distance_m:
        assert action[LIMITS.forward] <= 0


# -- the corridor: scenes with known geometry -----------------------------------------------------------------------

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
