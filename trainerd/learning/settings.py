"""The options of learning, with the classic hyperparameters of PPO as defaults, and the demo's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.node.config import option

PRECISIONS = ("none", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class NetworkSettings:
    """What the policy network is made of."""

    encoder: str = option("rgbd", help="encoder plugin that turns camera planes into features")
    proprio_hidden: tuple[int, ...] = option((64, 64), help="layer sizes of the vector branch", low=1)
    head_hidden: tuple[int, ...] = option((128, 64), help="hidden layer sizes of the policy and the value head", low=1)
    activation: str = option(
        "relu", help="nonlinearity of the vector branch and the heads", choices=("relu", "tanh", "elu")
    )
    normalise_vector: bool = option(
        default=False, help="scale the vector by its running mean and deviation, within the network"
    )
    normaliser_frames: int = option(1024, help="first frames that fit the per-pixel normaliser and nothing else", low=0)
    std: str = option(
        "learned", help="exploration: a learned parameter, or a schedule", choices=("learned", "schedule")
    )
    std_start: float = option(0.5, help="standard deviation of u at the start", low=1e-3, high=5.0)
    std_end: float = option(0.3, help="standard deviation of u at the end of the schedule", low=1e-3, high=5.0)
    std_end_at: float = option(0.87, help="fraction of the budget at which std_end is reached", low=0.01, high=1.0)


@dataclass(frozen=True)
class PpoSettings:
    """The hyperparameters of PPO and what a rollout is."""

    learning_rate: float = option(3e-4, help="step size of Adam", low=1e-8, high=1.0)
    gamma: float = option(0.99, help="discount of a decision", low=0.0, high=1.0)
    lambda_: float = option(0.95, help="decay of the generalised advantage estimate", low=0.0, high=1.0)
    clip: float = option(0.2, help="how far the ratio to the proximal policy counts", low=0.0, high=1.0)
    objective: str = option(
        "decoupled",
        help="what the ratio is clipped against: the proximal policy, or plainly the one that drove",
        choices=("decoupled", "plain"),
    )
    normalise_advantage: bool = option(default=True, help="standardise the advantages of each minibatch")
    normalise_reward: bool = option(
        default=False, help="divide rewards by the running deviation of the discounted return, clip them to +-10"
    )
    entropy: float = option(0.01, help="weight of the entropy bonus", low=0.0)
    value: float = option(0.5, help="weight of the value loss", low=0.0)
    value_clip: float = option(
        0.0, help="how far a value may move from the one before the update and still count; 0: any", low=0.0
    )
    epochs: int = option(4, help="passes over a rollout", low=1)
    minibatch: int = option(256, help="decisions in one gradient step", low=1)
    micro_batch: int = option(
        0,
        help="most decisions at once on the device, with the same gradient; 0: all, or what a CPU's cache holds",
        low=0,
    )
    rollout: int = option(8192, help="decisions in one update", low=1)
    max_grad_norm: float = option(0.5, help="norm at which the whole gradient is clipped", low=0.0)
    adam_eps: float = option(1e-5, help="epsilon of Adam", low=0.0)
    reward_scale: float = option(1.0, help="factor on every reward before it is learned from", low=0.0)
    kl_target: float = option(
        0.0, help="KL of an update that the learning rate is adapted to; 0: never adapted", low=0.0
    )
    kl_decay: float = option(0.0, help="target x min(1, max(this x (1 - progress), kl_floor)); 0: constant", low=0.0)
    kl_floor: float = option(0.1, help="smallest factor of the KL target's schedule", low=0.0, high=1.0)
    kl_factor: float = option(1.3, help="factor of one change of the learning rate", low=1.0)
    kl_band: float = option(
        1.5, help="the learning rate stays while KL is within target / this and target x this", low=1.0
    )
    kl_stop: float = option(
        0.0,
        help="mean KL of an epoch to the proximal policy above which the remaining epochs are left out; 0: never",
        low=0.0,
    )
    learning_rate_low: float = option(5e-5, help="lower bound of the adapted learning rate", low=0.0)
    learning_rate_high: float = option(4e-3, help="upper bound of the adapted learning rate", low=0.0)
    anneal: bool = option(default=False, help="lower the learning rate linearly to 0 over the budget")
    staleness_limit: int = option(8, help="decisions of a policy this many updates old are dropped above it", low=0)
    importance_limit: float = option(5.0, help="upper bound of proximal / behaviour weights", low=1.0)
    behaviour_limit: float = option(
        0.05,
        help="KL of the recorded means against the same policy's here, above which a rollout is refused; 0: never",
        low=0.0,
    )
    demonstration_weight: float = option(
        0.1, help="weight of the cloning loss on human decisions, decays to 0", low=0.0
    )
    autocast: str = option(
        "none", help="precision of the encoder while learning; auto: measured at the start", choices=PRECISIONS
    )
    allow_flat_reward: bool = option(default=False, help="train although the reward is constant or nothing ever ends")


DEMO: dict[str, dict[str, Any]] = {
    "network": {
        "encoder": "column",
        "proprio_hidden": (64, 64),
        "head_hidden": (128, 64),
        "normaliser_frames": 1024,
        "std": "schedule",
        "std_start": 0.9,
        "std_end": 0.3,
        "std_end_at": 0.87,
    },
    "ppo": {
        "learning_rate": 1e-3,
        "gamma": 0.97,
        "lambda_": 0.95,
        "clip": 0.2,
        "entropy": 0.0,
        "value": 0.5,
        "epochs": 4,
        "minibatch": 256,
        "rollout": 1024,
        "kl_target": 0.02,
        "kl_decay": 2.5,
        "kl_floor": 0.1,
        "autocast": "bfloat16",
    },
}
"""The values of the demo profile."""


def learning_rate_at(settings: PpoSettings, adapted: float, progress: float) -> float:
    """Return the learning rate of an update from the adapted one and the share of the budget that is done."""
    return adapted * (1.0 - progress) if settings.anneal else adapted


def kl_target_at(settings: PpoSettings, progress: float) -> float:
    """Return the KL that an update should have; 0 where the learning rate is not adapted."""
    if settings.kl_decay == 0.0:
        return settings.kl_target
    return settings.kl_target * min(1.0, max(settings.kl_decay * (1.0 - progress), settings.kl_floor))


def adapt(settings: PpoSettings, learning_rate: float, kl: float, progress: float) -> float:
    """Return the learning rate after an update whose mean KL against the proximal policy was ``kl``."""
    target = kl_target_at(settings, progress)
    if target == 0.0:
        return learning_rate
    if kl > target * settings.kl_band:
        return lowered(settings, learning_rate, settings.kl_factor)
    if kl < target / settings.kl_band:
        return max(learning_rate, min(settings.learning_rate_high, learning_rate * settings.kl_factor))
    return learning_rate


def lowered(settings: PpoSettings, learning_rate: float, factor: float) -> float:
    """Return a learning rate divided by a factor, but not below its bound; one that is below it already stays."""
    return min(learning_rate, max(settings.learning_rate_low, learning_rate / factor))


def std_at(settings: NetworkSettings, progress: float) -> float:
    """Return the scheduled standard deviation of u."""
    share = min(1.0, progress / settings.std_end_at)
    return settings.std_start + share * (settings.std_end - settings.std_start)
