"""Follow each step of a rover as it comes in: who made it, whether that is true, and what was missed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from protocol.framing import decode_record, unpack
from protocol.step import Intervention, Step
from tests.daemon.tap import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.messages import Message
    from tests.daemon.policies import Maker

MISSED = Intervention.MISSED | Intervention.FAILOVER | Intervention.LATE
MEAN_TOLERANCE = 2e-5
"""Float32 of another order of summing; two policies made here differ by five times that, and more."""


@dataclass(frozen=True)
class Seen:
    """What is kept of a step."""

    seq: int
    tick: int
    episode_id: int
    policy_id: str
    source: str
    flags: int
    mean_error: float
    """Between the recorded mean and what the policy that the step names answers to its observation; 0 without one."""


class Track(Recorder):
    """A trainer that wants nothing and recomputes each action of policies that were made here."""

    def __init__(self, port: int, maker: Maker) -> None:
        super().__init__(port)
        self._maker = maker
        self._lock = threading.Lock()
        self._steps: list[Seen] = []

    def __len__(self) -> int:
        return len(self._steps)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise AssertionError("the recorder ended") from self._error

    def since(self, start: int) -> list[Seen]:
        """Return the steps from the ``start``-th on, in the order of their numbers."""
        with self._lock:
            return sorted(self._steps[start:], key=lambda step: step.seq)

    def _reply(self, frames: list[bytes]) -> Message | None:
        header = unpack(frames[0])
        if header.get("kind") == "step":
            step = decode_record(header, frames[1:], *self.stream.specs(header["rover_id"]))
            assert isinstance(step, Step)
            seen = Seen(
                step.seq,
                step.tick,
                step.episode_id,
                step.policy_id,
                step.source,
                int(step.interventions),
                self._mean_error(step),
            )
            with self._lock:
                self._steps.append(seen)
            self.stream.headers.clear()  # hours of them would fill the memory
            self.stream.frames.clear()
        return super()._reply(frames)

    def _mean_error(self, step: Step) -> float:
        if step.behaviour is None:
            return 0.0
        number = self._maker.made.get(step.policy_id)
        if number is None:
            return float("inf")
        seen = step.observation
        vector = self._maker.transform.vector(seen.state, seen.task, seen.in_flight)
        return float(np.abs(self._maker.mean(number, vector) - step.behaviour.mean).max())


def skipped(steps: Sequence[Seen]) -> int:
    """Return how many ticks are missing between steps of one episode."""
    return sum(
        after.tick - before.tick - 1 for before, after in pairwise(steps) if before.episode_id == after.episode_id
    )


def missed(steps: Sequence[Seen]) -> int:
    """Return on how many ticks the policy that should have given no action in time."""
    return sum(bool(step.flags & MISSED) for step in steps)


def wrong(steps: Sequence[Seen]) -> int:
    """Return how many steps were not made by the policy that they name, or by none at all."""
    return sum(step.mean_error > MEAN_TOLERANCE or step.source not in {"policy", "gate", "fallback"} for step in steps)


def blocks(steps: Sequence[Seen]) -> list[str]:
    """Return the policies in the order in which they drove, each once for each stretch."""
    order: list[str] = []
    for step in steps:
        if step.policy_id and (not order or order[-1] != step.policy_id):
            order.append(step.policy_id)
    return order
