"""Faults on a policy's way to the wheels: each leaves the old policy driving, or returns to it."""

import contextlib
import os
import signal
import time
import zipfile
from dataclasses import replace

import pytest

from protocol.bundle import ONNX, Signature
from protocol.node.socket import ControlError
from roverd.policy_commands import send_file
from tests.daemon.daemons import wait_until
from tests.daemon.policies import SPEED_PLACE, bias_of
from tests.daemon.swapping import PATIENCE_S
from tests.daemon.track import blocks, missed, skipped, wrong
from tests.unit.roverd import graphs

LOOK_TICKS = 12
CRAWL = -1.5
FAST = 0.5
"""A mean that gives 0.02 m/s, and a speed (of 0.5 m/s) that it never comes to while others do."""
HANG_TICKS = 20
"""Two decisions, a ping of 0.2 s, and what a busy roverd needs."""


def refused_at_the_door(made, path, reason):
    """Expect that roverd does not even store it."""
    with old_drives_on(made), pytest.raises(ControlError, match=reason) as caught:
        send_file(made.client, path, now=True)
    return str(caught.value).split(": ", 1)[-1][:90]


def refused_on_the_way(made, reason, **changes):
    """Expect a refusal with a reason after it was stored."""
    path = made.next_file(**changes)
    with old_drives_on(made):
        policy_id = send_file(made.client, path, now=True)["policy_id"]
        told = wait_until(
            lambda: (last := made.state()["last_refusal"])["name"] == policy_id and last["reason"],
            PATIENCE_S,
            what="a refusal",
        )
    assert reason in told, told
    return told[:90]


@contextlib.contextmanager
def old_drives_on(made, *, lost=0):
    """Expect that what drives goes on to, each tick; ``lost`` ticks may be those of the standby."""
    before, start = made.state()["driving"], len(made.track)
    yield
    made.wait_steps(LOOK_TICKS)
    steps = made.track.since(start)
    assert made.state()["driving"] == before
    assert blocks(steps) == [before], f"{len(blocks(steps))} policies drove"
    assert skipped(steps) == 0, f"{skipped(steps)} ticks skipped"
    assert missed(steps) <= lost, f"{missed(steps)} ticks missed"
    assert wrong(steps) == 0, f"{wrong(steps)} actions of no policy"


def bad_hash(made, draw):
    """Flip one bit of the network; the checksums of the zip around it are right."""
    path = made.next_file()
    with zipfile.ZipFile(path) as archive:
        files = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    place = draw.randrange(len(files[ONNX]))
    files[ONNX][place] ^= 1 << draw.randrange(8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, bytes(content))
    return refused_at_the_door(made, path, "sha256")


def cut_short(made, draw):
    path = made.next_file()
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, len(content))])
    return refused_at_the_door(made, path, "bundle")


def bad_signature(made, draw):
    value = "ab" * draw.choice((0, 63, 65))
    path = made.next_file(signature=Signature("0123456789abcdef", 1, value))
    return refused_at_the_door(made, path, "signature")


def wrong_spec(made, draw):
    robot = replace(made.maker.robot, action_repeat=2).to_map()
    path = made.next_file(robot=robot)
    return refused_at_the_door(made, path, "action_repeat")


def nan_weights(made, draw):
    graph = graphs.scaled(made.maker.transform.size, scale=float("nan"), bias=0.0)
    return refused_on_the_way(made, "golden output is not usable", graph=graph)


def wrong_actions(made, draw):
    graph = graphs.scaled(made.maker.transform.size, scale=0.1, bias=bias_of(made.number + 1) + 0.05)
    return refused_on_the_way(made, "golden outputs differ", graph=graph)


def slow(made, draw):
    graph = graphs.slow(made.maker.transform.size, scale=0.1, bias=bias_of(made.number + 1))
    return refused_on_the_way(made, "an answer takes", graph=graph)


def nan_on_live_frames(made, draw):
    return refused_on_the_way(made, "not finite", graph=brittle(made, 0.2))


def brittle(made, limit):
    size = made.maker.transform.size
    return graphs.brittle(size, limit=limit, element=SPEED_PLACE, scale=0.1, bias=bias_of(made.number + 1))


def killed_while_it_loads(made, draw):
    """The policy is loaded again in a new process, and drives then."""
    return comes_back(made, "loading")


def killed_while_it_shadows(made, draw):
    return comes_back(made, "shadowing")


def comes_back(made, stage):
    """Kill the standby at a stage; the old policy drives on until the new one does after all."""
    size = made.maker.transform.size
    graph = (
        None
        if stage == "shadowing"
        else graphs.slow(size, size=900, repeats=1, scale=0.1, bias=bias_of(made.number + 1))
    )
    before, start = made.state()["driving"], len(made.track)
    path = made.next_file(graph=graph)
    policy_id = send_file(made.client, path, now=True)["policy_id"]
    crashes = made.rover.get()["policy"]["crashes"]
    for _ in range(2000):
        shown = made.state()
        if shown["transaction"]["stage"] == stage and shown["transaction"]["name"] == policy_id:
            os.kill(shown["standby"]["pid"], signal.SIGKILL)
            break
    wait_until(lambda: made.rover.get()["policy"]["crashes"] > crashes, PATIENCE_S, what="a crash")
    wait_until(lambda: made.state()["driving"] == policy_id, PATIENCE_S, what="the policy drives after all")
    made.wait_steps(LOOK_TICKS)
    steps = made.track.since(start)
    assert blocks(steps) == [before, policy_id], f"{len(blocks(steps))} policies drove"
    assert (skipped(steps), missed(steps), wrong(steps)) == (0, 0, 0), (skipped(steps), missed(steps), wrong(steps))
    return "the policy drives after all"


def killed_while_it_drives(made, draw):
    """The standby's answer to the same tick is applied; the lost policy comes back at the next episode."""
    return fails_over(made, signal.SIGKILL, allowed=1)


def stopped_while_it_drives(made, draw):
    """The standby answers each tick meanwhile; the process that hangs is killed."""
    return fails_over(made, signal.SIGSTOP, allowed=HANG_TICKS)


def fails_over(made, signal_number, *, allowed):
    made.install(now=True)
    made.wait_stage("settled")
    wait_until(lambda: made.state()["standby"]["role"] == "fallback", PATIENCE_S, what="a standby")
    shown, start = made.state(), len(made.track)
    lost, other = shown["driving"], shown["standby"]["name"]
    failovers = shown["failovers"]
    made.wait_steps(2)
    began = time.monotonic()
    os.kill(made.rover.get()["policy"]["pid"], signal_number)
    wait_until(lambda: made.state()["failovers"] > failovers, PATIENCE_S, what="a failover")
    seconds = time.monotonic() - began
    wait_until(lambda: made.state()["driving"] == lost, PATIENCE_S, what="the lost policy is back")
    made.wait_steps(LOOK_TICKS)
    steps = made.track.since(start)
    assert blocks(steps) == [lost, other, lost], f"{[made.maker.made[each] for each in blocks(steps)]}"
    safe = sum(step.source == "fallback" for step in steps)
    assert skipped(steps) == 0, f"{skipped(steps)} ticks skipped"
    assert safe <= 1, f"{safe} ticks without a policy's action"
    assert missed(steps) <= allowed, f"{missed(steps)} ticks without what should drive"
    assert wrong(steps) == 0, f"{wrong(steps)} actions of no policy"
    return f"{safe} ticks without an action, {missed(steps)} of the standby, noticed in {seconds:.2f} s"


def bad_once_it_drives(made, draw):
    """A policy that is well while another one crawls, and gives NaN once it drives fast itself, is rolled back."""
    crawler, _ = made.install(now=True, bias=CRAWL)
    made.wait_stage("settled")
    start, rollbacks = len(made.track), made.state()["rollbacks"]
    path = made.next_file(graph=brittle(made, FAST))
    policy_id = send_file(made.client, path, now=True)["policy_id"]
    wait_until(lambda: made.state()["rollbacks"] > rollbacks, PATIENCE_S, what="a rollback")
    wait_until(lambda: made.state()["driving"] == crawler, PATIENCE_S, what="the policy before drives")
    made.wait_steps(LOOK_TICKS)
    steps = made.track.since(start)
    assert set(blocks(steps)) == {crawler, policy_id}
    assert skipped(steps) == 0, f"{skipped(steps)} ticks skipped"
    assert wrong(steps) == 0, f"{wrong(steps)} actions of no policy"
    assert all(step.source != "fallback" for step in steps), "the standby had no answer"
    reason = made.state()["barred"][policy_id]
    assert "non_finite" in reason, reason
    made.install(now=True)
    return f"after {sum(step.policy_id == policy_id for step in steps)} decisions: {reason}"


FAULTS = {
    each.__name__: each
    for each in (
        bad_hash,
        cut_short,
        bad_signature,
        wrong_spec,
        nan_weights,
        wrong_actions,
        slow,
        nan_on_live_frames,
        killed_while_it_loads,
        killed_while_it_shadows,
        bad_once_it_drives,
        killed_while_it_drives,
        stopped_while_it_drives,
    )
}
