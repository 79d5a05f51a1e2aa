"""What the learner's bench computes from what it measured, and that its peers get what ours gets."""

import numpy as np
import pytest
import torch

from tests.bench import learner as bench
from tests.bench.figures import Figure
from tests.bench.peers import advantages, environment, gpu, network, ours, rollout
from tests.bench.peers.practice import make_rollout
from trainerd.learning.gae import TERMINATED, gae

SIZE = (16, 24)
ROWS = 12


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("rollout") / "rollout.npz"
    make_rollout(path, ROWS, SIZE)
    return rollout.Source(path)


def figure(name, value):
    return Figure(name, value, "", 1, value, value)


def result(cpu_s=1.0, peak_rss_mb=100.0, **changes):
    said = {"cpu_s": cpu_s, "peak_rss_mb": peak_rss_mb, "samples": 10}
    return said | {"answers": [0.0, 1.0], "parameters": 7, "finite": True} | changes


def test_frames_are_read_back_one_by_one_as_they_were_written(source):
    with np.load(source.path) as stored:
        rgb, depth = stored["rgb"], stored["depth"]
    frames = list(source.frames(ROWS + 1))
    assert len(frames) == ROWS + 1
    assert all(
        np.array_equal(frame[0], rgb[n]) and np.array_equal(frame[1], depth[n]) for n, frame in enumerate(frames)
    )
    assert source.size == SIZE
    assert len(list(source.frames(3))) == 3


def test_planes_equal_the_input_transform(source):
    learner = ours.make_learner(*SIZE)
    keys = {camera.kind: camera.key for camera in learner.robot.cameras}
    rgb, depth = next(iter(source.frames(1)))
    depth = depth.copy()
    depth[0, :4] = (0, -5, 100, 32767)
    expected = learner.transform.image({keys["rgb"]: rgb, keys["depth"]: depth})
    assert np.abs(rollout.planes(rgb, depth) - expected).max() <= 1e-6


def test_the_peers_network_with_our_weights_answers_as_ours(source):
    trunk, policy, value = network.Trunk(8), network.head(2), network.head(1)
    trunk.fill(source.weights)
    network.fill("policy", network.linears(policy), source.weights)
    network.fill("value", network.linears(value), source.weights)
    image = torch.from_numpy(np.stack([rollout.planes(*frame) for frame in source.frames(ROWS)]))
    with torch.no_grad():
        hidden = trunk(image, torch.from_numpy(source["vector"][:ROWS]))
        assert np.abs(policy(hidden).numpy() - source["mean"]).max() <= 1e-5
        assert np.abs(value(hidden).numpy().ravel() - source["value"][:ROWS]).max() <= 1e-5


def test_our_rollout_has_the_segments_of_the_source(source):
    learner = ours.make_learner(*SIZE)
    filled = ours.fill(learner, source, ROWS)
    ended = source["terminated"][:ROWS]
    expected = np.where(ended, TERMINATED, np.arange(1, ROWS + 1))
    expected[-1] = TERMINATED if ended[-1] else filled.capacity
    assert filled.rows == ROWS
    assert np.array_equal(filled.successor[:ROWS], expected)
    assert np.abs(learner.inputs.gather.vectors(filled, filled.used)[:ROWS] - source["vector"][:ROWS]).max() <= 1e-6


@pytest.mark.component
def test_our_update_over_the_source_changes_the_weights_and_keeps_them_finite(source):
    told = {"rows": ROWS, "minibatch": 4, "epochs": 2, "seed": 0, "device": "cpu"}
    runner = ours.Ours(source, {**told, "ppo": bench.HYPERPARAMETERS, "ours": {"autocast": "none"}})
    mean, value = runner.answers(ROWS)
    assert np.abs(mean - source["mean"]).max() <= 1e-5
    assert np.abs(value - source["value"][:ROWS]).max() <= 1e-5
    before = [each.detach().clone() for each in runner.parameters()]
    metrics = runner.update()
    assert metrics["importance"] == pytest.approx(1.0, abs=1e-4)
    assert any(not torch.equal(new, old) for new, old in zip(runner.parameters(), before, strict=True))
    assert all(each.isfinite().all() for each in runner.parameters())


def test_a_mixed_rollout_has_each_kind_of_end_and_only_later_successors():
    reward, value, successor = advantages.mixed(2000, 3, 1)
    rows = np.arange(2000)
    assert (successor == TERMINATED).sum() > 5
    assert (successor >= 2000).sum() > 5
    assert np.all((successor == TERMINATED) | (successor > rows))
    assert (
        successor[(successor != TERMINATED) & (successor < 2000)] - rows[(successor != TERMINATED) & (successor < 2000)]
    ).max() > 1
    assert len(value) == 2000 + (successor >= 2000).sum()
    assert len(np.unique(successor[successor != TERMINATED])) == (successor != TERMINATED).sum()
    assert reward.dtype == value.dtype == np.float32


def test_the_reference_of_advantages_is_the_hand_computed_sum():
    reward, value = np.array([1, 2, 3], np.float32), np.array([0.5, 0.25, 0.125, 8.0], np.float32)
    successor = np.array([2, TERMINATED, 3])
    found = advantages.reference(reward, value, successor, 0.5, 0.5)
    last = 3 + 0.5 * 8 - 0.125
    assert found == pytest.approx([1 + 0.5 * 0.125 - 0.5 + 0.25 * last, 2 - 0.25, last])


def test_our_advantages_are_those_of_the_reference():
    reward, value, successor = advantages.mixed(1000, 3, 2)
    found = gae(reward, value, successor, gamma=0.99, lam=0.95)
    assert np.abs(found - advantages.reference(reward, value, successor, 0.99, 0.95)).max() <= 1e-5


def test_ratios_are_taken_within_each_repetition():
    results = {
        "ours": [result(1.0), result(10.0), result(2.0)],
        "ours_f32": [result(2.0), result(20.0), result(4.0)],
        "sb3": [result(3.0), result(30.0), result(8.0)],
    }
    found = {each.name: each for each in bench.comparison(results, ["sb3"])}
    ratio = found["learner.ratio_sb3"]
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (3.0, 3.0, 4.0, 3)
    assert found["learner.f32_ratio_sb3"].value == 1.5
    assert found["learner.samples_per_cpu_second"].value == 5.0


def test_the_share_of_memory_is_of_the_smallest_peer():
    results = {name: [result(peak_rss_mb=mb)] for name, mb in (("ours", 90.0), ("ours_f32", 95.0), ("sb3", 180.0))}
    results["cleanrl"] = [result(peak_rss_mb=120.0)]
    found = {each.name: each.value for each in bench.memory(results, ["sb3", "cleanrl"])}
    assert found["learner.peak_rss_mb"] == 90.0
    assert found["learner.peak_rss_mb_cleanrl"] == 120.0
    assert found["learner.rss_share"] == 0.75


@pytest.mark.parametrize(
    ("name", "value", "is_good"),
    [
        ("learner.ratio_sb3", 3.0, True),
        ("learner.ratio_sb3", 2.99, False),
        ("learner.f32_ratio_torchrl", 1.4, False),
        ("gae.ms", 1.5, True),
        ("gae.max_error", 2e-5, False),
        ("export.ms", float("nan"), False),
        ("learner.samples_per_cpu_second", 0.0, True),
    ],
)
def test_a_figure_is_good_that_is_on_its_side_of_the_bar(name, value, is_good):
    assert bench.is_good(figure(name, value)) is is_good


@pytest.mark.parametrize(
    "changes", [{"answers": [0.0, 1.1]}, {"answers": [0.0, float("nan")]}, {"parameters": 8}, {"finite": False}]
)
def test_a_peer_whose_network_is_another_one_ends_the_bench(changes):
    with pytest.raises(SystemExit, match="sb3"):
        bench.check("sb3", result(**changes), result())


def test_a_peer_with_our_network_passes():
    bench.check("sb3", result(answers=[0.001, 1.0]), result())


def test_the_roofline_of_an_update_is_the_slower_of_memory_and_arithmetic():
    # 8,192 x 4 on 790 TFLOP/s and 4.3 TB/s: memory alone needs a quarter of a second.
    assert gpu.roofline_s(8192, 4, 4.3e12, 790e12) == pytest.approx(0.246, abs=0.002)
    assert gpu.roofline_s(8192, 4, 4.3e15, 790e12) == pytest.approx(0.116, abs=0.002)


def test_figures_of_a_gpu_hold_time_memory_and_the_share_of_the_roofline():
    own = [{"wall_s": 0.5, "vram_gb": 6.0}, {"wall_s": 0.6, "vram_gb": 6.0}, {"wall_s": 0.4, "vram_gb": 6.5}]
    results = {"ours": own, "sb3": [{"wall_s": 5.0}, {"wall_s": 6.0}, {"wall_s": 5.0}]}
    found = {each.name: each.value for each in gpu.figures(results, 8192, 4, 4.3e12, 790e12)}
    assert found["gpu.update_seconds"] == 0.5
    assert found["gpu.roofline_percent"] == pytest.approx(49.2, abs=0.5)
    assert found["gpu.vram_gb"] == 6.0
    assert found["gpu.ratio_sb3"] == 10.0


def test_another_build_of_torch_replaces_the_pinned_one_and_what_must_fit_it():
    text = "# note\ntorch==2.13.0\ntorchvision==0.28.0\nnumpy==2.4.6\ntorchrl==0.14.1\n"
    assert environment.requirements(text)[:2] == ["torch==2.13.0", "torchvision==0.28.0"]
    assert environment.requirements(text, "torch==2.13.0+cu130") == [
        "torch==2.13.0+cu130",
        "numpy==2.4.6",
        "torchrl==0.14.1",
    ]
