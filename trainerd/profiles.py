"""Named sets of settings: ``default`` has the classic values of PPO, ``demo`` those that learn in minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.node.config import ConfigError, Layer
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
}


def profile_layers(name: str) -> list[Layer]:
    """Return the layers of a profile; raises ConfigError for a name that there is not."""
    if name not in PROFILES:
        raise ConfigError([f"--profile {name}: no such profile; there are {', '.join(PROFILES)}"])
    return [Layer(f"profile {name}", PROFILES[name])] if PROFILES[name] else []
