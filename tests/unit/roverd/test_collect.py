"""Collections of episodes: who begins and ends them, what counts, and what outlives a restart."""

import json

import pytest
from structlog.testing import capture_logs

from roverd.axes import Axes
from roverd.collect import LOST_AFTER_S, CollectError, Collecting, Collection
from roverd.wheel import Wheel
from tests.unit.roverd.steered import ROVER, Clock, Robot


class Site:
    """A collecting, and what it drives."""

    def __init__(self, file):
        self.file, self.clock, self.robot = file, Clock(), Robot()
        self.wheel = Wheel(self.robot, Axes(ROVER, (0.0, 0.0), max_speed_mps=1), dead_man_s=0.25, clock=self.clock)
        self.collecting = self.restarted()

    def restarted(self, task="goal"):
        made = Collecting(self.robot, self.wheel, self.file, task=task, controllers=lambda: ["reactive", "random"])
        self.wheel.on_change = made.wheel_changed
        self.robot.is_allowed = None
        return made

    def begin(self):
        self.robot.in_episode = True

    def end(self, verdict, order_id="collect-set"):
        self.robot.in_episode = False
        self.collecting.ended("collection", order_id, verdict)

    def counts(self):
        status = self.collecting.status()
        return tuple(status[key] for key in ("kept", "successes", "failures", "discarded", "state"))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "collection.json")


@pytest.fixture
def running(site):
    site.collecting.start("teleop", 3, name="set")
    return site


def test_without_one_there_is_nothing_to_show(site):
    assert site.collecting.status() is None
    assert not site.collecting.stop()


def test_it_orders_its_episodes_and_waits_for_the_operator(running):
    (order,) = running.robot.orders
    assert (order.mode, order.order_id, order.controller, order.episodes) == ("collect", "collect-set", "policy", 3)
    assert running.robot.is_allowed is False
    assert running.collecting.status()["is_waiting"]


def test_the_first_episode_begins_when_somebody_takes_the_wheel(running):
    running.wheel.take("anna")
    assert running.robot.is_allowed is True
    assert not running.collecting.status()["is_waiting"]


def test_it_begins_at_once_where_somebody_has_the_wheel(site):
    site.wheel.take("anna")
    site.collecting.start("teleop", 3, name="set")
    assert site.robot.is_allowed is True


def test_a_later_episode_waits_until_it_is_asked_for(running):
    running.wheel.take("anna")
    running.begin()
    running.end("success")
    assert running.robot.is_allowed is False
    assert running.collecting.status()["is_waiting"]
    assert running.collecting.next_episode()
    assert running.robot.is_allowed is True
    assert not running.collecting.next_episode(), "asked for twice"


def test_successes_and_failures_count_and_discarded_ones_do_not(running):
    for verdict in ("success", "failure", "discard", None):
        running.begin()
        running.end(verdict)
    assert running.counts() == (2, 1, 1, 1, "running")
    running.begin()
    running.end("success")
    assert running.counts() == (3, 2, 1, 1, "finished")
    assert running.robot.orders[-1].mode == "idle"
    running.end("success")
    assert running.counts()[0] == 3, "one more than was asked for"


@pytest.mark.parametrize(("verdict", "told"), [("success", True), ("failure", False), ("discard", None)])
def test_the_operators_word_ends_an_episode(running, verdict, told):
    running.begin()
    running.collecting.judge(verdict)
    assert running.robot.verdicts == [told]


@pytest.mark.parametrize("verdict", ["", "good", "None"])
def test_another_word_is_refused(running, verdict):
    running.begin()
    with pytest.raises(CollectError, match="success, failure, discard"):
        running.collecting.judge(verdict)


def test_nothing_is_judged_where_nothing_runs(running):
    with pytest.raises(CollectError, match="no episode"):
        running.collecting.judge("success")
    running.collecting.stop()
    running.begin()
    with pytest.raises(CollectError, match="no episode"):
        running.collecting.judge("success")
    assert running.robot.verdicts == []


def test_letting_go_of_the_wheel_discards(running):
    running.wheel.take("anna")
    running.begin()
    running.wheel.take("ben", by_force=True)
    assert running.robot.verdicts == [], "another operator goes on with it"
    running.wheel.release("ben")
    assert running.robot.verdicts == [None]


def test_letting_go_before_it_began_waits_again(running):
    running.wheel.take("anna")
    running.wheel.release("anna")
    assert running.robot.is_allowed is False
    assert running.collecting.status()["is_waiting"]


def test_an_operator_who_falls_silent_has_his_episode_discarded(running):
    running.wheel.take("anna")
    running.begin()
    running.clock.now_s += LOST_AFTER_S - 0.1
    running.collecting.look()
    assert running.robot.verdicts == []
    running.clock.now_s += 0.2
    running.collecting.look()
    assert running.robot.verdicts == [None]


def test_episodes_of_others_do_not_count(running):
    for purpose, order_id in (("training", "collect-set"), ("collection", ""), ("collection", "collect-other")):
        running.collecting.ended(purpose, order_id, "success")
    assert running.counts()[0] == 0


def test_stopping_ends_the_order_and_keeps_the_count(running):
    running.begin()
    running.end("success")
    assert running.collecting.stop()
    assert running.counts() == (1, 1, 0, 0, "stopped")
    assert running.robot.orders[-1].mode == "idle"


def test_two_at_once_are_refused(running):
    with pytest.raises(CollectError, match="set has 0 of 3 episodes; roverctl collect stop"):
        running.collecting.start("teleop", 5, name="more")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "dream"}, "neither teleop nor controller"),
        ({"target": 0}, "episodes 0"),
        ({"target": 1_000_001}, "not within 1 to"),
        ({"name": "No Name"}, "does not match"),
        ({"task": "drive"}, "runs task goal, not drive; start roverd with --task drive"),
        ({"mode": "controller"}, "controller '' is none of random, reactive"),
        ({"controller": "random"}, "no controller"),
    ],
)
def test_mistakes_are_named(site, arguments, words):
    with pytest.raises(CollectError, match=words):
        site.collecting.start(arguments.pop("mode", "teleop"), arguments.pop("target", 3), **arguments)
    assert site.collecting.status() is None
    assert not site.file.exists()


def test_a_controller_drives_its_episodes_itself(site):
    site.collecting.start("controller", 2, name="set", task="goal", controller="reactive", seed=7)
    assert (site.robot.orders[0].controller, site.robot.orders[0].seed) == ("reactive", 7)
    with pytest.raises(CollectError, match="by hand"):
        site.collecting.next_episode()
    site.wheel.take("anna")
    site.wheel.release("anna")
    assert site.robot.verdicts == []


class TestRestart:
    """The file has all that must outlive roverd."""

    async def resume(self, site, task="goal"):
        collecting = site.restarted(task)
        running = collecting.run()
        running.send(None)  # up to its first sleep
        running.close()
        return collecting

    async def test_the_count_goes_on(self, running):
        running.begin()
        running.end("success")
        running.begin()
        running.end("discard")
        first = running.robot.orders[0].seed
        running.robot.orders.clear()
        running.collecting = await self.resume(running)
        assert running.counts() == (1, 1, 0, 1, "running")
        (order,) = running.robot.orders
        assert (order.episodes, order.seed) == (2, first + 1), "an arena whose episode was discarded comes again"
        assert running.robot.is_allowed is False, "the operator begins"

    async def test_one_that_is_over_stays_over(self, running):
        running.collecting.stop()
        running.robot.orders.clear()
        running.collecting = await self.resume(running)
        assert running.robot.orders == []
        assert running.counts()[-1] == "stopped"

    async def test_another_task_abandons_it(self, running):
        running.robot.orders.clear()
        with capture_logs() as logs:
            running.collecting = await self.resume(running, task="drive")
        assert running.robot.orders == []
        assert running.counts()[-1] == "stopped"
        assert logs[0]["event"] == "collection.abandoned"

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"name": 1}', b"\xff"])
    async def test_a_damaged_file_is_told_and_keeps_nobody_from_driving(self, site, content):
        site.file.write_bytes(content)
        with capture_logs() as logs:
            collecting = await self.resume(site)
        assert collecting.status() is None
        assert logs[0]["event"] == "collection.unreadable"

    def test_a_value_of_another_type_is_damage(self, running):
        values = json.loads(running.file.read_bytes())
        with pytest.raises(CollectError, match="another type"):
            Collection.load(json.dumps({**values, "target": "3"}).encode())


def test_a_full_disk_ends_no_collection(running, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roverd.collect.write_atomic", full)
    with capture_logs() as logs:
        running.begin()
        running.end("success")
    assert running.counts()[0] == 1
    assert logs[0]["event"] == "collection.unwritten"
