"""Named sets of options, one layer above the defaults."""

from __future__ import annotations

from typing import Any

PROFILES: dict[str, dict[str, Any]] = {
    "demo": {
        "robot": "sim",
        "task": "goal",
        "control": {"rate_hz": 0.0, "max_speed_mps": 0.5, "safety_distance_m": 0.0, "half_width_m": 0.18},
        "record": {"images": "decisions"},
    },
}
"""``demo``: the simulated rover in lock-step, with limits of its own (the real rover's 0.18 m/s is too slow for 20 s).

It has no forward stop: a robot that is stopped before each obstacle needs no eyes to find its way around it, so it
would not show that the camera is used (docs/decisions/0005). The clearance is measured and recorded all the same.
"""
