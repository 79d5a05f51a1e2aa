"""The bench of returns says so when a bar is not reached."""

import json

import pytest

from tests.bench import correctness
from tests.bench.correctness import CASES, figures_of, main
from trainerd.learning.recipes import RECIPES


def test_every_case_has_a_recipe_with_its_budget():
    assert {case.environment: case.decisions for case in CASES} == {
        case.environment: RECIPES[case.environment].decisions for case in CASES
    }


def test_figures_are_medians_over_seeds_with_their_spread():
    runs = [{"return": value, "decisions_per_second": 10.0} for value in (1.0, 5.0, 3.0)]
    figures = {each.name: each for each in figures_of(CASES[0], runs)}
    found = figures["return.CartPole-v1"]
    assert (found.value, found.low, found.high, found.n) == (3.0, 1.0, 5.0, 3)
    assert set(figures) == {"return.CartPole-v1", "decisions_per_second.CartPole-v1"}


@pytest.mark.parametrize(("returns", "status"), [((480, 475, 100), 0), ((480, 474, 100), 1)])
def test_the_median_of_the_seeds_decides(returns, status, tmp_path, monkeypatch):
    left = [float(each) for each in returns]
    monkeypatch.setattr(correctness, "through_daemons", lambda *words: {"return": left.pop()})
    report = tmp_path / "figures.json"
    assert main(["--only", "CartPole-v1", "--output", str(tmp_path), "--json", str(report)]) == status
    assert [each["n"] for each in json.loads(report.read_text())["figures"]] == [3]


@pytest.mark.component
@pytest.mark.timeout(120)
@pytest.mark.slow
def test_a_run_too_short_to_learn_is_below_the_bar(tmp_path):
    words = ["--only", "CartPole-v1", "--in-process", "--seeds", "1", "--steps", "1024", "--episodes", "2"]
    assert main([*words, "--output", str(tmp_path)]) == 1
