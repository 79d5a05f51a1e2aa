"""The last word on every action, as pure functions: numbers in, numbers out.

Who drives: e-stop > human > policy > nothing. What then is applied is finite, within limits of size, acceleration and
jerk, decided on fresh and sane measurements, and not forward into what the depth camera sees. Whatever is changed is
named by a flag (protocol.step.Intervention) that travels with the step. docs/safety.md has the whole table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol.errors import RoverError
from protocol.step import Intervention as Flag
from roverd.control.motion import (
    Stall,
    Stop,
    clamp,
    gain,
    is_stalled,
    is_tilted,
    ramp,
    speed_cap,
    watch_clearance,
    watch_speed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Floats = tuple[float, ...]

POLICY, HUMAN, SCRIPTED, GATE, FALLBACK = range(5)
"""Who decided an action: indices into protocol.step.SOURCES."""

NOT_NEGATIVE = (
    "safety_distance_m",
    "slow_distance_m",
    "release_margin_m",
    "stale_after_ns",
    "max_tilt_rad",
    "stall_after_ns",
    "stall_wait_ns",
    "stall_from",
)


class LimitsError(RoverError):
    """Limits that nothing can be kept within; all that is wrong with them is in the message."""


@dataclass(frozen=True)
class Limits:
    """What an action may be; 0 switches off what a number is for, as does an empty list.

    ``low``, ``high``, ``max_acceleration`` and ``max_jerk`` have one number per element, in its unit, per s^2 and per
    s^3 of it. ``safe_action`` has None for an element that is to stay where it was put last. ``forward`` is the index
    of the element that moves the robot forward (-1: none). Commands smaller than ``stall_from`` never count as a stall.
    """

    low: Floats
    high: Floats
    safe_action: tuple[float | None, ...]
    period_s: float
    forward: int = 0
    max_acceleration: Floats = ()
    max_jerk: Floats = ()
    safety_distance_m: float = 0.25
    slow_distance_m: float = 0.6
    release_margin_m: float = 0.05
    release_frames: int = 2
    stale_after_ns: int = 180_000_000
    max_tilt_rad: float = 0.6
    stall_after_ns: int = 1_000_000_000
    stall_wait_ns: int = 1_000_000_000
    stall_from: float = 0.03

    def __post_init__(self) -> None:
        """Refuse limits that contradict themselves; raises LimitsError."""
        if problems := [*self._wrong_lengths()] or [*self._wrong_elements(), *self._wrong_numbers()]:
            raise LimitsError(f"limits: {'; '.join(problems)}")

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> Limits:
        """Build from ``dataclasses.asdict`` that went through msgpack; raises LimitsError."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise LimitsError(f"limits: {error}") from error

    def _wrong_lengths(self) -> Iterator[str]:
        count = len(self.low)
        for name in ("high", "safe_action"):
            if len(getattr(self, name)) != count:
                yield f"{name} has {len(getattr(self, name))} elements, low has {count}"
        for name in ("max_acceleration", "max_jerk"):
            if len(getattr(self, name)) not in {0, count}:
                yield f"{name} has {len(getattr(self, name))} elements, expected none or {count}"
        if not -1 <= self.forward < count:
            yield f"forward is {self.forward}, expected -1 to {count - 1}"

    def _wrong_elements(self) -> Iterator[str]:
        for index, low in enumerate(self.low):
            high, safe_one = self.high[index], self.safe_action[index]
            if not (_is_finite((low, high)) and low <= high):
                yield f"element {index} goes from {low} to {high}"
            elif safe_one is not None and not low <= safe_one <= high:
                yield f"the safe action of element {index} is {safe_one}, expected {low} to {high}"
        for name in ("max_acceleration", "max_jerk"):
            if not all(0 <= value < math.inf for value in getattr(self, name)):
                yield f"{name} is {list(getattr(self, name))}, expected finite numbers from 0 on"
        if self.forward >= 0 and self.safe_action[self.forward] != 0:
            yield f"the safe action of forward motion is {self.safe_action[self.forward]}, expected 0"

    def _wrong_numbers(self) -> Iterator[str]:
        if not 0 < self.period_s < math.inf:
            yield f"period_s is {self.period_s}, expected more than 0"
        if not self.release_frames >= 1:
            yield f"release_frames is {self.release_frames}, expected at least 1"
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name} is {getattr(self, name)}, expected a finite number from 0 on"


class Wheel(NamedTuple):
    """A human's command. It counts until a time; with ``locks`` nobody else may drive after that either."""

    action: Floats
    until_ns: int
    locks: bool


class Request(NamedTuple):
    """What is asked of a tick. ``proposal`` is None where no valid one came; its flags are passed on."""

    proposal: Floats | None
    proposal_source: int
    wheel: Wheel | None
    e_stop: bool
    proposal_flags: int = 0


class Sensed(NamedTuple):
    """What is known of the world on a tick; None where the robot cannot measure it.

    ``now_ns`` is the clock of the wheel's ``until_ns``, simulated in lock-step. ``age_ns`` is the age of the
    observation. ``clearance_m`` is the free distance ahead in the image number ``frame``; ``is_frozen`` says that the
    camera repeats itself. ``is_finite`` speaks of the whole state vector.
    """

    now_ns: int
    age_ns: int
    clearance_m: float | None
    frame: int
    is_frozen: bool
    speed_mps: float | None
    roll_rad: float | None
    pitch_rad: float | None
    is_finite: bool


class Memory(NamedTuple):
    """What one tick leaves to the next: the action that was applied, what it gained on the one before, and the rest."""

    last: Floats
    change: Floats
    stop: Stop = Stop()
    is_tilted: bool = False
    stall: Stall = Stall()


class Verdict(NamedTuple):
    """The action to apply, who decided it, what came between (flags), and what is left of the human's command."""

    action: Floats
    source: int
    interventions: int
    wheel: Wheel | None


def start(limits: Limits, last: Floats | None = None) -> Memory:
    """Return the memory of a robot at its safe action; ``last`` is where its elements are, zero if not given."""
    zero = (0.0,) * len(limits.low)
    return Memory(safe(limits, last or _clamped(zero, limits)), zero)


def safe(limits: Limits, last: Floats) -> Floats:
    """Return the safe action; an element without one stays at what was applied last."""
    return tuple(held if each is None else each for each, held in zip(limits.safe_action, last, strict=True))


def decide(limits: Limits, request: Request, sensed: Sensed, memory: Memory) -> tuple[Verdict, Memory]:
    """Choose the action of a tick and make it safe; returns what to remember for the next one, too.

    Any numbers are taken; raises ValueError where a vector has another length than the limits.
    """
    memory = _watch(limits, sensed, memory)
    wheel = request.wheel
    if wheel is not None and sensed.now_ns > wheel.until_ns and not wheel.locks:
        wheel = None
    wanted, source, flags = _arbitrate(request, wheel, sensed.now_ns)
    vetoes = _vetoes(limits, sensed, memory)
    if wanted is None or vetoes:
        action, source = safe(limits, memory.last), FALLBACK
    else:
        action, changes = _restrain(limits, wanted, sensed, memory)
        flags |= changes
        if changes and source == POLICY:
            source = GATE
    verdict = Verdict(action, source, int(flags | vetoes | request.proposal_flags), wheel)
    return verdict, memory._replace(last=action, change=tuple(map(gain, action, memory.last)))


def _watch(limits: Limits, sensed: Sensed, memory: Memory) -> Memory:
    """Look at the measurements: they count on every tick, whoever drives."""
    stop, stall = memory.stop, memory.stall
    if sensed.clearance_m is not None:
        stop = watch_clearance(
            stop,
            sensed.clearance_m,
            sensed.frame,
            stop_at_m=limits.safety_distance_m,
            free_from_m=limits.safety_distance_m + limits.release_margin_m,
            frames=limits.release_frames,
        )
    lean = sensed.roll_rad or 0.0, sensed.pitch_rad or 0.0
    tilted = limits.max_tilt_rad > 0 and is_tilted(*lean, limits.max_tilt_rad, was_tilted=memory.is_tilted)
    if limits.stall_after_ns > 0 and limits.forward >= 0 and sensed.speed_mps is not None:
        stall = watch_speed(
            stall,
            memory.last[limits.forward],
            sensed.speed_mps,
            sensed.now_ns,
            least=limits.stall_from,
            after_ns=limits.stall_after_ns,
        )
    return memory._replace(stop=stop, is_tilted=tilted, stall=stall)


def _arbitrate(request: Request, wheel: Wheel | None, now_ns: int) -> tuple[Floats | None, int, int]:
    """Return the action that is wanted (None: the safe one), who wants it, and flags."""
    if request.e_stop:
        return None, FALLBACK, Flag.E_STOP
    if wheel is None:
        return _proposed(request)
    bad = 0 if _is_finite(wheel.action) else Flag.NON_FINITE
    if not bad and now_ns <= wheel.until_ns:
        return wheel.action, HUMAN, Flag.HUMAN
    if wheel.locks:
        return None, FALLBACK, Flag.HUMAN | Flag.WHEEL_LOCKED | bad
    wanted, source, flags = _proposed(request)
    return wanted, source, flags | bad


def _proposed(request: Request) -> tuple[Floats | None, int, int]:
    if request.proposal is None:
        return None, FALLBACK, Flag.MISSED
    if not _is_finite(request.proposal):
        return None, FALLBACK, Flag.NON_FINITE
    return request.proposal, request.proposal_source, 0


def _vetoes(limits: Limits, sensed: Sensed, memory: Memory) -> int:
    """Return the flags of what forbids any motion."""
    measured = (sensed.clearance_m, sensed.speed_mps, sensed.roll_rad, sensed.pitch_rad)
    is_finite = sensed.is_finite and _is_finite([each for each in measured if each is not None])
    return (
        (Flag.STALE if sensed.age_ns > limits.stale_after_ns else 0)
        | (Flag.FROZEN if sensed.is_frozen else 0)
        | (0 if is_finite else Flag.NON_FINITE)
        | (Flag.TILTED if memory.is_tilted else 0)
    )


def _restrain(limits: Limits, wanted: Floats, sensed: Sensed, memory: Memory) -> tuple[Floats, int]:
    """Return what the robot may do of a finite action, and the flags of what was taken away."""
    action = _clamped(wanted, limits)
    flags: int = 0 if action == wanted else Flag.LIMITED
    if limits.forward >= 0:
        speed, why = _forward(limits, action[limits.forward], sensed, memory)
        action = (*action[: limits.forward], speed, *action[limits.forward + 1 :])
        flags |= why
    steps = _per_tick(limits.max_acceleration, limits.period_s, action)
    rises = _per_tick(limits.max_jerk, limits.period_s**2, action)
    ramped = tuple(ramp(*each) for each in zip(action, memory.last, memory.change, steps, rises, strict=True))
    return ramped, flags if ramped == action else flags | Flag.RAMPED


def _forward(limits: Limits, speed: float, sensed: Sensed, memory: Memory) -> tuple[float, int]:
    """Return the speed that obstacles and stalls leave of a speed within limits, and why."""
    if speed > 0 and memory.stop.is_stopped:
        return 0.0, Flag.FORWARD_STOP
    if is_stalled(memory.stall, speed, sensed.now_ns, limits.stall_wait_ns):
        return 0.0, Flag.STALLED
    if sensed.clearance_m is not None:
        top = limits.high[limits.forward]
        cap = speed_cap(sensed.clearance_m, limits.safety_distance_m, limits.slow_distance_m, top)
        if speed > cap:
            return cap, Flag.SLOWED
    return speed, 0


def _clamped(action: Floats, limits: Limits) -> Floats:
    return tuple(clamp(*each) for each in zip(action, limits.low, limits.high, strict=True))


def _per_tick(rates: Floats, factor: float, action: Floats) -> Floats:
    """Return what a tick may add to each element; inf where there is no limit."""
    return tuple(rate * factor if rate > 0 else math.inf for rate in rates or (0.0,) * len(action))


def _is_finite(values: Floats | list[float]) -> bool:
    return all(math.isfinite(value) for value in values)
