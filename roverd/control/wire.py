"""Byte layouts of the messages between roverd, control and the policy processes.

They travel over AF_UNIX SOCK_SEQPACKET socket pairs: one send is one message, a wake-up, a memory barrier for what the
sender wrote to the ring before, and at EOF a death notice. The first byte is the kind. All numbers are little-endian;
vectors are float32 in the units of the RobotSpec.

    roverd  --SEEN-->    control   a new observation: ring slot, generation, state and task vector
    control --TICK-->    policy    decide now: the observation and the action in flight
    policy  --PROPOSAL-> control   an action, valid for the ticks it names
    control --APPLIED--> roverd    what was really applied, and why
    roverd  --HUMAN, RELEASE, E_STOP, CLEAR, ACTIVE, STANDBY, ATTACH, SPARE--> control
    control --SHADOWED-> roverd    what a standby that only shadows would have done
    control --ACTUATOR-> roverd    the actuator failed (a text), or works again (an empty one)
    control --BEAT-->    spare     I live, and this is where I am
    control --SPARE-->   roverd    the spare does not listen any more
    spare   --TOOK_OVER-> roverd   control is gone or hangs; I drive now, and know no policy yet
    roverd  --TOOK_OVER-> spare    control is gone before you could watch it; drive (a BEAT follows in the message)
    roverd  --STAND_DOWN-> spare   roverd stops: go, and leave control alone

A policy process drains to the newest TICK. Start-up: the first message each child gets is a msgpack map (its
configuration); once it can serve it answers READY with a msgpack map behind it: what the kernel granted it.

ATTACH brings, as a descriptor, control's end of a new socket pair to the policy process of a slot (``policy_attach``
brings that process the other end, on its own link: it keeps its loaded policy). SPARE brings the end of the socket pair
on which control beats for its spare. A slot's death is noticed at the EOF of its socket by both who hold one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SEEN, TICK, PROPOSAL, APPLIED, HUMAN, E_STOP, CLEAR, ACTIVE, ATTACH, READY = range(1, 11)
STANDBY, RELEASE, SHADOWED, TOOK_OVER, ACTUATOR, BEAT, SPARE, STAND_DOWN = range(11, 19)
MAX_MESSAGE_BYTES = 65536

RESET = 1
"""First observation of an episode: holds and recurrent state are cleared."""
EXPLORE = 2
"""The policy samples; without it, it answers its mean."""
DECIDE = 4
"""This tick starts a decision, whatever the count of held ticks says."""
IMAGES = 8
"""The slot holds images of this very observation (else those of an earlier one)."""

IDLE = 16
"""No episode: control commands the safe action and reports no ticks until the next SEEN."""

HAS_POLICY = 1
HAS_HUMAN = 2
HAS_BEHAVIOUR = 4

NOTHING = 128
"""A proposal that says: no action for this tick."""

NO_ROLE, SHADOW, FALLBACK = range(3)
"""What a standby is for (the byte behind STANDBY and its slot): nothing; it is asked and its answers are reported but
never applied; it is asked and its answer is applied when the one that drives gives none."""

Floats = tuple[float, ...]


class Seen(NamedTuple):
    """A new observation; ``vector`` is state then task features."""

    flags: int
    slot: int
    generation: int
    stamp_ns: int
    image_stamp_ns: int
    vector: Floats


class Tick(NamedTuple):
    """A request for a decision."""

    flags: int
    slot: int
    generation: int
    tick: int
    decision: int
    deadline_ns: int
    in_flight: Floats
    vector: Floats


class Proposal(NamedTuple):
    """An action to be held from ``tick`` for ``ticks`` ticks; a scripted controller has no behaviour distribution."""

    flags: int
    tick: int
    decision: int
    ticks: int
    policy_counter: int
    latency_ns: int
    log_prob: float
    action: Floats
    u: Floats
    mean: Floats
    log_std: Floats


class Applied(NamedTuple):
    """What control did on a tick; ``has`` tells which of the optional vectors mean something."""

    source: int
    has: int
    policy_slot: int
    interventions: int
    tick: int
    generation: int
    decision: int
    tick_in_decision: int
    policy_counter: int
    tick_ns: int
    applied_ns: int
    clearance_m: float
    log_prob: float
    action: Floats
    in_flight: Floats
    policy_action: Floats
    human_action: Floats
    u: Floats
    mean: Floats
    log_std: Floats
    late_ns: int = 0
    """How long after ``tick_ns`` the tick began; 0 in lock-step."""


class Human(NamedTuple):
    """A human's action, valid until a time on the clock of ``Seen.stamp_ns``.

    With ``locks`` nobody else may drive when it has expired, until RELEASE.
    """

    until_ns: int
    action: Floats
    locks: bool = False


class Shadowed(NamedTuple):
    """What the standby answered to a tick that it only shadowed."""

    slot: int
    is_on_time: bool
    tick: int
    latency_ns: int
    action: Floats


class Beat(NamedTuple):
    """Where control is, for a spare that must go on counting: no tick or decision number is used twice."""

    tick: int
    decision: int


class Layout:
    """Pack and unpack messages for a number of action elements and of state plus task elements."""

    def __init__(self, actions: int, vector: int) -> None:
        """Compile the structs."""
        self.actions, self.vector = actions, vector
        self._seen = struct.Struct(f"<BBHQqq{vector}f")
        self._tick = struct.Struct(f"<BBHQQQq{actions}f{vector}f")
        self._proposal = struct.Struct(f"<BBHQQQqd{4 * actions}f")
        self._applied = struct.Struct(f"<BBBbIQQQHQqqqfd{7 * actions}f")
        self._human = struct.Struct(f"<BBq{actions}f")
        self._shadowed = struct.Struct(f"<BBBQq{actions}f")

    def pack_seen(self, m: Seen) -> bytes:
        """Return a SEEN message."""
        return self._seen.pack(SEEN, m.flags, m.slot, m.generation, m.stamp_ns, m.image_stamp_ns, *m.vector)

    def unpack_seen(self, message: bytes) -> Seen:
        """Read a SEEN message; raises struct.error on another size."""
        _, flags, slot, generation, stamp, image_stamp, *vector = self._seen.unpack(message)
        return Seen(flags, slot, generation, stamp, image_stamp, tuple(vector))

    def pack_tick(self, m: Tick) -> bytes:
        """Return a TICK message."""
        return self._tick.pack(
            TICK, m.flags, m.slot, m.generation, m.tick, m.decision, m.deadline_ns, *m.in_flight, *m.vector
        )

    def unpack_tick(self, message: bytes) -> Tick:
        """Read a TICK message."""
        _, flags, slot, generation, tick, decision, deadline, *rest = self._tick.unpack(message)
        a = self.actions
        return Tick(flags, slot, generation, tick, decision, deadline, tuple(rest[:a]), tuple(rest[a:]))

    def pack_proposal(self, m: Proposal) -> bytes:
        """Return a PROPOSAL message."""
        return self._proposal.pack(
            PROPOSAL,
            m.flags,
            m.ticks,
            m.tick,
            m.decision,
            m.policy_counter,
            m.latency_ns,
            m.log_prob,
            *m.action,
            *m.u,
            *m.mean,
            *m.log_std,
        )

    def unpack_proposal(self, message: bytes) -> Proposal:
        """Read a PROPOSAL message."""
        _, flags, ticks, tick, decision, counter, latency, log_prob, *rest = self._proposal.unpack(message)
        a = self.actions
        action, u, mean, log_std = (tuple(rest[i * a : (i + 1) * a]) for i in range(4))
        return Proposal(flags, tick, decision, ticks, counter, latency, log_prob, action, u, mean, log_std)

    def pack_applied(self, m: Applied) -> bytes:
        """Return an APPLIED message."""
        return self._applied.pack(
            APPLIED,
            m.source,
            m.has,
            m.policy_slot,
            m.interventions,
            m.tick,
            m.generation,
            m.decision,
            m.tick_in_decision,
            m.policy_counter,
            m.tick_ns,
            m.applied_ns,
            m.late_ns,
            m.clearance_m,
            m.log_prob,
            *m.action,
            *m.in_flight,
            *m.policy_action,
            *m.human_action,
            *m.u,
            *m.mean,
            *m.log_std,
        )

    def unpack_applied(self, message: bytes) -> Applied:
        """Read an APPLIED message."""
        values = self._applied.unpack(message)
        a, rest = self.actions, values[15:]
        vectors = [tuple(rest[i * a : (i + 1) * a]) for i in range(7)]
        return Applied(*values[1:12], *values[13:15], *vectors)._replace(late_ns=values[12])

    def pack_human(self, m: Human) -> bytes:
        """Return a HUMAN message."""
        return self._human.pack(HUMAN, m.locks, m.until_ns, *m.action)

    def unpack_human(self, message: bytes) -> Human:
        """Read a HUMAN message."""
        _, locks, until, *action = self._human.unpack(message)
        return Human(until, tuple(action), bool(locks))

    def pack_shadowed(self, m: Shadowed) -> bytes:
        """Return a SHADOWED message."""
        return self._shadowed.pack(SHADOWED, m.slot, m.is_on_time, m.tick, m.latency_ns, *m.action)

    def unpack_shadowed(self, message: bytes) -> Shadowed:
        """Read a SHADOWED message."""
        _, slot, is_on_time, tick, latency, *action = self._shadowed.unpack(message)
        return Shadowed(slot, bool(is_on_time), tick, latency, tuple(action))


_BEAT = struct.Struct("<BQQ")
_PLACE = struct.Struct("<8xQ8xQ")
"""Where tick and decision stand in every APPLIED."""


def place_of(applied: bytes) -> Beat:
    """Return where control was when it sent an APPLIED."""
    return Beat(*_PLACE.unpack_from(applied))


def pack_beat(m: Beat) -> bytes:
    """Return a BEAT message."""
    return _BEAT.pack(BEAT, *m)


def unpack_beat(message: bytes) -> Beat:
    """Read a BEAT message."""
    return Beat(*_BEAT.unpack(message)[1:])
