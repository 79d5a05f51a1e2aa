"""The wheel: one person at a time drives, and while somebody has it the policy does not.

Each command of the owner counts for the dead-man time, from when he gave it, and no longer; control holds to that by
itself, for every command carries its end. When none comes in time the robot stands, and the wheel stays locked for its
owner until he commands again or lets go, or somebody else takes it or releases it by force. A restart of roverd does
not release it.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Protocol

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from roverd.axes import Axes

log = get_logger()
FREE, HELD, LOCKED = "free", "held", "locked"
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 @.:_-]{0,63}")
WATCH_S = 0.05
ABANDON_S = 5.0
"""After so long without a word of the owner the episode ends: a robot that only stands is not recorded for hours."""


class WheelError(RoverError):
    """The wheel is not given: somebody else has it, or nobody could drive with it. The message is for who asked."""


class Driven(Protocol):
    """What the wheel steers (``roverd.drive.Drive``)."""

    def human(self, action: tuple[float, ...], seconds: float, *, locks: bool = False) -> bool:
        """Apply a person's action for a time; False where the robot must not move."""

    def let_go(self) -> None:
        """Let the policy drive on."""

    def stop_episode(self, reason: str) -> None:
        """End the running episode, if there is one."""

    @property
    def is_in_episode(self) -> bool:
        """True while an episode runs."""

    @property
    def applied_action(self) -> Sequence[float]:
        """The action that was applied last, in the units of RobotSpec.action."""


class Wheel:
    """Service: who has the wheel, and what becomes of it when its owner falls silent. The loop thread owns it."""

    name = "wheel"

    def __init__(
        self,
        driven: Driven,
        axes: Axes,
        *,
        dead_man_s: float,
        refusal: str = "",
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin free, or locked for who had it when roverd ended.

        Args:
            driven: what moves the robot.
            axes: how pushes become actions.
            dead_man_s: how long one command counts.
            refusal: why nobody can drive this robot by hand; empty where it can be done.
            file: where the owner's name outlives a restart.
            clock: monotonic seconds.

        """
        self.axes = axes
        self.owner = ""
        self.counts = dict.fromkeys(("takes", "takeovers", "releases", "commands", "stale", "locks"), 0)
        self.on_change: Callable[[], None] = lambda: None
        """Called when the owner changes."""
        self._driven, self._dead_man_s, self.refusal, self._file, self._clock = (
            driven,
            dead_man_s,
            refusal,
            file,
            clock,
        )
        self._commanded_s = self._heard_s = self._since_s = clock()
        self._was_locked = False
        self._is_obeyed = True
        self._wanted: tuple[float, ...] = ()
        if file is not None and file.is_file():
            self.owner = file.read_text(errors="replace")[:64]
            self._commanded_s -= dead_man_s

    async def run(self) -> None:
        """Look after the wheel until cancelled."""
        while True:
            self.watch()
            await asyncio.sleep(WATCH_S)

    @property
    def state(self) -> str:
        """free; held: its owner commands; locked: he does not, and the robot stands."""
        if not self.owner:
            return FREE
        return HELD if self._clock() - self._commanded_s < self._dead_man_s else LOCKED

    @property
    def silent_s(self) -> float:
        """How long the owner has said nothing; 0 while nobody owns it."""
        return self._clock() - self._commanded_s if self.owner else 0.0

    @property
    def cause(self) -> str:
        """Why the robot stands, for health; empty unless the wheel is locked."""
        if self.state != LOCKED:
            return ""
        text = f"wheel: {self.owner} has it and has said nothing for {self.silent_s:.1f} s, the robot stands"
        return f"{text}; take it, or roverctl wheel release --force"

    def status(self) -> dict[str, Any]:
        """Return what is shown of it; the shape is append-only."""
        return {
            "owner": self.owner,
            "state": self.state,
            "since_s": round(self._clock() - self._since_s, 3) if self.owner else None,
            "silent_s": round(self.silent_s, 3) if self.owner else None,
            "is_obeyed": self._is_obeyed,
            "dead_man_ms": round(self._dead_man_s * 1e3),
            "refusal": self.refusal,
            **self.counts,
        }

    def take(self, owner: str, *, by_force: bool = False) -> bool:
        """Give the wheel to an owner, from which moment on nobody else drives; False where he has it already.

        Raises:
            WheelError: this robot cannot be driven by hand, or somebody else drives and ``by_force`` is not given.

        """
        if not OWNER.fullmatch(owner):
            raise WheelError(f"wheel: owner {owner!r:.80} is no name")
        if self.refusal:
            raise WheelError(f"wheel: {self.refusal}")
        if self.owner == owner:
            return False
        if self.state == HELD and not by_force:
            raise WheelError(f"wheel: {self.owner} drives; ask for it, or take it over by force")
        self.counts["takes"] += 1
        before, self.owner = self.owner, owner
        if before:
            self.counts["takeovers"] += 1
        self._since_s = self._commanded_s = self._heard_s = self._clock()
        self._was_locked = False
        self.on_change()
        self._rest()
        self._command(self._wanted, self._dead_man_s)
        self._remember()
        log.info("wheel.taken", owner=owner, before=before)
        return True

    def drive(self, owner: str, pushes: Sequence[float], *, age_s: float = 0.0) -> bool:
        """Let the owner command; False where the robot must not move now, or the command took too long to come.

        Args:
            owner: who commands.
            pushes: how far he pushes each axis.
            age_s: how long ago he gave the command; it counts for what that leaves of the dead-man time.

        Raises:
            WheelError: he does not have the wheel.

        """
        self._check(owner)
        age_s = max(0.0, age_s)
        if age_s >= self._dead_man_s:  # what he saw when he pushed is long gone; an old command is worse than none
            self.counts["stale"] += 1
            return False
        now_s = self._clock()
        silent_s, seconds = now_s - self._commanded_s, now_s - self._heard_s
        self.counts["commands"] += 1
        self._heard_s = now_s
        self._commanded_s = now_s - age_s
        if self._was_locked:
            self._was_locked = False
            self._wanted = ()
            log.info("wheel.resumed", owner=owner, silent_s=round(silent_s, 3))
        if not self._wanted:  # roverd began anew, or somebody else may have moved the robot meanwhile
            self._rest()
        self._wanted = self.axes.action(pushes, held=self._wanted, seconds=seconds)
        return self._command(self._wanted, self._dead_man_s - age_s)

    def release(self, owner: str, *, by_force: bool = False) -> bool:
        """Let go; False where nobody had it.

        Raises:
            WheelError: somebody else has it and ``by_force`` is not given.

        """
        if not self.owner:
            return False
        if not by_force:
            self._check(owner)
        self.counts["releases"] += 1
        log.info("wheel.released", owner=self.owner, by=owner)
        self.owner = ""
        self._since_s = self._clock()
        self._was_locked = False
        self._remember()
        self.on_change()  # before the robot moves again: a collection ends its episode first
        self._driven.let_go()
        return True

    def lose(self, owner: str) -> None:
        """Stop at once because the owner's connection is gone; the wheel stays his."""
        if owner and owner == self.owner and self.state == HELD:
            self._commanded_s = self._clock() - self._dead_man_s
            self._rest()
            if self._driven.is_in_episode:  # else the command would begin one
                self._driven.human(self._wanted, 0.0, locks=True)
            self.watch()

    def watch(self) -> None:
        """Note when the owner has fallen silent, and end the episode when he does not come back."""
        if self.silent_s > ABANDON_S and self._driven.is_in_episode:
            self._driven.stop_episode("wheel_locked")
        if self.state == LOCKED and not self._was_locked:
            self._was_locked = True
            self.counts["locks"] += 1
            hint = "the robot stands until he commands again, or roverctl wheel release --force"
            log.warning("wheel.locked", owner=self.owner, hint=hint)

    def _check(self, owner: str) -> None:
        if owner != self.owner:
            raise WheelError(f"wheel: {self.owner or 'nobody'} has it; take it first")

    def _rest(self) -> None:
        self._wanted = self.axes.rest(self._driven.applied_action)

    def _command(self, action: tuple[float, ...], seconds: float) -> bool:
        self._is_obeyed = self._driven.human(action, seconds, locks=True)
        return self._is_obeyed

    def _remember(self) -> None:
        if self._file is None:
            return
        try:
            if self.owner:
                write_atomic(self._file, self.owner.encode())
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:  # a full disk keeps nobody from taking the wheel
            hint = "a restart would release the wheel; free space"
            log.error("wheel.unwritten", error=str(error), hint=hint)  # noqa: TRY400 - no trace for a full disk
