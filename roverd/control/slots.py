"""The policy processes as control sees them: one that drives, one that stands by, and what each answered."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roverd.control import wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

SLOTS = 2


@dataclass
class Held:
    """The proposal in force, whose it is, and the last tick that it may be used for."""

    proposal: wire.Proposal
    slot: int
    until: int


class PolicySlots:
    """Ask the policy processes, collect their answers, and choose one.

    A slot whose socket ends is lost at once. In a clocked run the standby's answer to the same tick stands in for a
    missing one; in lock-step it never does, for two runs would differ.
    """

    def __init__(self, layout: wire.Layout, *, is_clocked: bool, on_shadow: Callable[[bytes], None]) -> None:
        """Begin without a policy; ``on_shadow`` takes SHADOWED messages."""
        self._layout, self._is_clocked, self._on_shadow = layout, is_clocked, on_shadow
        self._sockets: list[socket.socket | None] = [None] * SLOTS
        self._roles = [wire.NO_ROLE] * SLOTS
        self._answers: list[wire.Proposal | None] = [None] * SLOTS
        self._asked_tick = 0
        self._asked = [False] * SLOTS
        self.active = 0
        """Who drives: as roverd said, or the standby once the one that roverd named is gone."""
        self.ordered = 0
        """Who should drive."""
        self.late = 0
        """Proposals of the one that drives that came after their tick, since this was last set to 0."""

    @property
    def sockets(self) -> list[socket.socket]:
        """Those that can be waited for."""
        return [each for each in self._sockets if each is not None]

    def attach(self, slot: int, connection: socket.socket) -> None:
        """Take the socket of a slot's new process."""
        self.lose(slot)
        connection.setblocking(False)
        self._sockets[slot] = connection

    def order(self, slot: int) -> bool:
        """Let a slot drive from now on; return False where it already did."""
        is_news = slot != self.active
        self.active = self.ordered = slot
        return is_news

    def set_role(self, slot: int, role: int) -> None:
        """Say what a slot is for while it does not drive."""
        self._roles[slot] = role

    def lose(self, slot: int) -> None:
        """Let go of a slot whose process is gone or talks nonsense; a standby that may drive does so from now on."""
        lost, self._sockets[slot] = self._sockets[slot], None
        self._answers[slot] = None
        if lost is None:
            return
        lost.close()
        if slot == self.active and self.may_stand_in(1 - slot):
            self.active = 1 - slot

    def may_stand_in(self, slot: int) -> bool:
        """Say whether a slot may drive when the other one does not answer."""
        return self._is_clocked and self._roles[slot] == wire.FALLBACK and self._sockets[slot] is not None

    def ask(self, tick: wire.Tick) -> bool:
        """Send a tick to who drives and to a standby with a role; return False where nobody can answer for control."""
        self._asked_tick = tick.tick
        self._answers = [None] * SLOTS
        message = self._layout.pack_tick(tick)
        self._asked = [self._is_wanted(slot) and self._send(slot, message) for slot in range(SLOTS)]
        return self._asked[self.active] or any(self.may_stand_in(slot) and self._asked[slot] for slot in range(SLOTS))

    def _is_wanted(self, slot: int) -> bool:
        return self._sockets[slot] is not None and (slot == self.active or self._roles[slot] != wire.NO_ROLE)

    def _send(self, slot: int, message: bytes) -> bool:
        connection = self._sockets[slot]
        if connection is None:
            return False
        try:
            connection.send(message)
        except BlockingIOError:
            return True  # it has not answered for hundreds of ticks; the missing proposal is what counts
        except OSError:
            self.lose(slot)
            return False
        return True

    @property
    def is_answered(self) -> bool:
        """True when waiting longer cannot bring a better answer: who drives has answered, or is gone and cannot."""
        if self._answers[self.active] is not None:
            return True
        return self._sockets[self.active] is None or not self._asked[self.active]

    @property
    def is_hopeless(self) -> bool:
        """True when waiting longer cannot bring an action: nobody who may drive has one, or could still answer."""
        return not any(self._may_have(slot) for slot in range(SLOTS))

    def _may_have(self, slot: int) -> bool:
        if self._sockets[slot] is None or not (slot == self.active or self.may_stand_in(slot)):
            return False
        answer = self._answers[slot]
        return self._asked[slot] if answer is None else not answer.flags & wire.NOTHING

    def read(self, ready: list[socket.socket]) -> None:
        """Read one message of each socket that has one."""
        for slot, connection in enumerate(self._sockets):
            if connection is not None and connection in ready:
                self._read(slot, connection)

    def _read(self, slot: int, connection: socket.socket) -> None:
        try:
            message = connection.recv(wire.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        try:
            proposal = self._layout.unpack_proposal(message) if message else None
        except struct.error:
            proposal = None  # what it says can no longer be trusted; its EOF makes roverd start it anew
        if proposal is None:
            self.lose(slot)
            return
        is_on_time = proposal.tick == self._asked_tick
        if slot != self.active and self._roles[slot] == wire.SHADOW:
            shadowed = wire.Shadowed(slot, is_on_time, proposal.tick, proposal.latency_ns, _action(proposal))
            self._on_shadow(self._layout.pack_shadowed(shadowed))
        elif is_on_time:
            self._answers[slot] = proposal
        elif slot == self.active:
            self.late += 1

    @property
    def has_answer(self) -> bool:
        """True where somebody who may drive has an action."""
        return self.chosen(self._asked_tick) is not None

    def close(self) -> None:
        """Say that the time to answer is over: what still comes is late."""
        self._asked_tick = 0

    def chosen(self, until: int) -> Held | None:
        """Return the answer to the last question: of who drives, else of the standby; None where there is none."""
        for slot in (self.active, 1 - self.active):
            answer = self._answers[slot]
            is_allowed = slot == self.active or self.may_stand_in(slot)
            if answer is not None and not answer.flags & wire.NOTHING and is_allowed:
                return Held(answer, slot, min(until, answer.tick + answer.ticks - 1))
        return None


def _action(proposal: wire.Proposal) -> wire.Floats:
    """Return a proposal's action; one of nothing is not a number, so that nobody takes it for a good answer."""
    return (float("nan"),) * len(proposal.action) if proposal.flags & wire.NOTHING else proposal.action
