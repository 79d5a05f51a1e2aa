"""A person takes the wheel of a robot that drives in real time: by the control socket, by the page, and by nobody."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from protocol.framing import unpack
from protocol.node.socket import ControlError
from protocol.step import Intervention
from tests.daemon import page
from tests.daemon.daemons import driving, free_port, unbalanced, wait_until
from tests.daemon.tap import Tap
from tests.daemon.typist import Typist
from trainerd.episodes.catalogue import Catalogue

CURVE = False
"""The tests look at the link."""
RATE_HZ = 20.0
PERIOD_S = 1 / RATE_HZ
DELAY_S = 0.02
DEAD_MAN_S = 0.25
LIVE = {
    "control.rate_hz": RATE_HZ,
    "plugins.synthetic.control_rate_hz": RATE_HZ,
    "plugins.synthetic.action_delay_ms": DELAY_S * 1e3,
    "plugins.synthetic.goal_m": 2.0,
    "control.safety_distance_m": 0,
    "control.slow_distance_m": 0,
}


class Live:
    """A rover that drives in real time, its trainer, and a tap between them."""

    def __init__(self, site, tap, **more):
        self.tap = tap
        self.trainer = site.trainer({"ppo.rollout": 16, "ppo.minibatch": 8, "network.normaliser_frames": 8})
        self.rover = site.rover({**LIVE, "teleop.port": free_port(), **more}, port=tap.port)

    def url(self):
        return wait_until(lambda: self.rover.get("/web")["url"], what="the page is served")

    def wheel(self):
        return self.rover.get("/wheel")["view"]["wheel"]

    def release(self):
        self.rover.post("/wheel/release", {"force": True})

    def headers(self, start=0):
        return [unpack(raw) for raw in self.tap.stream.headers[start:]]

    def steps(self, start=0):
        return [each for each in self.headers(start) if each["kind"] == "step"]

    @property
    def mark(self):
        return len(self.tap.stream.headers)


@pytest.fixture(scope="module")
def live(shared_site):
    with Tap(free_port(), shared_site.port) as tap:
        made = Live(shared_site, tap)
        driving(made.rover)
        wait_until(lambda: made.trainer.get()["updates"] >= 1, what="the normaliser has its frames")
        yield made


@pytest.fixture
def free(live):
    """Nobody has the wheel, and the policy drives."""
    yield live
    if live.rover.is_running:
        live.rover.post("/clear")
        live.release()
        mark = live.mark
        wait_until(lambda: is_driven_by_policy(live.steps(mark)), what="the policy drives on")


def is_driven_by_policy(steps):
    return any(step["source"] in {"policy", "gate"} for step in steps)


def is_locked(step):
    return bool(step["interventions"] & Intervention.WHEEL_LOCKED)


def is_still(step):
    return not any(step["action"])


def check_hands(headers):
    """Row 37: each step says who drove it, and a break stands wherever the hand changes within an episode."""
    records = sorted(headers, key=lambda each: (each["boot_id"], each["seq"]))
    for each in records:
        if each["kind"] == "step":
            had_wheel = bool(each["interventions"] & Intervention.HUMAN)
            assert (each["source"] == "human") == (had_wheel and not is_locked(each)), each
            assert each["source"] != "policy" or not had_wheel, each
    for before, after in pairwise(records):
        both_steps = before["kind"] == after["kind"] == "step"
        if both_steps and before["episode_id"] == after["episode_id"]:
            hands = [bool(each["interventions"] & Intervention.HUMAN) for each in (before, after)]
            assert hands[0] == hands[1], f"no break between seq {before['seq']} and the next"
    for before, after in pairwise(records):
        if before["kind"] == "episode_end" and before["reason"] in {"takeover", "release"}:
            assert not before["ends_episode"]
            assert bool(after["interventions"] & Intervention.HUMAN) == (before["reason"] == "takeover")


def drive_by_socket(live, owner, axes, seconds):
    """Push 20 times a second; return how often it was obeyed."""
    obeyed, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        body = {"owner": owner, "axes": axes, "sent_ns": time.monotonic_ns()}
        obeyed += live.rover.post("/wheel/drive", body)["is_obeyed"]
        time.sleep(0.05)
    return obeyed


def test_row_37_a_person_takes_over_within_an_episode_and_every_step_says_so(free):
    taken = free.trainer.get()["steps"]["demonstration"]
    mark = free.mark
    free.rover.post("/wheel/take", {"owner": "anna"})
    assert drive_by_socket(free, "anna", [0.4, 0.5], 1.0) > 10
    assert free.wheel()["state"] == "held"
    free.rover.post("/wheel/release", {"owner": "anna"})
    wait_until(lambda: is_driven_by_policy(free.steps(free.mark - 5)), what="the policy drives on")
    headers = free.headers(mark)
    check_hands(headers)
    human = [each for each in headers if each["kind"] == "step" and each["source"] == "human"]
    assert len(human) >= 0.7 / PERIOD_S
    assert {"takeover", "release"} <= {each["reason"] for each in headers if each["kind"] == "episode_end"}
    wait_until(
        lambda: free.trainer.get()["steps"]["demonstration"] - taken >= len(human) - 1, what="they are demonstrations"
    )
    assert unbalanced(free.trainer.get()["steps"]) == 0


def test_the_page_drives_shows_pictures_and_a_second_page_cannot(free):
    async def run():
        url = free.url()
        async with page.opened(url, "one") as one, page.opened(url, "two") as two:
            await one.take()
            one.axes = [0.5, -0.5]
            two.axes = [1.0, 1.0]
            await one.until(lambda view: view["source"] == "human" and view["action"]["linear_cmd"] == 0.25)
            await two.say("take")
            view = await two.until(lambda view: view["refusals"])
            assert "page one drives" in view["refusal"]
            assert view["action"]["linear_cmd"] == 0.25
            await one.until(lambda _: len(one.pictures) > 5)
            assert one.pictures[0][5:7] == b"\xff\xd8", "a JPEG"
            assert one.view["lag_ms"] < 500

    mark = free.mark
    asyncio.run(run())
    wait_until(lambda: free.wheel()["state"] == "locked", 2.0, what="both pages are gone")
    assert "page one has it" in str(free.rover.get()["health"]["causes"])
    check_hands(free.headers(mark))


@contextmanager
def page_process(live, axes):
    command = [sys.executable, str(Path(page.__file__)), live.url(), json.dumps(axes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "driving\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_page_that_dies_or_hangs_stops_the_robot_and_nobody_drives_until_it_is_released(free, how, record_figure):
    with page_process(free, [1.0, 0.3]) as process:
        wait_until(lambda: not is_still(free.steps(free.mark - 4)[-1]), what="it moves")
        mark = free.mark
        died_ns = time.monotonic_ns()
        process.send_signal(how)
        wait_until(lambda: any(map(is_locked, free.steps(mark))), 5.0, what="locked")
        time.sleep(0.6)
        steps = free.steps(mark)
    moving = [step for step in steps if not is_still(step)]
    last_ns = max((step["applied_ns"] for step in moving), default=died_ns)
    stopped_s = (last_ns - died_ns) * 1e-9 + PERIOD_S  # an action holds until the next one
    record_figure(f"teleop_{how.name.lower()}_to_zero_ms", stopped_s * 1e3)
    assert stopped_s <= DEAD_MAN_S + 2 * PERIOD_S + DELAY_S
    assert not is_driven_by_policy(steps)
    assert all(is_still(step) and is_locked(step) for step in steps if step["applied_ns"] > last_ns + 0.2e9)
    free.release()
    mark = free.mark
    wait_until(lambda: is_driven_by_policy(free.steps(mark)), what="the policy drives on")
    check_hands(free.headers(mark - 5))


def test_the_emergency_stop_of_the_page_holds_until_roverctl_clears_it(free):
    async def run():
        async with page.opened(free.url()) as one:
            await one.take()
            one.axes = [1.0, 0.0]
            await one.until(lambda view: view["source"] == "human")
            async with one.session.post(f"{one.base}/e_stop", json={}) as answer:
                assert answer.status == 200
            view = await one.until(lambda view: view["mode"] == "e_stop")
            assert view["wheel"]["state"] == "held"
            await one.until(lambda view: not view["wheel"]["is_obeyed"] and not view["is_in_episode"])
            await one.say("clear", sure=True)
            await asyncio.sleep(0.2)
            assert one.view["mode"] == "e_stop", "the page cleared it"
            free.rover.post("/clear")  # as roverctl clear does
            await one.until(lambda view: view["mode"] == "teleop" and view["source"] == "human")

    mark = free.mark
    asyncio.run(run())
    assert not is_driven_by_policy(free.steps(mark)[8:])
    events = [each["event"] for each in free.rover.events("e_stop.latched", "e_stop.cleared")]
    assert events[-2:] == ["e_stop.latched", "e_stop.cleared"]


def test_a_terminal_drives_and_its_end_gives_the_wheel_back(free):
    mark = free.mark
    words = ("-m", "roverd.ctl", "--control-socket", str(free.rover.socket), "drive")
    with Typist(*words, cwd=free.rover.folder, env=free.rover.env) as typist:
        typist.wait_for("wheel held")
        typist.hold("w", 0.5)
        typist.wait_for("drives human")
        typist.press("q")
        assert typist.end() == 0
        assert typist.modes == typist.modes_before
    wait_until(lambda: is_driven_by_policy(free.steps(free.mark - 5)), what="the policy drives on")
    assert any(step["source"] == "human" and not is_still(step) for step in free.steps(mark))
    check_hands(free.headers(mark))


def test_the_one_shot_command_waits_for_whoever_has_the_wheel(free):
    free.rover.post("/wheel/take", {"owner": "anna"})
    answer = free.rover.ctl("drive", "0.1", "0.0", "--json")
    assert (answer.status, "anna has the wheel" in answer.err) == (1, True)
    free.release()
    assert free.rover.post("/drive", {"action": [0.1, 0.0], "seconds": 0.2})["action"] == [0.1, 0.0]


@pytest.mark.slow
def test_the_wheel_is_given_back_from_a_shell(free):
    free.rover.post("/wheel/take", {"owner": "anna"})
    assert free.rover.ctl("wheel", "show").out.count("anna") == 1
    assert free.rover.ctl("wheel", "release", "--force", "--json").json["released"] == "anna"


def test_a_self_check_ends_where_a_person_takes_the_wheel_and_one_action_is_refused_meanwhile(free):
    mark, ended = free.mark, []

    def check():
        try:
            ended.append(free.rover.post("/selfcheck"))
        except ControlError as error:
            ended.append(str(error))

    thread = threading.Thread(target=check)
    thread.start()
    wait_until(lambda: free.rover.get("/selfcheck")["running"] == "forward", what="it moves the robot")
    with pytest.raises(ControlError, match="the self-check moves the robot"):
        free.rover.post("/drive", {"action": [0.1, 0.0], "seconds": 0.2})
    free.rover.post("/wheel/take", {"owner": "anna"})
    taken_ns = time.monotonic_ns()
    drive_by_socket(free, "anna", [-1.0, 0.5], 0.8)  # this robot cannot reverse: only the turn is hers
    thread.join(10)
    assert ended == ["selfcheck: broken off: anna took the wheel"]
    steps = [step for step in free.steps(mark) if step["applied_ns"] > taken_ns + 0.3e9]
    assert len(steps) > 4
    actions = {tuple(np.frombuffer(step["action"], "<f4").tolist()) for step in steps}
    assert actions <= {(0.0, 0.75), (0.0, 0.0)}, "the check pressed on"
    assert {step["episode_id"] for step in steps} == {steps[0]["episode_id"]}, "her episode was ended by the check"
    assert not any(step["purpose"] == "collection" for step in steps), "hers is no part of the check"


@pytest.mark.slow
def test_a_page_that_reads_nothing_slows_nothing(free):
    with page_process(free, [0.0, 0.5]) as process:
        process.send_signal(signal.SIGSTOP)
        before = free.rover.get()
        slowest = 0.0
        for _ in range(60):
            began = time.monotonic()
            after = free.rover.get()
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.1)
    assert after["ticks"] - before["ticks"] > 4 / PERIOD_S
    assert slowest < 1.0
    assert after["tick_gaps"] == before["tick_gaps"]


@pytest.mark.slow
def test_a_lock_outlives_roverd(free):
    free.rover.post("/wheel/take", {"owner": "anna"})
    free.rover.kill()
    free.rover.start()
    status = wait_until(lambda: free.rover.get()["policy"]["policy_id"] and free.rover.get(), what="it is back")
    assert (status["wheel"]["owner"], status["wheel"]["state"], status["mode"]) == ("anna", "locked", "teleop")
    time.sleep(1.0)
    assert free.rover.get()["ticks"] == 0, "the policy drove although somebody has the wheel"
    mark = free.mark
    assert drive_by_socket(free, "anna", [0.5, 0.0], 0.5) > 3
    steps = wait_until(lambda: free.steps(mark), what="she drives")
    assert not is_driven_by_policy(steps)


@pytest.mark.slow
def test_a_port_that_is_taken_holds_nobody_up(site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        rover = site.rover({**LIVE, "teleop.port": taken.getsockname()[1]})
        status = wait_until(lambda: (new := rover.get())["web"]["state"] == "failed" and new, what="it says so")
        assert "web page: 127.0.0.1:" in str(status["health"]["causes"])
        assert rover.ctl("web").status == 1


class TestCollection:
    """Episodes for imitation: counted, stored, and never learned from by PPO."""

    def counts(self, live):
        return live.rover.get("/collect")["collection"]

    def start(self, live, name, *words):
        started = live.rover.ctl("collect", "start", "--name", name, *words, "--json")
        assert started.status == 0, started
        wait_until(lambda: live.rover.get()["mode"] in {"collect", "train"}, what="it is followed")

    def episode(self, live, verdict):
        """Let the next episode begin, drive it for a moment, and judge it."""
        live.rover.post("/collect/next")
        drive_by_socket(live, "anna", [0.2, 0.5], 0.3)
        assert self.counts(live)["is_in_episode"]
        live.rover.post("/collect/judge", {"verdict": verdict})
        wait_until(lambda: not self.counts(live)["is_in_episode"], what="it is over")

    def ends(self, live, name, mark):
        """Return success and the mark of discarding of each episode."""
        return [
            (each["success"], each["metrics"].get("discarded", 0.0))
            for each in live.headers(mark)
            if each["kind"] == "episode_end" and each["ends_episode"] and each["order_id"] == f"collect-{name}"
        ]

    def test_a_person_collects_and_the_trainer_stores_it_and_learns_nothing_from_it_by_ppo(self, free):
        mark, before = free.mark, free.trainer.get()["steps"]
        free.rover.post("/collect/start", {"mode": "teleop", "name": "set", "episodes": 2})
        wait_until(lambda: free.rover.get()["mode"] == "collect", what="it is followed")
        with pytest.raises(ControlError, match="roverctl collect stop"):  # one at a time
            free.rover.post("/collect/start", {"mode": "teleop", "episodes": 3})
        wait_until(lambda: not self.counts(free)["is_in_episode"], what="the policy's episode is over")
        ticks = free.rover.get()["ticks"]
        assert (self.counts(free)["state"], self.counts(free)["kept"], self.counts(free)["target"]) == ("running", 0, 2)
        time.sleep(0.3)
        assert free.rover.get()["ticks"] == ticks, "something drove that is no person"
        free.rover.post("/wheel/take", {"owner": "anna"})
        for verdict in ("success", "discard", "failure"):
            self.episode(free, verdict)
        counts = self.counts(free)
        assert (counts["state"], counts["kept"], counts["successes"], counts["discarded"]) == ("finished", 2, 1, 1)
        free.release()
        wait_until(lambda: free.rover.get()["mode"] == "train", what="training goes on")
        assert self.ends(free, "set", mark) == [(True, 0.0), (False, 1.0), (False, 0.0)]
        sent = [each for each in free.steps(mark) if each["purpose"] == "collection"]
        assert len(sent) > 3 * 0.15 / PERIOD_S
        assert {each["source"] for each in sent} <= {"human", "fallback"}, "the policy drove in a collection by hand"
        after = wait_until(
            lambda: (new := free.trainer.get()["steps"])["collection"] - before["collection"] >= len(sent) and new,
            what="all are counted",
        )
        assert after["collection"] - before["collection"] == len(sent)
        assert unbalanced(after) == 0, "each is in one counter, so none of these is in a rollout"
        catalogue = Catalogue(free.trainer.state_dir / "catalogue.sqlite")
        rows = wait_until(
            lambda: len(found := catalogue.episodes(purposes=("collection",))) >= 3 and found, what="they are stored"
        )
        catalogue.close()
        assert all(row.human_steps for row in rows)

    @pytest.mark.slow
    def test_the_count_outlives_roverd(self, free):
        mark = free.mark
        self.start(free, "long", "--mode", "teleop", "--episodes", "2")
        free.rover.post("/wheel/take", {"owner": "anna"})
        self.episode(free, "success")
        assert "long: running, 1 of 2 episodes by teleop" in free.rover.ctl("collect", "status").out
        free.rover.kill()
        free.rover.start()
        wait_until(lambda: free.rover.get()["policy"]["policy_id"], what="a policy is loaded")
        assert self.counts(free)["kept"] == 1
        time.sleep(0.5)
        assert free.rover.get()["ticks"] == 0, "the policy drove in a collection by hand"
        self.episode(free, "success")
        assert self.counts(free)["state"] == "finished"
        wait_until(lambda: self.ends(free, "long", mark) == [(True, 0.0)] * 2, what="both arrived")

    @pytest.mark.slow
    def test_an_operator_who_is_gone_leaves_a_discarded_episode(self, free):
        mark = free.mark
        self.start(free, "gone", "--mode", "teleop", "--episodes", "1")
        with page_process(free, [0.1, 0.5]) as process:
            process.kill()
            wait_until(lambda: self.counts(free)["discarded"] == 1, what="it is discarded")
        assert self.ends(free, "gone", mark) == [(False, 1.0)]
        assert free.rover.ctl("collect", "stop").status == 0

    @pytest.mark.slow
    def test_a_controller_collects_by_itself(self, free):
        mark = free.mark
        self.start(free, "scripted", "--mode", "controller", "--controller", "reactive", "--episodes", "2")
        wait_until(lambda: self.counts(free)["state"] == "finished", 120, what="two episodes")
        steps = [each for each in free.steps(mark) if each["purpose"] == "collection"]
        assert "scripted" in {each["source"] for each in steps}
        assert len(self.ends(free, "scripted", mark)) == 2
        wait_until(lambda: free.rover.get()["mode"] == "train", what="training goes on")
