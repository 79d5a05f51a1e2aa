"""Make a policy bundle from a snapshot of the learner's weights, and prove it before anyone sees it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from protocol.bundle import GOLDEN, ONNX, Golden, Manifest, golden_bytes, pack_bundle
from protocol.spec import canonical_hash
from trainerd.release.golden import synthetic_inputs
from trainerd.release.graph import IMAGE, VECTOR, ExportError, Graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocol.spec import RobotSpec, TaskSpec
    from protocol.transform import InputTransform
    from trainerd.learning.networks import PolicyNetwork

__all__ = ["ExportError", "Exporter", "code_version", "session", "weights_sha256"]

FloatArray = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest difference of a mean between torch and ONNX Runtime on the trainer."""


class Exporter:
    """Turn snapshots of one run's network into bundles. One thread at a time; nothing is written to disk.

    The first ``prepare`` or ``build`` takes seconds (torch writes the graph), every later one milliseconds (the graph's
    weights are replaced).
    """

    def __init__(
        self,
        network: PolicyNetwork,
        *,
        robot: RobotSpec,
        task: TaskSpec,
        transform: InputTransform,
        run_id: str,
    ) -> None:
        """Export for one robot, task and input transform; ``network`` gives the layout, never the weights."""
        self._network = network
        self._robot = robot
        self._task = task
        self._transform = transform
        self._run_id = run_id
        self._code_version = code_version()
        self._made_up: tuple[FloatArray, FloatArray] | None = None
        self._graph: Graph | None = None
        self._weights: dict[str, str] = {}

    def prepare(self) -> None:
        """Write the graph now, so that the first build is fast; raises ExportError."""
        if self._graph is None:
            expected = (self._transform.channels, self._transform.height, self._transform.width)
            if self._network.image_shape != expected or self._network.vector_size != self._transform.size:
                got = (*self._network.image_shape, self._network.vector_size)
                raise ExportError(
                    f"export: the network takes {got}, the transform gives {(*expected, self._transform.size)} "
                    "(channels, height, width, vector)"
                )
            self._graph = Graph(self._network)

    def build(  # noqa: PLR0913 - what a manifest says
        self,
        snapshot: Mapping[str, npt.NDArray[Any]],
        *,
        counter: int,
        parent: str,
        update: int,
        decisions: int,
        log_std: Sequence[float] | FloatArray,
        golden_inputs: tuple[FloatArray, FloatArray] | None = None,
        metrics: Mapping[str, float] | None = None,
        checkpoint: str = "",
        parent_weights_sha256: str | None = None,
        allow_unchanged: bool = False,
    ) -> bytes:
        """Return the bundle file of a snapshot.

        Args:
            snapshot: every weight and buffer of the network by name, float32; the key set must be the network's.
            counter: orders the policies of the run.
            parent: id of the policy it was trained on from, empty for the first.
            update: number of the update that gave it.
            decisions: how many decisions were learned from so far.
            log_std: log standard deviation of the exploration, per action element.
            golden_inputs: recorded float32[G, C, H, W] and float32[G, n]; made up where there are none yet.
            metrics: what is known of its success.
            checkpoint: name of the checkpoint that can resume from it.
            parent_weights_sha256: the parent's, where another Exporter built it (after a restart).
            allow_unchanged: publish although the weights are the parent's.

        Raises:
            ExportError: the snapshot is not this network's, not finite, the parent's own weights, or ONNX Runtime
                disagrees with torch. The policy must not be published; training may go on.

        """
        try:
            self.prepare()
            return self._build(
                snapshot,
                allow_unchanged=allow_unchanged,
                parent_weights_sha256=parent_weights_sha256,
                golden_inputs=golden_inputs,
                counter=counter,
                parent=parent,
                update=update,
                decisions=decisions,
                log_std=[float(value) for value in log_std],
                metrics={k: float(v) for k, v in (metrics or {}).items() if np.isfinite(v)},
                checkpoint=checkpoint,
            )
        except ExportError:
            raise
        except Exception as error:  # onnx and ONNX Runtime raise many unrelated types; none may end training
            raise ExportError(f"export of policy {counter}: {type(error).__name__}: {error}") from error

    def _build(
        self,
        snapshot: Mapping[str, npt.NDArray[Any]],
        *,
        allow_unchanged: bool,
        parent_weights_sha256: str | None,
        golden_inputs: tuple[FloatArray, FloatArray] | None,
        **facts: Any,
    ) -> bytes:
        graph = self._ready()
        graph.check(snapshot)
        if len(facts["log_std"]) != len(self._robot.action) or not np.isfinite(facts["log_std"]).all():
            raise ExportError(f"export: log_std {facts['log_std']} for {len(self._robot.action)} actions")
        digest = weights_sha256(snapshot, graph.weights)
        known = parent_weights_sha256 or self._weights.get(facts["parent"])
        if digest == known and not allow_unchanged:
            raise ExportError(
                f"export of policy {facts['counter']}: the weights are unchanged since {facts['parent'][:12]}; "
                "nothing was learned"
            )
        onnx_file = graph.fill(snapshot)
        golden = self._golden(graph, onnx_file, golden_inputs)
        manifest = self._manifest(graph, digest, onnx_file, golden, facts)
        self._weights = {manifest.policy_id: digest, facts["parent"]: known or ""}
        return pack_bundle(manifest, onnx_file, golden)

    def _ready(self) -> Graph:
        if self._graph is None:
            raise ExportError("export: prepare was not called")
        return self._graph

    def _golden(self, graph: Graph, onnx_file: bytes, inputs: tuple[FloatArray, FloatArray] | None) -> bytes:
        """Compute the golden means with torch and hold ONNX Runtime's against them."""
        if inputs is None:
            if self._made_up is None:
                self._made_up = synthetic_inputs(self._robot, self._task, self._transform)
            inputs = self._made_up
        image, vector = (np.ascontiguousarray(each, np.float32) for each in inputs)
        expected = ((self._transform.channels, self._transform.height, self._transform.width), (self._transform.size,))
        if (image.shape[1:], vector.shape[1:]) != expected or not len(image) == len(vector) > 0:
            raise ExportError(f"export: golden inputs {image.shape} and {vector.shape}, expected [G, *{expected}]")
        means = graph.means(image, vector)
        answers = infer(session(onnx_file), image, vector)
        difference = float(np.abs(means - answers).max())
        if not difference <= TOLERANCE:
            raise ExportError(
                f"export: ONNX Runtime differs from torch by {difference:.2g} in a mean, {TOLERANCE:g} is allowed"
            )
        return golden_bytes(Golden(image, vector, means))

    def _manifest(
        self, graph: Graph, digest: str, onnx_file: bytes, golden: bytes, facts: Mapping[str, Any]
    ) -> Manifest:
        robot = self._robot
        return Manifest(
            **facts,
            run_id=self._run_id,
            robot=robot.to_map(),
            task=self._task.to_map(),
            transform=self._transform.to_map(),
            runner="single",
            inputs=graph.inputs,
            outputs=graph.outputs,
            control_rate_hz=robot.control_rate_hz,
            action_repeat=robot.action_repeat,
            action_delay_ms=robot.action_delay_ms,
            action_low=[element.low for element in robot.action],
            action_high=[element.high for element in robot.action],
            files={ONNX: hashlib.sha256(onnx_file).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()},
            weights_sha256=digest,
            keys_sha256=canonical_hash([[name, list(graph.shapes[name])] for name in graph.weights]),
            code_version=self._code_version,
        )


def session(onnx_file: bytes) -> Any:
    """Load an ONNX file the way a robot does: one thread, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])


def infer(policy: Any, image: FloatArray, vector: FloatArray) -> FloatArray:
    """Ask a session about each input by itself; returns float32[G, a]."""
    names = [each.name for each in policy.get_inputs()]
    rows = ({IMAGE: image[i : i + 1], VECTOR: vector[i : i + 1]} for i in range(len(vector)))
    return np.concatenate([policy.run(None, {name: row[name] for name in names})[0] for row in rows])


def weights_sha256(snapshot: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> str:
    """Hash names and bytes of some weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(snapshot[name]).tobytes())
    return digest.hexdigest()


def code_version() -> str:
    """Return the version of this package, with the commit where it runs from a checkout."""
    try:
        version = importlib.metadata.version("roverloop")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"
