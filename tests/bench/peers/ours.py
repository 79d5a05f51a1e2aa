"""Our own learner: the rollout's storage filled as the assembler fills it, and ``ppo_update`` over it."""

import numpy as np
import torch

from plugins.encoders.cameras import CameraSettings, rgbd_planes
from plugins.encoders.column import build_column
from plugins.encoders.rgbd import build_rgbd
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Observation
from protocol.transform import InputTransform
from tests.bench.peers import child
from trainerd.learning.learner import Learner
from trainerd.learning.ppo import ppo_update
from trainerd.learning.rollout import Rollout, RowDecision
from trainerd.learning.settings import NetworkSettings, PpoSettings

STATE = ("linear_vel", "angular_vel", "roll", "pitch", "accel_mag", "min_forward_dist")
ACTION = ("linear_cmd", "angular_cmd")
TASK = TaskSpec("bench", ())
BUILDERS = {"rgbd": build_rgbd, "column": build_column}


def robot(height, width):
    """Return a rover with a colour and a depth camera; its vector elements are used as they are."""
    cameras = tuple(Camera("front", kind, height, width, 10.0) for kind in ("rgb", "depth"))
    state = tuple(Element(name, "", -10.0, 10.0) for name in STATE)
    return RobotSpec("bench", cameras, state, tuple(Element(name, "", -1.0, 1.0) for name in ACTION), 10.0)


def make_learner(height, width, *, seed=0, device="cpu", ranks=None, encoder="rgbd", **ppo):
    """Return a learner with the network of the comparison, or with another encoder for colour and depth."""
    spec = robot(height, width)
    return Learner(
        spec,
        TASK,
        InputTransform.of(spec, TASK, rgbd_planes(spec, CameraSettings())),
        lambda shape: BUILDERS[encoder](shape, CameraSettings()),
        network=NetworkSettings(encoder=encoder, normaliser_frames=0),
        ppo=PpoSettings(**ppo),
        seed=seed,
        budget_decisions=10**9,
        device=device,
        ranks=ranks,
    )


class Ours:
    """A learner and a filled rollout."""

    way = None
    """What the autotune chose in this process: it is asked once."""

    def __init__(self, source, told):
        rows, settings = told["rows"], {**told["ppo"], **told["ours"]}
        if Ours.way is not None:
            settings["autocast"] = "none"
        self.learner = make_learner(
            *source.size,
            seed=told["seed"],
            device=told["device"],
            **{**settings, "minibatch": told["minibatch"], "epochs": told["epochs"], "rollout": rows},
        )
        known = self.learner.network.state_dict()
        self.learner.network.load_state_dict(
            {name: torch.from_numpy(source.weights.get(name, value.cpu().numpy())) for name, value in known.items()}
        )
        self.learner.warm_up()
        if Ours.way is not None:
            self.learner.use(Ours.way)
        elif settings["autocast"] == "auto":
            Ours.way = self.learner.inputs.way
        self.rollout = fill(self.learner, source, rows)

    def parameters(self):
        return list(self.learner.network.parameters())

    @torch.no_grad()
    def answers(self, rows):
        network, inputs = self.learner.network, self.learner.inputs
        vector = inputs.load(self.rollout, network)[:rows]
        mean, value = network.heads(inputs.features(network, np.arange(rows), precise=True), vector)
        return mean.cpu().numpy(), value.cpu().numpy()

    def update(self):
        learner = self.learner
        steps = ppo_update(
            learner.network,
            learner.optimizer,
            self.rollout,
            learner.inputs,
            learner.ppo_settings,
            cloning=0.0,
            generator=learner.generator,
        )
        metrics = finish(steps)
        if metrics["rolled_back"] or metrics["minibatches_skipped"]:
            raise SystemExit(f"bench learner: our update was not whole: {metrics}")
        return metrics


def fill(learner, source, rows):
    """Return a rollout of the source's first rows: one segment that terminations cut."""
    rollout = Rollout.allocate(learner.robot, learner.task, learner.transform, rows)
    keys = {camera.kind: camera.key for camera in learner.robot.cameras}
    vectors, nothing, size = source["vector"], np.zeros(0, np.float32), len(STATE)
    for row, (rgb, depth) in enumerate(source.frames(rows + 1)):
        vector = vectors[row]
        seen = Observation(vector[:size], nothing, vector[size:], {keys["rgb"]: rgb, keys["depth"]: depth})
        if row == rows:
            if not source["terminated"][row - 1]:
                rollout.cut(row - 1, seen)
            break
        if row and not source["terminated"][row - 1]:
            rollout.link(row - 1, row)
        rollout.append(seen, decision(source, row))
        if source["terminated"][row]:
            rollout.terminate(row)
    return rollout


def decision(source, row):
    """Return what the policy decided in a row and got for it."""
    u, mean = source["u"][row], source["mean"][row]
    log_prob, reward = float(source["log_prob"][row]), float(source["reward"][row])
    return RowDecision(u, mean, source["log_std"], log_prob, reward, 0, 1.0, 1.0, 0.0)


def finish(steps):
    """Run an update to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


if __name__ == "__main__":
    child.main(Ours)
