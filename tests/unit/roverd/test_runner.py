"""A policy runs only after it proved its golden outputs, and what it reports of its noise is true."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from protocol.bundle import Bundle, BundleError, Golden, unpack_bundle
from protocol.spec import Element
from protocol.transform import InputTransform
from roverd.control import wire
from roverd.policy.runner import ControllerRunner, InferenceError, OnnxRunner, checked_output
from tests.unit.protocol.samples import PLANES, ROBOT, TASK, golden, packed, pixels
from tests.unit.roverd.graphs import linear, two_pixels, weights

ARM = replace(ROBOT, cameras=(), action=tuple(Element(f"joint_{i}", "rad", -1.0, 1.0) for i in range(6)))


def right_golden() -> Golden:
    arrays = golden(3)
    return replace(arrays, mean=arrays.vector @ weights())


def bundle(onnx: bytes | None = None, arrays: Golden | None = None, **changes) -> Bundle:
    return unpack_bundle(packed(onnx or linear(), arrays or right_golden(), **changes))


def runner(seed: int = 5, **changes) -> OnnxRunner:
    return OnnxRunner(bundle(**changes), ROBOT, TASK, seed)


def tick(decision: int = 1, flags: int = wire.EXPLORE, **changes) -> wire.Tick:
    ordinary = wire.Tick(flags, 0, 1, 10, decision, 0, in_flight=(0.1, -0.5), vector=(0.25, 0.3, 2.0))
    return ordinary._replace(**changes)


def refusal(made: Bundle) -> str:
    with pytest.raises(BundleError) as caught:
        OnnxRunner(made, ROBOT, TASK, 0)
    return str(caught.value)


def test_a_right_policy_proves_itself_within_float_precision() -> None:
    assert runner().golden_error < 1e-6


def test_a_policy_that_answers_otherwise_than_at_the_trainer_is_refused() -> None:
    assert "golden outputs differ by 0.01" in refusal(bundle(linear(bias=0.01)))


def test_a_difference_within_the_tolerance_is_let_through() -> None:
    assert runner(onnx=linear(bias=5e-4)).golden_error == pytest.approx(5e-4, rel=0.01)


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_policy_with_non_finite_output_is_refused(bias: float) -> None:
    assert "is not usable" in refusal(bundle(linear(bias=bias)))


def test_a_graph_with_another_input_name_is_refused() -> None:
    assert "graph inputs {'obs'}" in refusal(bundle(linear(name="obs")))


def test_a_graph_with_another_output_name_is_refused() -> None:
    assert "graph inputs" in refusal(bundle(linear(output="action")))


def test_a_graph_that_wants_an_image_the_transform_does_not_give_is_refused() -> None:
    assert "image" in refusal(bundle(two_pixels((1, 6, 10), [(0, 0, 0), (0, 5, 9)])))


@pytest.mark.parametrize("inputs", [4, 6])
def test_a_graph_of_another_vector_length_is_refused(inputs: int) -> None:
    assert "policy" in refusal(bundle(linear(inputs)))


def test_a_graph_with_another_number_of_actions_is_refused() -> None:
    assert "is not usable" in refusal(bundle(linear(actions=3)))


@pytest.mark.parametrize("content", [b"no graph", b"\x80\x04cposix\nsystem\n", linear()[:-20]])
def test_bytes_that_are_no_graph_are_refused(content: bytes) -> None:
    assert "cannot be loaded" in refusal(bundle(content))


def test_a_policy_for_another_robot_is_refused() -> None:
    with pytest.raises(BundleError, match="action_repeat: 5 here, 2 there"):
        OnnxRunner(bundle(), replace(ROBOT, action_repeat=5), TASK, 0)


def test_equal_seeds_give_equal_noise() -> None:
    assert runner(5).propose(tick(), {}).u == runner(5).propose(tick(), {}).u


def test_the_noise_of_a_decision_does_not_depend_on_those_before() -> None:
    fresh, used = runner(), runner()
    used.propose(tick(1), {})
    assert used.propose(tick(2), {}).u == fresh.propose(tick(2), {}).u


@pytest.mark.parametrize(("seed", "decision"), [(6, 1), (5, 2)])
def test_another_seed_or_decision_gives_other_noise(seed: int, decision: int) -> None:
    assert runner(seed).propose(tick(decision), {}).u != runner(5).propose(tick(1), {}).u


def test_no_two_decisions_of_a_robot_with_many_joints_share_noise() -> None:
    transform = InputTransform.of(ARM, TASK, ())
    arrays = Golden(np.zeros((1, 0, 0, 0), np.float32), np.zeros((1, 9), np.float32), np.zeros((1, 6), np.float32))
    made = bundle(linear(9, 6), arrays, robot=ARM.to_map(), transform=transform.to_map(), log_std=[0.0] * 6)
    arm = OnnxRunner(made, ARM, TASK, 5)
    ticks = [tick(decision, in_flight=(0.0,) * 6, vector=(0.0, 0.1, 0.0)) for decision in range(1, 200)]
    noise = [value for each in ticks for value in arm.propose(each, {}).u]
    assert len(set(noise)) == len(noise)


def test_the_noise_is_standard_normal_times_the_standard_deviation() -> None:
    made = runner()
    proposals = [made.propose(tick(decision), {}) for decision in range(2000)]
    noise = (np.array([p.u for p in proposals]) - proposals[0].mean) / np.exp(proposals[0].log_std)
    assert np.abs(noise.mean(axis=0)).max() < 0.1
    assert np.abs(noise.std(axis=0) - 1).max() < 0.05


def test_without_exploration_the_mean_is_the_action() -> None:
    proposal = runner().propose(tick(flags=0), {})
    expected = [
        e.low + (math.tanh(m) + 1) / 2 * (e.high - e.low) for e, m in zip(ROBOT.action, proposal.mean, strict=True)
    ]
    assert (proposal.u, proposal.action) == (proposal.mean, pytest.approx(expected, abs=1e-6))


def test_the_mean_is_the_networks_answer_to_the_transformed_input() -> None:
    vector = InputTransform.of(ROBOT, TASK, ()).vector(
        np.array([0.25, 0.3], np.float32), np.array([2.0], np.float32), np.array([0.1, -0.5], np.float32)
    )
    assert runner().propose(tick(), {}).mean == pytest.approx((vector @ weights()).tolist(), abs=1e-6)


@pytest.mark.parametrize("flags", [0, wire.EXPLORE])
def test_the_log_prob_is_the_density_of_the_recorded_u(flags: int) -> None:
    p = runner().propose(tick(flags=flags), {})
    density = 1.0
    for u, mean, log_std in zip(p.u, p.mean, p.log_std, strict=True):
        std = math.exp(log_std)
        density *= math.exp(-((u - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    assert p.log_prob == pytest.approx(math.log(density), abs=1e-5)


def test_a_discrete_robots_policy_chooses_and_tells_how_likely_that_was() -> None:
    choices = tuple(Element(f"choice_{i}", "", 0.0, 1.0) for i in range(2))
    robot = replace(ROBOT, action=choices, action_space="discrete")
    transform = InputTransform.of(robot, TASK, ())
    chooser = OnnxRunner(bundle(robot=robot.to_map(), transform=transform.to_map(), log_std=[0.0, 0.0]), robot, TASK, 5)
    proposals = [chooser.propose(tick(decision), {}) for decision in range(200)]
    assert {each.action for each in proposals} == {(1.0, 0.0), (0.0, 1.0)}
    for each in proposals:
        assert each.u == each.action
        odds = np.exp(np.array(each.mean, np.float64))
        assert each.log_prob == pytest.approx(math.log(odds @ each.u / odds.sum()), abs=1e-6)
    sure = {chooser.propose(tick(decision, flags=0), {}).action for decision in range(20)}
    assert sure == {tuple(float(v == max(proposals[0].mean)) for v in proposals[0].mean)}


def test_an_explored_action_is_the_squashed_u_within_the_limits() -> None:
    made = runner(log_std=[2.0, 2.0])
    actions = np.array([made.propose(tick(decision), {}).action for decision in range(100)])
    assert (actions >= [e.low for e in ROBOT.action]).all()
    assert (actions <= [e.high for e in ROBOT.action]).all()


def test_a_proposal_answers_its_tick_for_the_whole_decision() -> None:
    p = runner().propose(tick(decision=8, tick=77), {})
    assert (p.flags, p.tick, p.decision, p.ticks, p.policy_counter) == (wire.HAS_BEHAVIOUR, 77, 8, 2, 3)


def test_a_non_finite_state_is_no_input() -> None:
    with pytest.raises(ValueError, match="roll is not finite"):
        runner().propose(tick(vector=(0.0, math.nan, 0.0)), {})


def seeing() -> OnnxRunner:
    """Return a policy that answers the depth at row 2, column 7 and the red at row 5, column 1."""
    transform = InputTransform.of(ROBOT, TASK, PLANES)
    arrays = replace(golden(channels=5), mean=np.full((2, 2), 0.5, np.float32))
    graph = two_pixels((5, 6, 10), [(4, 2, 7), (0, 5, 1)])
    return OnnxRunner(bundle(graph, arrays, transform=transform.to_map()), ROBOT, TASK, 0)


def test_an_image_reaches_the_network_with_rows_and_columns_in_place() -> None:
    assert seeing().propose(tick(), pixels()).mean == pytest.approx((0.1, 200 / 255), abs=1e-6)


def test_an_image_of_swapped_height_and_width_is_no_input() -> None:
    turned = {key: np.ascontiguousarray(image.swapaxes(0, 1)) for key, image in pixels().items()}
    with pytest.raises(ValueError, match="height first"):
        seeing().propose(tick(), turned)


class Recorder:
    """A controller that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def reset(self, seed: int) -> None:
        self.told.append(seed)

    def act(self, images, state, task):
        self.told.append((state.tolist(), task.tolist()))
        return np.array([0.25, -0.5], np.float32)


def test_a_controller_has_no_behaviour_distribution() -> None:
    proposal = ControllerRunner(Recorder(), ROBOT, 3).propose(tick(), {})
    assert (proposal.flags, proposal.action, proposal.ticks) == (0, (0.25, -0.5), 2)


def test_a_controller_is_reset_with_a_new_seed_each_episode() -> None:
    controller = Recorder()
    made = ControllerRunner(controller, ROBOT, 3)
    for flags in (wire.RESET, 0, wire.RESET):
        made.propose(tick(flags=flags, vector=(0.5, 0.25, 2.0)), {})
    seen = ([0.5, 0.25], [2.0])
    assert controller.told == [3, seen, seen, 4, seen]


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (None, "none"),
        ([], "none"),
        ([None], "none"),
        ([np.zeros((1, 3), np.float32)], "shape"),
        ([np.zeros(2, np.float32)], "shape"),
        ([np.zeros((2, 2), np.float32)], "shape"),
        ([np.zeros((1, 2), np.float64)], "shape"),
        ([np.zeros((1, 2), np.float16)], "shape"),
        ([[0.0, 0.0]], "shape"),
        ([np.array([[0.0, math.nan]], np.float32)], "non_finite"),
        ([np.array([[math.inf, 0.0]], np.float32)], "non_finite"),
    ],
)
def test_an_output_that_is_none_or_of_another_shape_or_not_finite_is_a_failure(outputs, kind) -> None:
    with pytest.raises(InferenceError) as caught:
        checked_output(outputs, 2)
    assert caught.value.kind == kind


def test_an_output_of_finite_numbers_is_taken_as_it_is() -> None:
    assert checked_output([np.array([[0.5, -1.0]], np.float32)], 2).tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 4), np.float32), np.zeros((5,), np.float32), np.zeros((1, 5), np.float64), np.zeros((5, 1)).T],
)
def test_an_input_of_another_shape_or_type_never_reaches_the_network(array) -> None:
    made = runner()
    made._feed["vector"] = array
    with pytest.raises(InferenceError, match="input vector") as caught:
        made._infer()
    assert caught.value.kind == "input"


def test_an_input_that_is_not_finite_never_reaches_the_network() -> None:
    made = runner()
    made._vector[0, 2] = math.inf
    with pytest.raises(InferenceError, match="not finite"):
        made._infer()


def test_the_warm_up_tells_the_time_of_a_run() -> None:
    assert 0 < runner().warm_up() < 100


@pytest.mark.parametrize(
    ("action", "kind"),
    [((0.1,), "shape"), ((0.1, math.nan), "non_finite"), (None, "raised"), (("a", "b"), "raised")],
)
def test_a_controllers_mistakes_are_failures_of_a_kind(action, kind) -> None:
    controller = Recorder()
    controller.act = lambda *_: action
    with pytest.raises(InferenceError) as caught:
        ControllerRunner(controller, ROBOT, 3).propose(tick(), {})
    assert caught.value.kind == kind
