"""The bookkeeping of an episode, and rewards whose failing term is seen and then left out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plugins.guard import STRIKES, Guard
from protocol.moment import RUNNING, Moment, Outcome, Pose, Reading
from roverd.control import wire
from roverd.episode import Episode, Observed, Plan, Rewards, observation
from tests.unit.protocol.samples import ROBOT

HERE, THERE = Moment({}, {"distance_m": 2.0}, (0.0, 0.0)), Moment({}, {"distance_m": 1.5}, (0.0, 0.0))


def guarded(function) -> Guard[float]:
    return Guard("rewards", "term", function, default=math.nan, budget_ms=1000.0)


def rewards(**terms) -> Rewards:
    return Rewards({name: (guarded(function), weight) for name, (function, weight) in terms.items()})


def fail(previous: Moment, current: Moment) -> float:
    raise RuntimeError("a plugin's mistake")


def progress(previous: Moment, current: Moment) -> float:
    return previous.task["distance_m"] - current.task["distance_m"]


def test_a_reward_is_the_weighted_sum_of_its_terms() -> None:
    value, shares = rewards(progress=(progress, 2.0), tick=(lambda *_: 1.0, -0.25)).of(HERE, THERE)
    assert (value, shares) == (0.75, {"progress": 1.0, "tick": -0.25})


@pytest.mark.parametrize("function", [fail, lambda *_: math.nan, lambda *_: math.inf])
def test_a_term_that_fails_makes_the_reward_nan_and_is_named(function) -> None:
    value, shares = rewards(good=(progress, 1.0), bad=(function, 1.0)).of(HERE, THERE)
    assert math.isnan(value)
    assert [name for name, share in shares.items() if math.isnan(share)] == ["bad"]


def test_a_disabled_term_adds_nothing() -> None:
    total = rewards(good=(progress, 1.0), bad=(fail, 1.0))
    values = [total.of(HERE, THERE)[0] for _ in range(STRIKES + 1)]
    assert values[-1] == 0.5


def test_without_terms_the_reward_is_zero() -> None:
    assert Rewards({}).of(HERE, THERE) == (0, {})


def observed(distance_m: float = 2.0, **reading) -> Observed:
    made = Reading(
        stamp_ns=5, state=np.array([0.1, 0.2], np.float32), images={}, odometry=Pose(0.0, 0.0, 0.0), **reading
    )
    return Observed(
        made, np.array([distance_m], np.float32), {"distance_m": distance_m}, {"linear_vel": 0.1, "roll": 0.2}
    )


def applied(tick: int = 1, **changes) -> wire.Applied:
    zero = (0.0, 0.0)
    ordinary = wire.Applied(
        source=0,
        has=wire.HAS_POLICY | wire.HAS_BEHAVIOUR,
        policy_slot=0,
        interventions=0,
        tick=tick,
        generation=tick,
        decision=tick,
        tick_in_decision=0,
        policy_counter=9,
        tick_ns=100,
        applied_ns=120,
        clearance_m=1.5,
        log_prob=-1.0,
        action=(0.25, 0.5),
        in_flight=(0.125, 0.0),
        policy_action=(0.5, 0.5),
        human_action=zero,
        u=(0.5, 1.0),
        mean=zero,
        log_std=(-1.0, -1.0),
    )
    return ordinary._replace(**changes)


def episode(total: Rewards | None = None) -> Episode:
    plan = Plan("evaluation", arena_seed=77, explores=False, order_id="order", serial=4)
    return Episode("rover-1", "boot", 3, plan, ROBOT, total or rewards(progress=(progress, 1.0)))


def driven(made: Episode, outcome: Outcome = RUNNING, **changes):
    return made.step(10, observed(2.0), observed(1.5), applied(**changes), outcome, "p" * 64)


def test_steps_of_an_episode_are_numbered() -> None:
    made = episode()
    assert [driven(made).episode_step for _ in range(3)] == [0, 1, 2]


def test_a_step_holds_what_was_seen_and_what_was_applied() -> None:
    step = driven(episode())
    assert (step.observation.task.tolist(), step.observation.in_flight.tolist()) == ([2.0], [0.125, 0.0])
    assert (step.action.tolist(), step.reward, step.source) == ([0.25, 0.5], 0.5, "policy")


def test_a_step_holds_the_behaviour_as_it_ran() -> None:
    behaviour = driven(episode()).behaviour
    assert (behaviour.u.tolist(), behaviour.log_prob) == ([0.5, 1.0], -1.0)


@pytest.mark.parametrize(
    ("has", "there"),
    [
        (0, (False, False, False)),
        (wire.HAS_POLICY, (True, False, False)),
        (wire.HAS_HUMAN, (False, True, False)),
        (wire.HAS_BEHAVIOUR, (False, False, True)),
    ],
)
def test_a_step_holds_only_what_control_said_is_there(has: int, there: tuple[bool, bool, bool]) -> None:
    step = driven(episode(), has=has)
    assert tuple(each is not None for each in (step.policy_action, step.human_action, step.behaviour)) == there


@pytest.mark.parametrize(("clearance_m", "expected"), [(math.nan, None), (0.75, 0.75)])
def test_without_a_depth_camera_a_step_has_no_clearance(clearance_m: float, expected: float | None) -> None:
    assert driven(episode(), clearance_m=clearance_m).clearance_m == expected


def test_a_step_holds_the_tasks_verdict() -> None:
    step = driven(episode(), Outcome(terminated=True, truncated=False, success=True))
    assert (step.terminated, step.truncated, step.success) == (True, False, True)


def test_the_end_holds_the_totals_and_the_final_observation() -> None:
    made = episode()
    for clearance_m in (1.5, 0.5, 1.0):
        driven(made, clearance_m=clearance_m)
    end = made.end(
        13, "truncated", observed(1.0, elapsed_s=2.5, collided=True, world={"path_m": 3.0}), (0.1, 0.2), RUNNING
    )
    assert (end.episode_steps, end.return_, end.reason, end.final.task.tolist()) == (3, 1.5, "truncated", [1.0])
    assert end.metrics == {
        "path_m": 3.0,
        "duration_s": 2.5,
        "collided": 1.0,
        "final_distance_m": 1.0,
        "min_clearance_m": 0.5,
    }


def test_the_end_names_the_order_and_the_policy() -> None:
    made = episode()
    driven(made)
    end = made.end(11, "stopped", observed(), (0.0, 0.0), RUNNING)
    assert (end.order_id, end.episode_serial, end.arena_seed, end.policy_id) == ("order", 4, 77, "p" * 64)


def test_a_break_does_not_end_the_episode() -> None:
    assert not episode().end(11, "takeover", observed(), (0.0, 0.0), RUNNING, ends_episode=False).ends_episode


def test_an_episode_without_a_depth_camera_has_no_least_clearance() -> None:
    assert "min_clearance_m" not in episode().end(1, "stopped", observed(), (0.0, 0.0), RUNNING).metrics


def test_the_recorded_observation_names_the_action_in_flight() -> None:
    assert observation(observed(), (0.25, -0.5)).in_flight.tolist() == [0.25, -0.5]
