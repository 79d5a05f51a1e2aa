"""Starting roverd: settings from every source, all mistakes at once, and a count of starts."""

from __future__ import annotations

import errno
import os

import pytest

from plugins.manager import PluginManager
from protocol.node.config import ConfigError
from roverd.assemble import AssemblyError, robot_settings
from roverd.main import main, next_boot
from roverd.options import parse


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch) -> None:
    for name in os.environ:
        if name.startswith("ROVERD_"):
            monkeypatch.delenv(name)


def mistakes(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(words)
    return caught.value.mistakes


def test_the_defaults_are_those_of_the_real_rover() -> None:
    settings = parse([]).value
    control = settings.control
    assert (control.rate_hz, control.max_speed_mps, control.safety_distance_m) == (10.0, 0.18, 0.25)


def test_the_demo_profile_is_in_lock_step() -> None:
    assert parse(["--profile", "demo"]).value.control.rate_hz == 0.0


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--rover-id", "blue"], "rover_id", "blue"),
        (["--trainer", "tcp://gpu:6000"], "link.trainer", "tcp://gpu:6000"),
        (["--rate", "0"], "control.rate_hz", 0.0),
        (["--max-speed", "0.3"], "control.max_speed_mps", 0.3),
        (["--safety-distance", "0.5"], "control.safety_distance_m", 0.5),
        (["--seed", "0"], "seed", 0),
        (["--task", "drive"], "task", "drive"),
        (["--set", "link.ping_s=0.5"], "link.ping_s", 0.5),
    ],
)
def test_each_flag_sets_its_option_and_is_named_as_its_origin(words: list[str], option: str, value: object) -> None:
    loaded = parse(words)
    found = loaded.value
    for part in option.split("."):
        found = getattr(found, part)
    assert (found, loaded.origins[option].startswith("command line")) == (value, True)


def test_an_environment_as_the_robot_brings_its_profile_along() -> None:
    settings = parse(["--robot", "gym:CartPole-v1"]).value
    assert (settings.robot_name, settings.robot_argument) == ("gym", "CartPole-v1")
    assert (settings.task, settings.control.rate_hz, settings.control.safety_distance_m) == ("environment", 0.0, 0.0)


def test_a_profile_that_is_named_is_the_one_that_counts() -> None:
    settings = parse(["--robot", "gym:CartPole-v1", "--profile", "live"]).value
    assert (settings.robot, settings.task, settings.control.rate_hz) == ("gym:CartPole-v1", "goal", 10.0)


def test_what_stands_after_the_colon_is_an_option_of_the_robot() -> None:
    settings = parse(["--robot", "gym:my_module:Env-v0", "--set", "plugins.gym.action_repeat=2"]).value
    made = robot_settings(PluginManager(groups=("robots",)).robot("gym"), settings)
    assert (made.id, made.action_repeat) == ("my_module:Env-v0", 2)


def test_a_robot_that_takes_nothing_after_a_colon_says_so() -> None:
    settings = parse(["--robot", "sim:big"]).value
    with pytest.raises(AssemblyError, match="sim takes nothing after a colon"):
        robot_settings(PluginManager(groups=("robots",)).robot("sim"), settings)


def test_the_command_line_beats_the_environment_and_that_beats_the_profile(monkeypatch) -> None:
    monkeypatch.setenv("ROVERD_CONTROL__RATE_HZ", "15")
    monkeypatch.setenv("ROVERD_CONTROL__MAX_SPEED_MPS", "0.4")
    control = parse(["--profile", "demo", "--rate", "20"]).value.control
    assert (control.rate_hz, control.max_speed_mps) == (20.0, 0.4)


def test_every_mistake_of_every_source_is_reported_at_once(tmp_path, monkeypatch) -> None:
    file = tmp_path / "roverd.toml"
    file.write_text('rover_id = "Not A Name"\n[controll]\nrate_hz = 5\n')
    monkeypatch.setenv("ROVERD_LINK__PING", "1")
    found = mistakes("--config", str(file), "--rate", "fast", "--set", "seed")
    expected = (
        ("rover_id", "roverd.toml"),
        ("controll", "did you mean control?"),
        ("link.ping", "did you mean link.ping_s?"),
        ("control.rate_hz", "--set control.rate_hz=fast"),
        ("seed", "no value"),
    )
    assert [pair for pair in expected if not any(pair[0] in line and pair[1] in line for line in found)] == []


def test_each_mistake_stands_on_a_line_of_its_own() -> None:
    assert len(mistakes("--rate", "-1", "--seed", "-1", "--max-speed", "99")) == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer", "localhost:5555"],
        ["--set", "record.images=some"],
        ["--set", "link.outbox_records=1"],
        ["--trainer", "tcp://gpu"],
        ["--set", "link.curve=false", "--trainer", "tcp://gpu:5555"],
        ["--set", "spool.sync_ms=1000"],
        ["--set", f"seed={2**63}"],
        ["--config", "missing.toml"],
    ],
)
def test_a_value_beyond_its_limits_is_a_mistake(words: list[str]) -> None:
    assert len(mistakes(*words)) == 1


def test_a_wrong_setting_ends_the_daemon_with_exit_status_two(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["roverd", "--set", "control.rate=5", "--seed", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert (ended.value.code, "control.rate_hz" in told, "seed" in told) == (2, True, True)


@pytest.mark.parametrize("words", [["--speed", "1"], ["--profile", "moon"]])
def test_an_unknown_flag_or_profile_ends_with_exit_status_two(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert (ended.value.code, "usage: roverd" in capsys.readouterr().err) == (2, True)


def test_a_full_disk_does_not_keep_the_robot_from_starting(tmp_path, monkeypatch) -> None:
    next_boot(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("roverd.main.write_atomic", full)
    assert next_boot(tmp_path) == 1


def test_starts_are_counted_from_zero(tmp_path) -> None:
    assert [next_boot(tmp_path / "state") for _ in range(3)] == [0, 1, 2]
