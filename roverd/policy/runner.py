"""What can answer a tick: a policy bundle in ONNX Runtime, or a scripted controller plugin."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime

from protocol.bundle import GOLDEN_TOLERANCE, Bundle, BundleError, check_fit
from protocol.distribution import distribution_of
from roverd.control import wire

if TYPE_CHECKING:
    from plugins.contracts import Controller
    from protocol.spec import RobotSpec, TaskSpec
    from roverd.control.ring import Views

WARM_UP_RUNS = 7
WARM_UP_S = 0.5
"""No further run of the warm-up begins after this: a slow network must not keep a real-time core to itself."""


class InferenceError(ValueError):
    """A network got or gave something that is no input or output of it; there is no action for this tick."""

    def __init__(self, kind: str, message: str) -> None:
        """Take the kind that it is counted as (input, none, shape, non_finite, raised) and what was wrong."""
        super().__init__(message)
        self.kind = kind


class Runner(Protocol):
    """Answers ticks; lives in the policy process."""

    golden_error: float
    counter: int

    def warm_up(self) -> float:
        """Run a few times; return the median of a run in milliseconds."""

    def propose(self, tick: wire.Tick, views: Views) -> wire.Proposal:
        """Return the proposal for a tick from the ring's views of its slot."""


class OnnxRunner:
    """Run a bundle's network on the CPU with one thread, and sample the exploration.

    The noise of a decision depends only on (seed, decision): equal seeds give equal runs. Inputs are checked for shape
    and type here: not every runtime does it, some compute with whatever lies behind a short array.

    Raises:
        BundleError: the bundle is for another robot, cannot be loaded, gives non-finite output, or does not answer
            its golden inputs as the trainer did.

    """

    def __init__(self, bundle: Bundle, robot: RobotSpec, task: TaskSpec, seed: int) -> None:
        """Load, and prove on the golden inputs."""
        check_fit(bundle, robot, task)
        self._bundle = bundle
        self.counter = bundle.manifest.counter
        self._transform = bundle.transform
        self._states = len(robot.state)
        self._repeat = robot.action_repeat
        self._actions = len(robot.action)
        self._distribution = distribution_of(robot)
        self._log_std = np.array(bundle.manifest.log_std, np.float64)
        self._seed = seed
        self._session = self._load(bundle.onnx)
        self._has_image = self._transform.channels > 0
        self._image = np.zeros((1, self._transform.channels, self._transform.height, self._transform.width), np.float32)
        self._vector = np.zeros((1, self._transform.size), np.float32)
        self._feed = {"vector": self._vector, **({"image": self._image} if self._has_image else {})}
        self._shapes = {name: array.shape for name, array in self._feed.items()}
        self._check_graph()
        self.golden_error = self._prove()

    def _load(self, onnx: bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises types of its own without a common base
            raise BundleError(f"policy {self._bundle.policy_id[:12]}: cannot be loaded: {str(error)[:200]}") from error
        names = {node.name for node in session.get_inputs()}
        expected = {"vector", *(["image"] if self._transform.channels else [])}
        if names != expected or [node.name for node in session.get_outputs()] != ["mean"]:
            raise BundleError(f"policy {self._bundle.policy_id[:12]}: graph inputs {names}, expected {expected}")
        return session

    def _check_graph(self) -> None:
        """Refuse a graph whose declared inputs are not what it will be given."""
        for node in self._session.get_inputs():
            wanted = self._shapes[node.name]
            fits = len(node.shape) == len(wanted) and all(
                not isinstance(declared, int) or declared == size
                for declared, size in zip(node.shape, wanted, strict=True)
            )
            if not fits or node.type != "tensor(float)":
                what = f"graph input {node.name} is {node.type} {list(node.shape)}, expected float {list(wanted)}"
                raise BundleError(f"policy {self._bundle.policy_id[:12]}: {what}")

    def _infer(self) -> np.ndarray:
        """Return float32[actions]; raises InferenceError on anything else than that, of finite numbers."""
        for name, array in self._feed.items():
            if array.shape != self._shapes[name] or array.dtype != np.float32 or not array.flags.c_contiguous:
                raise InferenceError("input", f"input {name} is {array.dtype} {array.shape}")
        if not np.isfinite(self._vector).all():
            raise InferenceError("input", "input vector is not finite")
        try:
            outputs = self._session.run(["mean"], self._feed)
        except Exception as error:  # ONNX Runtime raises types of its own without a common base
            raise InferenceError("raised", str(error)[:200]) from error
        return checked_output(outputs, self._actions)

    def _prove(self) -> float:
        golden, worst = self._bundle.golden, 0.0
        for image, vector, expected in zip(golden.image, golden.vector, golden.mean, strict=True):
            self._image[0], self._vector[0] = image, vector
            try:
                mean = self._infer()
            except InferenceError as error:
                text = f"policy {self._bundle.policy_id[:12]}: golden output is not usable: {error}"
                raise BundleError(text) from error
            worst = max(worst, float(np.abs(mean - expected).max()))
        if worst > GOLDEN_TOLERANCE:
            raise BundleError(
                f"policy {self._bundle.policy_id[:12]}: golden outputs differ by {worst:.2g}, "
                f"at most {GOLDEN_TOLERANCE} is allowed: it does not act here as it did at the trainer"
            )
        return worst

    def warm_up(self) -> float:
        """Run a few times on the last golden input; return the median of a run in milliseconds."""
        times: list[float] = []
        while len(times) < WARM_UP_RUNS and sum(times) < WARM_UP_S:
            start = time.perf_counter()
            self._infer()
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1e3

    def propose(self, tick: wire.Tick, views: Views) -> wire.Proposal:
        """Return the proposal for a tick; explores only where the tick says so."""
        start = time.monotonic_ns()
        if self._has_image:
            self._transform.image(views, out=self._image[0])
        vector = np.array(tick.vector, np.float32)
        self._vector[0] = self._transform.vector(
            vector[: self._states], vector[self._states :], np.array(tick.in_flight, np.float32)
        )
        mean = self._infer().astype(np.float64)
        if tick.flags & wire.EXPLORE:
            # the decision stands in the high words: the low ones count blocks, which two decisions would else share
            philox = np.random.Philox(key=self._seed, counter=tick.decision << 64)
            u = self._distribution.sample(mean, self._log_std, np.random.Generator(philox))
        else:
            u = self._distribution.mode(mean)
        u32 = u.astype(np.float32)  # as it is recorded
        log_prob = self._distribution.log_prob(u32.astype(np.float64), mean, self._log_std)
        return wire.Proposal(
            wire.HAS_BEHAVIOUR,
            tick.tick,
            tick.decision,
            self._repeat,
            self._bundle.manifest.counter,
            time.monotonic_ns() - start,
            log_prob,
            tuple(self._distribution.action(u)),
            tuple(u32),
            tuple(mean.astype(np.float32)),
            tuple(self._log_std),
        )


class ControllerRunner:
    """Let a hand-written controller plugin drive; its steps have no behaviour distribution."""

    def __init__(self, controller: Controller, robot: RobotSpec, seed: int) -> None:
        """Wrap a controller that was made for this robot and task."""
        self._controller = controller
        self._states = len(robot.state)
        self._repeat = robot.action_repeat
        self._zero = (0.0,) * len(robot.action)
        self._seed = seed
        self._episodes = 0
        self.golden_error = 0.0
        self.counter = 0

    def warm_up(self) -> float:
        """Do nothing: a script has no network to warm."""
        return 0.0

    def propose(self, tick: wire.Tick, views: Views) -> wire.Proposal:
        """Return the controller's action; a tick that resets starts it anew."""
        start = time.monotonic_ns()
        if tick.flags & wire.RESET:
            self._controller.reset(self._seed + self._episodes)
            self._episodes += 1
        vector = np.array(tick.vector, np.float32)
        action = self._act(vector, views)
        return wire.Proposal(
            0,
            tick.tick,
            tick.decision,
            self._repeat,
            0,
            time.monotonic_ns() - start,
            0.0,
            action,
            self._zero,
            self._zero,
            self._zero,
        )

    def _act(self, vector: np.ndarray, views: Views) -> tuple[float, ...]:
        """Call the plugin; whatever it raises, or an action of another length, becomes a ValueError."""
        try:
            action = tuple(
                float(v) for v in self._controller.act(views, vector[: self._states], vector[self._states :])
            )
        except Exception as error:  # the wall around a plugin
            raise InferenceError("raised", f"controller: {type(error).__name__}: {error}") from error
        if len(action) != len(self._zero):
            raise InferenceError("shape", f"controller: {len(action)} action elements, expected {len(self._zero)}")
        if not all(map(math.isfinite, action)):
            raise InferenceError("non_finite", f"controller: action {action}")
        return action


def checked_output(outputs: Any, actions: int) -> np.ndarray:
    """Return the one output of a network as float32[actions]; raises InferenceError where it is something else.

    Some runtimes log an error and return None in place of outputs.
    """
    if outputs is None or not len(outputs) or outputs[0] is None:
        raise InferenceError("none", "the network gave no output")
    mean = outputs[0]
    if not isinstance(mean, np.ndarray) or mean.shape != (1, actions) or mean.dtype != np.float32:
        what = f"{mean.dtype} {mean.shape}" if isinstance(mean, np.ndarray) else type(mean).__name__
        raise InferenceError("shape", f"the network gave {what}, expected float32 {(1, actions)}")
    if not np.isfinite(mean).all():
        raise InferenceError("non_finite", f"the network gave {mean[0]}")
    row: np.ndarray = mean[0]
    return row
