"""Tiny policy graphs: ``mean = vector @ W + b``, and one that looks at two pixels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


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


def two_pixels(shape: tuple[int, int, int], places: list[tuple[int, int, int]], inputs: int = 5) -> bytes:
    """Return a graph that answers the pixels at (channel, row, column)."""
    flat = np.array([np.ravel_multi_index(place, shape) for place in places], np.int64)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("Gather", ["flat", "places"], ["mean"], axis=1),
    ]
    return _model(nodes, [("image", [1, *shape]), ("vector", [1, inputs])], "mean", {"places": flat}, len(places))
