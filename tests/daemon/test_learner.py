"""What must not ruin a run: half a checkpoint, too little memory, no numbers, a policy that acts otherwise."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from protocol.spec import canonical_hash
from tests.daemon.daemons import driving, unbalanced, wait_until
from tests.daemon.installing import install_plugin

ENCODER = """
import pathlib
import time

import torch

from plugins import EncoderPlugin, hookimpl
from plugins.encoders.cameras import CameraSettings, rgbd_planes
from plugins.encoders.column import build_column

SWITCHES = pathlib.Path(__file__).parent


def is_on(name):
    return torch.is_grad_enabled() and (SWITCHES / name).exists()


class Strange(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.out_features = inner, inner.out_features

    def forward(self, image):
        if is_on("crowded") and len(image) > 10:
            raise torch.OutOfMemoryError("no room for so many rows")
        if is_on("slow"):
            time.sleep(0.5)
        features = self.inner(image)
        return features * float("nan") if is_on("poisoned") else features


@hookimpl
def provide_encoders():
    return [EncoderPlugin("strange", CameraSettings, rgbd_planes, lambda *given: Strange(build_column(*given)))]
"""
OTHERWISE = """
import sys

if "roverd.policy.process" in sys.orig_argv:
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        runs = 0

        def run(self, *arguments):
            Session.runs += 1
            outputs = super().run(*arguments)
            return outputs if Session.runs < 100 else [outputs[0] + outputs[0].dtype.type(0.5)]

    onnxruntime.InferenceSession = Session
"""
STRANGE = {"network.encoder": "strange", "network.normaliser_frames": 0}


class Pair:
    """A trainer with the strange encoder, a rover that drives for it, and the switches of the encoder."""

    def __init__(self, site):
        install_plugin(site, "encoders", "strange", ENCODER)
        self.folder = site.folder / "installed"
        self.trainer = site.trainer(STRANGE)
        self.rover = site.rover()
        driving(self.rover)
        self.updates(2)

    def switch(self, name, *, on=True):
        (self.folder / name).touch() if on else (self.folder / name).unlink()

    def updates(self, more):
        wanted = self.trainer.get()["updates"] + more
        return wait_until(lambda: (new := self.trainer.get())["updates"] >= wanted and new, what=f"{more} updates")


@pytest.fixture
def pair(site):
    return Pair(site)


@pytest.mark.slow
def test_row_3_a_checkpoint_with_other_names_of_weights_is_refused_by_name_and_nothing_changes(site):
    trainer = site.trainer()
    rover = site.rover()
    driving(rover)
    wait_until(lambda: trainer.get()["updates"] >= 4, what="updates")
    trainer.ctl("train", "stop")
    name = wait_until(lambda: trainer.get()["checkpoint"]["latest"], what="a checkpoint")
    place = trainer.state_dir.parent / "checkpoints" / name
    wrap(place)
    before = trainer.get()["policy"]["counter"]
    answer = trainer.ctl("checkpoint", "restore", name)
    assert answer.status == 1
    assert "weights: missing" in answer.err
    assert "unexpected ['agent." in answer.err
    assert trainer.get()["policy"]["counter"] == before, "a network without its weights was published"


def wrap(place):
    """Do to a checkpoint what a wrapper around a network does: every name gets a prefix, every hash is right."""
    weights = {f"agent.{name}": value for name, value in load_file(place / "model.safetensors").items()}
    save_file(weights, place / "model.safetensors")
    facts = json.loads((place / "state.json").read_text())
    facts["keys_hash"] = canonical_hash(sorted(weights))
    facts["sha256"]["model.safetensors"] = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    (place / "state.json").write_text(json.dumps(facts))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["column", "blind", "rgbd"])
def test_row_24_every_built_in_network_is_exported_and_drives(site, encoder):
    trainer = site.trainer({"network.encoder": encoder, "train.autostart": False})
    rover = site.rover()
    wait_until(lambda: rover.get()["policy"]["policy_id"], what="a policy that proved itself")
    assert trainer.get()["policy"]["export_failed"] == 0


@pytest.mark.slow
def test_row_29_too_little_memory_costs_speed_and_nothing_else(pair):
    pair.switch("crowded")
    pair.updates(2)
    status = pair.trainer.get()
    assert status["last_update"]["metrics"]["rolled_back"] == 0.0
    events = wait_until(lambda: pair.trainer.events("learner.out_of_memory"), what="it is told")
    assert events[0]["rows"] <= 10
    assert "ppo.micro_batch" in events[0]["hint"]
    assert status["health"]["ok"], status["health"]


@pytest.mark.slow
def test_row_29_a_signal_in_a_slow_update_ends_it_in_ten_seconds(pair):
    pair.switch("slow")
    before = pair.trainer.get()["updates"]
    wait_until(lambda: pair.trainer.get()["updates"] > before, what="an update that is slow")
    time.sleep(0.7)
    began = time.monotonic()
    assert pair.trainer.stop() == 0
    assert time.monotonic() - began < 10.0


@pytest.mark.slow
def test_row_30_an_update_that_gives_no_number_is_taken_back_and_told(pair):
    before = pair.trainer.get()
    pair.switch("poisoned")
    told = wait_until(
        lambda: not (new := pair.trainer.get())["health"]["ok"] and new, what="it is told that learning diverges"
    )
    assert any("not finite" in cause for cause in told["health"]["causes"]), told["health"]
    assert told["last_update"]["metrics"]["rolled_back"] == 1.0
    assert told["policy"]["counter"] <= before["policy"]["counter"] + 2, "a policy was made of what is no number"
    assert pair.trainer.events("update.rolled_back")[0]["level"] == "error"
    driven = pair.rover.get()["ticks"]
    wait_until(lambda: pair.rover.get()["ticks"] > driven + 100, what="the policy before drives on")
    pair.switch("poisoned", on=False)
    wait_until(lambda: pair.trainer.get()["health"]["ok"], what="it learns again")


@pytest.mark.slow
def test_two_ranks_share_each_update_and_the_death_of_one_costs_at_most_that(site):
    trainer = site.trainer({"devices": "cpu,cpu"})
    rover = site.rover()
    driving(rover)

    def metrics():
        return trainer.get()["last_update"].get("metrics", {})

    wait_until(lambda: metrics().get("ranks") == 2, what="both ranks")
    (rank,) = [pid for pid in trainer.pids() if b"learning.ranks" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    before = trainer.get()["updates"]
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: metrics().get("ranks_lost") == 1 and metrics()["ranks"] == 2, what="both ranks again")
    assert trainer.get()["updates"] > before
    assert len(trainer.events("learner.rank_lost")) == 1
    steps = trainer.get()["steps"]
    assert steps["lost"] == steps["duplicates"] == unbalanced(steps) == 0


@pytest.mark.slow
def test_row_36_a_policy_that_acts_otherwise_than_it_was_trained_is_measured_and_not_learned_from(site):
    """The rover's runtime answers its golden inputs right, and later adds 0.5 to every mean."""
    installed = site.folder / "installed"
    installed.mkdir()
    (installed / "sitecustomize.py").write_text(OTHERWISE)
    trainer = site.trainer()
    site.env["PYTHONPATH"] = str(installed)
    driving(site.rover())
    told = wait_until(lambda: "behaviour" in (new := trainer.get())["refused"] and new, what="it is refused")
    assert any("acts otherwise" in cause for cause in told["health"]["causes"]), told["health"]
    later = wait_until(
        lambda: (new := trainer.get())["steps"]["received"] > told["steps"]["received"] + 1024 and new,
        what="more steps",
    )
    assert later["updates"] <= told["updates"] + 1
    assert later["policy"]["counter"] <= told["policy"]["counter"] + 1
    event = trainer.events("update.finished")[-1]
    assert event["behaviour_kl"] > 0.05


@pytest.mark.slow
def test_row_39_a_reward_without_variance_stops_learning_though_episodes_end(site):
    trainer = site.trainer({"ppo.rollout": 512})
    rover = site.rover({"reward.weights": {"tick_cost": -0.01}, "plugins.goal.time_limit_s": 2})
    driving(rover)
    refused = wait_until(lambda: trainer.get()["refused"], what="a refused rollout")
    assert refused == ["reward_constant"]
    counter = trainer.get()["policy"]["counter"]
    received = trainer.get()["steps"]["received"]
    wait_until(lambda: trainer.get()["steps"]["received"] > received + 1536, what="three more rollouts")
    assert trainer.get()["policy"]["counter"] == counter
    assert any("check the reward plugins" in cause for cause in trainer.get()["health"]["causes"])
