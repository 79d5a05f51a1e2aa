"""Policies that a rover must refuse, made from one that is good."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from protocol.bundle import GOLDEN, ONNX, Bundle, BundleError, Manifest, golden_bytes, pack_bundle, unpack_bundle

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def stored(state_dir: Path) -> dict[str, Bundle]:
    """Return the bundles that a rover has on disk, by policy id; it may drop old ones meanwhile."""
    found = {}
    for path in state_dir.glob("policies/*.bundle"):
        try:
            bundle = unpack_bundle(path.read_bytes())
        except (OSError, BundleError):
            continue
        found[bundle.policy_id] = bundle
    return found


def by_counter(bundles: dict[str, Bundle]) -> list[Bundle]:
    return sorted(bundles.values(), key=lambda bundle: bundle.manifest.counter)


def means(bundle: Bundle, image: npt.NDArray[np.float32], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Ask the network as a rover does, one input at a time: float32[G, actions]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(bundle.onnx, options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    rows = []
    for index in range(len(vector)):
        feed = {"image": image[index : index + 1], "vector": vector[index : index + 1]}
        rows.append(session.run(["mean"], {name: value for name, value in feed.items() if name in names})[0][0])
    return np.stack(rows)


def packed(bundle: Bundle, network: bytes | None = None, **changes: Any) -> bytes:
    """Return the bundle's file with another network or manifest, all hashes as they should be."""
    network = bundle.onnx if network is None else network
    golden = golden_bytes(bundle.golden)
    files = {ONNX: hashlib.sha256(network).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()}
    manifest: Manifest = replace(bundle.manifest, files=files, **changes)
    return pack_bundle(manifest, network, golden)


def with_weights(bundle: Bundle, factor: float) -> bytes:
    """Return the network with every float weight times a factor (NaN as well)."""
    model = onnx.load_from_string(bundle.onnx)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return bytes(model.SerializeToString())


def with_output(name: str, width: int) -> bytes:
    """Return a network that gives another number of actions: zeros from no weights at all."""
    vector = onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, [1, None])
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, None, None, None])
    out = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, width])
    value = numpy_helper.from_array(np.zeros((1, width), np.float32), "zeros")
    node = onnx.helper.make_node("Constant", [], [name], value=value)
    graph = onnx.helper.make_graph([node], "wrong", [image, vector], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())
