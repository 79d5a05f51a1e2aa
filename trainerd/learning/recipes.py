"""Hyperparameters for environments of Gymnasium: one table for ``--profile gym:ID``, in-process runner and benches.

``GENERAL`` is what continuous control is usually learned with; a recipe says what differs, and where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Table = Mapping[str, Any]

GENERAL: dict[str, dict[str, Any]] = {
    "network": {
        "encoder": "blind",
        "proprio_hidden": (),
        "head_hidden": (64, 64),
        "activation": "tanh",
        "normalise_vector": True,
        "normaliser_frames": 0,
        "std": "learned",
        "std_start": 1.0,
    },
    "ppo": {
        "learning_rate": 3e-4,
        "anneal": True,
        "gamma": 0.99,
        "lambda_": 0.95,
        "clip": 0.2,
        "entropy": 0.0,
        "value": 0.5,
        "epochs": 10,
        "minibatch": 64,
        "rollout": 2048,
        "max_grad_norm": 0.5,
        "normalise_reward": True,
        "allow_flat_reward": True,
    },
}
"""Policy and value with 64-64 tanh layers of their own, normalised observations and rewards (Schulman et al. 2017,
table 3; Huang et al. 2022). A constant reward is no fault here: some environments pay one for each step survived."""


@dataclass(frozen=True)
class Recipe:
    """What to learn an environment with, beyond ``GENERAL``."""

    decisions: int
    source: str
    ppo: Table = field(default_factory=dict)
    network: Table = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """The whole sections ``network`` and ``ppo``."""
        return {
            "network": {**GENERAL["network"], **self.network},
            "ppo": {**GENERAL["ppo"], **self.ppo},
        }


_ZOO = "rl-baselines3-zoo, hyperparams/ppo.yml"
_CLEANRL = "CleanRL, ppo_continuous_action.py"

RECIPES: dict[str, Recipe] = {
    "CartPole-v1": Recipe(
        100_000,
        f"{_ZOO}: learning rate and its decay; gamma and lambda of the general ones",
        ppo={"learning_rate": 1e-3, "rollout": 1024},
    ),
    "Pendulum-v1": Recipe(
        100_000,
        f"{_ZOO}: gamma, learning rate, epochs; relu in place of state-dependent exploration",
        ppo={"learning_rate": 1e-3, "gamma": 0.9, "rollout": 1024},
        network={"activation": "relu"},
    ),
    **dict.fromkeys(
        ("InvertedPendulum-v4", "InvertedPendulum-v5"),
        Recipe(100_000, "Stable-Baselines3's defaults with VecNormalize", ppo={"anneal": False}),
    ),
    **dict.fromkeys(
        ("HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5"),
        Recipe(1_000_000, _CLEANRL),
    ),
}
"""By the environment's id; ``decisions`` is the budget that the schedules follow."""


def tables_of(environment: str) -> dict[str, dict[str, Any]]:
    """Return the sections ``network`` and ``ppo`` for an environment; the general ones where it has no recipe."""
    return RECIPES[environment].tables if environment in RECIPES else GENERAL
