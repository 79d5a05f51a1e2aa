import importlib.util
import math

import numpy as np
import pytest
import torch

from plugins.encoders.cameras import CameraSettings
from plugins.encoders.column import build_column
from plugins.encoders.column_net import TiedMaximum
from plugins.encoders.rgbd import build_depth, build_gray_depth, build_rgbd
from trainerd.learning.networks import Actor, PolicyNetwork, deployed_parameters
from trainerd.learning.settings import DEMO, NetworkSettings


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_missions_network_has_355013_parameters_of_which_321988_are_deployed():
    encoder = build_rgbd((4, 240, 424), CameraSettings())
    network = PolicyNetwork(encoder, (4, 240, 424), 6, 2, NetworkSettings())
    assert parameters(encoder) == 284_288
    assert parameters(network) == 355_013
    assert deployed_parameters(network) == 321_988
    mean, value = network(torch.zeros(2, 4, 240, 424), torch.zeros(2, 6))
    assert mean.shape == (2, 2)
    assert value.shape == (2,)


def test_the_demos_network_has_82533_parameters_without_the_action_in_flight():
    encoder = build_column((4, 60, 106), CameraSettings())
    network = PolicyNetwork(encoder, (4, 60, 106), 9, 2, NetworkSettings(**{**DEMO["network"], "std": "learned"}))
    assert parameters(encoder) == 28_000
    assert parameters(network) == 82_533


@pytest.mark.parametrize(("build", "channels"), [(build_gray_depth, 2), (build_depth, 1)])
def test_every_encoder_gives_the_features_it_declares(build, channels):
    encoder = build((channels, 24, 40), CameraSettings())
    assert encoder(torch.rand(3, channels, 24, 40)).shape == (3, encoder.out_features)


def test_a_maximum_sends_its_gradient_to_all_ties():
    maps = torch.tensor([[[[1.0]], [[3.0]], [[3.0]]]], requires_grad=True)
    TiedMaximum.apply(maps).sum().backward()
    assert maps.grad.flatten().tolist() == [0.0, 1.0, 1.0]


def test_convolutions_with_and_without_gradient_agree():
    encoder = build_column((4, 12, 18), CameraSettings())
    image = torch.rand(2, 4, 12, 18)
    with torch.no_grad():
        plain = encoder(image)
    torch.testing.assert_close(encoder(image), plain)


def test_the_normaliser_is_part_of_the_network():
    network = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, NetworkSettings())
    image, vector = torch.rand(1, 4, 12, 18), torch.zeros(1, 3)
    mean = np.full((4, 12, 18), 0.25, np.float32)
    before = network((image - 0.25) / 0.45, vector)
    network.fit_normaliser(mean, np.full((4, 12, 18), 0.4, np.float32))
    torch.testing.assert_close(network(image, vector)[1], before[1])
    assert "pixel_mean" in network.snapshot()


@pytest.mark.parametrize(("activation", "kind"), [("relu", "ReLU"), ("tanh", "Tanh"), ("elu", "ELU")])
def test_vector_branch_and_heads_have_the_activation_that_was_asked_for(activation, kind):
    settings = NetworkSettings(activation=activation, proprio_hidden=(8,))
    network = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, settings)
    for part in (network.proprio, network.policy, network.value):
        kinds = {type(layer).__name__ for layer in part}
        assert kinds == {"Linear", kind}


def test_a_vector_as_it_comes_is_left_alone_until_the_normaliser_is_fitted():
    network = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, NetworkSettings())
    vector = torch.tensor([[1e-30, -10.0, 10.0], [0.1, -0.0, 3.7]])
    assert torch.equal(network.normalised(vector), vector)
    network.fit_vector(np.array([1.0, 2.0, 3.0], np.float32), np.array([0.5, 1e-9, 2.0], np.float32))
    assert network.normalised(torch.tensor([[2.0, 2.1, 3.0]])).tolist() == [[2.0, 10.0, 0.0]]


def test_a_network_for_choices_has_no_deviation_to_learn():
    settings = NetworkSettings()
    network = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 4, settings, has_std=False)
    assert "log_std" not in dict(network.named_parameters())
    assert network.snapshot()["log_std"].tolist() == [0.0] * 4


def test_heads_begin_orthogonal_with_their_gains():
    network = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, NetworkSettings())
    norms = {
        name: layer[-1].weight.norm(dim=1) for name, layer in (("policy", network.policy), ("value", network.value))
    }
    torch.testing.assert_close(norms["policy"], torch.full((2,), 0.01))
    torch.testing.assert_close(norms["value"], torch.ones(1))


def test_std_is_a_parameter_or_what_a_schedule_sets():
    learned = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, NetworkSettings())
    scheduled = PolicyNetwork(
        build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, NetworkSettings(std="schedule")
    )
    assert "log_std" in dict(learned.named_parameters())
    assert "log_std" not in dict(scheduled.named_parameters())
    scheduled.set_std(0.3)
    assert scheduled.snapshot()["log_std"] == pytest.approx(math.log(0.3))


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")
def test_the_exported_column_network_equals_the_one_that_learned(tmp_path):
    import onnxruntime

    network = PolicyNetwork(build_column((4, 12, 18), CameraSettings()), (4, 12, 18), 3, 2, NetworkSettings())
    image, vector = torch.rand(1, 4, 12, 18), torch.rand(1, 3)
    path = tmp_path / "policy.onnx"
    import warnings

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        actor = Actor(network).eval().requires_grad_(requires_grad=False)
        torch.onnx.export(actor, (image, vector), path, input_names=["image", "vector"], dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (mean,) = session.run(None, {"image": image.numpy(), "vector": vector.numpy()})
    np.testing.assert_allclose(mean, actor(image, vector).numpy(), atol=1e-5)
