"""Rewards of strangers: installed with pip, used by name, and kept from harming the drive; and the reward's lint."""

from __future__ import annotations

import ast
import json

import pytest

from tests.daemon.daemons import driving, wait_until
from tests.daemon.installing import ROOT, install_plugin, pip_install

EXAMPLE = ROOT / "docs" / "examples" / "roverloop-reward-smooth"
LINT_EPISODES = "8"
GOAL = {"progress": 0.2, "success": 1.0, "collision": -0.8, "tick_cost": -0.002}
SIM = {"robot": "sim", "record.images": "decisions"}

RAISING = """
from plugins import RewardTerm, hookimpl


def broken(previous, current):
    return previous.state["no such element"]


@hookimpl
def provide_rewards():
    return [RewardTerm("raising", broken, "raises")]
"""
SLEEPING = """
import time

from plugins import RewardTerm, hookimpl


def asleep(previous, current):
    time.sleep(0.05)
    return 0.0


@hookimpl
def provide_rewards():
    return [RewardTerm("sleeping", asleep, "sleeps")]
"""


@pytest.fixture(scope="module")
def trainer(shared_site):
    """A trainer that only gives orders, so that the rovers have the machine."""
    for name, source in (("raising", RAISING), ("sleeping", SLEEPING)):
        install_plugin(shared_site, "rewards", name, source)
    pip_install(shared_site, EXAMPLE)
    return shared_site.trainer({"train.autostart": False})


def rover(trainer, site, name, weights):
    """Start a rover with these weights and wait until it has its policy."""
    made = site.rover({**SIM, "reward.weights": weights}, name=name)
    wait_until(lambda: made.get()["policy"]["policy_id"], what=f"{name} has a policy")
    return made


def plugin(made, name):
    answer = made.ctl("plugins", "--json")
    assert answer.status == 0
    return next(row for row in answer.json["plugins"] if (row["group"], row["name"]) == ("rewards", name))


def returns(trainer, name, episodes="1"):
    answer = trainer.ctl("evaluate", "--policy", "spin", "--episodes", episodes, "--rover", name, "--json")
    assert answer.status == 0, answer
    return answer.json["result"]["return"]


@pytest.mark.slow
def test_row_34_the_goal_tasks_own_reward_passes_its_lint(trainer, shared_site):
    made = rover(trainer, shared_site, "plain", GOAL)
    answer = trainer.ctl("reward", "lint", "--rover", "plain", "--episodes", LINT_EPISODES, patience_s=150)
    assert answer.status == 0, answer
    assert "FAIL" not in answer.out
    assert "reactive earns more than spin" in answer.out
    assert answer.out.count("ok ") == 4
    assert made.stop() == 0


@pytest.mark.slow
def test_row_34_a_reward_where_spinning_wins_fails_its_lint_with_exit_1(trainer, shared_site):
    made = rover(trainer, shared_site, "spinner", {**GOAL, "angular_velocity": 1.0})
    answer = trainer.ctl("reward", "lint", "--rover", "spinner", "--episodes", "3", "--json", patience_s=150)
    assert answer.status == 1
    assert answer.json["passed"] is False
    verdicts = {pair["worse"]: pair for pair in answer.json["pairs"]}
    assert verdicts["spin"]["passed"] is False
    assert verdicts["spin"]["worse_return"] > verdicts["spin"]["better_return"]
    assert made.stop() == 0


def test_the_examples_reward_is_at_most_twelve_lines_of_its_own():
    (module,) = EXAMPLE.glob("*/*.py")
    tree = ast.parse(module.read_text())
    documents = {
        node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node)
    }
    lines = [
        line
        for number, line in enumerate(module.read_text().splitlines(), 1)
        if line.strip() and number not in documents
    ]
    assert len(lines) <= 12


@pytest.mark.slow
def test_a_strangers_reward_is_installed_with_pip_and_used_by_name(trainer, shared_site):
    made = rover(trainer, shared_site, "smooth", {"smooth": 1.0})
    status = made.get()
    assert status["reward_weights"] == {"smooth": 1.0}
    # a spinning rover changes its speed at the start, by at least 1 rad/s; the rest is noise
    assert -10 < returns(trainer, "smooth") < -1.0
    row = plugin(made, "smooth")
    assert (row["distribution"], row["version"], row["state"]) == ("roverloop-reward-smooth", "0.1.0", "ready")
    assert row["calls"] > 10
    assert row["failures"] == 0
    assert made.stop() == 0


@pytest.mark.parametrize(
    ("name", "counter", "error"),
    [
        pytest.param("raising", "failures", "KeyError", marks=pytest.mark.slow),
        pytest.param("sleeping", "overruns", "ms", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_misbehaves_is_counted_disabled_and_listed_and_the_robot_drives_on(
    trainer, shared_site, name, counter, error
):
    made = rover(trainer, shared_site, name, {"tick_cost": -0.01, name: 1.0})
    evaluation = trainer.post("/evaluate", {"policy": "spin", "episodes": 2, "rover": name})["id"]
    row = wait_until(lambda: (new := plugin(made, name))["state"] == "disabled" and new, what="disabled")
    assert row[counter] == 3
    assert error in row["last_error"]
    result = wait_until(
        lambda: (new := trainer.get(f"/evaluations/{evaluation}"))["stage"] == "finished" and new, what="it drives on"
    )["result"]
    assert result["n"] == 2
    assert any(name in cause for cause in made.get()["health"]["causes"])
    told = [each for each in made.events("plugin.disabled") if each["plugin"] == name]
    assert len(told) == 1
    checks = {check["check"]: check for check in json.loads(made.ctl("doctor", "--json").out)["checks"]}
    assert not checks["plugins"]["ok"]
    assert made.stop() == 0
    if name == "raising":
        assert trainer.get()["steps"]["quarantined"] == 0, "steps of an evaluation are not learned from"


def test_steps_with_a_failing_term_are_quarantined_by_its_name_until_it_is_disabled(trainer, shared_site):
    made = shared_site.rover({"robot": "sim", "reward.weights": {"tick_cost": -0.01, "raising": 1.0}}, name="sick")
    wait_until(lambda: made.get()["policy"]["policy_id"], what="a policy")
    trainer.post("/train/start")
    driving(made)
    wait_until(lambda: plugin(made, "raising")["state"] == "disabled", what="disabled")
    status = wait_until(lambda: (new := trainer.get())["quarantined"] and new, what="quarantined steps")
    assert set(status["quarantined"]) == {"reward.raising"}
    assert status["quarantined"]["reward.raising"] == status["steps"]["quarantined"] <= 3
    trained = status["steps"]["trained"]
    wait_until(lambda: trainer.get()["steps"]["trained"] > trained + 50, what="training goes on without the term")
    assert made.stop() == 0
    trainer.post("/train/stop")
