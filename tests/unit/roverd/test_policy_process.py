"""The policy process as it really runs, between a fake roverd and a fake control process."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import msgpack
import pytest

from roverd.control import wire
from roverd.control.ring import RingWriter
from roverd.processes import NotRunningError, PolicyChild, ProcessError
from tests.unit.protocol.samples import ROBOT, TASK, golden, packed
from tests.unit.roverd.graphs import brittle, brittle_golden, linear, weights

pytestmark = pytest.mark.component

PATIENCE_S = 20.0
LAYOUT = wire.Layout(2, 3)


class Rig:
    """Roverd's and control's ends of one policy process."""

    def __init__(self, *, is_punctual: bool = False) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        (self.link, link), (self.control, control) = pairs
        ring = RingWriter(ROBOT.cameras)
        inherited = [link.fileno(), control.fileno(), ring.fd]
        words = [sys.executable, "-m", "roverd.policy.process", *map(str, inherited)]
        self.process = subprocess.Popen(words, pass_fds=inherited)
        link.close()
        control.close()
        ring.close()
        for each in (self.link, self.control):
            each.settimeout(PATIENCE_S)
        config = {"robot": ROBOT.to_map(), "task": TASK.to_map(), "seed": 1, "realtime": is_punctual}
        self.link.send(msgpack.packb(config))
        ready = self.link.recv(4096)
        assert ready[0] == wire.READY
        self.report = msgpack.unpackb(ready[1:])

    def attach(self) -> None:
        """Give the process the socket of a new control, as roverd does after a spare took over."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE_S)
        socket.send_fds(self.link, [bytes([wire.ATTACH])], [theirs.fileno()])
        theirs.close()

    def request(self, **request) -> dict:
        self.link.send(msgpack.packb(request))
        return msgpack.unpackb(self.link.recv(4096))

    def ask(self, tick: int, state: float = 0.25) -> None:
        made = wire.Tick(wire.RESET, 0, 1, tick, tick, 0, (0.0, 0.0), (state, 0.0, 1.0))
        self.control.send(LAYOUT.pack_tick(made))

    def proposal(self) -> wire.Proposal:
        return LAYOUT.unpack_proposal(self.control.recv(4096))

    def end(self) -> int:
        self.link.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.control.close()


@pytest.fixture(scope="module")
def process():
    rig = Rig()
    yield rig
    assert rig.end() == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    right = replace(golden(), mean=golden().vector @ weights())
    contents = {
        "right": packed(linear(), right),
        "otherwise": packed(linear(bias=0.1), right),
        "nan": packed(linear(bias=math.nan), right),
        "cut": packed(linear(), right)[:-40],
        "brittle": packed(brittle(), brittle_golden()),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def rig(process: Rig, files):
    """Return the process with a right policy loaded."""
    assert process.request(do="load", path=str(files / "right"))["ok"]
    return process


def test_a_loaded_policy_tells_its_proof_and_counter(process: Rig, files) -> None:
    answer = process.request(do="load", path=str(files / "right"))
    assert (answer["ok"], answer["counter"], answer["golden_error"] < 1e-5) == (True, 3, True)


def test_a_tick_is_answered_with_a_proposal_for_it(rig: Rig) -> None:
    rig.ask(41)
    proposal = rig.proposal()
    assert (proposal.tick, proposal.flags) == (41, wire.HAS_BEHAVIOUR)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("otherwise", "golden outputs differ"), ("nan", "not usable"), ("cut", "bundle of"), ("missing", "No such file")],
)
def test_a_policy_that_fails_is_refused_and_the_one_before_goes_on(rig: Rig, files, name: str, reason: str) -> None:
    rig.ask(1)
    before = rig.proposal()
    answer = rig.request(do="load", path=str(files / name))
    rig.ask(1)
    assert (answer["ok"], reason in answer["reason"]) == (False, True)
    assert rig.proposal().action == before.action


def test_a_policy_outlives_the_control_that_asked_it_and_answers_the_next_one(rig: Rig) -> None:
    rig.ask(1)
    before = rig.proposal()
    rig.control.close()
    rig.attach()
    rig.ask(1)
    assert rig.proposal().action == before.action


def test_a_new_control_may_come_before_the_old_one_is_gone(rig: Rig) -> None:
    old = rig.control
    rig.attach()
    rig.ask(7)
    assert rig.proposal().tick == 7
    assert old.recv(64) == b""
    old.close()


def test_a_ping_tells_of_the_proposals_and_failures_since_the_load(rig: Rig) -> None:
    for tick, state in ((1, 0.25), (2, math.nan), (3, 0.5)):
        rig.ask(tick, state)
        rig.proposal()
    told = rig.request(do="ping")
    assert (told["ok"], told["proposals"], told["failures"]) == (True, 3, {"input": 1})
    assert "not finite" in told["last_failure"]
    assert 0 < told["latency_ms"] <= told["latency_ms_max"]


def test_a_ping_before_any_tick_is_answered(rig: Rig) -> None:
    assert rig.request(do="ping")["proposals"] == 0


def test_network_that_turns_to_nan_gives_nothing_and_says_why(process: Rig, files) -> None:
    assert process.request(do="load", path=str(files / "brittle"))["ok"]
    process.ask(1, state=0.4)
    assert process.proposal().flags == wire.NOTHING
    told = process.request(do="ping")
    assert told["failures"] == {"non_finite": 1}
    assert "nan" in told["last_failure"]


def test_garbage_of_a_hundred_proposals_is_collected(rig: Rig) -> None:
    for tick in range(120):
        rig.ask(tick)
        assert rig.proposal().tick == tick


def test_what_the_kernel_granted_is_told_at_the_start(files) -> None:
    rig = Rig(is_punctual=True)
    try:
        assert rig.report["fifo"] or rig.report["reason"]
        assert rig.request(do="load", path=str(files / "right"))["ok"]
        policy = os.sched_getscheduler(rig.process.pid) & ~os.SCHED_RESET_ON_FORK
        assert (policy == os.SCHED_FIFO) == rig.report["fifo"], "its priority is as before the load"
    finally:
        assert rig.end() == 0


def test_an_unknown_controller_is_refused_with_the_known_ones(rig: Rig) -> None:
    assert "random" in rig.request(do="controller", name="randon")["reason"]


def test_a_controller_drives_without_a_behaviour_distribution(rig: Rig) -> None:
    assert rig.request(do="controller", name="random", seed=4)["ok"]
    rig.ask(5)
    assert rig.proposal().flags == 0


def test_only_the_newest_of_the_waiting_ticks_is_answered(rig: Rig) -> None:
    os.kill(rig.process.pid, signal.SIGSTOP)
    for tick in (10, 11, 12):
        rig.ask(tick)
    os.kill(rig.process.pid, signal.SIGCONT)
    assert rig.proposal().tick == 12


def test_a_tick_with_a_non_finite_state_gets_a_proposal_of_nothing_and_the_next_one_an_action(rig: Rig) -> None:
    rig.ask(20, state=math.nan)
    nothing = rig.proposal()
    assert (nothing.tick, nothing.flags) == (20, wire.NOTHING)
    rig.ask(21)
    assert rig.proposal().flags == wire.HAS_BEHAVIOUR


class Unheard:
    """Roverd's way to control, at whose end is nobody."""

    def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        pass


def end(process: subprocess.Popen) -> None:
    """Kill a process and wait until it has ended, without reaping it."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


async def test_a_request_to_a_process_that_was_killed_says_that_it_never_got_there():
    ring = RingWriter(ROBOT.cameras)
    config = {"robot": ROBOT.to_map(), "task": TASK.to_map(), "seed": 1, "realtime": False}
    made = PolicyChild(0, ring.fd, config, Unheard())
    ring.close()
    try:
        await made.child.started()
        assert (await made.request(do="ping"))["ok"]
        end(made.child.process)
        assert made.child.is_alive, "its link has not told yet"
        with pytest.raises(NotRunningError, match="it is not running"):
            await made.request(do="ping")
    finally:
        await made.child.stop()


async def test_a_process_that_dies_over_a_request_is_another_matter():
    ring = RingWriter(ROBOT.cameras)
    config = {"robot": ROBOT.to_map(), "task": TASK.to_map(), "seed": 1, "realtime": False}
    made = PolicyChild(0, ring.fd, config, Unheard())
    ring.close()
    try:
        await made.child.started()
        made.child.process.send_signal(signal.SIGSTOP)
        asked = asyncio.ensure_future(made.request(do="ping"))
        await asyncio.sleep(0)
        made.child.process.kill()
        with pytest.raises(ProcessError, match="died") as raised:
            await asked
        assert not isinstance(raised.value, NotRunningError)
    finally:
        await made.child.stop()
