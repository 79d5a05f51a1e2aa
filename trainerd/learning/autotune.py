"""Choose how the encoder is computed while learning: try each way on the run's own network, take the fastest right one.

A way is right where 50 optimiser steps lead to nearly the weights and losses of float32 (without TF32).
"""

from __future__ import annotations

import copy
import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainerd.learning.inputs import NO_BFLOAT16, Inputs, Way, architecture, true_float32
from trainerd.learning.ppo import ppo_update
from trainerd.learning.rollout import Rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainerd.learning.learner import Learner
    from trainerd.learning.networks import PolicyNetwork

STEPS = 50
"""Optimiser steps after which a way is compared with float32."""
CPU_ROWS = 8
"""Minibatch of the trials on a CPU; a GPU has the run's own."""
MINIBATCHES = 2
"""Minibatches in the rollout of a trial."""
WEIGHT_BOUND = 0.7
"""Largest distance from float32's weights, as a share of the way that those have gone: half of what two descents have
that have nothing in common."""
LOSS_BOUND = 0.1
"""Largest difference of the mean losses from float32's, as a share of those."""


@dataclass(frozen=True)
class Trial:
    """What came of one way."""

    way: Way
    rows_per_s: float = 0.0
    """Decisions through forward, backward and optimiser, each second."""
    weight_difference: float = math.inf
    loss_difference: float = math.inf
    fault: str = ""
    """Why it could not be tried."""

    @property
    def is_right(self) -> bool:
        """True where it agrees with float32."""
        return not self.fault and self.weight_difference <= WEIGHT_BOUND and self.loss_difference <= LOSS_BOUND


def ways(gpu: str) -> list[Way]:
    """Return what to try on a GPU (its architecture), or on a CPU (``gpu`` empty); plain float32 comes first."""
    if not gpu:
        return [Way(), Way("bfloat16")]
    precisions = [
        each for each in ("none", "bfloat16", "float16") if each != "bfloat16" or not gpu.startswith(NO_BFLOAT16)
    ]
    modes = ["", "default", "reduce-overhead"]
    return [Way(), *(Way(precision, channels_last=True, compiled=mode) for mode in modes for precision in precisions)]


def chosen(trials: Sequence[Trial]) -> Way:
    """Return the fastest way that is right; plain float32 where there is none."""
    right = [trial for trial in trials if trial.is_right]
    return max(right, key=lambda trial: trial.rows_per_s).way if right else Way()


def tune(learner: Learner, *, steps: int = STEPS, on_trial: Callable[[], None] = lambda: None) -> list[Trial]:
    """Try every way that suits the learner's device; its own weights are left alone. Takes seconds to minutes.

    ``on_trial`` is called as each trial begins and after each of its steps. Where float32 itself fails there is nothing
    to compare with, and no other way is tried.
    """
    minibatch = CPU_ROWS if learner.device.type == "cpu" else learner.ppo_settings.minibatch
    rollout = _practice(learner, minibatch * MINIBATCHES)
    trials: list[Trial] = []
    reference: _Outcome | None = None
    for way in ways(architecture(learner.device)):
        on_trial()
        is_reference = reference is None
        try:
            outcome = _descend(learner, rollout, way, minibatch, steps, is_reference=is_reference, on_step=on_trial)
        except Exception as error:  # noqa: BLE001 - a compiler or driver that lacks something: the way is not taken
            trials.append(Trial(way, fault=f"{type(error).__name__}: {error}".splitlines()[0][:200]))
            if is_reference:
                break
            continue
        reference = reference or outcome
        differences = (reference.weight_difference(outcome), reference.loss_difference(outcome))
        trials.append(Trial(way, outcome.rows_per_s, *differences))
    return trials


def prepare(device: torch.device) -> None:
    """Let the library of convolutions find its fastest kernels where that is quick (CUDA), and not where it stalls.

    On ROCm MIOpen's full search takes minutes at every new shape; its fast mode takes the first kernel that fits.
    """
    if device.type != "cuda":
        return
    if torch.version.hip:
        os.environ.setdefault("MIOPEN_FIND_MODE", "FAST")
    else:
        torch.backends.cudnn.benchmark = True


def table(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Return the trials for a log: plain values, the taken one marked."""
    taken = chosen(trials)
    return [
        {
            "way": trial.way.name,
            "rows_per_s": round(trial.rows_per_s, 1),
            "weight_difference": round(trial.weight_difference, 4) if not trial.fault else None,
            "loss_difference": round(trial.loss_difference, 4) if not trial.fault else None,
            "fault": trial.fault,
            "is_taken": trial.way == taken,
        }
        for trial in trials
    ]


@dataclass(frozen=True)
class _Outcome:
    """Weights and losses after some steps."""

    start: Tensor
    weights: Tensor
    losses: tuple[float, float]
    rows_per_s: float

    def weight_difference(self, other: _Outcome) -> float:
        """Return how far the other's weights are from these, as a share of the way from the start."""
        gone = (self.weights - self.start).norm()
        return float((other.weights - self.weights).norm() / gone.clamp(min=1e-12))

    def loss_difference(self, other: _Outcome) -> float:
        """Return how far the other's losses are from these, as a share of the value loss."""
        scale = max(abs(self.losses[1]), 1e-12)
        return max(abs(one - two) / scale for one, two in zip(self.losses, other.losses, strict=True))


def _descend(
    learner: Learner,
    rollout: Rollout,
    way: Way,
    minibatch: int,
    steps: int,
    *,
    is_reference: bool,
    on_step: Callable[[], None],
) -> _Outcome:
    """Take the steps in this way on a copy of the network, then some more against the clock.

    A reference's steps are without TF32; its speed is measured as the run would compute.
    """
    if way.compiled:
        torch.compiler.reset()
    network = copy.deepcopy(learner.network)
    set_layout(network, way)
    inputs = Inputs(learner.transform, learner.device, "none")
    inputs.use(way)
    ppo = learner.ppo_settings
    optimizer = torch.optim.Adam(network.parameters(), lr=ppo.learning_rate, eps=ppo.adam_eps, fused=True)
    start = _flat(network)

    def update(epochs: int) -> tuple[dict[str, float], float]:
        settings = replace(ppo, minibatch=minibatch, epochs=epochs, kl_stop=0.0, micro_batch=0)
        running = ppo_update(
            network,
            optimizer,
            rollout,
            inputs,
            settings,
            cloning=0.0,
            generator=torch.Generator().manual_seed(0),
            distribution=learner.distribution,
        )
        for _ in range(math.ceil(rollout.rows / inputs.chunk)):
            next(running)
        began = time.perf_counter()
        while True:
            try:
                next(running)
                on_step()
            except StopIteration as stop:
                return stop.value, time.perf_counter() - began

    with true_float32() if is_reference else nullcontext():
        metrics, _ = update(math.ceil(steps / MINIBATCHES))
    weights = _flat(network)
    if torch.equal(weights, start):
        raise ArithmeticError("no step gave a finite gradient")
    epochs = math.ceil(steps / MINIBATCHES / 5)
    _, seconds = update(epochs)
    losses = (metrics.get("policy_loss", math.nan), metrics.get("value_loss", math.nan))
    return _Outcome(start, weights, losses, rollout.rows * epochs / seconds)


def set_layout(network: PolicyNetwork, way: Way) -> None:
    """Lay the encoder's weights out as a way wants them."""
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    network.encoder.to(memory_format=layout)  # type: ignore[call-overload]


def _flat(network: torch.nn.Module) -> Tensor:
    return torch.cat([each.detach().float().contiguous().reshape(-1) for each in network.parameters()])


def _practice(learner: Learner, rows: int) -> Rollout:
    """Make up a rollout of the run's shapes, in one-decision episodes: the brighter it is, the better is a large u.

    There has to be something to learn, for else the gradient is noise and so is every difference of weights.
    """
    rng = np.random.default_rng(0)
    rollout = Rollout.allocate(learner.robot, learner.task, learner.transform, rows)
    brightness = rng.random(rows, np.float32)
    for store in rollout.images.values():
        high = 255 if store.dtype == np.uint8 else 9000
        for row in range(rows):
            store[row] = rng.integers(0, 1 + int(high * brightness[row]), store.shape[1:], store.dtype)
    for column, elements in ((rollout.state, learner.robot.state), (rollout.task, learner.task.features)):
        for place, element in enumerate(elements):
            column[:rows, place] = rng.uniform(element.low, element.high, rows)
    rollout.rows = rows
    log_std = learner.network.log_std.detach().cpu().numpy()
    mean = np.zeros_like(rollout.mean[0])
    for row in range(rows):
        u = learner.distribution.sample(mean, log_std, rng)
        rollout.u[row], rollout.mean[row], rollout.log_std[row] = u, mean, log_std
        rollout.log_prob[row] = learner.distribution.log_prob_numpy(u, mean, log_std)
        rollout.terminate(row)
    rollout.reward[:rows] = (2.0 * brightness - 1.0) * (1.0 + rollout.u[:rows, 0])
    rollout.policy_weight[:rows] = rollout.value_weight[:rows] = 1.0
    return rollout
