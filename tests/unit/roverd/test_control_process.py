"""The control process as it really runs, between a fake roverd and a fake policy."""

from __future__ import annotations

import itertools
import math
import signal
import socket
import subprocess
import sys
import time

import msgpack
import pytest

from protocol.step import SOURCES, Intervention
from roverd.control import wire
from roverd.control.process import MARGIN_NS
from roverd.control.ring import RingWriter
from tests.unit.protocol.samples import DEPTH, ROBOT

pytestmark = pytest.mark.component

PATIENCE_S = 10.0
LIMITS = {
    "low": [-0.5, -1.5],
    "high": [0.5, 1.5],
    "safe_action": [0.0, 0.0],
    "forward": 0,
    "safety_distance_m": 0.25,
    "period_s": 0.1,
    "slow_distance_m": 0.0,
    "max_tilt_rad": 0.0,
    "stall_after_ns": 0,
    "stale_after_ns": 200_000_000,
}
A, B = (0.25, 0.5), (0.125, -1.0)
ZERO = (0.0, 0.0)


def pair(keep: list[socket.socket]) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    keep.append(ours)
    return ours, theirs


class Rig:
    """Roverd's and the policies' ends of one control process."""

    def __init__(self, rate_hz: float = 0.0) -> None:
        self.ring = RingWriter(ROBOT.cameras)
        self.sockets: list[socket.socket] = []
        self.link, theirs = pair(self.sockets)
        words = [sys.executable, "-m", "roverd.control.process", str(theirs.fileno()), str(self.ring.fd)]
        self.process = subprocess.Popen(words, pass_fds=[theirs.fileno(), self.ring.fd])
        theirs.close()
        self.config = {
            "robot": ROBOT.to_map(),
            "task_size": 1,
            "rate_hz": rate_hz,
            "limits": LIMITS,
            "geometry": {"camera_height_m": 0.2, "half_width_m": 0.2},
            "frozen_after_ns": 0,
            "actuator": "",
            "realtime": False,
            "cpus": [],
        }
        self.layout = wire.Layout(2, 3)
        self.link.send(msgpack.packb(self.config))
        assert self.link.recv(4096)[0] == wire.READY
        self.policy = self.attach(0)
        self.generation = 0
        self.stamp_ns = 0

    def attach(self, slot: int) -> socket.socket:
        ours, theirs = pair(self.sockets)
        socket.send_fds(self.link, [bytes([wire.ATTACH, slot])], [theirs.fileno()])
        theirs.close()
        return ours

    def tell(self, kind: int, *rest: int) -> None:
        self.link.send(bytes([kind, *rest]))

    def see(self, flags: int = 0, *, depth_mm: int = 7000, old_ns: int = 0) -> None:
        """Show an observation whose camera looks at a wall."""
        self.generation += 1
        self.stamp_ns += 100_000_000
        slot = self.generation % len(self.ring.slots)
        self.ring.slots[slot][DEPTH][:] = depth_mm
        image_ns = self.stamp_ns - old_ns
        seen = wire.Seen(flags | wire.IMAGES, slot, self.generation, self.stamp_ns, image_ns, (1.0, 2.0, 3.0))
        self.link.send(self.layout.pack_seen(seen))

    def asked(self, policy: socket.socket | None = None) -> wire.Tick:
        return self.layout.unpack_tick((policy or self.policy).recv(4096))

    def answer(
        self, tick: int, action: tuple[float, float], ticks: int = 2, flags: int = wire.HAS_BEHAVIOUR, **to
    ) -> None:
        proposal = wire.Proposal(flags, tick, 1, ticks, 9, 0, -1.5, action, action, ZERO, ZERO)
        to.get("policy", self.policy).send(self.layout.pack_proposal(proposal))

    def applied(self) -> wire.Applied:
        return self.layout.unpack_applied(self.link.recv(4096))

    def decide(self, action: tuple[float, float] = A, flags: int = 0, **seen) -> wire.Applied:
        """Run one tick that asks the policy."""
        self.see(flags, **seen)
        self.answer(self.asked().tick, action)
        return self.applied()

    def end(self) -> int:
        """Go away as a roverd that dies does; return the exit status."""
        for each in self.sockets:
            each.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.ring.close()


@pytest.fixture(scope="module")
def process():
    rig = Rig()
    yield rig
    assert rig.end() == 0


@pytest.fixture
def rig(process: Rig):
    """Return the process at the second tick of an episode in which the policy proposed A."""
    process.tell(wire.CLEAR)
    process.decide(flags=wire.RESET)
    process.decide(flags=wire.DECIDE)
    return process


def test_the_first_tick_of_an_episode_asks_for_a_decision(process: Rig) -> None:
    process.see(wire.RESET | wire.EXPLORE)
    tick = process.asked()
    process.answer(tick.tick, A)
    process.applied()
    assert (tick.flags, tick.in_flight, tick.vector) == (
        wire.RESET | wire.EXPLORE | wire.DECIDE | wire.IMAGES,
        ZERO,
        (1.0, 2.0, 3.0),
    )


def test_a_proposal_is_applied_as_the_policys(rig: Rig) -> None:
    applied = rig.decide(B, wire.DECIDE)
    assert (applied.action, SOURCES[applied.source], applied.interventions) == (B, "policy", 0)


def test_a_report_tells_what_was_in_flight_and_how_it_was_drawn(rig: Rig) -> None:
    applied = rig.decide(B, wire.DECIDE)
    told = (applied.in_flight, applied.u, applied.log_prob, applied.policy_counter, applied.policy_slot)
    assert (told, applied.has) == ((A, B, -1.5, 9, 0), wire.HAS_POLICY | wire.HAS_BEHAVIOUR)


def test_the_next_request_names_the_applied_action_as_in_flight(rig: Rig) -> None:
    rig.see(wire.DECIDE)
    tick = rig.asked()
    rig.answer(tick.tick, B)
    rig.applied()
    assert tick.in_flight == A


def test_a_decision_is_held_for_the_action_repeat_without_asking(rig: Rig) -> None:
    first = rig.decide(B, wire.DECIDE)
    rig.see()
    held = rig.applied()
    told = (held.action, held.decision, held.tick_in_decision, held.tick)
    assert told == (B, first.decision, 1, first.tick + 1)


def test_after_the_action_repeat_the_policy_is_asked_again(rig: Rig) -> None:
    first = rig.decide(A, wire.DECIDE)
    rig.see()
    rig.applied()
    following = rig.decide(B)
    assert (following.decision, following.tick_in_decision, following.action) == (first.decision + 1, 0, B)


def test_a_proposal_for_another_tick_is_ignored(rig: Rig) -> None:
    rig.see(wire.DECIDE)
    tick = rig.asked().tick
    for other in (tick - 1, tick + 1, 0):
        rig.answer(other, (0.5, 1.5))
    rig.answer(tick, B)
    assert rig.applied().action == B


def test_a_proposal_for_fewer_ticks_is_not_held_longer(rig: Rig) -> None:
    rig.see(wire.DECIDE)
    rig.answer(rig.asked().tick, A, ticks=1)
    rig.applied()
    rig.see()
    applied = rig.applied()
    assert (applied.action, applied.interventions, applied.policy_slot) == (ZERO, Intervention.MISSED, -1)


def test_a_proposal_is_never_held_longer_than_the_action_repeat(rig: Rig) -> None:
    rig.see(wire.DECIDE)
    rig.answer(rig.asked().tick, A, ticks=50)
    rig.applied()
    rig.see()
    rig.applied()
    assert rig.decide(B).action == B


def test_a_reset_starts_a_decision_and_forgets_the_held_action(rig: Rig) -> None:
    before = rig.decide(A, wire.DECIDE)
    after = rig.decide(B, wire.RESET)
    assert (after.decision, after.in_flight) == (before.decision + 1, ZERO)


def test_a_controllers_proposal_is_scripted(rig: Rig) -> None:
    rig.see(wire.DECIDE)
    rig.answer(rig.asked().tick, B, flags=0)
    applied = rig.applied()
    assert (SOURCES[applied.source], applied.has) == ("scripted", wire.HAS_POLICY)


def test_a_human_beats_the_policy_and_both_are_recorded(rig: Rig) -> None:
    rig.link.send(rig.layout.pack_human(wire.Human(rig.stamp_ns + 10**9, (0.5, 0.0))))
    applied = rig.decide(B, wire.DECIDE)
    assert (applied.action, SOURCES[applied.source], applied.interventions) == ((0.5, 0.0), "human", Intervention.HUMAN)
    assert (applied.human_action, applied.policy_action) == ((0.5, 0.0), B)


def test_the_wheel_goes_back_when_the_humans_time_is_over(rig: Rig) -> None:
    rig.link.send(rig.layout.pack_human(wire.Human(rig.stamp_ns + 150_000_000, (0.5, 0.0))))
    sources = [SOURCES[rig.decide(B, wire.DECIDE).source] for _ in range(2)]
    assert sources == ["human", "policy"]


def test_an_emergency_stop_commands_the_safe_action_until_it_is_cleared(rig: Rig) -> None:
    rig.tell(wire.E_STOP)
    stopped = [rig.decide(B, wire.DECIDE) for _ in range(2)]
    rig.tell(wire.CLEAR)
    cleared = rig.decide(B, wire.DECIDE)
    assert [(s.action, s.interventions) for s in stopped] == [(ZERO, Intervention.E_STOP)] * 2
    assert cleared.action == B


def test_an_emergency_stop_beats_the_human(rig: Rig) -> None:
    rig.tell(wire.E_STOP)
    rig.link.send(rig.layout.pack_human(wire.Human(rig.stamp_ns + 10**9, (0.5, 0.0))))
    assert rig.decide(B, wire.DECIDE).action == ZERO


def test_a_non_finite_proposal_gives_the_safe_action(rig: Rig) -> None:
    applied = rig.decide((math.nan, 0.0), wire.DECIDE)
    assert (applied.action, applied.interventions) == (ZERO, Intervention.NON_FINITE)


def test_a_wall_in_the_depth_image_stops_forward_motion(rig: Rig) -> None:
    applied = rig.decide(A, wire.DECIDE, depth_mm=200)
    assert (applied.action, SOURCES[applied.source]) == ((0.0, 0.5), "gate")
    assert applied.clearance_m == pytest.approx(0.2)


def test_an_old_image_gives_the_safe_action(rig: Rig) -> None:
    applied = rig.decide(A, wire.DECIDE, old_ns=300_000_000)
    assert (applied.action, applied.interventions) == (ZERO, Intervention.STALE)


def test_another_slot_takes_over_with_a_decision_of_its_own(rig: Rig) -> None:
    other = rig.attach(1)
    rig.tell(wire.ACTIVE, 1)
    rig.see()
    rig.answer(rig.asked(other).tick, B, policy=other)
    applied = rig.applied()
    rig.tell(wire.ACTIVE, 0)
    assert (applied.policy_slot, applied.tick_in_decision, applied.action) == (1, 0, B)


def test_a_swap_in_the_middle_of_a_tick_counts_from_the_next_one(rig: Rig) -> None:
    other = rig.attach(1)
    rig.see(wire.DECIDE)
    asked = rig.asked()
    rig.tell(wire.ACTIVE, 1)
    rig.answer(asked.tick, A)
    before = rig.applied()
    rig.see()
    rig.answer(rig.asked(other).tick, B, policy=other)
    after = rig.applied()
    rig.tell(wire.ACTIVE, 0)
    assert (before.policy_slot, before.action, before.interventions) == (0, A, 0)
    assert (after.policy_slot, after.action, after.tick_in_decision) == (1, B, 0)


@pytest.mark.parametrize("how", ["dies", "sends nonsense"])
def test_a_policy_that_fails_is_lost_and_its_successor_is_asked(rig: Rig, how: str) -> None:
    rig.see(wire.DECIDE)
    rig.asked()
    if how == "dies":
        rig.policy.close()
    else:
        rig.policy.send(b"\3nonsense")
    lost = rig.applied()
    rig.policy = rig.attach(0)
    assert (lost.action, lost.interventions, lost.policy_slot) == (ZERO, Intervention.MISSED, -1)
    assert rig.decide(B, wire.DECIDE).action == B


def test_the_process_ends_when_roverd_is_gone() -> None:
    assert Rig().end() == 0


def test_on_a_clock_a_late_proposal_is_never_applied() -> None:
    rig = Rig(rate_hz=40.0)
    rig.stamp_ns = 2**62  # newer than any monotonic clock, so that the observation stays fresh
    rig.see(wire.RESET)
    late = rig.asked().tick
    missed = rig.applied()
    rig.answer(late, A)
    after = [rig.applied() for _ in range(3)]
    rig.end()
    assert {a.action for a in (missed, *after)} == {ZERO}
    assert [a.tick for a in after] == [missed.tick + 1, missed.tick + 2, missed.tick + 3]


RATE_HZ = 40.0
PERIOD_NS = round(1e9 / RATE_HZ)
DELAY_NS = int(ROBOT.action_delay_ms * 1e6)


@pytest.fixture
def clocked():
    """Return a process with a clock and a second policy that may stand in."""
    rig = Rig(rate_hz=RATE_HZ)
    rig.standby = rig.attach(1)
    rig.tell(wire.STANDBY, 1, wire.FALLBACK)
    yield rig
    assert rig.end() == 0


def look(rig: Rig, flags: int = 0, *, age_ns: int = 0) -> None:
    """Show an observation of now."""
    rig.stamp_ns = time.monotonic_ns() - age_ns - 100_000_000
    rig.see(flags)


def driven(rig: Rig, mine: tuple[float, float] | None, theirs: tuple[float, float] | None, flags: int = 0):
    """Run one tick that both policies are asked on; None is a policy that does not answer."""
    look(rig, flags | wire.DECIDE)
    for policy, action in ((rig.policy, mine), (rig.standby, theirs)):
        tick = rig.asked(policy).tick
        if action is not None:
            rig.answer(tick, action, policy=policy)
    return rig.applied()


def test_both_are_asked_and_the_one_that_drives_is_followed(clocked: Rig) -> None:
    applied = driven(clocked, A, B, wire.RESET)
    assert (applied.action, applied.policy_slot, applied.interventions) == (A, 0, 0)


def test_the_standby_stands_in_on_the_very_tick_and_that_is_told(clocked: Rig) -> None:
    driven(clocked, A, B, wire.RESET)
    applied = driven(clocked, None, B)
    told = (applied.action, applied.policy_slot, applied.interventions, SOURCES[applied.source])
    assert told == (B, 1, Intervention.FAILOVER, "policy")


def test_without_any_answer_the_robot_stands(clocked: Rig) -> None:
    driven(clocked, A, B, wire.RESET)
    applied = driven(clocked, None, None)
    assert (applied.action, applied.interventions) == (ZERO, Intervention.MISSED)


def test_where_nobody_can_have_an_action_the_robot_is_stopped_before_one_would_be_due(clocked: Rig) -> None:
    driven(clocked, A, B, wire.RESET)
    look(clocked, wire.DECIDE)
    for policy in (clocked.policy, clocked.standby):
        clocked.answer(clocked.asked(policy).tick, ZERO, flags=wire.NOTHING, policy=policy)
    applied = clocked.applied()
    assert (applied.action, applied.interventions) == (ZERO, Intervention.MISSED)
    assert applied.applied_ns - applied.tick_ns < DELAY_NS - MARGIN_NS


def test_an_action_goes_out_when_it_is_due_and_its_absence_is_noticed_before(clocked: Rig) -> None:
    driven(clocked, A, B, wire.RESET)
    in_time, absent = driven(clocked, A, None), driven(clocked, None, None)
    assert (in_time.action, absent.action) == (A, ZERO)
    assert in_time.applied_ns - in_time.tick_ns >= DELAY_NS
    assert absent.applied_ns - absent.tick_ns >= DELAY_NS - MARGIN_NS


def test_a_standby_that_only_shadows_is_reported_and_never_applied(clocked: Rig) -> None:
    clocked.tell(wire.STANDBY, 1, wire.SHADOW)
    look(clocked, wire.RESET)
    tick = clocked.asked(clocked.standby).tick
    clocked.answer(tick, B, policy=clocked.standby)
    shadowed = clocked.layout.unpack_shadowed(clocked.link.recv(4096))
    assert (shadowed.slot, shadowed.is_on_time, shadowed.tick, shadowed.action) == (1, True, tick, B)
    applied = clocked.applied()
    assert (applied.action, applied.interventions) == (ZERO, Intervention.MISSED)


def test_when_the_one_that_drives_dies_the_standby_drives_on_until_roverd_says_otherwise(clocked: Rig) -> None:
    driven(clocked, A, B, wire.RESET)
    clocked.policy.close()
    look(clocked, wire.DECIDE)
    clocked.answer(clocked.asked(clocked.standby).tick, B, policy=clocked.standby)
    first = clocked.applied()
    clocked.tell(wire.ACTIVE, 1)
    look(clocked, wire.DECIDE)
    clocked.answer(clocked.asked(clocked.standby).tick, A, policy=clocked.standby)
    second = clocked.applied()
    assert (first.action, first.policy_slot, first.interventions) == (B, 1, Intervention.FAILOVER)
    assert (second.action, second.interventions & Intervention.FAILOVER) == (A, 0)


def test_a_proposal_that_comes_a_tick_late_is_counted_there_and_not_applied(clocked: Rig) -> None:
    clocked.tell(wire.STANDBY, 1, wire.NO_ROLE)
    look(clocked, wire.RESET | wire.DECIDE)
    late = clocked.asked().tick
    assert clocked.applied().interventions == Intervention.MISSED
    clocked.answer(late, A)
    look(clocked, wire.DECIDE)
    applied = clocked.applied()
    assert (applied.action, applied.interventions) == (ZERO, Intervention.MISSED | Intervention.LATE)


def test_a_lock_holds_the_robot_still_until_the_human_lets_go(clocked: Rig) -> None:
    clocked.link.send(clocked.layout.pack_human(wire.Human(time.monotonic_ns() - 1, (0.5, 0.0), locks=True)))
    locked = [driven(clocked, A, B, flags) for flags in (wire.RESET, 0)]
    clocked.tell(wire.RELEASE)
    free = driven(clocked, A, B)
    assert {each.action for each in locked} == {ZERO}
    assert {each.interventions for each in locked} == {Intervention.HUMAN | Intervention.WHEEL_LOCKED}
    assert (free.action, SOURCES[free.source]) == (A, "policy")


def test_ticks_that_could_not_be_in_time_leave_a_gap_in_the_numbers(clocked: Rig) -> None:
    before = driven(clocked, A, B, wire.RESET)
    clocked.process.send_signal(signal.SIGSTOP)
    time.sleep(6 * PERIOD_NS * 1e-9)
    clocked.process.send_signal(signal.SIGCONT)
    ticks = [clocked.applied().tick for _ in range(3)]
    assert ticks[0] == before.tick + 1 or ticks[0] > before.tick + 4
    assert max(b - a for a, b in itertools.pairwise([before.tick, *ticks])) >= 5


def test_a_report_says_how_late_its_tick_began(clocked: Rig) -> None:
    applied = driven(clocked, A, B, wire.RESET)
    assert 0 <= applied.late_ns < 10 * PERIOD_NS
    assert applied.applied_ns >= applied.tick_ns + applied.late_ns
