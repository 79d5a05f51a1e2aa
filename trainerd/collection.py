"""What the link thread does with records: into rollouts, and into the figures of the run."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.bundle import golden_count
from protocol.node.log import get_logger
from protocol.step import EpisodeEnd, Step
from trainerd.evaluate import summarise
from trainerd.learning.assembler import FATES, OPEN_FATES, Assembler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from protocol.ranges import Ranges
    from protocol.step import Record
    from trainerd.cockpit.metrics import Metrics
    from trainerd.evaluate import Evaluation
    from trainerd.learning.assembler import Marks
    from trainerd.learning.rollout import Rollout, Rollouts

log = get_logger()
FloatArray = npt.NDArray[np.float32]

WINDOW = 100
"""Training episodes that the success rate looks back on."""
HISTORY_DECISIONS = 5000
"""Decisions between two entries of the success history."""
RATE_S = 10.0
ALARM_EVERY = 64
OPEN, RESTING, CLOSED, OVER = "open", "resting", "closed", "over"
"""How training records are taken in.

Open: they wait for a free rollout. Resting (training is paused): they wait as well, but not in front of an evaluation.
Closed: nothing learns from them, so they are counted as unused. Over: likewise, and for good.
"""


class Rate:
    """Count events and tell how many there were a second lately."""

    def __init__(self, window_s: float = RATE_S) -> None:
        """Look back ``window_s``."""
        self.total = 0
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque()

    def count(self, now_s: float) -> None:
        """Count one event."""
        if not self._marks or now_s - self._marks[-1][0] >= self._window_s / 40:
            self._marks.append((now_s, self.total))
        self.total += 1

    def per_second(self, now_s: float) -> float:
        """Return the mean rate of the window, or since the first event where that is later."""
        while self._marks and now_s - self._marks[0][0] > self._window_s:
            self._marks.popleft()
        if not self._marks:
            return 0.0
        since_s, before = self._marks[0]
        return (self.total - before) / max(now_s - since_s, 1.0)


class Collection:
    """Take records in order and fill rollouts. The link thread owns it."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without rollouts: every record is told to wait until ``begin``."""
        self.assembler: Assembler | None = None
        self.intake = OPEN
        """One of open, resting, closed and over."""
        self.steps = Rate()
        self.decisions = Rate()
        self.success_history: list[dict[str, float]] = []
        self._metrics = metrics
        self._on_filled: Callable[[Rollout], None] | None = None
        self._clock = clock
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._history_due = HISTORY_DECISIONS
        self._alarmed: set[str] = set()
        self._unjudged = 0

    def begin(
        self,
        rollouts: Rollouts,
        on_filled: Callable[[Rollout], None],
        *,
        staleness_limit: int,
        policy_counter: int,
        decisions: int,
        marks: Marks | None = None,
    ) -> None:
        """Fill these rollouts from now on, ``on_filled`` hears of each.

        ``decisions`` were learned from before, and the records of ``marks`` are behind the learner.
        """
        self._on_filled = on_filled
        self.assembler = Assembler(rollouts, staleness_limit=staleness_limit)
        self.assembler.resume(marks or {})
        self.assembler.policy_counter = policy_counter
        self.decisions.total = decisions
        self._history_due = decisions + HISTORY_DECISIONS

    def consume(self, record: Record, lane: str = "live") -> bool:
        """Take a record; False while there is no room for it."""
        if self.assembler is None:
            return False
        if self.intake in {CLOSED, OVER} and record.purpose == "training":
            self.assembler.skip(record, lane)
        elif not self.assembler.add(record, lane):
            return False
        while self._on_filled is not None and (rollout := self.assembler.take_filled()) is not None:
            self._on_filled(rollout)
        self._note(record)
        return True

    def skip_stale(self, rover_id: str, boot_id: str, seqs: Ranges, steps: int) -> None:
        """Count stored records whose policies are all too old to learn from, without reading them."""
        if self.assembler is not None:
            self.assembler.skip_stale(rover_id, boot_id, seqs, steps)
            self.steps.total += steps

    @property
    def takes_replay(self) -> bool:
        """False while stored records wait until training goes on, for nothing is to be unused that need not be."""
        return self.intake in {OPEN, OVER}

    @property
    def oldest_usable(self) -> int:
        """The lowest policy counter whose steps are not too stale to learn from; 0 before ``begin``."""
        return self.assembler.oldest_usable if self.assembler is not None else 0

    def pass_over(self, record: Record, lane: str = "live") -> bool:
        """Count a record without room as unused, for an evaluation behind it; False where room will come by itself."""
        if self.assembler is None or self.intake != RESTING:
            return False
        self.assembler.skip(record, lane)
        self._note(record)
        return True

    def settle(self, steps: Mapping[str, int], fate: str) -> None:
        """Say what became of the steps of a filled rollout."""
        if self.assembler is not None:
            self.assembler.settle(steps, fate)

    def discard(self) -> None:
        """Give up what was collected for a rollout that nobody will learn from."""
        if self.assembler is not None:
            self.assembler.discard()

    def set_intake(self, intake: str) -> None:
        """Take training records in as said from now on."""
        self.intake = intake

    def close(self, rover_id: str, boot_id: str) -> None:
        """Forget a boot that sends nothing more."""
        if self.assembler is not None:
            self.assembler.close(rover_id, boot_id)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Put the result of an evaluation beside the curves."""
        result = summarise(list(evaluation.ends.values()))
        values = {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
        self._metrics.evaluation(evaluation.policy, values, step=self.decisions.total)

    def set_policy_counter(self, counter: int) -> None:
        """Say which policy is the learner's newest."""
        if self.assembler is not None:
            self.assembler.policy_counter = counter

    def alarms(self) -> list[str]:
        """Say why the signal is unfit to learn from."""
        return [alarm.message for alarm in self.assembler.alarms] if self.assembler is not None else []

    def counters(self) -> dict[str, int]:
        """Say what became of every step; the counters behind ``received`` add up to it."""
        counters = self.assembler.counters if self.assembler is not None else dict.fromkeys((*FATES, *OPEN_FATES), 0)
        return {"received": self.steps.total, **counters}

    def write_rates(self, round_trips_ms: list[float], step: int) -> None:
        """Put the rates of the link beside the curves."""
        values = {"link/steps_per_second": self.steps.per_second(self._clock())}
        if round_trips_ms:
            values["link/round_trip_ms"] = max(round_trips_ms)
        self._metrics.system(values, step=step)

    def faults(self) -> dict[str, int]:
        """Say what was not finite in the steps that were quarantined."""
        return dict(self.assembler.faults) if self.assembler is not None else {}

    def success(self) -> dict[str, Any]:
        """Return success of the newest training episodes."""
        count = len(self._recent)
        return {"rate": sum(self._recent) / count if count else None, "n": count}

    def _note(self, record: Record) -> None:
        if isinstance(record, Step):
            self._count(record)
        else:
            self._end(record)

    def _count(self, step: Step) -> None:
        self.steps.count(self._clock())
        if step.purpose == "training" and step.decides:
            self.decisions.count(self._clock())
            if self.decisions.total >= self._history_due and self._recent:
                self._history_due = self.decisions.total + HISTORY_DECISIONS
                rate = sum(self._recent) / len(self._recent)
                self.success_history.append({"decision": self.decisions.total, "rate": rate, "n": len(self._recent)})
        self._unjudged += 1
        if self._unjudged >= ALARM_EVERY:
            self._unjudged = 0
            self._watch()

    def _end(self, end: EpisodeEnd) -> None:
        if end.ends_episode and end.purpose == "training":
            self._recent.append(end.success)
        self._metrics.episode(end, self.decisions.total)

    def _watch(self) -> None:
        alarms = {alarm.name: alarm for alarm in self.assembler.alarms} if self.assembler is not None else {}
        for name in alarms.keys() - self._alarmed:
            hint = "nothing is learned meanwhile; ppo.allow_flat_reward overrides it"
            log.error("signal.alarmed", alarm=name, cause=alarms[name].message, hint=hint)
        for name in self._alarmed - alarms.keys():
            log.info("signal.recovered", alarm=name)
        self._alarmed = set(alarms)


def golden_rows(rollout: Rollout, rollouts: Rollouts) -> tuple[FloatArray, FloatArray]:
    """Return recorded network inputs of some rows: float32[G, C, H, W] and float32[G, n]."""
    transform = rollouts.transform
    rows = np.unique(np.linspace(0, max(0, rollout.rows - 1), golden_count(transform)).astype(int))
    images = [transform.image({key: store[row] for key, store in rollout.images.items()}) for row in rows]
    vectors = [transform.vector(rollout.state[row], rollout.task[row], rollout.in_flight[row]) for row in rows]
    return np.stack(images), np.stack(vectors)
