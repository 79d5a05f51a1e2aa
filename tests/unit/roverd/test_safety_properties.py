"""What holds of the safety gate whatever it is told: any numbers, in any order, by anybody."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.step import Intervention as Flag
from roverd.control.safety import (
    FALLBACK,
    GATE,
    HUMAN,
    POLICY,
    SCRIPTED,
    Limits,
    Memory,
    Request,
    Sensed,
    Verdict,
    Wheel,
    decide,
    safe,
    start,
)
from tests.unit.roverd.safe_robot import ARM, BASE, NAN

BRISK = replace(BASE, max_acceleration=(1.0, 2.0))
SMOOTH = replace(BASE, max_acceleration=(1.0, 0.0), max_jerk=(5.0, 8.0), release_frames=1, slow_distance_m=2.0)
TURNTABLE = replace(BASE, forward=-1, low=(-1.0, 0.5), high=(1.0, 2.0), safe_action=(None, 0.5))
IMPATIENT = replace(BASE, stall_after_ns=200_000_000, safety_distance_m=0.0, slow_distance_m=0.0)
KINDS = [BASE, BRISK, SMOOTH, IMPATIENT, ARM, TURNTABLE]
EPSILON = 1e-9

CHANGES = Flag.LIMITED | Flag.FORWARD_STOP | Flag.SLOWED | Flag.RAMPED | Flag.STALLED
STANDS = Flag.STALE | Flag.FROZEN | Flag.TILTED | Flag.E_STOP | Flag.WHEEL_LOCKED
REASONS = STANDS | Flag.MISSED | Flag.NON_FINITE

ANY = st.floats(allow_nan=True, allow_infinity=True)


def mostly(usual: st.SearchStrategy, rare: st.SearchStrategy, times: int = 15) -> st.SearchStrategy:
    """Draw the usual so many times as often as the rare, so that a drive comes to anything before it is stopped."""
    return st.integers(0, times).flatmap(lambda n: rare if n == times else usual)


ACTIONS = st.tuples(mostly(st.floats(-0.6, 0.6), ANY), mostly(st.floats(-2.0, 2.0), ANY))
TIMES = st.sampled_from((-180_000_001, -1, 0, 1, 180_000_000, 180_000_001)) | st.integers(-(10**10), 10**10)
REQUESTS = st.builds(
    Request,
    mostly(ACTIONS, st.none()),
    mostly(st.just(POLICY), st.just(SCRIPTED), 3),
    mostly(st.none(), st.builds(Wheel, ACTIONS, TIMES, st.booleans()), 2),
    mostly(st.just(False), st.just(True)),
    mostly(st.just(0), st.sampled_from((int(Flag.FAILOVER), int(Flag.LATE)))),
)
SENSED = st.builds(
    Sensed,
    st.just(0),
    mostly(st.just(0), TIMES),
    mostly(st.floats(0.0, 1.0), st.none() | ANY),
    st.integers(0, 3),
    mostly(st.just(False), st.just(True)),
    mostly(st.sampled_from((0.0, 0.0, 0.0, 0.5)), st.none() | ANY),
    mostly(st.floats(-0.55, 0.55), st.none() | ANY),
    mostly(st.floats(-0.2, 0.2), st.none() | ANY),
    mostly(st.just(True), st.just(False)),
)


class Tick(NamedTuple):
    """One tick: what it knew, and what it said."""

    limits: Limits
    request: Request
    sensed: Sensed
    before: Memory
    verdict: Verdict
    after: Memory


@st.composite
def drives(draw, kinds=KINDS) -> list[Tick]:
    """Return the ticks of a drive; the clock goes on by 100 to 400 ms."""
    limits, now_ns = draw(st.sampled_from(kinds)), draw(TIMES)
    memory, ticks = start(limits), []
    for asked, known, periods in draw(st.lists(st.tuples(REQUESTS, SENSED, st.integers(1, 4)), max_size=10)):
        now_ns += periods * 100_000_000
        wheel = asked.wheel and asked.wheel._replace(until_ns=now_ns + asked.wheel.until_ns)
        request, sensed = asked._replace(wheel=wheel), known._replace(now_ns=now_ns)
        verdict, after = decide(limits, request, sensed, memory)
        ticks.append(Tick(limits, request, sensed, memory, verdict, after))
        memory = after
    return ticks


def prove(kinds=KINDS):
    """Make a property of a test that takes one tick of a drive."""

    def decorate(holds):
        @settings(deadline=None)
        @given(drives(kinds))
        def run(ticks: list[Tick]) -> None:
            for tick in ticks:
                holds(tick)

        run.__name__ = holds.__name__
        return run

    return decorate


def wanted(tick: Tick) -> tuple[float, ...]:
    """Return what the source of a tick that is no fallback asked for."""
    chosen = tick.request.wheel.action if tick.verdict.source == HUMAN else tick.request.proposal
    assert chosen is not None
    return chosen


def is_driven(tick: Tick) -> bool:
    return tick.verdict.source != FALLBACK


@prove()
def test_what_is_applied_is_finite_and_within_limits(tick: Tick) -> None:
    for value, low, high in zip(tick.verdict.action, tick.limits.low, tick.limits.high, strict=True):
        assert low <= value <= high


@prove()
def test_the_same_tick_is_decided_the_same_again(tick: Tick) -> None:
    assert decide(tick.limits, tick.request, tick.sensed, tick.before) == (tick.verdict, tick.after)


@prove()
def test_flags_are_set_if_and_only_if_the_action_was_changed(tick: Tick) -> None:
    flags = tick.verdict.interventions
    if is_driven(tick):
        assert bool(flags & CHANGES) == (tick.verdict.action != wanted(tick))
        is_policys = tick.request.proposal_source == POLICY and not flags & Flag.HUMAN
        assert (tick.verdict.source == GATE) == (is_policys and bool(flags & CHANGES))
    else:
        assert tick.verdict.action == safe(tick.limits, tick.before.last)
        assert flags & REASONS
        assert not flags & CHANGES


@prove()
def test_the_emergency_stop_always_wins(tick: Tick) -> None:
    if tick.request.e_stop:
        assert tick.verdict.action == safe(tick.limits, tick.before.last)
        assert (tick.verdict.source, bool(tick.verdict.interventions & Flag.E_STOP)) == (FALLBACK, True)


@prove()
def test_a_stale_frozen_tilted_or_abandoned_robot_never_moves(tick: Tick) -> None:
    lean = math.hypot(tick.sensed.roll_rad or 0.0, tick.sensed.pitch_rad or 0.0)
    if tick.sensed.age_ns > 180_000_000 or tick.sensed.is_frozen or not lean <= 0.6 or not tick.sensed.is_finite:
        assert tick.verdict.source == FALLBACK
    if tick.verdict.interventions & STANDS:
        assert tick.verdict.action == safe(tick.limits, tick.before.last)


@prove()
def test_on_a_measurement_that_is_no_number_the_robot_never_moves(tick: Tick) -> None:
    numbers = (tick.sensed.clearance_m, tick.sensed.speed_mps, tick.sensed.roll_rad, tick.sensed.pitch_rad)
    if not all(math.isfinite(number) for number in numbers if number is not None):
        assert tick.verdict.source == FALLBACK
        assert tick.verdict.interventions & Flag.NON_FINITE


@prove()
def test_a_lock_that_expired_never_lets_the_policy_drive(tick: Tick) -> None:
    wheel = tick.request.wheel
    if wheel is not None and wheel.locks:
        assert tick.verdict.wheel is wheel
        assert tick.verdict.source in (HUMAN, FALLBACK)
        if tick.sensed.now_ns > wheel.until_ns:
            assert tick.verdict.source == FALLBACK


@prove()
def test_a_human_drives_if_and_only_if_a_finite_command_counts(tick: Tick) -> None:
    wheel, flags = tick.request.wheel, tick.verdict.interventions
    counts = wheel is not None and tick.sensed.now_ns <= wheel.until_ns and all(map(math.isfinite, wheel.action))
    if counts and not tick.request.e_stop:
        assert flags & Flag.HUMAN
        assert not flags & Flag.WHEEL_LOCKED
        assert tick.verdict.source in (HUMAN, FALLBACK)
    else:
        assert tick.verdict.source != HUMAN


@prove([BASE, BRISK, SMOOTH, ARM])
def test_forward_speed_never_exceeds_what_the_clearance_allows(tick: Tick) -> None:
    limits, clearance = tick.limits, tick.sensed.clearance_m
    if clearance is None:
        return
    speed = tick.verdict.action[0]
    if not clearance >= limits.safety_distance_m:
        assert speed <= 0
    elif math.isfinite(clearance):
        room = limits.slow_distance_m - limits.safety_distance_m
        assert speed <= limits.high[0] * (clearance - limits.safety_distance_m) / room + EPSILON


@prove([BASE])
def test_before_an_obstacle_the_robot_may_always_turn_and_reverse(tick: Tick) -> None:
    if is_driven(tick) and tick.after.stop.is_stopped and not tick.verdict.interventions & Flag.STALLED:
        forward, turn = wanted(tick)
        assert tick.verdict.action[1] == max(-1.5, min(1.5, turn))
        assert tick.verdict.action[0] == max(-0.5, min(0.0, forward))


@prove()
def test_speed_never_grows_faster_than_the_ramp_allows(tick: Tick) -> None:
    if not is_driven(tick):
        return
    for index, (value, last) in enumerate(zip(tick.verdict.action, tick.before.last, strict=True)):
        same_way = value * last > 0
        gained = abs(value) - (abs(last) if same_way else 0.0)
        if tick.limits.max_acceleration and tick.limits.max_acceleration[index] > 0:
            assert gained <= tick.limits.max_acceleration[index] * 0.1 + EPSILON
        if tick.limits.max_jerk and tick.limits.max_jerk[index] > 0:
            before = abs(tick.before.change[index]) if same_way else 0.0
            assert gained <= before + tick.limits.max_jerk[index] * 0.01 + EPSILON


@prove([BRISK, SMOOTH])
def test_slowing_down_is_never_held_back(tick: Tick) -> None:
    if is_driven(tick):
        for value, asked, last in zip(tick.verdict.action, wanted(tick), tick.before.last, strict=True):
            assert abs(value) <= abs(asked)
            if abs(asked) <= abs(last):
                assert abs(value) <= abs(last)


@prove()
def test_numbers_of_the_memory_stay_finite(tick: Tick) -> None:
    assert all(map(math.isfinite, (*tick.after.last, *tick.after.change)))
    assert tick.after.last == tick.verdict.action


@pytest.mark.parametrize("limits", KINDS)
@pytest.mark.parametrize("huge", [1e308, -1e308, 5e-324, 0.0, -0.0])
def test_the_largest_and_smallest_numbers_are_decided_too(limits: Limits, huge: float) -> None:
    request = Request((huge, huge), POLICY, Wheel((huge, huge), 0, locks=False), e_stop=False)
    sensed = Sensed(0, -(2**63), huge, 0, False, huge, huge, huge, True)
    verdict, _ = decide(limits, request, sensed, start(limits))
    assert all(low <= value <= high for value, low, high in zip(verdict.action, limits.low, limits.high, strict=True))
    assert NAN not in verdict.action
