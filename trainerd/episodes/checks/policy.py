"""Whether the recorded behaviour is that of the stored policy on the stored observation."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from protocol.bundle import BundleError, Manifest, check_fit, unpack_bundle
from protocol.distribution import distribution_of
from protocol.spec import SpecError
from protocol.transform import InputTransform

if TYPE_CHECKING:
    from pathlib import Path

    from protocol.spec import RobotSpec, TaskSpec
    from protocol.step import Behaviour, Observation, Step
    from trainerd.episodes.checks.findings import Findings
    from trainerd.episodes.checks.thresholds import Thresholds

FloatArray = npt.NDArray[np.float32]
SUFFIX = ".bundle"
OPEN_POLICIES = 8
"""Policies held in memory at once: neighbouring episodes share theirs."""


@dataclass(frozen=True)
class StoredPolicy:
    """A policy of the bundle folder, ready to be asked."""

    manifest: Manifest
    transform: InputTransform
    session: Any

    def mean(self, observation: Observation) -> FloatArray:
        """Return float32[a], the mean of u; raises ValueError on what does not fit, KeyError on a missing image."""
        feed = {"vector": self.transform.vector(observation.state, observation.task, observation.in_flight)[None]}
        if self.transform.channels:
            feed["image"] = self.transform.image(observation.images)[None]
        return np.asarray(self.session.run(["mean"], feed)[0][0], np.float32)

    def missing(self, observation: Observation) -> bool:
        """Return True where an image that the policy needs is not in the record."""
        return any(plane.camera not in observation.images for plane in self.transform.planes)


class Shelf:
    """Load policies by id from the trainer's folder; remembers why one cannot be loaded."""

    def __init__(self, folder: Path) -> None:
        """Look for ``<policy_id>.bundle`` in a folder."""
        self._folder = folder
        self._policies: OrderedDict[str, StoredPolicy | str] = OrderedDict()

    def get(self, policy_id: str, robot: RobotSpec, task: TaskSpec) -> StoredPolicy | str:
        """Return a policy, or the reason why there is none to ask."""
        key = f"{policy_id} {robot.hash} {task.hash}"
        if key not in self._policies:
            self._policies[key] = self._load(policy_id, robot, task)
            if len(self._policies) > OPEN_POLICIES:
                self._policies.popitem(last=False)
        self._policies.move_to_end(key)
        return self._policies[key]

    def _load(self, policy_id: str, robot: RobotSpec, task: TaskSpec) -> StoredPolicy | str:
        if not policy_id.isalnum():
            return "the policy's id is not one of a bundle"
        path = self._folder / f"{policy_id}{SUFFIX}"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return "the policy's bundle is not in the folder any more"
        except OSError as error:
            return f"the policy's bundle cannot be read: {error.strerror}"
        try:
            bundle = unpack_bundle(content)
            check_fit(bundle, robot, task)
            return StoredPolicy(bundle.manifest, bundle.transform, _session(bundle.onnx))
        except (BundleError, SpecError) as error:
            return f"the policy's bundle is of no use: {error}"


def _session(onnx: bytes) -> Any:
    """Load a graph as the robot does: one thread, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises types of its own without a common base
        raise BundleError(f"the graph cannot be loaded: {str(error)[:200]}") from error


class Replay:
    """Check the recorded behaviour of one episode, step by step."""

    def __init__(self, shelf: Shelf, robot: RobotSpec, task: TaskSpec, limits: Thresholds, findings: Findings) -> None:
        """Ask the policies of a shelf."""
        self._shelf, self._robot, self._task = shelf, robot, task
        self._limits, self._findings = limits, findings
        self._distribution = distribution_of(robot)
        self._span = np.array([e.high - e.low for e in robot.action])
        self._held: tuple[int, Behaviour] | None = None
        self._policies: dict[str, StoredPolicy | str] = {}

    def check(self, step: Step) -> None:
        """Check what needs no image: the density, the squashing, and that a held decision stays the same."""
        behaviour = step.behaviour
        if behaviour is None:
            for check in ("policy.mean", "policy.log_prob", "policy.action"):
                self._findings.skip(check, "no policy decided")
            return
        if behaviour.kind != self._distribution.kind:
            what = f"behaviour is {behaviour.kind}, the robot's action space calls for {self._distribution.kind}"
            self._findings.hold("policy.log_prob", step.seq, what, holds=False)
            return
        self._check_density(step.seq, behaviour)
        self._check_action(step, behaviour)
        if step.decides:
            self._held = (step.decision_id, behaviour)
        elif self._held is not None and self._held[0] == step.decision_id:
            same = all(np.array_equal(getattr(behaviour, name), getattr(self._held[1], name)) for name in ("u", "mean"))
            what = f"the behaviour changes within decision {step.decision_id}"
            self._findings.hold("policy.action", step.seq, what, holds=same)

    def ask(self, step: Step) -> None:
        """Run the stored policy on a deciding step's observation, decoded images included."""
        if step.behaviour is None or not step.decides:
            return
        if step.policy_id not in self._policies:
            self._policies[step.policy_id] = self._shelf.get(step.policy_id, self._robot, self._task)
        policy = self._policies[step.policy_id]
        if isinstance(policy, str):
            self._findings.skip("policy.mean", policy)
        elif policy.missing(step.observation):
            self._findings.skip("policy.mean", "an image that the policy saw is not in the record")
        else:
            self._compare(step, step.behaviour, policy)

    def _compare(self, step: Step, behaviour: Behaviour, policy: StoredPolicy) -> None:
        name = f"policy {step.policy_id[:12]}"
        try:
            mean = policy.mean(step.observation)
        except ValueError as error:
            self._findings.hold("policy.mean", step.seq, f"{name} cannot be asked: {error}", holds=False)
            return
        off = np.abs(mean.astype(np.float64) - behaviour.mean)
        index = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
        most = self._limits.mean_error * max(1.0, abs(float(mean[index])))
        element, recorded = self._robot.action[index].name, behaviour.mean[index]
        what = f"{name} answers mean {mean[index]:.6f} for {element}, recorded is {recorded:.6f}"
        holds = bool(off[index] <= most)
        self._findings.hold(
            "policy.mean", step.seq, what, holds=holds, computed=mean[index], recorded=behaviour.mean[index]
        )
        stated = np.asarray(policy.manifest.log_std, np.float32)
        what = f"log_std {behaviour.log_std.tolist()}, {name} explores with {stated.tolist()}"
        holds = np.allclose(behaviour.log_std, stated, rtol=1e-6, atol=1e-6)
        self._findings.hold("policy.log_prob", step.seq, what, holds=holds)

    def _check_density(self, seq: int, behaviour: Behaviour) -> None:
        u, mean, log_std = (each.astype(np.float64) for each in (behaviour.u, behaviour.mean, behaviour.log_std))
        log_prob = self._distribution.log_prob(u, mean, log_std)
        most = self._limits.log_prob_error * max(1.0, abs(log_prob))
        what = f"log_prob {behaviour.log_prob:.6f}, u has {log_prob:.6f} under mean and log_std"
        holds = abs(log_prob - behaviour.log_prob) <= most
        self._findings.hold("policy.log_prob", seq, what, holds=holds, computed=log_prob, recorded=behaviour.log_prob)

    def _check_action(self, step: Step, behaviour: Behaviour) -> None:
        computed = self._distribution.action(behaviour.u.astype(np.float64))
        wanted = step.policy_action
        if wanted is None:  # in one process only what was applied is recorded
            if step.source != "policy":
                self._findings.skip("policy.action", "the policy's own action is not recorded")
                return
            wanted = step.action
        off = np.abs(computed - wanted) / self._span
        index = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
        what = f"{self._robot.action[index].name} {wanted[index]:.6f}, the recorded u gives {computed[index]:.6f}"
        holds = bool(off[index] <= self._limits.action_error)
        self._findings.hold(
            "policy.action", step.seq, what, holds=holds, computed=computed[index], recorded=wanted[index]
        )
        if step.purpose == "evaluation":
            what = "an evaluation explores: u differs from the mode of the distribution"
            holds = np.array_equal(behaviour.u, self._distribution.mode(behaviour.mean))
            self._findings.hold("policy.action", step.seq, what, holds=holds)
