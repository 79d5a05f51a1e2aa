"""Training in this process: records go in by hand, and the mailbox is emptied by hand."""

import asyncio
import contextlib

import pytest

from plugins.manager import PluginManager
from protocol.step import Step
from tests.unit.trainerd.rover import ROBOT, TASK, FakeRover
from trainerd.cockpit.metrics import Metrics
from trainerd.collection import Collection
from trainerd.design import Design
from trainerd.learning.settings import NetworkSettings, PpoSettings
from trainerd.mailbox import Mailbox
from trainerd.release.publish import Publisher
from trainerd.release.registry import Registry
from trainerd.run import Run
from trainerd.settings import Settings, TrainSettings
from trainerd.training import FINISHED, PAUSED, STOPPED, Training

pytestmark = [pytest.mark.component, pytest.mark.timeout(120)]
ROLLOUT = 32


class Bench:
    """A training without a link: ``drive`` makes records and hands them over."""

    def __init__(self, folder, **train):
        ppo = PpoSettings(rollout=ROLLOUT, minibatch=16, epochs=2, allow_flat_reward=True, behaviour_limit=0.0)
        self.settings = Settings(
            state_dir=folder,
            checkpoint_dir=folder / "checkpoints",
            tensorboard_dir=folder / "runs",
            checkpoint_interval=1,
            threads=1,
            device="cpu",
            network=NetworkSettings(encoder="blind", proprio_hidden=(8,), head_hidden=(8,)),
            ppo=ppo,
            train=TrainSettings(**train),
        )
        self.mailbox = Mailbox()
        self.metrics = Metrics(self.settings.tensorboard_dir)
        self.collection = Collection(self.metrics)
        self.waiting = []
        self.updates, self.replays = [], []
        self.rover = FakeRover(1)

        self.task = None

    async def begin(self):
        specified = asyncio.get_running_loop().create_future()
        specified.set_result(Run("run-1", ROBOT, TASK))
        registry = Registry(self.settings.state_dir / "policies")
        self.publisher = Publisher(registry, "run-1", self.settings.state_dir / "deployed.json", lambda *_: None)
        self.training = Training(
            self.settings,
            self.collection,
            Design(self.settings, PluginManager(("encoders",))),
            self.publisher,
            registry,
            self.metrics,
            specified=specified,
            post=self.mailbox.post,
            replay=self.replays.append,
            on_state=lambda _: None,
            on_update=lambda result, _: self.updates.append(result),
        )
        self.task = asyncio.create_task(self.training.run())
        await self.until(self.training.ready.is_set)

    async def end(self):
        self.rover.close()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        self.metrics.close()

    async def until(self, condition):
        while not condition():
            self.pump()
            assert not self.task.done(), self.task.exception()
            await asyncio.sleep(0.01)
        self.pump()

    def pump(self):
        self.mailbox.run_all()
        while self.waiting and self.collection.consume(self.waiting[0]):
            self.waiting.pop(0)

    def drive(self, ticks, **facts):
        self.waiting += self.rover.records(ticks, **facts)
        self.pump()

    async def learn(self, updates):
        while len(self.updates) < updates:
            if not self.waiting:
                self.drive(3)
            await self.until(lambda: not self.waiting or len(self.updates) >= updates)

    @property
    def steps(self):
        return self.collection.counters()

    def check_balance(self):
        steps = self.steps
        assert sum(steps.values()) == 2 * steps["received"]


@pytest.fixture
async def begin(tmp_path):
    begun = []

    async def make(**train):
        bench = Bench(tmp_path, **train)
        begun.append(bench)
        await bench.begin()
        return bench

    yield make
    for bench in begun:
        await bench.end()


def steps_of(records):
    return sum(isinstance(record, Step) for record in records)


async def test_a_restart_goes_on_from_the_checkpoint_that_was_restored(begin):
    bench = await begin()
    await bench.learn(4)
    bench.training.stop()
    await bench.until(lambda: bench.training.latest_checkpoint == f"ppo_update_{len(bench.updates)}")
    folder = bench.settings.checkpoint_dir
    assert await bench.training.restore(folder / "ppo_update_2") == 2
    counter = bench.training.parts.learner.policy_counter
    weights = bench.training.parts.learner.snapshot()
    await bench.until(lambda: bench.training.latest_checkpoint == "ppo_update_2")
    kept = {path.name for path in folder.iterdir() if path.name.startswith("ppo")}
    assert "ppo_update_2" in kept
    assert kept <= {"ppo_update_1", "ppo_update_2"}, "none that is newer; the older one may be gone by its age"
    assert {path.name for path in folder.glob("before-*/*")} >= {"ppo_update_3", "ppo_update_4"}
    bench.task.cancel()  # as a crash would: nothing is saved any more
    bench.training.parts.learner.decisions = 0
    await bench.end()
    again = await begin()
    learner = again.training.parts.learner
    assert (learner.updates, learner.policy_counter) == (2, counter)
    assert all((learner.snapshot()[name] == value).all() for name, value in weights.items())


async def test_what_comes_after_the_budget_is_unused_and_blocks_no_evaluation(begin):
    bench = await begin(decisions=2 * ROLLOUT)
    bench.drive(3 * 6 * ROLLOUT)
    bench.drive(30 + (-bench.rover.tick % 30), purpose="evaluation")
    await bench.until(lambda: not bench.waiting and bench.training.state == FINISHED)
    final = bench.training.parts.learner.snapshot()
    bench.drive(3 * 3 * ROLLOUT)
    await bench.until(lambda: not bench.waiting)
    steps = bench.steps
    bench.check_balance()
    assert steps["trained"] == sum(result.steps["trained"] for result in bench.updates)
    assert [result.update for result in bench.updates] == [1, 2]
    assert (steps["collected"], steps["evaluation"] >= 30) == (0, True)
    assert steps["unused"] > 3 * 3 * ROLLOUT
    assert all((bench.training.parts.learner.snapshot()[name] == value).all() for name, value in final.items())
    assert bench.training.parts.learner.updates == 2


async def test_what_comes_while_training_is_stopped_is_unused_and_start_goes_on(begin):
    bench = await begin(autostart=False)
    bench.drive(3 * 4 * ROLLOUT)
    bench.drive(30 + (-bench.rover.tick % 30), purpose="evaluation")
    assert (bench.waiting, bench.training.state) == ([], STOPPED)
    assert bench.steps["unused"] == 3 * 4 * ROLLOUT
    bench.check_balance()
    bench.training.start()
    bench.pump()
    await bench.learn(1)
    bench.check_balance()


async def test_a_pause_loses_nothing_until_an_evaluation_waits_behind_it(begin):
    bench = await begin()
    bench.training.pause()
    assert bench.training.state == PAUSED
    bench.drive(3 * 4 * ROLLOUT)
    await asyncio.sleep(0.2)
    bench.pump()
    assert bench.waiting, "both rollouts are full"
    assert bench.steps["unused"] == 0
    left = steps_of(bench.waiting)
    while bench.waiting and bench.collection.pass_over(bench.waiting[0]):
        bench.waiting.pop(0)
    assert bench.steps["unused"] == left > 0
    bench.drive(30 + (-bench.rover.tick % 30), purpose="evaluation")
    assert (bench.waiting, bench.steps["evaluation"] >= 30) == ([], True)
    bench.check_balance()
    bench.training.start()
    bench.pump()
    await bench.until(lambda: len(bench.updates) == 2)
    bench.check_balance()
    assert bench.steps["trained"] > 0


async def test_nothing_is_passed_over_while_room_comes_by_itself(begin):
    bench = await begin()
    (record,) = bench.rover.records(1)
    assert not bench.collection.pass_over(record)


async def test_steps_that_are_only_collected_are_frozen_not_trained(begin):
    bench = await begin(frozen=True)
    bench.drive(3 * 3 * ROLLOUT)
    await bench.until(lambda: not bench.waiting)
    assert bench.steps["trained"] == 0
    assert bench.steps["frozen"] > 3 * ROLLOUT
    bench.check_balance()


async def test_a_checkpoint_can_be_restored_and_saved_while_training_is_paused(begin):
    bench = await begin()
    bench.drive(3 * 2 * ROLLOUT + 3)
    await bench.until(lambda: bench.training.latest_checkpoint == "ppo_update_2")
    bench.training.pause()
    await bench.training.restore(bench.settings.checkpoint_dir / "ppo_update_1")
    assert (await bench.training.save()).name == "ppo_update_1"
