"""The bookkeeping of one episode: from readings and what control applied to Steps and an EpisodeEnd."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from protocol.distribution import distribution_of
from protocol.moment import Moment, Outcome, Reading
from protocol.step import SOURCES, Behaviour, EpisodeEnd, Observation, Step
from roverd.control import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plugins.contracts import Task
    from plugins.guard import Guard
    from protocol.spec import RobotSpec

Encoded = dict[str, tuple[str, bytes]]


@dataclass(slots=True)
class Observed:
    """One observation that was shown to control: its reading, task features, moment and encoded images."""

    reading: Reading
    task: np.ndarray
    measures: dict[str, float]
    state: dict[str, float]
    encoded: Encoded = field(default_factory=dict)
    image_stamp_ns: int = 0
    """When the images that the policy saw with it were captured; 0 without any."""


@dataclass(frozen=True)
class Plan:
    """How an episode is driven."""

    purpose: str
    arena_seed: int
    explores: bool
    order_id: str = ""
    serial: int = 0


class Rewards:
    """The weighted sum of reward terms, each behind a guard.

    A term that fails gives NaN, so that the trainer quarantines the step and names the term; once the guard has
    disabled it, it adds nothing.
    """

    def __init__(self, terms: Mapping[str, tuple[Guard[float], float]]) -> None:
        """Take (guarded term, weight) by name."""
        self._terms = dict(terms)

    def of(self, previous: Moment, current: Moment) -> tuple[float, dict[str, float]]:
        """Return the reward of a tick and each term's weighted share."""
        shares = {}
        for name, (term, weight) in self._terms.items():
            shares[name] = 0.0 if term.is_disabled else weight * term(previous, current)
        return sum(shares.values()), shares


class Episode:
    """One episode of one rover: numbers its steps and keeps its totals."""

    def __init__(
        self, rover_id: str, boot_id: str, episode_id: int, plan: Plan, spec: RobotSpec, rewards: Rewards
    ) -> None:
        """Begin with no step taken."""
        self._rover_id, self._boot_id = rover_id, boot_id
        self.episode_id, self.plan = episode_id, plan
        self._spec, self._rewards = spec, rewards
        self._distribution = distribution_of(spec).kind
        self.steps = 0
        self.return_ = 0.0
        self.decisions = 0
        self._min_clearance = math.inf
        self.last_policy_id = ""

    def step(
        self,
        seq: int,
        seen: Observed,
        following: Observed,
        applied: wire.Applied,
        outcome: Outcome,
        policy_id: str,
    ) -> Step:
        """Return the record of a tick whose successor is known, and count it."""
        previous = Moment(seen.state, seen.measures, applied.in_flight, collided=seen.reading.collided)
        current = Moment(
            following.state, following.measures, applied.action, collided=following.reading.collided, outcome=outcome
        )
        reward, shares = self._rewards.of(previous, current)
        step = Step(
            rover_id=self._rover_id,
            boot_id=self._boot_id,
            seq=seq,
            episode_id=self.episode_id,
            episode_step=self.steps,
            decision_id=applied.decision,
            tick_in_decision=applied.tick_in_decision,
            observation=observation(seen, applied.in_flight, self._ages_ms(seen, applied.tick_ns)),
            action=np.array(applied.action, np.float32),
            source=SOURCES[applied.source],
            reward=reward,
            policy_id=policy_id,
            policy_counter=applied.policy_counter,
            purpose=self.plan.purpose,
            behaviour=_behaviour(applied, self._distribution),
            policy_action=np.array(applied.policy_action, np.float32) if applied.has & wire.HAS_POLICY else None,
            human_action=np.array(applied.human_action, np.float32) if applied.has & wire.HAS_HUMAN else None,
            interventions=applied.interventions,
            reward_terms=shares,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
            success=outcome.success,
            tick=applied.tick,
            tick_ns=applied.tick_ns,
            applied_ns=applied.applied_ns,
            clearance_m=None if math.isnan(applied.clearance_m) else applied.clearance_m,
        )
        self.steps += 1
        if math.isfinite(reward):  # what is not is quarantined at the trainer
            self.return_ += reward
        self.decisions += step.decides
        self.last_policy_id = policy_id
        if step.clearance_m is not None:
            self._min_clearance = min(self._min_clearance, step.clearance_m)
        return step

    def _ages_ms(self, seen: Observed, tick_ns: int) -> dict[str, float]:
        """Return how old each sensor's reading was at the tick, by blob key."""
        ages = {"state": _ms(tick_ns - seen.reading.stamp_ns)}
        if seen.image_stamp_ns:
            age = _ms(tick_ns - seen.image_stamp_ns)
            ages.update((camera.key, age) for camera in self._spec.cameras)
        return ages

    def end(
        self,
        seq: int,
        reason: str,
        final: Observed,
        in_flight: tuple[float, ...],
        outcome: Outcome,
        *,
        ends_episode: bool = True,
    ) -> EpisodeEnd:
        """Return the record that ends the episode, or a break in it."""
        metrics = {key: float(value) for key, value in final.reading.world.items()}
        metrics["duration_s"] = final.reading.elapsed_s
        metrics["collided"] = float(final.reading.collided)
        metrics.update({f"final_{name}": value for name, value in final.measures.items()})
        if math.isfinite(self._min_clearance):
            metrics["min_clearance_m"] = self._min_clearance
        return EpisodeEnd(
            rover_id=self._rover_id,
            boot_id=self._boot_id,
            seq=seq,
            episode_id=self.episode_id,
            episode_steps=self.steps,
            reason=reason,
            final=observation(final, in_flight),
            ends_episode=ends_episode,
            success=outcome.success,
            terminated=outcome.terminated,
            purpose=self.plan.purpose,
            arena_seed=self.plan.arena_seed,
            return_=self.return_,
            metrics=metrics,
            policy_id=self.last_policy_id,
            episode_serial=self.plan.serial,
            order_id=self.plan.order_id,
        )


def observe(reading: Reading, task: Task, names: tuple[str, ...]) -> Observed:
    """Return what a reading shows, with the task's features and measures."""
    return Observed(
        reading=reading,
        task=task.features(reading),
        measures=task.measure(reading),
        state=dict(zip(names, reading.state.tolist(), strict=True)),
    )


def observation(seen: Observed, in_flight: tuple[float, ...], ages_ms: dict[str, float] | None = None) -> Observation:
    """Return the record form of an observation; its images travel encoded beside it."""
    return Observation(
        state=seen.reading.state,
        task=seen.task,
        in_flight=np.array(in_flight, np.float32),
        stamp_ns=seen.reading.stamp_ns,
        ages_ms=ages_ms or {},
    )


def _ms(age_ns: int) -> float:
    """Return an age in ms; what came between the tick's time and its late beginning is new."""
    return max(0.0, round(age_ns * 1e-6, 3))


def _behaviour(applied: wire.Applied, kind: str) -> Behaviour | None:
    if not applied.has & wire.HAS_BEHAVIOUR:
        return None
    return Behaviour(
        u=np.array(applied.u, np.float32),
        mean=np.array(applied.mean, np.float32),
        log_std=np.array(applied.log_std, np.float32),
        log_prob=applied.log_prob,
        kind=kind,
    )
