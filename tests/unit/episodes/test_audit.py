"""Each check of the audit fails on its own corruption and only there; what roverd and the store make is clean."""

from __future__ import annotations

import itertools
import json
import sqlite3
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest

from protocol.bundle import unpack_bundle
from protocol.framing import RecordEncoder, encode_record, unpack
from protocol.images import JPEG, encode_rgb
from protocol.spec import Element, RobotSpec
from protocol.step import EpisodeEnd, Intervention, Observation, Step
from tests.unit.episodes.drives import BOOT, DEPTH, RGB, ROVER, TASK, TICKS, Drive, drive, robot
from trainerd import ctl
from trainerd.episodes.audit import CATALOGUE, EPISODES, Motion, Report, Thresholds, _judge_together, audit_episode
from trainerd.episodes.catalogue import Catalogue
from trainerd.episodes.checks import motion
from trainerd.episodes.checks.entry import Entry
from trainerd.episodes.checks.findings import CHECKS, Findings
from trainerd.episodes.checks.frames import swapped_roughness
from trainerd.episodes.checks.policy import Shelf
from trainerd.episodes.reader import EpisodeError
from trainerd.episodes.records import StoredRecord
from trainerd.episodes.settings import StoreSettings
from trainerd.episodes.store import Store

HELD = 101
"""Place in the records of a tick that holds a decision, between the human's turn and the end."""
DECIDES = 102


@dataclass
class Episode:
    """What the audit reads instead of a file."""

    robot: RobotSpec
    task: object
    stored: list[StoredRecord]
    breaks_at: int | None = None

    def records(self, *, verify: bool = True):
        for place, record in enumerate(self.stored):
            if place == self.breaks_at:
                raise EpisodeError("a.mcap: chunk 2: CRC of its content differs")
            yield record


@lru_cache
def _driven(name: str) -> Drive:
    """Drive once for each robot; every test copies what it changes."""
    return drive(ROBOTS[name]())


def copy(made: Drive) -> Drive:
    def fresh(observation: Observation) -> Observation:
        kept = {name: getattr(observation, name).copy() for name in ("state", "task", "in_flight")}
        return replace(observation, **kept, ages_ms=dict(observation.ages_ms))

    records = [
        replace(r, observation=fresh(r.observation), action=r.action.copy(), reward_terms=dict(r.reward_terms))
        if isinstance(r, Step)
        else replace(r, final=fresh(r.final))
        for r in made.records
    ]
    return Drive(made.robot, made.bundle, records, [dict(each) for each in made.encoded])


def shelf_of(made: Drive, folder) -> Shelf:
    (folder / f"{unpack_bundle(made.bundle).policy_id}.bundle").write_bytes(made.bundle)
    return Shelf(folder)


def audited(made: Drive, folder, *, has_policy=True, **options):
    episode = Episode(made.robot.spec, TASK, made.stored(), made.broken_at)
    return audit_episode(episode, shelf=shelf_of(made, folder) if has_policy else Shelf(folder), **options)


def offended(findings: Findings) -> set[str]:
    return {check for check, tally in findings.tallies.items() if tally.offences}


def observation_of(record) -> Observation:
    return record.observation if isinstance(record, Step) else record.final


# -- robots that do not do as they should --------------------------------------------------------------------------


class Wrapped:
    """A robot between whose parts something is wrong."""

    def __init__(self, **settings) -> None:
        self._robot = robot(**settings)
        self._ticks = 0

    def __getattr__(self, name):
        return getattr(self._robot, name)

    def read(self, images):
        self._ticks += 1
        reading = self._robot.read(images)
        self.spoil(reading)
        return reading

    def spoil(self, reading) -> None:
        """Change a reading."""


class Reversed(Wrapped):
    def spoil(self, reading):
        reading.state[1] *= -1


class Deaf(Wrapped):
    def advance(self, in_flight, action):
        self._robot.advance((0.0, 0.0), (0.0, 0.0))


class Dropping(Wrapped):
    """A driver that drops two of three commands and holds the last one."""

    last, count = (0.0, 0.0), 0

    def advance(self, in_flight, action):
        before, self.count = self.last, self.count + 1
        if self.count % 3 == 0:
            self.last = tuple(action)
        self._robot.advance(before, self.last)


class Frozen(Wrapped):
    """A camera that gives its 40th frame for ever, while the depth goes on."""

    key, kept = RGB, None

    def spoil(self, reading):
        if self._ticks == 40:
            self.kept = reading.images[self.key]
        if self.kept is not None:
            reading.images[self.key] = self.kept


class FrozenDepth(Frozen):
    key = DEPTH


class Blank(Wrapped):
    """Depth that is one value, another one on each tick."""

    def spoil(self, reading):
        reading.images[DEPTH][:] = 1000 + self._ticks


class Dark(Wrapped):
    def spoil(self, reading):
        reading.images[RGB][:] = 20 + self._ticks % 200


class Swapped(Wrapped):
    """Pixels of a camera of 12 columns and 20 rows in an array of 12 rows and 20 columns."""

    key = DEPTH

    def spoil(self, reading):
        height, width = reading.images[self.key].shape[:2]
        rows, columns = np.arange(width)[:, None], np.arange(height)[None, :]
        scene = (1000 + 150 * rows + 3 * columns + self._ticks % 50).astype(np.int16)
        reading.images[self.key] = self.made(scene).reshape(reading.images[self.key].shape).copy()

    def made(self, scene):
        return scene


class SwappedColor(Swapped):
    key = RGB

    def made(self, scene):
        return np.repeat((scene // 20 % 256).astype(np.uint8)[..., None], 3, axis=2)


ROBOTS = {"good": robot}
BAD_ROBOTS = [
    (Reversed, {"applied.gain"}),
    (Deaf, {"applied.gain", "applied.follow"}),
    (Dropping, {"applied.follow"}),
    (Frozen, {"frames.frozen"}),
    (FrozenDepth, {"frames.frozen"}),
    (Blank, {"frames.blank"}),
    (Dark, {"frames.blank"}),
    (Swapped, {"frames.layout"}),
    (SwappedColor, {"frames.layout"}),
]


@pytest.mark.parametrize(("machine", "expected"), BAD_ROBOTS, ids=[kind.__name__ for kind, _ in BAD_ROBOTS])
def test_a_robot_that_fails_fails_its_check_and_no_other(machine, expected, tmp_path) -> None:
    found = audited(drive(machine()), tmp_path).findings
    assert offended(found) == expected, [offence.what for offence in found.offences]


# -- records that were changed -------------------------------------------------------------------------------------

CORRUPTIONS = []


def corrupts(*expected: str, at: int | None = None, **options):
    """Register a change of good records, the checks that must fail on it, and the place of the first offence."""

    def register(function):
        CORRUPTIONS.append(pytest.param(function, set(expected), at, options, id=function.__name__))
        return function

    return register


@corrupts("order.crc", at=50)
def a_chunk_is_damaged(made: Drive) -> None:
    made.broken_at = 50


@corrupts("order.crc")
def a_step_cannot_be_decoded(made: Drive) -> None:
    made.records[-1].final.state = np.zeros(2, np.float32)


@corrupts("order.seq", at=HELD + 1)
def a_seq_is_skipped(made: Drive) -> None:
    for record in made.records[HELD:]:
        record.seq += 1


@corrupts("order.seq")
def a_step_of_another_episode_is_among_them(made: Drive) -> None:
    made.records[HELD].episode_id += 1


@corrupts("order.seq")
def a_step_counts_wrongly(made: Drive) -> None:
    made.records[-1].episode_steps += 1


@corrupts("order.time", at=HELD)
def an_observation_is_older_than_the_one_before(made: Drive) -> None:
    made.records[HELD].observation.stamp_ns -= 300_000_000


@corrupts("order.time")
def a_step_is_applied_before_its_tick(made: Drive) -> None:
    made.records[HELD].applied_ns -= 50_000_000


@corrupts("order.time")
def a_repeated_observation_is_not_the_same(made: Drive) -> None:
    made.records[HELD].interventions |= Intervention.OBSERVATION_REPEATED


@corrupts("order.time")
def an_observation_is_newer_than_its_action(made: Drive) -> None:
    made.records[HELD].observation.stamp_ns += 50_000_000


@corrupts("order.time")
def a_tick_is_off_the_clock(made: Drive) -> None:
    for record in made.steps[50:]:
        record.tick_ns += 30_000_000
        record.applied_ns += 30_000_000


@corrupts("order.time", "order.rate")
def observations_run_slower_than_ticks(made: Drive) -> None:
    for record in made.records:
        observation_of(record).stamp_ns = observation_of(record).stamp_ns * 9 // 10


@corrupts("order.rate")
def the_loop_runs_at_half_its_rate(made: Drive) -> None:
    for record in made.records:
        observation_of(record).stamp_ns *= 2
    for step in made.steps:
        step.tick_ns *= 2
        step.applied_ns = step.tick_ns + 20_000_000


@corrupts("order.rate")
def a_clocked_loop_skips_every_third_tick(made: Drive) -> None:
    for record in made.records:
        observation = observation_of(record)
        number = observation.stamp_ns // 100_000_000
        observation.stamp_ns = (number + number // 3) * 100_000_000
        if isinstance(record, Step):
            record.tick_ns = observation.stamp_ns + 10_000_000
            record.applied_ns = record.tick_ns + 20_000_000


@corrupts("order.age")
def an_age_is_negative(made: Drive) -> None:
    made.records[HELD].observation.ages_ms = {"min_forward_dist": -1.0}


@corrupts("order.age")
def a_stale_image_was_acted_on(made: Drive) -> None:
    made.records[HELD].observation.ages_ms = {RGB: 900.0, DEPTH: 900.0}


@corrupts("order.age")
def a_reading_goes_back_in_time(made: Drive) -> None:
    made.records[HELD].observation.ages_ms = {RGB: 0.0, DEPTH: 0.0}
    made.records[HELD + 1].observation.ages_ms = {RGB: 150.0, DEPTH: 150.0}


@corrupts("successor.action", at=HELD)
def the_action_in_flight_is_another_one(made: Drive) -> None:
    made.records[HELD].observation.in_flight[1] += 1e-6


@corrupts("successor.action")
def the_final_action_in_flight_is_another_one(made: Drive) -> None:
    made.records[-1].final.in_flight[0] = np.nextafter(made.records[-1].final.in_flight[0], np.float32(9))


@corrupts("successor.tick")
def a_tick_is_lost(made: Drive) -> None:
    for step in made.steps[90:]:
        step.tick += 1


@corrupts("successor.end")
def the_end_is_missing(made: Drive) -> None:
    del made.records[-1], made.encoded[-1]


@corrupts("successor.end")
def the_end_has_another_reason(made: Drive) -> None:
    made.records[-1].reason = "terminated"


@corrupts("successor.end")
def the_last_step_does_not_know_that_it_is(made: Drive) -> None:
    made.records[-2].truncated = False


@corrupts("successor.end")
def a_break_ends_with_another_observation(made: Drive) -> None:
    end = next(record for record in made.records if isinstance(record, EpisodeEnd))
    end.final.state[2] += 0.5


@corrupts("successor.decision", at=HELD)
def a_decision_is_counted_twice(made: Drive) -> None:
    for record in made.records[HELD:]:
        if isinstance(record, Step):
            record.decision_id += 1


@corrupts("successor.decision")
def a_decision_is_held_too_long(made: Drive) -> None:
    made.records[HELD].tick_in_decision = 5


@corrupts("successor.decision")
def most_decisions_are_too_short(made: Drive) -> None:
    for decision, step in enumerate(made.steps):
        step.decision_id, step.tick_in_decision = decision + 1, 0
        step.behaviour = step.policy_action = None
        step.source = "scripted"


@corrupts("successor.reward", at=HELD)
def a_reward_is_not_the_sum_of_its_terms(made: Drive) -> None:
    made.records[HELD].reward_terms["speed"] += 1e-3


@corrupts("successor.reward")
def the_return_is_not_the_sum_of_the_rewards(made: Drive) -> None:
    made.records[-1].return_ += 1e-3


@corrupts("successor.state", at=HELD)
def a_state_is_beyond_its_range(made: Drive) -> None:
    made.records[HELD].observation.state[2] = 9.0


@corrupts("successor.state")
def a_state_is_not_a_number(made: Drive) -> None:
    made.records[HELD].observation.state[2] = np.nan


@corrupts("applied.source", at=DECIDES)
def an_action_changes_without_a_flag(made: Drive) -> None:
    made.records[DECIDES].action[1] += 0.05
    made.records[DECIDES + 1].observation.in_flight[1] = made.records[DECIDES].action[1]


@corrupts("applied.source")
def an_action_is_beyond_the_limits(made: Drive) -> None:
    made.records[DECIDES].action[0] = 0.6
    made.records[DECIDES + 1].observation.in_flight[0] = made.records[DECIDES].action[0]


@corrupts("applied.source")
def a_fallback_has_no_reason(made: Drive) -> None:
    made.records[DECIDES].source = "fallback"


@corrupts("applied.source")
def the_gate_changed_nothing(made: Drive) -> None:
    made.records[DECIDES].source = "gate"


@corrupts("applied.source")
def the_human_did_something_else(made: Drive) -> None:
    made.steps[70].human_action = made.steps[70].human_action + np.float32(0.01)


@corrupts("applied.cause", has_policy=False)
def every_state_is_stored_a_tick_early(made: Drive) -> None:
    distinct = [record for record in made.records if isinstance(record, Step) or record.ends_episode]
    states = [observation_of(record).state.copy() for record in distinct]
    for record, following in zip(distinct, [*states[1:], states[-1]], strict=True):
        observation_of(record).state = following
    for before, after in itertools.pairwise(made.records):
        if isinstance(before, EpisodeEnd):
            before.final.state = observation_of(after).state.copy()


@corrupts("frames.size", at=HELD)
def an_image_is_transposed(made: Drive) -> None:
    made.encoded[HELD][RGB] = (JPEG, encode_rgb(np.zeros((20, 12, 3), np.uint8)))


@corrupts("frames.size", at=DECIDES, has_policy=False)
def a_depth_image_is_cut(made: Drive) -> None:
    codec, content = made.encoded[DECIDES][DEPTH]
    made.encoded[DECIDES][DEPTH] = (codec, content[:-5])


@corrupts("frames.time")
def color_and_depth_are_apart(made: Drive) -> None:
    for record in made.records:
        observation_of(record).ages_ms = {RGB: 0.0, DEPTH: 150.0}


@corrupts("frames.time", at=HELD)
def the_depth_is_missing(made: Drive) -> None:
    del made.encoded[HELD][DEPTH]


@corrupts("policy.mean", at=DECIDES)
def an_image_is_that_of_another_tick(made: Drive) -> None:
    made.encoded[DECIDES][RGB] = made.encoded[20][RGB]


@corrupts("policy.mean", at=DECIDES)
def a_task_feature_is_another_one(made: Drive) -> None:
    made.records[DECIDES].observation.task += 0.01


@corrupts("policy.log_prob")
def a_log_prob_is_wrong(made: Drive) -> None:
    made.records[DECIDES].behaviour = replace(made.records[DECIDES].behaviour, log_prob=-1.0)


@corrupts("policy.log_prob")
def the_exploration_is_not_the_policys(made: Drive) -> None:
    behaviour = made.records[DECIDES].behaviour
    log_std = behaviour.log_std + np.float32(0.1)
    scaled = (behaviour.u - behaviour.mean).astype(np.float64) / np.exp(log_std.astype(np.float64))
    log_prob = float(-0.5 * scaled @ scaled - log_std.sum() - np.log(2 * np.pi))
    made.records[DECIDES].behaviour = replace(behaviour, log_std=log_std, log_prob=log_prob)


@corrupts("policy.action")
def the_policys_action_is_not_its_u(made: Drive) -> None:
    step = made.records[DECIDES]
    step.policy_action = step.policy_action + np.float32(0.01)
    step.source, step.interventions = "gate", int(Intervention.LIMITED)


@corrupts("policy.action")
def a_decision_changes_while_it_is_held(made: Drive) -> None:
    made.records[DECIDES + 1].behaviour = made.steps[10].behaviour
    made.records[DECIDES + 1].policy_action = made.steps[10].policy_action
    made.records[DECIDES + 1].source, made.records[DECIDES + 1].interventions = "gate", int(Intervention.LIMITED)


@corrupts("policy.action")
def an_evaluation_explores(made: Drive) -> None:
    for record in made.records:
        record.purpose = "evaluation"


@pytest.mark.parametrize(("corrupt", "expected", "at", "options"), CORRUPTIONS)
def test_each_check_fails_on_its_own_corruption_and_only_there(corrupt, expected, at, options, tmp_path) -> None:
    made = copy(_driven("good"))
    corrupt(made)
    found = audited(made, tmp_path, **options).findings
    assert offended(found) == expected, [(offence.check, offence.what) for offence in found.offences]
    if at is not None:
        assert found.first.seq == at


def test_every_check_has_a_corruption_that_it_fails_on() -> None:
    tested = set().union(*(case.values[1] for case in CORRUPTIONS), *(expected for _, expected in BAD_ROBOTS))
    assert tested | {"order.catalogue"} == set(CHECKS)  # the catalogue has a test of its own below


# -- what is right -------------------------------------------------------------------------------------------------


def test_a_good_episode_is_clean_and_every_check_but_the_catalogues_was_made(tmp_path) -> None:
    found = audited(_driven("good"), tmp_path).findings
    assert found.offences == []
    assert {check for check, tally in found.tallies.items() if not tally.checked} == {"order.catalogue"}
    assert found.tallies["policy.mean"].checked == TICKS // 2


def test_an_evaluation_without_exploration_is_clean(tmp_path) -> None:
    assert audited(drive(explores=False, ticks=40), tmp_path).findings.offences == []


def test_a_policy_that_is_gone_is_counted_as_not_checked(tmp_path) -> None:
    found = audited(_driven("good"), tmp_path, has_policy=False).findings
    tally = found.tallies["policy.mean"]
    assert (tally.checked, sum(tally.skipped.values()), found.offences) == (0, TICKS // 2, [])


def test_images_are_decoded_as_often_as_asked(tmp_path) -> None:
    tally = audited(_driven("good"), tmp_path, every=10).findings.tallies["policy.mean"]
    assert (tally.checked, sum(tally.skipped.values())) == (TICKS // 20, TICKS // 2 - TICKS // 20)


def test_gaps_of_an_incomplete_episode_are_no_offence(tmp_path) -> None:
    made = copy(_driven("good"))
    del made.records[-1], made.encoded[-1], made.records[110:120], made.encoded[110:120]
    found = audited(made, tmp_path, is_complete=False).findings
    assert found.offences == []
    assert found.tallies["order.seq"].skipped["records before it are known to be lost"] == 1
    assert {"order.seq", "successor.action", "successor.end"} <= offended(audited(made, tmp_path).findings)


def test_a_late_tick_that_is_recorded_as_late_is_no_offence(tmp_path) -> None:
    made = copy(_driven("good"))
    for step in made.steps:
        step.tick_ns += 10_000_000
        step.applied_ns += 10_000_000
    for record in made.records[HELD:]:
        observation_of(record).stamp_ns += 100_000_000
        if isinstance(record, Step):
            record.tick_ns += 100_000_000
            record.applied_ns += 100_000_000
    assert audited(made, tmp_path).findings.offences == []


def test_a_flagged_repeat_of_an_observation_is_no_offence(tmp_path) -> None:
    made = copy(_driven("good"))
    for step in made.steps:
        step.tick_ns += 10_000_000
        step.applied_ns += 10_000_000
    late, before = made.records[HELD + 2], made.records[HELD + 1]
    late.interventions |= Intervention.OBSERVATION_REPEATED
    late.observation.stamp_ns = before.observation.stamp_ns
    assert audited(made, tmp_path, has_policy=False).findings.offences == []


class Toy:
    """The simulated rover in this process, driven by exploration noise, as trainerd.learning drives it."""

    def __init__(self, wrapped=None, **settings) -> None:
        from plugins.rewards.progress import progress
        from plugins.robots.sim.robot import SimRobot
        from plugins.robots.sim.settings import SimSettings
        from plugins.tasks.goal import GoalSettings, GoalTask
        from trainerd.learning.drive import Rover  # brings torch

        made = SimRobot(SimSettings(image_height=8, image_width=12, **settings))
        self.robot = wrapped(made) if wrapped else made
        self.task = GoalTask(GoalSettings(), made.spec, 0)
        self._rover = Rover("sim-1", self.robot, self.task, {"progress": (progress, 0.2)}, itertools.count(11))
        self._encoder = RecordEncoder(made.spec)
        self._rng = np.random.default_rng(3)

    def episode(self) -> Episode:
        stored = []
        while not self._rover.is_over:
            action = self._rng.uniform([0.0, -1.5], [0.5, 1.5]).astype(np.float32)
            for record in self._rover.act(action, None, "", 0):
                frames = encode_record(record, self._encoder.encode_images(observation_of(record).images))
                header = unpack(frames[0])
                stored.append(StoredRecord("sim-1", "inprocess", record.seq, record.episode_id, header, frames))
        self._rover.begin()
        return Episode(self.robot.spec, self.task.spec, stored)


@pytest.mark.component
def test_episodes_of_the_simulated_rover_are_clean(tmp_path) -> None:
    toy, found = Toy(), Findings()
    for _ in range(4):
        found.add(audit_episode(toy.episode(), shelf=Shelf(tmp_path)).findings)
    assert [offence.what for offence in found.offences] == []
    assert found.tallies["applied.follow"].checked > 0
    assert found.tallies["frames.frozen"].checked > 0


# -- commands that do not arrive -----------------------------------------------------------------------------------


class DroppingSim:
    """As Dropping, around any robot: a motor driver that is slower than control."""

    def __init__(self, inner) -> None:
        self._inner, self._last, self._count = inner, (0.0, 0.0), 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def advance(self, in_flight, action):
        before, self._count = self._last, self._count + 1
        if self._count % 3 == 0:
            self._last = tuple(action)
        self._inner.advance(before, self._last)


@pytest.mark.component
@pytest.mark.parametrize("repeat", [1, 3])
def test_dropped_commands_show_at_the_latest_when_episodes_are_judged_together(repeat, tmp_path) -> None:
    toy, together, alone = Toy(DroppingSim, action_repeat=repeat), Motion(), Findings()
    for number in range(6):
        audited_one = audit_episode(toy.episode(), shelf=Shelf(tmp_path))
        alone.add(audited_one.findings)
        together.add({"path": f"{number}.mcap"}, audited_one.rows)
    found = _judge_together(together, Thresholds())
    found.add(alone)
    assert offended(found) >= {"applied.follow"}
    assert offended(found) <= {"applied.follow", "applied.gain"}
    first = _judge_together(together, Thresholds()).first
    assert first.path.endswith(".mcap")
    assert first.numbers["explained"] < Thresholds().explained


def speeds(answer, commands: np.ndarray, *, noise: float = 0.0, rate_hz: float = 10.0) -> Findings:
    """Judge a made-up motor: ``answer`` maps commands to the speeds after each tick."""
    spec = RobotSpec("toy", (), (Element("linear_vel", "m/s", -2, 2),), (Element("linear_cmd", "m/s", -1, 1),), rate_hz)
    speed = np.concatenate(([0.0], answer(commands)))
    speed = speed + noise * np.random.default_rng(1).standard_normal(len(speed))
    entries = []
    for k, command in enumerate(commands):
        seen = Observation(_one(speed[k]), np.zeros(0, np.float32), _one(commands[k - 1] if k else 0.0))
        entries.append(Entry(Step("r", "b", k, 0, k, k, 0, seen, _one(command), "scripted", 0.0)))
    final = Observation(_one(speed[-1]), np.zeros(0, np.float32), _one(commands[-1]))
    entries.append(Entry(EpisodeEnd("r", "b", len(commands), 0, len(commands), "truncated", final)))
    findings = Findings()
    motion.check_motion(motion.rows_of(entries, spec), spec, Thresholds(), findings)
    return findings


def _one(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def lagging(share: float, dead: int = 0, slew: float = np.inf):
    def answer(commands: np.ndarray) -> np.ndarray:
        speed, out = 0.0, []
        for command in np.concatenate((np.zeros(dead), commands))[: len(commands)]:
            speed += float(np.clip(share * (command - speed), -slew, slew))
            out.append(speed)
        return np.array(out)

    return answer


def held_commands(count: int = 300, repeat: int = 3) -> np.ndarray:
    return np.repeat(np.random.default_rng(0).uniform(-1, 1, count // repeat), repeat)


@pytest.mark.parametrize(
    ("answer", "noise", "rate_hz"),
    [
        (lagging(1.0), 0.0, 10.0),
        (lagging(0.3), 0.02, 10.0),
        (lagging(0.7, dead=2), 0.02, 10.0),
        (lagging(1.0, slew=0.1), 0.01, 10.0),
        (lagging(0.15), 0.01, 30.0),
        (lagging(0.5, slew=0.06), 0.01, 30.0),
        (lambda commands: 0.8 * lagging(0.6)(commands), 0.02, 10.0),
    ],
    ids=["at once", "slow", "dead time", "weak motor", "slow at 30 Hz", "weak at 30 Hz", "slipping"],
)
def test_honest_motors_pass(answer, noise, rate_hz) -> None:
    found = speeds(answer, held_commands(), noise=noise, rate_hz=rate_hz)
    assert found.offences == []
    assert found.tallies["applied.follow"].checked == found.tallies["applied.gain"].checked == 1


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        (lambda commands: -lagging(0.6)(commands), "applied.gain"),
        (lambda commands: 3.6 * lagging(0.6)(commands), "applied.gain"),
        (lagging(0.6, dead=7), "applied.follow"),
        (lambda commands: np.abs(lagging(0.6)(commands)), "applied.follow"),
        (lambda commands: np.roll(lagging(1.0)(commands), -1), "applied.cause"),
    ],
    ids=["reversed", "km/h", "too late", "no sign", "too early"],
)
def test_dishonest_motors_fail(answer, check) -> None:
    assert check in offended(speeds(answer, held_commands()))


def test_commands_that_never_change_are_counted_as_not_checked() -> None:
    found = speeds(lagging(0.9), np.full(200, 0.05))
    assert found.offences == []
    assert [sum(found.tallies[f"applied.{name}"].skipped.values()) for name in ("gain", "follow", "cause")] == [1, 1, 1]


def test_a_robot_without_speeds_is_counted_as_not_checked() -> None:
    spec = RobotSpec("toy", (), (Element("x", "m", 0, 1),), (Element("linear_cmd", "m/s", -1, 1),), 10.0)
    findings = Findings()
    motion.check_motion([], spec, Thresholds(), findings)
    assert sum(findings.tallies["applied.gain"].skipped.values()) == 1


def test_a_picture_is_smoother_in_its_own_layout() -> None:
    rows, columns = np.arange(60)[:, None], np.arange(106)[None, :]
    picture = (500 + 40 * rows + np.where(columns > 50, 900, 0)).astype(np.int16)
    assert swapped_roughness(picture) > 1.2
    assert swapped_roughness(picture.reshape(106, 60)) < 0.7
    assert swapped_roughness(np.full((60, 106), 7, np.int16)) is None


# -- the first offence, and the command ----------------------------------------------------------------------------


def test_the_first_offence_is_the_first_by_seq_of_the_first_episode() -> None:
    findings = Findings()
    findings.hold("policy.mean", 9, "late", holds=False, computed=1.0)
    findings.hold("successor.action", 4, "early", holds=False, applied=0.5)
    findings.locate(path="a.mcap", rover_id=ROVER, boot_id=BOOT, episode_id=1)
    later = Findings()
    later.hold("order.seq", 1, "another file", holds=False)
    later.locate(path="b.mcap")
    findings.add(later)
    first = Report(findings, 20, 7).to_map()["first_offence"]
    assert (first["file"], first["seq"], first["check"], first["numbers"]) == (
        "a.mcap",
        4,
        "successor.action",
        {"applied": 0.5},
    )


def test_an_episode_that_fails_everywhere_keeps_few_offences_and_counts_all() -> None:
    findings = Findings()
    for seq in range(500):
        findings.hold("order.seq", seq, "wrong", holds=False)
    assert (findings.tallies["order.seq"].offences, len(findings.offences)) == (500, Findings.KEPT)


@pytest.mark.parametrize("arguments", [["--sample", "-1"], ["--sample", "x"], ["--episode", "-2"]])
def test_wrong_usage_is_exit_status_2(arguments) -> None:
    with pytest.raises(SystemExit) as failed:
        ctl.main(["audit", *arguments])
    assert failed.value.code == 2


def test_nothing_to_audit_is_exit_status_2_and_no_clean_verdict(tmp_path, capsys) -> None:
    assert ctl.main(["audit", "--state-dir", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


# -- files of the real store ---------------------------------------------------------------------------------------


def keep(state_dir, made: list[Drive], *, is_closed=True) -> None:
    """Store episodes as trainerd does, with their policy."""
    folder = state_dir / EPISODES
    catalogue = Catalogue(state_dir / CATALOGUE)
    store = Store(folder, catalogue, StoreSettings(min_free_mb=0), on_durable=lambda _keys: None)
    store.start()
    store.begin_boot(ROVER, BOOT, run_id="run", robot=made[0].robot.spec, task=TASK, epoch_ns=0)
    for each in made:
        assert all(store.append(record) for record in each.stored())
    assert store.flush(10.0)
    if is_closed:
        store.close_boot(ROVER, BOOT)
    store.stop()
    catalogue.close()
    policies = state_dir / "policies"
    policies.mkdir(exist_ok=True)
    shelf_of(made[0], policies)


def ask(capsys, *arguments) -> tuple[int, dict]:
    capsys.readouterr()
    status = ctl.main(["audit", "--json", *map(str, arguments)])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Three episodes on disk; read only."""
    state_dir = tmp_path_factory.mktemp("state")
    first = _driven("good")
    second = drive(episode_id=2, seq=len(first.records))
    third = drive(episode_id=3, seq=len(first.records) + len(second.records), ticks=50)
    keep(state_dir, [first, second, third])
    return state_dir


@pytest.mark.component
def test_what_the_store_keeps_is_clean(kept, capsys) -> None:
    status, answer = ask(capsys, "--state-dir", kept, "--sample", 0)
    assert (status, answer["ok"], answer["first_offence"]) == (0, True, None)
    assert answer["episodes"] == {"stored": 3, "audited": 3, "skipped": {}}
    assert answer["steps"] == 2 * TICKS + 50
    checked = {row["check"]: row["checked"] for row in answer["checks"]}
    assert checked["policy.mean"] == TICKS + 25
    assert checked["order.catalogue"] == 12


@pytest.mark.component
def test_the_printed_seed_repeats_the_draw(kept, capsys) -> None:
    status, first = ask(capsys, "--state-dir", kept, "--sample", 1)
    _, again = ask(capsys, "--state-dir", kept, "--sample", 1, "--seed", first["seed"])
    assert status == 0
    assert (first["episodes"]["audited"], first["steps"]) == (1, again["steps"])


@pytest.mark.component
def test_one_episode_is_chosen_by_its_number_or_rover(kept, capsys) -> None:
    assert ask(capsys, "--state-dir", kept, "--episode", 3)[1]["steps"] == 50
    assert ask(capsys, "--state-dir", kept, "--rover", ROVER)[1]["episodes"]["audited"] == 3
    assert ask(capsys, "--state-dir", kept, "--rover", "nobody")[0] == 2


@pytest.mark.component
def test_a_person_reads_the_verdict_and_what_was_not_checked(kept, capsys) -> None:
    assert ctl.main(["audit", "--state-dir", str(kept)]) == 0
    text = capsys.readouterr().out
    assert "clean: no check failed" in text
    assert "--seed" in text
    assert "the record has no ages of sensors" in text


@pytest.mark.component
def test_a_flipped_bit_names_its_file(tmp_path, capsys) -> None:
    keep(tmp_path, [drive(ticks=40)])
    path = next((tmp_path / EPISODES).rglob("*.mcap"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, answer = ask(capsys, "--state-dir", tmp_path)
    assert status == 1
    assert (answer["first_offence"]["check"], answer["first_offence"]["file"]) == ("order.crc", str(path))
    assert ctl.main(["audit", "--state-dir", str(tmp_path)]) == 1
    assert f"OFFENCE order.crc in {path}" in capsys.readouterr().out


@pytest.mark.component
def test_a_catalogue_that_says_otherwise_is_an_offence(tmp_path, capsys) -> None:
    keep(tmp_path, [drive(ticks=40)])
    with sqlite3.connect(tmp_path / CATALOGUE) as database:
        database.execute("UPDATE episodes SET steps = steps + 1")
    database.close()
    status, answer = ask(capsys, "--state-dir", tmp_path)
    assert (status, {row["check"] for row in answer["checks"] if row["offences"]}) == (1, {"order.catalogue"})


@pytest.mark.component
def test_a_file_that_is_gone_is_an_offence_unless_it_was_deleted(tmp_path, capsys) -> None:
    keep(tmp_path, [drive(ticks=40)])
    next((tmp_path / EPISODES).rglob("*.mcap")).unlink()
    status, answer = ask(capsys, "--state-dir", tmp_path)
    assert (status, answer["first_offence"]["check"]) == (1, "order.crc")


@pytest.mark.component
def test_the_audit_writes_nothing(kept, capsys) -> None:
    def stamps() -> dict:
        return {
            p: p.stat().st_mtime_ns for p in kept.rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal"))
        }

    before = stamps()
    ask(capsys, "--state-dir", kept)
    assert stamps() == before


@pytest.mark.component
def test_a_number_that_is_not_one_is_still_json(tmp_path, capsys) -> None:
    made = copy(drive(ticks=40))
    made.records[9].observation.state[2] = np.nan
    keep(tmp_path, [made])
    status, answer = ask(capsys, "--state-dir", tmp_path)
    assert (status, answer["first_offence"]["numbers"]) == (1, {"value": None})
    assert ctl.main(["audit", "--state-dir", str(tmp_path)]) == 1
    assert "value not finite" in capsys.readouterr().out
