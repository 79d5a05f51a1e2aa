"""Who may drive, and how the self-check moves the robot: by small commands, in an episode of its own, or not at all."""

from __future__ import annotations

import asyncio
import json

import pytest

from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings
from protocol.step import Intervention
from roverd.episode import Observed
from roverd.selfcheck import SelfCheck, SelfCheckError
from roverd.selfcheck.calibration import settings_hash
from roverd.selfcheck.signals import Sample
from roverd.settings import SelfCheckSettings


class Applied:
    """What control reports of a tick, as far as a self-check looks at it."""

    def __init__(self, action, flags):
        self.action, self.interventions = action, int(flags)


class Stage:
    """Drive and control in one: a clocked synthetic robot that obeys a person, one tick a turn of the loop."""

    def __init__(self, flags=Intervention.HUMAN, **settings):
        self.robot = SyntheticRobot(SyntheticSettings(cameras=(), **settings))
        self.flags, self.mode, self.is_in_episode, self.was_discarded = flags, "train", False, False
        self.commands, self.released, self.pokes, self.ends_after = [], 0, 0, 0
        self.delay = 0
        """Ticks until a command counts."""
        self._queue = []
        self.finished = 0
        self.on_end = lambda: None
        self.selfcheck = None
        self._action, self._held_s, self._stops, self._ticks = (0.0, 0.0), 0.0, False, 0

    def human(self, action, seconds, *, locks=False):
        assert locks
        if self.mode in {"e_stop", "held"}:
            return False
        self.commands.append(action)
        self._action, self._held_s = action, seconds
        if not self.is_in_episode:
            self.begin()
        return True

    def begin(self):
        self.is_in_episode, self._ticks = True, 0
        self.robot.reset(len(self.commands))
        self.selfcheck.saw(self.seen(), None)
        asyncio.get_running_loop().call_soon(self.tick)

    def tick(self):
        self._queue.append(self._action if self._held_s > 0 else (0.0, 0.0))
        action = self._queue.pop(0) if len(self._queue) > self.delay else (0.0, 0.0)
        self._held_s -= self.robot.spec.period_s
        self.robot.advance(action, action)
        self._ticks += 1
        self.selfcheck.saw(self.seen(), Applied(action, self.flags))
        if self._stops or self._ticks == self.ends_after:
            self.is_in_episode = self._stops = False
            self.on_end()
        else:
            asyncio.get_running_loop().call_soon(self.tick)

    def seen(self):
        reading = self.robot.read(False)
        names = [element.name for element in self.robot.spec.state]
        return Observed(reading, reading.state, {}, dict(zip(names, map(float, reading.state), strict=True)))

    def stop_episode(self, reason):
        self._stops = True

    def finish_episode(self, success):
        assert success is None
        self.finished += 1
        self.was_discarded = self.was_discarded or self.is_in_episode
        self._stops = self.is_in_episode
        return self.is_in_episode

    def let_go(self):
        assert not self.is_in_episode
        self._held_s = 0.0
        self.released += 1

    def poke(self):
        assert not self.selfcheck.is_running
        self.pokes += 1


def make(tmp_path, stage=None, *, is_simulated=False, owner=str, hash_="a", **settings):
    stage = stage or Stage()
    stage.selfcheck = SelfCheck(
        SelfCheckSettings(**settings),
        spec=stage.robot.spec,
        is_simulated=is_simulated,
        max_speed_mps=0.18,
        settings_hash=hash_,
        file=tmp_path / "calibration.json",
        driven=stage,
        wheel_owner=owner,
    )
    return stage.selfcheck, stage


@pytest.mark.parametrize(
    ("required", "is_simulated", "is_armed"),
    [("auto", True, True), ("auto", False, False), ("always", True, False), ("never", False, True)],
)
def test_who_must_pass_before_a_policy_may_drive(tmp_path, required, is_simulated, is_armed):
    selfcheck, _ = make(tmp_path, required=required, is_simulated=is_simulated)
    assert selfcheck.is_armed is is_armed
    assert ("roverctl selfcheck" in " ".join(selfcheck.causes())) is not is_armed


async def test_a_robot_that_is_right_is_armed_and_stays_so_after_a_restart(tmp_path):
    selfcheck, stage = make(tmp_path)
    answer = await selfcheck.run()
    assert (answer["passed"], answer["armed"], selfcheck.causes()) == (True, True, [])
    assert stage.was_discarded, "what it drove is no demonstration"
    assert (stage.released, stage.pokes, selfcheck.is_running) == (1, 1, False)
    assert max(command[0] for command in stage.commands) == 0.05
    assert {command[1] for command in stage.commands} == {0.0, 0.3, -0.3}
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert kept["spec_hash"] == stage.robot.spec.hash
    assert any("+0.050 was measured" in each["measured"] for each in kept["checks"])
    assert make(tmp_path)[0].is_armed


async def test_a_wrong_sign_is_kept_and_named_and_a_later_pass_replaces_it(tmp_path):
    selfcheck, _ = make(tmp_path, Stage(gyro_sign=-1))
    answer = await selfcheck.run()
    assert (answer["passed"], answer["armed"]) == (False, False)
    assert "the gyroscope counts backwards" in selfcheck.causes()[0]
    again, _ = make(tmp_path)
    assert "the gyroscope counts backwards" in again.causes()[0]
    await again.run()
    assert again.is_armed


async def test_a_pass_counts_for_the_same_robot_and_settings_only(tmp_path):
    await make(tmp_path)[0].run()
    other = make(tmp_path, Stage(control_rate_hz=20.0))[0]
    assert not other.is_armed
    assert "another robot spec" in other.refusal
    assert "settings" in make(tmp_path, hash_="b")[0].refusal
    assert make(tmp_path)[0].is_armed


def test_the_hash_of_the_settings_is_that_of_the_plugins_that_could_turn_a_sign():
    tables = {"base": {"sign": 1}, "board": {"port": "/dev/ttyS0"}, "goal": {"time_limit_s": 3}}
    before = settings_hash("base", "board", tables)
    assert before == settings_hash("base", "board", {**tables, "goal": {}})
    assert before != settings_hash("base", "board", {**tables, "base": {"sign": -1}})
    assert before != settings_hash("base", "", tables)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"checks": [], "colour": 1}'])
def test_a_damaged_result_counts_as_none(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    selfcheck, _ = make(tmp_path)
    assert not selfcheck.is_armed
    assert "run roverctl selfcheck again" in selfcheck.refusal


async def test_an_episode_of_the_policy_ends_before_the_check_begins(tmp_path):
    selfcheck, stage = make(tmp_path)
    stage.begin()
    assert (await selfcheck.run())["passed"]


async def test_an_episode_that_ends_meanwhile_only_repeats_a_pulse(tmp_path):
    selfcheck, stage = make(tmp_path)
    stage.ends_after = 20
    assert (await selfcheck.run())["passed"]


async def test_episodes_that_end_at_once_break_it_off(tmp_path):
    selfcheck, stage = make(tmp_path)
    stage.ends_after = 3
    with pytest.raises(SelfCheckError, match="ends again and again"):
        await selfcheck.run()
    assert not selfcheck.is_armed
    assert not (tmp_path / "calibration.json").exists()


async def test_a_command_that_counts_late_is_not_judged_before_it_counts(tmp_path):
    selfcheck, stage = make(tmp_path)
    stage.delay = 4
    checks = {each["check"]: each for each in (await selfcheck.run())["checks"]}
    assert checks["forward: linear_vel"]["measured"] == "+0.050 m/s was commanded, +0.050 was measured"
    assert checks["right: odometry yaw"]["measured"] == "-0.300 rad/s was commanded, -0.300 was measured"


async def test_a_gate_that_holds_the_robot_back_fails_it_without_blaming_a_sensor(tmp_path):
    selfcheck, _ = make(tmp_path, Stage(flags=Intervention.HUMAN | Intervention.FORWARD_STOP))
    answer = await selfcheck.run()
    assert "forward_stop" in answer["fault"]
    assert "free space" in answer["fault"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mode": "e_stop"}, "roverctl clear"),
        ({"mode": "held"}, "roverctl episode start"),
        ({"mode": "collect"}, "collect stop"),
    ],
)
async def test_a_robot_that_must_stand_is_not_moved(tmp_path, change, word):
    selfcheck, stage = make(tmp_path)
    vars(stage).update(change)
    with pytest.raises(SelfCheckError, match=word):
        await selfcheck.run()
    assert stage.commands == []


async def test_whoever_has_the_wheel_keeps_it(tmp_path):
    selfcheck, stage = make(tmp_path, owner=lambda: "anna")
    with pytest.raises(SelfCheckError, match="anna has the wheel"):
        await selfcheck.run()
    assert stage.commands == []


async def test_taking_the_wheel_breaks_it_off_and_nothing_is_let_go(tmp_path):
    owners = [""]
    selfcheck, stage = make(tmp_path, owner=lambda: owners[0], seconds=5.0)
    running = asyncio.ensure_future(selfcheck.run())
    while len(stage.commands) < 5:
        await asyncio.sleep(0)
    owners[0] = "anna"
    with pytest.raises(SelfCheckError, match="anna took the wheel"):
        await running
    assert stage.released == 0
    assert not selfcheck.is_running


async def test_nothing_is_pressed_once_somebody_has_the_wheel(tmp_path):
    owners = [""]
    selfcheck, stage = make(tmp_path, owner=lambda: owners[0], seconds=5.0)
    running = asyncio.ensure_future(selfcheck.run())
    while len(stage.commands) < 5:
        await asyncio.sleep(0)
    owners[0] = "anna"
    told = len(stage.commands)
    while not running.done():
        await asyncio.sleep(0)
    assert len(stage.commands) == told
    assert "broken off: anna took the wheel" in str(running.exception())
    assert selfcheck.newest is None


async def test_a_person_who_takes_the_wheel_for_one_tick_only_breaks_it_off_all_the_same(tmp_path):
    owners = [""]
    selfcheck, stage = make(tmp_path, owner=lambda: owners[0], seconds=5.0)
    running = asyncio.ensure_future(selfcheck.run())
    while len(stage.commands) < 5:
        await asyncio.sleep(0)
    owners[0] = "anna"
    assert not selfcheck._press()
    owners[0] = ""
    with pytest.raises(SelfCheckError, match="anna took the wheel"):
        await running


async def test_the_episode_of_a_person_who_took_the_wheel_is_his_own_and_is_left_alone(tmp_path):
    owners, checking = [""], []
    selfcheck, stage = make(tmp_path, owner=lambda: owners[0], seconds=5.0)

    def begin_of_his():
        stage.on_end = lambda: None
        checking.append(selfcheck.is_running)
        stage.human((0.1, 0.0), 60.0, locks=True)

    running = asyncio.ensure_future(selfcheck.run())
    while len(stage.commands) < 5:
        await asyncio.sleep(0)
    assert selfcheck.is_running
    owners[0], stage.on_end = "anna", begin_of_his
    assert selfcheck.is_running, "its own episode still runs, and is discarded"
    with pytest.raises(SelfCheckError, match="anna took the wheel"):
        await running
    assert checking == [False], "what she drives is no part of the check"
    assert (stage.is_in_episode, stage._stops, stage.released) == (True, False, 0)
    assert stage.finished
    stage.stop_episode("over")


@pytest.mark.parametrize("how", ["cancel", "e_stop"])
async def test_it_is_broken_off_at_a_persons_word(tmp_path, how):
    selfcheck, stage = make(tmp_path, seconds=5.0)
    assert not selfcheck.cancel("too early")
    running = asyncio.ensure_future(selfcheck.run())
    while len(stage.commands) < 5:
        await asyncio.sleep(0)
    with pytest.raises(SelfCheckError, match="under way"):
        await selfcheck.run()
    if how == "cancel":
        assert selfcheck.cancel("a cat came by")
    else:
        stage.mode = "e_stop"
    with pytest.raises(SelfCheckError, match=r"a cat came by|e_stop"):
        await running
    assert stage.released == 1
    assert selfcheck.newest is None


async def test_a_disk_that_refuses_arms_it_until_the_daemon_ends(tmp_path):
    (tmp_path / "calibration.json").mkdir()
    selfcheck, _ = make(tmp_path)
    assert not selfcheck.is_armed
    await selfcheck.run()
    assert selfcheck.is_armed


async def test_a_robot_without_wheels_needs_no_check(tmp_path):
    from dataclasses import replace

    from protocol.spec import Element

    stage = Stage()
    stage.robot.spec = replace(stage.robot.spec, action=(Element("shoulder", "rad", -1.0, 1.0),))
    selfcheck, _ = make(tmp_path, stage)
    assert selfcheck.is_armed
    with pytest.raises(SelfCheckError, match="nothing to check"):
        await selfcheck.run()


def test_a_robot_that_may_reverse_is_driven_back_as_well(tmp_path):
    from dataclasses import replace

    from protocol.spec import Element

    stage = Stage()
    action = (Element("linear_cmd", "m/s", -0.02, 0.5), Element("angular_cmd", "rad/s", -1.0, 0.2))
    stage.robot.spec = replace(stage.robot.spec, action=action)
    selfcheck, _ = make(tmp_path, stage)
    pulses = [(p.name, p.forward_mps, p.left_radps) for p in selfcheck.phases() if p.name != "rest"]
    assert pulses == [("forward", 0.05, 0.0), ("backward", -0.02, 0.0), ("left", 0.0, 0.2), ("right", 0.0, -0.2)]


def test_a_contradiction_while_driving_is_a_cause(tmp_path):
    from tests.unit.roverd.recordings import drive

    selfcheck, _ = make(tmp_path, is_simulated=True)
    for sample in drive(0.1, 0.0, ticks=100, wheel=-1.0):
        assert isinstance(sample, Sample)
        selfcheck.watch.add(sample)
    assert "linear_vel says the opposite" in selfcheck.causes()[0]
    assert selfcheck.is_armed, "it is told, and the gate goes on watching"
