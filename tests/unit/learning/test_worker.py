import asyncio
import contextlib
import threading

import pytest

from trainerd.learning import checkpoint
from trainerd.learning.worker import Callbacks, Worker, WorkerError

pytestmark = pytest.mark.component


class Heard:
    def __init__(self):
        self.updates, self.checkpoints, self.errors, self.unused = [], [], [], []
        self.rolling = []
        self.ready, self.updated, self.saved, self.failed = (asyncio.Event() for _ in range(4))
        self.callbacks = Callbacks(
            lambda seconds: self.ready.set(),
            lambda result, snapshot: (self.updates.append((result, snapshot)), self.updated.set()),
            lambda path, rolling: (self.checkpoints.append(path), self.rolling.append(rolling), self.saved.set()),
            lambda error: (self.errors.append(error), self.failed.set()),
            self.unused.append,
        )


@contextlib.asynccontextmanager
async def running(worker):
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, WorkerError):
            await task


def make(toy, folder, heard, budget=10_000, **options):
    learner = toy.learner(budget=budget)
    rollouts = toy.rollouts(32)
    return Worker(learner, rollouts, heard.callbacks, checkpoint_folder=folder, **options)


async def test_a_submitted_rollout_gives_a_result_a_snapshot_and_a_checkpoint(toy, tmp_path):
    heard = Heard()
    worker = make(toy, tmp_path, heard, checkpoint_interval=1)
    async with running(worker):
        await heard.ready.wait()
        worker.submit(toy.filled(worker.learner))
        await heard.saved.wait()
    result, snapshot = heard.updates[0]
    assert result.update == 1
    assert "log_std" in snapshot
    assert heard.checkpoints == [tmp_path / "ppo_update_1"]


async def test_a_rollout_goes_back_to_the_pool_after_its_update(toy, tmp_path):
    heard = Heard()
    worker = make(toy, tmp_path, heard)
    pool = worker._rollouts
    taken = [pool.acquire(), pool.acquire()]
    assert pool.acquire() is None
    async with running(worker):
        worker.submit(toy.filled(worker.learner))
        await heard.updated.wait()
    assert pool.acquire() is not None
    assert len(taken) == 2


async def test_pause_rests_between_two_minibatches_and_resume_goes_on(toy, tmp_path):
    heard, passed = Heard(), []
    worker = make(toy, tmp_path, heard)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def job():
        for index in range(3):
            passed.append(index)
            if index == 0:
                worker.pause()
            yield
        loop.call_soon_threadsafe(done.set)

    async with running(worker):
        worker.submit_job(job)
        await heard.ready.wait()
        while not worker.is_paused:
            await asyncio.sleep(0)
        assert passed == [0]
        worker.resume()
        await done.wait()
    assert passed == [0, 1, 2]


async def settled(worker):
    """Wait until the thread has looked at its queues twice more."""
    loop = asyncio.get_running_loop()
    for _ in range(2):
        looked = asyncio.Event()

        def job(looked=looked):
            yield from ()
            loop.call_soon_threadsafe(looked.set)

        worker.submit_job(job)
        await looked.wait()


async def test_once_the_budget_is_spent_no_queued_rollout_changes_the_network(toy, tmp_path):
    heard = Heard()
    worker = make(toy, tmp_path, heard, budget=32)
    rollouts = [toy.filled(worker.learner, seed=seed) for seed in range(3)]
    for rollout in rollouts:
        rollout.steps["trained"] = 64
    worker.submit(rollouts[0])
    worker.submit(rollouts[1])
    async with running(worker):
        await heard.updated.wait()
        assert heard.unused == [{"trained": 64}], "discarded before anybody hears that the budget is spent"
        worker.submit(rollouts[2])
        await settled(worker)
    assert len(heard.unused) == 2
    assert [result.update for result, _ in heard.updates] == [1]
    assert worker.learner.updates == 1
    assert [rollout.rows for rollout in rollouts] == [0, 0, 0]


@pytest.mark.parametrize("rest", ["hold", "pause"])
async def test_a_full_rollout_waits_while_nothing_may_begin_and_a_checkpoint_can_be_written(toy, tmp_path, rest):
    heard = Heard()
    worker = make(toy, tmp_path, heard)
    getattr(worker, rest)()
    async with running(worker):
        worker.submit(toy.filled(worker.learner))
        worker.request_checkpoint()
        await heard.saved.wait()
        assert not worker.is_resting
        assert heard.updates == []
        worker.resume()
        await heard.updated.wait()
    assert heard.updates[0][0].update == 1


async def test_stopping_within_an_endless_job_takes_one_minibatch(toy, tmp_path):
    heard = Heard()
    worker = make(toy, tmp_path, heard)

    def job():
        while True:
            yield

    async with running(worker) as task:
        worker.submit_job(job)
        await heard.ready.wait()
        worker.stop()
        await asyncio.wait_for(task, 5)


async def test_a_checkpoint_on_request_and_one_that_fails(toy, tmp_path):
    heard = Heard()
    worker = make(toy, tmp_path, heard)
    async with running(worker):
        worker.request_checkpoint()
        await heard.saved.wait()
    assert checkpoint.latest(tmp_path)[0].path.name == "ppo_update_0"
    blocked = tmp_path / "file"
    blocked.write_text("")
    worker = make(toy, blocked, heard)
    async with running(worker):
        worker.request_checkpoint()
        await heard.failed.wait()
    assert "ppo_update_0" in str(heard.errors[0])


async def test_a_job_that_fails_ends_the_service_with_its_error(toy, tmp_path):
    worker = make(toy, tmp_path, Heard())

    def job():
        yield
        raise ValueError("no such thing")

    worker.submit_job(job)
    with pytest.raises(WorkerError, match="no such thing"):
        await worker.run()


async def test_the_queue_is_bounded(toy, tmp_path):
    worker = make(toy, tmp_path, Heard())
    accepted = [worker.submit_job(lambda: iter(())) for _ in range(9)]
    assert accepted.count(True) == 4


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def test_a_minibatch_that_does_not_end_is_a_hang_and_a_pause_is_none(toy, tmp_path):
    heard, hangs = Heard(), threading.Event()
    worker = make(toy, tmp_path, heard)

    def job():
        hangs.wait(10)
        worker.pause()
        yield

    async with running(worker):
        await heard.ready.wait()
        worker.pulse.limit_s = 0.05
        worker.submit_job(job)
        await until(lambda: worker.pulse.is_overdue)
        hangs.set()
        await until(lambda: worker.is_resting)
        await asyncio.sleep(0.2)
        assert not worker.pulse.is_overdue
        worker.resume()
