"""What an exported policy is, and which ones are never published."""

import io

import numpy as np
import onnx
import pytest
import torch

from plugins.encoders.blind_net import Blind
from plugins.encoders.column_net import Column
from plugins.manager import PluginManager
from protocol.bundle import check_fit, unpack_bundle
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.transform import InputTransform, Plane
from trainerd.learning.networks import PolicyNetwork
from trainerd.learning.settings import NetworkSettings
from trainerd.release import graph as graph_module
from trainerd.release.export import Exporter, ExportError, infer, session
from trainerd.release.golden import synthetic_inputs

pytestmark = pytest.mark.component

ROBOT = RobotSpec(
    name="small",
    cameras=(Camera("front", "rgb", 12, 20, 10.0), Camera("front", "depth", 12, 20, 10.0)),
    state=(Element("linear_velocity", "m/s", -1.0, 1.0, 0.0, 0.5), Element("roll", "rad", -3.2, 3.2, 0.0, 0.1)),
    action=(Element("linear", "m/s", 0.0, 0.5), Element("angular", "rad/s", -1.5, 1.5)),
    control_rate_hz=10.0,
    action_repeat=3,
    action_delay_ms=50.0,
)
TASK = TaskSpec("goal", (Element("distance_m", "m", 0.0, 10.0, 0.0, 4.0),))
PLANES = (Plane("observation.images.front", "rgb"), Plane("observation.depth.front", "inverse_depth"))


def make_network(transform, encoder):
    torch.manual_seed(3)
    shape = (transform.channels, transform.height, transform.width)
    return PolicyNetwork(encoder, shape, transform.size, len(ROBOT.action), NetworkSettings(std="schedule"))


def make_exporter(network, transform):
    return Exporter(network, robot=ROBOT, task=TASK, transform=transform, run_id="run-1")


def facts(**changes):
    return {"counter": 1, "parent": "", "update": 1, "decisions": 1024, "log_std": [-1.0, -1.0]} | changes


@pytest.fixture(scope="session")
def transform():
    return InputTransform.of(ROBOT, TASK, PLANES)


@pytest.fixture(scope="session")
def network(transform):
    return make_network(transform, Column((4, 12, 20)))


@pytest.fixture(scope="session")
def prepared(network, transform):
    exporter = make_exporter(network, transform)
    exporter.prepare()
    return exporter


@pytest.fixture
def exporter(prepared):
    prepared._weights.clear()
    return prepared


@pytest.fixture
def snapshot(network):
    return network.snapshot()


def changed(snapshot, name="policy.4.weight", by=0.5):
    return {**snapshot, name: snapshot[name] + np.float32(by)}


def test_a_bundle_is_verified_and_fits_the_robot_it_was_built_for(exporter, snapshot):
    bundle = unpack_bundle(exporter.build(snapshot, **facts()))
    check_fit(bundle, ROBOT, TASK)
    assert bundle.manifest.inputs == [["image", [1, 4, 12, 20], "float32"], ["vector", [1, 5], "float32"]]
    assert bundle.manifest.outputs == [["mean", [1, 2], "float32"]]
    assert bundle.manifest.action_repeat == 3
    assert bundle.manifest.run_id == "run-1"


def test_the_robot_computes_the_actions_of_the_trainer_for_each_later_snapshot(exporter, snapshot):
    for counter in range(1, 4):
        weights = {name: value + np.float32(0.01 * counter) for name, value in snapshot.items()}
        bundle = unpack_bundle(exporter.build(weights, **facts(counter=counter)))
        golden = bundle.golden
        answers = infer(session(bundle.onnx), golden.image, golden.vector)
        np.testing.assert_allclose(answers, golden.mean, atol=1e-5)


def test_a_changed_policy_acts_differently_on_its_golden_inputs_than_its_parent(exporter, snapshot):
    first = unpack_bundle(exporter.build(snapshot, **facts()))
    second = unpack_bundle(exporter.build(changed(snapshot), **facts(counter=2, parent=first.policy_id)))
    assert np.abs(first.golden.mean - second.golden.mean).max() > 1e-3
    assert first.policy_id != second.policy_id


def test_weights_that_did_not_change_are_not_published_again(exporter, snapshot):
    first = unpack_bundle(exporter.build(snapshot, **facts()))
    with pytest.raises(ExportError, match="unchanged"):
        exporter.build(snapshot, **facts(counter=2, parent=first.policy_id))
    assert exporter.build(snapshot, **facts(counter=2, parent=first.policy_id), allow_unchanged=True)


def test_a_parent_of_before_a_restart_is_recognised_by_its_weights_hash(exporter, snapshot):
    digest = unpack_bundle(exporter.build(snapshot, **facts())).manifest.weights_sha256
    with pytest.raises(ExportError, match="unchanged"):
        exporter.build(snapshot, **facts(parent="p" * 64), parent_weights_sha256=digest)


def test_a_changed_value_head_alone_is_no_new_policy(exporter, snapshot):
    first = unpack_bundle(exporter.build(snapshot, **facts()))
    with pytest.raises(ExportError, match="unchanged"):
        exporter.build(changed(snapshot, "value.4.bias"), **facts(parent=first.policy_id))


def test_every_wrong_name_and_shape_of_a_snapshot_is_named(exporter, snapshot):
    wrong = {f"agent.{name}" if name == "policy.0.bias" else name: value for name, value in snapshot.items()}
    wrong["policy.4.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ExportError) as caught:
        exporter.build(wrong, **facts())
    for part in ("policy.0.bias is missing", "agent.policy.0.bias is unknown", "policy.4.bias has shape [3]"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(exporter, snapshot, value):
    with pytest.raises(ExportError, match=r"encoder.mix.bias has 16 values that are not finite"):
        exporter.build({**snapshot, "encoder.mix.bias": np.full(16, value, np.float32)}, **facts())


def test_a_graph_that_keeps_old_weights_is_caught_before_it_is_published(exporter, snapshot, monkeypatch):
    exporter.build(snapshot, **facts())
    stale = exporter._graph._proto.SerializeToString()
    fill = graph_module.Graph.fill
    monkeypatch.setattr(graph_module.Graph, "fill", lambda graph, weights: (fill(graph, weights), stale)[1])
    with pytest.raises(ExportError, match="differs from torch"):
        exporter.build(changed(snapshot), **facts(counter=2))


def test_whatever_fails_inside_is_an_export_error(exporter, snapshot, monkeypatch):
    def full_disk(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainerd.release.export.pack_bundle", full_disk)
    with pytest.raises(ExportError, match="No space left on device"):
        exporter.build(snapshot, **facts())


def test_a_failed_build_does_not_spoil_the_next_one(exporter, snapshot):
    with pytest.raises(ExportError):
        exporter.build({}, **facts())
    unpack_bundle(exporter.build(snapshot, **facts()))


def test_equal_snapshots_give_equal_bytes(exporter, snapshot):
    assert exporter.build(snapshot, **facts()) == exporter.build(snapshot, **facts())


def test_the_graph_carries_no_path_of_the_machine_that_made_it(exporter, snapshot):
    content = unpack_bundle(exporter.build(snapshot, **facts())).onnx
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_all_weights_lie_inside_the_file(exporter, snapshot):
    proto = onnx.load(io.BytesIO(unpack_bundle(exporter.build(snapshot, **facts())).onnx))
    assert all(each.data_location == onnx.TensorProto.DEFAULT for each in proto.graph.initializer)


def test_recorded_golden_inputs_are_used_as_they_are(exporter, snapshot):
    random = np.random.default_rng(0)
    image = random.random((8, 4, 12, 20), np.float32)
    vector = random.random((8, 5), np.float32)
    golden = unpack_bundle(exporter.build(snapshot, **facts(), golden_inputs=(image, vector))).golden
    np.testing.assert_array_equal(golden.image, image)
    np.testing.assert_array_equal(golden.vector, vector)


def test_golden_inputs_with_height_and_width_exchanged_are_refused(exporter, snapshot):
    inputs = np.zeros((8, 4, 20, 12), np.float32), np.zeros((8, 5), np.float32)
    with pytest.raises(ExportError, match="golden inputs"):
        exporter.build(snapshot, **facts(), golden_inputs=inputs)


def test_made_up_golden_frames_change_when_height_and_width_are_exchanged(transform):
    image, _ = synthetic_inputs(ROBOT, TASK, transform)
    square = image[..., :12, :12]
    assert np.abs(square - square.swapaxes(2, 3)).mean() > 0.1


def test_made_up_golden_inputs_are_equal_on_every_call(transform):
    for first, second in zip(
        synthetic_inputs(ROBOT, TASK, transform), synthetic_inputs(ROBOT, TASK, transform), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_a_wrong_number_of_log_std_is_refused(exporter, snapshot):
    with pytest.raises(ExportError, match="log_std"):
        exporter.build(snapshot, **facts(log_std=[-1.0]))


def test_a_network_that_does_not_fit_the_transform_is_refused_at_once(network):
    blind = InputTransform.of(ROBOT, TASK, ())
    with pytest.raises(ExportError, match="the network takes"):
        make_exporter(network, blind).prepare()


def test_a_policy_without_cameras_has_no_image_input():
    transform = InputTransform.of(ROBOT, TASK, ())
    network = make_network(transform, Blind())
    bundle = unpack_bundle(make_exporter(network, transform).build(network.snapshot(), **facts()))
    check_fit(bundle, ROBOT, TASK)
    assert bundle.manifest.inputs == [["vector", [1, 5], "float32"]]
    assert bundle.golden.image.shape == (8, 0, 0, 0)


@pytest.mark.parametrize("name", ["column", "rgbd", "gray_depth", "depth", "blind"])
def test_every_built_in_encoder_can_be_exported_and_answers_as_torch_does(name):
    plugin = PluginManager(("encoders",)).encoder(name)
    settings = plugin.settings()
    transform = InputTransform.of(ROBOT, TASK, plugin.planes(ROBOT, settings))
    shape = (transform.channels, transform.height, transform.width)
    exporter = make_exporter(make_network(transform, plugin.build(shape, settings)), transform)
    snapshot = make_network(transform, plugin.build(shape, settings)).snapshot()
    bundle = unpack_bundle(exporter.build(snapshot, **facts(log_std=[-1.0, -1.0])))
    assert [each[0] for each in bundle.manifest.outputs] == ["mean"]


@pytest.mark.parametrize("name", ["column", "blind"])
def test_the_normaliser_of_the_vector_is_swapped_into_the_graph_with_the_weights(name):
    plugin = PluginManager(("encoders",)).encoder(name)
    settings = plugin.settings()
    transform = InputTransform.of(ROBOT, TASK, plugin.planes(ROBOT, settings))
    network = make_network(transform, plugin.build((transform.channels, transform.height, transform.width), settings))
    exporter = make_exporter(network, transform)
    before = unpack_bundle(exporter.build(network.snapshot(), **facts())).golden.mean
    network.fit_vector(np.full(transform.size, 0.3, np.float32), np.full(transform.size, 0.1, np.float32))
    after = unpack_bundle(exporter.build(network.snapshot(), **facts(parent="x"))).golden.mean
    assert np.abs(after - before).max() > 1e-3
