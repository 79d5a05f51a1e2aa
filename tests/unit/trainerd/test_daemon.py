"""The whole daemon as a process, with a rover that is made up."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from protocol.node.socket import ControlClient, ControlError
from tests.unit.trainerd.rover import BARE, FakeRover
from trainerd.learning.assembler import FATES, OPEN_FATES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROFILE = ("--profile", "demo", "--update-interval", "64", "--checkpoint-interval", "2", "--port", "0")


PLAIN = (
    *("--set", "network.normaliser_frames=32", "--set", "link.curve=false"),
    *("--set", "ppo.behaviour_limit=0"),  # a rover that makes its records up acts otherwise than any policy
)


class Process:
    def __init__(self, folder, *arguments):
        self.folder = folder
        self.log = folder / "log"
        words = [sys.executable, "-m", "trainerd", *PROFILE, *PLAIN, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=environment)
        self.client = ControlClient(folder / "state" / "trainerd" / "control.sock")
        self.until(lambda status: True)
        self.port = self.client.get("/status")["port"]

    def until(self, condition, rover=None, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            if rover is not None:
                rover.listen(20)
            try:
                status = self.client.get("/status")
            except ControlError:
                time.sleep(0.05)
                continue
            if condition(status):
                return status
        raise AssertionError(f"{status}\n{self.log.read_text()[-3000:]}")

    def events(self, name):
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(15)


@pytest.fixture
def begin(tmp_path):
    started = []

    def start(*arguments):
        started.append(Process(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.end(signal.SIGKILL)


@pytest.fixture
def rovers():
    made = []

    def make(*arguments, **facts):
        made.append(FakeRover(*arguments, **facts))
        return made[-1]

    yield make
    for each in made:
        each.close()


def train(daemon, rover, updates):
    """Drive until so many updates are done."""
    deadline = time.monotonic() + 60
    while daemon.client.get("/status")["updates"] < updates:
        assert time.monotonic() < deadline, daemon.log.read_text()[-3000:]
        rover.wait_until(lambda: len(rover.kept) < 300)
        rover.drive(30)


def test_a_run_learns_stops_with_a_checkpoint_and_goes_on_after_a_kill(begin, rovers):
    daemon = begin("--checkpoint-interval", "1000")
    rover = rovers(daemon.port)
    rover.greet()
    rover.wait_until(lambda: rover.policy_id != "" and rover.order_id == "train", 60)
    assert rover.counters == [0]
    train(daemon, rover, 5)
    rover.wait_acked()
    status = daemon.until(lambda s: s["policy"]["wanted"] == rover.policy_id and s["policy"]["exports"] > 5, rover)
    steps = status["steps"]
    assert steps["received"] == sum(steps[fate] for fate in (*FATES, *OPEN_FATES)) > 0
    assert steps["trained"] > 0
    assert (steps["lost"], steps["duplicates"], status["policy"]["export_failed"]) == (0, 0, 0)
    assert status["health"] == {"ok": True, "causes": []}
    assert status["policy"]["update_to_driving_s"]["max"] < 2.0

    stranger = rovers(daemon.port, "other", robot=BARE)
    stranger.hello()
    stranger.wait_until(lambda: any(m.kind == "refuse" and m.code == "spec" for m in stranger.heard))

    before = daemon.client.get("/status")
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < 10
    saved = daemon.events("checkpoint.saved")[-1]["checkpoint"]
    assert int(saved.rpartition("_")[2]) >= before["updates"]

    again = begin()
    resumed = again.until(lambda s: s["is_ready"] and s["updates"] > 0)
    assert f"ppo_update_{resumed['updates']}" == saved
    assert resumed["run_id"] == before["run_id"]
    rover.port = again.port
    rover.reconnect()
    rover.greet()
    train(again, rover, resumed["updates"] + 3)
    again.end(signal.SIGKILL)

    third = begin()
    restarted = third.until(lambda s: s["is_ready"] and s["updates"] > 0)
    assert restarted["updates"] > resumed["updates"]
    rover.port = third.port
    rover.reconnect()
    rover.greet()
    rover.resend()
    train(third, rover, restarted["updates"] + 1)
    rover.wait_acked()
    assert rover.counters == sorted(rover.counters), "the policy counter went back"
    assert third.client.get("/status")["steps"]["lost"] == 0


def test_commands_do_what_they_say_and_repeat_harmlessly(begin, rovers):  # noqa: PLR0915 - a session as it goes
    daemon = begin("--set", "train.decisions=640")
    client = daemon.client
    with pytest.raises(ControlError, match="no rover is connected"):
        client.post("/evaluate", {"policy": "random"})
    with pytest.raises(ControlError, match="no rover has connected yet"):
        client.post("/checkpoints")
    rover = rovers(daemon.port)
    rover.greet()
    rover.wait_until(lambda: rover.policy_id != "" and rover.order_id == "train", 60)
    train(daemon, rover, 2)

    assert client.post("/train/pause") == {"ok": True, "state": "paused"}
    assert client.post("/train/pause")["already_paused"] is True
    rover.wait_until(lambda: rover.order_id == "idle")
    assert client.post("/train/resume")["state"] == "training"
    rover.wait_until(lambda: rover.order_id == "train")
    name = client.post("/checkpoints")["checkpoint"]
    assert name in [row["name"] for row in client.get("/checkpoints")["checkpoints"]]
    train(daemon, rover, 4)
    rover.wait_acked()

    client.post("/train/stop")
    counter = max(rover.counters)
    assert client.post(f"/checkpoints/{name}/restore")["checkpoint"] == name
    rover.wait_until(lambda: rover.policy_counter > counter, 30)
    first = client.get("/policies")["policies"][-1]
    client.post(f"/policies/{first['policy_id'][:12]}/deploy")
    rover.wait_until(lambda: rover.policy_counter == first["counter"])
    client.post("/policies/rollback")
    rover.wait_until(lambda: rover.policy_counter > counter)
    client.post("/policies/latest/deploy")

    asked = client.post("/evaluate", {"policy": first["policy_id"], "episodes": 3})
    rover.wait_until(lambda: rover.order_id == asked["id"])
    assert rover.policy_id == first["policy_id"]
    rover.drive(90 + (-rover.tick % 30), purpose="evaluation")
    rover.wait_acked()
    result = client.get(f"/evaluations/{asked['id']}")
    assert (result["stage"], result["result"]["n"]) == ("finished", 3)
    rover.wait_until(lambda: rover.order_id == "idle" and rover.policy_id != first["policy_id"])

    lint = client.post("/reward/lint", {"episodes": 2})
    for each in lint["evaluations"]:
        rover.wait_until(lambda each=each: rover.order_id == each)
        rover.drive(60, purpose="evaluation")
    rover.wait_until(lambda: client.get(f"/reward/lints/{lint['id']}")["stage"] == "finished")
    assert client.get(f"/reward/lints/{lint['id']}")["passed"] is True

    client.post("/train/start")
    rover.wait_until(lambda: rover.order_id == "train")
    deadline = time.monotonic() + 60
    while client.get("/status")["state"] != "finished":
        assert time.monotonic() < deadline
        rover.wait_until(lambda: len(rover.kept) < 300)
        rover.drive(30)
    with pytest.raises(ControlError, match="the budget of decisions is spent"):
        client.post("/train/start")
    for path in ("/rovers", "/plugins", "/config", "/doctor", "/evaluations"):
        assert client.get(path)["ok"]


def test_a_flat_reward_is_named_and_not_learned_from(begin, rovers):
    daemon = begin()
    rover = rovers(daemon.port)
    rover.greet()
    rover.wait_until(lambda: rover.policy_id != "" and rover.order_id == "train", 60)
    deadline = time.monotonic() + 60
    status = daemon.client.get("/status")
    while not status["alarms"]:
        assert time.monotonic() < deadline, status
        rover.wait_until(lambda: len(rover.kept) < 300)
        rover.drive(120, reward=0.0)
        status = daemon.client.get("/status")
    assert not status["health"]["ok"]
    updates = status["updates"] + 2
    for _ in range(10):
        rover.wait_until(lambda: len(rover.kept) < 300)
        rover.drive(120, reward=0.0)
    rover.wait_acked()
    status = daemon.client.get("/status")
    assert status["updates"] <= updates
    assert status["steps"]["alarmed"] > 0
    assert status["steps"]["received"] == sum(status["steps"][fate] for fate in (*FATES, *OPEN_FATES))
    assert len(daemon.events("signal.alarmed")) == 1


def test_a_failing_export_is_counted_and_training_goes_on(begin, rovers, tmp_path):
    daemon = begin()
    rover = rovers(daemon.port)
    rover.greet()
    rover.wait_until(lambda: rover.policy_id != "" and rover.order_id == "train", 60)
    policies = tmp_path / "state" / "trainerd" / "policies"
    policies.rename(policies.with_name("away"))
    policies.write_text("in the way")
    train(daemon, rover, 3)
    status = daemon.until(lambda s: s["policy"]["export_failed"] > 0, rover)
    assert (status["state"], rover.counters[0]) == ("training", 0)
    assert daemon.events("export.failed")[0]["hint"]
    policies.unlink()
    policies.with_name("away").rename(policies)
    train(daemon, rover, status["updates"] + 2)
    daemon.until(lambda s: s["health"]["ok"] and s["policy"]["wanted_counter"] == rover.policy_counter > 0, rover)
