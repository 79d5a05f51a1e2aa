"""Measure what old experience does to learning: the decoupled objective against the plain one, on CartPole-v1.

Decisions come from the policy of K updates ago, as over a slow link or from a robot that swaps late. Both objectives
get the same seeds, settings and number of decisions; with a delay the decoupled one must be ahead by MARGIN. A figure
is the area under the curve of mean returns, as the mean over the run of the return of the last finished episodes;
``final`` is the curve's last value.
"""

import argparse
import copy
import statistics
import sys
from collections import deque

import gymnasium
import numpy as np
import torch

from plugins.encoders.blind import build_blind
from plugins.encoders.cameras import CameraSettings
from protocol.spec import Element, RobotSpec, TaskSpec
from protocol.step import Observation
from protocol.transform import InputTransform
from tests.bench.figures import Figure, json_option, median, worst, write
from tests.bench.peers.ours import finish
from trainerd.learning.distributions import distribution_of
from trainerd.learning.learner import Learner
from trainerd.learning.rollout import Rollouts, RowDecision
from trainerd.learning.settings import NetworkSettings, PpoSettings

DELAYS = (0, 8, 32)
OBJECTIVES = ("decoupled", "plain")
ENVIRONMENTS = 8
SETTINGS = {
    "learning_rate": 2.5e-4,
    "anneal": True,
    "gamma": 0.99,
    "lambda_": 0.95,
    "clip": 0.2,
    "entropy": 0.01,
    "epochs": 4,
    "minibatch": 128,
    "rollout": 512,
}
"""What CleanRL learns CartPole with (ppo.py)."""
NETWORK = {
    "encoder": "blind",
    "proprio_hidden": (),
    "head_hidden": (64, 64),
    "activation": "tanh",
    "normaliser_frames": 0,
}
STATE = (("position", 2.4), ("velocity", 3.0), ("angle", 0.21), ("angular_velocity", 3.0))
"""Elements of the observation, and what each is divided by."""
CHOICES = ("left", "right")
ROBOT = RobotSpec(
    "cartpole",
    (),
    tuple(Element(name, "", -10.0, 10.0, scale=scale) for name, scale in STATE),
    tuple(Element(name, "", 0.0, 1.0) for name in CHOICES),
    50.0,
    action_space="discrete",
)
TASK = TaskSpec("balance", ())
NOTHING = np.zeros(0, np.float32)
IDLE = np.zeros(len(CHOICES), np.float32)
WINDOW = 40
"""Finished episodes that a point of the curve is the mean of."""
POINTS = 100
MARGIN = 0.05
"""With a delay the median area of the decoupled objective is at least this share above the plain one's."""
COLLAPSED = 0.5
"""A run has collapsed where its last point is below this share of its best one."""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench stale", description=__doc__)
    json_option(parser)
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--decisions", type=int, default=80_000, metavar="N", help="of each run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = {(delay, objective): [] for delay in DELAYS for objective in OBJECTIVES}
    for seed in range(options.seeds):
        for (delay, objective), curves in runs.items():
            points = curve(learn(delay, objective, seed, options.decisions), options.decisions)
            curves.append(points)
            area, final = statistics.mean(points), points[-1]
            print(f"  seed {seed}  K = {delay:<3} {objective:<10} area {area:>6.1f}  final {final:>6.1f}", flush=True)
    figures = [figure for key, points in runs.items() for figure in figures_of(*key, points)]
    write(options.json, figures)
    for delay in filter(None, DELAYS):
        print(f"  {verdict(figures, delay)}")
    mistakes = shortcomings(figures)
    for each in mistakes:
        print(f"bench stale: {each}", file=sys.stderr)
    return 1 if mistakes else 0


def figures_of(delay, objective, runs):
    """Return the median area and final return of some runs' curves, and how many runs collapsed."""
    collapsed = sum(points[-1] < COLLAPSED * max(points) for points in runs)
    return [
        median(f"stale.k{delay}_{objective}", [statistics.mean(points) for points in runs], "return"),
        median(f"stale.final_k{delay}_{objective}", [points[-1] for points in runs], "return"),
        worst(f"stale.worst_final_k{delay}_{objective}", [points[-1] for points in runs], "return", pick=min),
        Figure(f"stale.collapsed_k{delay}_{objective}", collapsed, "runs", len(runs), collapsed, collapsed),
    ]


def shortcomings(figures):
    """Say where the decoupled objective is not ahead of the plain one with a delay, or where a run of it collapsed."""
    value = {each.name: each.value for each in figures}
    found = []
    for delay in DELAYS:
        if delay and not lead(figures, delay) >= MARGIN:
            found.append(verdict(figures, delay))
        if collapsed := value[f"stale.collapsed_k{delay}_decoupled"]:
            found.append(f"K = {delay}: {collapsed:.0f} runs with the decoupled objective collapsed")
    return found


def verdict(figures, delay):
    """Say how far the decoupled objective is ahead with a delay, and how far it must be."""
    ours, theirs = areas(figures, delay)
    ahead = f"{100 * lead(figures, delay):+.1f} %, at least {100 * MARGIN:+.0f} % demanded"
    return f"K = {delay}: median area of decoupled {ours:.1f}, of plain {theirs:.1f}: {ahead}"


def lead(figures, delay):
    """Return how far the median area of the decoupled objective is above the plain one's, as a share of that."""
    ours, theirs = areas(figures, delay)
    return (ours - theirs) / max(theirs, 1e-9)


def areas(figures, delay):
    value = {each.name: each.value for each in figures}
    return [value[f"stale.k{delay}_{objective}"] for objective in OBJECTIVES]


def curve(ends, decisions):
    """Return the mean return of the last episodes at equal distances, from (decision, return) of each episode's end."""
    points = []
    for point in range(1, POINTS + 1):
        last = [value for at, value in ends if at <= decisions * point / POINTS][-WINDOW:]
        points.append(statistics.mean(last) if last else 0.0)
    return points


def learn(delay, objective, seed, decisions):
    """Return (decision, return) of each finished episode of a run whose policy is ``delay`` updates old."""
    masked = [f"{name}_in_flight" for name in CHOICES]
    learner = Learner(
        ROBOT,
        TASK,
        InputTransform.of(ROBOT, TASK, (), masked),
        lambda shape: build_blind(shape, CameraSettings()),
        network=NetworkSettings(**NETWORK),
        ppo=PpoSettings(objective=objective, **SETTINGS),
        seed=seed,
        budget_decisions=decisions,
    )
    pool = Rollouts(ROBOT, TASK, learner.transform, SETTINGS["rollout"], 1)
    driver = Driver(seed)
    policies = deque([copy.deepcopy(learner.network)], maxlen=delay + 1)
    while driver.decisions < decisions:
        rollout = pool.acquire()
        driver.fill(rollout, learner, policies[0], max(0, learner.policy_counter - delay))
        finish(learner.update(rollout))
        pool.release(rollout)
        policies.append(copy.deepcopy(learner.network))
    return driver.ends


class Driver:
    """Environments in lock-step; their episodes go on from one rollout to the next."""

    def __init__(self, seed):
        self.environments = [gymnasium.make("CartPole-v1") for _ in range(ENVIRONMENTS)]
        self.seen = [each.reset(seed=1000 * seed + n)[0] for n, each in enumerate(self.environments)]
        self.returns = [0.0] * ENVIRONMENTS
        self.rng = np.random.default_rng(seed)
        self.law = distribution_of(ROBOT)
        self.decisions, self.ends = 0, []

    def fill(self, rollout, learner, policy, counter):
        """Fill a rollout with the decisions of a policy."""
        open_rows = [None] * ENVIRONMENTS
        while rollout.rows < rollout.capacity:
            means = self.means(learner.transform, policy)
            for n, mean in enumerate(means):
                open_rows[n] = self.decide(rollout, n, mean, open_rows[n], counter)
        for n, row in enumerate(open_rows):
            if row is not None:
                rollout.cut(row, self.observation(n))

    @torch.inference_mode()
    def means(self, transform, policy):
        """Return the logits for what every environment shows."""
        vectors = np.stack([transform.vector(o.state, o.task, o.in_flight) for o in map(self.observation, self.all)])
        image = torch.zeros((len(vectors), *policy.image_shape))
        return policy(image, torch.from_numpy(vectors))[0].numpy()

    @property
    def all(self):
        return range(ENVIRONMENTS)

    def observation(self, n):
        return Observation(np.asarray(self.seen[n], np.float32), NOTHING, IDLE)

    def decide(self, rollout, n, mean, before, counter):
        """Take a decision in an environment; return its row where the episode goes on, else None."""
        u = self.law.sample(mean, IDLE, self.rng)
        log_prob = float(self.law.log_prob_numpy(u, mean, IDLE))
        observation = self.observation(n)
        self.seen[n], reward, terminated, truncated, _ = self.environments[n].step(int(u.argmax()))
        row = rollout.append(observation, RowDecision(u, mean, IDLE, log_prob, float(reward), counter, 1.0, 1.0, 0.0))
        if before is not None:
            rollout.link(before, row)
        self.decisions += 1
        self.returns[n] += float(reward)
        if not (terminated or truncated):
            return row
        if terminated:
            rollout.terminate(row)
        else:
            rollout.cut(row, self.observation(n))
        self.ends.append((self.decisions, self.returns[n]))
        self.returns[n] = 0.0
        self.seen[n] = self.environments[n].reset()[0]
        return None


if __name__ == "__main__":
    sys.exit(main())
