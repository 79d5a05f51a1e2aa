"""A policy that drives badly is taken back by itself, with one event that says why."""

from __future__ import annotations

import asyncio
import math

import pytest

from protocol.step import Intervention
from roverd.control import wire
from roverd.policies import Target
from tests.unit.protocol.samples import packed
from tests.unit.roverd.policy_rig import Rig, named

pytestmark = pytest.mark.usefixtures("soon")


async def bad(rig, first, **driving):
    """Bring a second policy to the wheels and let it drive badly; return it."""
    await rig.live(first)
    await rig.drive(10)
    second = rig.offer(7)
    await rig.until(rig.policies.take_ready, driving=True)
    await rig.drive(10, **driving)
    return second


@pytest.mark.parametrize(
    ("driving", "reason"),
    [
        ({"action": (math.nan, 0.0), "flags": Intervention.NON_FINITE}, "not finite"),
        ({"flags": Intervention.MISSED}, "had no answer in time"),
        ({"flags": Intervention.FAILOVER}, "had no answer in time"),
        ({"flags": Intervention.FORWARD_STOP, "source": "gate"}, "safety stepped in at 100%"),
    ],
)
async def test_a_bad_policy_is_rolled_back_by_itself_with_one_event_and_its_reason(tmp_path, logs, driving, reason):
    async with Rig(tmp_path) as rig:
        first = rig.add(1)
        second = await bad(rig, first, **driving)
        assert rig.policies.take_ready(now=True), "between two ticks, not only at the end of the episode"
        assert rig.policies.driving_id == first
        await rig.until(lambda: named(logs, "policy.rolled_back"))
        (event,) = named(logs, "policy.rolled_back")
        assert (event["policy_id"], event["to"]) == (second[:12], first[:12])
        assert reason in event["reason"]
        assert rig.verdicts(second)[-1] == "rolled_back"
        assert reason in rig.policies.refusal(Target("policy", second))
        assert rig.role(1 - rig.active) == wire.NO_ROLE, "what is bad stands by for nobody"


async def test_in_training_each_of_many_offers_that_drive_against_a_wall_comes_to_drive(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        wall = {"flags": Intervention.FORWARD_STOP, "source": "gate", "explores": True}
        for counter in range(2, 22):
            await rig.drive(20, explores=True)
            offered = rig.offer(counter)
            await rig.until(rig.policies.take_ready, driving=True, explores=True)
            assert rig.policies.driving_id == offered
            await rig.until(lambda: rig.stage != "watching", driving=True, **wall)
            assert (rig.stage, rig.policies.driving_id) == ("settled", offered)
        assert (rig.policies.report()["barred"], rig.policies.refusals) == ({}, 0)
        assert not named(logs, "policy.rolled_back")


async def test_outside_of_training_the_same_policies_are_rolled_back(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        await rig.drive(20, explores=True)
        rig.offer(2)
        await rig.until(rig.policies.take_ready, driving=True, explores=True)
        await rig.drive(10, flags=Intervention.FORWARD_STOP, source="gate")
        assert rig.policies.take_ready(now=True)
        assert rig.policies.driving_id == first


async def test_an_evaluation_of_a_weak_policy_goes_to_its_end(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        await rig.drive(20)
        weak = Target("policy", rig.add(2))
        rig.policies.override(weak)
        await rig.until(rig.policies.take_ready, driving=True)
        await rig.drive(40, flags=Intervention.FORWARD_STOP, source="gate")
        assert (rig.policies.is_settled, rig.policies.refusal(weak)) == (True, "")


@pytest.mark.parametrize("flag", [Intervention.NON_FINITE, Intervention.STALE, Intervention.ACTUATOR_FAILED])
async def test_a_sensor_that_fails_while_a_policy_is_watched_bars_nobody(tmp_path, flag):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.offer(2)
        await rig.until(rig.policies.take_ready, driving=True)
        await rig.drive(50, flags=flag | Intervention.MISSED, source="fallback", has=0)
        assert (rig.policies.driving_id, rig.policies.report()["barred"]) == (new, {})
        await rig.until(lambda: rig.stage == "settled", driving=True)


async def test_the_reason_of_a_rollback_says_what_the_process_counted(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.offer(7)
        await rig.until(rig.policies.take_ready, driving=True)
        rig.children[rig.active].failures = {"non_finite": 4}
        await rig.drive(10, flags=Intervention.MISSED)
        await rig.until(lambda: named(logs, "policy.rolled_back"))
        assert "{'non_finite': 4}: the network gave [nan]" in named(logs, "policy.rolled_back")[0]["reason"]


async def test_a_policy_that_became_slow_is_rolled_back_after_its_watch(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.offer(7)
        await rig.until(rig.policies.take_ready, driving=True)
        rig.children[rig.active].latency_ms = 40.0
        await rig.drive(10)
        await rig.until(lambda: rig.policies.take_ready(now=True))
        assert rig.policies.driving_id == first
        await rig.until(lambda: named(logs, "policy.rolled_back"))
        assert "took 40.0 ms (median), at most 20 ms" in named(logs, "policy.rolled_back")[0]["reason"]


async def test_a_rolled_back_policy_is_not_offered_in_again_not_even_after_a_restart(tmp_path):
    async with Rig(tmp_path) as rig:
        first = rig.add(1)
        second = await bad(rig, first, flags=Intervention.MISSED)
        rig.policies.take_ready(now=True)
        rig.offer(7)
        await asyncio.sleep(0.05)
        assert rig.policies.driving_id == first
        await rig.until(lambda: rig.store.note().policy_id == first)
    async with Rig(tmp_path) as rig:
        rig.policies.want(rig.store.current())
        await rig.until(rig.policies.take_ready)
        assert rig.offer(7) == second
        await asyncio.sleep(0.05)
        assert (rig.policies.target.name, rig.verdicts(second)) == (first, ["refused"])


async def test_reload_gives_a_rolled_back_policy_another_chance(tmp_path):
    async with Rig(tmp_path) as rig:
        second = await bad(rig, rig.add(1), flags=Intervention.MISSED)
        rig.policies.take_ready(now=True)
        assert rig.policies.reload(now=True) == second
        await rig.until(lambda: rig.policies.take_ready(now=True), driving=True)
        assert rig.policies.driving_id == second


async def test_a_policy_that_is_rolled_back_with_nothing_before_it_leaves_the_robot_standing(tmp_path):
    async with Rig(tmp_path) as rig:
        rig.policies.want(rig.add(1))
        await rig.until(rig.policies.take_ready)
        child = rig.children[rig.active]
        await rig.drive(5, action=(math.nan, 0.0))
        await rig.until(lambda: not child.is_alive)
        assert rig.policies.driving is None
        await asyncio.sleep(0.3)
        assert rig.policies.driving is None
        await rig.until(lambda: rig.store.note().policy_id == "")


async def test_where_the_policy_before_is_not_loaded_any_more_it_is_loaded_and_takes_over(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.offer(7)
        await rig.until(rig.policies.take_ready, driving=True)
        rig.children[1 - rig.active].die()
        await rig.drive(10, flags=Intervention.MISSED)
        await rig.until(lambda: rig.policies.take_ready(now=True), driving=True)
        assert rig.policies.driving_id == first


async def test_the_next_policy_takes_over_at_once_where_it_was_on_its_way_already(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        await rig.drive(10)
        rig.offer(7)
        await rig.until(rig.policies.take_ready, driving=True)
        third = await rig.policies.install(packed(counter=8))
        await rig.until(lambda: rig.stage == "shadowing")
        await rig.until(lambda: rig.policies.report()["rollbacks"] == 1, driving=True, action=(math.nan, 0.0))
        await rig.until(lambda: rig.policies.take_ready(now=True), driving=True)
        assert rig.policies.driving_id == third


async def test_a_bad_policy_goes_even_when_the_next_one_is_refused(tmp_path):
    async with Rig(tmp_path) as rig:
        first = rig.add(1)
        await rig.live(first)
        rig.offer(7)
        await rig.until(rig.policies.take_ready, driving=True)
        third = rig.add(8)
        rig.answers[third] = {"ok": False, "reason": "no"}
        rig.policies.choose(third)
        rig.decide(action=(math.nan, 0.0))
        await rig.until(lambda: rig.policies.take_ready(now=True), driving=True)
        assert rig.policies.driving_id == first


async def test_a_condemned_policy_goes_back_also_after_its_watch(tmp_path, logs):
    async with Rig(tmp_path, is_clocked=False) as rig:
        await rig.live(first := rig.add(1))
        await rig.live(rig.add(2))
        rig.policies.condemn("no proposal in 3 episodes running")
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == first
        await rig.until(lambda: named(logs, "policy.rolled_back"))


async def test_a_condemned_script_is_refused(tmp_path):
    async with Rig(tmp_path) as rig:
        script = Target("controller", "random", 5)
        rig.policies.override(script)
        await rig.until(rig.policies.take_ready)
        rig.policies.condemn("no proposal")
        assert (rig.policies.driving, rig.policies.refusal(script)) == (None, "no proposal")


async def test_a_policy_that_an_order_evaluates_is_rolled_back_without_changing_what_is_wanted(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.policies.override(Target("policy", second := rig.add(2)))
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.role(1 - rig.active) == wire.NO_ROLE, "an evaluation measures one policy"
        await rig.drive(1, action=(math.nan, 0.0))
        assert rig.policies.driving is None
        assert rig.policies.refusal(Target("policy", second))
        rig.policies.override(None)
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == first
