"""The control process and its spare as real processes: who drives when one of them dies, hangs, or is told to go."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager

import pytest

from protocol.step import Intervention
from roverd.control import wire
from roverd.control.ring import RingWriter
from roverd.controls import TAKEOVER_S, ControlLostError, Controls
from tests.unit.protocol.samples import DEPTH, ROBOT
from tests.unit.roverd.test_control_process import LIMITS

pytestmark = [pytest.mark.component, pytest.mark.timeout(60)]
RATE_HZ = 50.0


class Roverd:
    """What the rest of roverd is to the controls: it shows observations and hears what was applied."""

    def __init__(self, ring):
        config = {
            "robot": ROBOT.to_map(),
            "task_size": 1,
            "rate_hz": RATE_HZ,
            "limits": {**LIMITS, "period_s": 1 / RATE_HZ},
            "geometry": {"camera_height_m": 0.2, "half_width_m": 0.2},
            "frozen_after_ns": 0,
            "actuator": "",
            "realtime": False,
            "cpus": [],
        }
        self.ring, self.layout = ring, wire.Layout(2, 3)
        self.controls = Controls(config, ring.fd, has_spare=True)
        self.applied, self.losses, self.promotions = [], [], 0
        self.controls.listen(self._hear, self.losses.append)
        self.controls.on_promoted.append(self._promoted)
        self.generation = 0

    def _hear(self, message):
        if message[0] == wire.APPLIED:
            self.applied.append(self.layout.unpack_applied(message))

    def _promoted(self):
        self.promotions += 1
        self.show()

    def show(self, flags=wire.RESET):
        self.generation += 1
        self.ring.slots[0][DEPTH][:] = 7000
        now_ns = time.monotonic_ns()
        seen = wire.Seen(flags | wire.IMAGES, 0, self.generation, now_ns + 10**10, now_ns + 10**10, (0.0, 0.0, 0.0))
        self.controls.send(self.layout.pack_seen(seen))

    @property
    def processes(self):
        return [child.process for child in (self.controls._active, self.controls._spare) if child is not None]


async def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running():
    ring = RingWriter(ROBOT.cameras)
    roverd = Roverd(ring)
    await roverd.controls.start()
    try:
        yield roverd
    finally:
        await roverd.controls.stop()
        ring.close()


async def test_an_orderly_stop_kills_nobody():
    async with running() as roverd:
        processes = roverd.processes
        await roverd.controls.stop()
        assert [each.returncode for each in processes] == [0, 0]


async def test_when_control_dies_the_spare_drives_on_with_new_numbers_and_a_new_spare_comes():
    async with running() as roverd:
        roverd.show()
        await until(lambda: len(roverd.applied) > 5)
        old, before = roverd.controls.pid, roverd.applied[-1]
        os.kill(old, signal.SIGKILL)
        await until(lambda: roverd.promotions)
        roverd.applied.clear()
        await until(lambda: roverd.applied and roverd.controls.has_spare)
        first = roverd.applied[0]
        assert roverd.controls.pid != old
        assert first.tick > before.tick
        assert first.decision > before.decision
        assert first.interventions & Intervention.TOOK_OVER
        assert not roverd.applied[1].interventions & Intervention.TOOK_OVER
        assert roverd.losses == []


async def test_control_that_hangs_is_killed_and_replaced():
    async with running() as roverd:
        roverd.show()
        await until(lambda: roverd.applied)
        hung = roverd.processes[0]
        os.kill(hung.pid, signal.SIGSTOP)
        await until(lambda: roverd.promotions, 1.0)
        await until(lambda: hung.poll() == -signal.SIGKILL)


async def test_a_latched_e_stop_and_a_lock_outlive_control():
    async with running() as roverd:
        roverd.controls.send(roverd.layout.pack_human(wire.Human(0, (0.5, 0.0), locks=True)))
        roverd.controls.send(bytes([wire.E_STOP]))
        os.kill(roverd.controls.pid, signal.SIGKILL)
        await until(lambda: len(roverd.applied) > 3)
        assert {each.action for each in roverd.applied} == {(0.0, 0.0)}
        assert all(each.interventions & Intervention.E_STOP for each in roverd.applied[1:])
        roverd.controls.send(bytes([wire.CLEAR]))
        roverd.applied.clear()
        await until(lambda: len(roverd.applied) > 3)
        assert roverd.applied[-1].interventions & Intervention.WHEEL_LOCKED


async def test_a_spare_that_does_not_take_over_is_noticed():
    async with running() as roverd:
        control, spare = roverd.processes
        os.kill(spare.pid, signal.SIGSTOP)
        os.kill(control.pid, signal.SIGKILL)
        await until(lambda: roverd.losses, TAKEOVER_S + 1.0)
        assert isinstance(roverd.losses[0], ControlLostError)
        assert not roverd.controls.has_spare


async def test_a_spare_that_dies_is_replaced_and_control_drives_on():
    async with running() as roverd:
        roverd.show()
        pid, spare = roverd.controls.pid, roverd.processes[1]
        spare.kill()
        await until(lambda: not roverd.controls.has_spare)
        await until(lambda: roverd.controls.has_spare)
        assert roverd.controls.pid == pid
        assert roverd.controls.takeovers == 0


async def test_control_that_dies_while_its_spare_starts_is_replaced_by_it():
    async with running() as roverd:
        roverd.show()
        await until(lambda: roverd.applied)
        before = roverd.applied[-1]
        roverd.processes[1].kill()
        await until(lambda: roverd.controls._is_starting)
        os.kill(roverd.controls.pid, signal.SIGKILL)
        roverd.applied.clear()
        await until(lambda: roverd.promotions and roverd.applied)
        assert roverd.applied[-1].tick > before.tick
        assert roverd.applied[-1].decision > before.decision
        assert roverd.losses == []


async def test_roverd_that_dies_takes_both_with_it():
    async with running() as roverd:
        processes = roverd.processes
        for child in (roverd.controls._active, roverd.controls._spare):
            asyncio.get_running_loop().remove_reader(child.link.fileno())
            child.is_alive = False
            child.link.shutdown(2)
        await until(lambda: all(each.poll() is not None for each in processes))
        assert [each.returncode for each in processes] == [0, 0]
