"""Evaluations: ordered batches of episodes without exploration, and what they show."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from protocol.messages import Order, OrderUpdate
from protocol.step import EpisodeEnd
from trainerd.lab.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


QUEUED, RUNNING, FINISHED, FAILED = "queued", "running", "finished", "failed"
STALL_S = 120.0
"""An evaluation fails when no episode of it ends for so long."""
KEEP = 200
COUNTED = frozenset({"terminated", "truncated"})
"""Ends that the task itself decided."""


@dataclass
class Evaluation:
    """One batch of episodes on one rover."""

    order: Order
    rover_id: str
    policy: str
    """What was asked for: ``latest``, a policy id, or the name of a controller."""
    stage: str = QUEUED
    reason: str = ""
    ends: dict[int, EpisodeEnd] = field(default_factory=dict)
    progress_s: float = 0.0
    """When something of it happened last."""

    @property
    def is_over(self) -> bool:
        """True when nothing more will happen to it."""
        return self.stage in {FINISHED, FAILED}

    def to_map(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {
            "id": self.order.order_id,
            "stage": self.stage,
            "reason": self.reason,
            "rover_id": self.rover_id,
            "policy": self.policy,
            "controller": self.order.controller,
            "policy_id": self.order.policy_id,
            "episodes": self.order.episodes,
            "seed": self.order.seed,
            "episodes_done": len(self.ends),
            "result": summarise(list(self.ends.values())) if self.ends else None,
        }


class Evaluations:
    """The evaluations of this process, one after the other on each rover. The link thread owns it."""

    def __init__(self, on_finished: Callable[[Evaluation], object] | None = None) -> None:
        """Begin with none; ``on_finished`` hears of each that has all its episodes."""
        self._all: dict[str, Evaluation] = {}
        self._on_finished = on_finished

    def ask(self, rover_id: str, policy: str, order: Order, now_s: float) -> Evaluation:
        """Queue a batch on a rover."""
        evaluation = Evaluation(order, rover_id, policy, progress_s=now_s)
        self._all[order.order_id] = evaluation
        for each in [e for e in self._all.values() if e.is_over][:-KEEP]:
            del self._all[each.order.order_id]
        return evaluation

    def get(self, evaluation_id: str) -> Evaluation | None:
        """Return an evaluation."""
        return self._all.get(evaluation_id)

    def current(self, rover_id: str) -> Evaluation | None:
        """Return the evaluation that a rover should drive now."""
        return next((e for e in self._all.values() if e.rover_id == rover_id and not e.is_over), None)

    def queued(self, rover_id: str) -> int:
        """Count what a rover still has to drive."""
        return sum(e.rover_id == rover_id and not e.is_over for e in self._all.values())

    def rows(self) -> list[dict[str, Any]]:
        """Describe every evaluation, as the API shows it."""
        return [each.to_map() for each in self._all.values()]

    def update(self, update: OrderUpdate, now_s: float) -> None:
        """Take in what a rover says of an order."""
        evaluation = self._all.get(update.order_id)
        if evaluation is None or evaluation.is_over:
            return
        evaluation.progress_s = now_s
        if update.stage == "refused":
            evaluation.stage, evaluation.reason = FAILED, update.reason or "the rover refused the order"
        elif update.stage == "running":
            evaluation.stage = RUNNING

    def collect(self, end: EpisodeEnd, now_s: float) -> None:
        """Take in an episode; one that was driven twice (after a restart) counts once.

        One that was stopped or ended by a fault shows nothing of the policy: the rover drives its arena again.
        """
        evaluation = self._all.get(end.order_id) if end.order_id else None
        if evaluation is None or evaluation.is_over or end.reason not in COUNTED:
            return
        evaluation.stage, evaluation.progress_s = RUNNING, now_s
        evaluation.ends[end.episode_serial] = end
        if len(evaluation.ends) >= evaluation.order.episodes:
            evaluation.stage = FINISHED
            if self._on_finished is not None:
                self._on_finished(evaluation)

    def expire(self, now_s: float) -> None:
        """Fail what makes no progress; only the first of each rover's queue can."""
        for rover_id in {e.rover_id for e in self._all.values() if not e.is_over}:
            first = self.current(rover_id)
            if first is not None and now_s - first.progress_s > STALL_S:
                first.stage = FAILED
                first.reason = f"no episode in {STALL_S:g} s on {rover_id}; is it connected? see trainerctl rover list"
                following = self.current(rover_id)
                if following is not None:
                    following.progress_s = now_s


def evaluation_order(controller: str, policy_id: str, episodes: int, seed: int) -> Order:
    """Return a new order to evaluate."""
    return Order(f"evaluate-{secrets.token_hex(6)}", "evaluate", controller, policy_id, episodes, seed)


def summarise(ends: Sequence[EpisodeEnd]) -> dict[str, Any]:
    """Return success with its Wilson interval, collisions, time-outs, time, path efficiency and mean return.

    ``path_efficiency`` is the shortest path over the driven one, mean over successes; None without one.
    """
    successes = [end for end in ends if end.success]
    low, high = wilson(len(successes), len(ends))
    efficiency = [ratio for end in successes if (ratio := _efficiency(end)) is not None]
    return {
        "n": len(ends),
        "successes": len(successes),
        "success": len(successes) / len(ends) if ends else None,
        "low": low,
        "high": high,
        "collisions": sum(end.metrics.get("collided", 0.0) > 0 for end in ends),
        "timeouts": sum(end.reason == "truncated" for end in ends),
        "duration_s": _mean([end.metrics.get("duration_s") for end in ends]),
        "duration_success_s": _mean([end.metrics.get("duration_s") for end in successes]),
        "path_efficiency": fmean(efficiency) if efficiency else None,
        "return": _mean([end.return_ for end in ends]),
    }


def judge_ranking(
    ranking: Sequence[tuple[str, str]], returns: Mapping[str, Mapping[int, float]]
) -> list[dict[str, Any]]:
    """Judge each pair (better, worse) of controllers by the returns of the same arenas (serial to return).

    A pair passes when the mean difference is above one standard error of it; a return that is not finite fails.
    """
    verdicts = []
    for better, worse in ranking:
        serials = sorted(returns[better].keys() & returns[worse].keys())
        gaps = [returns[better][serial] - returns[worse][serial] for serial in serials]
        mean = math.fsum(gaps) / max(1, len(gaps))
        error = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / max(1, len(gaps) - 1) / max(1, len(gaps)))
        verdicts.append(
            {
                "better": better,
                "worse": worse,
                "better_return": _mean(list(returns[better].values())),
                "worse_return": _mean(list(returns[worse].values())),
                "standard_error": error if math.isfinite(error) else None,
                "n": len(gaps),
                "passed": bool(gaps) and mean > error,
            }
        )
    return verdicts


def _efficiency(end: EpisodeEnd) -> float | None:
    shortest, driven = end.metrics.get("shortest_path_m"), end.metrics.get("path_m")
    if not shortest or not driven or not math.isfinite(shortest / driven):
        return None
    return min(1.0, shortest / driven)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
