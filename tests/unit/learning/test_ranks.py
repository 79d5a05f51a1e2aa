"""Several processes, one update: gloo on the loopback."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.encoders.blind import build_blind
from plugins.encoders.cameras import CameraSettings
from plugins.encoders.column import build_column
from plugins.encoders.rgbd import build_rgbd
from plugins.manager import PluginManager
from protocol.spec import Element
from trainerd.design import Design
from trainerd.learning.learner import Learner
from trainerd.learning.ranks import Plan, Ranks, RanksError
from trainerd.learning.settings import NetworkSettings, PpoSettings
from trainerd.settings import Settings

pytestmark = [pytest.mark.component, pytest.mark.timeout(120)]

START_S = 60.0
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
LISTENS = "0A"
RANK_0 = """
import sys, time
sys.path.insert(0, sys.argv[1])
from conftest import Toy
from test_ranks import learner_of
from trainerd.learning.ranks import Plan, Ranks

toy, ranks = Toy(), Ranks(Plan(("cpu", "cpu"), "blind", {}))
learner = learner_of(toy, ranks=ranks)
learner.warm_up()
ranks.wait(60.0)
update = learner.update(toy.filled(learner))
for _ in range(3):
    next(update)
print(*ranks.pids, flush=True)
time.sleep(60.0)
"""


def learner_of(toy, encoder="blind", ranks=None, network=None, **ppo):
    build = {"blind": build_blind, "column": build_column, "rgbd": build_rgbd}[encoder]
    return Learner(
        toy.robot,
        toy.task,
        toy.transform,
        lambda shape: build(shape, CameraSettings()),
        network=NetworkSettings(**{"encoder": encoder, "normaliser_frames": 0, **(network or {})}),
        ppo=PpoSettings(**{"rollout": 32, "minibatch": 16, **ppo}),
        seed=0,
        budget_decisions=10_000,
        ranks=ranks,
    )


@pytest.fixture
def ranked(request):
    """Makes ranks on the CPU and closes them."""
    made = []

    def make(count, encoder="blind", hang_s=30.0):
        ranks = Ranks(Plan(("cpu",) * count, encoder, {}), hang_s=hang_s)
        made.append(ranks)
        return ranks

    yield make
    for ranks in made:
        ranks.close()


def difference(one, other):
    ours, theirs = one.snapshot(), other.snapshot()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours if ours[name].size)


@pytest.mark.parametrize(
    ("encoder", "cut"),
    [
        ("column", {}),
        pytest.param("rgbd", {"micro_batch": 2, "learning_rate": 1e-3}, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_within_1e_6_after_100_optimiser_steps(seeing, finish, ranked, encoder, cut):
    ranks = ranked(2, encoder)
    recipe = {"network": {"normalise_vector": True}, "normalise_reward": True, "minibatch": 7, **cut}
    together = learner_of(seeing, encoder, ranks, **recipe)
    alone = learner_of(seeing, encoder, **recipe)
    together.warm_up()
    ranks.wait(START_S)
    for seed in range(5):
        rollout = seeing.filled(alone, seed=seed)
        assert finish(alone.update(rollout)).metrics["rolled_back"] == 0.0
        metrics = finish(together.update(rollout)).metrics
        assert (metrics["ranks"], metrics["ranks_lost"]) == (2, 0)
    rollout.reward[:] = rollout.reward[::-1].copy()  # the pool's two rollouts are filled again and again
    for learner in (alone, together):
        finish(learner.update(rollout))
    assert int(together.optimizer.state[together.network.policy[0].weight]["step"]) == 6 * 4 * 5
    assert difference(alone, together) <= 1e-6


@pytest.mark.slow
def test_a_rank_that_is_killed_within_an_update_costs_no_step_and_comes_back(toy, finish, ranked):
    ranks = ranked(3)
    together, alone = learner_of(toy, ranks=ranks), learner_of(toy)
    together.warm_up()
    ranks.wait(START_S)
    rollouts = [toy.filled(alone, seed=seed) for seed in range(3)]
    finish(together.update(rollouts[0]))
    update = together.update(rollouts[1])
    for _ in range(4):
        next(update)
    victim = ranks.pids[1]
    os.kill(victim, signal.SIGKILL)
    metrics = finish(update).metrics
    assert (metrics["ranks"], metrics["ranks_lost"]) == (1, 1)
    assert victim not in ranks.pids
    ranks.wait(START_S)
    assert finish(together.update(rollouts[2])).metrics["ranks"] == 3
    for rollout in rollouts:
        finish(alone.update(rollout))
    assert difference(alone, together) <= 1e-6


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_in_time(toy, finish, ranked):
    ranks = ranked(2, hang_s=2.0)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    finish(together.update(toy.filled(together)))
    os.kill(ranks.pids[0], signal.SIGSTOP)
    began = time.monotonic()
    assert finish(together.update(toy.filled(together, seed=1))).metrics["ranks_lost"] == 1
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_an_update_that_was_given_up_does_not_confuse_the_next_one(toy, finish, ranked):
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    update = together.update(toy.filled(together))
    for _ in range(3):
        next(update)
    update.close()
    assert finish(together.update(toy.filled(together, seed=1))).metrics["ranks"] == 1
    ranks.wait(START_S)
    assert finish(together.update(toy.filled(together, seed=2))).metrics["ranks"] == 2


@pytest.mark.slow
def test_ranks_end_with_the_learners_process(toy, ranked):
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    process = ranks._peers[0].process
    ranks._peers[0]._socket.close()
    assert process.wait(timeout=20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("first", [[], [signal.SIGSTOP]], ids=["waiting", "stopped"])
def test_ranks_end_when_rank_0_is_killed_in_mid_update(first):
    command = [sys.executable, "-c", RANK_0, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank_0:
        pid = int(rank_0.stdout.readline())
        for number in first:  # a stopped process sees no socket's end: only the kernel can end it
            os.kill(pid, number)
        rank_0.kill()
    end = time.monotonic() + 5.0
    while is_running(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_ranks_outlive_the_thread_that_started_them(toy, ranked):
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    thread = threading.Thread(target=together.warm_up)
    thread.start()
    thread.join()
    ranks.wait(START_S)
    assert ranks._peers[0].process.poll() is None


def test_everything_listens_on_the_loopback_only(toy, finish, ranked):
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    ranks.wait(START_S)
    assert finish(together.update(toy.filled(together))).metrics["ranks"] == 2
    for pid in (os.getpid(), *ranks.pids):
        assert set(listening(pid)) <= LOOPBACK
    assert listening(os.getpid())


def listening(pid):
    """The addresses on which a process waits for connections, as /proc writes them."""
    links = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
    inodes = {found[1] for found in (re.match(r"socket:\[(\d+)\]", link) for link in links) if found}
    lines = [line.split() for name in ("tcp", "tcp6") for line in tabled(f"/proc/{pid}/net/{name}")]
    return [line[1].partition(":")[0] for line in lines if line[3] == LISTENS and line[9] in inodes]


def tabled(path):
    return Path(path).read_text().splitlines()[1:] if Path(path).exists() else []


def test_a_robot_of_many_elements_can_be_told(toy, ranked):
    many = tuple(Element(f"element {number} {'x' * 200}", "m", -1.0, 1.0) for number in range(1200))
    ranks = ranked(2)
    learner_of(replace(toy, robot=replace(toy.robot, state=toy.robot.state + many)), ranks=ranks).warm_up()
    ranks.wait(START_S)


@pytest.mark.slow
def test_ranks_that_cannot_be_made_are_given_up(toy, finish, ranked):
    ranks = ranked(2, "no such encoder")
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    for lost in (1, 2, 3):
        assert not ranks.failed
        ranks._peers[0].process.wait(START_S)
        metrics = finish(together.update(toy.filled(together))).metrics
        assert (metrics["ranks"], metrics["rolled_back"], ranks.lost) == (1, 0, lost)
    assert ranks.failed == (
        "rank 1 on cpu ended 3 times before it could take part: exit status 1; one rank learns alone"
    )
    assert ranks.pids == []
    assert finish(together.update(toy.filled(together))).metrics["ranks"] == 1
    with pytest.raises(RanksError, match="rank 1 on cpu"):
        ranks.wait(0.0)


def test_a_rank_that_is_killed_before_it_was_told_is_found_gone(toy, finish, ranked, monkeypatch):
    monkeypatch.setattr("trainerd.learning.ranks.sys.executable", "/bin/false")
    ranks = ranked(2)
    together = learner_of(toy, ranks=ranks)
    together.warm_up()
    while not ranks.failed:
        ranks._peers[0].process.wait(START_S)
        assert finish(together.update(toy.filled(together))).metrics["ranks"] == 1
    assert ranks.lost == 3


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (("cpu", "cuda:0"), "devices cpu, cuda:0: name CPUs only, or different GPUs"),
        (("cuda:0", "cuda:0"), "devices cuda:0, cuda:0: name CPUs only, or different GPUs"),
        (("cuda:0", "cuda:1"), "device cuda:1: .* sees these GPUs: 1, cuda:0 to cuda:0"),
    ],
)
def test_devices_that_cannot_learn_together_are_refused_at_the_start(monkeypatch, devices, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RanksError, match=message):
        Ranks(Plan(devices, "blind", {}))
    with pytest.raises(RanksError, match=message):
        Design(replace(Settings(), devices=devices), PluginManager(("encoders",)))


def test_two_processors_and_two_gpus_are_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in (("cpu", "cpu"), ("cuda:1", "cuda:0")):
        Ranks(Plan(devices, "blind", {}))


def test_a_gpu_that_is_not_there_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RanksError, match=r"device cuda:1: .* sees these GPUs: none"):
        Ranks(Plan(("cuda:0", "cuda:1"), "blind", {}))
