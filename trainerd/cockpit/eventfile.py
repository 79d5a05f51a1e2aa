"""Write TensorBoard event files from a thread of its own, so that no caller ever waits for a disk."""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from protocol.node.log import RepeatLimiter, get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = get_logger()

CAPACITY = 20_000
"""Events that may wait for the disk; more are dropped and counted."""
FLUSH_S = 1.0


class EventFile:
    """One file of scalars. Any thread may ``add``; it returns at once."""

    def __init__(self, folder: Path, *, capacity: int = CAPACITY) -> None:
        """Begin a new file in ``folder``, which is made with the first event."""
        self.dropped = 0
        self._folder = folder
        self._queue: queue.Queue[Event | None] = queue.Queue(capacity)
        self._failures = RepeatLimiter()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write, name="tensorboard", daemon=True)
        self._thread.start()

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write scalars by tag at a step of the run; dropped and counted where the disk is far behind."""
        if self._is_closed or not scalars:
            return
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and end the thread; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write(self) -> None:
        """Write until closed; a disk that refuses costs the events of that moment, and a new file is begun."""
        is_open = True
        while is_open:
            try:
                is_open = self._write_file()
            except OSError as error:
                self.dropped += 1
                if count := self._failures.count("write"):
                    hint = "scalars are lost until the disk takes them again; training goes on"
                    log.warning(
                        "metrics.write_failed", folder=str(self._folder), error=str(error), count=count, hint=hint
                    )

    def _write_file(self) -> bool:
        """Write events into one file; False when closed; raises OSError."""
        first = self._queue.get()
        if first is None:
            return False
        with self._open() as file:
            records = RecordWriter(file)
            source = SourceMetadata(writer="roverloop")
            header = Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source)
            records.write(header.SerializeToString())
            records.write(first.SerializeToString())
            return self._drain(file, records)

    def _drain(self, file: BinaryIO, records: RecordWriter) -> bool:
        flushed_s = time.monotonic()
        while True:
            try:
                event = self._queue.get(timeout=FLUSH_S)
            except queue.Empty:
                file.flush()
                continue
            if event is None:
                return False
            records.write(event.SerializeToString())
            if time.monotonic() - flushed_s > FLUSH_S:
                file.flush()
                flushed_s = time.monotonic()

    def _open(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        stamp = time.time_ns()
        return (self._folder / f"events.out.tfevents.{stamp // 10**9}.{os.getpid()}.{stamp % 10**9}").open("xb")
