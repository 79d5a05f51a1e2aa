"""The control process: it owns the clock and has the last word on every action.

At t_k it asks the driving policy for a decision (every n-th tick); at exactly t_k + D it applies the best valid
proposal after safety, and reports what it did. Where no proposal can come any more (every policy is gone or has said
that it has nothing, or the time is up but for a millisecond) the safe action goes out at once: what stops the robot is
never later than what drives it. ``rate_hz = 0`` is lock-step: tick k is when observation k is there, and the proposal
is waited for, so that a run is deterministic. Both modes share every line but the waiting.

Overrun: ticks whose time is past are skipped, never caught up, and leave a gap in the tick numbers. Between two ticks
control goes on looking at the age of the newest observation, so that a robot whose roverd or camera hangs is stopped
when the limit is reached and not a period later.

Start: ``python -m roverd.control.process LINK_FD RING_FD [BEAT_FD PID_FD]``; the first message on the link is the
configuration. With the last two it is the warm spare (see roverd/control/spare.py). In lock-step there is no spare:
with control's state gone two runs could not be equal, so roverd ends with an error instead.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import msgpack

from protocol.spec import RobotSpec
from protocol.step import Intervention
from roverd.control import actuator, realtime, safety, wire
from roverd.control.corridor import Corridor, FrameWatch
from roverd.control.ring import RingReader
from roverd.control.slots import Held, PolicySlots

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.spec import Camera

NAN = float("nan")
LOCK_STEP_PATIENCE_S = 30.0
"""A policy that answers no tick for so long in lock-step counts as dead."""
BEAT_NS = 20_000_000
FOREVER_NS = 1 << 62
MARGIN_NS = 1_000_000
"""An answer that is not there so long before it is due is missed: what stops the robot then goes out at once."""
OPEN_TRIES, OPEN_PAUSE_S = 10, 0.005


class Control:
    """Run ticks until roverd closes the link."""

    def __init__(self, link: socket.socket, ring_fd: int, config: dict[str, Any]) -> None:
        """Take the configuration of roverd: specs, rate_hz, limits, geometry, the actuator."""
        spec = RobotSpec.from_map(config["robot"])
        self._link = link
        self._layout = wire.Layout(len(spec.action), len(spec.state) + int(config["task_size"]))
        self._ring = RingReader(ring_fd, spec.cameras)
        self._rate_hz = float(config["rate_hz"])
        self._limits = safety.Limits.from_map(config["limits"])
        self._repeat = spec.action_repeat
        self._delay_ns = int(spec.action_delay_ms * 1e6)
        self._margin_ns = min(MARGIN_NS, self._delay_ns // 10)
        self._find_sensors(spec, config)
        self._actuator = actuator.GuardedActuator(actuator.load(config, spec), self._tell_actuator)
        self._slots = PolicySlots(self._layout, is_clocked=self._rate_hz > 0, on_shadow=self._tell)
        self._seen: wire.Seen | None = None
        self._seen_is_new = False
        self._force_decision = False
        self._next_active: int | None = None
        self._held: Held | None = None
        self._wheel: safety.Wheel | None = None
        self._e_stop = False
        self._memory = safety.start(self._limits)
        self._in_flight = self._memory.last
        self._clearance: float | None = None
        self._clearance_generation = -1
        self._is_frozen = False
        self._tick = 0
        self._decision = 0
        self._tick_in_decision = 0
        self._is_safe = True
        self._extra_flags = 0
        self._zero = (0.0,) * self._layout.actions
        self._spare: socket.socket | None = None
        self._beat_at_ns = FOREVER_NS
        self._running = True

    def _find_sensors(self, spec: RobotSpec, config: dict[str, Any]) -> None:
        names = [element.name for element in spec.state]
        self._places = {name: names.index(name) if name in names else -1 for name in ("linear_vel", "roll", "pitch")}
        camera = forward_camera(spec)
        self._depth_key = camera.key if camera else ""
        self._corridor = (
            Corridor(camera.height, camera.width, camera.horizontal_fov_deg, **config["geometry"]) if camera else None
        )
        self._frames = FrameWatch(int(config["frozen_after_ns"]))

    def run(self) -> None:
        """Serve until roverd is gone; always leaves the actuator at the safe action."""
        try:
            self._make_safe()
            if self._rate_hz > 0:
                self._run_clocked()
            else:
                self._run_lock_step()
        finally:
            self._make_safe()
            self._actuator.close()

    def take_over(self, beat: wire.Beat, reason: str) -> None:
        """Become the one that drives, for one that is gone: say so, stop the robot, and count on where it was."""
        self._tell(bytes([wire.TOOK_OVER]) + reason.encode())  # before a device that may hang
        self._tick, self._decision = beat.tick + 1, beat.decision + 1  # it may have begun one more than it told
        self._force_decision = True
        self._extra_flags = int(Intervention.TOOK_OVER)
        for _ in range(OPEN_TRIES):  # a device that is still busy with the one that is gone
            if self._make_safe():
                return
            time.sleep(OPEN_PAUSE_S)

    # -- the two ways of waiting ------------------------------------------------------------------------------------

    def _run_lock_step(self) -> None:
        while self._running:
            self._serve(FOREVER_NS, lambda: self._seen_is_new)
            if self._seen_is_new and self._running:
                seen = self._begin_tick()
                if asked := self._ask(seen, deadline_ns=0):
                    patience_ns = int(LOCK_STEP_PATIENCE_S * 1e9)
                    self._serve(time.monotonic_ns() + patience_ns, lambda: self._slots.is_answered)
                self._finish_tick(seen, asked=asked, tick_ns=seen.stamp_ns, late_ns=0, repeated=False)

    def _run_clocked(self) -> None:
        period_ns = round(1e9 / self._rate_hz)
        tick_ns = time.monotonic_ns() + period_ns
        while self._serve(tick_ns):
            skipped = (time.monotonic_ns() - tick_ns) // period_ns
            tick_ns += skipped * period_ns
            if self._seen is not None:
                self._tick += skipped
                self._clocked_tick(tick_ns)
            tick_ns += period_ns

    def _clocked_tick(self, tick_ns: int) -> None:
        late_ns = time.monotonic_ns() - tick_ns
        repeated = not self._seen_is_new
        seen = self._begin_tick()
        due_ns = tick_ns + self._delay_ns
        deadline_ns = due_ns - self._margin_ns
        asked = self._ask(seen, deadline_ns)
        if asked:
            self._serve(deadline_ns, lambda: self._slots.is_hopeless)
        if self._wheel is not None or (self._slots.has_answer if asked else self._held is not None):
            self._serve(due_ns)
        self._finish_tick(seen, asked=asked, tick_ns=tick_ns, late_ns=late_ns, repeated=repeated)

    # -- one tick ---------------------------------------------------------------------------------------------------

    def _begin_tick(self) -> wire.Seen:
        seen = self._seen
        assert seen is not None  # noqa: S101 - both callers check
        if not self._seen_is_new:  # the same observation again begins nothing again
            seen = self._seen = seen._replace(flags=seen.flags & ~(wire.RESET | wire.DECIDE))
        self._seen_is_new = False
        self._tick += 1
        if self._next_active is not None and self._slots.order(self._next_active):
            self._held = None
            self._force_decision = True
        self._next_active = None
        if seen.flags & wire.RESET:
            self._held = None
            self._memory = safety.start(self._limits, self._memory.last if self._rate_hz > 0 else None)
            if self._wheel is not None and not self._wheel.locks:
                self._wheel = None
        self._in_flight = self._memory.last
        due = self._tick_in_decision + 1 >= self._repeat or self._force_decision or self._decision == 0
        if due or seen.flags & (wire.RESET | wire.DECIDE):
            self._decision += 1
            self._tick_in_decision = 0
            self._force_decision = False
        else:
            self._tick_in_decision += 1
        self._beat()
        return seen

    def _ask(self, seen: wire.Seen, deadline_ns: int) -> bool:
        if self._tick_in_decision != 0:
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
        return self._slots.ask(request)

    def _hold(self, *, asked: bool) -> Held | None:
        """Return the proposal in force: a new one on the tick that asked, else the one that is held."""
        if self._tick_in_decision == 0:
            self._held = self._slots.chosen(self._tick + self._repeat - 1) if asked else None
            self._slots.close()
        elif self._held is not None and self._tick > self._held.until:
            self._held = None
        elif self._held is not None and self._held.slot != self._slots.active:
            self._held = self._slots.chosen(self._held.until)  # its process is gone; the standby answered this too
        return self._held

    def _finish_tick(self, seen: wire.Seen, *, asked: bool, tick_ns: int, late_ns: int, repeated: bool) -> None:
        held = self._hold(asked=asked)
        newest = self._seen or seen
        sensed = self._sense(newest)
        is_scripted = held is not None and not held.proposal.flags & wire.HAS_BEHAVIOUR
        request = safety.Request(
            proposal=held.proposal.action if held else None,
            proposal_source=safety.SCRIPTED if is_scripted else safety.POLICY,
            wheel=self._wheel,
            e_stop=self._e_stop,
        )
        human = self._wheel.action if self._wheel is not None and sensed.now_ns <= self._wheel.until_ns else None
        verdict, self._memory = safety.decide(self._limits, request, sensed, self._memory)
        self._wheel = verdict.wheel
        verdict = self._apply(verdict)
        flags = verdict.interventions | self._extra_flags | (Intervention.OBSERVATION_REPEATED if repeated else 0)
        if held is not None and held.slot != self._slots.ordered:
            flags |= Intervention.FAILOVER
        if self._slots.late:
            flags |= Intervention.LATE
        self._slots.late = self._extra_flags = 0
        self._report(seen, held, human, verdict._replace(interventions=int(flags)), (tick_ns, late_ns))

    def _report(
        self,
        seen: wire.Seen,
        held: Held | None,
        human: wire.Floats | None,
        verdict: safety.Verdict,
        times_ns: tuple[int, int],
    ) -> None:
        proposal = held.proposal if held else None
        has = (wire.HAS_HUMAN if human is not None else 0) | (
            (wire.HAS_POLICY | proposal.flags & wire.HAS_BEHAVIOUR) if proposal else 0
        )
        tick_ns, late_ns = times_ns
        applied = wire.Applied(
            source=verdict.source,
            has=has,
            policy_slot=held.slot if held else -1,
            interventions=verdict.interventions,
            tick=self._tick,
            generation=seen.generation,
            decision=self._decision,
            tick_in_decision=self._tick_in_decision,
            policy_counter=proposal.policy_counter if proposal else 0,
            tick_ns=tick_ns,
            applied_ns=time.monotonic_ns() if self._rate_hz > 0 else tick_ns + self._delay_ns,
            clearance_m=NAN if self._clearance is None else self._clearance,
            log_prob=proposal.log_prob if proposal else 0.0,
            action=verdict.action,
            in_flight=self._in_flight,
            policy_action=proposal.action if proposal else self._zero,
            human_action=human if human is not None else self._zero,
            u=proposal.u if proposal else self._zero,
            mean=proposal.mean if proposal else self._zero,
            log_std=proposal.log_std if proposal else self._zero,
            late_ns=late_ns,
        )
        self._tell(self._layout.pack_applied(applied))

    def _sense(self, seen: wire.Seen) -> safety.Sensed:
        self._look(seen)
        values = {name: seen.vector[place] if place >= 0 else None for name, place in self._places.items()}
        # in lock-step the clock stands still while the policy thinks, and the images of a decision are held with it
        now_ns = time.monotonic_ns() if self._rate_hz > 0 else seen.stamp_ns
        return safety.Sensed(
            now_ns=now_ns,
            age_ns=now_ns - (_oldest_ns(seen) if self._rate_hz > 0 or seen.flags & wire.IMAGES else seen.stamp_ns),
            clearance_m=self._clearance,
            frame=self._clearance_generation,
            is_frozen=self._is_frozen,
            speed_mps=values["linear_vel"],
            roll_rad=values["roll"],
            pitch_rad=values["pitch"],
            is_finite=all(abs(value) < float("inf") for value in seen.vector),
        )

    def _look(self, seen: wire.Seen) -> None:
        """Measure the newest depth image, once."""
        is_fresh = seen.flags & wire.IMAGES and seen.generation != self._clearance_generation
        if self._corridor is None or not (is_fresh or self._clearance is None):
            return
        depth = self._ring.slots[seen.slot][self._depth_key]
        self._clearance = self._corridor.clearance_m(depth)
        self._clearance_generation = seen.generation
        if self._rate_hz > 0:
            self._is_frozen = self._frames.see(depth, seen.image_stamp_ns)

    # -- the actuator -----------------------------------------------------------------------------------------------

    def _apply(self, verdict: safety.Verdict) -> safety.Verdict:
        """Command an action; one that the device refuses was not applied, and is not told as if it were."""
        safe = safety.safe(self._limits, self._in_flight)
        if not self._actuator.write(verdict.action, safe):
            flags = verdict.interventions | Intervention.ACTUATOR_FAILED
            verdict = verdict._replace(action=safe, source=safety.FALLBACK, interventions=int(flags))
            self._memory = self._memory._replace(last=safe, change=self._zero)
        self._is_safe = verdict.action == safety.safe(self._limits, verdict.action)
        return verdict

    def _make_safe(self) -> bool:
        """Command the safe action now, not at the next tick; return False where the device does not take it."""
        action = safety.safe(self._limits, self._memory.last)
        is_taken = self._actuator.write(action, action)
        self._memory = self._memory._replace(last=action, change=self._zero)
        self._is_safe = True
        return is_taken

    def _tell_actuator(self, failure: str) -> None:
        self._tell(bytes([wire.ACTUATOR]) + failure.encode()[:1000])

    # -- messages ---------------------------------------------------------------------------------------------------

    def _serve(self, until_ns: int, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Answer messages until a time or until something is over; return False when told to stop."""
        while self._running and not is_over():
            now_ns = time.monotonic_ns()
            if now_ns >= self._beat_at_ns:
                self._beat()
            if now_ns >= until_ns:
                break
            stop_ns = self._stop_at_ns()
            if now_ns >= stop_ns:
                self._make_safe()
                continue
            wake_ns = min(until_ns, self._beat_at_ns, stop_ns)
            timeout_s = None if wake_ns == FOREVER_NS else (wake_ns - now_ns) * 1e-9
            ready, _, _ = select.select([self._link, *self._slots.sockets], [], [], timeout_s)
            if self._link in ready:
                self._receive()
            self._slots.read(ready)
        return self._running

    def _stop_at_ns(self) -> int:
        """Return when the robot, if it moves, must stop without waiting for a tick.

        That is when the newest observation will be too old to move by, or a human who holds the wheel falls silent.
        """
        if self._seen is None or self._is_safe or self._rate_hz == 0:
            return FOREVER_NS
        stale_ns = _oldest_ns(self._seen) + self._limits.stale_after_ns
        return min(stale_ns, self._wheel.until_ns) if self._wheel is not None and self._wheel.locks else stale_ns

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
        self._obey(message, [socket.socket(fileno=fd) for fd in fds])

    def _obey(self, message: bytes, sockets: list[socket.socket]) -> None:
        match message[0]:
            case wire.ACTIVE | wire.STANDBY | wire.ATTACH:
                self._arrange(message, sockets)
            case wire.SPARE:
                self._spare = sockets.pop()
                self._spare.setblocking(False)
                self._beat()
            case wire.SEEN:
                self._see(self._layout.unpack_seen(message))
            case wire.HUMAN:
                human = self._layout.unpack_human(message)
                self._wheel = safety.Wheel(human.action, human.until_ns, human.locks)
            case wire.RELEASE:
                self._wheel = None
            case wire.E_STOP:
                self._e_stop = True
                self._held = None
                self._make_safe()
            case wire.CLEAR:
                self._e_stop = False

    def _arrange(self, message: bytes, sockets: list[socket.socket]) -> None:
        """Do what roverd says of the policy processes."""
        kind, slot = message[0], message[1]
        if kind == wire.STANDBY:
            self._slots.set_role(slot, message[2])
        elif kind == wire.ATTACH:
            self._slots.attach(slot, sockets.pop())
        else:
            self._next_active = slot  # from the next tick on: the one under way was asked of another

    def _see(self, seen: wire.Seen) -> None:
        is_idle = bool(seen.flags & wire.IDLE)
        self._seen = None if is_idle else seen
        self._seen_is_new = not is_idle
        if is_idle:
            self._held = None
            self._make_safe()
        elif self._rate_hz > 0:
            self._look(seen)  # now, for there is no time for it when the action is due

    def _tell(self, message: bytes) -> None:
        try:
            self._link.send(message, 0 if self._rate_hz == 0 else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # roverd sees a gap in the tick numbers
        except OSError:
            self._running = False

    def _beat(self) -> None:
        """Tell the spare that this process lives; without a spare there is nobody to tell."""
        if self._spare is None:
            return
        self._beat_at_ns = time.monotonic_ns() + BEAT_NS
        try:
            self._spare.send(wire.pack_beat(wire.Beat(self._tick, self._decision)))
        except BlockingIOError:
            self._tell(bytes([wire.SPARE]))  # it has read nothing for seconds
        except OSError:
            self._spare.close()
            self._spare, self._beat_at_ns = None, FOREVER_NS


def forward_camera(spec: RobotSpec) -> Camera | None:
    """Return the depth camera that looks ahead: the first that is not called rear."""
    return next((c for c in spec.cameras if c.kind == "depth" and not c.name.startswith("rear")), None)


def _oldest_ns(seen: wire.Seen) -> int:
    """Return when the older of state and images was captured."""
    return min(seen.stamp_ns, seen.image_stamp_ns or seen.stamp_ns)


def settle(config: dict[str, Any]) -> dict[str, Any]:
    """Get punctual, where the clock is real and wanted so; return what the kernel granted."""
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes cycles; a collection would be a late tick
    if not config["realtime"]:
        return realtime.ordinary()
    if config["cpus"]:
        os.sched_setaffinity(0, config["cpus"])
    return realtime.apply(realtime.CONTROL_PRIORITY, realtime.CONTROL_NICE, locks_memory=True)


def main() -> None:
    """Read the configuration from the inherited link and run."""
    realtime.ignore_group_signals()
    link = socket.socket(fileno=int(sys.argv[1]))
    config = msgpack.unpackb(link.recv(wire.MAX_MESSAGE_BYTES))
    control = Control(link, int(sys.argv[2]), config)
    report = settle(config)
    try:
        link.send(bytes([wire.READY]) + msgpack.packb(report))
        if len(sys.argv) > 3:
            from roverd.control.spare import Spare  # noqa: PLC0415 - it needs what this module defines

            beat = socket.socket(fileno=int(sys.argv[3]))
            Spare(control, link, beat, int(sys.argv[4]), is_punctual=report["fifo"]).run()
        else:
            control.run()
    except OSError:  # roverd was stopped meanwhile
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
