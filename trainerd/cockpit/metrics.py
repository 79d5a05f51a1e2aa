"""The curves of a run in TensorBoard; the horizontal axis is decisions that were learned from."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING

from trainerd.cockpit.eventfile import EventFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from protocol.step import EpisodeEnd

WINDOW = 100
"""Training episodes that ``train/success_rate`` looks back on."""
LONG_NAMES = {"lr": "learning_rate"}
"""What the learner's short names are called in TensorBoard."""


class Metrics:
    """Write scalars under tags such as ``train/policy_loss``. Any thread may call; no call waits."""

    def __init__(self, tensorboard_dir: Path) -> None:
        """Begin an event file below ``tensorboard_dir``."""
        self._file = EventFile(tensorboard_dir)
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Events that the disk did not take."""
        return self._file.dropped

    def update(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write what an update reports: ``policy_loss`` becomes ``train/policy_loss``, and so on."""
        self._add("train", {LONG_NAMES.get(name, name): value for name, value in metrics.items()}, step)

    def episode(self, end: EpisodeEnd, decisions: int) -> None:
        """Write a finished training episode after so many decisions; breaks and evaluation episodes are left out."""
        if not end.ends_episode or end.purpose != "training":
            return
        with self._lock:
            self._recent.append(end.success)
            rate = sum(self._recent) / len(self._recent)
        values = {
            "episode_reward": end.return_,
            "episode_length": float(end.episode_steps),
            "success": float(end.success),
            "success_rate": rate,
        }
        self._add("train", values | {f"episode_{k}": v for k, v in end.metrics.items()}, decisions)

    def evaluation(self, policy: str, values: Mapping[str, float], *, step: int) -> None:
        """Write the result of an evaluation of ``policy`` (latest, random, an id) as ``evaluation/<policy>/...``."""
        self._add(f"evaluation/{policy}", values, step)

    def system(self, values: Mapping[str, float], *, step: int) -> None:
        """Write rates and counters of the machinery; a name keeps its own group (``link/steps_per_second``)."""
        self._add("", values, step)

    def close(self) -> None:
        """Write what waits; further calls do nothing."""
        self._file.close()

    def _add(self, group: str, values: Mapping[str, float], step: int) -> None:
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._file.add({f"{group}/{name}" if group else name: value for name, value in finite.items()}, step)
