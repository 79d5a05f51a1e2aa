import numpy as np
import pytest
import torch

from plugins.encoders import rgbd
from trainerd.learning import autotune, checkpoint
from trainerd.learning.autotune import Trial, chosen, table, tune, ways
from trainerd.learning.inputs import Inputs, LossScale, Way, _encode, usable

pytestmark = pytest.mark.component

PLUGINS = {each.name: each for each in rgbd.provide_encoders()}


@pytest.fixture
def convolutional(toy):
    return type(toy)(PLUGINS["rgbd"].planes, PLUGINS["rgbd"].build)


def test_rdna_2_never_computes_in_bfloat16():
    assert usable("bfloat16", "gfx1030") == "float16"
    assert usable("bfloat16", "gfx1036:xnack-") == "float16"
    assert [usable("bfloat16", gpu) for gpu in ("", "sm_90", "gfx942", "gfx1100")] == ["bfloat16"] * 4
    assert usable("float16", "gfx1030") == "float16"
    assert usable("auto", "gfx1030") == "none"
    assert all(way.precision != "bfloat16" for way in ways("gfx1030"))
    assert any(way.precision == "bfloat16" for way in ways("sm_90"))


def test_float32_is_tried_first_and_graphs_only_on_a_gpu():
    assert [each.name for each in ways("")] == ["float32", "bfloat16"]
    assert ways("sm_90")[0] == Way()
    assert Way("float16", channels_last=True, compiled="reduce-overhead") in ways("gfx1030")


def test_the_fastest_way_that_agrees_is_taken():
    trials = [
        Trial(Way(), 10.0, 0.0, 0.0),
        Trial(Way("bfloat16"), 30.0, 0.1, 0.01),
        Trial(Way("float16"), 90.0, 0.1, 9.0),
        Trial(Way("float16", compiled="default"), 99.0, fault="no compiler"),
    ]
    assert chosen(trials) == Way("bfloat16")
    assert [row["is_taken"] for row in table(trials)] == [False, True, False, False]
    assert chosen(trials[2:]) == Way()
    assert chosen([Trial(Way(), 1.0, float("nan"), 0.0)]) == Way()


def test_every_way_is_tried_on_the_runs_own_network_which_stays_as_it_is(convolutional):
    learner = convolutional.learner()
    before = learner.snapshot()
    trials = tune(learner, steps=6)
    assert [trial.way for trial in trials] == ways("")
    assert trials[0].weight_difference == trials[0].loss_difference == 0.0
    assert all(trial.rows_per_s > 0 and not trial.fault for trial in trials)
    assert 0.0 < trials[1].weight_difference < 1.0
    assert all(np.array_equal(before[name], value) for name, value in learner.snapshot().items())


def test_a_way_that_fails_is_listed_with_its_reason_and_not_taken(convolutional, monkeypatch):
    learner = convolutional.learner()
    monkeypatch.setattr(autotune, "ways", lambda gpu: [Way(), Way("none", compiled="no-such-mode")])
    trials = tune(learner, steps=2)
    assert not trials[0].fault
    assert "no-such-mode" in trials[1].fault
    assert chosen(trials) == Way()


def test_auto_chooses_once_and_a_resumed_run_computes_in_the_same_way(convolutional, finish, monkeypatch, tmp_path):
    tries = []

    def tune(learner):
        tries.append(learner)
        return [Trial(Way("bfloat16", channels_last=True), 1.0, 0.0, 0.0)]

    monkeypatch.setattr("trainerd.learning.learner.tune", tune)
    learner = convolutional.learner(autocast="auto")
    assert learner.inputs.way == Way()
    for seed in range(2):
        finish(learner.update(convolutional.filled(learner, seed=seed)))
    assert learner.inputs.way == Way("bfloat16", channels_last=True)
    resumed = convolutional.learner(autocast="auto")
    checkpoint.resume(checkpoint.save(tmp_path, learner), resumed)
    resumed.warm_up()
    assert resumed.inputs.way == learner.inputs.way
    assert len(tries) == 1
    rollout = convolutional.filled(learner, seed=7)
    finish(learner.update(rollout))
    finish(resumed.update(rollout))
    ours, theirs = learner.snapshot(), resumed.snapshot()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_policy_without_cameras_has_nothing_to_tune(toy, finish):
    learner = toy.learner(autocast="auto")
    finish(learner.update(toy.filled(learner)))
    assert learner.inputs.way == Way()
    assert learner.trials == []


def test_what_is_compiled_for_a_gpu_gives_the_same_features(convolutional):
    learner = convolutional.learner()
    rng = np.random.default_rng(0)
    raw = {}
    for camera in convolutional.robot.cameras:
        high = 256 if camera.kind == "rgb" else 9000
        raw[camera.key] = torch.from_numpy(rng.integers(0, high, (3, *camera.shape)).astype(camera.dtype))
    traced = torch.compile(_encode, backend="eager", fullgraph=True)
    with torch.no_grad():
        plain = _encode(learner.network, learner.transform, raw)
        torch.testing.assert_close(traced(learner.network, learner.transform, raw), plain)


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_long_good_runs():
    scale = LossScale(torch.device("cpu"))
    good, bad = torch.tensor(True), torch.tensor(False)
    assert bool(scale.settle(bad))
    assert scale.factor == LossScale.LARGEST / 2
    for _ in range(LossScale.GROWS_AFTER):
        assert not bool(scale.settle(good))
    assert scale.factor == LossScale.LARGEST
    for _ in range(16):
        scale.settle(bad)
    assert scale.factor == 1.0
    assert not bool(scale.settle(bad)), "without a scale it is no overflow of the scale"
    other = LossScale(torch.device("cpu"))
    other.set(scale.to_list())
    assert other.to_list() == scale.to_list()


def test_float16_learns_nearly_what_float32_learns(convolutional, finish):
    plain, half = convolutional.learner(), convolutional.learner(autocast="float16")
    start = plain.snapshot()
    for seed in range(2):
        rollout = convolutional.filled(plain, seed=seed)
        for learner in (plain, half):
            assert finish(learner.update(rollout)).metrics["minibatches_skipped"] == 0
    flat = [
        np.concatenate([each[name].ravel() for name in start]) for each in (start, plain.snapshot(), half.snapshot())
    ]
    assert np.linalg.norm(flat[2] - flat[1]) < 0.3 * np.linalg.norm(flat[1] - flat[0])
    assert isinstance(half.inputs, Inputs)
    assert half.inputs.loss_scale is not None
