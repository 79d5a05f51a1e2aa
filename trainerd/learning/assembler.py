"""Assemble rollouts from records: ticks become decisions, decisions become rows, every step is counted once."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.distribution import distribution_of
from protocol.ranges import Ranges
from protocol.step import EpisodeEnd, Intervention, Observation, Record, Step
from trainerd.learning.rollout import EpisodeResult, Rollout, RowDecision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.step import Behaviour
    from trainerd.learning.rollout import Rollouts

FloatArray = npt.NDArray[np.float32]

FATES = (
    "trained",
    "demonstration",
    "stale",
    "broken",
    "quarantined",
    "evaluation",
    "collection",
    "alarmed",
    "frozen",
    "normaliser",
    "rolled_back",
    "unused",
)
"""What a step came to, for good.

Trained and demonstration: learned from. Stale, broken, quarantined, evaluation and collection (stored for imitation):
never in a rollout. Of those in a rollout: alarmed (the signal was flat, the learner refused it), frozen
(``train.frozen``), normaliser (it fitted the input normaliser and nothing else), rolled_back (its update was undone).
Unused: nothing was to be learned any more.
"""
OPEN_FATES = ("pending", "collected")
"""Not decided yet: the decision waits for a successor, or is in a rollout that was not learned from yet."""
ALARM_STEPS = 2048
NOT_THE_POLICY = (
    Intervention.MISSED | Intervention.LATE | Intervention.FAILOVER | Intervention.HUMAN | Intervention.ACTUATOR_FAILED
)
"""Flags of a tick on which something else than the recorded proposal decided what the robot did."""
_OWN_SOURCES = frozenset({"policy", "gate"})


@dataclass(frozen=True)
class Alarm:
    """A signal that cannot be learned from."""

    name: str
    """``reward_constant`` or ``no_terminal``."""
    steps: int
    """Consecutive training steps so far."""
    message: str


@dataclass(slots=True)
class _Decision:
    """A decision whose successor observation has not come yet."""

    first: Step
    fate: str
    ticks: int = 0
    human_ticks: int = 0
    """Ticks on which the robot did what a human said."""
    reward: float = 0.0
    is_own: bool = True
    action_sum: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    def take(self, step: Step) -> None:
        """Add a tick."""
        self.ticks += 1
        self.reward += step.reward
        self.human_ticks += step.source == "human" and not step.interventions & Intervention.ACTUATOR_FAILED
        self.is_own &= step.source in _OWN_SOURCES and not step.interventions & NOT_THE_POLICY
        action = step.action if step.human_action is None else step.human_action
        self.action_sum = action if self.ticks == 1 else self.action_sum + action


@dataclass(slots=True)
class _Stream:
    """What is open of one boot of one rover."""

    episode_id: int = -1
    next_step: int = 0
    pending: _Decision | None = None
    open_row: int | None = None
    following: Observation | None = None
    """The observation that followed ``open_row``."""


Marks = dict[tuple[str, str], Ranges]
"""Records by (rover_id, boot_id): those that are behind the learner."""


class Assembler:
    """Fill rollouts from records that come in order within each lane of each (rover_id, boot_id).

    ``add`` takes one record; a rollout that it filled waits in ``take_filled``, and ``settle`` hears what became of it.
    ``policy_counter`` is the learner's newest policy: set it whenever a policy is published. One thread only. The
    observations of at most two decisions a stream are kept, so their arrays must not be reused.
    """

    def __init__(self, rollouts: Rollouts, *, staleness_limit: int, alarm_steps: int = ALARM_STEPS) -> None:
        """Fill rollouts of a pool.

        Decisions of policies more than ``staleness_limit`` updates old are dropped as stale, and so are those of
        policies that the learner has not made: they are another run's.
        """
        self.policy_counter = 0
        self.steps_in = 0
        self.faults: Counter[str] = Counter()
        """How many steps were quarantined, by the name of what was not finite."""
        self._rollouts = rollouts
        self._action = rollouts.robot.action
        self._distribution = distribution_of(rollouts.robot)
        self._cameras = tuple(dict.fromkeys(plane.camera for plane in rollouts.transform.planes))
        self._staleness_limit = staleness_limit
        self._streams: dict[tuple[str, str, str], _Stream] = {}
        self._marks: Marks = {}
        self._fates: Counter[str] = Counter(dict.fromkeys(FATES, 0))
        self._collected = 0
        self._rollout: Rollout | None = None
        self._filled: deque[Rollout] = deque()
        self._watch = _Watch(alarm_steps)

    def add(self, record: Record, lane: str = "live") -> bool:
        """Consume a record; False (nothing happened, offer it again) while it needs a rollout and all are busy."""
        if self._rollout is None and record.purpose == "training":
            self._rollout = self._rollouts.acquire()
            if self._rollout is None:
                return False
        stream = self._stream(record, lane)
        if isinstance(record, Step):
            self.steps_in += 1
            self._add_step(stream, record)
        else:
            self._add_end(stream, record)
        if self._rollout is not None and self._rollout.is_full(self._open_segments()):
            self._fill()
        return True

    def skip(self, record: Record, lane: str = "live") -> None:
        """Consume a training record that nothing will be learned from; its step is unused."""
        stream = self._stream(record, lane)
        self._drop(stream)
        stream.episode_id = -1
        if isinstance(record, Step):
            self.steps_in += 1
            self._fates["unused"] += 1

    def skip_stale(self, rover_id: str, boot_id: str, seqs: Ranges, steps: int) -> None:
        """Consume stored records unread, ``steps`` of them steps: their policies are all too old to learn from."""
        marks = self._marks.setdefault((rover_id, boot_id), Ranges())
        for first, last in seqs.to_list():
            marks.add_range(first, last)
        self.steps_in += steps
        self._fates["stale"] += steps

    def resume(self, marks: Marks) -> None:
        """Go on behind these records, which were learned from (or came to another fate) before."""
        self._marks = {key: ranges.copy() for key, ranges in marks.items()}

    @property
    def oldest_usable(self) -> int:
        """The lowest policy counter whose steps are not too stale to learn from."""
        return self.policy_counter - self._staleness_limit

    @property
    def marks(self) -> Marks:
        """Records that no later rollout will have: all consumed ones but those of decisions without successor yet."""
        marks = {key: ranges.copy() for key, ranges in self._marks.items()}
        for (rover_id, boot_id, _), stream in self._streams.items():
            if stream.pending is not None:
                first = stream.pending.first.seq
                marks[rover_id, boot_id].remove_range(first, first + stream.pending.ticks - 1)
        return marks

    def discard(self) -> None:
        """Give the rollout that is being filled back to the pool; its steps are unused."""
        if self._rollout is None:
            return
        for stream in self._streams.values():
            self._cut(stream)
        self.settle(self._rollout.steps, "unused")
        self._rollouts.release(self._rollout)
        self._rollout = None

    def settle(self, steps: Mapping[str, int], fate: str) -> None:
        """Say what became of the steps of a filled rollout: each what it was meant for if it was trained on."""
        self._collected -= sum(steps.values())
        if fate == "trained":
            self._fates.update(steps)
        else:
            self._fates[fate] += sum(steps.values())

    def take_filled(self) -> Rollout | None:
        """Return the oldest filled rollout that was not taken yet; give it back to the pool after the update."""
        return self._filled.popleft() if self._filled else None

    def close(self, rover_id: str, boot_id: str) -> None:
        """Forget a boot that will send nothing more: its pending decision is broken, its segment is cut."""
        for key in [key for key in self._streams if key[:2] == (rover_id, boot_id)]:
            self._drop(self._streams.pop(key))

    @property
    def counters(self) -> dict[str, int]:
        """How many steps came to which fate, those of ``OPEN_FATES`` included; the sum is ``steps_in``."""
        pending = sum(s.pending.ticks for s in self._streams.values() if s.pending)
        return {**self._fates, "pending": pending, "collected": self._collected}

    @property
    def is_balanced(self) -> bool:
        """True when every step that came in is in exactly one counter."""
        return sum(self.counters.values()) == self.steps_in

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """What makes the signal unfit to learn from now."""
        return self._watch.alarms()

    @property
    def rows(self) -> int:
        """Decisions in the rollout that is being filled."""
        return self._rollout.rows if self._rollout else 0

    def _stream(self, record: Record, lane: str) -> _Stream:
        self._marks.setdefault((record.rover_id, record.boot_id), Ranges()).add(record.seq)
        key = (record.rover_id, record.boot_id, lane)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
        return stream

    def _add_step(self, stream: _Stream, step: Step) -> None:
        if step.purpose != "training":
            self._drop(stream)
            stream.episode_id = -1
            self._fates["collection" if step.purpose == "collection" else "evaluation"] += 1
            return
        if step.episode_id != stream.episode_id or step.episode_step != stream.next_step:
            self._drop(stream)
        stream.episode_id, stream.next_step = step.episode_id, step.episode_step + 1
        fault = _fault(step)
        if fault:
            self.faults[fault] += 1
            self._fates["quarantined"] += 1
            self._drop(stream)
            return
        self._watch.step(step.reward)
        if step.decides:
            self._begin(stream, step)
        elif stream.pending is None or stream.pending.first.decision_id != step.decision_id:
            self._drop(stream)
            self._fates["broken"] += 1
        else:
            stream.pending.take(step)

    def _begin(self, stream: _Stream, step: Step) -> None:
        is_shown = all(key in step.observation.images for key in self._cameras)
        previous = stream.pending
        if previous is not None:
            if is_shown:
                self._complete(stream, step.observation)
                if previous.first.policy_id != step.policy_id:
                    self._cut(stream)
            else:
                self._drop(stream)
        fate = "trained"
        if not is_shown:
            fate = "broken"
        elif step.behaviour is not None and not self.oldest_usable <= step.policy_counter <= self.policy_counter:
            fate = "stale"
        if fate != "trained":
            self._cut(stream)
        stream.pending = _Decision(step, fate)
        stream.pending.take(step)

    def _add_end(self, stream: _Stream, end: EpisodeEnd) -> None:
        if end.purpose == "training":
            is_next = end.episode_id == stream.episode_id and end.episode_steps == stream.next_step
            is_terminal = end.terminated or end.reason == "terminated"
            if is_terminal or end.reason == "truncated":
                self._watch.terminal()
            if is_next and is_terminal:
                self._complete(stream, None)
            elif is_next and _is_usable(end.final, self._cameras):
                self._complete(stream, end.final)
                self._cut(stream)
            else:
                self._drop(stream)
            if end.ends_episode:
                self._current.episodes.append(EpisodeResult(end.return_, end.success, end.episode_steps))
        if end.ends_episode:
            stream.episode_id, stream.next_step = -1, 0

    def _complete(self, stream: _Stream, following: Observation | None) -> None:
        """Write the pending decision into a row, now that its successor is known; None: the task ended."""
        decision, stream.pending = stream.pending, None
        if decision is None:
            self._cut(stream)
            return
        if decision.fate != "trained":
            self._fates[decision.fate] += decision.ticks
            return
        is_demonstration = decision.human_ticks == decision.ticks
        rollout = self._current
        rollout.steps["demonstration" if is_demonstration else "trained"] += decision.ticks
        self._collected += decision.ticks
        row = rollout.append(decision.first.observation, self._row(decision, is_demonstration=is_demonstration))
        if stream.open_row is not None:
            rollout.link(stream.open_row, row)
        stream.open_row, stream.following = row, following
        if following is None:
            rollout.terminate(row)
            stream.open_row = None

    def _row(self, decision: _Decision, *, is_demonstration: bool) -> RowDecision:
        first, behaviour = decision.first, decision.first.behaviour
        nothing = np.zeros(len(self._action), np.float32)
        u, mean, log_std, log_prob = nothing, nothing, nothing, 0.0
        if behaviour is not None:
            u, mean, log_std, log_prob = behaviour.u, behaviour.mean, behaviour.log_std, behaviour.log_prob
        if is_demonstration:
            u = np.asarray(self._distribution.u_of(decision.action_sum / decision.ticks), np.float32)
        return RowDecision(
            u=u,
            mean=mean,
            log_std=log_std,
            log_prob=log_prob,
            reward=decision.reward,
            policy_counter=first.policy_counter,
            policy_weight=float(decision.is_own and behaviour is not None),
            value_weight=float(not is_demonstration),
            cloning_weight=float(is_demonstration),
            rover_id=first.rover_id,
        )

    def _cut(self, stream: _Stream) -> None:
        """End the stream's segment after its last row, which bootstraps from the observation that followed."""
        if stream.open_row is not None and stream.following is not None:
            self._current.cut(stream.open_row, stream.following)
        stream.open_row = stream.following = None

    def _drop(self, stream: _Stream) -> None:
        """Give up the pending decision, for it will have no successor, and end the segment before it."""
        if stream.pending is not None:
            fate = stream.pending.fate
            self._fates["broken" if fate == "trained" else fate] += stream.pending.ticks
            stream.pending = None
        self._cut(stream)

    @property
    def _current(self) -> Rollout:
        if self._rollout is None:
            raise RuntimeError("assembler: a row was written while no rollout was free; this is a bug")
        return self._rollout

    def _open_segments(self) -> int:
        return sum(stream.open_row is not None for stream in self._streams.values())

    def _fill(self) -> None:
        for stream in self._streams.values():
            self._cut(stream)
        self._current.alarms = tuple(alarm.name for alarm in self.alarms)
        self._current.marks = self.marks
        self._filled.append(self._current)
        self._rollout = self._rollouts.acquire()


class _Watch:
    """Count how long the reward has been constant and nothing has ended."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._last_reward: float | None = None
        self._constant = 0
        self._endless = 0

    def step(self, reward: float) -> None:
        self._constant = self._constant + 1 if reward == self._last_reward else 1
        self._last_reward = reward
        self._endless += 1

    def terminal(self) -> None:
        self._endless = 0

    def alarms(self) -> tuple[Alarm, ...]:
        alarms = []
        if self._constant >= self._limit:
            text = f"reward: {self._last_reward} on each of the last {self._constant} steps; check the reward plugins"
            alarms.append(Alarm("reward_constant", self._constant, text))
        if self._endless >= self._limit:
            text = f"episodes: none ended in the last {self._endless} steps; check the task plugin"
            alarms.append(Alarm("no_terminal", self._endless, text))
        return tuple(alarms)


def _fault(step: Step) -> str:
    """Name what is not finite in a step, or return an empty string."""
    if not np.isfinite(step.reward):
        wrong = [name for name, value in step.reward_terms.items() if not np.isfinite(value)]
        return f"reward.{wrong[0]}" if wrong else "reward"
    place = _vector_fault(step.observation)
    if place:
        return place
    if not np.isfinite(step.action).all():
        return "action"
    return "behaviour" if step.behaviour is not None and not _is_finite(step.behaviour) else ""


def _vector_fault(observation: Observation) -> str:
    for name in ("state", "task", "in_flight"):
        if not np.isfinite(getattr(observation, name)).all():
            return f"observation.{name}"
    return ""


def _is_finite(behaviour: Behaviour) -> bool:
    vectors = (behaviour.u, behaviour.mean, behaviour.log_std)
    return bool(np.isfinite(behaviour.log_prob)) and all(bool(np.isfinite(v).all()) for v in vectors)


def _is_usable(final: Observation, cameras: tuple[str, ...]) -> bool:
    return not _vector_fault(final) and all(key in final.images for key in cameras)
