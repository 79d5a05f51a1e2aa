"""Packets of version 0 from the first data collector land as demonstrations in a real trainerd's store."""

from __future__ import annotations

import sqlite3

from tests.daemon.daemons import free_port, wait_until
from tests.unit.trainerd.test_legacy import Collector, frames
from trainerd.episodes.reader import decode, open_episode


def test_a2_packets_of_an_unchanged_collector_land_as_demonstrations_and_a_malformed_one_is_counted(site):
    trainer = site.trainer({"legacy.enabled": True, "legacy.port": free_port(), "legacy.rover_id": "old-robot"})
    port = wait_until(lambda: trainer.get()["legacy"], what="trainerd")["port"]
    collector = Collector(port)
    try:
        rgb, depth = frames()
        for number in range(12):
            collector.collect(rgb, depth, done=number == 11)
        collector.send(b"\xff" * 40)
        wait_until(lambda: trainer.get()["legacy"]["episodes"] == 1, what="the episode's end")
        wait_until(lambda: trainer.get()["legacy"]["malformed"] == 1, what="the malformed packet")
    finally:
        collector.close()
    assert trainer.stop() == 0
    with sqlite3.connect(f"file:{trainer.state_dir / 'catalogue.sqlite'}?mode=ro", uri=True) as catalogue:
        query = "SELECT path, state, purpose, steps, human_steps FROM episodes WHERE rover_id = 'old-robot'"
        ((path, *facts),) = catalogue.execute(query)
    assert facts == ["complete", "collection", 12, 12]
    episode = open_episode(trainer.state_dir / "episodes" / path)
    first = decode(next(episode.records()), episode.robot, episode.task)
    assert (first.source, first.behaviour) == ("human", None)
    assert first.human_action.tolist() == first.action.tolist()
    assert abs(first.observation.images["observation.depth.front"][100, 50] - 1000 * depth[100, 50]) <= 1


def test_the_input_of_version_0_is_off_unless_enabled(site):
    trainer = site.trainer()
    assert wait_until(trainer.get, what="trainerd")["legacy"] is None
