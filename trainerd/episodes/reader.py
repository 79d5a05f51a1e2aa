"""Read episode files: the exact records as they came, and the robot and task they are of."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.framing import decode_record
from protocol.spec import RobotSpec, SpecError, TaskSpec
from trainerd.episodes import mcap
from trainerd.episodes.records import (
    EPISODE_METADATA,
    FORMAT,
    SPEC_METADATA,
    StoredRecord,
)
from trainerd.episodes.records import decode as decode_messages
from trainerd.run import parse_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from protocol.framing import Buffers
    from protocol.step import Record

_CHUNKS_IN_MEMORY = 4
"""Records that came out of order lie in other chunks than their neighbours."""


class EpisodeError(RoverError):
    """An episode's file is missing, damaged, or of an unknown format; the message names the file and the place."""


@dataclass
class EpisodeFile:
    """An episode's file, as it was when it was opened; a file that is still written shows what was whole then."""

    path: Path
    metadata: dict[str, Any]
    """rover_id, boot_id, run_id, episode_id, epoch_ns, format, created_ns."""
    robot: RobotSpec
    task: TaskSpec
    layout: mcap.Layout = field(repr=False)

    @property
    def is_finished(self) -> bool:
        """True where the file has its summary: it is not being written."""
        return self.layout.is_finished

    @property
    def torn_bytes(self) -> int:
        """Bytes behind the last whole group: a write that is under way, or was when the writer died."""
        return self.layout.torn_bytes

    @property
    def damage(self) -> list[str]:
        """What is damaged, place by place; only seals and the summary were looked at, chunks are when read."""
        return self.layout.damage

    @property
    def seqs(self) -> list[int]:
        """The seq of every record, rising."""
        return sorted({seq for group in self.layout.groups for seq, _ in group.entries})

    def records(self, *, verify: bool = True) -> Iterator[StoredRecord]:
        """Yield every record once, in rising seq.

        Raises:
            EpisodeError: a place is damaged. With ``verify`` nothing that is not as it was written is ever yielded.

        """
        if verify and self.layout.damage:
            raise EpisodeError(f"{self.path}: {self.layout.damage[0]}")
        for each in self.salvage(verify=verify):
            if isinstance(each, mcap.McapError):
                raise EpisodeError(f"{self.path}: {each}") from each
            yield each

    def salvage(self, *, verify: bool = True) -> Iterator[StoredRecord | mcap.McapError]:
        """Yield every record that can be read, in rising seq, and the error of each place that cannot.

        Raises:
            EpisodeError: the file cannot be read at all.

        """
        places = {seq: (group, place) for group in self.layout.groups for seq, place in group.entries}
        chunks: OrderedDict[int, bytes | None] = OrderedDict()
        try:
            with opened(self.path) as fd:
                for seq in sorted(places):
                    group, place = places[seq]
                    if group.offset not in chunks:
                        try:
                            chunks[group.offset] = mcap.read_data(fd, group, verify=verify)
                        except mcap.McapError as error:
                            chunks[group.offset] = None
                            yield error
                        if len(chunks) > _CHUNKS_IN_MEMORY:
                            chunks.popitem(last=False)
                    data = chunks[group.offset]
                    if data is not None:
                        yield self._record(data, place, seq)
        except OSError as error:
            raise EpisodeError(f"{self.path}: {error.strerror or error}") from error

    def _record(self, data: bytes, place: int, seq: int) -> StoredRecord | mcap.McapError:
        identity = (self.metadata["rover_id"], self.metadata["boot_id"])
        try:
            return decode_messages(data, place, seq, identity, self.layout.prologue.channels)
        except mcap.McapError as error:
            return error


def open_episode(path: Path) -> EpisodeFile:
    """Open an episode's file.

    Raises:
        EpisodeError: it cannot be read, its beginning is damaged, or its format is not known.

    """
    try:
        with opened(path) as fd:
            layout = mcap.scan(fd, verify=False)
        return episode_file(path, layout)
    except OSError as error:
        raise EpisodeError(f"{path}: {error.strerror or error}") from error
    except mcap.McapError as error:
        raise EpisodeError(f"{path}: {error}") from error


def episode_file(path: Path, layout: mcap.Layout) -> EpisodeFile:
    """Return the episode of a file that was scanned; raises EpisodeError."""
    try:
        values = layout.prologue.metadata[EPISODE_METADATA]
        metadata: dict[str, Any] = {
            **values,
            **{key: int(values[key]) for key in ("format", "episode_id", "epoch_ns", "created_ns")},
        }
        specs = layout.prologue.metadata[SPEC_METADATA]
        robot, task = parse_specs(json.loads(specs["robot"]), json.loads(specs["task"]))
        missing = {"rover_id", "boot_id", "run_id"} - set(metadata)
    except (KeyError, ValueError, TypeError, SpecError) as error:
        raise EpisodeError(f"{path}: metadata: {error!r}") from error
    if metadata["format"] != FORMAT or missing:
        text = f"format {metadata['format']}, this version reads {FORMAT}; missing: {sorted(missing)}"
        raise EpisodeError(f"{path}: metadata: {text}")
    return EpisodeFile(path, metadata, robot, task, layout)


def decode(
    record: StoredRecord, robot: RobotSpec, task: TaskSpec, buffers: Callable[[], Buffers] | None = None
) -> Record:
    """Return the step or the end of the episode that a record is; raises ProtocolError."""
    return decode_record(record.header, record.frames[1:], robot, task, buffers)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Hold a file open for reading; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
