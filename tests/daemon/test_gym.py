"""Environments of Gymnasium as robots of the real daemons: choices and numbers, learned from and evaluated."""

from __future__ import annotations

import pytest

from tests.daemon.daemons import unbalanced, wait_until

ROVER = {"teleop.port": 0}
TRAINER = {"ppo.rollout": 256, "ppo.epochs": 2, "network.encoder": "blind", "network.normaliser_frames": 0}


class Pair:
    """Both daemons with one environment, as their own options name it."""

    def __init__(self, site, environment, **trainer):
        self.trainer = site.trainer({**TRAINER, **trainer}, "--profile", f"gym:{environment}")
        self.rover = site.rover({**ROVER, "robot": f"gym:{environment}"}, "--robot", f"gym:{environment}")

    def learned(self, updates):
        return wait_until(
            lambda: (status := self.trainer.get())["updates"] >= updates and status, what=f"{updates} updates"
        )

    def evaluated(self, episodes):
        place = f"/evaluations/{self.trainer.post('/evaluate', {'episodes': episodes})['id']}"
        found = wait_until(
            lambda: (answer := self.trainer.get(place))["stage"] in {"finished", "failed"} and answer, what="evaluation"
        )
        assert found["stage"] == "finished", found
        return found["result"]


@pytest.mark.parametrize("environment", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)])
def test_an_environment_is_driven_learned_from_and_evaluated_like_any_robot(site, environment):
    pair = Pair(site, environment)
    status = pair.learned(3)
    assert status["health"] == {"ok": True, "causes": []}
    for name in ("lost", "duplicates", "refused", "malformed", "quarantined", "alarmed"):
        assert status["steps"][name] == 0, name
    assert pair.rover.get()["policy"]["refusals"] == 0
    result = pair.evaluated(4)
    assert result["n"] == 4
    low, high = {"CartPole-v1": (5, 500), "Pendulum-v1": (-2000, 0)}[environment]
    assert low <= result["return"] <= high, "the environment's own reward, unscaled"
    assert unbalanced(pair.trainer.get()["steps"]) == 0
    audit = pair.trainer.ctl("audit", "--sample", "6", "--json", patience_s=120)
    assert audit.status == 0, audit.out + audit.err


def test_an_environment_that_there_is_not_ends_roverd_with_its_reason(site):
    ended = site.run("roverd", "--robot", "gym:CartPool-v1", "--state-dir", str(site.folder / "rover"))
    assert ended.status == 1
    assert "gym:CartPool-v1" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cartpole_is_learned_through_the_daemons(site):
    pair = Pair(site, "CartPole-v1", **{"ppo.rollout": 1024, "ppo.epochs": 10, "train.decisions": 60_000})
    wait_until(lambda: pair.trainer.get()["state"] == "finished", 600, what="the budget is learned from")
    assert pair.evaluated(10)["return"] >= 300
