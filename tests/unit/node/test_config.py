"""Settings: precedence, origins and mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.node.config import ConfigError, Layer, describe, load, option, show, to_toml, validate_table
from protocol.node.options import format_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocol.node.config import Loaded


@dataclass(frozen=True)
class Ppo:
    gamma: float = option(0.99, help="discount", low=0, high=1)
    clip_epsilon: float = option(0.2, help="clip", low=0)
    hidden: tuple[int, ...] = option((64, 64), help="widths", low=1)


@dataclass(frozen=True)
class Settings:
    port: int = option(5555, help="port", low=0, high=65535)
    name: str = option("rover", help="name", pattern="[a-z-]+")
    folder: Path = option(Path("runs"), help="folder")
    verbose: bool = option(False, help="more output")
    limit_s: float | None = option(None, help="stop after", low=0)
    mode: str = option("fast", help="mode", choices=("fast", "slow"))
    rewards: dict[str, float] = option({"progress": 1.0, "collision": -1.0}, help="weights", low=-10)
    ppo: Ppo = option(Ppo, help="the learner")
    plugins: dict[str, Any] = option(dict, help="tables of plugins")


def settings(
    *overrides: str,
    file: Path | None = None,
    layers: Sequence[Layer] = (),
    environ: Mapping[str, str] | None = None,
) -> Loaded[Settings]:
    return load(Settings, layers=layers, file=file, env_prefix="ROVERD_", environ=environ or {}, overrides=overrides)


def mistakes(*overrides: str, **sources: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        settings(*overrides, **sources)
    return raised.value.mistakes


def test_defaults_alone_are_valid() -> None:
    assert settings().value == Settings()


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "roverd.toml"
    file.write_text("port = 3\nname = 'file'\n[ppo]\ngamma = 0.3\n")
    loaded = settings(
        "ppo.gamma=0.5",
        file=file,
        layers=[Layer("profile demo", {"port": 1, "mode": "slow"}), Layer("profile fast", {"port": 2})],
        environ={"ROVERD_PPO__GAMMA": "0.4", "ROVERD_NAME": "environ", "OTHER_NAME": "x"},
    )
    assert (loaded.value.port, loaded.value.name, loaded.value.ppo.gamma, loaded.value.mode) == (
        3,
        "environ",
        0.5,
        "slow",
    )
    assert loaded.origins["mode"] == "profile demo"
    assert loaded.origins["port"] == str(file)
    assert loaded.origins["name"] == "environment ROVERD_NAME"
    assert loaded.origins["ppo.gamma"] == "command line --set ppo.gamma=0.5"
    assert loaded.origins["ppo.clip_epsilon"] == "default"


def test_text_is_converted_to_the_type_of_the_option() -> None:
    value = settings("ppo.hidden=[8, 16]", "verbose=yes", "limit_s=2", "folder=/tmp/x", "rewards=a=1,b=-2").value
    assert value.ppo.hidden == (8, 16)
    assert value.verbose
    assert value.limit_s == 2.0
    assert value.folder == Path("/tmp/x")
    assert value.rewards == {"a": 1.0, "b": -2.0}
    assert settings("ppo.hidden=4", "limit_s=none").value.ppo.hidden == (4,)


def test_a_table_in_a_file_replaces_and_a_dotted_name_changes_one_entry(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[rewards]\nsuccess = 5\nprogress = 2\n")
    assert settings("rewards.success=6", file=file).value.rewards == {"success": 6.0, "progress": 2.0}


def test_tables_of_plugins_merge_and_read_toml_values() -> None:
    layer = Layer("profile demo", {"plugins": {"goal": {"radius_m": 0.5, "name": "a"}}})
    value = settings(
        "plugins.goal.radius_m=1", "plugins.goal.tags=['x']", "plugins.drive.name=b c", layers=[layer]
    ).value
    assert value.plugins == {"goal": {"radius_m": 1, "name": "a", "tags": ["x"]}, "drive": {"name": "b c"}}
    assert layer.values["plugins"]["goal"]["radius_m"] == 0.5


def test_a_default_table_is_not_shared_between_settings() -> None:
    settings().value.rewards["progress"] = 3.0
    assert settings().value.rewards["progress"] == 1.0


def test_all_mistakes_of_all_sources_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "trainerd.toml"
    file.write_text("port = 'x'\nppo.clip_epsilom = 1\nppo.hidden = [1, 0]\n")
    found = mistakes("ppo.gamma=2", "port", "ppo=1", "Mode=fast", file=file, environ={"ROVERD_MODE": "slwo"})
    assert found == [
        f"{file}: port must be a whole number, not 'x'",
        f"{file}: no option ppo.clip_epsilom; did you mean ppo.clip_epsilon?",
        f"{file}: ppo.hidden must be at least 1",
        "environment ROVERD_MODE: mode must be one of fast, slow, not 'slwo'",
        "command line --set ppo.gamma=2: ppo.gamma must be at most 1",
        "command line --set port: no value; write --set port=VALUE",
        "command line --set ppo=1: ppo is a section, not an option; write ppo.OPTION",
        "command line --set Mode=fast: no option Mode; did you mean mode?",
    ]


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("gamma=0.5", "no option gamma; did you mean ppo.gamma?"),
        ("ppo.gamma=nan", "ppo.gamma must be a number, not NaN"),
        ("verbose=maybe", "verbose must be true or false, not 'maybe'"),
        ("name=Rover", "name must match [a-z-]+, not 'Rover'"),
        ("rewards.progress=-11", "rewards.progress must be at least -10"),
        ("rewards.progress=x", "rewards.progress must be a number, not 'x'"),
        ("rewards=progress", "rewards must be a table like name=1,other=2, not 'progress'"),
        ("quantum=1", "no option quantum"),
    ],
)
def test_a_mistake_says_what_was_expected(override: str, mistake: str) -> None:
    assert mistakes(override) == [f"command line --set {override}: {mistake}"]


@pytest.mark.parametrize(
    ("table", "mistake"),
    [
        ({"port": True}, "port must be a whole number, not True"),
        ({"ppo": {"gamma": "0.5"}}, "ppo.gamma must be a number, not '0.5'"),
        ({"ppo": 3}, "ppo is a section, not an option; write ppo.OPTION"),
        ({"name": 3}, "name must be a text in quotes, not 3"),
        ({"rewards": 3}, "rewards must be a table, not 3"),
        ({"ppo": {"hidden": 3}}, "ppo.hidden must be a list, not 3"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_table_is_a_mistake(table: dict[str, Any], mistake: str) -> None:
    assert mistakes(layers=[Layer("profile demo", table)]) == [f"profile demo: {mistake}"]


def test_a_missing_file_is_a_mistake() -> None:
    assert mistakes(file=Path("/nowhere/a.toml")) == ["/nowhere/a.toml: no such file or directory"]


def test_a_syntax_error_names_the_file_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("port = 1\nname = \n")
    (mistake,) = mistakes(file=file)
    assert mistake.startswith(f"{file}: not valid TOML: ")
    assert "line 2" in mistake


def test_a_rule_between_options_is_a_mistake_too() -> None:
    @dataclass(frozen=True)
    class Range:
        low: float = option(0.0, help="low")
        high: float = option(1.0, help="high")

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low must not be above high")

    with pytest.raises(ConfigError, match=re.escape("plugins.range: low must not be above high")):
        validate_table(Range, {"low": 2}, "plugins.range")


def test_a_plugins_table_is_validated_like_the_settings() -> None:
    assert validate_table(Ppo, {"gamma": 1}, "plugins.ppo") == Ppo(gamma=1.0)
    with pytest.raises(ConfigError) as raised:
        validate_table(Ppo, {"gama": 1, "clip_epsilon": -1}, "plugins.ppo")
    assert raised.value.mistakes == [
        "plugins.ppo: no option gama; did you mean gamma?",
        "plugins.ppo: clip_epsilon must be at least 0",
    ]


def test_an_option_without_a_default_must_be_given() -> None:
    @dataclass(frozen=True)
    class Needy:
        device: str = option(help="the device")

    assert validate_table(Needy, {"device": "/dev/x"}, "plugins.needy").device == "/dev/x"
    with pytest.raises(ConfigError, match=re.escape("plugins.needy: device must be given")):
        validate_table(Needy, {}, "plugins.needy")


def test_every_option_is_described() -> None:
    docs = {each.name: each for each in describe(Settings)}
    assert docs["ppo.gamma"].limits == "0 to 1"
    assert docs["ppo.hidden"].type == "list of int"
    assert docs["limit_s"].type == "float or none"
    assert docs["limit_s"].default == "none"
    assert docs["mode"].limits == "one of fast, slow"
    assert docs["rewards"].type == "table of float"
    assert docs["plugins"].type == "table"


def test_shown_settings_have_their_origin_when_asked() -> None:
    loaded = settings("port=7")
    assert show(loaded)[0] == ("port", "7", "")
    assert show(loaded, with_origin=True)[0] == ("port", "7", "command line --set port=7")


def test_settings_written_as_toml_load_to_the_same_settings(tmp_path: Path) -> None:
    loaded = settings("port=7", "ppo.hidden=1,2", "plugins.goal.radius_m=0.5", "folder=/x/y", "verbose=on")
    file = tmp_path / "a.toml"
    file.write_text(to_toml(loaded, with_origin=True))
    assert settings(file=file).value == loaded.value


@given(st.text())
def test_any_text_survives_being_written_as_toml(text: str) -> None:
    table = {"value": text.encode("utf-8", "ignore").decode()}

    @dataclass(frozen=True)
    class One:
        value: str = option("", help="text")

    loaded = load(One, layers=[Layer("x", table)], env_prefix="X_", environ={})
    from protocol.node.config import tomllib

    assert tomllib.loads(to_toml(loaded))["value"] == table["value"]
    assert format_value(loaded.value.value) == show(loaded)[0][1]
