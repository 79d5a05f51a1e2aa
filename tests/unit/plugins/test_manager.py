"""Finding plugins, and keeping their faults theirs."""

import sys
import time
import types

import numpy as np
import pytest
from structlog.testing import capture_logs

from plugins import RewardTerm, hookimpl
from plugins.guard import STALLS, STRIKES, Guard
from plugins.manager import PluginError, PluginManager
from plugins.rewards import progress


def plugin(name="twice", **hooks):
    module = types.ModuleType(f"{name}_module")
    for hook, function in (hooks or {"provide_rewards": lambda: [RewardTerm(name, lambda a, b: 1.0, "help")]}).items():
        setattr(module, hook, hookimpl(function))
    return module


def distribution(folder, name, entry, body, group="roverloop.rewards"):
    """Lay an installed distribution into a folder on the path."""
    module = f"{name}_plugin"
    (folder / f"{module}.py").write_text(body)
    dist = folder / f"{name}-1.5.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (dist / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}\n")


GOOD = """
from plugins import RewardTerm, hookimpl
@hookimpl
def provide_rewards():
    return [RewardTerm("bonus", lambda a, b: 1.0, "help")]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_plugin")]:
        del sys.modules[name]


def listed(manager, name):
    return next(row for row in manager.listing() if row["name"] == name)


def test_an_installed_plugin_is_found_with_its_distribution(folder):
    distribution(folder, "goodies", "bonus", GOOD)
    manager = PluginManager(["rewards"])
    assert manager.reward("bonus").help == "help"
    row = listed(manager, "bonus")
    assert (row["distribution"], row["version"], row["state"]) == ("goodies", "1.5", "ready")


def test_a_plugin_that_cannot_be_imported_is_listed_and_disturbs_nobody(folder):
    distribution(folder, "broken", "bad", "import a_module_that_is_not_there")
    distribution(folder, "goodies", "bonus", GOOD)
    manager = PluginManager(["rewards"])
    assert "bonus" in manager.names("rewards")
    assert "bad" not in manager.names("rewards")
    assert listed(manager, "bad")["state"] == "failed"
    with pytest.raises(PluginError, match=r"bad of broken 1.5 could not be loaded: .*a_module_that_is_not_there"):
        manager.reward("bad")


def test_an_unknown_hook_is_an_error_that_names_it(folder):
    distribution(folder, "typo", "typo", GOOD.replace("provide_rewards", "provide_reward"))
    manager = PluginManager(["rewards"])
    assert "provide_reward" in listed(manager, "typo")["last_error"]


def test_two_distributions_of_one_name_are_refused_naming_both(folder):
    distribution(folder, "first", "bonus", GOOD)
    distribution(folder, "second", "bonus", GOOD)
    with pytest.raises(PluginError, match=r"(?s)bonus is provided twice.*(first|second) 1.5.*(first|second) 1.5"):
        PluginManager(["rewards"])


def test_a_group_that_is_not_loaded_imports_nothing(folder):
    distribution(folder, "broken", "bad", "raise SystemExit")
    assert PluginManager(["tasks"]).names("tasks") is not None


def test_an_unknown_name_gets_the_nearest_and_all():
    manager = PluginManager(["rewards"], installed=False)
    manager.register(progress)
    with pytest.raises(PluginError, match=r"did you mean progress.* there are progress"):
        manager.reward("progres")


def test_a_module_by_hand_must_provide_something():
    with pytest.raises(PluginError, match="provides nothing for rewards"):
        PluginManager(["rewards"], installed=False).register(types.ModuleType("empty"))


def test_a_hook_that_returns_the_wrong_thing_is_refused():
    manager = PluginManager(["rewards"], installed=False)
    with pytest.raises(PluginError, match="expected RewardTerm"):
        manager.register(plugin(provide_rewards=lambda: ["progress"]))


def test_registering_one_name_twice_is_refused():
    manager = PluginManager(["rewards"], installed=False)
    manager.register(plugin())
    with pytest.raises(PluginError, match="twice is provided twice"):
        manager.register(plugin(), name="again")


def test_a_plugin_that_raises_gives_the_default_and_is_disabled_after_three_strikes():
    def fail(value):
        raise ValueError(value)

    manager = PluginManager(["rewards"], installed=False)
    manager.register(plugin("bad"))
    guard = manager.guard("rewards", "bad", fail, default=0.5, budget_ms=1.0)
    with capture_logs() as logs:
        assert [guard("why") for _ in range(STRIKES + 4)] == [0.5] * (STRIKES + 4)
    assert [log["event"] for log in logs] == ["plugin.disabled"]
    row = listed(manager, "bad")
    assert (row["state"], row["calls"], row["failures"]) == ("disabled", STRIKES, STRIKES)
    assert row["last_error"] == "ValueError: why"


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.array([1.0, np.nan]), {"distance_m": float("nan")}, (1.0, float("nan"))]
)
def test_numbers_that_are_not_finite_are_faults(value):
    guard = Guard("rewards", "bad", lambda: value, default=None, budget_ms=1.0)
    assert guard() is None
    assert guard.failures == 1


def test_a_plugin_that_burns_time_is_disabled():
    def burn():
        until = time.thread_time() + 0.003
        while time.thread_time() < until:
            pass
        return 1.0

    guard = Guard("rewards", "slow", burn, default=0.0, budget_ms=1.0)
    answers = [guard() for _ in range(STRIKES + 1)]
    assert answers == [1.0] * STRIKES + [0.0]
    assert (guard.overruns, guard.failures) == (STRIKES, 0)
    assert guard.max_s > 0.003


def test_a_plugin_that_was_only_kept_waiting_is_not_disabled():
    pauses = [0.003 if call % 2 else 0.0 for call in range(4 * STALLS)]
    guard = Guard("rewards", "fine", lambda: time.sleep(pauses.pop()) or 1.0, default=0.0, budget_ms=1.0)
    while pauses:
        guard()
    assert (guard.is_disabled, guard.overruns) == (False, 0)


def test_a_plugin_that_sleeps_every_time_is_disabled():
    guard = Guard("rewards", "sleepy", lambda: time.sleep(0.002) or 1.0, default=0.0, budget_ms=1.0)
    for _ in range(STRIKES * STALLS):
        guard()
    assert guard.is_disabled


def test_a_guard_passes_arguments_and_answers_through():
    guard = Guard("rewards", "sum", lambda a, b: a + b, default=0.0, budget_ms=50.0)
    assert guard(1.0, 2.0) == 3.0
    assert (guard.calls, guard.failures) == (1, 0)
