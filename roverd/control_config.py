"""What the control process is told at its start: its clock, the limits of every action, and its actuator."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.errors import RoverError
from roverd.control.safety import Limits

if TYPE_CHECKING:
    from plugins.contracts import Robot
    from protocol.spec import RobotSpec
    from roverd.settings import Settings


class ClockError(RoverError):
    """The robot cannot be driven truly by the clock that is set, or not without one."""


def check_clock(settings: Settings, spec: RobotSpec) -> None:
    """A clock must be the one that the robot declares, and leave the policy time; else nothing recorded is true."""
    rate_hz = settings.control.rate_hz
    if rate_hz == 0:
        if settings.actuator:
            text = "a real actuator needs a clock: set control.rate_hz to the robot's"
            raise ClockError(f"actuator {settings.actuator}: control.rate_hz is 0 (lock-step); {text}")
        return
    if rate_hz != spec.control_rate_hz:
        raise ClockError(f"control.rate_hz {rate_hz:g}: robot {spec.name} declares {spec.control_rate_hz:g}, or 0")
    if spec.action_delay_ms <= 0:
        raise ClockError(f"control.rate_hz {rate_hz:g}: robot {spec.name} has no action delay: no time to decide")
    ticks = spec.action_repeat if settings.record.images == "decisions" else 1
    spacing_ms = 1000 * ticks * spec.period_s
    if spec.cameras and spacing_ms >= settings.control.stale_after_ms:
        raise ClockError(
            f"control.stale_after_ms {settings.control.stale_after_ms:g}: images come every {spacing_ms:g} ms, so "
            "every one would be stale: set record.images=all, or a higher rate"
        )


def control_config(settings: Settings, robot: Robot) -> dict[str, Any]:
    """Return control's part of the first message that its process gets (see roverd.control.wire)."""
    control, spec = settings.control, robot.spec
    forward = next((i for i, e in enumerate(spec.action) if e.name.startswith("linear")), -1)
    low, high = [e.low for e in spec.action], [e.high for e in spec.action]
    if forward >= 0:
        high[forward] = min(high[forward], control.max_speed_mps)
        low[forward] = max(low[forward], -control.max_speed_mps)
    limits = Limits(
        low=_float32(low),  # as messages carry them: else full speed would count as beyond the limit
        high=_float32(high),
        safe_action=tuple(robot.safe_action),
        period_s=spec.period_s,
        forward=forward,
        max_acceleration=_ramps(spec, control.max_acceleration_mps2, control.max_acceleration_radps2),
        max_jerk=_ramps(spec, control.max_jerk_mps3, control.max_jerk_radps3),
        safety_distance_m=control.safety_distance_m,
        slow_distance_m=control.slow_distance_m,
        stale_after_ns=int(control.stale_after_ms * 1e6),
        max_tilt_rad=math.radians(control.max_tilt_deg),
        stall_after_ns=int(control.stall_after_ms * 1e6),
    )
    return {
        "rate_hz": control.rate_hz,
        "limits": asdict(limits),
        "geometry": {"camera_height_m": control.camera_height_m, "half_width_m": control.half_width_m},
        "frozen_after_ns": int(control.frozen_after_ms * 1e6),
        "actuator": settings.actuator,
        "actuator_settings": dict(settings.plugins.get(settings.actuator, {})),
        "cpus": list(control.cpus),
    }


def _float32(values: list[float]) -> tuple[float, ...]:
    return tuple(np.array(values, np.float32).tolist())


def _ramps(spec: RobotSpec, linear: float, angular: float) -> tuple[float, ...]:
    """Return a limit for each action element by the unit of what it commands; 0 is none."""
    by_unit = {"m/s": linear, "rad/s": angular}
    return tuple(by_unit.get(element.unit, 0.0) for element in spec.action)
