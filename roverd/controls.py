"""The control process and its warm spare: one drives, the other watches it and takes over.

What is latched (e-stop, who drives, who stands by, a human's lock on the wheel) is remembered here, and told to a spare
that took over before anything else. The rest of roverd sends to "control" and need not know which of the two that is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from protocol.node.log import get_logger
from roverd.control import wire
from roverd.processes import Child, ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = get_logger()
MODULE = "roverd.control.process"
MAX_DEATHS, DEATHS_WITHIN_S = 10, 10.0
TAKEOVER_S = 0.5
"""A spare that has not said by then that it drives hangs as well, most likely on the same device."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 5.0


class ControlLostError(ProcessError):
    """No control process is left that could drive, or they die too often."""


class Controls:
    """Start control and, for a robot with a clock, its spare; replace one by the other."""

    def __init__(self, config: dict[str, Any], ring_fd: int, *, has_spare: bool) -> None:
        """Take control's configuration and the image ring; ``start`` starts the processes."""
        self._config, self._ring_fd, self._has_spare = config, ring_fd, has_spare
        self._active: Child | None = None
        self._spare: Child | None = None
        self._on_message: Callable[[bytes], None] = lambda _: None
        self._on_loss: Callable[[Exception], None] = lambda _: None
        self.on_promoted: list[Callable[[], None]] = []
        """Called when a spare took over, after it knows what is latched."""
        self._latched: dict[int, bytes] = {}
        self._gone: set[Child] = set()
        self._deaths: list[float] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._is_starting = False
        self._newest = wire.Beat(0, 0)
        self.takeovers = 0
        self.actuator_failure = ""
        """Why the actuator does not take commands, empty while it does."""

    async def start(self) -> None:
        """Start both and wait until they serve; raises ProcessError."""
        self._active = active = Child("control", MODULE, self._config, self._ring_fd)
        self._watch(active)
        try:
            await active.started()
            if self._has_spare:
                await self._start_spare()
        except ProcessError:
            await self.stop()
            raise

    def listen(self, on_message: Callable[[bytes], None], on_loss: Callable[[Exception], None]) -> None:
        """Set who hears the messages of the control that drives, and who hears that none is left."""
        self._on_message, self._on_loss = on_message, on_loss

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What the kernel granted each (see roverd.control.realtime)."""
        both = {"control": self._active, "spare": self._spare}
        return {name: child.report for name, child in both.items() if child is not None and child.report}

    @property
    def pid(self) -> int:
        """The process that drives, 0 without one."""
        return self._active.process.pid if self._active is not None else 0

    @property
    def has_spare(self) -> bool:
        """True while a spare watches a control that lives; one that only starts does not."""
        is_there = self._spare is not None and self._spare.is_alive and bool(self._spare.report)
        return is_there and self._active is not None and self._active.is_alive

    @property
    def needs_spare(self) -> bool:
        """True where there should be a spare: everywhere but in lock-step."""
        return self._has_spare

    def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send to the control that drives; what is latched is remembered."""
        self._remember(message)
        if self._active is not None:
            self._active.send(message, fds)

    def _remember(self, message: bytes) -> None:
        kind = message[0]
        if kind in {wire.E_STOP, wire.ACTIVE, wire.STANDBY, wire.HUMAN}:
            self._latched[kind] = message
        elif kind == wire.CLEAR:
            self._latched.pop(wire.E_STOP, None)
        elif kind == wire.RELEASE:
            self._latched.pop(wire.HUMAN, None)

    async def stop(self) -> None:
        """End both, the spare first: it must not take over from one that was told to go."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._spare is not None:
            self._spare.send(bytes([wire.STAND_DOWN]))
        for child in (self._spare, self._active, *self._gone):
            if child is not None:
                await child.stop()

    # -- the spare --------------------------------------------------------------------------------------------------

    async def _start_spare(self) -> None:
        active = self._active
        assert active is not None  # noqa: S101 - start() made it
        pid_fd = os.pidfd_open(active.process.pid)  # also of one that has ended, until it is reaped
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._is_starting = True
        self._spare = spare = Child("control spare", MODULE, self._config, self._ring_fd, theirs.fileno(), pid_fd)
        os.close(pid_fd)
        theirs.close()
        spare.listen(self._hear_spare, lambda: self._spare_died(spare))
        try:
            await spare.started()
            if self._active is active and active.is_alive:
                active.send(bytes([wire.SPARE]), (ours.fileno(),))
            else:  # control died before this one could watch it
                self._order_takeover(spare)
        except ProcessError:
            self._spare = None
            spare.process.kill()
            await spare.stop()
            raise
        finally:
            self._is_starting = False
            ours.close()

    def _order_takeover(self, spare: Child) -> None:
        spare.send(bytes([wire.TOOK_OVER]) + wire.pack_beat(self._newest))
        self._expect_takeover(spare)

    def _expect_takeover(self, spare: Child) -> None:
        """Give up on a spare that does not say that it drives: nothing would, and nobody would know."""

        def look() -> None:
            if self._is_closing or spare is not self._spare:
                return
            log.error("control.spare_failed", error="it did not take over", hint="roverd ends and is started again")
            spare.process.kill()
            self._on_loss(ControlLostError(f"control died and its spare did not take over in {TAKEOVER_S:g} s"))

        asyncio.get_running_loop().call_later(TAKEOVER_S, look)

    def _hear_spare(self, message: bytes) -> None:
        if message[0] == wire.TOOK_OVER:
            self._promote(message[1:].decode(errors="replace"))
        elif message[0] == wire.ACTUATOR:
            self._hear(message)

    def _promote(self, reason: str) -> None:
        """Make the spare, which drives already, the control of the rest of roverd."""
        gone, spare = self._active, self._spare
        assert spare is not None  # noqa: S101 - it just spoke
        if gone is not None:
            gone.drain()  # what it told before its end comes before what its successor tells
        self._active, self._spare = spare, None
        if gone is not None:
            self._gone.add(gone)
        self._watch(spare)
        self.takeovers += 1
        self.actuator_failure = ""  # the successor has a device of its own, and says so if that fails
        hint = "the robot was stopped and drives on; see why control ended above, and roverctl doctor"
        log.error("control.taken_over", reason=reason, takeovers=self.takeovers, hint=hint)
        for kind in (wire.E_STOP, wire.STANDBY, wire.ACTIVE, wire.HUMAN):
            if kind in self._latched:
                spare.send(self._latched[kind])
        for call in self.on_promoted:
            call()
        if self._dies_too_often():
            self._on_loss(ControlLostError(f"control died {MAX_DEATHS} times within {DEATHS_WITHIN_S:g} s"))
        else:
            self._spawn(self._replace_spare())
            self._spawn(self._reap())

    async def _reap(self) -> None:
        """End what is gone for good; what is left of it at the end, ``stop`` ends."""
        for child in tuple(self._gone):
            await child.stop()
            self._gone.discard(child)

    async def _replace_spare(self) -> None:
        """Start spares until one serves, ever more slowly."""
        delay_s = FIRST_DELAY_S
        while not self.has_spare:
            try:
                await self._start_spare()
            except (ProcessError, OSError) as error:
                if self._active is None or not self._active.is_alive:
                    self._on_loss(ControlLostError("control died while its spare started, which failed"))
                    return
                if delay_s == FIRST_DELAY_S:
                    hint = "control drives without a spare: the actuator's own dead-man timer is what is left"
                    log.error("control.spare_failed", error=str(error), hint=hint)  # noqa: TRY400 - the child told why
            else:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(LONGEST_DELAY_S, 2 * delay_s)

    # -- deaths -----------------------------------------------------------------------------------------------------

    def _watch(self, child: Child) -> None:
        child.listen(self._hear, lambda: self._active_died(child))

    def _hear(self, message: bytes) -> None:
        if message[0] == wire.ACTUATOR:
            self._note_actuator(message[1:].decode(errors="replace"))
        elif message[0] == wire.SPARE:
            if self._spare is not None:
                self._spare.process.kill()  # a spare that hangs protects nobody; its death starts a new one
        else:
            if message[0] == wire.APPLIED:
                self._newest = wire.place_of(message)
            self._on_message(message)

    def _note_actuator(self, failure: str) -> None:
        if failure and not self.actuator_failure:
            hint = "the robot is stopped by its own dead-man timer; see the cable and the motor controller"
            log.error("actuator.failed", error=failure, hint=hint)
        elif not failure:
            log.info("actuator.recovered", error=self.actuator_failure)
        self.actuator_failure = failure

    def _active_died(self, child: Child) -> None:
        if self._is_closing or child is not self._active or self._is_starting:
            return  # a spare that starts just now is told to take over as soon as it serves
        if self._spare is None or not self._spare.is_alive:
            self._on_loss(ControlLostError("the control process died; the robot is stopped"))
        else:  # the spare has seen it too
            self._expect_takeover(self._spare)

    def _spare_died(self, child: Child) -> None:
        if self._is_closing or child is not self._spare or self._is_starting:
            return  # who starts it learns of that
        self._spare = None
        self._gone.add(child)
        if self._active is None or not self._active.is_alive:
            self._on_loss(ControlLostError("control and its spare died; the robot is stopped"))
            return
        log.warning("control.spare_died", hint="it is started again; control drives on")
        self._spawn(self._replace_spare())
        self._spawn(self._reap())

    def _dies_too_often(self) -> bool:
        now_s = time.monotonic()
        self._deaths = [each for each in self._deaths if now_s - each < DEATHS_WITHIN_S] + [now_s]
        return len(self._deaths) >= MAX_DEATHS

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
