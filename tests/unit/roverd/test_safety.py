"""The last word on every action: who drives, what forbids motion, and what is taken away from an action."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.step import SOURCES
from protocol.step import Intervention as Flag
from roverd.control.motion import Stall, Stop
from roverd.control.safety import (
    FALLBACK,
    GATE,
    HUMAN,
    POLICY,
    SCRIPTED,
    Limits,
    Memory,
    Verdict,
    safe,
    start,
)
from tests.unit.roverd.safe_robot import ARM, BASE, FORWARD, INF, NAN, Robot

ZERO = (0.0, 0.0)


@pytest.fixture
def robot() -> Robot:
    return Robot()


def test_an_ordinary_proposal_is_applied_as_it_is(robot: Robot) -> None:
    assert robot.tick() == Verdict(FORWARD, POLICY, 0, None)


def test_flags_are_a_plain_number_for_the_wire(robot: Robot) -> None:
    assert type(robot.tick((9.0, 0.0)).interventions) is int


def test_the_sources_are_those_of_the_record() -> None:
    names = [SOURCES[index] for index in (POLICY, HUMAN, SCRIPTED, GATE, FALLBACK)]
    assert names == ["policy", "human", "scripted", "gate", "fallback"]


def test_a_tick_remembers_what_it_applied_and_what_that_gained(robot: Robot) -> None:
    robot.tick()
    assert robot.memory == Memory(FORWARD, FORWARD, Stop(), is_tilted=False, stall=Stall())
    robot.tick((0.5, -0.25))
    assert (robot.memory.last, robot.memory.change) == ((0.5, -0.25), (0.25, -0.25))


# -- who drives -----------------------------------------------------------------------------------------------------


def test_a_human_beats_the_policy(robot: Robot) -> None:
    wheel = robot.wheel((0.1, -0.1))
    assert robot.tick(wheel=wheel) == Verdict((0.1, -0.1), HUMAN, Flag.HUMAN, wheel)


def test_a_human_drives_without_any_policy(robot: Robot) -> None:
    assert robot.tick(None, wheel=robot.wheel((0.1, 0.0))).source == HUMAN


def test_the_emergency_stop_beats_the_human(robot: Robot) -> None:
    wheel = robot.wheel((0.1, -0.1), locks=True)
    assert robot.tick(wheel=wheel, e_stop=True) == Verdict(ZERO, FALLBACK, Flag.E_STOP, wheel)


@pytest.mark.parametrize(("ms", "source"), [(1, HUMAN), (0, HUMAN), (-1, POLICY)])
def test_a_humans_command_counts_until_its_time(robot: Robot, ms: int, source: int) -> None:
    assert robot.tick(wheel=robot.wheel((0.1, 0.0), ms=ms)).source == source


def test_of_an_expired_command_nothing_is_left(robot: Robot) -> None:
    assert robot.tick(wheel=robot.wheel((0.1, 0.0), ms=-1)) == Verdict(FORWARD, POLICY, 0, None)


def test_an_expired_command_ends_under_the_emergency_stop_too(robot: Robot) -> None:
    assert robot.tick(wheel=robot.wheel((0.1, 0.0), ms=-1), e_stop=True).wheel is None


def test_when_a_human_who_locked_the_wheel_is_gone_nobody_drives(robot: Robot) -> None:
    wheel = robot.wheel((0.1, 0.0), ms=-1, locks=True)
    assert robot.tick(wheel=wheel) == Verdict(ZERO, FALLBACK, Flag.HUMAN | Flag.WHEEL_LOCKED, wheel)


def test_without_a_proposal_the_safe_action_is_applied(robot: Robot) -> None:
    assert robot.tick(None) == Verdict(ZERO, FALLBACK, Flag.MISSED, None)


@pytest.mark.parametrize("bad", [(NAN, 0.0), (0.0, INF), (-INF, NAN)])
def test_a_non_finite_proposal_is_replaced_by_the_safe_action(robot: Robot, bad: tuple[float, float]) -> None:
    assert robot.tick(bad) == Verdict(ZERO, FALLBACK, Flag.NON_FINITE, None)


def test_a_human_who_says_nonsense_does_not_take_the_wheel(robot: Robot) -> None:
    wheel = robot.wheel((NAN, 0.0))
    assert robot.tick(wheel=wheel) == Verdict(FORWARD, POLICY, Flag.NON_FINITE, wheel)


def test_a_human_who_locked_the_wheel_and_says_nonsense_stands(robot: Robot) -> None:
    wheel = robot.wheel((0.0, NAN), locks=True)
    expected = Flag.HUMAN | Flag.WHEEL_LOCKED | Flag.NON_FINITE
    assert robot.tick(wheel=wheel) == Verdict(ZERO, FALLBACK, expected, wheel)


@pytest.mark.parametrize("changes", [{}, {"e_stop": True}, {"age_ns": 10**10}, {"proposal": None}])
def test_the_flags_of_a_proposal_are_passed_on(robot: Robot, changes: dict[str, object]) -> None:
    flags = int(Flag.FAILOVER | Flag.LATE)
    assert robot.tick(proposal_flags=flags, **changes).interventions & flags == flags


# -- what forbids motion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age_ns", "is_stale"), [(180_000_000, False), (180_000_001, True)])
def test_an_observation_is_stale_beyond_its_limit(robot: Robot, age_ns: int, is_stale: bool) -> None:  # noqa: FBT001
    expected = Verdict(ZERO, FALLBACK, Flag.STALE, None) if is_stale else Verdict(FORWARD, POLICY, 0, None)
    assert robot.tick(age_ns=age_ns) == expected


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"is_frozen": True}, Flag.FROZEN),
        ({"is_finite": False}, Flag.NON_FINITE),
        ({"clearance_m": NAN}, Flag.NON_FINITE),
        ({"clearance_m": INF}, Flag.NON_FINITE),
        ({"speed_mps": NAN}, Flag.NON_FINITE),
        ({"roll_rad": NAN}, Flag.NON_FINITE | Flag.TILTED),
        ({"pitch_rad": -INF}, Flag.NON_FINITE | Flag.TILTED),
        ({"roll_rad": 0.7}, Flag.TILTED),
        ({"pitch_rad": -0.7}, Flag.TILTED),
    ],
)
def test_what_forbids_motion_stops_policy_and_human(robot: Robot, changes: dict[str, float], flag: Flag) -> None:
    assert robot.tick(**changes) == Verdict(ZERO, FALLBACK, flag, None)
    wheel = robot.wheel((0.1, 0.0))
    assert robot.tick(wheel=wheel, **changes) == Verdict(ZERO, FALLBACK, flag | Flag.HUMAN, wheel)


def test_all_that_forbids_motion_is_named(robot: Robot) -> None:
    flags = robot.tick(None, age_ns=10**9, is_frozen=True, is_finite=False, roll_rad=1.0).interventions
    assert flags == Flag.MISSED | Flag.STALE | Flag.FROZEN | Flag.NON_FINITE | Flag.TILTED


def test_what_forbids_motion_is_named_under_the_emergency_stop_too(robot: Robot) -> None:
    assert robot.tick(e_stop=True, is_frozen=True).interventions == Flag.E_STOP | Flag.FROZEN


def test_a_robot_that_leans_moves_again_only_when_it_stands_clearly_upright(robot: Robot) -> None:
    tilted = [robot.tick(roll_rad=roll).interventions for roll in (0.6, 0.61, 0.49, 0.47, 0.59)]
    assert tilted == [0, Flag.TILTED, Flag.TILTED, 0, 0]


def test_roll_and_pitch_lean_together(robot: Robot) -> None:
    assert robot.tick(roll_rad=0.45, pitch_rad=0.45).interventions == Flag.TILTED


def test_a_robot_that_measures_nothing_of_its_pose_speed_or_surroundings_drives() -> None:
    robot = Robot(replace(BASE, stall_after_ns=1))
    for _ in range(30):
        verdict = robot.tick(clearance_m=None, speed_mps=None, roll_rad=None, pitch_rad=None)
        assert verdict == Verdict(FORWARD, POLICY, 0, None)


@pytest.mark.parametrize("one", [{"roll_rad": None, "pitch_rad": 0.7}, {"roll_rad": 0.7, "pitch_rad": None}])
def test_one_angle_is_enough_to_lean(robot: Robot, one: dict[str, float]) -> None:
    assert robot.tick(**one).interventions == Flag.TILTED


def test_tilt_can_be_switched_off() -> None:
    assert Robot(replace(BASE, max_tilt_rad=0.0)).tick(roll_rad=3.0).interventions == 0


# -- what is taken away ---------------------------------------------------------------------------------------------


def test_an_action_beyond_the_limits_is_clamped_and_belongs_to_the_gate(robot: Robot) -> None:
    assert robot.tick((9.0, -9.0)) == Verdict((0.5, -1.5), GATE, Flag.LIMITED, None)


def test_a_clamped_action_of_a_human_stays_theirs(robot: Robot) -> None:
    wheel = robot.wheel((9.0, 0.0))
    assert robot.tick(wheel=wheel) == Verdict((0.5, 0.0), HUMAN, Flag.HUMAN | Flag.LIMITED, wheel)


def test_a_clamped_action_of_a_scripted_controller_stays_its_own(robot: Robot) -> None:
    assert robot.tick((-9.0, 0.0), proposal_source=SCRIPTED) == Verdict((-0.5, 0.0), SCRIPTED, Flag.LIMITED, None)


def test_an_obstacle_stops_forward_motion_only(robot: Robot) -> None:
    assert robot.tick(clearance_m=0.2) == Verdict((0.0, 0.5), GATE, Flag.FORWARD_STOP, None)


@pytest.mark.parametrize("clearance_m", [0.0, 0.3])
def test_reversing_and_turning_before_an_obstacle_is_no_intervention(robot: Robot, clearance_m: float) -> None:
    assert robot.tick((-0.3, 1.0), clearance_m=clearance_m) == Verdict((-0.3, 1.0), POLICY, 0, None)


def test_standing_before_an_obstacle_is_no_intervention(robot: Robot) -> None:
    assert robot.tick((0.0, 1.0), clearance_m=0.0) == Verdict((0.0, 1.0), POLICY, 0, None)


def test_a_human_is_stopped_before_an_obstacle_too(robot: Robot) -> None:
    verdict = robot.tick(wheel=robot.wheel((0.5, 0.0)), clearance_m=0.1)
    assert (verdict.action, verdict.source, verdict.interventions) == (ZERO, HUMAN, Flag.HUMAN | Flag.FORWARD_STOP)


def test_the_stop_releases_after_two_new_images_that_are_free_from_farther_away() -> None:
    robot = Robot(replace(BASE, slow_distance_m=0.0))
    clearances = (0.25, 0.249, 0.299, 0.31, 0.299, 0.31, 0.31, 0.26)
    stopped = [robot.tick(clearance_m=each).interventions for each in clearances]
    assert stopped == [0, *[Flag.FORWARD_STOP] * 5, 0, 0]


def test_an_image_that_is_seen_again_does_not_release_the_stop(robot: Robot) -> None:
    robot.tick(clearance_m=0.1)
    assert [robot.tick(frame=frame).interventions for frame in (1, 1, 2, 2, 2, 3)] == [*[Flag.FORWARD_STOP] * 5, 0]


def test_ticks_without_a_proposal_do_not_release_the_stop(robot: Robot) -> None:
    robot.tick(clearance_m=0.1)
    robot.tick(None, clearance_m=0.28)
    assert robot.tick(clearance_m=0.28).interventions == Flag.FORWARD_STOP


def test_a_camera_that_measures_nothing_any_more_does_not_release_the_stop(robot: Robot) -> None:
    robot.tick(clearance_m=0.1)
    assert robot.tick(clearance_m=None).interventions == Flag.FORWARD_STOP


def test_the_stop_can_be_switched_off() -> None:
    robot = Robot(replace(BASE, safety_distance_m=0.0, slow_distance_m=0.0))
    assert robot.tick(clearance_m=0.0).interventions == 0


def test_a_robot_without_a_forward_element_is_not_stopped() -> None:
    robot = Robot(replace(BASE, forward=-1, stall_after_ns=1))
    assert [robot.tick(clearance_m=0.0, speed_mps=0.0).interventions for _ in range(5)] == [0] * 5


@pytest.mark.parametrize(("forward", "action"), [(0, (0.0, 0.2, 0.3)), (1, (0.1, 0.0, 0.3)), (2, (0.1, 0.2, 0.0))])
def test_forward_may_be_any_element(forward: int, action: tuple[float, ...]) -> None:
    robot = Robot(Limits((-1.0,) * 3, (1.0,) * 3, (0.0,) * 3, 0.1, forward=forward))
    assert robot.tick((0.1, 0.2, 0.3), clearance_m=0.1, speed_mps=0.5).action == action


@pytest.mark.parametrize("action", [(0.1,), (0.1, 0.2, 0.3)])
def test_an_action_of_another_length_is_an_error(robot: Robot, action: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="argument"):
        robot.tick(action)
    with pytest.raises(ValueError, match="argument"):
        safe(robot.limits, action)


@pytest.mark.parametrize("field", ["last", "change"])
def test_a_memory_of_another_robot_is_an_error(robot: Robot, field: str) -> None:
    robot.memory = robot.memory._replace(**{field: (0.0, 0.0, 0.0)})
    with pytest.raises(ValueError, match="argument"):
        robot.tick()
    robot.memory = robot.memory._replace(last=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="argument"):
        robot.tick(None)


@pytest.mark.parametrize(("clearance_m", "speed"), [(0.6, 0.5), (0.425, 0.25), (0.32, 0.1)])
def test_towards_an_obstacle_the_speed_falls_linearly(robot: Robot, clearance_m: float, speed: float) -> None:
    verdict = robot.tick((0.5, 1.0), clearance_m=clearance_m)
    assert verdict.action == pytest.approx((speed, 1.0))
    assert (verdict.interventions, verdict.source) == ((Flag.SLOWED, GATE) if speed < 0.5 else (0, POLICY))


def test_a_speed_that_is_slow_enough_is_not_slowed(robot: Robot) -> None:
    assert robot.tick((0.2, 0.0), clearance_m=0.425) == Verdict((0.2, 0.0), POLICY, 0, None)


def test_a_robot_that_does_not_move_as_told_is_stopped_in_that_direction_for_a_while(robot: Robot) -> None:
    seen = [robot.tick(speed_mps=0.01).interventions for _ in range(24)]
    assert seen == [0] * 11 + [Flag.STALLED] * 10 + [0] * 3  # the first tick commands, the next ten watch
    assert robot.memory.stall.sign == 1.0


def test_a_stalled_robot_may_turn_and_drive_the_other_way(robot: Robot) -> None:
    for _ in range(12):
        verdict = robot.tick(speed_mps=0.0)
    assert verdict == Verdict((0.0, 0.5), GATE, Flag.STALLED, None)
    assert robot.tick((-0.3, 1.0), speed_mps=0.0) == Verdict((-0.3, 1.0), POLICY, 0, None)


def test_what_blocks_the_way_back_never_stops_forward_motion(robot: Robot) -> None:
    for _ in range(12):
        verdict = robot.tick((-0.3, 0.0), speed_mps=0.0)
    assert verdict.interventions == Flag.STALLED
    assert robot.tick(speed_mps=0.0) == Verdict(FORWARD, POLICY, 0, None)


def test_commands_too_small_for_the_motors_are_no_stall(robot: Robot) -> None:
    assert [robot.tick((0.029, 0.0), speed_mps=0.0).interventions for _ in range(30)] == [0] * 30


def test_the_shortest_time_to_a_stall_is_no_switch() -> None:
    robot = Robot(replace(BASE, stall_after_ns=1))
    assert [robot.tick(speed_mps=0.0).interventions for _ in range(3)] == [0, 0, Flag.STALLED]


def test_stalls_can_be_switched_off() -> None:
    robot = Robot(replace(BASE, stall_after_ns=0))
    assert [robot.tick(speed_mps=0.0).interventions for _ in range(30)] == [0] * 30


def test_speeding_up_is_limited_and_slowing_down_is_not() -> None:
    robot = Robot(replace(BASE, max_acceleration=(1.0, 5.0)))
    actions = [robot.tick(each).action for each in ((0.25, 0.75), (0.25, 0.75), (0.25, 1.0), (0.5, 0.0), (-0.3, 0.0))]
    assert actions == [pytest.approx(e) for e in ((0.1, 0.5), (0.2, 0.75), (0.25, 1.0), (0.35, 0.0), (-0.1, 0.0))]


def test_what_was_held_back_while_speeding_up_is_flagged() -> None:
    robot = Robot(replace(BASE, max_acceleration=(2.0, 0.0)))
    assert robot.tick((0.25, 1.5)) == Verdict((0.2, 1.5), GATE, Flag.RAMPED, None)
    assert robot.tick((0.25, 1.5)) == Verdict((0.25, 1.5), POLICY, 0, None)


def test_jerk_limits_how_fast_acceleration_grows() -> None:
    robot = Robot(replace(BASE, max_acceleration=(1.5, 0.0), max_jerk=(5.0, 0.0)))
    speeds = [robot.tick((0.5, 1.0)).action[0] for _ in range(6)]
    assert speeds == pytest.approx([0.05, 0.15, 0.3, 0.45, 0.5, 0.5])


def test_each_element_has_its_own_jerk() -> None:
    robot = Robot(replace(BASE, max_jerk=(0.0, 10.0)))
    assert robot.tick((0.5, 1.0)) == Verdict((0.5, pytest.approx(0.1)), GATE, Flag.RAMPED, None)


def test_the_safe_action_takes_no_time_and_speed_is_built_up_anew() -> None:
    robot = Robot(replace(BASE, max_acceleration=(1.0, 1.0)))
    for _ in range(5):
        robot.tick((0.5, 0.0))
    assert robot.tick((0.5, 0.0), e_stop=True).action == ZERO
    assert robot.tick((0.5, 0.0)).action == pytest.approx((0.1, 0.0))


def test_the_forward_stop_takes_no_time() -> None:
    robot = Robot(replace(BASE, max_acceleration=(1.0, 1.0)))
    for _ in range(5):
        robot.tick((0.5, 0.0))
    assert robot.tick((0.5, 0.0), clearance_m=0.1).action == ZERO


def test_all_that_was_taken_away_is_named() -> None:
    robot = Robot(replace(BASE, max_acceleration=(1.0, 1.0)))
    flags = robot.tick((9.0, 0.0), clearance_m=0.5).interventions
    assert flags == Flag.LIMITED | Flag.SLOWED | Flag.RAMPED


# -- the safe action ------------------------------------------------------------------------------------------------


def test_an_element_without_a_safe_value_stays_where_it_was_put(robot: Robot) -> None:
    robot = Robot(ARM)
    robot.tick((0.1, 2.0))
    assert [robot.tick(None).action for _ in range(3)] == [(0.0, 2.0)] * 3


def test_the_safe_action_is_made_of_safe_values_and_what_was_applied_last() -> None:
    assert safe(ARM, (0.1, -2.0)) == (0.0, -2.0)


@pytest.mark.parametrize(
    ("limits", "last", "expected"),
    [
        (BASE, None, ZERO),
        (ARM, None, ZERO),
        (ARM, (0.1, 2.0), (0.0, 2.0)),
        (replace(ARM, low=(0.0, 1.0)), None, (0.0, 1.0)),
        (replace(ARM, high=(0.2, -1.0)), None, (0.0, -1.0)),
    ],
)
def test_a_robot_starts_at_its_safe_action(limits: Limits, last, expected: tuple[float, float]) -> None:
    assert start(limits, last) == Memory(expected, ZERO)
