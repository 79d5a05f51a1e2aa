from dataclasses import replace

import numpy as np
import pytest
import torch

from plugins.encoders import rgbd
from trainerd.learning.gather import Gather
from trainerd.learning.inputs import Inputs, Pins, transform_tensors

pytestmark = pytest.mark.component


def random_rollout(toy, rows=7):
    rng = np.random.default_rng(3)
    rollout = toy.rollouts(rows, 1).acquire()
    for key, store in rollout.images.items():
        low, high = (0, 256) if store.dtype == np.uint8 else (-500, 12000)
        rollout.images[key][:] = rng.integers(low, high, store.shape)
    rollout.state[:] = rng.normal(size=rollout.state.shape)
    return rollout


@pytest.mark.parametrize("kind", ["seeing", "gray"])
def test_gathered_images_and_vectors_equal_the_shared_transform_bit_for_bit(kind, request):
    toy = request.getfixturevalue(kind)
    rollout, rows = random_rollout(toy), np.array([5, 0, 3])
    gather, transform = Gather(toy.transform), toy.transform
    images = gather.images(rollout, rows)
    vectors = gather.vectors(rollout, rows)
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(images[index], transform.image({k: v[row] for k, v in rollout.images.items()}))
        vector = transform.vector(rollout.state[row], rollout.task[row], rollout.in_flight[row])
        np.testing.assert_array_equal(vectors[index], vector)


def test_the_tensor_transform_of_a_gpu_equals_the_shared_one(gray):
    rollout, rows = random_rollout(gray), np.array([2, 6])
    tensors = {key: torch.from_numpy(store[rows]) for key, store in rollout.images.items()}
    expected = Gather(gray.transform).images(rollout, rows)
    np.testing.assert_allclose(transform_tensors(gray.transform, tensors).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["seeing", "gray"])
def test_features_from_patches_equal_those_of_the_exported_convolutions(kind, request):
    toy = request.getfixturevalue(kind)
    learner, rollout = toy.learner(), random_rollout(toy)
    rollout.rows = rollout.capacity
    mean = np.random.default_rng(0).random(learner.network.image_shape, np.float32)
    learner.network.fit_normaliser(mean, mean)
    inputs = Inputs(toy.transform, torch.device("cpu"), "bfloat16")
    inputs.load(rollout, learner.network)
    places = np.array([4, 1])
    whole = learner.network.encode(torch.from_numpy(Gather(toy.transform).images(rollout, places)))
    precise = inputs.features(learner.network, places, precise=True)
    torch.testing.assert_close(precise, whole, atol=1e-5, rtol=1e-5)
    half = inputs.features(learner.network, places, precise=False)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["rgbd", "gray_depth", "depth"])
def test_normalised_images_with_channels_last_give_the_features_of_plain_ones(name, toy):
    plugin = {each.name: each for each in rgbd.provide_encoders()}[name]
    toy = type(toy)(plugin.planes, plugin.build)
    learner, rollout = toy.learner(), random_rollout(toy)
    rollout.rows = rollout.capacity
    mean = np.random.default_rng(0).random(learner.network.image_shape, np.float32)
    learner.network.fit_normaliser(mean, mean)
    places = np.array([4, 1, 6])
    image = torch.from_numpy(Gather(toy.transform).images(rollout, places))
    for autocast, tolerance in (("none", 1e-6), ("bfloat16", 4e-3)):
        inputs = Inputs(toy.transform, torch.device("cpu"), autocast)
        inputs.load(rollout, learner.network)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast != "none"):
            plain = learner.network.encode(image).float()
        features = inputs.features(learner.network, places, precise=False)
        torch.testing.assert_close(features, plain, rtol=tolerance, atol=tolerance)


def test_large_images_go_through_convolutions_few_at_a_time_on_a_cpu(toy, gray):
    plugin = {each.name: each for each in rgbd.provide_encoders()}["rgbd"]
    wide = replace(toy.robot, cameras=tuple(replace(each, height=240, width=424) for each in toy.robot.cameras))
    for made, rows in (
        (type(toy)(plugin.planes, plugin.build, robot=wide), 4),
        (type(toy)(plugin.planes, plugin.build), 1967),
        (gray, 0),
        (toy, 0),
    ):
        learner = made.learner()
        learner.inputs.load(made.rollouts(1, 1).acquire(), learner.network)
        assert learner.inputs.cached_rows == rows
        assert learner.inputs.chunk == min(256, rows or 256)


class Runtime:
    """Remembers what is pinned, as the CUDA runtime does."""

    def __init__(self):
        self.pinned = []

    def cudaHostRegister(self, place, size, flags):  # noqa: N802 - its name
        self.pinned.append((place, size))
        return 0

    def cudaHostUnregister(self, place):  # noqa: N802 - its name
        self.pinned = [each for each in self.pinned if each[0] != place]


def test_memory_is_pinned_once_and_only_while_its_array_lives():
    runtime = Runtime()
    pins = Pins(runtime)
    store = np.zeros(100, np.uint8)
    for _ in range(3):
        pins.keep(store)
    pins.keep(np.zeros(0, np.uint8))
    assert runtime.pinned == [(store.ctypes.data, 100)]
    del store
    assert runtime.pinned == []


def test_halved_patches_are_rounded_as_torch_rounds(seeing):
    rollout, rows = random_rollout(seeing), np.arange(4)
    gather = Gather(seeing.transform)
    mean = np.full((4, 12, 18), 0.3, np.float32)
    full = torch.from_numpy(gather.patches(rollout, rows, mean, mean, half=False).copy())
    half = torch.from_numpy(gather.patches(rollout, rows, mean, mean, half=True)).view(torch.bfloat16)
    assert torch.equal(full.bfloat16(), half)
