"""The two policy processes: which one drives, what each has loaded, and what the other one is for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from protocol.node.log import get_logger
from roverd.control import wire
from roverd.processes import NotRunningError, ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from roverd.policies.transaction import Target
    from roverd.processes import PolicyChild

log = get_logger()
SLOTS = 2
ROLES = ("", "shadow", "fallback")
REVIVE_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0


class Commands(Protocol):
    """What takes commands for the control process."""

    def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send one message."""


class Slots:
    """Start the processes, restart what died, load into them, and tell control who drives.

    A slot is named by what it held when control was told to use it, not by what is loaded into it: a record that is
    still under way is labelled with the policy that made it.
    """

    def __init__(self, commands: Commands, spawn: Callable[[int], PolicyChild]) -> None:
        """Take the control process and what starts a policy process for a slot."""
        self._commands, self._spawn = commands, spawn
        self.on_death: Callable[[int, Target | None], None] = lambda _slot, _lost: None
        """Called with what was lost when a process ended that was not told to; None where that is known already."""
        self.active = 0
        self.role = wire.NO_ROLE
        """What the standby is for."""
        self.loaded: list[Target | None] = [None] * SLOTS
        self.counters = [0] * SLOTS
        self._children: list[PolicyChild | None] = [None] * SLOTS
        self._names = [""] * SLOTS
        self._dying: set[int] = set()
        """Slots whose process was killed, which is not noticed yet."""
        self._requests = [asyncio.Lock() for _ in range(SLOTS)]
        self._delay_s = REVIVE_DELAY_S

    @property
    def standby(self) -> int:
        """The slot that does not drive."""
        return 1 - self.active

    def name(self, slot: int) -> str:
        """Return the policy id or ``controller:NAME`` that the steps of a slot are labelled with."""
        return self._names[slot] if slot >= 0 else ""

    def is_alive(self, slot: int) -> bool:
        """Say whether a slot's process runs, and nobody has ended it."""
        child = self._children[slot]
        return child is not None and child.child.is_alive and slot not in self._dying

    def pid(self, slot: int) -> int:
        """Return a slot's process, 0 where none runs."""
        child = self._children[slot]
        return child.child.process.pid if child is not None and child.child.is_alive else 0

    @property
    def standby_facts(self) -> dict[str, Any]:
        """What the standby holds and is for."""
        target = self.loaded[self.standby]
        name = target.name if target is not None else ""
        return {"name": name, "role": ROLES[self.role], "pid": self.pid(self.standby)}

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What the kernel granted each process (see roverd.control.realtime)."""
        return {f"policy {i}": c.child.report for i, c in enumerate(self._children) if c is not None and c.child.report}

    # -- what control is told ---------------------------------------------------------------------------------------

    def activate(self, slot: int, role: int) -> None:
        """Let a slot drive from the next decision on, and give the other one a role."""
        self.active = slot
        self._label(slot)
        # the role goes first: where control is about to take an answer of the slot that stops driving, it still may
        self.give(role)
        self._commands.send(bytes([wire.ACTIVE, slot]))

    def give(self, role: int) -> None:
        """Say what the standby is for from now on."""
        self.role = role
        if role == wire.FALLBACK:
            self._label(self.standby)
        self._commands.send(bytes([wire.STANDBY, self.standby, role]))

    def reattach(self) -> None:
        """Bring the processes together with a control that is new; they keep what they have loaded."""
        for child in self._children:
            if child is not None and child.child.is_alive:
                child.attach()

    def _label(self, slot: int) -> None:
        target = self.loaded[slot]
        if target is not None:
            self._names[slot] = target.name if target.is_policy else f"controller:{target.name}"

    # -- the processes ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start both; raises ProcessError."""
        for slot in range(SLOTS):
            self._make(slot)
        for child in self._children:
            if child is not None:
                await child.child.started()

    def _make(self, slot: int) -> PolicyChild:
        child = self._children[slot] = self._spawn(slot)
        self._dying.discard(slot)
        self.loaded[slot] = None
        child.on_death = lambda: self._died(slot)
        return child

    def _died(self, slot: int) -> None:
        self.on_death(slot, self.forget(slot))

    def forget(self, slot: int) -> Target | None:
        """Take it that a slot holds nothing any more; return what it held."""
        lost, self.loaded[slot] = self.loaded[slot], None
        return lost

    async def revive(self) -> None:
        """Start again what died; a process that does not come up is tried again later, ever more slowly."""
        for slot, child in enumerate(self._children):
            if child is None or child.child.is_alive:
                continue
            await asyncio.sleep(self._delay_s)
            await child.child.stop()
            try:
                await self._make(slot).child.started()
            except ProcessError as error:
                self._delay_s = min(LONGEST_DELAY_S, 2 * self._delay_s)
                hint = "the other policy process drives on; it is tried again"
                log.error("policy.process_failed", slot=slot, error=str(error), hint=hint)  # noqa: TRY400 - the child told why
                self.kill(slot)
            else:
                self._delay_s = REVIVE_DELAY_S

    async def stop(self) -> None:
        """End both."""
        for child in self._children:
            if child is not None:
                await child.child.stop()

    def kill(self, slot: int) -> None:
        """End a process that hangs; its death is noticed as any other."""
        child = self._children[slot]
        if child is not None:
            self._dying.add(slot)
            child.child.process.kill()

    # -- requests ---------------------------------------------------------------------------------------------------

    async def load(self, slot: int, target: Target, request: dict[str, Any]) -> dict[str, Any]:
        """Load a target into a slot and return the process' answer; what it had stays if it is refused.

        Raises:
            NotRunningError: the process had ended, or was killed, before the target came to it.
            ProcessError: the process died, or did not answer and was killed.

        """
        before = self.forget(slot)  # until the answer is there nobody can tell what the process holds
        answer = await self._request(slot, request)
        if not self.is_alive(slot):
            raise ProcessError(f"process policy {slot}: died after it loaded")
        self.loaded[slot] = target if answer["ok"] else before
        if answer["ok"]:
            self.counters[slot] = int(answer.get("counter", 0))
        return answer

    async def ping(
        self, slot: int, timeout_s: float, on_silence: Callable[[], None] = lambda: None
    ) -> dict[str, Any] | None:
        """Ask a process what it counted; one that does not answer in time is killed, and None returned.

        ``on_silence`` is called before that.
        """
        async with self._requests[slot]:
            child = self._children[slot]
            if child is None or not child.child.is_alive:
                return None
            task = asyncio.ensure_future(child.request(do="ping"))
            try:
                done, _ = await asyncio.wait([task], timeout=timeout_s)
                if not done:
                    on_silence()
                    self.kill(slot)
                return await task
            except ProcessError:
                return None
            finally:
                task.cancel()

    async def _request(self, slot: int, request: dict[str, Any]) -> dict[str, Any]:
        async with self._requests[slot]:
            child = self._children[slot]
            if child is None or slot in self._dying:
                raise NotRunningError(f"process policy {slot}: it is not running")
            try:
                return await child.request(**request)
            except ProcessError:
                self._dying.add(slot)  # also where its end is not noticed yet
                raise
