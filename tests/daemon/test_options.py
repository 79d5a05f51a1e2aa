"""The short options of trainerd work as they are written, with everything else at its default."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.daemon.daemons import Daemon, driving, wait_until

TAGS = ("train/episode_reward", "train/policy_loss", "train/value_loss", "train/entropy")
READ = """
import sys, warnings
warnings.simplefilter("ignore")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
for tag in events.Tags()["scalars"]:
    print(tag, len(events.Scalars(tag)), events.Scalars(tag)[-1].value)
"""


@pytest.mark.slow
def test_a6_the_documented_options_give_checkpoints_and_the_documented_curves(site):
    options = {
        "--port": site.port,
        "--update-interval": 256,
        "--checkpoint-interval": 1,
        "--checkpoint-dir": "D",
        "--tensorboard-dir": "R",
    }
    words = [str(word) for pair in options.items() for word in pair]
    socket = site.folder / "state" / "trainerd" / "control.sock"
    trainer = Daemon("trainerd", socket, site.folder / "trainerd.log", words, site.env, site.folder)
    site.trainer_dir = site.folder / "state" / "trainerd"
    site.daemons.append(trainer.start())
    driving(site.rover({"plugins.goal.time_limit_s": 4}))
    wait_until(lambda: trainer.get()["updates"] >= 2, 120, what="two updates")
    assert (site.folder / "D" / "ppo_update_1" / "state.json").is_file()
    status = trainer.get()
    assert (status["port"], status["tensorboard_dir"]) == (site.port, "R")
    shown = {row["name"]: row for row in trainer.get("/config")["config"]}
    assert shown["ppo.rollout"]["value"] == "256"
    assert "command line" in shown["ppo.rollout"]["origin"]
    assert (shown["ppo.minibatch"]["value"], shown["ppo.minibatch"]["origin"]) == ("256", "default")
    assert trainer.stop() == 0
    done = subprocess.run(
        [sys.executable, "-c", READ, str(site.folder / "R")], capture_output=True, text=True, check=True
    )
    curves = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    for tag in TAGS:
        assert curves.get(tag, 0) >= 1, (tag, curves)


def test_config_show_tells_where_each_value_comes_from(site):
    tool = [
        sys.executable,
        "-m",
        "trainerd.ctl",
        "config",
        "show",
        "--origin",
        "--json",
        "--profile",
        "demo",
        "--set",
        "seed=3",
    ]
    env = {**site.env, "TRAINERD_PPO__GAMMA": "0.5"}
    import json

    done = subprocess.run(tool, capture_output=True, text=True, check=True, env=env, cwd=site.folder)
    rows = {row["name"]: row for row in json.loads(done.stdout)["config"]}
    assert rows["seed"] == {"name": "seed", "value": "3", "origin": "command line --set seed=3"}
    assert rows["ppo.gamma"]["origin"] == "environment TRAINERD_PPO__GAMMA"
    assert rows["network.encoder"] == {"name": "network.encoder", "value": '"column"', "origin": "profile demo"}
    assert rows["ppo.importance_limit"]["origin"] == "default"
