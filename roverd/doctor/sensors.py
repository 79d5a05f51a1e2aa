"""Checks of what the robot senses: does each sensor report, often enough and lately, and is it plausible."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from protocol.node.checkup.check import Check, judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from protocol.spec import RobotSpec

LEAST_OF_RATE = 0.8
LEAST_CLEARANCE_M = 0.03
STATE = "observation.state"


def rates(
    spec: RobotSpec, found: tuple[float, float] | None, *, decisions_only: bool, is_clocked: bool
) -> Iterator[Check]:
    """Judge rates against the spec; in lock-step a simulator has no rate of its own."""
    if not is_clocked or found is None:
        why = "lock-step" if not is_clocked else "it does not drive, or only began to"
        yield judge("sensor rates", f"not judged: {why}", "those of the robot's spec", "", ok=True)
        return
    hint = "the driver is slow, its cable is bad (USB 3?), or the processor is busy: see lateness, cpu governor"
    wanted = {STATE: (found[0], spec.control_rate_hz)}
    shown_hz = spec.control_rate_hz / (spec.action_repeat if decisions_only else 1)
    wanted.update({camera.key: (found[1], min(camera.rate_hz, shown_hz)) for camera in spec.cameras})
    for key, (value, nominal) in wanted.items():
        least = LEAST_OF_RATE * nominal
        yield judge(
            f"rate of {key}", f"{value:.1f} Hz", f"at least {least:.3g} of {nominal:g} Hz", hint, ok=value >= least
        )


def ages(spec: RobotSpec, found_ms: Mapping[str, float], limit_ms: float) -> Iterator[Check]:
    """Judge how old the newest readings are; older ones than the limit stop the robot.

    Args:
        spec: of the robot.
        found_ms: newest ages by key; empty while nothing is driven.
        limit_ms: beyond which control commands the safe action.

    """
    if not found_ms:
        yield judge("sensor ages", "not judged: it does not drive, or in lock-step", "below their limits", "", ok=True)
        return
    limits = {camera.key: min(camera.stale_after_ms, limit_ms) for camera in spec.cameras}
    for key, age_ms in found_ms.items():
        most_ms = limits.get(key, limit_ms)
        hint = "the sensor stands still: its cable, its driver (dmesg | tail); the robot is stopped until it reports"
        ok = math.isfinite(age_ms) and age_ms <= most_ms
        yield judge(f"age of {key}", f"{age_ms:.0f} ms", f"at most {most_ms:g} ms", hint, ok=ok)


def clearance(spec: RobotSpec, found_m: float, *, is_driving: bool) -> Iterator[Check]:
    """Judge whether the free distance ahead can be true."""
    if not any(camera.kind == "depth" for camera in spec.cameras):
        yield judge("clearance", "no depth camera", "only with a depth camera", "", ok=True)
        return
    if not is_driving:
        yield judge("clearance", "not judged: it does not drive", "plausible", "", ok=True)
        return
    expected = f"at least {LEAST_CLEARANCE_M:g} m"
    hint = "the depth camera is covered or sees the robot itself, or control.camera_height_m is wrong"
    if math.isnan(found_m):
        hint = "the depth camera reports nothing usable: is it covered, too near to a wall, or in bright sun?"
        yield judge("clearance", "unknown", expected, hint, ok=False)
        return
    yield judge("clearance", f"{found_m:.2f} m", expected, hint, ok=found_m >= LEAST_CLEARANCE_M)


def state(spec: RobotSpec, found: Mapping[str, Any]) -> Iterator[Check]:
    """Judge the newest state vector against the ranges that the spec declares."""
    wrong = []
    for element in spec.state:
        value = found.get(element.name)
        has_range = element.low < element.high
        if has_range and isinstance(value, int | float) and not element.low <= value <= element.high:
            wrong.append(f"{element.name} {value:g} {element.unit} ({element.low:g} to {element.high:g})")
    hint = "a sensor's scale, unit or sign is wrong: roverctl selfcheck names it"
    yield judge(
        "state", "; ".join(wrong) or "within its ranges", "within its ranges", hint, ok=not wrong, is_needed=False
    )
