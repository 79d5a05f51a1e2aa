"""The control process: it owns the clock and has the last word on every action.

At t_k it asks the driving policy for a decision (every n-th tick); at exactly t_k + D it applies the best valid
proposal after safety, and reports what it did. ``rate_hz = 0`` is lock-step: tick k is when observation k is there, and
the proposal is waited for, so that a run is deterministic. Both modes share every line but the waiting.

Start: ``python -m roverd.control.process LINK_FD RING_FD``; the first message on the link is the configuration.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import msgpack

from protocol.spec import RobotSpec
from protocol.step import Intervention
from roverd.control import wire
from roverd.control.actuator import Actuator, SimulatedActuator
from roverd.control.ring import RingReader
from roverd.control.safety import POLICY, SCRIPTED, Corridor, Limits, decide

NAN = float("nan")
STANDBYS = 2
LOCK_STEP_PATIENCE_S = 30.0
"""A policy that answers no tick for so long in lock-step counts as dead."""


@dataclass
class Held:
    """The proposal in force and the ticks it may be used for."""

    proposal: wire.Proposal
    slot: int
    until: int


class Control:
    """Run ticks until roverd closes the link."""

    def __init__(self, link: socket.socket, ring_fd: int, config: dict[str, Any], actuator: Actuator) -> None:
        """Take the configuration of roverd (spec, rate_hz, limits, geometry)."""
        spec = RobotSpec.from_map(config["robot"])
        self._link = link
        self._layout = wire.Layout(len(spec.action), len(spec.state) + int(config["task_size"]))
        self._ring = RingReader(ring_fd, spec.cameras)
        self._actuator = actuator
        self._limits = Limits(
            **{
                **config["limits"],
                **{key: tuple(config["limits"][key]) for key in ("low", "high", "safe_action")},
            }
        )
        self._repeat = spec.action_repeat
        self._delay_ns = int(spec.action_delay_ms * 1e6)
        self._rate_hz = float(config["rate_hz"])
        depth = [camera for camera in spec.cameras if camera.kind == "depth"]
        self._depth_key = depth[0].key if depth else ""
        self._corridor = (
            Corridor(depth[0].height, depth[0].width, depth[0].horizontal_fov_deg, **config["geometry"])
            if depth
            else None
        )
        self._policies: list[socket.socket | None] = [None] * STANDBYS
        self._active = 0
        self._scripted = [False] * STANDBYS
        self._seen: wire.Seen | None = None
        self._seen_is_new = False
        self._force_decision = False
        self._held: Held | None = None
        self._human: wire.Human | None = None
        self._e_stop = False
        self._is_stopped = False
        self._clearance: float | None = None
        self._clearance_generation = -1
        self._tick = 0
        self._decision = 0
        self._tick_in_decision = 0
        self._in_flight = self._limits.safe_action
        self._zero = (0.0,) * self._layout.actions
        self._running = True
        self._dropped = 0

    def run(self) -> None:
        """Serve until roverd is gone; always leaves the actuator at the safe action."""
        try:
            try:
                self._link.send(bytes([wire.READY]))
            except OSError:  # roverd was stopped meanwhile
                return
            if self._rate_hz > 0:
                self._run_clocked()
            else:
                self._run_lock_step()
        finally:
            self._actuator.write(self._limits.safe_action)

    # -- the two ways of waiting ------------------------------------------------------------------------------------

    def _run_lock_step(self) -> None:
        while self._running:
            self._receive()
            if self._seen_is_new:
                self._lock_step_tick()

    def _lock_step_tick(self) -> None:
        seen = self._begin_tick()
        asked = self._ask(seen, deadline_ns=0)
        proposal = self._wait_for_proposal(time.monotonic() + LOCK_STEP_PATIENCE_S) if asked else None
        self._finish_tick(seen, asked=asked, proposal=proposal, tick_ns=seen.stamp_ns, late=False)

    def _run_clocked(self) -> None:
        period_ns = round(1e9 / self._rate_hz)
        next_ns = time.monotonic_ns() + period_ns
        while self._running:
            if not self._serve_until(next_ns):
                return
            tick_ns, next_ns = next_ns, next_ns + period_ns
            behind = time.monotonic_ns() - next_ns
            if behind > 0:  # overrun: the ticks that can no longer be on time are skipped, never caught up
                next_ns += (behind // period_ns + 1) * period_ns
            if self._seen is not None:
                self._clocked_tick(tick_ns)

    def _clocked_tick(self, tick_ns: int) -> None:
        repeated = not self._seen_is_new
        seen = self._begin_tick()
        deadline_ns = tick_ns + self._delay_ns
        asked = self._ask(seen, deadline_ns)
        proposal = self._wait_for_proposal(deadline_ns * 1e-9) if asked else None
        self._serve_until(deadline_ns)
        self._finish_tick(seen, asked=asked, proposal=proposal, tick_ns=tick_ns, late=repeated)

    # -- one tick ---------------------------------------------------------------------------------------------------

    def _begin_tick(self) -> wire.Seen:
        seen = self._seen
        assert seen is not None  # noqa: S101 - both callers check
        if not self._seen_is_new:  # the same observation again begins nothing again
            seen = self._seen = seen._replace(flags=seen.flags & ~(wire.RESET | wire.DECIDE))
        self._seen_is_new = False
        self._tick += 1
        if seen.flags & wire.RESET:
            self._held = None
            self._in_flight = self._limits.safe_action
            self._is_stopped = False
            self._human = None
        due = self._tick_in_decision + 1 >= self._repeat or self._force_decision or self._decision == 0
        if due or seen.flags & (wire.RESET | wire.DECIDE):
            self._decision += 1
            self._tick_in_decision = 0
            self._force_decision = False
        else:
            self._tick_in_decision += 1
        return seen

    def _ask(self, seen: wire.Seen, deadline_ns: int) -> bool:
        policy = self._policies[self._active]
        if self._tick_in_decision != 0 or policy is None:
            return False
        request = wire.Tick(
            seen.flags | wire.DECIDE,
            seen.slot,
            seen.generation,
            self._tick,
            self._decision,
            deadline_ns,
            self._in_flight,
            seen.vector,
        )
        try:
            policy.send(self._layout.pack_tick(request), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True  # it has not answered for hundreds of ticks; the missing proposal is what counts
        except OSError:
            self._lose_policy(self._active)
            return False
        return True

    def _wait_for_proposal(self, until_s: float) -> wire.Proposal | None:
        while self._running:
            policy = self._policies[self._active]
            remaining = until_s - time.monotonic()
            if policy is None or remaining <= 0:
                return None
            ready, _, _ = select.select([policy, self._link], [], [], remaining)
            if self._link in ready:
                self._receive()
            if policy not in ready:
                continue
            proposal = self._read_proposal(self._active)
            if proposal is not None and proposal.tick == self._tick:
                return None if proposal.flags & wire.NOTHING else proposal
        return None

    def _read_proposal(self, slot: int) -> wire.Proposal | None:
        policy = self._policies[slot]
        if policy is None:
            return None
        try:
            message = policy.recv(wire.MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        if not message:
            self._lose_policy(slot)
            return None
        try:
            return self._layout.unpack_proposal(message)
        except struct.error:
            self._lose_policy(slot)  # what it says can no longer be trusted; its EOF makes roverd start it anew
            return None

    def _lose_policy(self, slot: int) -> None:
        lost = self._policies[slot]
        if lost is not None:
            lost.close()
        self._policies[slot] = None
        if self._held is not None and self._held.slot == slot:
            self._held = None

    def _finish_tick(
        self, seen: wire.Seen, *, asked: bool, proposal: wire.Proposal | None, tick_ns: int, late: bool
    ) -> None:
        if proposal is not None:
            self._held = Held(proposal, self._active, self._tick + min(proposal.ticks, self._repeat) - 1)
        elif asked or (self._held is not None and self._tick > self._held.until):
            self._held = None
        held = self._held
        clearance = self._measure(seen)
        human = self._human_action(seen.stamp_ns)
        verdict = decide(
            self._limits,
            proposal=held.proposal.action if held else None,
            proposal_source=SCRIPTED if held and not held.proposal.flags & wire.HAS_BEHAVIOUR else POLICY,
            human=human,
            e_stop=self._e_stop,
            clearance_m=clearance,
            age_ns=self._age(seen),
            was_stopped=self._is_stopped,
        )
        self._is_stopped = verdict.is_stopped
        self._actuator.write(verdict.action)
        flags = verdict.interventions | (Intervention.OBSERVATION_REPEATED if late else 0)
        self._report(seen, held, human, verdict.action, verdict.source, int(flags), clearance, tick_ns)
        self._in_flight = verdict.action

    def _report(
        self,
        seen: wire.Seen,
        held: Held | None,
        human: tuple[float, ...] | None,
        action: tuple[float, ...],
        source: int,
        flags: int,
        clearance: float | None,
        tick_ns: int,
    ) -> None:
        proposal = held.proposal if held else None
        has = (wire.HAS_HUMAN if human is not None else 0) | (
            (wire.HAS_POLICY | proposal.flags & wire.HAS_BEHAVIOUR) if proposal else 0
        )
        applied_ns = time.monotonic_ns() if self._rate_hz > 0 else tick_ns + self._delay_ns
        message = self._layout.pack_applied(
            wire.Applied(
                source=source,
                has=has,
                policy_slot=held.slot if held else -1,
                interventions=flags,
                tick=self._tick,
                generation=seen.generation,
                decision=self._decision,
                tick_in_decision=self._tick_in_decision,
                policy_counter=proposal.policy_counter if proposal else 0,
                tick_ns=tick_ns,
                applied_ns=applied_ns,
                clearance_m=NAN if clearance is None else clearance,
                log_prob=proposal.log_prob if proposal else 0.0,
                action=action,
                in_flight=self._in_flight,
                policy_action=proposal.action if proposal else self._zero,
                human_action=human if human is not None else self._zero,
                u=proposal.u if proposal else self._zero,
                mean=proposal.mean if proposal else self._zero,
                log_std=proposal.log_std if proposal else self._zero,
            )
        )
        try:
            self._link.send(message, 0 if self._rate_hz == 0 else socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._dropped += 1  # visible to roverd as a gap in tick numbers
        except OSError:
            self._running = False

    def _measure(self, seen: wire.Seen) -> float | None:
        if self._corridor is None:
            return None
        image_generation = seen.generation if seen.flags & wire.IMAGES else self._clearance_generation
        if image_generation != self._clearance_generation or self._clearance is None:
            self._clearance = self._corridor.clearance_m(self._ring.slots[seen.slot][self._depth_key])
            self._clearance_generation = seen.generation
        return self._clearance

    def _age(self, seen: wire.Seen) -> int:
        now = time.monotonic_ns() if self._rate_hz > 0 else seen.stamp_ns
        return now - (seen.image_stamp_ns or seen.stamp_ns)

    def _human_action(self, now_ns: int) -> tuple[float, ...] | None:
        if self._human is None:
            return None
        if now_ns > self._human.until_ns:
            self._human = None
            return None
        return self._human.action

    # -- messages ---------------------------------------------------------------------------------------------------

    def _serve_until(self, until_ns: int) -> bool:
        """Read messages until a time; return False when told to stop."""
        while self._running:
            remaining = (until_ns - time.monotonic_ns()) * 1e-9
            if remaining <= 0:
                break
            sockets = [self._link, *(policy for policy in self._policies if policy is not None)]
            ready, _, _ = select.select(sockets, [], [], remaining)
            if self._link in ready:
                self._receive()
            for slot, policy in enumerate(self._policies):
                if policy is not None and policy in ready:
                    self._read_proposal(slot)  # too late: it belongs to an old observation and is never applied
        return self._running

    def _receive(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._link, wire.MAX_MESSAGE_BYTES, 1)
        except InterruptedError:
            return
        except OSError:
            message, fds = b"", []
        if not message:
            self._running = False  # roverd is gone; run() commands the safe action
            return
        self._obey(message, fds)

    def _obey(self, message: bytes, fds: list[int]) -> None:
        match message[0]:
            case wire.SEEN:
                self._see(self._layout.unpack_seen(message))
            case wire.HUMAN:
                self._human = self._layout.unpack_human(message)
            case wire.E_STOP:
                self._e_stop = True
                self._held = None
                self._actuator.write(self._limits.safe_action)  # now, not at the next tick
            case wire.CLEAR:
                self._e_stop = False
            case wire.ACTIVE:
                self._active = message[1]
                self._held = None
                self._force_decision = True
            case wire.ATTACH:
                self._lose_policy(message[1])
                self._policies[message[1]] = socket.socket(fileno=fds[0])

    def _see(self, seen: wire.Seen) -> None:
        is_idle = bool(seen.flags & wire.IDLE)
        self._seen = None if is_idle else seen
        self._seen_is_new = not is_idle
        if is_idle:
            self._held = None
            self._actuator.write(self._limits.safe_action)


def main() -> None:
    """Read the configuration from the inherited link and run."""
    link = socket.socket(fileno=int(sys.argv[1]))
    config = msgpack.unpackb(link.recv(wire.MAX_MESSAGE_BYTES))
    control = Control(link, int(sys.argv[2]), config, SimulatedActuator())
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes cycles; a collection would be a late tick
    control.run()
    os._exit(0)


if __name__ == "__main__":
    main()
