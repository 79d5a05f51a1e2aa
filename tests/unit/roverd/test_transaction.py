"""The stages of a policy on its way to the wheels: what may follow what, and what is not forgiven on the way."""

from __future__ import annotations

import math

import pytest

from protocol.step import SOURCES, Intervention
from roverd.control import wire
from roverd.policies.shadow import LONGEST, Shadow, ShadowError, SilentError
from roverd.policies.transaction import DEADLINES_S, FOLLOWING, Stage, Target, Transaction, TransactionError
from roverd.policies.watch import LEAST, Watch

POLICY = Target("policy", "a" * 64)
WAY = [Stage.PULLING, Stage.VERIFYING, Stage.LOADING, Stage.SHADOWING, Stage.READY, Stage.WATCHING, Stage.SETTLED]
ENDS = {Stage.SETTLED, Stage.REFUSED, Stage.ROLLED_BACK, Stage.ABANDONED}


def at(stage: Stage) -> Transaction:
    made = Transaction(POLICY, 0.0)
    for each in WAY[1 : WAY.index(stage) + 1]:
        made.enter(each, 1.0)
    return made


def test_a_good_policy_goes_through_all_stages_in_order() -> None:
    made = Transaction(POLICY, 10.0)
    for number, stage in enumerate(WAY[1:], 1):
        made.enter(stage, 10.0 + number)
    assert made.stage is Stage.SETTLED
    assert [made.facts[f"{stage.value}_s"] for stage in WAY[:-1]] == [1.0] * 6


@pytest.mark.parametrize("stage", WAY[:5])
@pytest.mark.parametrize("end", [Stage.REFUSED, Stage.ABANDONED])
def test_every_stage_before_driving_may_fail_with_a_reason(stage: Stage, end: Stage) -> None:
    made = at(stage)
    made.enter(end, 2.0, "no good")
    assert (made.stage, made.reason, made.is_under_way) == (end, "no good", False)


def test_only_a_policy_that_drives_is_rolled_back() -> None:
    at(Stage.WATCHING).enter(Stage.ROLLED_BACK, 2.0, "bad")
    for stage in WAY[:5]:
        with pytest.raises(TransactionError):
            at(stage).enter(Stage.ROLLED_BACK, 2.0)


def test_no_stage_is_left_out_but_the_shadow_of_a_script() -> None:
    for before, stage in (
        (Stage.PULLING, Stage.LOADING),
        (Stage.VERIFYING, Stage.READY),
        (Stage.LOADING, Stage.WATCHING),
    ):
        with pytest.raises(TransactionError, match=f"{before.value} -> {stage.value}"):
            at(before).enter(stage, 2.0)
    at(Stage.LOADING).enter(Stage.READY, 2.0)


@pytest.mark.parametrize("end", sorted(ENDS, key=lambda stage: stage.value))
def test_nothing_follows_an_end(end: Stage) -> None:
    assert end not in FOLLOWING


def test_every_stage_has_a_deadline_or_says_that_it_has_none() -> None:
    assert set(DEADLINES_S) == set(FOLLOWING) == set(Stage) - ENDS


def test_a_stage_tells_how_long_it_may_still_take() -> None:
    made = at(Stage.LOADING)
    assert made.remaining_s(11.0) == DEADLINES_S[Stage.LOADING] - 10.0
    assert at(Stage.READY).remaining_s(1e6) is None


def test_a_transaction_under_way_is_shown_with_what_was_measured() -> None:
    made = at(Stage.SHADOWING)
    made.facts["latency_ms"] = 1.5
    shown = made.to_map(4.0)
    assert (shown["stage"], shown["name"], shown["seconds"], shown["latency_ms"]) == ("shadowing", "a" * 64, 4.0, 1.5)


# -- the shadow ---------------------------------------------------------------------------------


def shadow(needed: int = 4, *, is_clocked: bool = True, late_share: float = 0.1) -> Shadow:
    return Shadow(needed, late_share=late_share, patience_s=1.0, is_clocked=is_clocked, slot=1, now_s=0.0)


def answer(*, on_time: bool = True, action: tuple = (0.1, 0.2), slot: int = 1) -> wire.Shadowed:
    return wire.Shadowed(slot, on_time, 1, 2_000_000, action)


def test_a_shadow_passes_once_it_gave_enough_answers() -> None:
    made = shadow()
    for number in range(4):
        assert not made.is_over(0.1 * number)
        made.hear(answer(), 0.1 * number)
        made.ask(0.1 * number)
    assert made.is_over(0.4)
    assert (made.answers, made.unpunctual, made.worst_ms) == (4, 0, 2.0)


def test_a_shadow_that_needs_no_answers_passes_at_once() -> None:
    assert shadow(0).is_over(0.0)


def test_where_the_robot_stands_a_shadow_passes_with_what_it_has() -> None:
    made = shadow()
    made.hear(answer(), 0.5)
    assert not made.is_over(1.4)
    assert made.next_s(1.4) == pytest.approx(0.1)
    assert made.is_over(1.5)
    assert made.answers == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("is_clocked", [True, False])
def test_one_answer_that_is_not_finite_is_enough_to_fail(value, is_clocked) -> None:
    made = shadow(is_clocked=is_clocked)
    made.hear(answer(), 0.0)
    made.hear(answer(action=(0.1, value)), 0.0)
    with pytest.raises(ShadowError, match="1 of 2 live answers were not finite"):
        made.is_over(0.0)


def test_a_shadow_that_is_always_late_fails() -> None:
    made = shadow()
    for number in range(4 * LONGEST):
        assert not made.is_over(0.0)
        made.ask(0.01 * number)
        made.hear(answer(on_time=False), 0.01 * number)
    with pytest.raises(ShadowError, match="16 of 16 live observations late"):
        made.is_over(0.1)


def test_one_late_answer_only_makes_the_shadow_longer() -> None:
    made = shadow()
    for number in range(12):
        made.ask(0.0)
        made.hear(answer(on_time=number != 0), 0.0)
        if number < 9:
            assert not made.is_over(0.0), "1 of 9 is more than a tenth"
    assert made.is_over(0.0)


def test_an_answer_that_never_came_counts_as_late() -> None:
    made = shadow()
    for number in range(4 * LONGEST):
        made.ask(0.0)
        if number % 2:
            made.hear(answer(), 0.0)
    with pytest.raises(ShadowError, match="7 of 16"):
        made.is_over(0.0)


def test_in_lock_step_nobody_waits_for_a_shadow_so_that_only_its_content_counts() -> None:
    made = shadow(is_clocked=False)
    for number in range(100):
        made.ask(0.0)
        if number % 25 == 0:
            assert not made.is_over(0.0)
            made.hear(answer(on_time=False), 0.0)
    made.hear(answer(), 0.0)
    assert made.late == made.unpunctual == 0
    assert made.is_over(0.0)


@pytest.mark.parametrize("is_clocked", [True, False])
def test_a_shadow_that_never_answers_although_the_robot_drives_is_silent(is_clocked) -> None:
    made = shadow(is_clocked=is_clocked)
    for number in range(20):
        made.ask(0.05 * number)
        assert not made.is_over(0.05 * number)
    made.ask(1.01)
    with pytest.raises(SilentError, match="no answer to 21"):
        made.is_over(1.01)


def test_answers_of_the_other_slot_do_not_count() -> None:
    made = shadow()
    made.hear(answer(slot=0, action=(math.nan, 0.0)), 0.0)
    assert made.answers == 0
    assert not made.is_over(0.0)


# -- the watch ---------------------------------------------------------------------------------

ZERO = (0.0, 0.0)
STOP = Intervention.FORWARD_STOP


def applied(
    *,
    flags: int = 0,
    source: str = "policy",
    action: tuple = (0.1, 0.2),
    held: int = 0,
    has: int = wire.HAS_POLICY,
) -> wire.Applied:
    return wire.Applied(
        source=SOURCES.index(source),
        has=has,
        policy_slot=0,
        interventions=flags,
        tick=1,
        generation=1,
        decision=1,
        tick_in_decision=held,
        policy_counter=1,
        tick_ns=0,
        applied_ns=0,
        clearance_m=1.0,
        log_prob=0.0,
        action=action,
        in_flight=ZERO,
        policy_action=action,
        human_action=ZERO,
        u=ZERO,
        mean=ZERO,
        log_std=ZERO,
    )


def watched(window: int = 20, *, before: list[wire.Applied] | None = None, rise: float = 0.5) -> Watch:
    made = Watch(window, late_share=0.1, rise=rise)
    made.begin(is_watched=False)
    for each in before or []:
        made.see(each, 0.0)
    made.begin(is_watched=True)
    return made


def reasons(made: Watch, decisions: list[wire.Applied], *, may_be_stopped: bool = False) -> list[str]:
    return [reason for each in decisions if (reason := made.see(each, 0.0, may_be_stopped=may_be_stopped))]


def test_a_policy_that_drives_well_is_watched_and_let_go_on() -> None:
    made = watched()
    assert reasons(made, [applied()] * 30) == []
    assert made.left == 0


def test_a_policy_that_proposes_nan_is_stopped_at_once() -> None:
    made = watched()
    assert made.see(applied(), 0.0) == ""
    assert "not finite" in made.see(applied(action=(math.nan, 0.0), flags=Intervention.NON_FINITE), 0.0)
    assert made.left == 0


@pytest.mark.parametrize("flag", [Intervention.MISSED, Intervention.FAILOVER])
def test_a_policy_that_misses_more_than_its_share_is_stopped_as_soon_as_that_is_sure(flag: Intervention) -> None:
    made = watched()
    assert reasons(made, [applied(flags=flag)] * 2) == []
    (reason,) = reasons(made, [applied(flags=flag)])
    assert "3 of 3 decisions had no answer in time (none before it)" in reason


def test_misses_that_the_policy_before_had_as_well_are_not_its_fault() -> None:
    missed = applied(flags=Intervention.MISSED)
    made = watched(before=[applied(), missed] * 10)
    assert reasons(made, [applied(), missed] * 10) == []


def test_a_policy_for_which_safety_steps_in_much_more_often_is_stopped_at_the_end() -> None:
    made = watched(before=[applied()] * 20)
    (reason,) = reasons(made, [applied(flags=STOP, source="gate")] * 20)
    assert "safety stepped in at 100% of its decisions, 0% of those before" in reason


def test_interventions_that_the_policy_before_had_as_well_are_allowed() -> None:
    made = watched(before=[applied(flags=STOP, source="gate"), applied()] * 10)
    assert reasons(made, [applied(flags=STOP, source="gate")] * 19 + [applied()]) == []


@pytest.mark.parametrize("flag", [Intervention.LIMITED | Intervention.RAMPED, Intervention.SLOWED])
def test_limits_of_speed_ramps_and_slowing_down_are_no_danger(flag: Intervention) -> None:
    made = watched(before=[applied()] * 20)
    assert reasons(made, [applied(flags=flag, source="gate")] * 20) == []


def test_a_policy_that_learns_or_is_measured_may_be_stopped_by_safety_as_often_as_it_takes() -> None:
    made = watched(before=[applied()] * 20)
    assert reasons(made, [applied(flags=STOP, source="gate")] * 20, may_be_stopped=True) == []
    assert made.left == 0


def test_of_a_watch_that_training_had_a_part_of_only_the_rest_is_judged() -> None:
    made = watched(before=[applied()] * 20)
    assert reasons(made, [applied(flags=STOP, source="gate")] * 12, may_be_stopped=True) == []
    assert reasons(made, [applied()] * 8) == []
    made = watched(before=[applied()] * 20)
    assert reasons(made, [applied()] * 12, may_be_stopped=True) == []
    (reason,) = reasons(made, [applied(flags=STOP, source="gate")] * LEAST)
    assert "100% of its decisions" in reason


@pytest.mark.parametrize("flag", [Intervention.MISSED, Intervention.FAILOVER])
def test_a_policy_that_learns_is_stopped_where_it_gives_no_answers(flag: Intervention) -> None:
    assert reasons(watched(), [applied(flags=flag)] * 3, may_be_stopped=True)


def test_a_policy_that_learns_is_stopped_where_its_action_is_not_finite() -> None:
    nan = applied(action=(math.nan, 0.0), flags=Intervention.NON_FINITE)
    assert "not finite" in reasons(watched(), [nan], may_be_stopped=True)[0]


@pytest.mark.parametrize(
    "flag", [Intervention.NON_FINITE, Intervention.STALE, Intervention.FROZEN, Intervention.ACTUATOR_FAILED]
)
def test_what_a_sensor_or_an_actuator_fails_at_is_not_held_against_the_policy(flag: Intervention) -> None:
    made = watched(before=[applied()] * 20)
    assert reasons(made, [applied(flags=flag | Intervention.MISSED, source="fallback", has=0)] * 50) == []
    assert reasons(made, [applied(flags=flag | STOP, source="fallback")] * 50) == []
    assert made.left == 20


def test_interventions_are_compared_with_nothing_where_hardly_anything_was_driven_before() -> None:
    made = watched(before=[applied()] * (LEAST - 1))
    assert reasons(made, [applied(flags=STOP, source="gate")] * 20) == []


def test_a_rise_of_one_allows_any_number_of_interventions() -> None:
    made = watched(before=[applied()] * 20, rise=1.0)
    assert reasons(made, [applied(flags=STOP, source="gate")] * 20) == []


@pytest.mark.parametrize("flag", [Intervention.HUMAN, Intervention.E_STOP, Intervention.WHEEL_LOCKED])
def test_decisions_of_somebody_else_say_nothing_about_the_policy(flag: Intervention) -> None:
    made = watched()
    assert reasons(made, [applied(flags=flag | Intervention.MISSED)] * 50) == []
    assert made.left == 20


def test_held_ticks_are_no_decisions() -> None:
    made = watched()
    assert reasons(made, [applied(held=1, flags=Intervention.MISSED)] * 50) == []
    assert made.left == 20


def test_a_window_of_nothing_watches_nothing() -> None:
    made = watched(0)
    assert reasons(made, [applied(flags=Intervention.MISSED)] * 50) == []


def test_the_watch_shows_what_it_counted() -> None:
    made = watched(before=[applied()] * 10)
    reasons(made, [applied(flags=STOP, source="gate"), applied(), applied(flags=Intervention.MISSED), applied()])
    assert made.facts == {
        "watched": 4,
        "missed_share": 0.25,
        "intervention_share": 0.25,
        "missed_share_before": 0.0,
        "intervention_share_before": 0.0,
    }
