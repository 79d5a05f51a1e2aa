"""Training: the learner, its thread and its checkpoints, begun once the run's robot is known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.node.log import get_logger
from trainerd.collection import CLOSED, OPEN, OVER, RESTING, golden_rows
from trainerd.learning import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from protocol.node.liveness import Pulse
    from trainerd.cockpit.metrics import Metrics
    from trainerd.collection import Collection
    from trainerd.design import Design
    from trainerd.episodes.catalogue import EpisodeRow
    from trainerd.learning.assembler import Marks
    from trainerd.learning.learner import UpdateResult
    from trainerd.learning.rollout import Rollout
    from trainerd.making import Parts
    from trainerd.release.publish import Publisher
    from trainerd.release.registry import Registry
    from trainerd.run import Run
    from trainerd.settings import Settings

log = get_logger()

TRAINING, PAUSED, STOPPED, FINISHED = "training", "paused", "stopped", "finished"
STANDING_MODE = {TRAINING: "train", PAUSED: "idle", STOPPED: "idle", FINISHED: "idle"}
"""What rovers do meanwhile."""
INTAKE = {TRAINING: OPEN, PAUSED: RESTING, STOPPED: CLOSED, FINISHED: OVER}
"""What becomes meanwhile of training records that rovers still send."""
STOP_S = 4.0
"""How long stopping waits for the present update, so that a checkpoint can be written after it."""


class TrainingError(RoverError):
    """A command does not fit the state of training; the message says what to do."""


class Training:
    """The service that learns. Its methods are for the loop's thread, unless they say otherwise."""

    name = "training"

    def __init__(  # noqa: PLR0913 - what it connects
        self,
        settings: Settings,
        collection: Collection,
        design: Design,
        publisher: Publisher,
        registry: Registry,
        metrics: Metrics,
        *,
        specified: asyncio.Future[Run],
        post: Callable[[Callable[[], object]], None],
        replay: Callable[[Marks], object],
        on_state: Callable[[str], None],
        on_update: Callable[[UpdateResult, float], None],
    ) -> None:
        """Prepare.

        Args:
            settings: of the daemon.
            collection: fills the rollouts.
            design: of the network.
            publisher: takes what is exported.
            registry: knows the policies there were.
            metrics: for TensorBoard.
            specified: the run, once its robot and task are known.
            post: runs a function on the link thread.
            replay: feeds the stored records that are not behind the learner, before any new one; on the link thread.
            on_state: hears of each new state.
            on_update: hears of each update and the monotonic time of its end.

        """
        self.state = TRAINING if settings.train.autostart else STOPPED
        self.parts: Parts | None = None
        self.ready = asyncio.Event()
        """Warm: the first update will not be slower than the others."""
        self.last_update: dict[str, Any] = {}
        self.refused: tuple[str, ...] = ()
        self.latest_checkpoint = ""
        self.checkpoint_error = ""
        self._settings = settings
        self._collection = collection
        self._publisher = publisher
        self._registry = registry
        self._metrics = metrics
        self._post = post
        self._replay = replay
        self._on_state = on_state
        self._tell_update = on_update
        self._design = design
        self._specified = specified
        self._golden: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
        self._saved: list[Future[Path]] = []
        self._ranks_lost = 0
        self._suspects: tuple[str, ...] = ()
        self._behaviour_limit = settings.ppo.behaviour_limit

    @property
    def pulses(self) -> list[Pulse]:
        """The threads that must get further; none before there is a learner."""
        return [] if self.parts is None else [self.parts.worker.pulse, self.parts.pipeline.pulse]

    def wake_device(self) -> None:
        """Make a GPU's context before anything watches this process; without a GPU there is nothing to wait for."""
        if self._design.may_be_gpu:
            from trainerd.making import wake  # noqa: PLC0415 - torch

            wake(self._design.device)

    async def run(self) -> None:
        """Warm up, wait for the specs, learn; write a checkpoint when cancelled."""
        self._announce()
        if not self._specified.done():
            await asyncio.to_thread(_warm_up, self._design)
            self.ready.set()
        parts = await asyncio.to_thread(self._build, await self._specified)
        self.parts = parts
        worker = asyncio.create_task(parts.worker.run(), name=parts.worker.name)
        try:
            self._begin(parts)
            await asyncio.shield(worker)  # to be cancelled is to stop in order, see _end
        finally:
            await self._end(parts, worker)

    def start(self) -> bool:
        """Train, from now on or again; False if it does already; raises TrainingError when the budget is spent."""
        if self._is_spent():
            raise TrainingError("train start: the budget of decisions is spent; raise train.decisions and restart")
        if self.state == TRAINING:
            return False
        self._enter(TRAINING)
        if self.parts is not None:
            self.parts.worker.resume()
        return True

    def pause(self) -> bool:
        """Rest after the present minibatch and let the rovers stand; False if it rests already.

        What is under way fills the rollouts and then waits, unless an evaluation comes behind it: then it is unused.
        """
        if self.state != TRAINING:
            return False
        self._enter(PAUSED)
        if self.parts is not None:
            self.parts.worker.pause()
        return True

    def stop(self) -> bool:
        """Finish the present update, write a checkpoint, let the rovers stand; False if it has stopped already.

        Full rollouts wait for ``start``; what is under way beyond them is unused.
        """
        if self.state in {STOPPED, FINISHED}:
            return False
        self._enter(STOPPED)
        if self.parts is not None:
            self.parts.worker.hold()
            self.parts.worker.request_checkpoint()
        return True

    async def save(self, timeout_s: float = 20.0) -> Path:
        """Write a checkpoint between two updates; raises TrainingError where there is nothing to save or no time."""
        if self.parts is None:
            raise TrainingError("checkpoint save: nothing to save, no rover has connected yet")
        self._refuse_in_mid_update("checkpoint save")
        answer: Future[Path] = Future()
        self._saved.append(answer)
        self.parts.worker.request_checkpoint()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout_s)
        except asyncio.TimeoutError as error:
            raise TrainingError(f"checkpoint save: no update ended within {timeout_s:g} s") from error

    async def restore(self, path: Path, timeout_s: float = 30.0) -> int:
        """Go on from a checkpoint, whose weights become a new policy; return its update.

        Checkpoints of later updates belong to the line that is left; they are set aside, so a restart goes on here.

        Raises:
            TrainingError: it is not to be had, or an update does not end.
            CheckpointError: it is damaged or does not fit.

        """
        if self.parts is None:
            raise TrainingError("checkpoint restore: no rover has connected yet; start with --checkpoint-dir")
        self._refuse_in_mid_update("checkpoint restore")
        answer: Future[int] = Future()
        if not self.parts.worker.submit_job(partial(self._restore, self.parts, path, answer)):
            raise TrainingError("checkpoint restore: the learner is busy; pause training first")
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout_s)
        except asyncio.TimeoutError as error:
            raise TrainingError(f"checkpoint restore: no update ended within {timeout_s:g} s") from error

    def _refuse_in_mid_update(self, command: str) -> None:
        if self.parts is not None and self.parts.worker.is_resting:
            raise TrainingError(f"{command}: an update rests half done; train resume first")

    def filled(self, rollout: Rollout) -> None:
        """Take a filled rollout; called on the link thread."""
        parts = self.parts
        if parts is None:
            raise TrainingError("a rollout was filled before there was a learner")
        self._golden = golden_rows(rollout, parts.rollouts)
        if self._settings.train.frozen:
            self._collection.settle(rollout.steps, "frozen")
            parts.learner.marks = rollout.marks  # a restart need not feed them again
            parts.worker.request_checkpoint()
            parts.rollouts.release(rollout)
        else:
            parts.worker.submit(rollout)

    def is_behind(self, row: EpisodeRow) -> bool:
        """Tell whether no restart needs an episode, because the newest checkpoint is behind it; any thread may ask."""
        if self.parts is None or row.first_seq is None or row.last_seq is None:
            return False
        marks = self.parts.worker.saved_marks.get((row.rover_id, row.boot_id))
        return marks is not None and marks.next_missing(row.first_seq) > row.last_seq

    def causes(self) -> list[str]:
        """Say what is wrong with learning, for the health in the status."""
        causes = [f"training refuses the signal: {', '.join(self.refused)}"] if self.refused else []
        metrics = self.last_update.get("metrics", {})
        if self._suspects:
            gap = f"KL {metrics['behaviour_kl']:.2g} of its means, ppo.behaviour_limit allows {self._behaviour_limit:g}"
            who = ", ".join(self._suspects)
            causes.append(f"{who}: the policy acts otherwise than it was trained ({gap}); see the robot's runtime")
        if metrics.get("rolled_back"):
            causes.append("the last update was taken back: loss or gradient not finite; lower ppo.learning_rate")
        if self.checkpoint_error:
            causes.append(self.checkpoint_error)
        if self.parts is not None and self.parts.learner.ranks is not None and self.parts.learner.ranks.failed:
            causes.append(self.parts.learner.ranks.failed)
        if self.parts is not None and self.parts.pipeline.last_error:
            causes.append(self.parts.pipeline.last_error)
        return causes

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            log.info("training.entered", state=state)
            self._announce()

    def _announce(self) -> None:
        self._on_state(self.state)
        self._post(partial(self._collection.set_intake, INTAKE[self.state]))
        if self.state == FINISHED:
            self._post(self._collection.discard)

    def _is_spent(self) -> bool:
        budget = self._settings.train.decisions
        return bool(budget and self.parts is not None and self.parts.learner.decisions >= budget)

    def _build(self, run: Run) -> Parts:
        """Make what a robot needs; seconds, in a thread of its own."""
        from trainerd.learning.worker import Callbacks  # noqa: PLC0415 - torch: the link takes steps meanwhile
        from trainerd.making import make_parts  # noqa: PLC0415

        callbacks = Callbacks(
            on_ready=self._on_ready,
            on_update=self._on_update,
            on_checkpoint=self._on_checkpoint,
            on_error=self._on_checkpoint_error,
            on_unused=partial(self._settle, fate="unused"),
        )
        parts = make_parts(self._settings, self._design, run, self._registry, self._publisher, callbacks)
        self.latest_checkpoint = parts.resumed or self.latest_checkpoint
        return parts

    def _begin(self, parts: Parts) -> None:
        learner = parts.learner
        parts.pipeline.start()
        begin = partial(
            self._collection.begin,
            parts.rollouts,
            self.filled,
            staleness_limit=self._settings.ppo.staleness_limit,
            policy_counter=learner.policy_counter,
            decisions=learner.decisions,
            marks=learner.marks,
        )
        marks = learner.marks
        self._post(lambda: (begin(), self._replay(marks)))  # at once: nothing new comes in between
        self.last_update = {"update": learner.updates, "decisions": learner.decisions}
        if self._is_spent():
            self._enter(FINISHED)
        elif self.state == PAUSED:
            parts.worker.pause()
        elif self.state == STOPPED:
            parts.worker.hold()
        self.ready.set()

    async def _end(self, parts: Parts, worker: asyncio.Task[None]) -> None:
        """Let the present update finish, write a checkpoint, and stop both threads."""
        if not worker.done() and parts.learner.decisions > 0:
            parts.worker.hold()
            with contextlib.suppress(TrainingError):
                self.state = STOPPED
                await self.save(STOP_S)
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        await asyncio.to_thread(parts.pipeline.stop)

    def _on_ready(self, seconds: float) -> None:
        from trainerd.learning.autotune import table  # noqa: PLC0415 - torch is there by now

        trials = table(self.parts.learner.trials) if self.parts is not None else []
        if trials:
            log.info("learner.tuned", trials=trials)
        log.info("learner.warmed", seconds=round(seconds, 3))

    def _on_update(self, result: UpdateResult, snapshot: dict[str, npt.NDArray[np.float32]]) -> None:
        finished_s = time.monotonic()
        self.refused = result.refused
        facts = {"update": result.update, "decisions": result.decisions, "progress": result.progress}
        self.last_update = {**facts, "policy_counter": result.policy_counter, "metrics": result.metrics}
        rounded = {key: round(value, 5) for key, value in result.metrics.items()}
        log.info("update.finished", **facts, refused=list(result.refused), episodes=len(result.returns), **rounded)
        if result.suspects and result.suspects != self._suspects:
            hint = "nothing of theirs is learned from meanwhile; see the runtime and the quantisation on the robot"
            kl = round(result.metrics["behaviour_kl"], 4)
            log.error("behaviour.differs", rovers=list(result.suspects), behaviour_kl=kl, hint=hint)
        self._suspects = result.suspects
        self._tell_trouble(result)
        self._metrics.update(result.metrics, step=result.decisions)
        self._settle(result.steps, result.fate)
        self._tell_update(result, finished_s)
        if result.is_new_policy and self.parts is not None:
            self._post(partial(self._collection.set_policy_counter, result.policy_counter))
            self.parts.submit(result, snapshot, self._golden)
        if self._is_spent() and self.state != FINISHED:
            self._enter(FINISHED)
            if self.parts is not None:
                self.parts.worker.request_checkpoint()

    def _tell_trouble(self, result: UpdateResult) -> None:
        if result.metrics.get("rolled_back"):
            hint = "weights and optimiser are those before the update; lower ppo.learning_rate, look at the rewards"
            log.error("update.rolled_back", update=result.update, decisions=result.decisions, hint=hint)
        if result.metrics.get("minibatches_halved") and self.parts is not None:
            hint = "the gradient is the same, in more pieces; set ppo.micro_batch to begin with as few"
            log.warning("learner.out_of_memory", rows=self.parts.learner.inputs.rows_limit, hint=hint)

        lost = int(result.metrics.get("ranks_lost", 0))
        if lost > self._ranks_lost:
            hint = "the update was repeated without it; it is started anew; see its last words above"
            log.warning("learner.rank_lost", lost=lost, hint=hint)
        self._ranks_lost = max(lost, self._ranks_lost)

    def _settle(self, steps: Mapping[str, int], fate: str) -> None:
        self._post(partial(self._collection.settle, steps, fate))

    def _on_checkpoint(self, path: Path, is_rolling: bool) -> None:  # noqa: FBT001 - Worker calls it
        self.latest_checkpoint, self.checkpoint_error = path.name, ""
        (log.debug if is_rolling else log.info)("checkpoint.saved", checkpoint=path.name)
        if is_rolling:
            return
        waiting, self._saved = self._saved, []
        for each in waiting:
            if not each.done():
                each.set_result(path)

    def _on_checkpoint_error(self, error: RoverError) -> None:
        self.checkpoint_error = str(error)
        log.error("checkpoint.failed", error=str(error), hint="training goes on; see the disk")
        waiting, self._saved = self._saved, []
        for each in waiting:
            if not each.done():
                each.set_exception(TrainingError(str(error)))

    def _restore(self, parts: Parts, path: Path, answer: Future[int]) -> Iterator[None]:
        """Run as a job of the learner's thread."""
        yield from ()
        if answer.cancelled():  # who asked was told that it took too long
            return
        learner = parts.learner
        newest = self._registry.newest(self._publisher.run_id)
        counter = max(learner.policy_counter, newest.counter if newest else 0) + 1
        marks = learner.marks  # what was learned from on the line that is left is not fed again
        try:
            checkpoint.resume(path, learner)
        except RoverError as error:
            answer.set_exception(error)
            return
        learner.marks = marks
        learner.budget_decisions = self._settings.train.budget
        learner.renumber(counter)
        self._post(partial(self._collection.set_policy_counter, counter))
        parts.submit_present()
        self.latest_checkpoint = path.name
        log.info("checkpoint.restored", checkpoint=path.name, update=learner.updates, policy_counter=counter)
        try:
            aside = checkpoint.set_aside(path.parent, above=learner.updates)
        except RoverError as error:
            answer.set_exception(TrainingError(f"{path.name} is restored, but a restart would undo it: {error}"))
            return
        if aside is not None:
            log.info("checkpoints.set_aside", folder=str(aside), count=len(checkpoint.found(aside)))
        parts.worker.save()
        answer.set_result(learner.updates)


def _warm_up(design: Design) -> None:
    """Pay now what the first optimiser step and the first export would cost a waiting rover."""
    import torch  # noqa: PLC0415 - a second

    from trainerd.learning.worker import warm_up  # noqa: PLC0415 - as above
    from trainerd.making import make_parts  # noqa: F401, PLC0415 - as above

    warm_up(torch.device(design.device))
