"""Tiny policy graphs: ``mean = vector @ W + b``, and one that looks at two pixels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from protocol.bundle import Golden


def _model(nodes, inputs, output: str, constants: dict[str, np.ndarray], size: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, size])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def weights(inputs: int = 5, actions: int = 2) -> np.ndarray:
    """Return the same small weights every time."""
    return np.random.default_rng(7).uniform(-0.5, 0.5, (inputs, actions)).astype(np.float32)


def linear(
    inputs: int = 5, actions: int = 2, *, bias: float = 0.0, name: str = "vector", output: str = "mean"
) -> bytes:
    """Return a graph of one layer."""
    nodes = [helper.make_node("MatMul", [name, "w"], ["x"]), helper.make_node("Add", ["x", "b"], [output])]
    constants = {"w": weights(inputs, actions), "b": np.full(actions, bias, np.float32)}
    return _model(nodes, [(name, [1, inputs])], output, constants, actions)


def scaled(inputs: int, actions: int = 2, *, scale: float, bias: float) -> bytes:
    """Return a graph of one layer with smaller weights."""
    nodes = [
        helper.make_node("MatMul", ["vector", "w"], ["x"]),
        helper.make_node("Mul", ["x", "scale"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["mean"]),
    ]
    constants = {
        "w": weights(inputs, actions),
        "scale": np.array([[scale]], np.float32),
        "b": np.full(actions, bias, np.float32),
    }
    return _model(nodes, [("vector", [1, inputs])], "mean", constants, actions)


def brittle(
    inputs: int = 5, actions: int = 2, *, limit: float = 0.5, element: int = 0, scale: float = 1.0, bias: float = 0.0
) -> bytes:
    """Return a graph whose answer is NaN where an element of the input vector is above a limit."""
    nodes = [
        helper.make_node("MatMul", ["vector", "w"], ["raw"]),
        helper.make_node("Mul", ["raw", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["x"]),
        helper.make_node("Gather", ["vector", "place"], ["picked"], axis=1),
        helper.make_node("Sub", ["limit", "picked"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Sub", ["root", "root"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["mean"]),
    ]
    constants = {
        "w": weights(inputs, actions),
        "scale": np.array([[scale]], np.float32),
        "b": np.full(actions, bias, np.float32),
        "place": np.array([element], np.int64),
        "limit": np.array([[limit]], np.float32),
    }
    return _model(nodes, [("vector", [1, inputs])], "mean", constants, actions)


def slow(
    inputs: int = 5, actions: int = 2, *, size: int = 1500, repeats: int = 4, scale: float = 1.0, bias: float = 0.0
) -> bytes:
    """Return a graph that answers as ``scaled`` does, after multiplying large matrices."""
    nodes = [
        helper.make_node("MatMul", ["vector", "w"], ["raw"]),
        helper.make_node("Mul", ["raw", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["x"]),
        helper.make_node("Slice", ["vector", "a", "b", "c"], ["v"]),
    ]
    nodes.append(helper.make_node("Mul", ["v", "square"], ["m0"]))
    nodes += [helper.make_node("MatMul", [f"m{i}", "square"], [f"m{i + 1}"]) for i in range(repeats)]
    nodes += [
        helper.make_node("ReduceMean", [f"m{repeats}"], ["r"], axes=[0, 1], keepdims=1),
        helper.make_node("Mul", ["r", "nothing"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["mean"]),
    ]
    constants = {
        "w": weights(inputs, actions),
        "scale": np.array([[scale]], np.float32),
        "bias": np.full(actions, bias, np.float32),
        "a": np.array([0], np.int64),
        "b": np.array([1], np.int64),
        "c": np.array([1], np.int64),
        "square": np.full((size, size), 1.0 / size, np.float32),
        "nothing": np.zeros((1, 1), np.float32),
    }
    return _model(nodes, [("vector", [1, inputs])], "mean", constants, actions)


def brittle_golden(count: int = 2, *, element: int = 0) -> Golden:
    """Return golden arrays on which ``brittle`` is well: the element is 0."""
    vector = np.linspace(-1, 1, count * 5, dtype=np.float32).reshape(count, 5)
    vector[:, element] = 0.0
    return Golden(np.zeros((count, 0, 0, 0), np.float32), vector, vector @ weights())


def two_pixels(shape: tuple[int, int, int], places: list[tuple[int, int, int]], inputs: int = 5) -> bytes:
    """Return a graph that answers the pixels at (channel, row, column)."""
    flat = np.array([np.ravel_multi_index(place, shape) for place in places], np.int64)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("Gather", ["flat", "places"], ["mean"], axis=1),
    ]
    return _model(nodes, [("image", [1, *shape]), ("vector", [1, inputs])], "mean", {"places": flat}, len(places))
