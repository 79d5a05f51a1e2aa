"""The ONNX graph of a policy: exported from torch once a run, then filled with each snapshot's weights."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trainerd.learning.networks import PolicyNetwork

FloatArray = npt.NDArray[np.float32]

OPSET = 18
IMAGE, VECTOR, MEAN = "image", "vector", "mean"
_OUTPUT = "policy_output"
PREFIX = "network."
"""What stands before a weight's name in the graph; it also keeps a weight from being called like an input."""


class ExportError(RoverError):
    """A policy cannot be exported: it is not published, the one before it drives on, and training goes on."""


class Graph:
    """A network's ONNX graph, whose weights are swapped in place; made once (seconds), filled in milliseconds.

    The graph has batch size 1. It takes ``image`` (absent where the network sees no camera) and ``vector`` and gives
    ``mean``, before the tanh. One thread at a time.
    """

    def __init__(self, network: PolicyNetwork) -> None:
        """Export a copy of ``network``; the network itself is left alone.

        Raises:
            ExportError: torch cannot express the network in ONNX, or weights got lost on the way.

        """
        with torch.no_grad():
            self._network = _distinct_copy(network)
        self.shapes = {name: tuple(value.shape) for name, value in self._network.state_dict().items()}
        self._proto = _export(self._network)
        self._places = {
            each.name.removeprefix(PREFIX): each
            for each in self._proto.graph.initializer
            if each.name.startswith(PREFIX)
        }
        missing = sorted(self._used() - self._places.keys())
        if missing:
            raise ExportError(f"export: weights {missing} are not in the graph under their own names")

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that the graph holds, sorted; without those that only the learner needs."""
        return tuple(sorted(self._places))

    @property
    def inputs(self) -> list[list[Any]]:
        """(name, shape, dtype) of each input."""
        image: list[list[Any]] = [[IMAGE, [1, *self._network.image_shape], "float32"]]
        return [*(image if self._network.image_shape[0] else []), [VECTOR, [1, self._network.vector_size], "float32"]]

    @property
    def outputs(self) -> list[list[Any]]:
        """(name, shape, dtype) of the output."""
        return [[MEAN, [1, self._network.action_size], "float32"]]

    def check(self, snapshot: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise ExportError, naming every fault, unless names, shapes and dtypes are right and all is finite."""
        faults = [f"{name} is missing" for name in sorted(self.shapes.keys() - snapshot.keys())]
        faults += [f"{name} is unknown" for name in sorted(snapshot.keys() - self.shapes.keys())]
        for name in sorted(self.shapes.keys() & snapshot.keys()):
            value = snapshot[name]
            if tuple(value.shape) != self.shapes[name]:
                faults.append(f"{name} has shape {list(value.shape)}, expected {list(self.shapes[name])}")
            elif value.dtype != np.float32:
                faults.append(f"{name} is {value.dtype}, expected float32")
            elif not np.isfinite(value).all():
                faults.append(f"{name} has {int(value.size - np.isfinite(value).sum())} values that are not finite")
        if faults:
            raise ExportError("export of a snapshot: " + "; ".join(faults))

    def fill(self, snapshot: Mapping[str, npt.NDArray[Any]]) -> bytes:
        """Put a checked snapshot's weights into the graph and into the torch copy; return the ONNX file."""
        self._network.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in snapshot.items()}, strict=True)
        for name, place in self._places.items():
            place.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(snapshot[name]), place.name))
        return bytes(self._proto.SerializeToString(deterministic=True))

    @torch.no_grad()
    def means(self, image: FloatArray, vector: FloatArray) -> FloatArray:
        """Return torch's float32 means of the weights that were filled in last, float32[G, a]."""
        mean, _ = self._network(torch.from_numpy(image), torch.from_numpy(vector))
        return cast("FloatArray", mean.numpy())

    def _used(self) -> set[str]:
        """Return the names of the weights that the mean depends on, by differentiating it."""
        network = copy.deepcopy(self._network).requires_grad_()
        image = torch.rand(1, *network.image_shape)
        mean, _ = network(image, torch.rand(1, network.vector_size))
        mean.sum().backward()
        return {name for name, weight in network.named_parameters() if weight.grad is not None and weight.numel()}


class _Seeing(nn.Module):
    """What is exported of a network with cameras."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        """Return the mean alone."""
        return cast("Tensor", self.network(image, vector)[0])


class _Blind(nn.Module):
    """What is exported of a network without cameras: it has no image input."""

    def __init__(self, network: PolicyNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, vector: Tensor) -> Tensor:
        """Return the mean alone."""
        network = self.network
        return cast("Tensor", network.policy(network.proprio(network.normalised(vector))))


def _distinct_copy(network: PolicyNetwork) -> PolicyNetwork:
    """Copy to the CPU with random weights: the exporter merges equal ones, such as biases that are all zero."""
    twin = copy.deepcopy(network).cpu().float().eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    for value in (*twin.parameters(), *twin.buffers()):
        value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return twin


def _export(network: PolicyNetwork) -> onnx.ModelProto:
    image, vector = torch.zeros(1, *network.image_shape), torch.zeros(1, network.vector_size)
    has_image = bool(network.image_shape[0])
    module: nn.Module = _Seeing(network) if has_image else _Blind(network)
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                (image, vector) if has_image else (vector,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGE, VECTOR] if has_image else [VECTOR],
                output_names=[_OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch raises many unrelated types for an operator that ONNX lacks
        raise ExportError(f"export: torch cannot write this network as ONNX: {error}") from error
    if program is None:
        raise ExportError("export: torch gave no ONNX program")
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    _name_output(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _name_output(graph: onnx.GraphProto) -> None:
    """Call the output ``mean``, also where torch gave that name to a value within the graph (an average)."""
    names = {MEAN: f"inner.{MEAN}", _OUTPUT: MEAN}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for each in graph.output:
        each.name = names.get(each.name, each.name)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what torch notes for debugging: stack traces with this machine's paths, three quarters of the file."""
    graph = proto.graph
    for each in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.doc_string = ""
        del each.metadata_props[:]
    del graph.value_info[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages that are not needed out of the log."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
