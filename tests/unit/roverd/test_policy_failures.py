"""Whatever fails on a policy's way to the wheels, and whichever process dies or hangs, another policy drives on."""

from __future__ import annotations

import asyncio
import math

import pytest

from protocol.step import Intervention
from roverd.control import wire
from roverd.policies import Target
from roverd.policies.refusals import CRASHES_WITHIN_S, Refusals
from tests.unit.protocol.samples import packed
from tests.unit.roverd.policy_rig import GOOD, ZERO, Rig, named

pytestmark = pytest.mark.usefixtures("soon")


async def refused(rig, old, new, reason, logs, **driving):
    """Expect a refusal with a reason, and the old policy at the wheels all the time."""
    await rig.until(lambda: rig.policies.refusals == 1, driving=True, **driving)
    assert rig.stage == "refused"
    assert reason in rig.policies.report()["last_refusal"]["reason"]
    assert "refused" in rig.verdicts(new)
    assert len(named(logs, "policy.refused")) == 1
    assert not rig.policies.take_ready()
    assert (rig.policies.driving_id, rig.policies.swaps) == (old, 1)


async def test_a_policy_that_the_process_refuses_is_refused_and_the_old_one_drives_on(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.add(2)
        rig.answers[new] = {"ok": False, "reason": "golden outputs differ by 0.3"}
        rig.policies.want(new)
        await refused(rig, old, new, "golden outputs differ by 0.3", logs)


async def test_a_refused_policy_leaves_the_fallback_where_it_was(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second, bad = rig.add(1), rig.add(2), rig.add(3)
        await rig.live(first)
        await rig.live(second)
        rig.answers[bad] = {"ok": False, "reason": "no"}
        rig.policies.want(bad)
        await rig.until(lambda: rig.policies.refusals == 1)
        await rig.until(lambda: rig.role(1 - rig.active) == wire.FALLBACK)
        assert rig.children[1 - rig.active].holds == first
        assert rig.loads[-1][1] == bad, "what is still there is not loaded again"


async def test_a_policy_that_is_too_slow_for_the_action_delay_is_refused(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.add(2)
        rig.answers[new] = GOOD | {"latency_ms": 21.0}
        rig.policies.want(new)
        await refused(rig, old, new, "takes 21.0 ms, at most 20 ms (the robot's action delay)", logs)


async def test_a_setting_replaces_the_limit_of_the_action_delay(tmp_path):
    async with Rig(tmp_path, max_latency_ms=30.0) as rig:
        new = rig.add(2)
        rig.answers[new] = GOOD | {"latency_ms": 21.0}
        rig.policies.want(new)
        await rig.until(rig.policies.take_ready)


async def test_in_lock_step_only_the_setting_limits_the_latency(tmp_path):
    async with Rig(tmp_path, is_clocked=False) as rig:
        new = rig.add(2)
        rig.answers[new] = GOOD | {"latency_ms": 5000.0}
        rig.policies.want(new)
        await rig.until(rig.policies.take_ready)


async def test_bytes_that_are_not_those_that_were_offered_are_refused(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.offer(2, sha256="0" * 64)
        await refused(rig, old, new, "was offered", logs)


async def test_a_bundle_that_is_cut_short_is_refused(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.offer(2, packed(counter=2)[:-20])
        await refused(rig, old, new, "bundle of", logs)


async def test_another_policy_than_the_one_offered_is_refused(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.offer(2, packed(counter=9))
        await refused(rig, old, new, "the trainer sent", logs)


async def test_a_policy_that_answers_live_observations_with_nan_is_refused_with_what_its_process_says(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.add(2)
        rig.children[1 - rig.active].failures = {"non_finite": 3}
        rig.policies.want(new)
        nan = (True, (math.nan, math.nan))
        await refused(rig, old, new, "not finite: the network gave [nan]", logs, shadow=nan)


async def test_an_observation_that_is_not_finite_is_not_the_policys_fault(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.add(2)
        rig.children[1 - rig.active].failures = {"input": 1}
        rig.policies.want(new)
        await rig.until(lambda: rig.stage == "shadowing")
        rig.decide(shadow=(True, (math.nan, math.nan)))
        for count in (2, 3, 4):
            await rig.until(lambda count=count: [name for _, name in rig.loads].count(new) == count)
            await rig.until(lambda: rig.stage == "shadowing")
            rig.decide(shadow=(True, (math.nan, math.nan)))
        assert rig.policies.refusals == 0
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == new


async def test_a_process_that_was_killed_before_the_policy_came_to_it_is_not_the_policys_fault(tmp_path, monkeypatch):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.add(2)
        verified = rig.store.verify
        kills = iter(range(4))

        def verify(policy_id):  # whatever is about to be loaded, its process ends just before
            if policy_id == new and next(kills, None) is not None:
                loop.call_soon_threadsafe(rig.children[1 - rig.active].die)
            return verified(policy_id)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(rig.store, "verify", verify)
        rig.policies.want(new)
        await rig.until(rig.policies.take_ready, driving=True)
        assert (rig.policies.driving_id, rig.policies.crashes, rig.policies.refusals) == (new, 4, 0)


async def test_a_process_that_was_killed_and_has_not_ended_yet_gets_no_policy(tmp_path, monkeypatch):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.add(2)
        verified, slots = rig.store.verify, rig.policies._slots
        kills = iter(range(4))

        def kill():
            child = rig.children[slots.standby]
            child.process.kill = lambda: loop.call_later(0.05, child.die)
            slots.kill(slots.standby)

        def verify(policy_id):
            if policy_id == new and next(kills, None) is not None:
                loop.call_soon_threadsafe(kill)
            return verified(policy_id)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(rig.store, "verify", verify)
        rig.policies.want(new)
        await rig.until(rig.policies.take_ready, driving=True)
        assert (rig.policies.driving_id, rig.policies.refusals) == (new, 0)


async def test_a_fallback_whose_process_had_ended_is_loaded_again(tmp_path, monkeypatch):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        await rig.live(rig.add(2))
        standby = 1 - rig.active
        verified = rig.store.verify
        kills = iter(range(1))

        def verify(policy_id):
            if policy_id == first and next(kills, None) is not None:
                loop.call_soon_threadsafe(rig.children[standby].die)
            return verified(policy_id)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(rig.store, "verify", verify)
        rig.children[standby].die()
        await rig.until(lambda: rig.policies.crashes == 2)
        await rig.until(lambda: rig.children[standby].holds == first and rig.role(standby) == wire.FALLBACK)


async def test_a_policy_that_is_always_late_in_the_shadow_is_refused(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.add(2)
        rig.policies.want(new)
        await refused(rig, old, new, "late", logs, shadow=(False, ZERO))


async def test_a_refused_policy_is_not_tried_again_when_it_is_offered_again(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.offer(2, b"nothing")
        await rig.until(lambda: rig.policies.refusals == 1)
        rig.offer(2, b"nothing")
        await asyncio.sleep(0.02)
        assert rig.policies.refusals == 1
        assert rig.verdicts(new) == ["refused", "refused"]


async def test_a_newer_policy_is_taken_after_a_refused_one(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.offer(2, b"nothing")
        await rig.until(lambda: rig.policies.refusals == 1)
        newer = rig.offer(3)
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == newer


async def test_a_stored_bundle_that_was_damaged_is_fetched_again(tmp_path):
    async with Rig(tmp_path) as rig:
        new = rig.add(2)
        rig.store.path(new).write_bytes(b"x")
        rig.offer(2)
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == new


async def test_a_silent_trainer_is_asked_again_and_a_newer_wish_ends_the_waiting(tmp_path, monkeypatch, logs):
    monkeypatch.setattr("roverd.policies.fetch.PIECE_TIMEOUT_S", 0.01)
    async with Rig(tmp_path) as rig:
        rig.policies.want("f" * 64)
        await rig.until(lambda: len(rig.told) >= 12)
        assert [each["times"] for each in named(logs, "policy.fetch_stalled")] == [1, 10]
        rig.policies.want(rig.add(1))
        await rig.until(rig.policies.take_ready)


async def test_a_standby_that_dies_while_it_loads_is_restarted_and_the_policy_loaded_again(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.add(2)
        rig.answers[new] = None
        rig.policies.want(new)
        await rig.until(lambda: (1 - rig.active, new) in rig.loads)
        del rig.answers[new]
        rig.children[1 - rig.active].die()
        assert rig.policies.driving_id == old
        await rig.until(rig.policies.take_ready, driving=True)
        assert (rig.policies.driving_id, rig.policies.crashes, rig.policies.refusals) == (new, 1, 0)


async def test_a_policy_whose_process_dies_twice_while_it_loads_is_refused(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(old := rig.add(1))
        new = rig.add(2)
        rig.answers[new] = None
        rig.policies.want(new)
        for count in (1, 2):
            await rig.until(lambda count=count: [name for _, name in rig.loads].count(new) == count)
            rig.children[1 - rig.active].die()
        await refused(rig, old, new, "2 times running", logs)


async def test_a_standby_that_dies_while_it_shadows_is_restarted_and_the_policy_brought_again(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.add(2)
        rig.policies.want(new)
        await rig.until(lambda: rig.stage == "shadowing")
        rig.children[1 - rig.active].die()
        await rig.until(lambda: rig.stage == "abandoned")
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == new


async def test_a_standby_that_hangs_in_the_shadow_is_killed_and_the_policy_brought_again(tmp_path, monkeypatch):
    monkeypatch.setattr("roverd.policies.prepare.PING_S", 0.05)
    async with Rig(tmp_path, shadow_timeout_s=0.05) as rig:
        await rig.live(rig.add(1))
        new = rig.add(2)
        rig.policies.want(new)
        await rig.until(lambda: rig.stage == "shadowing")
        rig.children[1 - rig.active].hangs = True
        await rig.until(lambda: rig.policies.crashes == 1, driving=True, shadow=None)
        assert rig.policies.refusals == 0
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == new


async def test_a_standby_that_dies_when_it_is_ready_is_brought_again(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.add(2)
        rig.policies.want(new)
        await rig.until(lambda: rig.stage == "ready", driving=True)
        rig.children[1 - rig.active].die()
        assert not rig.policies.take_ready()
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == new


async def test_when_the_process_that_drives_dies_the_standby_drives_and_the_lost_one_comes_back(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        await rig.live(first)
        await rig.live(second)
        slot = rig.active
        rig.children[slot].die()
        assert (rig.policies.driving_id, rig.active) == (first, 1 - slot)
        (event,) = named(logs, "policy.failed_over")
        assert (event["policy_id"], event["to"], event["reason"]) == (second[:12], first[:12], "its process died")
        assert not named(logs, "policy.process_died")
        assert rig.changes
        await rig.until(rig.policies.take_ready, driving=True)
        assert (rig.policies.driving_id, rig.active) == (second, slot)
        assert rig.role(1 - slot) == wire.FALLBACK


async def test_a_policy_whose_process_dies_twice_while_it_drives_is_barred(tmp_path):
    async with Rig(tmp_path, watch_ticks=1000) as rig:
        first, second = rig.add(1), rig.add(2)
        rig.policies.want(first)
        await rig.until(rig.policies.take_ready)
        for _ in range(2):
            rig.policies.want(second)
            await rig.until(rig.policies.take_ready, driving=True)
            rig.children[rig.active].die()
        assert rig.policies.driving_id == first
        assert "2 times running" in rig.policies.refusal(Target("policy", second))
        assert rig.policies.target.name == first
        assert "refused" in rig.verdicts(second)


async def test_deaths_with_a_good_stretch_between_are_not_the_policys_fault(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        await rig.live(first)
        for _ in range(4):
            rig.policies.want(second)
            await rig.until(rig.policies.take_ready, driving=True)
            await rig.until(lambda: rig.stage == "settled", driving=True)
            rig.children[rig.active].die()
        assert not rig.policies.refusal(Target("policy", second))


async def test_a_policy_whose_process_died_is_given_another_chance_after_a_restart(tmp_path):
    async with Rig(tmp_path, watch_ticks=1000) as rig:
        first, second, third = (rig.add(n) for n in (1, 2, 3))
        rig.policies.want(first)
        await rig.until(rig.policies.take_ready)
        for _ in range(2):
            rig.policies.want(second)
            await rig.until(rig.policies.take_ready, driving=True)
            rig.children[rig.active].die()
        assert second in rig.policies.report()["barred"]
        rig.policies.want(third)
        await rig.until(rig.policies.take_ready, driving=True)
        await rig.until(lambda: rig.store.note().policy_id == third)
        assert (rig.store.note().barred, rig.store.note().previous) == ({}, first)


def test_deaths_that_are_far_apart_have_nothing_to_do_with_the_policy():
    refusals = Refusals({})
    assert not any(refusals.count_crash("a", number * (CRASHES_WITHIN_S + 1.0)) for number in range(20))
    assert refusals.count_crash("a", 20 * (CRASHES_WITHIN_S + 1.0) - 2.0)


def test_only_what_was_rolled_back_is_barred_over_restarts():
    refusals = Refusals({"old": "bad"})
    refusals.bar("rolled back", "bad")
    refusals.bar("dies", "its process died", lasts=False)
    refusals.bar("old", "its process died", lasts=False)
    assert set(refusals.barred) == {"old", "rolled back", "dies"}
    assert set(refusals.lasting) == {"old", "rolled back"}
    refusals.bar("dies", "bad")
    assert "dies" in refusals.lasting


async def test_a_known_policy_that_nobody_watches_any_more_may_lose_its_process_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("roverd.policies.refusals.CRASHES_WITHIN_S", 0.0, raising=False)
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        await rig.live(second := rig.add(2))
        await rig.live(rig.add(3))
        for _ in range(4):
            rig.policies.want(second)
            await rig.until(rig.policies.take_ready, driving=True)
            assert rig.stage == "settled", "it is known, and not watched"
            rig.children[rig.active].die()
        assert not rig.policies.refusal(Target("policy", second))


async def test_without_a_fallback_the_death_of_what_drives_leaves_nothing_until_it_is_loaded_again(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.children[rig.active].die()
        assert rig.policies.driving is None
        assert named(logs, "policy.process_died")[0]["active"]
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == first


async def test_a_process_that_hangs_while_it_drives_is_found_out_killed_and_replaced(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        await rig.live(first)
        await rig.live(second)
        slot = rig.active
        hung = rig.children[slot]
        hung.hangs = True
        began = asyncio.get_running_loop().time()
        await rig.until(lambda: rig.policies.driving_id == first, driving=True, flags=Intervention.FAILOVER)
        assert asyncio.get_running_loop().time() - began < 0.5
        await rig.until(lambda: not hung.is_alive)
        (event,) = named(logs, "policy.failed_over")
        assert "hangs" in event["reason"]
        assert not named(logs, "policy.process_died")
        await rig.until(rig.policies.take_ready, driving=True)
        assert (rig.policies.driving_id, rig.active) == (second, slot)


async def test_a_process_that_is_late_but_alive_is_left_alone(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        await rig.live(second := rig.add(2))
        await rig.drive(50, flags=Intervention.MISSED)
        await asyncio.sleep(0.05)
        assert (rig.policies.driving_id, rig.policies.crashes) == (second, 0)


async def test_a_hand_made_failover_works_without_a_fallback(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.policies.fail_over(rig.active, "asked for")
        assert rig.policies.driving is None
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == first


async def test_a_process_that_does_not_come_up_is_tried_again_while_the_other_drives(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.start_fails = 1
        rig.children[1 - rig.active].die()
        await rig.until(lambda: named(logs, "policy.process_failed"))
        rig.policies.want(second := rig.add(2))
        assert rig.policies.driving_id == first
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == second


async def test_a_spare_control_is_given_both_processes(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.policies.reattach()
        assert [child.attached for child in rig.children.values()] == [1, 1]


async def test_the_steps_of_a_slot_keep_their_name_until_control_uses_the_next_policy_in_it(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second, third = (rig.add(n) for n in (1, 2, 3))
        await rig.live(first)
        await rig.live(second)
        slot = 1 - rig.active
        rig.policies.want(third)
        await rig.until(lambda: rig.stage == "shadowing")
        assert rig.policies.slot_name(slot) == first
        await rig.until(lambda: rig.stage == "ready", driving=True)
        assert rig.policies.slot_name(slot) == third
        rig.children[slot].die()
        assert rig.policies.slot_name(slot) == third
