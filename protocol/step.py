"""The records of experience: what one control tick saw, did and got, and how a segment of ticks ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from protocol.distribution import SQUASHED_GAUSSIAN

FloatArray = npt.NDArray[np.float32]

SOURCES = ("policy", "human", "scripted", "gate", "fallback")
"""Who decided the applied action: the policy as proposed, a human, a scripted controller, the safety gate (which
changed what was proposed), or the actuator's safe action for want of a valid proposal."""

PURPOSES = ("training", "evaluation", "collection")
"""Why an episode is driven; only training episodes enter a rollout."""

END_REASONS = ("terminated", "truncated", "takeover", "release", "failover", "swap", "link_cut", "stopped", "fault")
"""Why a segment ended. All but the first two are breaks: the learner bootstraps from the final observation."""


class Intervention(IntFlag):
    """What came between a proposal and the actuator on one tick."""

    MISSED = 1
    """No valid proposal in time."""
    LATE = 2
    """A proposal for an earlier tick came during this one; it was not applied."""
    FAILOVER = 4
    """The standby policy process gave the proposal, because the one that drives gave none in time."""
    LIMITED = 8
    """Clamped to the action limits."""
    FORWARD_STOP = 16
    """Forward motion was stopped before an obstacle."""
    STALE = 32
    """A sensor was older than its limit."""
    NON_FINITE = 64
    """A proposal, a human's action or a measurement held NaN or infinity."""
    E_STOP = 128
    """The emergency stop is latched."""
    HUMAN = 256
    """A human had the wheel."""
    OBSERVATION_REPEATED = 512
    """The tick saw the same observation as the one before."""
    SLOWED = 1024
    """Forward motion was slowed down before an obstacle."""
    RAMPED = 2048
    """The action was held back by a limit of acceleration or jerk."""
    FROZEN = 4096
    """The camera gave the same picture for too long, with new stamps."""
    TILTED = 8192
    """The robot leans more than it may."""
    STALLED = 16384
    """The robot was told to move and did not."""
    WHEEL_LOCKED = 32768
    """A human holds the wheel and says nothing: nobody else may drive."""
    ACTUATOR_FAILED = 65536
    """The actuator did not take the command."""
    TOOK_OVER = 131072
    """The spare control process took over since the tick before."""


@dataclass(slots=True)
class Observation:
    """Raw inputs at a tick: decoded images by blob key, state, task features and the action in flight.

    images: uint8[H, W, 3] or int16[H, W] millimetres; empty on ticks that recorded none. The vectors are float32 in
    SI units, in the order of RobotSpec.state, TaskSpec.features and RobotSpec.action.
    """

    state: FloatArray
    task: FloatArray
    in_flight: FloatArray
    images: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    stamp_ns: int = 0
    ages_ms: dict[str, float] = field(default_factory=dict)
    """Age of each sensor's reading at the tick, by blob key."""


@dataclass(slots=True)
class Behaviour:
    """The behaviour distribution as it really ran, one entry per action element.

    ``squashed_gaussian``: tanh-squashed, u is the action before tanh, and ``log_prob`` the log-density of u under
    N(mean, exp(log_std)); the tanh Jacobian is left out, since it cancels in every ratio. ``categorical``: u is the
    chosen action (one-hot), ``mean`` holds the logits, ``log_std`` zeros, ``log_prob`` is that of the choice.
    """

    u: FloatArray
    mean: FloatArray
    log_std: FloatArray
    log_prob: float
    kind: str = SQUASHED_GAUSSIAN


@dataclass(slots=True)
class Step:
    """The record of one control tick, complete once its successor is known.

    Identity is (rover_id, boot_id, seq); order within an episode is episode_step. ``decision_id`` counts decisions
    of the boot; ``tick_in_decision`` is 0 on the tick that decided. ``behaviour`` is None where no policy decided.
    """

    rover_id: str
    boot_id: str
    seq: int
    episode_id: int
    episode_step: int
    decision_id: int
    tick_in_decision: int
    observation: Observation
    action: FloatArray
    """What was applied, after safety, float32[a] in the units of RobotSpec.action."""
    source: str
    reward: float
    policy_id: str = ""
    policy_counter: int = 0
    purpose: str = "training"
    behaviour: Behaviour | None = None
    policy_action: FloatArray | None = None
    human_action: FloatArray | None = None
    interventions: int = 0
    reward_terms: dict[str, float] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    tick: int = 0
    tick_ns: int = 0
    applied_ns: int = 0
    clearance_m: float | None = None
    """Free distance ahead as control computed it, or None without depth."""

    @property
    def decides(self) -> bool:
        """True on the first tick of a decision."""
        return self.tick_in_decision == 0


@dataclass(slots=True)
class EpisodeEnd:
    """The end of an episode, or a break within one, with the observation that follows the last step.

    It takes a seq of its own and is acknowledged like a step. ``ends_episode`` is False for a break after which the
    same episode goes on (takeover, release, swap).
    """

    rover_id: str
    boot_id: str
    seq: int
    episode_id: int
    episode_steps: int
    reason: str
    final: Observation
    ends_episode: bool = True
    success: bool = False
    terminated: bool = False
    purpose: str = "training"
    arena_seed: int = 0
    return_: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    """Facts of the episode for its record: duration_s, path_m, shortest_path_m, collided, min_clearance_m."""
    policy_id: str = ""
    episode_serial: int = 0
    """Number of the episode within an ordered batch (an evaluation), from 0."""
    order_id: str = ""
    """The order that asked for this episode, empty without one."""


Record = Step | EpisodeEnd
