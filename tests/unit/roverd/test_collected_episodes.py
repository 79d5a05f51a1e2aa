"""Episodes of a collection, and those of a person where nobody asked for one, by real processes in lock-step."""

from __future__ import annotations

import pytest

from protocol.messages import Order
from tests.unit.roverd.test_drive import driving, records, until

pytestmark = [pytest.mark.component, pytest.mark.timeout(60)]


def ends(parts):
    return [each for each in records(parts) if each["kind"] == "episode_end" and each["ends_episode"]]


async def test_a_controllers_episodes_are_counted_and_the_trainers_orders_wait(tmp_path):
    async with driving(tmp_path) as (parts, _):
        collecting = parts.teleop.collecting
        collecting.start("controller", 3, name="set", controller="reactive", seed=40)
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=50))
        await until(lambda: collecting.current.state == "finished")
        found = ends(parts)
        assert [each["purpose"] for each in found] == ["collection"] * 3
        assert [each["arena_seed"] for each in found] == [40, 41, 42]
        assert {each["order_id"] for each in found} == {"collect-set"}
        assert parts.drive.mode == "idle"
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1))
        await until(lambda: ends(parts)[-1]["purpose"] == "evaluation")


async def test_an_episode_that_is_judged_ends_with_that_word(tmp_path):
    async with driving(tmp_path, plugins={"goal": {"radius_m": 0.01, "time_limit_s": 3600.0}}) as (parts, _):
        collecting = parts.teleop.collecting
        collecting.start("controller", 2, name="set", controller="random", seed=40)
        for verdict in ("discard", "success", "failure"):
            count = len(ends(parts))
            await until(lambda: collecting.status()["is_in_episode"])
            ticks = parts.drive.counts["ticks"]
            await until(lambda before=ticks: parts.drive.counts["ticks"] > before)
            collecting.judge(verdict)
            await until(lambda before=count: len(ends(parts)) > before)
        found = [(each["reason"], each["success"], each["metrics"].get("discarded", 0.0)) for each in ends(parts)[:3]]
        assert found == [("stopped", False, 1.0), ("terminated", True, 0.0), ("terminated", False, 0.0)]
        assert [each["arena_seed"] for each in ends(parts)[:3]] == [40, 40, 41], "what was discarded comes again"
        await until(lambda: collecting.current.state == "finished")
        assert (collecting.current.successes, collecting.current.failures, collecting.current.discarded) == (1, 1, 1)


async def test_stopping_cuts_the_episode_off_uncounted(tmp_path):
    async with driving(tmp_path, plugins={"goal": {"radius_m": 0.01, "time_limit_s": 3600.0}}) as (parts, _):
        collecting = parts.teleop.collecting
        collecting.start("controller", 2, name="set", controller="random")
        await until(lambda: collecting.status()["is_in_episode"])
        assert collecting.stop()
        await until(lambda: not parts.drive.is_in_episode)
        assert (collecting.current.kept, collecting.current.discarded) == (0, 0)
        assert ends(parts)[-1]["reason"] == "stopped"
        assert parts.drive.mode == "idle"


async def test_a_person_who_drives_while_nobody_wants_to_learn_makes_a_collection(tmp_path):
    async with driving(tmp_path, autostart=False) as (parts, _):
        assert parts.drive.human((0.2, 0.0), 0.5)
        await until(lambda: parts.drive.counts["episodes"] == 1)
        assert {each["purpose"] for each in records(parts)} == {"collection"}
        assert ends(parts)[0]["order_id"] == ""


async def test_a_wheel_is_refused_in_lock_step_and_no_page_is_served(tmp_path):
    async with driving(tmp_path) as (parts, _):
        assert "lock-step" in parts.teleop.wheel.refusal
        assert parts.page.state == "off"
