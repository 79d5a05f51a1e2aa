"""With training frozen, equal seeds drive equally: 1,500 ticks of the simulator, idle and under load."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.daemon.daemons import wait_until

pytestmark = pytest.mark.slow


TICKS = 1500


@pytest.fixture(scope="module")
def frozen(shared_site):
    """A trainer that never changes its policy; rovers come with fresh state folders."""
    return shared_site.trainer({"train.frozen": True, "threads": 1})


def digest(site, folder, seed):
    """Drive a rover of one and the same name from a fresh state folder."""
    settings = {"robot": "sim", "seed": seed, "record.digest_ticks": TICKS, "record.images": "decisions"}
    rover = site.rover({**settings, "state_dir": site.folder / folder}, name="rover-1")
    found = wait_until(lambda: rover.get()["digest"], 90, what=f"{TICKS} ticks of {rover.log.stem}")
    policies = {each["policy_id"] for each in rover.events("policy.swapped")}
    assert rover.stop() == 0
    return found, policies


def test_equal_seeds_give_equal_digests_idle_and_under_load_and_another_seed_another(frozen, shared_site):
    idle, policies = digest(shared_site, "idle", 7)
    with ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"]))
            stack.callback(busy.kill)
        loaded, same = digest(shared_site, "loaded", 7)
    other, _ = digest(shared_site, "other", 8)
    assert len(policies) == 1
    assert policies == same
    assert idle == loaded
    assert idle != other
    status = frozen.get()
    assert status["is_frozen"]
    assert status["updates"] == 0
    assert status["steps"]["lost"] == 0


def test_a_frozen_trainer_takes_steps_in_and_exports_one_policy_only(frozen, shared_site):
    status = frozen.get()
    assert status["steps"]["received"] >= TICKS
    assert status["policy"]["exports"] == 1
    assert status["policy"]["counter"] == 0
