"""The release thread: the newest snapshot of the learner becomes a policy; a failure never ends training."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.bundle import BundleError
from protocol.node.liveness import Pulse
from protocol.node.log import get_logger
from trainerd.release.export import ExportError

if TYPE_CHECKING:
    from trainerd.release.export import Exporter
    from trainerd.release.publish import Publisher

log = get_logger()
FloatArray = npt.NDArray[np.float32]
HANG_S = 600.0
"""Exports take seconds."""


@dataclass(frozen=True)
class Draft:
    """A snapshot that should become a policy."""

    snapshot: Mapping[str, npt.NDArray[Any]]
    counter: int
    update: int
    decisions: int
    golden_inputs: tuple[FloatArray, FloatArray] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    allow_unchanged: bool = False


class Pipeline:
    """Export and publish drafts, one at a time; of those that wait only the newest counts."""

    def __init__(self, exporter: Exporter, publisher: Publisher) -> None:
        """Prepare; the thread starts with ``start``."""
        self.failed = 0
        self.skipped = 0
        """Drafts that a newer one replaced before their turn came."""
        self.last_error = ""
        """Why the newest export failed; empty after one that did not."""
        self.pulse = Pulse("release", HANG_S)
        self._exporter = exporter
        self._publisher = publisher
        self._waiting: Draft | None = None
        self._changed = threading.Condition()
        self._is_busy = False
        self._stop = False
        self._thread = threading.Thread(target=self._main, name="release", daemon=True)

    def prepare(self) -> None:
        """Write the graph that later exports fill; a failure shows again, and counts, at the first export."""
        try:
            self._exporter.prepare()
        except ExportError as error:
            log.warning("export.unprepared", error=str(error), hint="each export will try again")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, draft: Draft) -> None:
        """Queue a draft; one that waits already is dropped."""
        with self._changed:
            self.skipped += self._waiting is not None
            self._waiting = draft
            self._changed.notify_all()

    def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until nothing waits or is under way; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and not self._is_busy, timeout_s)

    def stop(self, timeout_s: float = 6.0) -> None:
        """Finish the present draft and end."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def release(self, draft: Draft) -> bool:
        """Export and publish a draft now, on the caller's thread; False, counted and logged, where it fails."""
        parent = self._publisher.wanted.policy_id if self._publisher.wanted else ""
        try:
            bundle = self._exporter.build(
                draft.snapshot,
                counter=draft.counter,
                parent=parent,
                update=draft.update,
                decisions=draft.decisions,
                log_std=draft.snapshot["log_std"],
                golden_inputs=draft.golden_inputs,
                metrics=draft.metrics,
                checkpoint=draft.checkpoint,
                allow_unchanged=draft.allow_unchanged,
            )
            entry = self._publisher.publish(bundle)
        except (ExportError, BundleError, OSError) as error:
            self.failed += 1
            self.last_error = str(error)
            hint = "the rovers keep their policy, training goes on; see the disk and the error"
            log.error("export.failed", counter=draft.counter, error=str(error), failed=self.failed, hint=hint)  # noqa: TRY400
            return False
        self.last_error = ""
        log.info("policy.published", policy_id=entry.policy_id, counter=entry.counter, bytes=entry.size_bytes)
        return True

    def _main(self) -> None:
        while True:
            self.pulse.rest()
            with self._changed:
                self._changed.wait_for(lambda: self._stop or self._waiting is not None)
                if self._stop:
                    return
                draft, self._waiting = self._waiting, None
                self._is_busy = True
            if draft is not None:
                self.pulse.beat()
                self.release(draft)
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
