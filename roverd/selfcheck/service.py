"""The self-check: drive small pulses by the ordinary way of a person's command, record, judge, remember.

It goes through Drive and control like any human's command, so that the safety gate, the forward stop and the dead-man
time hold: each command counts for a quarter of a second, and is renewed with each tick.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, Protocol

from protocol.errors import RoverError
from protocol.node.log import get_logger
from roverd.selfcheck import calibration as records
from roverd.selfcheck.judge import REST, Phase, Recording, Thresholds, findings, first_fault
from roverd.selfcheck.signals import Sample, axes_of
from roverd.selfcheck.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from protocol.node.checkup.check import Check
    from protocol.spec import RobotSpec
    from roverd.control.wire import Applied
    from roverd.episode import Observed
    from roverd.selfcheck.calibration import Calibration
    from roverd.selfcheck.signals import Axes
    from roverd.settings import SelfCheckSettings

log = get_logger()
HOLD_S = 0.25
"""How long one command counts: the dead-man time of the self-check."""
POLL_S = 0.02
START_S, END_S, SPARE_S = 5.0, 3.0, 10.0
"""How long it may take to begin and to end, and how much longer than its pulses the whole may take."""
MAX_RESTARTS = 3
NEVER, ALWAYS = "never", "always"


class SelfCheckError(RoverError):
    """The self-check cannot be made now, or was broken off; the message says why and what to do."""


class Driven(Protocol):
    """What the self-check steers (``roverd.drive.Drive``)."""

    @property
    def mode(self) -> str:
        """What is ordered, or why nothing moves."""

    @property
    def is_in_episode(self) -> bool:
        """True while an episode runs."""

    def human(self, action: tuple[float, ...], seconds: float, *, locks: bool = False) -> bool:
        """Apply a person's action for a time; False where the robot must not move."""

    def let_go(self) -> None:
        """Let the policy drive on."""

    def stop_episode(self, reason: str) -> None:
        """End the running episode at the next tick."""

    def finish_episode(self, success: bool | None) -> bool:  # noqa: FBT001 - as Drive has it
        """End the running episode by a person's word; None discards it."""

    def poke(self) -> None:
        """Begin an episode if somebody may drive now."""


class SelfCheck:
    """Whether the robot may be driven by a policy, the check that decides it, and the look at it while it drives."""

    def __init__(
        self,
        settings: SelfCheckSettings,
        *,
        spec: RobotSpec,
        is_simulated: bool,
        max_speed_mps: float,
        settings_hash: str,
        file: Path,
        driven: Driven,
        wheel_owner: Callable[[], str] = str,
    ) -> None:
        """Read the newest result.

        Args:
            settings: how it is made and whether it must be.
            spec: of the robot.
            is_simulated: the robot is a simulator's, whose signs nobody can exchange.
            max_speed_mps: limit of forward motion.
            settings_hash: of what could turn a sign (``calibration.settings_hash``).
            file: where the result is kept.
            driven: what moves the robot.
            wheel_owner: says who has the wheel, empty for nobody.

        """
        self._settings, self._spec, self._file, self._driven = settings, spec, file, driven
        self._is_simulated, self._settings_hash, self._wheel_owner = is_simulated, settings_hash, wheel_owner
        self.axes: Axes = axes_of(spec, max_speed_mps)
        self.watch = Watch(self.axes.fastest, settings.watch_s)
        self.newest: Calibration | None = None
        self._unreadable = ""
        try:
            self.newest = records.load(file)
        except records.CalibrationError as error:
            self._unreadable = str(error)
            log.error("selfcheck.unreadable", error=str(error), hint="roverctl selfcheck")  # noqa: TRY400 - it says all
        self._run: _Run | None = None
        self._cancelled = ""
        self._spec_hash = spec.hash
        self._note_refusal()

    # -- whether a policy may drive ---------------------------------------------------------------------------------

    @property
    def is_required(self) -> bool:
        """Whether this robot must pass before a policy or a controller may drive."""
        if self._settings.required == NEVER or not self.is_applicable:
            return False
        return self._settings.required == ALWAYS or not self._is_simulated

    @property
    def is_applicable(self) -> bool:
        """Whether it has wheels at all: an action in m/s or rad/s."""
        return self.axes.forward >= 0 or self.axes.left >= 0

    @property
    def is_armed(self) -> bool:
        """Whether a policy or a controller may drive; asked on every tick."""
        return self._is_armed

    def _note_refusal(self) -> None:
        """Note why the newest self-check does not let a policy drive this robot; empty where it does."""
        found = records.refusal(self.newest, spec_hash=self._spec_hash, wanted_settings=self._settings_hash)
        self.refusal = self._unreadable if self._unreadable and self.newest is None else found
        self._is_armed = not self.is_required or not self.refusal

    @property
    def is_running(self) -> bool:
        """True while it moves the robot: for a person who took the wheel it is over when its own episode is."""
        run = self._run
        if run is None:
            return False
        return not self._wheel_owner() or (run.has_episode and self._driven.is_in_episode)

    def causes(self) -> list[str]:
        """Say what is wrong, for health."""
        causes = (
            [] if self.is_armed else [f"unarmed: {self.refusal}; roverctl selfcheck (a person may drive meanwhile)"]
        )
        return causes + [f"motion: {told}; roverctl selfcheck" for told in self.watch.contradictions.values()]

    def to_map(self) -> dict[str, Any]:
        """Return what is shown of it; the shape is append-only."""
        newest = self.newest
        return {
            "armed": self.is_armed,
            "required": self.is_required,
            "running": self._run.phase.name if self._run is not None else "",
            "refusal": self.refusal if self.is_required else "",
            "passed": newest.passed if newest else None,
            "at": newest.at if newest else "",
            "fault": newest.fault if newest else "",
            "spec_hash": newest.spec_hash if newest else "",
            "checks": newest.checks if newest else [],
            "contradictions": dict(self.watch.contradictions),
            "pulses": [phase._asdict() for phase in self.phases() if phase.name != REST],
        }

    # -- the check --------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Return the pulses, each after a rest: forward, back where it may, left, right."""
        settings, axes = self._settings, self.axes
        speed, turn = min(settings.speed_mps, axes.fastest[0]), min(settings.turn_radps, axes.fastest[1])
        pulses = [("forward", speed, 0.0)] if axes.forward >= 0 else []
        if axes.backward_mps > 0:
            pulses.append(("backward", -min(speed, axes.backward_mps), 0.0))
        if axes.left >= 0:
            pulses += [("left", 0.0, turn), ("right", 0.0, -turn)]
        rest = Phase(REST, 0.0, 0.0, settings.seconds)
        return [each for name, ahead, left in pulses for each in (rest, Phase(name, ahead, left, settings.seconds))]

    async def run(self) -> dict[str, Any]:
        """Move the robot a little, judge what it measured, and keep the result.

        Raises:
            SelfCheckError: it cannot be made now, or was broken off; the result before stays.

        """
        self._refuse()
        self._cancelled = ""
        run = self._run = _Run(self.phases())
        log.info("selfcheck.started", pulses=len(run.phases), speed_mps=self._settings.speed_mps)
        try:
            await self._begin(run)
            await self._wait(run)
            self._conclude(findings(run.recordings, self._thresholds()))
        finally:
            await self._end(run)
            self._run = None
            self._driven.poke()
        return self.to_map()

    def cancel(self, reason: str) -> bool:
        """Break a running check off; False where none runs."""
        if self._run is None:
            return False
        self._cancelled = reason or "it was cancelled"
        return True

    def saw(self, seen: Observed, applied: Applied | None = None) -> None:
        """Take an observation, and what was applied on the tick before it (None: an episode begins)."""
        run = self._run
        if applied is None:
            if run is not None:
                run.episode_began(is_own=not self._wheel_owner())
            return
        reading = seen.reading
        sample = Sample(
            reading.stamp_ns,
            self.axes.commands(applied.action),
            seen.state,
            reading.odometry,
            applied.interventions,
            reading.elapsed_s,
        )
        if run is None:
            self.watch.add(sample)
        elif run.is_begun:
            run.add(sample)
            asyncio.get_running_loop().call_soon(self._press)

    def _refuse(self) -> None:
        """Raise where the robot must not be moved now."""
        owner, mode = self._wheel_owner(), self._driven.mode
        if self._run is not None:
            raise SelfCheckError("selfcheck: one is under way")
        if not self.is_applicable:
            raise SelfCheckError(f"selfcheck: robot {self._spec.name} has no action in m/s or rad/s: nothing to check")
        if owner:
            raise SelfCheckError(f"selfcheck: {owner} has the wheel; release it first")
        if mode in {"e_stop", "held", "task_disabled", "collect"}:
            remedy = {"e_stop": "roverctl clear", "held": "roverctl episode start", "collect": "roverctl collect stop"}
            raise SelfCheckError(f"selfcheck: the robot stands still ({mode}): {remedy.get(mode, 'roverctl plugins')}")
        if all(phase.forward_mps == phase.left_radps == 0 for phase in self.phases()):
            raise SelfCheckError("selfcheck: control.max_speed_mps leaves no speed to check with")

    async def _begin(self, run: _Run) -> None:
        """End what runs, then let an episode of this check's own begin."""
        until_s = time.monotonic() + START_S
        while self._driven.is_in_episode:
            self._driven.stop_episode("selfcheck")
            await self._pause(until_s, "the running episode does not end")
        run.is_begun = True
        while not self._press():
            await self._pause(until_s, f"no episode begins (mode {self._driven.mode}); see roverctl status")

    async def _wait(self, run: _Run) -> None:
        """Wait until every phase is recorded; ticks move it on."""
        until_s = time.monotonic() + 2 * math.fsum(phase.seconds for phase in run.phases) + SPARE_S
        while not run.is_over:
            if run.restarts > MAX_RESTARTS:
                raise SelfCheckError(
                    "selfcheck: its episode ends again and again: give it free space, see roverctl status"
                )
            await self._pause(until_s, f"{run.phase.name} does not end: no ticks come; see roverctl status")

    async def _pause(self, until_s: float, problem: str) -> None:
        await asyncio.sleep(POLL_S)
        if self._cancelled:
            raise SelfCheckError(f"selfcheck: broken off: {self._cancelled}")
        if self._is_taken():
            raise SelfCheckError(f"selfcheck: broken off: {self._cancelled}")
        if self._driven.mode in {"e_stop", "held"}:
            raise SelfCheckError(f"selfcheck: broken off: {self._driven.mode}")
        if time.monotonic() > until_s:
            raise SelfCheckError(f"selfcheck: {problem}")

    def _press(self) -> bool:
        """Command what the present phase asks for, for as long as the dead-man time; nothing once it is broken off."""
        run = self._run
        if run is None or not run.is_begun or self._is_taken() or self._cancelled:
            return False
        phase = run.phase
        return self._driven.human(self.axes.action(phase.forward_mps, phase.left_radps), HOLD_S, locks=True)

    def _is_taken(self) -> bool:
        """Say whether somebody has the wheel: a person may always take it, and that breaks the check off."""
        owner = self._wheel_owner()
        if owner and not self._cancelled:
            self._cancelled = f"{owner} took the wheel"
        return bool(owner)

    async def _end(self, run: _Run) -> None:
        """Stop, end the check's own episode without leaving a demonstration, and give the wheel back.

        The episode that a person who took the wheel begins then is his, and is left alone. In lock-step the command to
        stand may begin one more of the check's own.
        """
        was_begun, run.is_begun = run.is_begun, False
        if not was_begun:
            return
        if self._driven.is_in_episode and not self._wheel_owner():
            self._driven.human(self.axes.action(0.0, 0.0), HOLD_S, locks=True)
        until_s = time.monotonic() + END_S
        while run.has_episode and self._driven.finish_episode(None):
            await asyncio.sleep(POLL_S)  # the next tick ends it
            if time.monotonic() > until_s:
                break
        if not self._wheel_owner():
            self._driven.let_go()

    def _thresholds(self) -> Thresholds:
        each = self._settings
        return Thresholds(
            each.least_share,
            each.most_share,
            each.rest_mps,
            each.rest_radps,
            each.gravity_tolerance_mps2,
            math.radians(each.level_deg),
        )

    def _conclude(self, checks: list[Check]) -> None:
        fault = first_fault(checks)
        self.newest = records.Calibration(
            self._spec_hash,
            self._settings_hash,
            self._spec.name,
            not fault,
            records.now(),
            fault,
            [each.to_map() for each in checks],
        )
        self._note_refusal()
        self.watch.forget()
        if fault:
            log.error("selfcheck.failed", fault=fault, hint="mend it, then roverctl selfcheck again")
        else:
            log.info("selfcheck.passed", checks=len(checks), spec_hash=self._spec_hash[:12])
        try:
            records.save(self._file, self.newest)
        except OSError as error:
            hint = "the result counts until roverd ends; free space"
            log.error("selfcheck.unwritten", error=str(error), hint=hint)  # noqa: TRY400 - no trace for a full disk


class _Run:
    """One self-check under way: which phase it is in, and what was recorded of each."""

    def __init__(self, phases: list[Phase]) -> None:
        self.phases = phases
        self.recordings: list[Recording] = []
        self.is_begun = False
        """This check's own episode runs, or is about to."""
        self.has_episode = False
        """The episode that began last is this check's own."""
        self.restarts = -1
        self._samples: list[Sample] = []
        self._since_ns = -1

    @property
    def is_over(self) -> bool:
        return len(self.recordings) == len(self.phases)

    @property
    def phase(self) -> Phase:
        """The present phase; a rest once all are recorded."""
        return Phase(REST, 0.0, 0.0, 0.0) if self.is_over else self.phases[len(self.recordings)]

    def episode_began(self, *, is_own: bool) -> None:
        """Begin the present phase anew: the robot may stand somewhere else now."""
        self.has_episode = is_own
        self._samples, self._since_ns = [], -1
        self.restarts += 1

    def add(self, sample: Sample) -> None:
        """Record a tick, and go on to the next phase when this one lasted long enough on the robot's clock.

        A command counts from the next decision on, and ramps hold it back: what is applied before is not recorded.
        Where it is never applied as it was asked for, the safety gate is at work, and the judgement says so.
        """
        if self.is_over:
            return
        if self._since_ns < 0:
            self._since_ns = sample.stamp_ns
        phase = self.phase
        may_wait = (sample.stamp_ns - self._since_ns) * 1e-9 < phase.seconds
        if not self._samples and may_wait and not phase.is_obeyed(sample.commands):
            return
        self._samples.append(sample)
        if (sample.stamp_ns - self._samples[0].stamp_ns) * 1e-9 >= phase.seconds:
            self.recordings.append(Recording(phase, self._samples))
            self._samples, self._since_ns = [], -1
