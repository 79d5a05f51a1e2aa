"""The learner's thread: takes filled rollouts from a bounded queue, hands results to the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from protocol.errors import RoverError
from protocol.node.liveness import Pulse
from trainerd.learning import checkpoint
from trainerd.learning.learner import UpdateResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trainerd.learning.learner import Learner
    from trainerd.learning.rollout import Rollout, Rollouts

Snapshot = dict[str, "npt.NDArray[np.float32]"]
HANG_S = 600.0
"""Longer than any minibatch, and any checkpoint on a slow disk: a device that does not answer."""


class WorkerError(RoverError):
    """The learner's thread ended by itself."""


@dataclass(frozen=True)
class Callbacks:
    """What the event loop wants to hear; every function is called in the loop's thread."""

    on_ready: Callable[[float], None]
    """Warmed up, after so many seconds."""
    on_update: Callable[[UpdateResult, Snapshot], None]
    on_checkpoint: Callable[[Path, bool], None]
    """A checkpoint was written; true for one that is there for a restart only."""
    on_error: Callable[[RoverError], None]
    """A checkpoint failed; training goes on."""
    on_unused: Callable[[Mapping[str, int]], None]
    """A filled rollout with these steps came after the budget was spent; it was not learned from."""


class Worker:
    """Learn from filled rollouts and run other jobs, one after the other, in one thread.

    A job is an iterator that yields after each minibatch; jobs go before rollouts. Once the learner's budget is spent
    no rollout changes it any more. A service: ``run`` until cancelled. The other methods are for the loop's thread
    (``submit`` for any) and return at once. ``stop`` (and cancelling ``run``) takes effect after the present minibatch.
    """

    name = "learner"

    def __init__(
        self,
        learner: Learner,
        rollouts: Rollouts,
        callbacks: Callbacks,
        *,
        checkpoint_folder: Path,
        checkpoint_interval: int = 10,
        checkpoints_kept: int = 5,
        threads: int = 1,
    ) -> None:
        """Prepare; the thread starts with ``run``.

        Each update is followed by a checkpoint; that of every ``checkpoint_interval``-th is kept for long. 0: none but
        on request.
        """
        self.learner = learner
        self.saved_marks = learner.marks
        """Records that are behind the newest checkpoint; replaced whole, for any thread to read."""
        self.pulse = Pulse(self.name, HANG_S)
        self._rollouts = rollouts
        self._callbacks = callbacks
        self._folder = checkpoint_folder
        self._interval = checkpoint_interval
        self._kept = checkpoints_kept
        self._threads = threads
        self._jobs: queue.Queue[Callable[[], Iterator[None]]] = queue.Queue(maxsize=4)
        self._filled: deque[Rollout] = deque()
        self._wake = threading.Event()
        self._choice = threading.Lock()
        """Held while the thread chooses what to do next, so that ``pause`` comes before it or after it."""
        self._going = threading.Event()
        self._going.set()
        self._is_learning = True
        self._stopping = threading.Event()
        self._checkpoint_wanted = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._is_half_done = False
        self.is_ready = False

    async def run(self) -> None:
        """Run the thread until cancelled; it is joined before this returns.

        Raises:
            WorkerError: a job failed.

        """
        self._loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        thread = threading.Thread(target=self._main, args=(ended,), name=self.name, daemon=True)
        thread.start()
        try:
            await ended.wait()
        finally:
            self.stop()
            await asyncio.shield(asyncio.to_thread(thread.join))
        if self._failure is not None:
            raise WorkerError(f"learner: {self._failure!r}") from self._failure

    def submit(self, rollout: Rollout) -> None:
        """Queue a filled rollout for PPO; it goes back to the pool by itself. There are no more than the pool has."""
        self._filled.append(rollout)
        self._wake.set()

    def submit_job(self, make: Callable[[], Iterator[None]]) -> bool:
        """Queue another job; ``make`` is called in the learner's thread. False where the queue is full."""
        try:
            self._jobs.put_nowait(make)
        except queue.Full:
            return False
        self._wake.set()
        return True

    def pause(self) -> None:
        """Rest after the present minibatch."""
        with self._choice:
            self._going.clear()

    def hold(self) -> None:
        """Finish the present update and begin no other; rollouts wait for ``resume``."""
        self._is_learning = False
        self._going.set()

    def resume(self) -> None:
        """Go on after ``pause`` or ``hold``; harmless otherwise."""
        self._is_learning = True
        self._going.set()
        self._wake.set()

    def request_checkpoint(self) -> None:
        """Write a checkpoint between two updates: now, or after the present one."""
        self._checkpoint_wanted.set()
        self._wake.set()

    def save(self, *, rolling: bool = False) -> None:
        """Write a checkpoint at once: for a job, in the learner's thread."""
        try:
            path = checkpoint.save(self._folder, self.learner, keep=self._kept, rolling=rolling)
        except checkpoint.CheckpointError as error:
            self._tell(self._callbacks.on_error, error)
        else:
            self.saved_marks = self.learner.marks
            self._tell(self._callbacks.on_checkpoint, path, rolling)

    def stop(self) -> None:
        """End after the present minibatch; an unfinished update is thrown away with its process."""
        self._stopping.set()
        self._going.set()
        self._wake.set()

    @property
    def is_paused(self) -> bool:
        """True between ``pause`` and ``resume``."""
        return not self._going.is_set()

    @property
    def is_resting(self) -> bool:
        """True while an update or a job was begun that cannot go on because of ``pause``."""
        return self.is_paused and self._is_half_done

    def _main(self, ended: asyncio.Event) -> None:
        try:
            self.pulse.beat()
            torch.set_num_threads(self._threads)
            began = time.perf_counter()
            warm_up(self.learner.device)
            self.learner.warm_up(self.pulse.beat)
            self.is_ready = True
            self._tell(self._callbacks.on_ready, time.perf_counter() - began)
            while not self._stopping.is_set():
                self._run_next()
        except BaseException as error:  # noqa: BLE001 - raised again by run, in the loop's thread
            self._failure = error
        finally:
            self.pulse.rest()
            self.learner.close()
            self._tell(ended.set)

    def _run_next(self) -> None:
        self.pulse.beat()
        if self._checkpoint_wanted.is_set():
            self._checkpoint_wanted.clear()
            self.save()
        if self.learner.is_spent:
            self._discard_filled()
        make = self._choose()
        if make is None:
            self._wake.wait(0.1)
            self._wake.clear()
            return
        try:
            for _ in make():
                self._is_half_done = True
                self.pulse.rest()
                self._going.wait()
                self.pulse.beat()
                if self._stopping.is_set():
                    return
        finally:
            self._is_half_done = False

    def _choose(self) -> Callable[[], Iterator[None]] | None:
        with self._choice:
            if not self._jobs.empty():
                return self._jobs.get_nowait()
            if self._filled and self._is_learning and self._going.is_set():
                self._is_half_done = True
                return partial(self._ppo, self._filled.popleft())
            return None

    def _discard_filled(self) -> None:
        while self._filled:
            rollout = self._filled.popleft()
            steps = dict(rollout.steps)
            self._rollouts.release(rollout)
            self._tell(self._callbacks.on_unused, steps)

    def _ppo(self, rollout: Rollout) -> Iterator[None]:
        try:
            result = yield from self.learner.update(rollout)
        finally:
            self._rollouts.release(rollout)
        if self.learner.is_spent:  # before anybody hears that it is
            self._discard_filled()
        self._tell(self._callbacks.on_update, result, self.learner.snapshot())
        if result.is_new_policy and self._interval and result.update:  # each, so that a kill costs no update
            self.save(rolling=result.update % self._interval != 0)

    def _tell(self, function: Callable[..., object], *values: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *values)


def warm_up(device: torch.device) -> None:
    """Take one optimiser step on a small network: the first one costs seconds, which belong before ``ready``."""
    network = torch.nn.Linear(4, 4).to(device)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network(torch.zeros(2, 4, device=device)).sum().backward()
    optimizer.step()
