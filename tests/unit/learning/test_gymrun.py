"""The in-process runner: it learns, repeats itself, and is the daemon's learner on the environment's own rewards."""

import json

import gymnasium
import numpy as np
import pytest

from protocol.node.config import ConfigError
from trainerd.learning import gymrun
from trainerd.learning.drive import FrozenPolicy
from trainerd.learning.gymrun import changes, evaluate, learned, main, make_run, parse
from trainerd.learning.loop import train
from trainerd.learning.recipes import RECIPES

SMALL = {"rollout": 128, "epochs": 2, "minibatch": 32}


def small_run(environment="CartPole-v1", steps=256, seed=0, **ppo):
    return make_run(environment, seed=seed, steps=steps, environments=4, ppo={**SMALL, **ppo})


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_every_step_is_learned_from_or_waits(environment):
    run = small_run(environment)
    train(run, 256, lambda decisions, metrics: None)
    assert run.learner.updates == 2
    assert run.assembler.is_balanced
    fates = {name: count for name, count in run.assembler.counters.items() if count}
    assert fates.pop("trained") == 256
    assert set(fates) <= {"pending", "collected"}


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_equal_seeds_give_equal_weights(environment):
    weights = []
    for _ in range(2):
        run = small_run(environment)
        train(run, 256, lambda decisions, metrics: None)
        weights.append(run.learner.snapshot())
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_seeds_differ():
    names = ("policy.0.weight", "policy.2.weight")
    first, second = (small_run(seed=seed).learner.snapshot() for seed in (0, 1))
    assert any(not np.array_equal(first[name], second[name]) for name in names)


def test_the_recorded_log_prob_is_that_of_the_learners_network():
    run = small_run()
    metrics = []
    train(run, 128, lambda decisions, found: metrics.append(found))
    assert metrics[0]["behaviour_gap"] < 1e-5
    assert metrics[0]["importance"] == pytest.approx(1.0, abs=1e-4)


def test_the_evaluation_returns_are_those_of_the_bare_environment():
    run = small_run("Pendulum-v1")
    policy = FrozenPolicy.of(run.learner)
    env = gymnasium.make("Pendulum-v1")
    expected = []
    for seed in (70, 71):
        observation, total, is_over = env.reset(seed=seed)[0], 0.0, False
        while not is_over:
            state = np.asarray(observation, np.float32)
            vector = policy.transform.vector(state, np.empty(0, np.float32), np.zeros(1, np.float32))
            mean = run.learner.network(*_tensors(vector))[0].detach().numpy()[0]
            observation, reward, terminated, truncated, _ = env.step(2.0 * np.tanh(mean))
            total, is_over = total + reward, terminated or truncated
        expected.append(total)
    assert evaluate(run.learner, "Pendulum-v1", 2, 70) == pytest.approx(expected, rel=1e-3)


def _tensors(vector):
    import torch

    return torch.zeros(1, 0, 0, 0), torch.from_numpy(vector)[None]


def test_an_evaluation_has_as_many_returns_as_episodes_were_asked_for():
    assert len(evaluate(small_run().learner, "CartPole-v1", 19)) == 19


def test_a_run_reports_its_curve_and_its_speed():
    result = learned(small_run(steps=512), 512)
    assert result["steps"] == 512
    assert result["steps_per_cpu_second"] > 0
    assert [row["decisions"] for row in result["curve"]] == [128, 256, 384, 512]
    assert result["return_exploring"] == result["curve"][-1]["return"]


def test_the_command_writes_its_figures(tmp_path, capsys):
    report = tmp_path / "figures.json"
    words = ["--env", "CartPole-v1", "--steps", "256", "--environments", "2", "--episodes", "2"]
    small = [word for name, value in SMALL.items() for word in ("--set", f"ppo.{name}={value}")]
    assert main([*words, *small, "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert (figures["environment"], figures["steps"], len(figures["returns"])) == ("CartPole-v1", 256, 2)
    assert f"return={figures['return']:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "CartPool-v1"], "CartPool"),
        (["--env", "CartPole-v1", "--set", "ppo.gama=0.9"], "ppo: no option gama; did you mean gamma?"),
        (["--env", "CartPole-v1", "--set", "gamma=0.9"], "expected ppo.NAME=VALUE"),
    ],
)
def test_a_mistake_in_the_words_ends_with_status_2(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--environments", "0"], "argument --environments: 0 is not positive"),
        (["--steps", "0"], "argument --steps: 0 is not positive"),
        (["--steps", "1e6"], "argument --steps: '1e6' is not a whole number"),
        (["--episodes", "0"], "argument --episodes: 0 is not positive"),
        (["--episodes", "-3"], "argument --episodes: -3 is not positive"),
        (["--seed", "-1"], "argument --seed: -1 is negative"),
        (["--json", "missing/figures.json"], "argument --json: missing/figures.json cannot be written: No such file"),
        (["--json", "/proc/figures.json"], "argument --json: /proc/figures.json cannot be written: "),
        (["--json", "."], "argument --json: . cannot be written: Is a directory"),
    ],
)
def test_a_wrong_argument_ends_with_status_2_before_anything_is_made(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gymrun, "make_run", pytest.fail)
    with pytest.raises(SystemExit) as ending:
        main(["--env", "CartPole-v1", *words])
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


def test_trying_whether_a_file_can_be_written_leaves_it_as_it_was(tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text("figures")
    for path in (new, old):
        assert parse(["--env", "CartPole-v1", "--json", str(path)]).json == path
    assert not new.exists()
    assert old.read_text() == "figures"


def test_settings_are_read_as_json_or_text():
    found = changes(["ppo.gamma=0.9", "network.head_hidden=[8, 8]", "network.activation=relu"])
    assert found == {"ppo": {"gamma": 0.9}, "network": {"head_hidden": [8, 8], "activation": "relu"}}
    with pytest.raises(ConfigError, match=r"expected ppo\.NAME=VALUE"):
        changes(["ppo.gamma"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cartpole_is_learned_in_the_recipes_budget():
    run = make_run("CartPole-v1", seed=3, steps=RECIPES["CartPole-v1"].decisions)
    train(run, RECIPES["CartPole-v1"].decisions, lambda decisions, metrics: None)
    returns = evaluate(run.learner, "CartPole-v1", 20)
    assert sum(returns) / len(returns) >= 400
