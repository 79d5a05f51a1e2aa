"""The learner: network, optimiser, schedules and counters, and what one rollout does to them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from protocol.errors import RoverError
from protocol.ranges import Ranges
from protocol.spec import canonical_hash
from trainerd.learning.autotune import Trial, chosen, prepare, set_layout, tune
from trainerd.learning.distributions import distribution_of
from trainerd.learning.gae import TERMINATED, gae
from trainerd.learning.inputs import Inputs, Way
from trainerd.learning.networks import PolicyNetwork
from trainerd.learning.normalisers import RunningMoments, discounted_returns
from trainerd.learning.ppo import ALONE, ExchangeError, copies, ppo_update, restore
from trainerd.learning.rollout import Rollout
from trainerd.learning.settings import adapt, kl_target_at, learning_rate_at, lowered, std_at

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from protocol.spec import RobotSpec, TaskSpec
    from protocol.transform import InputTransform
    from trainerd.learning.assembler import Marks
    from trainerd.learning.ppo import Exchange
    from trainerd.learning.ranks import Ranks
    from trainerd.learning.settings import NetworkSettings, PpoSettings

FloatArray = npt.NDArray[np.float32]

MOST_REMEMBERED = 16
"""Policies whose weights are kept to compare what drove with."""
GAP_ROWS, LEAST_GAP_ROWS = 64, 8
"""Rows of a rollout that are compared, and of each robot at least."""
FREE_SETTINGS = ("micro_batch", "behaviour_limit", "allow_flat_reward", "staleness_limit")
"""Settings of PPO that may change between a checkpoint and the run that goes on from it."""


class LearnerError(RoverError):
    """A saved learner does not fit the one that should go on from it."""


@dataclass(frozen=True)
class UpdateResult:
    """What became of a rollout."""

    update: int
    """PPO updates so far; unchanged where the rollout only fitted the normaliser or was refused."""
    policy_counter: int
    decisions: int
    """Decisions that came to the learner so far."""
    progress: float
    metrics: dict[str, float]
    fitted: bool = False
    """The rollout fitted the input normaliser."""
    refused: tuple[str, ...] = ()
    """Names of alarms for which the learner did not train on it."""
    suspects: tuple[str, ...] = ()
    """Robots on which the policy acted otherwise than here; nothing of theirs was learned from."""
    returns: tuple[float, ...] = ()
    """Returns of the episodes that ended in the rollout."""
    successes: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    """The rollout's steps, as ``Rollout.steps`` has them."""

    @property
    def fate(self) -> str:
        """What became of the rollout's steps: one of the assembler's fates."""
        if self.refused:
            return "alarmed"
        if "rolled_back" not in self.metrics:
            return "normaliser"
        return "rolled_back" if self.metrics["rolled_back"] else "trained"

    @property
    def is_new_policy(self) -> bool:
        """True where weights changed, so that a policy is worth publishing."""
        return not self.refused and self.metrics.get("rolled_back", 0.0) == 0.0


@dataclass
class LearnerState:
    """Everything that a resumed run needs; tensors by name, the rest plain JSON."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    counters: dict[str, Any] = field(default_factory=dict)


class Learner:
    """Learn a policy for one robot and task from rollouts.

    One thread only, that of the GPU. Equal seeds, rollouts and thread counts give equal weights on one machine.
    """

    def __init__(  # noqa: PLR0913 - what a run is
        self,
        robot: RobotSpec,
        task: TaskSpec,
        transform: InputTransform,
        build_encoder: Callable[[tuple[int, int, int]], nn.Module],
        *,
        network: NetworkSettings,
        ppo: PpoSettings,
        seed: int,
        budget_decisions: int,
        device: str = "cpu",
        ranks: Ranks | None = None,
    ) -> None:
        """Make an untrained learner.

        ``build_encoder`` is an encoder plugin's ``build`` with its settings bound. Schedules reach their end after
        ``budget_decisions``. ``ranks`` share the work of each update; ``warm_up`` starts them, ``close`` ends them.
        """
        self.robot, self.task, self.transform = robot, task, transform
        self.network_settings, self.ppo_settings = network, ppo
        self.budget_decisions = budget_decisions
        self.device = torch.device(device)
        self.updates = self.policy_counter = self.decisions = 0
        self.is_fitted = network.normaliser_frames == 0 or not transform.planes
        self.learning_rate = ppo.learning_rate
        self.distribution = distribution_of(robot)
        shape = (transform.channels, transform.height, transform.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = PolicyNetwork(
                build_encoder(shape),
                shape,
                transform.size,
                len(robot.action),
                network,
                has_std=self.distribution.has_std,
            )
        self.network.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=ppo.learning_rate, eps=ppo.adam_eps, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.inputs = Inputs(transform, self.device, ppo.autocast)
        self.ranks = ranks
        self.trials: list[Trial] = []
        """What the autotune of this process tried; empty where the settings or a checkpoint say how to compute."""
        self._is_tuned = ppo.autocast != "auto" or not transform.planes
        prepare(self.device)
        self._statistics: dict[str, RunningMoments] = {}
        """Of the vector input and of discounted returns, where they are normalised."""
        if network.normalise_vector:
            self._statistics["vector"] = RunningMoments(transform.size)
        if ppo.normalise_reward:
            self._statistics["return"] = RunningMoments(1)
        self.marks: Marks = {}
        """Records that are behind this learner, by (rover_id, boot_id): not to be fed to it again."""
        self._remembered: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._set_std()
        self._remember()

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, at most 1."""
        return min(1.0, self.decisions / self.budget_decisions)

    @property
    def is_spent(self) -> bool:
        """True once the budget is spent: the network is final."""
        return self.decisions >= self.budget_decisions

    @property
    def settings_hash(self) -> str:
        """Sha256 (hex) of everything that a resumed run must share."""
        return canonical_hash(
            {
                "network": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.network_settings).items()},
                "ppo": {k: v for k, v in vars(self.ppo_settings).items() if k not in FREE_SETTINGS},
                "robot": self.robot.hash,
                "task": self.task.hash,
                "transform": self.transform.hash,
            }
        )

    def warm_up(self, beat: Callable[[], None] = lambda: None) -> None:
        """Compile and load everything that the first update needs, seconds that belong before ``ready``.

        ``beat`` is called between ways to compute that are tried: each may take long.
        """
        if self.ranks is not None:
            self.ranks.start(self)
        rollout = Rollout.allocate(self.robot, self.task, self.transform, 1)
        rollout.rows = 1
        self.inputs.load(rollout, self.network)
        self.inputs.gather.images(rollout, np.arange(1))
        nothing, end = np.zeros(1, np.float32), np.array([TERMINATED])
        gae(nothing, nothing, end, gamma=0.0, lam=0.0)
        discounted_returns(nothing, end, 0.0)
        with torch.no_grad():
            for precise in (True, False):
                self.inputs.features(self.network, np.arange(1), precise=precise)
        self._choose_way(beat)

    def use(self, way: Way) -> None:
        """Compute the encoder in this way from now on."""
        set_layout(self.network, way)
        for parameter, moments in self.optimizer.state.items():
            moments.update({k: _laid_out(v, parameter) for k, v in moments.items()})
        self.inputs.use(way)

    def _choose_way(self, beat: Callable[[], None] = lambda: None) -> None:
        if not self._is_tuned:
            self.trials = tune(self, on_trial=beat)
            self.use(chosen(self.trials))
            self._is_tuned = True

    def close(self) -> None:
        """End what was started for it."""
        if self.ranks is not None:
            self.ranks.close()

    def fit_normaliser(self, rollout: Rollout) -> None:
        """Fit the per-pixel normaliser to the rollout's first frames, and freeze it."""
        frames = min(rollout.rows, self.network_settings.normaliser_frames)
        total = np.zeros(self.network.image_shape, np.float64)
        squares = np.zeros(self.network.image_shape, np.float64)
        for start in range(0, frames, 64):
            rows = np.arange(start, min(start + 64, frames))
            image = np.stack([self.transform.image({k: v[r] for k, v in rollout.images.items()}) for r in rows])
            total += image.sum(axis=0, dtype=np.float64)
            squares += np.square(image, dtype=np.float64).sum(axis=0)
        mean = total / frames
        std = np.sqrt(np.maximum(squares / frames - mean * mean, 0.0))
        self.network.fit_normaliser(mean.astype(np.float32), std.astype(np.float32))
        self.is_fitted = True

    def update(self, rollout: Rollout) -> Generator[None, None, UpdateResult]:
        """Learn from a rollout; yields after each minibatch and returns what came of it (``StopIteration.value``).

        The first frames only fit the normaliser: a rollout that holds no more than those is not trained on. A rollout
        with alarms (a reward that never changes) is refused unless the settings allow it; so is one whose policy acted
        otherwise on the robot than it does here.
        """
        began = time.perf_counter()
        self._choose_way()
        if rollout.alarms and not self.ppo_settings.allow_flat_reward:
            return self._result(rollout, {}, refused=rollout.alarms)
        gap, suspects = self._behaviour_gap(rollout)
        if not self._leave_out(rollout, suspects):
            return self._result(rollout, gap, refused=("behaviour",), suspects=suspects)
        is_fitting = not self.is_fitted
        if is_fitting:
            self.fit_normaliser(rollout)
        began_at = self.progress
        self.decisions += rollout.rows
        statistics = {name: each.to_map() for name, each in self._statistics.items()}
        self._fit_statistics(rollout)
        metrics: dict[str, float] = {}
        if not is_fitting or rollout.rows > self.network_settings.normaliser_frames:
            metrics = yield from self._train(rollout, gap, began_at)
            self.updates += 1
        self._set_std()
        if metrics.get("rolled_back", 0.0) == 0.0:
            self.policy_counter += 1
            self._remember()
        else:
            self._set_statistics(statistics)
        metrics["seconds"] = time.perf_counter() - began
        return self._result(rollout, metrics, fitted=is_fitting, suspects=suspects)

    def snapshot(self) -> dict[str, FloatArray]:
        """Copy the network to float32 arrays by name, ``log_std`` among them."""
        return self.network.snapshot()

    def renumber(self, counter: int) -> None:
        """Call the present weights the policy of another counter, as which they are published."""
        self.policy_counter = counter
        self._remember()

    def capture(self) -> LearnerState:
        """Return everything that a resumed run needs, as copies on the CPU."""
        moments = {}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                moments[f"{name}:{key}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.network.state_dict().items()
        }
        counters = {
            "updates": self.updates,
            "policy_counter": self.policy_counter,
            "decisions": self.decisions,
            "is_fitted": self.is_fitted,
            "learning_rate": self.learning_rate,
            "budget_decisions": self.budget_decisions,
            "generator": bytes(self.generator.get_state().numpy()).hex(),
            "settings_hash": self.settings_hash,
            "statistics": {name: each.to_map() for name, each in self._statistics.items()},
            "way": {**asdict(self.inputs.way), "device": self.device.type} if self._is_tuned else {},
            "loss_scale": self.inputs.loss_scale.to_list() if self.inputs.loss_scale is not None else [],
            "marks": [[*key, ranges.to_list()] for key, ranges in sorted(self.marks.items())],
        }
        return LearnerState(weights, moments, counters)

    def restore(self, state: LearnerState) -> None:
        """Go on from a captured state, bit for bit.

        Raises:
            LearnerError: names of weights differ, or the settings, robot, task or transform do.

        """
        ours, theirs = set(self.network.state_dict()), set(state.weights)
        if ours != theirs:
            message = f"weights: missing {sorted(ours - theirs)}, unexpected {sorted(theirs - ours)}"
            raise LearnerError(message)
        if state.counters["settings_hash"] != self.settings_hash:
            raise LearnerError("settings: the state was saved with other ones; start a new run, or restore them")
        self.network.load_state_dict(state.weights, strict=True)
        self.optimizer.state.clear()
        for name, parameter in self.network.named_parameters():
            moments = {k.split(":", 1)[1]: v for k, v in state.optimizer.items() if k.split(":", 1)[0] == name}
            if moments:
                self.optimizer.state[parameter] = {k: _laid_out(v, parameter) for k, v in moments.items()}
        counters = state.counters
        self.updates, self.policy_counter = counters["updates"], counters["policy_counter"]
        self.decisions, self.is_fitted = counters["decisions"], counters["is_fitted"]
        self.learning_rate, self.budget_decisions = counters["learning_rate"], counters["budget_decisions"]
        self.generator.set_state(torch.from_numpy(np.frombuffer(bytes.fromhex(counters["generator"]), np.uint8).copy()))
        self._set_statistics(counters["statistics"])
        way = dict(counters["way"])
        if self.ppo_settings.autocast == "auto" and way.pop("device", "") == self.device.type:
            self.use(Way(**way))
            self._is_tuned = True
        if self.inputs.loss_scale is not None and counters["loss_scale"]:
            self.inputs.loss_scale.set(counters["loss_scale"])
        self.marks = {(rover, boot): Ranges(pairs) for rover, boot, pairs in counters.get("marks", [])}
        self._remembered.clear()
        self._remember()

    def _train(
        self, rollout: Rollout, gap: dict[str, float], began_at: float
    ) -> Generator[None, None, dict[str, float]]:
        progress, settings = self.progress, self.ppo_settings
        learning_rate = learning_rate_at(settings, self.learning_rate, began_at)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        cloning = settings.demonstration_weight * (1.0 - progress)
        metrics = yield from self._improve(rollout, cloning if rollout.cloning_weight[: rollout.rows].any() else 0.0)
        std = float(self.network.log_std.detach().exp().mean())
        if metrics.get("optimiser_steps"):
            self.learning_rate = adapt(settings, self.learning_rate, metrics["approx_kl"], progress)
        elif metrics["rolled_back"]:
            self.learning_rate = lowered(settings, self.learning_rate, 2.0)
        return {**metrics, **gap, "lr": learning_rate, "kl_target": kl_target_at(settings, progress), "std": std}

    def _improve(self, rollout: Rollout, cloning: float) -> Generator[None, None, dict[str, float]]:
        """Run the update together with the other ranks, or alone where there are none or one of them is lost."""
        if self.ranks is None:
            return (yield from self._ppo(rollout, cloning, ALONE))
        before, drawn = copies(self.network, self.optimizer), self.generator.get_state()
        try:
            exchange = self.ranks.begin(self, rollout, cloning=cloning, reward_scale=self._reward_scale)
            metrics = yield from self._ppo(rollout, cloning, exchange)
            self.ranks.finish()
        except ExchangeError:
            restore(self.network, self.optimizer, before)
            self.generator.set_state(drawn)
            self.ranks.restart()
            metrics = yield from self._ppo(rollout, cloning, ALONE)
            return {**metrics, "ranks": 1.0, "ranks_lost": float(self.ranks.lost)}
        return {**metrics, "ranks": float(exchange.world), "ranks_lost": float(self.ranks.lost)}

    def _ppo(self, rollout: Rollout, cloning: float, exchange: Exchange) -> Generator[None, None, dict[str, float]]:
        return ppo_update(
            self.network,
            self.optimizer,
            rollout,
            self.inputs,
            self.ppo_settings,
            cloning=cloning,
            generator=self.generator,
            distribution=self.distribution,
            exchange=exchange,
            reward_scale=self._reward_scale,
        )

    @property
    def _reward_scale(self) -> float:
        moments = self._statistics.get("return")
        return self.ppo_settings.reward_scale / (float(moments.std[0]) if moments is not None else 1.0)

    def _fit_statistics(self, rollout: Rollout) -> None:
        """Take in a rollout's vectors and returns, before anything is computed from them."""
        if "vector" in self._statistics:
            self._statistics["vector"].add(self.inputs.gather.vectors(rollout, rollout.used))
        if "return" in self._statistics:
            rows = rollout.rows
            is_own = rollout.cloning_weight[:rows] == 0.0  # what a human was paid says nothing of the policy's returns
            reward = np.where(is_own, rollout.reward[:rows], np.float32(0.0))
            returns = discounted_returns(reward, rollout.successor[:rows], self.ppo_settings.gamma)
            self._statistics["return"].add(returns[is_own, None])
        self._show_statistics()

    def _set_statistics(self, statistics: Mapping[str, Any]) -> None:
        self._statistics = {name: RunningMoments.from_map(each) for name, each in statistics.items()}
        self._show_statistics()

    def _show_statistics(self) -> None:
        """Bring the vector's statistics into the network."""
        moments = self._statistics.get("vector")
        if moments is not None:
            self.network.fit_vector(moments.mean.astype(np.float32), moments.std.astype(np.float32))

    @torch.no_grad()
    def _behaviour_gap(self, rollout: Rollout) -> tuple[dict[str, float], tuple[str, ...]]:
        """Compare recorded behaviour with that of the same policy version here: what quantisation or skew did to it.

        Returns:
            ``behaviour_gap`` (mean absolute difference of log-probs) and ``behaviour_kl`` (of what drove to what is
            remembered), each that of the robot where it is worst, nothing where no version is remembered; and the
            robots that are beyond ``behaviour_limit``.

        """
        limit, gaps, suspects = self.ppo_settings.behaviour_limit, [], []
        share = max(LEAST_GAP_ROWS, GAP_ROWS // max(1, len(rollout.rovers)))
        used = slice(0, rollout.rows)
        is_known = np.isin(rollout.policy_counter[used], list(self._remembered)) & (rollout.policy_weight[used] > 0)
        for place, rover_id in enumerate(rollout.rovers):
            rows = np.flatnonzero(is_known & (rollout.rover[used] == place))
            if len(rows) == 0:
                continue
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, share).astype(np.int64))]
            gap, kl = self._gap_of(rollout, rows)
            gaps.append((gap, kl))
            if 0.0 < limit < kl:
                suspects.append(rover_id)
        worst = [max(each) for each in zip(*gaps, strict=True)]
        return dict(zip(("behaviour_gap", "behaviour_kl"), worst, strict=False)), tuple(suspects)

    def _gap_of(self, rollout: Rollout, rows: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Return the mean absolute difference of log-probs, and the mean KL, of some rows."""
        gap = kl = 0.0
        for version in np.unique(rollout.policy_counter[rows]):
            own = rows[rollout.policy_counter[rows] == version]
            mean = self._means_of(self._remembered[int(version)], rollout, own)
            u, theirs, log_std, recorded = (
                torch.from_numpy(column[own]).to(self.device)
                for column in (rollout.u, rollout.mean, rollout.log_std, rollout.log_prob)
            )
            gap += float((self.distribution.log_prob(u, mean, log_std) - recorded).abs().sum())
            kl += float(self.distribution.kl(theirs, log_std, mean, log_std).sum())
        return gap / len(rows), kl / len(rows)

    def _leave_out(self, rollout: Rollout, suspects: tuple[str, ...]) -> bool:
        """Let nothing be learned from what some robots' policies did; return False where nothing else is there."""
        if not suspects:
            return True
        rows = slice(0, rollout.rows)
        is_theirs = np.isin(rollout.rover[rows], [rollout.rovers.index(name) for name in suspects])
        for weight in (rollout.policy_weight, rollout.value_weight):
            weight[rows][is_theirs] = 0.0
        return bool(rollout.policy_weight[rows].any() or rollout.cloning_weight[rows].any())

    def _means_of(self, weights: dict[str, Tensor], rollout: Rollout, rows: npt.NDArray[np.int64]) -> Tensor:
        means = []
        for part in np.array_split(rows, -(-len(rows) // self.inputs.chunk)):
            image = torch.from_numpy(self.inputs.gather.images(rollout, part)).to(self.device)
            vector = torch.from_numpy(self.inputs.gather.vectors(rollout, part)).to(self.device)
            means.append(torch.func.functional_call(self.network, weights, (image, vector))[0])
        return torch.cat(means)

    def _remember(self) -> None:
        """Keep the newest policies, so that the recorded behaviour of those can be checked."""
        state = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self._remembered[self.policy_counter] = state
        while len(self._remembered) > min(MOST_REMEMBERED, self.ppo_settings.staleness_limit + 1):
            self._remembered.popitem(last=False)

    def _set_std(self) -> None:
        if self.network_settings.std == "schedule" and self.distribution.has_std:
            self.network.set_std(std_at(self.network_settings, self.progress))

    def _result(
        self,
        rollout: Rollout,
        metrics: dict[str, float],
        *,
        fitted: bool = False,
        refused: tuple[str, ...] = (),
        suspects: tuple[str, ...] = (),
    ) -> UpdateResult:
        self.marks = rollout.marks
        return UpdateResult(
            update=self.updates,
            policy_counter=self.policy_counter,
            decisions=self.decisions,
            progress=self.progress,
            metrics=metrics,
            fitted=fitted,
            refused=refused,
            suspects=suspects,
            returns=tuple(e.return_ for e in rollout.episodes),
            successes=sum(e.success for e in rollout.episodes),
            steps=dict(rollout.steps),
        )


def _laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """Copy a moment to its parameter's device and layout: the fused optimiser walks both in the order of memory."""
    if moment.shape != parameter.shape:
        return moment.clone().to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(moment)


def choose_device(wanted: str) -> str:
    """Return ``cuda`` (ROCm answers to that name as well) where there is one and ``auto`` was wanted, else ``cpu``.

    Raises:
        LearnerError: a device was asked for that this machine does not have.

    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise LearnerError(f"device {wanted}: torch {torch.__version__} sees no GPU; set learner.device to auto or cpu")
    return wanted
