"""Named sets of settings: ``default`` has the classic values of PPO, ``demo`` those that learn in minutes.

``gym`` has what environments of Gymnasium are usually learned with, ``gym:ID`` the recipe of one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.node.config import ConfigError, Layer
from trainerd.learning.recipes import GENERAL, RECIPES
from trainerd.learning.settings import DEMO

if TYPE_CHECKING:
    from collections.abc import Mapping

DEMO_DECISIONS = 300_000
"""Budget of the demo, which its schedules follow."""

DEMO_EPISODES_GB = 1.0
"""Disk for the demo's episodes; its 300,000 decisions would take four times as much."""

PROFILES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "demo": {**DEMO, "threads": 1, "train": {"decisions": DEMO_DECISIONS}, "store": {"quota_gb": DEMO_EPISODES_GB}},
    "gym": {**GENERAL, "threads": 1, "device": "cpu", "train": {"decisions": 1_000_000}},
}
"""A network of two small layers learns faster on one core than on a GPU."""


def profile_layers(name: str) -> list[Layer]:
    """Return the layers of a profile; raises ConfigError for a name that there is not."""
    general, colon, environment = name.partition(":")
    if general not in PROFILES or (colon and general != "gym"):
        raise ConfigError([f"--profile {name}: no such profile; there are {', '.join(PROFILES)}"])
    layers = [Layer(f"profile {general}", PROFILES[general])] if PROFILES[general] else []
    if not colon:
        return layers
    if environment not in RECIPES:
        text = f"no recipe for {environment}; --profile gym has general values, recipes are for {', '.join(RECIPES)}"
        raise ConfigError([f"--profile {name}: {text}"])
    recipe = RECIPES[environment]
    budget = {"train": {"decisions": recipe.decisions}}
    return [*layers, Layer(f"profile {name}", {"ppo": recipe.ppo, "network": recipe.network, **budget})]
