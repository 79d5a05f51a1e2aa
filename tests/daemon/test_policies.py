"""Policies go live on a real roverd with a clock: whatever is wrong with one, another drives on each tick.

The tests share a rover that drives policies made here; every action that it records is computed again by the policy
that its step names. The faults are those of ``./dev bench swap``, which injects them many times under load.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.daemon.daemons import wait_until
from tests.daemon.swapfaults import FAULTS
from tests.daemon.swapping import clocked_world
from tests.daemon.track import blocks, missed, skipped, wrong

QUICK_FAULTS = {"bad_hash", "bad_signature", "wrong_spec", "wrong_actions", "killed_while_it_drives"}
QUICK = {"policy.watch_ticks": 15, "policy.shadow_ticks": 4}


@pytest.fixture(scope="module")
def made():
    with clocked_world(**QUICK) as world:
        yield world


@pytest.fixture
def draw():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK_FAULTS else [pytest.mark.slow]) for name in FAULTS]
)
def test_row_5_another_policy_drives_on_each_tick_whatever_the_fault(made, draw, name):
    print(FAULTS[name](made, draw))


def test_a_policy_is_installed_from_a_file_between_two_episodes(made):
    start, before = len(made.track), made.state()["driving"]
    answer = made.rover.ctl("policy", "install", str(made.next_file()), "--json")
    assert answer.status == 0, answer
    policy_id = answer.json["policy_id"]
    wait_until(lambda: made.state()["driving"] == policy_id, what="it drives")
    made.wait_steps(5)
    steps = made.track.since(start)
    assert blocks(steps) == [before, policy_id]
    assert skipped(steps) == missed(steps) == wrong(steps) == 0
    by_episode = {step.episode_id: step.policy_id for step in steps}
    assert all(by_episode[step.episode_id] == step.policy_id for step in steps), "it changed within an episode"


def test_with_now_a_policy_is_installed_within_an_episode_and_the_command_says_that_it_drives(made):
    start, before = len(made.track), made.state()["driving"]
    answer = made.rover.ctl("policy", "install", str(made.next_file()), "--now", "--json")
    assert (answer.status, answer.json["stage"]) == (0, "driving")
    made.wait_steps(5)
    steps = made.track.since(start)
    assert blocks(steps) == [before, answer.json["policy_id"]]
    assert skipped(steps) == missed(steps) == wrong(steps) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nothing at all", "its end is not that of a zip"),
        pytest.param(b"", "0 bytes", marks=pytest.mark.slow),
        pytest.param(None, "No such file or directory", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_no_policy_gives_one_clear_line_and_changes_nothing(made, tmp_path, content, words):
    before = made.state()["driving"]
    path = tmp_path / "policy.bundle"
    if content is not None:
        path.write_bytes(content)
    answer = made.rover.ctl("policy", "install", str(path))
    assert (answer.status, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert words in answer.err
    assert str(path) in answer.err
    assert made.state()["driving"] == before


@pytest.mark.slow
def test_show_tells_the_transaction_in_words_and_as_json(made):
    made.install(now=True)
    shown = made.rover.ctl("policy", "show", "--json").json
    assert shown["transaction"]["stage"] in {"watching", "settled"}
    assert shown["transaction"]["shadowed"] >= 4
    assert made.rover.get()["policy"]["transaction"]["name"] == shown["driving"]
    text = made.rover.ctl("policy", "show").out
    assert shown["driving"][:12] in text
    assert "fallback" in text


@pytest.mark.slow
def test_rollback_with_now_takes_the_policy_before_at_once(made):
    before, _ = made.install(now=True)
    bad, _ = made.install(now=True)
    start = len(made.track)
    assert made.rover.ctl("policy", "rollback", "--now", "--json").json["policy_id"] == before
    wait_until(lambda: made.state()["driving"] == before, what="the policy before drives")
    made.wait_steps(5)
    steps = made.track.since(start)
    assert blocks(steps) == [bad, before]
    assert skipped(steps) == missed(steps) == wrong(steps) == 0


@pytest.mark.slow
def test_reload_loads_the_same_policy_again(made):
    driving, swaps = made.state()["driving"], made.rover.get()["swaps"]
    start = len(made.track)
    assert made.rover.ctl("policy", "reload", "--now", "--json").json["policy_id"] == driving
    wait_until(lambda: made.rover.get()["swaps"] > swaps, what="a swap")
    made.wait_steps(5)
    steps = made.track.since(start)
    assert blocks(steps) == [driving]
    assert skipped(steps) == missed(steps) == wrong(steps) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_row_6_a_thousand_reloads_while_driving_leave_every_step_with_one_policy(record_figure):
    with clocked_world(**{"policy.shadow_ticks": 1, "plugins.goal.time_limit_s": 20.0}) as made:
        driving, start, began = made.state()["driving"], len(made.track), time.monotonic()
        for count in range(1000):
            swaps = made.rover.get()["swaps"]
            made.client.post("/policies/reload", {"now": True})
            wait_until(lambda swaps=swaps: made.rover.get()["swaps"] > swaps, what=f"swap {count + 1}")
        record_figure("thousand_reloads_s", time.monotonic() - began)
        made.wait_steps(5)
        steps = made.track.since(start)
        assert blocks(steps) == [driving]
        assert wrong(steps) == 0
        record_figure("missed_ticks", missed(steps) + skipped(steps))
        assert missed(steps) + skipped(steps) <= len(steps) * 0.001
        assert made.rover.get()["policy"]["crashes"] == 0


def forget_file(rover):
    """Let the next start find what drove last, and not the policy of the command line."""
    rover.words = [word for word in rover.words if word != "--policy" and not word.endswith("1.bundle")]


class TestRestart:
    """What a start finds on the disk."""

    @pytest.mark.slow
    def test_row_7_a_restarted_rover_drives_its_policy_at_once(self, made):
        driving, _ = made.install(now=True)
        wait_until(
            lambda: (
                json.loads((made.rover.state_dir / "policies" / "current.json").read_text())["policy_id"] == driving
            ),
            what="the note",
        )
        assert made.rover.stop() == 0
        start = len(made.track)
        forget_file(made.rover)
        made.rover.start()
        made.wait_steps(3)
        assert blocks(made.track.since(start)) == [driving]

    def test_a_damaged_current_policy_gives_way_to_the_one_before(self, made):
        before, _ = made.install(now=True)
        newest, _ = made.install(now=True)
        folder = made.rover.state_dir / "policies"
        wait_until(lambda: json.loads((folder / "current.json").read_text())["policy_id"] == newest, what="the note")
        made.rover.kill()
        path = folder / f"{newest}.bundle"
        path.write_bytes(path.read_bytes()[:-50])
        start = len(made.track)
        forget_file(made.rover)
        made.rover.start()
        made.wait_steps(3)
        assert blocks(made.track.since(start)) == [before]
        assert [each["policy_id"] for each in made.rover.events("policy.passed_over")] == [newest[:12]]

    def test_a_policy_file_that_is_no_policy_ends_the_start_with_one_line(self, made, tmp_path):
        path = tmp_path / "bad.bundle"
        path.write_bytes(b"nothing")
        words = [*made.rover.words, "--policy", str(path), "--set", f"state_dir={tmp_path}/state"]
        command = [*words, "--set", f"control_socket={tmp_path}/s.sock"]
        done = subprocess.run(
            [sys.executable, "-m", "roverd", *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert f"--policy {path}: bundle of 7 bytes" in done.stderr
        assert "exported for this robot" in done.stderr


@pytest.mark.slow
def test_a_control_that_is_replaced_by_its_spare_keeps_both_policies(made):
    made.install(now=True)
    wait_until(lambda: made.state()["standby"]["role"] == "fallback", what="a standby")
    driving, crashes = made.state()["driving"], made.rover.get()["policy"]["crashes"]
    start = len(made.track)
    os.kill(made.rover.get()["control"]["pid"], signal.SIGKILL)
    made.wait_steps(30)
    steps = made.track.since(start)
    assert blocks(steps) == [driving]
    assert wrong(steps) == 0
    assert made.rover.get()["policy"]["crashes"] == crashes
