"""One record of an episode as the checks see it: decoded but for its images, of which the checksums are kept."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.framing import decode_record
from protocol.step import EpisodeEnd, Intervention, Observation, Record, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import RobotSpec, TaskSpec


@dataclass(slots=True)
class Entry:
    """A record without its images."""

    record: Record
    images: dict[str, int] = field(default_factory=dict)
    """CRC-32 of each camera's encoded frame, by blob key."""
    blank: set[str] = field(default_factory=set)
    """Cameras whose frame shows nothing and is the one of before."""
    after_gap: bool = False
    """Records between the one before and this one are known to be missing."""

    @property
    def seq(self) -> int:
        """Number of the record in its boot."""
        return self.record.seq

    @property
    def observation(self) -> Observation:
        """What the step saw, or what followed the last step."""
        return self.record.observation if isinstance(self.record, Step) else self.record.final

    @property
    def is_repeated(self) -> bool:
        """True for a step that saw the same observation as the one before, and says so."""
        return isinstance(self.record, Step) and bool(self.record.interventions & Intervention.OBSERVATION_REPEATED)


def read_entry(header: dict[str, Any], frames: Sequence[bytes], robot: RobotSpec, task: TaskSpec) -> Entry:
    """Decode a record but for its images; raises ProtocolError.

    Args:
        header: the unpacked header.
        frames: all frames of the record as they came; the first one is the header.
        robot: the robot that recorded it.
        task: its task.

    """
    record = decode_record({**header, "blobs": []}, (), robot, task)
    keys = [str(blob[0]) for blob in header.get("blobs", ()) if isinstance(blob, list) and blob]
    return Entry(record, {key: zlib.crc32(frame) for key, frame in zip(keys, frames[1:], strict=False)})


def closing(entries: Sequence[Entry]) -> EpisodeEnd | None:
    """Return the end of the episode, where it is the last record."""
    last = entries[-1].record if entries else None
    return last if isinstance(last, EpisodeEnd) and last.ends_episode else None
