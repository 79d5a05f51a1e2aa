from dataclasses import replace

import numpy as np
import pytest
import torch

from plugins.encoders import rgbd
from trainerd.learning import autotune, checkpoint
from trainerd.learning.autotune import Trial, chosen, table, tune, ways
from trainerd.learning.inputs import Inputs, LossScale, Way, _encode, true_float32, usable

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


def spoil(monkeypatch, spoilt, change):
    """Put what one way makes of the images through ``change``, while learning."""
    whole = Inputs.features

    def features(self, network, places, *, precise):
        found = whole(self, network, places, precise=precise)
        return change(found) if self.way == spoilt and not precise else found

    monkeypatch.setattr(Inputs, "features", features)


WRONG = {
    "a fifth too large": lambda features: features * 1.2,
    "twice as large": lambda features: features * 2.0,
    "of the other sign": lambda features: -features,
    "zero": torch.zeros_like,
    "not a number": lambda features: features * float("nan"),
    "without a gradient": torch.Tensor.detach,
    "of another row": lambda features: features.roll(1, 0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_way_whose_features_are_wrong_is_not_taken_however_fast(convolutional, monkeypatch, wrong):
    spoil(monkeypatch, Way("bfloat16"), WRONG[wrong])
    trials = tune(convolutional.learner())
    assert trials[0].is_right
    assert not trials[1].is_right
    assert chosen([trials[0], replace(trials[1], rows_per_s=1e9)]) == Way()


def refuse(features):
    raise RuntimeError("no such kernel\nand a long trace")


def test_a_way_that_raises_while_it_learns_is_not_taken(convolutional, monkeypatch):
    spoil(monkeypatch, Way("bfloat16"), refuse)
    trials = tune(convolutional.learner(), steps=2)
    assert [trial.fault for trial in trials] == ["", "RuntimeError: no such kernel"]
    assert chosen(trials) == Way()


def test_without_float32_to_compare_with_no_other_way_is_taken(convolutional, monkeypatch):
    spoil(monkeypatch, Way(), refuse)
    trials = tune(convolutional.learner(), steps=2)
    assert trials == [Trial(Way(), fault="RuntimeError: no such kernel")]
    assert chosen(trials) == Way()


def test_a_float32_that_gives_no_numbers_vouches_for_no_other_way(convolutional, monkeypatch):
    spoil(monkeypatch, Way(), WRONG["not a number"])
    trials = tune(convolutional.learner(), steps=2)
    assert trials == [Trial(Way(), fault="ArithmeticError: no step gave a finite gradient")]
    assert chosen(trials) == Way()


def test_every_trial_and_every_step_of_it_shows_that_it_does_not_hang(convolutional, monkeypatch):
    events = []
    descend = autotune._descend

    def watched(*words, **more):
        events.append("trial")
        return descend(*words, **more)

    monkeypatch.setattr(autotune, "_descend", watched)
    tune(convolutional.learner(), steps=10, on_trial=lambda: events.append("beat"))
    second = events.index("trial", 2)
    assert events[:2] == ["beat", "trial"]
    assert events[second - 1] == "beat"
    assert events[2:second].count("beat") > 10
    assert events[second:].count("beat") > 10


def allows_tf32():
    return [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]


@pytest.fixture
def _tf32():
    """Allow TF32; not with monkeypatch, for one of the two holders has no attribute that could be deleted again."""
    before = allows_tf32()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("_tf32")
def test_true_float32_is_without_tf32_and_puts_the_flags_back():
    with true_float32():
        assert allows_tf32() == [False, False]
        with true_float32():
            assert allows_tf32() == [False, False]
        assert allows_tf32() == [False, False]
    assert allows_tf32() == [True, True]
    with pytest.raises(ZeroDivisionError), true_float32():
        1 / 0  # noqa: B018 - to raise
    assert allows_tf32() == [True, True]


@pytest.mark.usefixtures("_tf32")
def test_true_float32_leaves_a_flag_off_that_was_off():
    torch.backends.cuda.matmul.allow_tf32 = False
    with true_float32():
        assert allows_tf32() == [False, False]
    assert allows_tf32() == [True, False]


@pytest.mark.usefixtures("_tf32")
def test_only_a_precise_pass_and_the_reference_of_the_autotune_are_without_tf32(convolutional, monkeypatch):
    seen = set()
    gathered = Inputs._gathered

    def watched(self, *words, **more):
        seen.add((self.way, *allows_tf32()))
        return gathered(self, *words, **more)

    monkeypatch.setattr(Inputs, "_gathered", watched)
    learner = convolutional.learner()
    learner.inputs.load(convolutional.filled(learner), learner.network)
    for precise in (True, False):
        seen.clear()
        learner.inputs.features(learner.network, np.arange(2), precise=precise)
        assert seen == {(Way(), *[not precise] * 2)}
    steps = []
    whole = Inputs.features

    def features(self, network, places, *, precise):
        if not precise:
            steps.append((self.way, *allows_tf32()))
        return whole(self, network, places, precise=precise)

    monkeypatch.setattr(Inputs, "features", features)
    tune(learner, steps=10)
    assert steps[:10] == [(Way(), False, False)] * 10, "what is compared with"
    assert set(steps[10:]) == {(Way(), True, True), (Way("bfloat16"), True, True)}, "its speed, and the others"
    assert allows_tf32() == [True, True]


@pytest.mark.slow
def test_auto_chooses_once_and_a_resumed_run_computes_in_the_same_way(convolutional, finish, monkeypatch, tmp_path):
    tries = []

    def tune(learner, **words):
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
