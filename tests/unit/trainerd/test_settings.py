import json
import os
import subprocess
import sys

import pytest

from protocol.node.config import ConfigError, validate_table
from trainerd.ctl import main as trainerctl
from trainerd.learning.recipes import RECIPES, tables_of
from trainerd.learning.settings import NetworkSettings, PpoSettings
from trainerd.start import BudgetError, check_budget


def parse(*arguments):
    from trainerd.options import parse as parse_arguments

    return parse_arguments(arguments)


def test_the_documents_options_work_as_written():
    words = "--port 5555 --update-interval 8192 --checkpoint-interval 10 --checkpoint-dir ./c --tensorboard-dir ./r"
    loaded = parse(*words.split())
    settings = loaded.value
    assert (settings.port, settings.ppo.rollout, settings.checkpoint_interval) == (5555, 8192, 10)
    assert (str(settings.checkpoint_dir), str(settings.tensorboard_dir)) == ("c", "r")


def test_the_documents_hyperparameters_are_the_defaults():
    ppo = parse().value.ppo
    assert (ppo.learning_rate, ppo.gamma, ppo.lambda_, ppo.clip) == (3e-4, 0.99, 0.95, 0.2)
    assert (ppo.entropy, ppo.value, ppo.epochs, ppo.minibatch, ppo.rollout) == (0.01, 0.5, 4, 256, 8192)


def test_all_mistakes_are_reported_at_once_with_the_nearest_name(tmp_path):
    file = tmp_path / "trainerd.toml"
    file.write_text("[ppo]\nclipp = 0.1\n")
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file), "--port", "99999", "--set", "train.decisions=-1")
    assert len(caught.value.mistakes) == 3
    assert any("did you mean ppo.clip?" in mistake for mistake in caught.value.mistakes)


def test_wrong_settings_end_with_status_2_and_a_line_each(capsys):
    from trainerd.main import main

    assert main(["--profile", "demoo"]) == 2
    assert "no such profile; there are default, demo" in capsys.readouterr().err


@pytest.mark.component
def test_a_table_of_a_plugin_that_there_is_not_ends_with_status_2(tmp_path):
    (tmp_path / "trainerd.toml").write_text("[plugins.colunm]\na = 2\n[plugins.zzz]\na = 1\n[plugins.goal]\n")
    words = [sys.executable, "-m", "trainerd", "--config", "trainerd.toml", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.startswith("trainerd: plugins.")]
    assert lines[0].endswith("plugins.colunm: the trainer has no plugin of that name; did you mean plugins.column?")
    assert "plugins.zzz: the trainer has no plugin of that name; there are " in lines[1]
    assert len(lines) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["trainerd.toml"], "nothing was begun"


@pytest.mark.parametrize(("words", "seed"), [(["reward", "lint"], 2_000_000), (["evaluate"], 1_000_000)])
def test_a_choice_uses_other_arenas_than_a_report(words, seed):
    import argparse

    from trainerd.ctl import COMMANDS

    parser = argparse.ArgumentParser()
    next(command for command in COMMANDS if command.words == tuple(words)).arguments(parser)
    assert parser.parse_args([]).seed == seed


def test_config_show_names_the_origin_without_a_daemon(capsys, tmp_path):
    words = ["config", "show", "--origin", "--profile", "demo", "--json", "--control-socket", str(tmp_path / "none")]
    assert trainerctl(words) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["config"]}
    assert rows["ppo.gamma"] == {"name": "ppo.gamma", "value": "0.97", "origin": "profile demo"}
    assert rows["port"]["origin"] == "default"


def test_the_profile_of_an_environment_is_the_general_one_with_its_recipe():
    settings = parse("--profile", "gym:CartPole-v1").value
    assert (settings.network.encoder, settings.network.head_hidden, settings.device) == ("blind", (64, 64), "cpu")
    assert settings.train.decisions == 100_000
    assert settings.ppo.rollout == RECIPES["CartPole-v1"].ppo["rollout"]
    general = parse("--profile", "gym").value
    assert (general.train.decisions, general.ppo.rollout) == (1_000_000, 2048)


def test_a_learning_rate_that_falls_over_no_budget_is_refused():
    with pytest.raises(BudgetError, match=r"train\.decisions, which is 0"):
        check_budget(parse("--set", "ppo.anneal=true").value)
    check_budget(parse("--set", "ppo.anneal=true", "--set", "train.decisions=5").value)


def test_an_environment_without_a_recipe_is_told_which_there_are():
    with pytest.raises(ConfigError, match=r"no recipe for Taxi-v3; --profile gym has .*CartPole-v1"):
        parse("--profile", "gym:Taxi-v3")
    with pytest.raises(ConfigError, match="no such profile"):
        parse("--profile", "demo:CartPole-v1")


@pytest.mark.parametrize("environment", sorted(RECIPES))
def test_a_recipe_is_the_same_for_daemons_and_in_process_runs(environment):
    settings = parse("--profile", f"gym:{environment}").value
    tables = tables_of(environment)
    assert settings.ppo == validate_table(PpoSettings, tables["ppo"], "ppo")
    assert settings.network == validate_table(NetworkSettings, tables["network"], "network")
