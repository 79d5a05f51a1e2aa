"""Once a rover has a step, it is stored once and learned from once, whoever is killed meanwhile."""

from __future__ import annotations

import sqlite3
from collections import Counter

import pytest

from tests.daemon.daemons import driving, unbalanced, wait_until
from trainerd.episodes.reader import open_episode


def stored(trainer):
    """Count how often each record lies in the store, by (boot_id, seq)."""
    folder = trainer.state_dir / "episodes"
    count = Counter()
    for path in folder.rglob("*.mcap"):
        episode = open_episode(path)
        count.update((episode.metadata["boot_id"], record.seq) for record in episode.records())
    return count


@pytest.fixture(scope="module")
def world(shared_site):
    trainer = shared_site.trainer({"ppo.rollout": 2048, "checkpoint_interval": 2})
    rover = shared_site.rover()
    driving(rover)
    return trainer, rover


def test_an_unfinished_rollout_is_rebuilt_after_a_kill(world):
    trainer, rover = world
    wait_until(lambda: trainer.get()["steps"]["collected"] > 600, what="a part of a rollout")
    trainer.kill()
    trainer.start()
    wait_until(lambda: trainer.get()["is_ready"], what="ready again")
    replayed = wait_until(lambda: trainer.events("replay.finished"), what="the replay")[0]
    resumes_at = trainer.events("rover.connected")[-1]["resumes_at"]
    assert replayed["records"] == resumes_at > 300, "all that was acknowledged, and what was not comes from the rover"
    driving(rover)
    status = wait_until(lambda: (now := trainer.get())["updates"] >= 1 and now, what="an update")
    assert unbalanced(status["steps"]) == 0
    assert (status["steps"]["lost"], status["steps"]["malformed"]) == (0, 0)
    assert status["steps"]["received"] > 2048, "what was replayed counts as received by this process"


@pytest.mark.slow
def test_a_checkpoint_is_behind_what_it_learned_from(world):
    trainer, rover = world
    wait_until(lambda: trainer.get()["updates"] >= 2, 90, what="two updates")
    trainer.kill()
    before = len(trainer.events("replay.finished"))
    trainer.start()
    wait_until(lambda: trainer.get()["is_ready"], what="ready again")
    resumed = trainer.events("checkpoint.resumed")[-1]
    assert resumed["update"] >= 1, "a kill costs at most the update whose checkpoint was not written yet"
    driving(rover)
    wait_until(lambda: len(trainer.events("replay.finished")) > before, what="the replay")
    replayed = trainer.events("replay.finished")[-1]
    learned = sum(stored(trainer).values()) - resumed["decisions"]
    assert 0 < replayed["records"] <= learned, "what was learned from is not fed again"
    status = trainer.get()
    assert unbalanced(status["steps"]) == 0


@pytest.mark.slow
def test_what_a_killed_rover_held_comes_after_its_restart(world):
    trainer, rover = world
    trainer.kill()
    wait_until(lambda: rover.get()["spool"]["unacknowledged"] > 200, what="records pile up")
    boot = rover.get()["boot_id"]
    wait_until(lambda: rover.get()["spool"]["unwritten"] == 0, what="all is on the rover's disk")
    rover.kill()
    rover.start()
    trainer.start()
    driving(rover)
    assert rover.get()["boot_id"] != boot

    wait_until(lambda: rover.get()["spool"]["boots"] == 0, what="the earlier boot's records are safe")
    seqs = sorted(seq for each, seq in stored(trainer) if each == boot)
    assert seqs == list(range(seqs[0], seqs[-1] + 1)), "no gap"
    assert trainer.get()["steps"]["lost"] == 0


def test_nothing_is_stored_twice_and_the_audit_is_clean(world):
    trainer, rover = world
    assert rover.stop() == 0
    wait_until(lambda: all(not each["waiting"] for each in trainer.get("/rovers")["rovers"]), what="nothing waits")
    count = stored(trainer)
    assert max(count.values()) == 1
    audit = trainer.ctl("audit", "--sample", "12", "--json", patience_s=120)
    assert audit.status == 0, audit.out[-2000:] + audit.err
    with sqlite3.connect(f"file:{trainer.state_dir / 'catalogue.sqlite'}?mode=ro", uri=True) as catalogue:
        states = dict(catalogue.execute("SELECT state, count(*) FROM episodes GROUP BY state"))
    assert states.get("damaged", 0) == 0
    assert states["complete"] > 10
