"""Row 4: a signal that cannot be learned from is told, and refused until somebody allows it."""

from __future__ import annotations

import pytest

from tests.daemon.daemons import driving, unbalanced, wait_until

ALARM_STEPS = 2048
FLAT = {
    "reward.weights": {"tick_cost": -0.01},
    "control.max_speed_mps": 0.0,  # it stands, so that it neither collides nor arrives
    "plugins.goal.time_limit_s": 3600,
}


@pytest.fixture
def pair(site):
    trainer = site.trainer({"ppo.rollout": 512})
    rover = site.rover(FLAT)
    driving(rover)
    return trainer, rover


def test_row_4_a_constant_reward_and_no_end_degrade_health_and_stop_learning(pair):
    trainer, _ = pair
    told = wait_until(lambda: not (new := trainer.get())["health"]["ok"] and new["alarms"] and new, what="an alarm")
    assert told["steps"]["received"] <= ALARM_STEPS + 512, "told late"
    causes = " ".join(told["health"]["causes"])
    assert "reward: -0.01 on each of the last" in causes
    assert "episodes: none ended in the last" in causes
    refusing = wait_until(
        lambda: "refuses the signal" in str((new := trainer.get())["health"]["causes"]) and new,
        what="a refused rollout",
    )
    goal = refusing["steps"]["received"] + 4 * 512
    later = wait_until(lambda: (new := trainer.get())["steps"]["received"] >= goal and new, what="four more rollouts")
    assert later["updates"] == refusing["updates"], "it learned from a constant reward"
    assert later["policy"]["counter"] == refusing["policy"]["counter"]
    assert unbalanced(later["steps"]) == 0
    answer = trainer.ctl("status")
    assert answer.status == 1
    assert "degraded: " in answer.out
    assert "reward: -0.01" in answer.out
    errors = trainer.events("signal.alarmed")
    assert {each["alarm"] for each in errors} == {"reward_constant", "no_terminal"}
    assert len(errors) == 2
    assert all(each["hint"] for each in errors)


@pytest.mark.slow
def test_row_4_it_learns_from_a_flat_signal_where_that_is_allowed(site):
    trainer = site.trainer({"ppo.rollout": 512, "ppo.allow_flat_reward": True})
    driving(site.rover(FLAT))
    status = wait_until(
        lambda: (new := trainer.get())["steps"]["received"] > 2 * ALARM_STEPS and new["updates"] >= 7 and new,
        what="updates behind the alarm",
    )
    assert len(status["alarms"]) == 2
    assert not status["health"]["ok"], "allowed is not well"
