"""Blobs are named: robots with two cameras and with none drive and train."""

from __future__ import annotations

import pytest

from tests.daemon.daemons import driving, free_port, wait_until
from tests.daemon.tap import Tap

CURVE = False
"""The tests look at the link or join it, which nobody can who has no key."""


def learns(trainer, rover):
    driving(rover)
    status = wait_until(
        lambda: (new := trainer.get())["updates"] >= 2 and rover.get()["policy"]["counter"] >= 2 and new,
        what="two updates, and a later policy drives",
    )
    assert status["steps"]["lost"] == status["steps"]["broken"] == status["steps"]["malformed"] == 0
    return status


@pytest.mark.slow
def test_a_robot_with_two_cameras_drives_trains_and_records_both(site):
    with Tap(free_port(), site.port) as tap:
        trainer = site.trainer({"plugins.column.rgb": "observation.images.rear"})
        rover = site.rover(
            {"plugins.synthetic.cameras": '["front","rear"]', "plugins.synthetic.action_repeat": 3}, port=tap.port
        )
        learns(trainer, rover)
        records = tap.stream.decoded()
    cameras = {f"observation.{kind}.{name}" for kind in ("images", "depth") for name in ("front", "rear")}
    assert all(set(record.observation.images) == cameras for record in records if hasattr(record, "observation"))
    step = next(record for record in records if hasattr(record, "observation"))
    front, rear = (step.observation.images[f"observation.depth.{name}"] for name in ("front", "rear"))
    assert front.shape == (12, 20)
    assert (front != rear).any()
    manifest = trainer.get(f"/policies/{trainer.get()['policy']['latest']}")["manifest"]
    assert [plane["camera"] for plane in manifest["transform"]["planes"]] == [
        "observation.images.rear",
        "observation.depth.front",
    ]
    assert len(manifest["robot"]["cameras"]) == 4


@pytest.mark.parametrize("robot", ["synthetic", pytest.param("sim", marks=pytest.mark.slow)])
def test_a_robot_without_cameras_drives_and_trains(site, robot):
    if robot == "sim":
        settings = {"robot": "sim", "plugins.sim.cameras": "none"}
    else:
        settings = {"plugins.synthetic.cameras": "[]"}
    trainer = site.trainer({"network.encoder": "blind"})
    learns(trainer, site.rover(settings))
    manifest = trainer.get(f"/policies/{trainer.get()['policy']['latest']}")["manifest"]
    assert manifest["robot"]["cameras"] == []
    assert [name for name, *_ in manifest["inputs"]] == ["vector"]


@pytest.mark.slow
def test_an_encoder_that_needs_a_camera_refuses_a_robot_without_one_by_name(site):
    site.trainer()
    rover = site.rover({"plugins.synthetic.cameras": "[]"})
    status = wait_until(lambda: (new := rover.get())["link"]["refusal"] and new, what="refused")
    assert "needs a camera of kind rgb, there is none" in status["link"]["refusal"]
