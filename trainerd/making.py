"""Make what a robot needs at the trainer: the learner, its thread, its rollouts, and what exports its policies.

This module imports torch, a second and more. trainerd imports it in a thread once it listens, so that a restart keeps
no rover waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnxscript  # noqa: F401 - seconds, wanted here and not at the first export
import torch

from protocol.errors import RoverError
from protocol.node.log import get_logger
from trainerd.learning import checkpoint
from trainerd.learning.learner import Learner
from trainerd.learning.ranks import Plan, Ranks
from trainerd.learning.rollout import Rollouts
from trainerd.learning.worker import Callbacks, Worker
from trainerd.release.export import Exporter
from trainerd.release.pipeline import Draft, Pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from trainerd.design import Design
    from trainerd.learning.learner import UpdateResult
    from trainerd.release.publish import Publisher
    from trainerd.release.registry import Registry
    from trainerd.run import Run
    from trainerd.settings import Settings

    FloatArray = npt.NDArray[np.float32]

log = get_logger()


class MakingError(RoverError):
    """What a run needs cannot be made."""


@dataclass
class Parts:
    """What exists once the robot and the task are known."""

    learner: Learner
    rollouts: Rollouts
    worker: Worker
    pipeline: Pipeline
    resumed: str
    """Name of the checkpoint that it went on from; empty for none."""

    def submit(
        self, result: UpdateResult, snapshot: Mapping[str, FloatArray], golden: tuple[FloatArray, FloatArray] | None
    ) -> None:
        """Have an update's policy exported and published."""
        name = f"ppo_update_{result.update}"
        facts = (result.policy_counter, result.update, result.decisions)
        self.pipeline.submit(Draft(snapshot, *facts, golden, result.metrics, name))

    def submit_present(self) -> None:
        """Have the learner's present weights published; in the learner's thread."""
        self.pipeline.submit(_present(self.learner))


def wake(device: str) -> None:
    """Make the GPU's context, which can hold the interpreter for seconds: later it would look like a hang."""
    torch.zeros(1, device=device)


def make_parts(
    settings: Settings, design: Design, run: Run, registry: Registry, publisher: Publisher, callbacks: Callbacks
) -> Parts:
    """Make everything, resume, and publish a first policy: a rover never drives without one. Takes seconds.

    Raises:
        RoverError: the specs are not known or do not fit the checkpoint, or no policy can be published.

    """
    if run.specs is None:
        raise MakingError(f"{run.run_id}: robot and task are not known")
    robot, task = run.specs
    transform = design.transform(robot, task)
    learner = Learner(
        robot,
        task,
        transform,
        design.build_encoder,
        network=settings.network,
        ppo=settings.ppo,
        seed=settings.seed,
        budget_decisions=settings.train.budget,
        device=design.device,
        ranks=_ranks(settings, design),
    )
    resumed = "" if settings.train.fresh else _resume(settings, learner)
    rollouts = Rollouts(robot, task, transform, settings.ppo.rollout)
    exporter = Exporter(learner.network, robot=robot, task=task, transform=transform, run_id=run.run_id)
    pipeline = Pipeline(exporter, publisher)
    pipeline.prepare()  # not later: the first export cannot run beside learning, and a rover waits for it
    _publish_first(learner, pipeline, registry, publisher, is_resumed=bool(resumed))
    worker = Worker(
        learner,
        rollouts,
        callbacks,
        checkpoint_folder=settings.checkpoint_dir,
        checkpoint_interval=settings.checkpoint_interval,
        threads=settings.threads or torch.get_num_threads(),
    )
    return Parts(learner, rollouts, worker, pipeline, resumed)


def _ranks(settings: Settings, design: Design) -> Ranks | None:
    if len(settings.devices) < 2:
        return None
    return Ranks(Plan(settings.devices, *design.encoder, threads=settings.threads or 1))


def _resume(settings: Settings, learner: Learner) -> str:
    newest, reasons = checkpoint.latest(settings.checkpoint_dir)
    for reason in reasons:
        log.warning("checkpoint.skipped", reason=reason, hint="an older one is used; remove the damaged folder")
    if newest is None:
        return ""
    checkpoint.resume(newest.path, learner)
    learner.budget_decisions = settings.train.budget
    log.info("checkpoint.resumed", checkpoint=newest.path.name, update=learner.updates, decisions=learner.decisions)
    return newest.path.name


def _publish_first(
    learner: Learner, pipeline: Pipeline, registry: Registry, publisher: Publisher, *, is_resumed: bool
) -> None:
    """Publish the learner's weights, unless the newest policy has them."""
    newest = registry.newest(publisher.run_id)
    if newest is not None:
        is_same = (newest.counter, newest.manifest.update) == (learner.policy_counter, learner.updates)
        if is_resumed and is_same and newest.manifest.decisions == learner.decisions:
            return
        learner.renumber(max(newest.counter, learner.policy_counter) + 1)
    is_released = pipeline.release(_present(learner))
    if not is_released and newest is None:
        raise MakingError(f"no policy can be published, so no rover could drive: {pipeline.last_error}")


def _present(learner: Learner) -> Draft:
    return Draft(learner.snapshot(), learner.policy_counter, learner.updates, learner.decisions, allow_unchanged=True)
