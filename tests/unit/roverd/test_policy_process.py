"""The policy process as it really runs, between a fake roverd and a fake control process."""

from __future__ import annotations

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
from tests.unit.protocol.samples import ROBOT, TASK, golden, packed
from tests.unit.roverd.graphs import linear, weights

pytestmark = pytest.mark.component

PATIENCE_S = 20.0
LAYOUT = wire.Layout(2, 3)


class Rig:
    """Roverd's and control's ends of one policy process."""

    def __init__(self) -> None:
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
        self.link.send(msgpack.packb({"robot": ROBOT.to_map(), "task": TASK.to_map(), "seed": 1}))
        assert self.link.recv(64) == bytes([wire.READY])

    def request(self, **request) -> dict:
        self.link.send(msgpack.packb(request))
        return msgpack.unpackb(self.link.recv(4096))

    def ask(self, tick: int, state: float = 0.25) -> None:
        made = wire.Tick(wire.RESET, 0, 1, tick, tick, 0, (0.0, 0.0), (state, 0.0, 1.0))
        self.control.send(LAYOUT.pack_tick(made))

    def proposal(self) -> wire.Proposal:
        return LAYOUT.unpack_proposal(self.control.recv(4096))

    def end(self) -> int:
        self.control.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.link.close()


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
