"""roverctl drive in a terminal: keys in, commands out, and the terminal is as it was."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import string
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol.node.socket import ControlSocket, Request, Route
from protocol.spec import TaskSpec
from roverd.axes import Axes
from roverd.collect import Collecting
from roverd.telemetry import Telemetry
from roverd.teleop import Teleop
from roverd.terminal import bar, render
from roverd.wheel import HELD, LOCKED, Wheel
from tests.daemon.typist import Typist
from tests.unit.roverd.steered import ROVER, Robot

pytestmark = [pytest.mark.component, pytest.mark.timeout(60)]


class Daemon:
    """What roverd answers to a terminal, with a robot that notes what it is told."""

    def __init__(self, folder):
        self.path = folder / "s"
        self.robot = Robot()
        self.moments = []
        self.cleared = 0
        axes = Axes(ROVER, (0.0, 0.0), max_speed_mps=1)
        self.wheel = Wheel(self, axes, dead_man_s=0.25)
        self.teleop = Teleop(
            "rover-1",
            drive=self.robot,
            wheel=self.wheel,
            collecting=Collecting(self.robot, self.wheel, folder / "c", task="goal", controllers=list),
            telemetry=Telemetry(ROVER, TaskSpec("goal")),
            policies=SimpleNamespace(slot_name=lambda _: "abc", active=0),
            uplink=SimpleNamespace(state="linked", round_trip_ms=math.nan),
        )

    applied_action = (0.0, 0.0)
    is_in_episode = False

    def human(self, action, seconds, *, locks=False):
        self.moments.append((time.monotonic(), action))
        return self.robot.human(action, seconds, locks=locks)

    def let_go(self):
        self.robot.let_go()

    async def e_stop(self, request: Request):
        self.robot.latch_e_stop(request.body["reason"])
        return {}

    async def clear(self, _: Request):
        self.cleared += 1
        self.robot.clear_e_stop()
        return {}

    def routes(self):
        return [
            *self.teleop.routes(),
            Route("POST", "/e_stop", self.e_stop, mutating=True),
            Route("POST", "/clear", self.clear, mutating=True),
        ]

    def moved(self):
        """Return when the robot was told to move, and when to stand."""
        return [at for at, action in self.moments if any(action)], [
            at for at, action in self.moments if not any(action)
        ]

    def words(self, *more):
        return ("-m", "roverd.ctl", "--control-socket", str(self.path), "drive", *more)


@pytest.fixture
def daemon(tmp_path):
    made = Daemon(tmp_path)
    loop = asyncio.new_event_loop()
    service = ControlSocket(made.path, made.routes())
    tasks = []

    async def run():
        tasks.append(asyncio.current_task())
        await service.run()

    def main():
        try:
            loop.run_until_complete(run())
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    until(service.listening.is_set)
    yield made
    loop.call_soon_threadsafe(tasks[0].cancel)
    thread.join(10)


def until(condition, deadline_s=15.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


@contextmanager
def at_the_wheel(daemon, *more, has_shell=False):
    with Typist(*daemon.words(*more), has_shell=has_shell) as typist:
        typist.wait_for("q: release and quit")
        assert daemon.wheel.state == HELD
        yield typist


def test_keys_drive_and_no_key_stands(daemon):
    with at_the_wheel(daemon) as typist:
        typist.hold("w", 0.5)
        moving, _ = daemon.moved()
        until(lambda: daemon.robot.told[-1][0] == (0.0, 0.0))
        told = len(daemon.robot.told)
        until(lambda: len(daemon.robot.told) > told + 5)
        assert not any(daemon.robot.told[-1][0]), "the program is there, and pushes nothing"
        assert {action for _, action in daemon.moments if any(action)} == {(0.5, 0.0)}
        assert len(moving) > 6, "about 20 a second"


def test_a_tap_moves_for_the_dead_man_time_or_for_as_long_as_was_asked_for(daemon):
    spans = []
    for more in ((), ("--hold-first-ms", "700")):
        with at_the_wheel(daemon, *more) as typist:
            daemon.moments.clear()
            typist.press("a")
            until(lambda: daemon.moved()[0])
            typist.read(0.9)
            moving, _ = daemon.moved()
            spans.append(moving[-1] - moving[0])
            assert daemon.moments[-1][1] == (0.0, 0.0)
            typist.press("q")
            assert typist.end() == 0
    assert 0.1 < spans[0] <= 0.3
    assert 0.5 < spans[1] <= 0.8


def test_arrows_and_the_space_bar(daemon):
    with at_the_wheel(daemon) as typist:
        typist.press("\x1b[A\x1b[D")
        until(lambda: daemon.moments[-1][1] == (0.5, 1.5))
        typist.press(" ")
        until(lambda: daemon.moments[-1][1] == (0.0, 0.0))


def test_e_stops_and_no_key_clears_it(daemon):
    with at_the_wheel(daemon) as typist:
        typist.press("e")
        until(lambda: daemon.robot.e_stop)
        typist.wait_for("EMERGENCY STOP, roverctl clear on the robot lets it drive again")
        typist.press("c")
        typist.press("c")
        typist.press(string.ascii_lowercase.replace("q", "") + string.digits + "\r ")
        typist.press("q")
        assert typist.end() == 0
    assert daemon.robot.e_stop
    assert daemon.cleared == 0


def test_q_releases_and_leaves_the_terminal_as_it_was(daemon):
    with at_the_wheel(daemon) as typist:
        assert typist.modes != typist.modes_before
        typist.press("q")
        assert typist.end() == 0
        assert typist.modes == typist.modes_before
        assert '"released": true' in typist.read().lower() or "released  true" in typist.read()
    assert daemon.wheel.owner == ""
    assert daemon.robot.told[-1] == "let go"


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM, signal.SIGHUP])
def test_whatever_else_ends_it_leaves_the_robot_locked_and_the_terminal_as_it_was(daemon, how):
    with at_the_wheel(daemon) as typist:
        if isinstance(how, str):
            typist.press(how)
        else:
            typist.process.send_signal(how)
        assert typist.end() == 0
        assert typist.modes == typist.modes_before
        assert "roverctl wheel release --force" in typist.read()
    until(lambda: daemon.wheel.state == LOCKED)
    assert "let go" not in daemon.robot.told


def test_a_terminal_that_hangs_up_ends_it(daemon):
    with at_the_wheel(daemon) as typist:
        typist.hang_up()
        typist.process.wait(10)
    until(lambda: daemon.wheel.state == LOCKED)


def test_one_that_is_killed_commands_nothing_more(daemon):
    with at_the_wheel(daemon) as typist:
        typist.hold("w", 0.3)
        typist.process.kill()
        typist.process.wait()
        died = time.monotonic()
        until(lambda: daemon.wheel.state == LOCKED)
        assert time.monotonic() - died < 0.5
        assert daemon.moments[-1][0] < died + 0.1


def test_ctrl_z_gives_the_terminal_back_and_fg_goes_on(daemon):
    with at_the_wheel(daemon, has_shell=True) as typist:
        typist.press("\x1a")
        until(lambda: Path(f"/proc/{typist.job}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert typist.modes == typist.modes_before
        until(lambda: daemon.wheel.state == LOCKED)
        os.kill(typist.job, signal.SIGCONT)
        until(lambda: daemon.wheel.state == HELD)
        until(lambda: typist.modes != typist.modes_before)
        typist.press("q")
        assert typist.end() == 0
        assert typist.modes == typist.modes_before


def test_somebody_who_drives_is_only_relieved_by_force(daemon):
    with at_the_wheel(daemon) as first:
        with Typist(*daemon.words()) as second:
            assert second.end() == 1
            assert "drives; ask for it, or take it over by force" in second.read()
        with at_the_wheel(daemon, "--force"):
            first.wait_for("has it; take it first")
            first.wait_for("wheel held")
            owner = daemon.wheel.owner
            first.press("w")
            first.wait_for("wheel held")
            assert daemon.wheel.owner == owner
            assert not daemon.moved()[0]


def test_r_lets_go_and_takes_it_again(daemon):
    with at_the_wheel(daemon) as typist:
        typist.press("r")
        typist.wait_for("wheel free")
        assert daemon.robot.told[-1] == "let go"
        typist.press("r")
        typist.wait_for("wheel held")
        assert daemon.wheel.counts["takes"] == 2


def test_episodes_are_begun_and_judged_by_keys(daemon):
    daemon.teleop.collecting.start("teleop", 3, name="set")
    with at_the_wheel(daemon) as typist:
        assert daemon.robot.is_allowed, "taking the wheel begins the first one"
        daemon.robot.in_episode = True
        for key in "123":
            typist.press(key)
        until(lambda: daemon.robot.verdicts == [True, False, None])
        daemon.robot.in_episode = False
        daemon.teleop.collecting.ended("collection", "collect-set", "success")
        typist.wait_for("Enter: next episode")
        assert "1 of 3" in typist.read()
        typist.press("\r")
        until(lambda: daemon.robot.is_allowed)


def test_without_a_terminal_it_says_so(daemon):
    done = subprocess.run([sys.executable, *daemon.words()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "give an action, or run it in a terminal" in done.stderr
    assert daemon.wheel.owner == ""


def test_a_stale_command_of_a_socket_that_hung_is_not_obeyed(daemon):
    daemon.wheel.take("anna")
    body = {"owner": "anna", "axes": [1, 0], "sent_ns": time.monotonic_ns() - 400_000_000}
    asked = asyncio.run(daemon.teleop._drive(Request(body=body)))
    assert asked["is_obeyed"] is False
    assert daemon.wheel.counts["stale"] == 1


def test_the_screen_before_anything_was_heard():
    assert render({}, [], []) == ["waiting for roverd"]


@pytest.mark.parametrize(("push", "drawn"), [(0, "|"), (1, "|##########"), (-0.5, "     #####|")])
def test_a_bar_shows_the_push(push, drawn):
    assert drawn in bar(push)
    assert len(bar(push)) == 23
