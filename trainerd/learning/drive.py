"""Drive robots in this process, in lock-step, and give the records that roverd would send."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from protocol.moment import Moment, Outcome
from protocol.step import Behaviour, EpisodeEnd, Observation, Record, Step
from protocol.transform import InputTransform
from trainerd.learning.distributions import distribution_of
from trainerd.learning.networks import PolicyNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from plugins.contracts import RewardFunction, Robot, Task
    from protocol.moment import Reading
    from trainerd.learning.learner import Learner

FloatArray = npt.NDArray[np.float32]
BOOT = "inprocess"


@dataclass(frozen=True)
class FrozenPolicy:
    """A published policy: what drives until the next one is taken."""

    network: PolicyNetwork
    transform: InputTransform
    counter: int

    @classmethod
    def of(cls, learner: Learner) -> FrozenPolicy:
        """Copy a learner's present network."""
        network = copy.deepcopy(learner.network).cpu().requires_grad_(requires_grad=False)
        return cls(network, learner.transform, learner.policy_counter)

    @property
    def log_std(self) -> FloatArray:
        """Log standard deviation of u, float32[a]."""
        return np.asarray(self.network.log_std.numpy(), np.float32)

    def means(self, observations: list[Observation]) -> FloatArray:
        """Return the mean of u for each observation, float32[B, a], in float32 arithmetic."""
        image = np.stack([self.transform.image(o.images) for o in observations])
        vector = np.stack([self.transform.vector(o.state, o.task, o.in_flight) for o in observations])
        with torch.inference_mode():
            mean, _ = self.network(torch.from_numpy(image), torch.from_numpy(vector))
        return np.asarray(mean.numpy(), np.float32)


class Rover:
    """One robot with its task and rewards, decision by decision."""

    def __init__(
        self,
        name: str,
        robot: Robot,
        task: Task,
        rewards: Mapping[str, tuple[RewardFunction, float]],
        arena_seeds: Iterator[int],
    ) -> None:
        """Begin the first episode; ``rewards`` maps the terms' names to function and weight."""
        self.name, self.robot, self.task = name, robot, task
        self._rewards = rewards
        self._arena_seeds = arena_seeds
        self._seq = self._decision_id = 0
        self._episode_id = -1
        self.begin()

    def begin(self) -> None:
        """Begin the next episode."""
        self.arena_seed = next(self._arena_seeds)
        self.robot.reset(self.arena_seed)
        self._episode_id += 1
        self._episode_step = 0
        self._return = 0.0
        self._in_flight = np.array([each or 0.0 for each in self.robot.safe_action], np.float32)
        reading = self.robot.read(True)
        self.task.reset(reading)
        self.outcome = Outcome(terminated=False, truncated=False, success=False)
        self._moment = self._measured(reading, self._in_flight)
        self.observation = self._observed(reading)

    @property
    def is_fresh(self) -> bool:
        """True until the episode's first decision."""
        return self._episode_step == 0

    @property
    def is_over(self) -> bool:
        """True once the episode has ended."""
        return self.outcome.terminated or self.outcome.truncated

    def act(self, action: FloatArray, behaviour: Behaviour | None, policy_id: str, counter: int) -> Iterator[Record]:
        """Hold an action for one decision and give its steps, and the episode's end where it ended."""
        spec = self.robot.spec
        for tick in range(spec.action_repeat):
            observation = self.observation
            self.robot.advance(self._in_flight.tolist(), action.tolist())
            self._in_flight = action
            reading = self.robot.read(tick == spec.action_repeat - 1)
            self.outcome = self.task.judge(reading)
            if self.is_over and not reading.images:
                reading = self.robot.read(True)
            moment = self._measured(reading, action)
            terms = {name: weight * term(self._moment, moment) for name, (term, weight) in self._rewards.items()}
            self._moment = moment
            self.observation = self._observed(reading)
            yield self._step(observation, action, behaviour, terms, tick, policy_id, counter)
            if self.is_over:
                yield self._end()
                break
        self._decision_id += 1

    def _step(
        self,
        observation: Observation,
        action: FloatArray,
        behaviour: Behaviour | None,
        terms: dict[str, float],
        tick: int,
        policy_id: str,
        counter: int,
    ) -> Step:
        reward = sum(terms.values())
        self._return += reward
        step = Step(
            rover_id=self.name,
            boot_id=BOOT,
            seq=self._seq,
            episode_id=self._episode_id,
            episode_step=self._episode_step,
            decision_id=self._decision_id,
            tick_in_decision=tick,
            observation=observation,
            action=action,
            source="policy" if behaviour is not None else "scripted",
            reward=reward,
            policy_id=policy_id,
            policy_counter=counter,
            behaviour=behaviour if tick == 0 else None,
            reward_terms=terms,
            terminated=self.outcome.terminated,
            truncated=self.outcome.truncated,
            success=self.outcome.success,
        )
        self._seq += 1
        self._episode_step += 1
        return step

    def _end(self) -> EpisodeEnd:
        end = EpisodeEnd(
            rover_id=self.name,
            boot_id=BOOT,
            seq=self._seq,
            episode_id=self._episode_id,
            episode_steps=self._episode_step,
            reason="terminated" if self.outcome.terminated else "truncated",
            final=self.observation,
            success=self.outcome.success,
            terminated=self.outcome.terminated,
            arena_seed=self.arena_seed,
            return_=self._return,
        )
        self._seq += 1
        return end

    def _measured(self, reading: Reading, action: FloatArray) -> Moment:
        names = (element.name for element in self.robot.spec.state)
        return Moment(
            state=dict(zip(names, reading.state.tolist(), strict=True)),
            task=self.task.measure(reading),
            action=tuple(action.tolist()),
            collided=reading.collided,
            outcome=self.outcome,
        )

    def _observed(self, reading: Reading) -> Observation:
        return Observation(
            state=reading.state,
            task=self.task.features(reading),
            in_flight=self._in_flight,
            images=reading.images,
            stamp_ns=reading.stamp_ns,
        )


def explore(rovers: list[Rover], policies: list[FrozenPolicy], rng: np.random.Generator) -> Iterator[list[Record]]:
    """Let every rover take one decision of its policy with exploration noise, and give what each recorded.

    Args:
        rovers: an episode that is over is followed by the next one.
        policies: one a rover; the same object where rovers share it.
        rng: the exploration.

    """
    means: dict[int, FloatArray] = {}
    for policy in {id(policy): policy for policy in policies}.values():
        mine = [index for index, other in enumerate(policies) if other is policy]
        means.update(zip(mine, policy.means([rovers[i].observation for i in mine]), strict=True))
    for index, (rover, policy) in enumerate(zip(rovers, policies, strict=True)):
        mean, log_std = means[index], policy.log_std
        robot = rover.robot.spec
        distribution = distribution_of(robot)
        u = distribution.sample(mean, log_std, rng)
        density = float(distribution.log_prob_numpy(u, mean, log_std))
        behaviour = Behaviour(u, mean, log_std, density, distribution.kind)
        action = distribution.action(u, robot.action)
        yield list(rover.act(action, behaviour, str(policy.counter), policy.counter))
        if rover.is_over:
            rover.begin()


def success_rate(policy: FrozenPolicy, rovers: list[Rover], episodes: int) -> float:
    """Return the share of episodes that succeed under the deterministic policy.

    ``rovers`` are fresh ones whose arena seeds are those of the evaluation; the first ``episodes`` that begin count.
    """
    begun, over, successes = len(rovers), 0, 0
    driving = list(rovers[:episodes])
    while driving:
        means = policy.means([rover.observation for rover in driving])
        for rover, mean in zip(list(driving), means, strict=True):
            distribution = distribution_of(rover.robot.spec)
            action = distribution.action(distribution.mode(mean), rover.robot.spec.action)
            for _ in rover.act(action, None, "", 0):
                pass
            if rover.is_over:
                over, successes = over + 1, successes + rover.outcome.success
                if begun < episodes:
                    rover.begin()
                    begun += 1
                else:
                    driving.remove(rover)
    return successes / over
