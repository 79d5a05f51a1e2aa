"""Whoever comes to the port: second rovers, rovers of another build, and peers that send nonsense."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from protocol.spec import RobotSpec, TaskSpec
from tests.daemon.daemons import driving, unbalanced, wait_until
from tests.daemon.installing import install_plugin
from tests.daemon.strangers import Stranger, good_step, knock, nonsense, records

CURVE = False
"""The tests look at the link or join it, which nobody can who has no key."""


class Run:
    """A trainer with one rover that nobody may disturb."""

    def __init__(self, site):
        self.site = site
        self.trainer = site.trainer({"ppo.rollout": 512, "link.gap_wait_s": 0.5})
        self.rover = site.rover()

    def specs(self):
        values = json.loads((self.trainer.state_dir / "run.json").read_text())
        return RobotSpec.from_map(values["robot"]), TaskSpec.from_map(values["task"])

    def row(self, rover_id):
        rows = self.trainer.get("/rovers")["rovers"]
        return next((row for row in rows if row["rover_id"] == rover_id), None)

    def steps_go_on(self, rover_id="rover-1", count=100):
        goal = self.row(rover_id)["steps"] + count
        wait_until(lambda: self.row(rover_id)["steps"] >= goal, what=f"{count} more steps of {rover_id}")


@pytest.fixture(scope="module")
def run(shared_site):
    made = Run(shared_site)
    driving(made.rover)
    return made


def memory_mb(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class TestRow13Fuzz:
    """Whatever comes is counted, a handful of log lines tell of it, and the real rover's stream goes on."""

    def counted(self, run):
        return run.trainer.get()["steps"]["malformed"]

    @pytest.fixture(autouse=True)
    def unharmed(self, run):
        run.steps_go_on()
        lines, memory = len(run.trainer.events("message.malformed")), memory_mb(run.trainer.pid)
        lost = run.trainer.get()["steps"]["lost"]
        yield
        run.steps_go_on()
        status = run.trainer.get()
        assert status["steps"]["lost"] == lost
        assert unbalanced(status["steps"]) == 0
        assert run.row("rover-1")["malformed"] == 0
        assert run.row("rover-1")["connected"]
        assert "Traceback" not in run.trainer.log_text()
        assert len(run.trainer.events("message.malformed")) - lines <= 40
        assert memory_mb(run.trainer.pid) - memory < 200
        assert not Path("/tmp/roverloop-was-here").exists(), "a pickle was loaded"

    @pytest.mark.parametrize("seed", [1, None])
    def test_nonsense_of_strangers_is_counted_and_answered_with_hello_first(self, run, seed):
        seed = random.randrange(1 << 30) if seed is None else seed
        print(f"seed {seed}")
        before = self.counted(run)
        messages = list(nonsense(seed))
        with Stranger(run.trainer.get()["port"]) as stranger:
            for frames in messages:
                stranger.send(*frames)
            assert stranger.answer("refuse")["code"] == "hello_first"
            wait_until(lambda: self.counted(run) >= before + len(messages), what=f"{len(messages)} counted")

    def test_bytes_that_are_not_zeromqs_and_oversized_messages_only_end_their_connection(self, run):
        port = run.trainer.get()["port"]
        for content in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\xff" * 64 + random.randbytes(4000), b""):
            knock(port, content)
        with Stranger(port) as stranger:
            stranger.send(bytes(9 << 20))
            stranger.send(b"x", bytes(9 << 20))
        with Stranger(port) as stranger:
            stranger.send(b"still there?")
            assert stranger.answer("refuse")["code"] == "hello_first"

    def test_records_of_a_stranger_who_never_said_hello_are_not_taken(self, run):
        received = run.trainer.get()["steps"]["records"]
        with Stranger(run.trainer.get()["port"]) as stranger:
            for seq in range(20):
                stranger.send(*good_step("ghost", "boot-1", seq))
            assert stranger.answer("refuse")["code"] == "hello_first"
        assert run.row("ghost") is None
        assert run.trainer.get()["steps"]["records"] >= received

    def test_malformed_records_of_an_admitted_rover_are_counted_and_dropped_one_by_one(self, run):
        before = self.counted(run)
        bad = list(records("fuzzer"))
        with Stranger(run.trainer.get()["port"]) as fuzzer:
            assert fuzzer.greet("fuzzer", *run.specs())["kind"] == "welcome"
            for frames in bad:
                fuzzer.send(*frames)
            wait_until(
                lambda: run.row("fuzzer")["malformed"] >= len(bad), what=f"{len(bad)} counted: {run.row('fuzzer')}"
            )
            received = run.trainer.get()["steps"]["received"]
            fuzzer.send(*good_step("fuzzer", "boot-1", len(bad)))
            wait_until(lambda: run.row("fuzzer")["next_seq"] == len(bad) + 1, what="a good record behind the bad ones")
            assert run.trainer.get()["steps"]["received"] > received
        assert run.row("fuzzer")["malformed"] == len(bad)
        assert self.counted(run) == before + len(bad)
        assert sum(run.trainer.get()["malformed"].values()) == self.counted(run)

    def test_a_record_in_another_rovers_name_is_refused(self, run):
        before, steps = self.counted(run), run.row("rover-1")
        with Stranger(run.trainer.get()["port"]) as thief:
            assert thief.greet("thief", *run.specs())["kind"] == "welcome"
            for seq in (0, steps["next_seq"] + 50):
                thief.send(*good_step("rover-1", steps["boot_id"], seq))
            wait_until(lambda: self.counted(run) == before + 2, what="two refused records")
        assert run.trainer.get()["malformed"]["identity"] >= 2

    def test_a_step_that_is_not_finite_is_quarantined_and_its_term_is_named(self, run):
        before = run.trainer.get()["steps"]["quarantined"]
        nan = float("nan")
        with Stranger(run.trainer.get()["port"]) as sick:
            assert sick.greet("sick", *run.specs())["kind"] == "welcome"
            sick.send(*good_step("sick", "boot-1", 0, reward=nan, reward_terms={"progress": 1.0, "smooth": nan}))
            wait_until(lambda: run.trainer.get()["steps"]["quarantined"] == before + 1, what="one quarantined step")
        assert run.trainer.get()["quarantined"] == {"reward.smooth": 1}


@pytest.mark.slow
def test_two_rovers_of_different_names_feed_one_trainer(run):
    second = run.site.rover({"seed": 2}, name="rover-2")
    driving(second)
    updates = run.trainer.get()["updates"]
    for rover_id in ("rover-1", "rover-2"):
        run.steps_go_on(rover_id, 300)
    wait_until(lambda: run.trainer.get()["updates"] >= updates + 2, what="updates from both")
    status = run.trainer.get()
    assert status["rovers"] >= 2
    assert status["steps"]["lost"] == status["steps"]["duplicates"] == 0
    assert unbalanced(status["steps"]) == 0
    assert second.stop() == 0
    wait_until(lambda: not run.row("rover-2")["connected"], what="rover-2 said goodbye")
    rest = run.row("rover-2")
    assert rest["waiting"] == 0
    assert {row["rover_id"] for row in run.trainer.ctl("rover", "list", "--json").json["rovers"]} >= {
        "rover-1",
        "rover-2",
    }
    run.steps_go_on()


def refused(rover):
    status = rover.get()
    return status if status["link"]["state"] == "refused" else None


def test_a_second_rover_of_the_same_name_is_refused_and_the_first_goes_on(run):
    boot_id = run.row("rover-1")["boot_id"]
    double = run.site.rover({"state_dir": run.site.folder / "double"}, name="rover-1")
    status = wait_until(lambda: refused(double), what="refused")
    assert "rover-1 is connected already" in status["link"]["refusal"]
    assert any("rover-1 is connected already" in cause for cause in status["health"]["causes"])
    assert status["ticks"] == 0
    run.steps_go_on(count=500)
    assert run.row("rover-1")["boot_id"] == boot_id
    assert run.trainer.get()["refused_hellos"]["duplicate"] >= 1
    assert double.stop() == 0
    run.steps_go_on()


def check_refusal(run, rover, *words):
    """The reason stands in roverctl status and doctor, in both logs, and in the trainer's own words."""
    status = wait_until(lambda: refused(rover), what="refused")
    for word in words:
        assert word in status["link"]["refusal"]
    doctor = rover.ctl("doctor", "--json")
    assert doctor.status == 1
    checks = {check["check"]: check for check in doctor.json["checks"]}
    assert not checks["link"]["ok"]
    assert not checks["robot spec"]["ok"]
    assert all(word in checks["robot spec"]["hint"] for word in words)
    assert not status["health"]["ok"]
    assert rover.events("link.refused")[0]["code"] == "spec"
    assert len(rover.events("link.refused")) == 1, "one line, however often it is refused"
    told = run.trainer.get()
    assert told["refused_hellos"]["spec"] >= 1
    failed = [
        check for check in run.trainer.ctl("doctor", "--json").json["checks"] if check["check"] == "refused rovers"
    ]
    assert all(word in failed[0]["measured"] for word in words)
    assert rover.stop() == 0


def test_row_17_a_rover_whose_height_and_width_are_swapped_is_refused_by_name_of_the_difference(run):
    settings = {"plugins.synthetic.image_height": 20, "plugins.synthetic.image_width": 12}
    rover = run.site.rover(settings, name="turned")
    check_refusal(run, rover, "cameras.front.height: 12 here, 20 there", "cameras.front.width: 20 here, 12 there")
    run.steps_go_on()


RENAMED = """
from dataclasses import replace

from plugins import RobotPlugin, hookimpl
from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings


def create(settings):
    robot = SyntheticRobot(settings)
    first, *rest = robot.spec.state
    robot.spec = replace(robot.spec, state=(replace(first, name="linear_speed"), *rest))
    return robot


@hookimpl
def provide_robots():
    return [RobotPlugin("renamed", SyntheticSettings, create)]
"""


@pytest.mark.slow
def test_row_16_a_rover_with_one_renamed_element_is_refused_by_name_of_the_difference(run):
    install_plugin(run.site, "robots", "renamed", RENAMED)
    rover = run.site.rover({"robot": "renamed"}, name="renamed")
    check_refusal(run, rover, "linear_speed", "linear_vel")
    run.steps_go_on()


def test_row_16_roverd_refuses_to_start_with_a_bundle_for_another_robot(run):
    bundle = next((run.rover.state_dir / "policies").glob("*.bundle"))
    kept = run.site.folder / "kept.bundle"
    kept.write_bytes(bundle.read_bytes())
    settings = {
        "robot": "synthetic",
        "control.rate_hz": 0,
        "plugins.synthetic.image_height": 20,
        "plugins.synthetic.image_width": 12,
        "state_dir": run.site.folder / "other",
        "control_socket": run.site.sockets / "other.sock",
        "policy.file": kept,
    }
    done = run.site.run("roverd", *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")))
    assert done.status == 1
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert "height: 20 here, 12 there" in lines[0]


def test_the_refusals_of_this_file_are_counted_by_their_kind(run):
    kinds = Counter(run.trainer.get()["refused_hellos"])
    assert set(kinds) == {"spec", "duplicate"}
