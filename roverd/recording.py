"""The records of what was driven: each has the next number of its boot, and the first ticks have a digest."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from protocol.framing import encode_record
from protocol.moment import RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.moment import Outcome
    from protocol.step import Record, Step
    from roverd.control import wire
    from roverd.ending import Ending
    from roverd.episode import Episode, Observed


class Recording:
    """Number records, encode them, and hand them on."""

    def __init__(self, send: Callable[[int, list[bytes]], None], *, digest_ticks: int) -> None:
        """Begin with number 0; the digest is over so many ticks."""
        self.send = send
        """Takes the number of a record and its frames."""
        self.next_seq = 0
        self.digest = ""
        """Of what was done in the first ticks; empty before."""
        self._digest = hashlib.sha256()
        self._digest_ticks = digest_ticks
        self._ticks = 0

    def step(
        self,
        episode: Episode,
        seen: Observed,
        following: Observed,
        applied: wire.Applied,
        outcome: Outcome,
        policy_id: str,
    ) -> Step:
        """Record a tick."""
        step = episode.step(self._number(), seen, following, applied, outcome, policy_id)
        self._add(step, seen)
        self._ticks += 1
        if self._ticks <= self._digest_ticks:
            self._digest.update(_digestible(applied, step.reward))
            if self._ticks == self._digest_ticks:
                self.digest = self._digest.hexdigest()
        return step

    def cut(self, episode: Episode, reason: str, seen: Observed, in_flight: tuple[float, ...]) -> None:
        """End a segment at what the next step sees; an episode that a human begins has none before it."""
        if episode.steps:
            end = episode.end(self._number(), reason, seen, in_flight, RUNNING, ends_episode=False)
            self._add(end, seen)

    def end(self, episode: Episode, ending: Ending, final: Observed, in_flight: tuple[float, ...]) -> None:
        """Record the end of an episode."""
        end = episode.end(self._number(), ending.kind, final, in_flight, ending.outcome)
        if ending.is_discarded:
            end.metrics["discarded"] = 1.0
        self._add(end, final)

    def _number(self) -> int:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        return seq

    def _add(self, record: Record, seen: Observed) -> None:
        self.send(record.seq, encode_record(record, seen.encoded))


def _digestible(applied: wire.Applied, reward: float) -> bytes:
    numbers = (*applied.action, *applied.in_flight, *applied.u, *applied.mean, reward, applied.clearance_m)
    return struct.pack(f"<{len(numbers)}dII", *numbers, applied.interventions, applied.tick_in_decision)
