"""Reward terms, and the check that authors run on theirs."""

import pytest

from plugins.manager import PluginManager
from plugins.rewards import (
    DRIVE_WEIGHTS,
    GOAL_WEIGHTS,
    angular_velocity,
    collision,
    linear_velocity,
    obstacle_proximity,
    progress,
    success,
    tick_cost,
)
from plugins.testing import check_reward
from protocol.moment import Moment, Outcome

pytestmark = pytest.mark.component

MODULES = (angular_velocity, collision, linear_velocity, obstacle_proximity, progress, success, tick_cost)
TERMS = {term.name: term for module in MODULES for term in module.provide_rewards()}
FUNCTIONS = {name: term.function for name, term in TERMS.items()}


def moment(*, distance_m=1.0, near_m=1.0, v=0.0, w=0.0, collided=False, success=False):
    outcome = Outcome(terminated=success or collided, truncated=False, success=success)
    state = {"linear_vel": v, "angular_vel": w, "min_forward_dist": near_m}
    return Moment(state, {"distance_m": distance_m}, (0.0, 0.0), collided, outcome)


def reward(weights, previous, current):
    return sum(weight * FUNCTIONS[name](previous, current) for name, weight in weights.items())


@pytest.mark.parametrize("name", sorted(TERMS))
def test_built_in_terms_keep_the_rules(name):
    check_reward(TERMS[name].function)


def test_the_goal_reward_is_the_recipes():
    before = moment(distance_m=1.0)
    assert reward(GOAL_WEIGHTS, before, moment(distance_m=0.9)) == pytest.approx(0.2 * (0.1 - 0.01))
    assert reward(GOAL_WEIGHTS, before, moment(success=True)) == pytest.approx(0.2 * (5 - 0.01))
    assert reward(GOAL_WEIGHTS, before, moment(collided=True)) == pytest.approx(0.2 * (-4 - 0.01))


def test_the_drive_reward_is_the_documents():
    current = moment(v=0.4, w=-1.0, near_m=0.2)
    assert reward(DRIVE_WEIGHTS, moment(), current) == pytest.approx(2.0 * 0.4 - 0.5 * 1.0 - 5.0 - 0.01)


def test_a_collision_is_paid_for_once():
    assert collision.collision(moment(collided=True), moment(collided=True)) == 0.0


def test_a_term_that_keeps_state_is_caught():
    calls = []
    with pytest.raises(AssertionError, match="keep no state"):
        check_reward(lambda previous, current: float(len(calls.append(1) or calls)))


def test_a_term_that_changes_the_moment_is_caught():
    def meddle(previous, current):
        current.state["linear_vel"] = 0.0
        return 0.0

    with pytest.raises(AssertionError, match="changes the moments"):
        check_reward(meddle)


def test_a_module_with_two_hooks_serves_the_groups_that_are_loaded():
    manager = PluginManager(["rewards"], installed=False)
    for module in MODULES:
        manager.register(module)
    assert manager.names("rewards") == sorted(TERMS)
