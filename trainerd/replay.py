"""Feed what was stored before this process started, and is not behind the learner, to the consumer again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from protocol.framing import ProtocolError
from protocol.node.log import get_logger
from protocol.ranges import Ranges
from trainerd.episodes.catalogue import COMPLETE, EpisodeRow
from trainerd.episodes.reader import EpisodeError, decode, open_episode
from trainerd.image_ring import ImageRing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from protocol.step import Record
    from trainerd.episodes.store import Store
    from trainerd.run import Run

log = get_logger()
SETTLE_S = 10.0
LANE = "live"
"""What a rover goes on with follows upon what was stored of it."""


class Learned(Protocol):
    """Who takes the records; called on the link thread."""

    @property
    def oldest_usable(self) -> int:
        """The lowest policy counter whose steps are not too stale to learn from."""

    def consume(self, record: Record, lane: str) -> bool:
        """Take a record; False: busy, offer it again."""

    def skip_stale(self, rover_id: str, boot_id: str, seqs: Ranges, steps: int) -> None:
        """Count stored records that are too stale to learn from."""


class Replay:
    """The stored records that a restarted learner has not learned from, in the order of their boots.

    Episodes whose policies are all too old are counted as stale without being read, as the learner would.
    """

    def __init__(
        self,
        folder: Path,
        episodes: Sequence[EpisodeRow],
        stored: Mapping[tuple[str, str], Ranges],
        learned: Mapping[tuple[str, str], Ranges],
        consumer: Learned,
    ) -> None:
        """Feed what is in ``stored`` and not in ``learned``, both by (rover_id, boot_id).

        The paths of ``episodes`` are relative to ``folder``.
        """
        self.count = self.stale = 0
        self.wanted: dict[tuple[str, str], Ranges] = {}
        for key, ranges in stored.items():
            left = ranges.copy()
            for first, last in learned[key].to_list() if key in learned else []:
                left.remove_range(first, last)
            if left:
                self.wanted[key] = left
        self._folder = folder
        self._consumer = consumer
        self._episodes = [row for row in episodes if self._left_of(row)]
        self._records = self._read()
        self._next: Record | None = None
        self._began_s = time.monotonic()

    def pump(self, budget_s: float) -> bool:
        """Feed records for a while; True when there is none left."""
        end_s = time.monotonic() + budget_s
        while time.monotonic() < end_s:
            if self._next is None:
                self._next = next(self._records, None)
                if self._next is None:
                    self._report()
                    return True
            if not self._consumer.consume(self._next, LANE):
                return False
            self.count += 1
            self._next = None
        return False

    def _read(self) -> Iterator[Record]:
        for row in self._episodes:
            left = self._left_of(row)
            is_plain = row.purpose == "training" and not row.human_steps and row.max_counter is not None
            if is_plain and row.state == COMPLETE and (row.max_counter or 0) < self._consumer.oldest_usable:
                count = len(left)
                steps = min(row.steps, count - (row.last_seq == left.last))  # the last record is the episode's end
                self._consumer.skip_stale(row.rover_id, row.boot_id, left, steps)
                self.stale += count
                continue
            try:
                yield from self._records_of(row, left)
            except EpisodeError as error:
                hint = "the rest of it is not learned from; see trainerctl audit"
                log.error("replay.damaged", episode=str(row.path), reason=str(error), hint=hint)  # noqa: TRY400

    def _records_of(self, row: EpisodeRow, left: Ranges) -> Iterator[Record]:
        episode = open_episode(self._folder / row.path)
        ring = ImageRing(episode.robot)
        for record in episode.records():
            if record.seq in left:
                try:
                    yield decode(record, episode.robot, episode.task, ring.take)
                except ProtocolError as error:
                    log.warning("replay.malformed", episode=str(row.path), seq=record.seq, reason=str(error)[:400])

    def _left_of(self, row: EpisodeRow) -> Ranges:
        """Return the records of an episode that are wanted."""
        wanted = self.wanted.get((row.rover_id, row.boot_id))
        left = Ranges()
        if wanted is not None and row.first_seq is not None and row.last_seq is not None:
            for first, last in wanted.to_list():
                left.add_range(max(first, row.first_seq), min(last, row.last_seq))
        return left

    def _report(self) -> None:
        if self.count or self.stale:
            seconds = round(time.monotonic() - self._began_s, 3)
            log.info("replay.finished", records=self.count, stale=self.stale, seconds=seconds)


@dataclass(frozen=True)
class Found:
    """What lay in a store when this process began."""

    folder: Path
    episodes: list[EpisodeRow]
    boots: dict[tuple[str, str], Ranges]

    @classmethod
    def of(cls, store: Store, run: Run) -> Found:
        """Look into a store that was just started, for the episodes of a run and its robot."""
        if not store.flush(SETTLE_S):
            hint = "what was stored and is not in the catalogue yet is not learned from until the next start"
            log.warning("replay.unsettled", hint=hint)
        boots = [each for each in store.catalogue.boots() if (each.robot, each.task) == run.specs]
        received = {key: Ranges(store.received(*key)) for each in boots for key in [(each.rover_id, each.boot_id)]}
        episodes = store.catalogue.episodes(run_id=run.run_id)
        order = {key: place for place, key in enumerate(received)}
        rows = [row for row in episodes if (row.rover_id, row.boot_id) in order and row.first_seq is not None]
        rows.sort(key=lambda row: (order[row.rover_id, row.boot_id], row.first_seq))
        return cls(store.folder, rows, received)

    def replay(self, learned: Mapping[tuple[str, str], Ranges], consumer: Learned) -> Replay:
        """Return the replay of what is not ``learned`` from."""
        return Replay(self.folder, self.episodes, self.boots, learned, consumer)
