"""Driving without a trainer: real control and policy processes, the synthetic robot, records counted in the spool."""

import asyncio
import errno
from contextlib import asynccontextmanager

import pytest

from protocol.framing import unpack
from protocol.keys import load_or_make
from protocol.messages import Order
from protocol.node.config import ConfigError, Layer, load
from roverd import doctor
from roverd.api import status
from roverd.assemble import make_parts
from roverd.control_config import ClockError
from roverd.settings import Settings
from tests.unit.roverd.trainers import Trainer, key_pair

pytestmark = [pytest.mark.component, pytest.mark.timeout(60)]


def settings(folder, **more):
    base = {"robot": "synthetic", "state_dir": str(folder), "control": {"rate_hz": 0.0, "max_speed_mps": 1.0}}
    return load(Settings, layers=[Layer("test", base | more)], env_prefix="X_", environ={}).value


@asynccontextmanager
async def driving(folder, boot_id="boot", **more):
    parts = await make_parts(settings(folder, **more), boot_id=boot_id, boot=0)
    tasks = [asyncio.ensure_future(service.run()) for service in (parts.policies, parts.drive)]
    try:
        yield parts, tasks[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await parts.close()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def records(parts):
    return [unpack(frames[0]) for frames in parts.spool._memory.values()]


async def test_a_simulator_waits_for_room_and_drops_nothing(tmp_path):
    async with driving(tmp_path, link={"outbox_records": 64}) as (parts, _):
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1000))
        await until(lambda: parts.drive.counts["waits"] > 0)
        assert parts.spool.overflow == 0
        parts.spool.acknowledge("boot", [(0, 30)])
        parts.drive.poke()
        waits = parts.drive.counts["waits"]
        await until(lambda: parts.drive.counts["waits"] > waits)
        assert parts.spool.overflow == 0
        assert [each["seq"] for each in records(parts)] == list(range(31, parts.drive.next_seq))


async def test_a_human_drives_without_a_policy_and_the_episode_ends_with_the_hand(tmp_path):
    async with driving(tmp_path) as (parts, _):
        assert parts.drive.human((0.2, 0.0), 0.5)
        await until(lambda: parts.drive.counts["episodes"] == 1)
        steps = [each for each in records(parts) if each["kind"] == "step"]
        assert {each["source"] for each in steps} == {"human", "fallback"}
        assert sum(each["source"] == "human" for each in steps) == 6
        assert records(parts)[-1]["reason"] == "stopped"


async def test_a_stopped_robot_refuses_the_wheel(tmp_path):
    async with driving(tmp_path) as (parts, _):
        parts.drive.hold(is_held=True)
        assert not parts.drive.human((0.2, 0.0), 0.5)


async def test_an_emergency_stop_outlives_a_restart_until_it_is_cleared(tmp_path):
    async with driving(tmp_path) as (parts, _):
        parts.drive.latch_e_stop("smoke")
    async with driving(tmp_path) as (parts, _):
        assert (parts.drive.mode, parts.drive.e_stop) == ("e_stop", "smoke")
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1))
        await asyncio.sleep(0)
        assert parts.drive.counts["ticks"] == 0
        parts.drive.clear_e_stop()
        await until(lambda: parts.drive.counts["episodes"] == 1)
    async with driving(tmp_path) as (parts, _):
        assert not parts.drive.e_stop


async def test_an_emergency_stop_stops_the_robot_also_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with driving(tmp_path) as (parts, _):
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1000))
        await until(lambda: parts.drive.counts["ticks"] > 0)
        monkeypatch.setattr("roverd.e_stop.write_atomic", full)
        parts.drive.latch_e_stop("smoke")
        await until(lambda: parts.drive.counts["episodes"] > 0)
        assert parts.drive.mode == "e_stop"


async def test_what_was_driven_without_a_trainer_is_sent_after_a_restart_with_what_comes_then(tmp_path):
    rover, trusted = load_or_make(tmp_path / "keys" / "curve.json"), key_pair()
    async with Trainer(trusted, allowed={rover.public}) as trainer:
        more = {"link": {"trainer": trainer.address, "trainer_key": trusted.public, "outbox_records": 64}}
        async with driving(tmp_path, boot_id="first", **more) as (parts, _):
            spool = asyncio.ensure_future(parts.spool.run())
            parts.drive.ordered(Order("a", "evaluate", "random", episodes=1000))
            await until(lambda: parts.drive.counts["waits"] > 0)
            count = len(parts.spool)
            spool.cancel()
            await asyncio.gather(spool, return_exceptions=True)
        async with driving(tmp_path, boot_id="second", **more) as (parts, _):
            rest = [asyncio.ensure_future(each.run()) for each in (parts.spool, parts.uplink)]
            parts.drive.ordered(Order("b", "evaluate", "random", episodes=2))
            await until(lambda: parts.drive.counts["episodes"] == 2 and parts.spool.waiting == 0)
            checks = {check["check"]: check for check in (await doctor.examine(parts))["checks"]}
            assert [checks[name]["ok"] for name in ("keys", "link", "spool")] == [True, True, True]
            shown = status(parts)
            assert (shown["spool"]["state"], shown["link"]["unacknowledged"]) == ("ok", 0)
            assert trainer.seqs("first") == list(range(count))
            assert trainer.seqs("second") == list(range(parts.drive.next_seq))
            for task in reversed(rest):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    assert not list((tmp_path / "spool").glob("*/*"))


async def test_a_robot_that_fails_ends_the_service_by_its_own_error(tmp_path):
    async with driving(tmp_path) as (parts, task):

        def unplugged(*_):
            raise OSError("the base is unplugged")

        parts.robot.advance = unplugged
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1))
        with pytest.raises(OSError, match="unplugged"):
            await task


async def test_a_task_that_fails_ends_episodes_then_stops_the_robot_and_is_named(tmp_path):
    async with driving(tmp_path) as (parts, _):
        guard = parts.drive._task.judge

        def broken(_reading):
            raise ZeroDivisionError("the plugin's own")

        guard._function = broken
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1000))
        await until(lambda: parts.drive.mode == "task_disabled")
        assert parts.drive.counts["episodes"] >= 1
        rows = [row for row in parts.plugins.listing() if row["group"] == "tasks" and row["failures"]]
        assert rows
        assert "ZeroDivisionError" in rows[0]["last_error"]


async def test_an_order_with_an_impossible_seed_is_refused(tmp_path):
    async with driving(tmp_path) as (parts, _):
        told = []
        parts.drive.orders.send = told.append
        parts.drive.ordered(Order("a", "evaluate", "random", episodes=1, seed=-1))
        assert told[0].stage == "refused"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"control": {"rate_hz": 30.0}}, "declares 10"),
        ({"control": {"rate_hz": 10.0}, "plugins": {"synthetic": {"action_delay_ms": 0.0}}}, "no action delay"),
    ],
)
async def test_a_clock_that_is_not_the_robots_is_refused(tmp_path, more, words):
    with pytest.raises(ClockError, match=words):
        await make_parts(settings(tmp_path, **more), boot_id="boot", boot=0)


async def test_options_for_a_plugin_that_is_not_there_are_a_mistake_with_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean plugins\.synthetic"):
        await make_parts(settings(tmp_path, plugins={"synthetik": {}}), boot_id="boot", boot=0)
