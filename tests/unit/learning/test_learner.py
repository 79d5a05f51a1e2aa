import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.encoders import rgbd
from trainerd.learning import checkpoint
from trainerd.learning.learner import LearnerError, choose_device
from trainerd.learning.settings import NetworkSettings, PpoSettings, adapt, kl_target_at, std_at

pytestmark = pytest.mark.component

RECIPE = {"autocast": "bfloat16", "kl_target": 0.02, "kl_decay": 2.5}


@pytest.mark.parametrize("normalises", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(seeing, finish, tmp_path, normalises):
    network = {"normaliser_frames": 32, "std": "schedule", "std_start": 0.9, "normalise_vector": normalises}
    recipe = {**RECIPE, "normalise_reward": normalises}
    whole = seeing.learner(network=network, **recipe)
    rollouts = [seeing.filled(whole, seed=seed) for seed in range(5)]
    for rollout in rollouts[:3]:
        finish(whole.update(rollout))
    path = checkpoint.save(tmp_path, whole)
    resumed = seeing.learner(seed=77, network=network, **recipe)
    checkpoint.resume(path, resumed)
    for rollout in rollouts[3:]:
        finish(whole.update(rollout))
        finish(resumed.update(rollout))
    ours, theirs = whole.snapshot(), resumed.snapshot()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert whole.capture().counters == resumed.capture().counters
    assert whole.updates == 4


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    def run(folder, *arguments):
        command = [sys.executable, str(Path(__file__).with_name("learner_run.py")), str(folder), *arguments]
        return subprocess.run(command, check=False, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    assert run(tmp_path / "whole", "4") == 0
    assert run(tmp_path / "killed", "4", "2:7") == -signal.SIGKILL
    assert [path.name for path in checkpoint.found(tmp_path / "killed")] == ["ppo_update_1", "ppo_update_2"]
    assert run(tmp_path / "killed", "4") == 0
    whole, resumed = (checkpoint.load(tmp_path / name / "ppo_update_4") for name in ("whole", "killed"))
    assert whole.state.counters == resumed.state.counters
    assert {"vector", "return"} == whole.state.counters["statistics"].keys()
    for ours, theirs in (
        (whole.state.weights, resumed.state.weights),
        (whole.state.optimizer, resumed.state.optimizer),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_size_of_micro_batches_may_change_with_a_resume(toy, finish):
    state = toy.learner().capture()
    learner = toy.learner(micro_batch=4)
    learner.restore(state)
    assert finish(learner.update(toy.filled(learner))).update == 1


def test_the_first_frames_only_fit_the_normaliser(seeing, finish):
    learner = seeing.learner(network={"normaliser_frames": 32})
    rollout = seeing.filled(learner)
    result = finish(learner.update(rollout))
    assert result.fitted
    assert (result.update, result.policy_counter, result.decisions) == (0, 1, 32)
    transform = seeing.transform
    images = np.stack([transform.image({k: v[r] for k, v in rollout.images.items()}) for r in range(32)])
    np.testing.assert_allclose(learner.network.pixel_mean.numpy(), images.mean(0), atol=1e-5)
    np.testing.assert_allclose(learner.network.pixel_gain.numpy(), 1 / (images.std(0) + 0.05), rtol=1e-3)
    assert not finish(learner.update(seeing.filled(learner))).fitted


def test_a_result_says_what_became_of_the_rollouts_steps(seeing, finish, monkeypatch):
    learner = seeing.learner(network={"normaliser_frames": 32})

    def fate(**facts):
        rollout = seeing.filled(learner)
        rollout.steps.update(trained=70, demonstration=2)
        for name, value in facts.items():
            setattr(rollout, name, value)
        result = finish(learner.update(rollout))
        assert result.steps == {"trained": 70, "demonstration": 2}
        return result.fate

    assert fate(alarms=("reward_constant",)) == "alarmed"
    assert fate() == "normaliser"
    assert fate() == "trained"

    def undone(*_arguments, **_facts):
        yield
        return {"rolled_back": 1.0}

    monkeypatch.setattr("trainerd.learning.learner.ppo_update", undone)
    assert fate() == "rolled_back"


def test_the_std_follows_decisions_done_of_the_budget(toy, finish):
    learner = toy.learner(budget=64, network={"std": "schedule", "std_start": 0.9, "std_end": 0.3, "std_end_at": 1.0})
    finish(learner.update(toy.filled(learner)))
    assert learner.progress == 0.5
    assert learner.snapshot()["log_std"] == pytest.approx(np.log(0.6))


def test_the_learning_rate_follows_the_kl_within_its_bounds():
    settings = PpoSettings(kl_target=0.02, learning_rate_low=1e-4, learning_rate_high=1e-2)
    assert adapt(settings, 1e-3, 0.05, 0.0) == pytest.approx(1e-3 / 1.3)
    assert adapt(settings, 1e-3, 0.02, 0.0) == 1e-3
    assert adapt(settings, 1e-3, 0.001, 0.0) == pytest.approx(1.3e-3)
    assert adapt(settings, 1.1e-4, 0.05, 0.0) == 1e-4
    assert adapt(PpoSettings(), 1e-3, 9.0, 0.0) == 1e-3


def test_schedules_of_kl_and_std():
    settings = PpoSettings(kl_target=0.02, kl_decay=2.5)
    assert [kl_target_at(settings, p) for p in (0.0, 0.6, 0.8, 1.0)] == pytest.approx([0.02, 0.02, 0.01, 0.002])
    network = NetworkSettings(std="schedule", std_start=0.9, std_end=0.3, std_end_at=0.87)
    assert [std_at(network, p) for p in (0.0, 0.87, 1.0)] == pytest.approx([0.9, 0.3, 0.3])


def test_a_state_with_other_weights_or_settings_is_refused_and_named(toy, seeing):
    state = toy.learner().capture()
    with pytest.raises(LearnerError, match=r"missing \['encoder\.mix\.bias'"):
        seeing.learner().restore(state)
    with pytest.raises(LearnerError, match="settings"):
        toy.learner(gamma=0.5).restore(state)


def test_an_update_can_be_stopped_after_every_minibatch(toy):
    learner = toy.learner(epochs=4, minibatch=16)
    assert sum(1 for _ in learner.update(toy.filled(learner))) == 1 + 4 * 2


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(LearnerError, match="sees no GPU"):
            choose_device("cuda")


@pytest.mark.parametrize("name", ["rgbd", "gray_depth", "depth"])
def test_every_convolutional_encoder_learns_in_half_precision(name, toy, finish):
    plugin = {each.name: each for each in rgbd.provide_encoders()}[name]
    learner = type(toy)(plugin.planes, plugin.build).learner(autocast="bfloat16", network={"normaliser_frames": 16})
    rollout = type(toy)(plugin.planes, plugin.build).filled(learner)
    before = learner.snapshot()
    result = finish(learner.update(rollout))
    assert result.fitted
    assert result.update == 1
    changed = [key for key, value in learner.snapshot().items() if not np.array_equal(before[key], value)]
    assert any(key.startswith("encoder.branches") for key in changed)
