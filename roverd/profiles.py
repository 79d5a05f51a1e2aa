"""Named sets of options, one layer above the defaults."""

from __future__ import annotations

from typing import Any

_DEMO_LIMITS = {
    "max_speed_mps": 0.5,
    "safety_distance_m": 0.0,
    "slow_distance_m": 0.0,
    "half_width_m": 0.18,
    "max_acceleration_mps2": 0.0,
    "max_acceleration_radps2": 0.0,
    "max_jerk_mps3": 0.0,
    "max_jerk_radps3": 0.0,
    "stall_after_ms": 0.0,
}
PROFILES: dict[str, dict[str, Any]] = {
    "demo": {
        "robot": "sim",
        "task": "goal",
        "control": {"rate_hz": 0.0, **_DEMO_LIMITS},
        "record": {"images": "decisions"},
    },
    "live": {
        "robot": "sim",
        "task": "goal",
        "control": {"rate_hz": 10.0, **_DEMO_LIMITS},
        "plugins": {"goal": {"time_limit_s": 60.0}},
    },
    "gym": {
        "robot": "gym",
        "task": "environment",
        "control": {
            "rate_hz": 0.0,
            "safety_distance_m": 0.0,
            "slow_distance_m": 0.0,
            "frozen_after_ms": 0.0,
            "max_tilt_deg": 0.0,
            "stall_after_ms": 0.0,
            "max_acceleration_mps2": 0.0,
            "max_acceleration_radps2": 0.0,
            "max_jerk_mps3": 0.0,
            "max_jerk_radps3": 0.0,
        },
    },
}
"""``demo``: the simulated rover in lock-step, with limits of its own (the real rover's 0.18 m/s is too slow for 20 s).

It has no forward stop: a robot that is stopped before each obstacle needs no eyes to find its way around it, so it
would not show that the camera is used (docs/decisions/0005). The clearance is measured and recorded all the same.

``live``: the same rover and limits in real time, so that a person can drive it (docs/teleop.md). Its policies are those
of the demo; a person gets a minute for an episode.

``gym``: an environment of Gymnasium in lock-step, without any limit of a rover; ``--robot gym:ID`` brings it along
(docs/gymnasium.md).
"""
