"""A small robot, its records, and filled rollouts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from plugins.encoders.blind import build_blind
from plugins.encoders.cameras import CameraSettings, gray_depth_planes, no_planes, rgbd_planes
from plugins.encoders.column import build_column
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Behaviour, EpisodeEnd, Observation, Step
from protocol.transform import InputTransform
from trainerd.learning.learner import Learner
from trainerd.learning.rollout import Rollouts, RowDecision
from trainerd.learning.settings import NetworkSettings, PpoSettings

HEIGHT, WIDTH = 12, 18
ROBOT = RobotSpec(
    "toy",
    (Camera("front", "rgb", HEIGHT, WIDTH, 10.0), Camera("front", "depth", HEIGHT, WIDTH, 10.0)),
    (Element("x", "m", -1.0, 1.0, scale=0.5), Element("secret", "", 0.0, 1.0)),
    (Element("linear", "m/s", 0.0, 0.5), Element("angular", "rad/s", -1.5, 1.5)),
    10.0,
    action_repeat=2,
)
TASK = TaskSpec("toy", (Element("goal", "m", 0.0, 9.0, scale=4.0),), masked_state=("secret",))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@dataclass
class Toy:
    """Makes everything that the tests need of one robot, task and choice of planes."""

    planes: Any = no_planes
    build: Any = build_blind
    robot: RobotSpec = ROBOT
    task: TaskSpec = TASK

    @property
    def transform(self):
        return InputTransform.of(self.robot, self.task, self.planes(self.robot, CameraSettings()))

    def rollouts(self, capacity=8, count=2):
        return Rollouts(self.robot, self.task, self.transform, capacity, count)

    def observation(self, number=0.0, *, seed=0):
        rng = np.random.default_rng([seed, int(abs(number) * 1000)])
        images = {}
        for camera in self.robot.cameras:
            high = 256 if camera.kind == "rgb" else 9000
            images[camera.key] = rng.integers(0, high, camera.shape).astype(camera.dtype)
        state = np.array([number, 0.5], np.float32)
        return Observation(state, np.array([1.0], np.float32), np.zeros(2, np.float32), images)

    def learner(self, *, seed=0, budget=10_000, network=None, **ppo):
        settings = {"rollout": 32, "minibatch": 16, "learning_rate": 1e-3, **ppo}
        return Learner(
            self.robot,
            self.task,
            self.transform,
            lambda shape: self.build(shape, CameraSettings()),
            network=NetworkSettings(**{"encoder": "toy", "normaliser_frames": 0, **(network or {})}),
            ppo=PpoSettings(**settings),
            seed=seed,
            budget_decisions=budget,
        )

    def filled(self, learner, *, rows=32, seed=0, counter=None):
        """A rollout of one-decision episodes, driven by the learner's present network."""
        rng = np.random.default_rng(seed)
        rollout = self.rollouts(rows, 1).acquire()
        log_std = learner.network.log_std.detach().numpy().copy()
        for _ in range(rows):
            observation = self.observation(float(rng.uniform(-1, 1)), seed=seed)
            image = learner.transform.image(observation.images)
            vector = learner.transform.vector(observation.state, observation.task, observation.in_flight)
            with torch.no_grad():
                mean = learner.network(torch.from_numpy(image)[None], torch.from_numpy(vector)[None])[0][0].numpy()
            u = (mean + np.exp(log_std) * rng.standard_normal(2)).astype(np.float32)
            z = (u - mean) / np.exp(log_std)
            log_prob = float((-0.5 * z * z - log_std - 0.5 * np.log(2 * np.pi)).sum())
            reward = -float((np.tanh(u[0]) - observation.state[0]) ** 2)
            policy_counter = learner.policy_counter if counter is None else counter
            decision = RowDecision(u, mean, log_std, log_prob, reward, policy_counter, 1.0, 1.0, 0.0)
            rollout.terminate(rollout.append(observation, decision))
        return rollout


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def seeing():
    return Toy(rgbd_planes, build_column)


@pytest.fixture
def gray():
    return Toy(gray_depth_planes, build_column)


class Script:
    """Writes the records of one rover, tick by tick."""

    def __init__(self, toy, rover="rover-1"):
        self.toy, self.rover = toy, rover
        self.seq = self.episode = self.tick = self.decision = self.held = 0

    def step(self, reward=0.0, **changes):
        behaviour = None
        if self.held == 0:
            zeros = np.zeros(2, np.float32)
            behaviour = Behaviour(zeros, zeros, zeros, -1.0)
        step = Step(
            self.rover, "boot", self.seq, self.episode, self.tick, self.decision, self.held,
            self.toy.observation(self.seq / 1000), np.zeros(2, np.float32), "policy", reward,
            policy_id="a", policy_counter=0, behaviour=behaviour,
        )  # fmt: skip
        self.seq, self.tick, self.held = self.seq + 1, self.tick + 1, self.held + 1
        if self.held == self.toy.robot.action_repeat:
            self.held, self.decision = 0, self.decision + 1
        return replace(step, **changes)

    def end(self, reason="terminated", **changes):
        end = EpisodeEnd(
            self.rover, "boot", self.seq, self.episode, self.tick, reason, self.toy.observation(self.seq / 1000),
            terminated=reason == "terminated", ends_episode=reason in {"terminated", "truncated"},
        )  # fmt: skip
        self.seq += 1
        if self.held:
            self.held, self.decision = 0, self.decision + 1
        end = replace(end, **changes)
        if end.ends_episode:
            self.episode, self.tick = self.episode + 1, 0
        return end


@pytest.fixture
def script(toy):
    return Script(toy)


@pytest.fixture
def second_script(toy):
    return Script(toy, "rover-2")


def finish(iterator):
    while True:
        try:
            next(iterator)
        except StopIteration as stop:
            return stop.value


@pytest.fixture(name="finish")
def finish_fixture():
    return finish
