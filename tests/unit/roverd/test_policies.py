"""A good policy comes to drive step by step, what drove before stands by, and people have the last word."""

from __future__ import annotations

import asyncio

import pytest

from roverd.control import wire
from roverd.policies import PolicyStoreError, Target
from roverd.policies.store import Note
from tests.unit.protocol.samples import packed
from tests.unit.roverd.policy_rig import Rig, named

pytestmark = pytest.mark.usefixtures("soon")


async def test_the_first_policy_drives_without_a_shadow_since_nothing_is_shown(tmp_path):
    async with Rig(tmp_path) as rig:
        first = rig.add(1)
        rig.policies.want(first)
        await rig.until(rig.policies.take_ready)
        assert (rig.policies.driving_id, rig.policies.counter, rig.policies.swaps) == (first, 3, 1)
        assert rig.policies.report()["transaction"]["shadowed"] == 0
        assert not rig.policies.take_ready()


async def test_an_offered_policy_is_pulled_proved_shadowed_swapped_watched_and_settled(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        new = rig.offer(2)
        await rig.until(lambda: rig.stage == "ready", driving=True)
        assert rig.policies.driving_id != new
        assert not rig.policies.take_ready(now=True), "nobody asked for it between two ticks"
        assert rig.policies.take_ready()
        assert rig.stage == "watching"
        await rig.until(lambda: rig.stage == "settled", driving=True)
        assert rig.verdicts(new) == ["verified", "driving"]
        assert rig.policies.report()["transaction"]["shadowed"] >= 3
        verified = named(logs, "policy.verified")[-1]
        assert (verified["shadow_late"], verified["golden_error"]) == (0, 1e-6)


async def test_the_policy_before_stays_loaded_and_stands_by(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        await rig.live(first)
        await rig.live(second)
        standby = 1 - rig.active
        assert (rig.children[standby].holds, rig.role(standby)) == (first, wire.FALLBACK)
        assert rig.policies.slot_name(standby) == first
        assert rig.policies.report()["standby"]["role"] == "fallback"


async def test_in_lock_step_nothing_stands_by_for_two_runs_would_differ(tmp_path):
    async with Rig(tmp_path, is_clocked=False) as rig:
        await rig.live(rig.add(1))
        await rig.live(rig.add(2))
        await asyncio.sleep(0.02)
        assert {m[2] for m in rig.sent if m[0] == wire.STANDBY} <= {wire.NO_ROLE, wire.SHADOW}


async def test_a_ready_policy_may_stand_in_until_it_drives(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.policies.want(second := rig.add(2))
        await rig.until(lambda: rig.stage == "ready", driving=True)
        assert rig.role(1 - rig.active) == wire.FALLBACK
        rig.children[rig.active].die()
        assert rig.policies.driving_id == second


async def test_a_standing_robot_gets_its_policy_without_a_shadow_and_the_event_says_so(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.policies.want(rig.add(2))
        await rig.until(rig.policies.take_ready)
        assert named(logs, "policy.verified")[-1]["shadowed"] == 0


async def test_with_now_the_swap_is_between_two_ticks(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        second = await rig.policies.install(packed(counter=2), now=True)
        await rig.until(lambda: rig.policies.take_ready(now=True), driving=True)
        assert rig.policies.driving_id == second


async def test_a_script_drives_without_proof(tmp_path, logs):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.policies.override(Target("controller", "random", 5))
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.slot_name(rig.policies.active) == "controller:random"
        assert (rig.policies.driving_id, rig.stage) == ("", "settled")
        assert {m[2] for m in rig.sent if m[0] == wire.STANDBY} == {wire.NO_ROLE}
        assert "shadowed" not in named(logs, "policy.verified")[-1]


async def test_after_an_order_the_standing_policy_drives_again_without_a_load(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        rig.policies.override(Target("controller", "random", 5))
        await rig.until(rig.policies.take_ready)
        loads = len(rig.loads)
        rig.policies.override(None)
        await rig.until(rig.policies.take_ready)
        assert (rig.policies.driving_id, len(rig.loads)) == (first, loads)


async def test_only_the_newest_wish_is_brought(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        wishes = [rig.add(counter) for counter in range(2, 6)]
        for each in wishes:
            rig.policies.want(each)
            await rig.drive(2)
        await rig.until(rig.policies.take_ready, driving=True)
        assert rig.policies.driving_id == wishes[-1]


async def test_a_policy_that_was_wanted_while_it_shadowed_is_not_taken_for_proved_later(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second, third = (rig.add(n) for n in (1, 2, 3))
        await rig.live(first)
        rig.policies.want(second)
        await rig.until(lambda: rig.stage == "shadowing")
        rig.policies.want(first)
        await rig.until(lambda: rig.stage == "abandoned")
        rig.policies.want(second)
        await rig.until(lambda: rig.stage == "shadowing")
        assert not rig.policies.take_ready()
        del third


async def test_the_trainers_next_policy_waits_until_this_one_was_watched(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        second = rig.offer(2)
        await rig.until(rig.policies.take_ready, driving=True)
        third = rig.offer(3)
        await rig.drive(5)
        assert rig.stage == "watching"
        assert third not in [name for _, name in rig.loads]
        await rig.until(lambda: third in [name for _, name in rig.loads], driving=True)
        assert rig.policies.driving_id == second


async def test_a_watch_on_a_robot_that_stands_delays_nobody(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(rig.add(1))
        rig.offer(2)
        await rig.until(rig.policies.take_ready, driving=True)
        third = rig.offer(3)
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == third


async def test_what_drives_and_drove_before_is_noted_for_a_restart(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        await rig.live(first)
        await rig.live(second)
        await rig.until(lambda: rig.store.note() == Note(second, first))


async def test_after_a_restart_the_policy_before_is_loaded_to_stand_by(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        rig.store.keep(Note(second, first))
    async with Rig(tmp_path) as rig:
        rig.policies.want(rig.store.current())
        await rig.until(rig.policies.take_ready)
        await rig.until(lambda: rig.role(1 - rig.active) == wire.FALLBACK)
        assert (rig.policies.driving_id, rig.children[1 - rig.active].holds) == (second, first)


async def test_reload_loads_the_same_policy_again_and_swaps_it_in(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        for count in range(2, 12):
            assert rig.policies.reload() == first
            await rig.until(rig.policies.take_ready, driving=True)
            assert (rig.policies.driving_id, rig.policies.swaps, rig.policies.is_settled) == (first, count, True)
            assert rig.stage == "settled"


async def test_reload_without_any_policy_says_what_to_do(tmp_path):
    async with Rig(tmp_path) as rig:
        with pytest.raises(PolicyStoreError, match="roverctl policy install FILE"):
            rig.policies.reload()


async def test_rollback_takes_the_policy_before_at_once_where_it_still_stands_by(tmp_path):
    async with Rig(tmp_path) as rig:
        first, second = rig.add(1), rig.add(2)
        await rig.live(first)
        await rig.live(second)
        loads = len(rig.loads)
        assert rig.policies.rollback(now=True) == first
        await rig.until(lambda: rig.policies.take_ready(now=True))
        assert (rig.policies.driving_id, len(rig.loads)) == (first, loads)
        assert rig.verdicts(second)[-1] == "rolled_back"


async def test_rollback_goes_further_back_each_time(tmp_path):
    async with Rig(tmp_path) as rig:
        ids = [rig.add(n) for n in (1, 2, 3)]
        for each in ids:
            await rig.live(each)
        for expected in (ids[1], ids[0]):
            assert rig.policies.rollback() == expected
            await rig.until(rig.policies.take_ready)
            assert rig.policies.driving_id == expected
        with pytest.raises(PolicyStoreError, match="no earlier policy"):
            rig.policies.rollback()


async def test_an_installed_policy_holds_against_the_trainers_until_that_has_a_newer_one(tmp_path):
    async with Rig(tmp_path) as rig:
        offered = rig.offer(2)
        await rig.until(rig.policies.take_ready)
        own = await rig.policies.install(packed(counter=9))
        await rig.until(rig.policies.take_ready)
        rig.offer(2)
        await asyncio.sleep(0.02)
        assert rig.policies.target.name == own
        assert rig.verdicts(offered)[-1] == "refused"
        newer = rig.offer(3)
        await rig.until(rig.policies.take_ready)
        assert rig.policies.driving_id == newer


async def test_a_person_can_go_back_to_the_trainers_policy_from_an_installed_one(tmp_path):
    async with Rig(tmp_path) as rig:
        offered = rig.offer(2)
        await rig.until(rig.policies.take_ready)
        await rig.policies.install(packed(counter=9))
        await rig.until(rig.policies.take_ready)
        assert rig.role(1 - rig.active) == wire.FALLBACK
        assert rig.policies.rollback() == offered
        await rig.until(rig.policies.take_ready)
        rig.offer(2)
        assert "refused" not in rig.verdicts(offered)


async def test_an_installed_policy_that_is_refused_leaves_everything_as_it_was(tmp_path):
    async with Rig(tmp_path) as rig:
        offered = rig.offer(2)
        await rig.until(rig.policies.take_ready)
        own = rig.add(9)
        rig.answers[own] = {"ok": False, "reason": "no"}
        rig.policies.choose(own)
        await rig.until(lambda: rig.policies.refusals == 1)
        assert (rig.policies.driving_id, rig.policies.is_settled) == (offered, True)
        rig.offer(2)
        assert rig.verdicts(offered) == ["verified", "driving"]


async def test_an_installed_policy_outlives_a_restart_and_the_trainers_repeated_offer(tmp_path):
    async with Rig(tmp_path) as rig:
        offered = rig.offer(2)
        await rig.until(rig.policies.take_ready)
        own = await rig.policies.install(packed(counter=9))
        await rig.until(rig.policies.take_ready)
        await rig.until(lambda: rig.store.note().policy_id == own)
    async with Rig(tmp_path) as rig:
        rig.policies.want(rig.store.current())
        await rig.until(rig.policies.take_ready)
        assert rig.offer(2) == offered
        assert (rig.policies.target.name, rig.verdicts(offered)) == (own, ["refused"])


async def test_installing_what_cannot_be_verified_changes_nothing(tmp_path):
    async with Rig(tmp_path) as rig:
        await rig.live(first := rig.add(1))
        with pytest.raises(Exception, match="bundle of"):
            await rig.policies.install(packed(counter=9)[:-9])
        assert (rig.policies.target.name, rig.policies.driving_id) == (first, first)
