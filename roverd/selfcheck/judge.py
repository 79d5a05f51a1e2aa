"""Judge a recorded self-check: at rest, driving and turning, does each sensor say what was commanded?

Pure functions: numbers in, checks out, the most basic first. What is wrong is told in words that a person at the robot
can act on: which of command, wheels, odometry and gyroscope disagrees with the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from protocol.node.checkup.check import Check, judge, note
from protocol.step import Intervention
from roverd.selfcheck.signals import (
    FORWARD,
    LEFT,
    ODOMETRY_SPEED,
    ODOMETRY_YAW_RATE,
    SPEEDS,
    YAW_RATES,
    Sample,
    axis_of,
    mean,
    speeds,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REST = "rest"
GRAVITY_MPS2 = 9.81
SETTLING_SHARE = 1 / 3
"""Share of a pulse that is left out: the robot gets going."""
LEAST_SAMPLES = 2
OBEYED, TINY = 0.1, 1e-3
"""A command counts as applied within this share of what was asked for, or so near to it."""
AGREES, OPPOSITE, STILL, TOO_MUCH = "agrees", "opposite", "still", "too much"
GATED = (
    Intervention.FORWARD_STOP
    | Intervention.SLOWED
    | Intervention.STALE
    | Intervention.FROZEN
    | Intervention.NON_FINITE
    | Intervention.E_STOP
    | Intervention.TILTED
    | Intervention.STALLED
    | Intervention.WHEEL_LOCKED
    | Intervention.ACTUATOR_FAILED
)
"""With one of these the robot was not allowed to do what a pulse asked for."""


class Thresholds(NamedTuple):
    """What is still accepted; see the settings ``selfcheck``."""

    least_share: float = 0.3
    most_share: float = 3.0
    rest_mps: float = 0.02
    rest_radps: float = 0.1
    gravity_mps2: float = 1.5
    level_rad: float = math.radians(15)


class Phase(NamedTuple):
    """A pulse of the self-check: its name, what is asked for on both axes, and for how long."""

    name: str
    forward_mps: float
    left_radps: float
    seconds: float

    def is_obeyed(self, commands: tuple[float, float]) -> bool:
        """Say whether applied commands (forward m/s, to the left rad/s) are what this pulse asks for."""
        asked = (self.forward_mps, self.left_radps)
        return all(abs(each - want) <= OBEYED * abs(want) + TINY for each, want in zip(commands, asked, strict=True))


class Recording(NamedTuple):
    """What was recorded of a phase."""

    phase: Phase
    samples: Sequence[Sample]


def findings(recordings: Sequence[Recording], thresholds: Thresholds) -> list[Check]:
    """Judge every phase in the order in which they were driven."""
    found: list[Check] = []
    rested = [sample for each in recordings if each.phase.name == REST for sample in _settled(each.samples)]
    found += at_rest(rested, thresholds)
    for each in recordings:
        if each.phase.name != REST:
            found += pulse(each, thresholds)
    return found


def first_fault(checks: Sequence[Check]) -> str:
    """Return the first thing that is wrong with its remedy, or nothing."""
    wrong = next((each for each in checks if not each.ok), None)
    return f"{wrong.measured}; {wrong.hint}" if wrong is not None else ""


def _settled(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples[math.floor(len(samples) * SETTLING_SHARE) :]


def at_rest(samples: Sequence[Sample], thresholds: Thresholds) -> Iterator[Check]:
    """Judge what the sensors say while the robot stands: no motion, gravity, level."""
    if len(samples) < LEAST_SAMPLES:
        yield judge("at rest", f"{len(samples)} readings", "some", "do the sensors report at all?", ok=False)
        return
    state = samples[0].state
    for name in (each for each in (*SPEEDS, *YAW_RATES) if each in state):
        unit = unit_of(name)
        limit = thresholds.rest_mps if unit == "m/s" else thresholds.rest_radps
        value = mean([sample.state[name] for sample in samples])
        hint = f"{name} must be near 0 while the robot stands: did it move? else calibrate its zero"
        measured = f"{name} is {value:+.3f} {unit} at rest"
        yield judge(f"{name} at rest", measured, f"within {limit:g} {unit}", hint, ok=abs(value) <= limit)
    if "accel_mag" in state:
        yield gravity(mean([sample.state["accel_mag"] for sample in samples]), thresholds)
    for name in ("roll", "pitch"):
        if name in state:
            yield level(name, mean([sample.state[name] for sample in samples]), thresholds)


def gravity(value_mps2: float, thresholds: Thresholds) -> Check:
    """Judge the accelerometer's magnitude at rest."""
    hint = "the accelerometer's scale is wrong: m/s^2 are expected"
    if 0.8 <= value_mps2 <= 1.2:
        hint += "; it seems to report g"
    measured = f"accel_mag is {value_mps2:.2f} m/s^2 at rest"
    expected = f"{GRAVITY_MPS2} within {thresholds.gravity_mps2:g} m/s^2"
    ok = abs(value_mps2 - GRAVITY_MPS2) <= thresholds.gravity_mps2
    return judge("gravity", measured, expected, hint, ok=ok)


def level(name: str, value_rad: float, thresholds: Thresholds) -> Check:
    """Judge roll or pitch of a robot that stands on level ground."""
    degrees, limit = math.degrees(value_rad), math.degrees(thresholds.level_rad)
    hint = "stand the robot on level ground; if it does, the IMU is mounted another way than its driver thinks"
    if abs(abs(degrees) - 180) <= limit:
        hint = "the IMU is mounted upside down: turn its axes in its driver's settings"
    ok = abs(value_rad) <= thresholds.level_rad
    return judge(f"{name} at rest", f"{name} is {degrees:+.1f} degrees at rest", f"within {limit:g}", hint, ok=ok)


def pulse(recording: Recording, thresholds: Thresholds) -> Iterator[Check]:
    """Judge one pulse: first whether the robot was free to move, then each signal of its axis."""
    phase, samples = recording.phase, _settled(recording.samples)
    if len(samples) < LEAST_SAMPLES:
        hint = "raise selfcheck.seconds: a pulse must last some control ticks"
        yield judge(phase.name, f"{len(samples)} readings", "some", hint, ok=False)
        return
    if gated := _gated(samples):
        hint = "the safety gate held the robot back: give it a metre of free space, and see roverctl status"
        measured = f"{phase.name}: the gate interfered ({gated})"
        yield judge(phase.name, measured, "free to move", hint, ok=False)
        return
    axis = FORWARD if phase.forward_mps else LEFT
    command = mean([sample.commands[axis == LEFT] for sample in samples])
    values = {name: value for name, value in speeds(samples).items() if axis_of(name) == axis}
    if not values:
        yield note(phase.name, "no sensor measures this", "wheel speed, odometry or gyroscope", "")
        return
    verdicts = {name: compare(command, value, thresholds) for name, value in values.items()}
    for name, value in values.items():
        yield _signal(phase.name, name, command, value, verdicts)


def _gated(samples: Sequence[Sample]) -> str:
    """Name the interventions that kept the robot from moving in most of the samples."""
    held = [sample.flags & int(GATED) for sample in samples if sample.flags & int(GATED)]
    if len(held) * 2 <= len(samples):
        return ""
    flags = 0
    for each in held:
        flags |= each
    return ", ".join(str(each.name).lower() for each in Intervention if each & flags)


def compare(command: float, measured: float, thresholds: Thresholds) -> str:
    """Say how a measured speed stands to a commanded one of the same unit; a bound itself still agrees."""
    share = measured / command if command else math.inf
    if abs(share) < thresholds.least_share:
        return STILL
    if share < 0:
        return OPPOSITE
    return AGREES if share <= thresholds.most_share else TOO_MUCH


def _signal(phase: str, name: str, command: float, value: float, verdicts: Mapping[str, str]) -> Check:
    unit, verdict = unit_of(name), verdicts[name]
    fact = f"{command:+.3f} {unit} was commanded, {value:+.3f} was measured"
    expected = f"about {command:+.3f} {unit}"
    if verdict == AGREES:
        return judge(f"{phase}: {name}", fact, expected, "", ok=True)
    others = [each for key, each in verdicts.items() if key != name]
    told, hint = _words(name, verdict, others)
    return judge(f"{phase}: {name}", f"{told}: {fact} ({name})", expected, hint, ok=False)


def _words(name: str, verdict: str, others: Sequence[str]) -> tuple[str, str]:
    """Return what is wrong, and what to do, given how the other sensors of the axis judge the same pulse."""
    is_forward, subject = axis_of(name) == FORWARD, SUBJECTS.get(name, name)
    is_alone = any(each == AGREES for each in others)
    if verdict == STILL and not is_alone:
        return "nothing moved", (
            "are the motors powered and the robot's own stop released? a stiff base needs more: raise "
            + ("selfcheck.speed_mps" if is_forward else "selfcheck.turn_radps")
        )
    if verdict == STILL:
        return f"{subject} stays still", f"it is unplugged or not read: see its cable and its driver ({name})"
    if verdict == TOO_MUCH:
        return f"{subject} says too much", f"its unit or scale is wrong: {unit_of(name)} are expected ({name})"
    if not is_alone:
        way = ("backwards", "drives forward") if is_forward else ("to the right", "turns left")
        return f"every sensor says that it goes {way[0]}", (
            "look at it: if it really does, swap the motors' sign (or left and right) in the actuator; "
            f"if it {way[1]}, swap the sign of the sensors"
        )
    remedy = f"swap its sign where the robot's plugin reads it ({name})"
    if name == ODOMETRY_YAW_RATE:
        remedy = f"left and right encoder are exchanged, or {remedy}"
    return f"{subject} counts backwards", remedy


SUBJECTS = {
    "linear_vel": "the encoder of the wheels",
    "wheel_linear_vel": "the encoder of the wheels",
    "angular_vel": "the gyroscope",
    "gyro_yaw_rate": "the gyroscope",
    "imu_yaw_rate": "the gyroscope",
    "wheel_yaw_rate": "the turning speed of the wheels",
    ODOMETRY_SPEED: "odometry",
    ODOMETRY_YAW_RATE: "the heading of odometry",
}
