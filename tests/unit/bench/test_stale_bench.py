"""What the staleness bench makes of the ends of episodes, and the rollouts that its driver fills."""

import numpy as np
import pytest
import torch

from tests.bench import stale
from tests.bench.figures import Figure
from trainerd.learning.gae import TERMINATED


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def figures(**changes):
    values = {}
    for delay in stale.DELAYS:
        for objective, area in (("decoupled", 200.0), ("plain", 100.0)):
            values |= {f"stale.k{delay}_{objective}": area, f"stale.collapsed_k{delay}_{objective}": 0.0}
    return [Figure(name, value, "", 1, value, value) for name, value in {**values, **changes}.items()]


def test_a_point_of_the_curve_is_the_mean_of_the_last_episodes_before_it():
    ends = [(10 * n, float(n)) for n in range(1, 101)]
    points = stale.curve(ends, 1000)
    assert len(points) == stale.POINTS
    assert points[0] == 1.0
    assert points[-1] == np.mean(np.arange(100 - stale.WINDOW + 1, 101))


def test_a_curve_begins_at_zero_while_no_episode_has_ended():
    assert stale.curve([(500, 7.0)], 1000)[:49] == [0.0] * 49
    assert stale.curve([(500, 7.0)], 1000)[-1] == 7.0


def test_a_run_that_falls_below_half_of_its_best_point_has_collapsed():
    found = {each.name: each for each in stale.figures_of(8, "plain", [[100.0, 400.0, 150.0], [100.0, 300.0, 290.0]])}
    assert found["stale.collapsed_k8_plain"].value == 1
    assert found["stale.final_k8_plain"].value == 220.0
    assert found["stale.worst_final_k8_plain"].value == 150.0
    assert found["stale.k8_plain"].n == 2


def test_what_falls_short_is_named():
    assert stale.shortcomings(figures()) == []
    assert stale.shortcomings(figures(**{"stale.k0_decoupled": 90.0})) == []
    assert "K = 8" in stale.shortcomings(figures(**{"stale.k8_plain": 250.0}))[0]
    assert "K = 32" in stale.shortcomings(figures(**{"stale.k32_decoupled": float("nan")}))[0]
    assert "collapsed" in stale.shortcomings(figures(**{"stale.collapsed_k32_decoupled": 1.0}))[0]


@pytest.mark.parametrize(("plain", "is_enough"), [(250.0, False), (199.0, False), (191.0, False), (190.0, True)])
def test_with_a_delay_decoupled_must_be_5_percent_ahead(plain, is_enough):
    found = stale.shortcomings(figures(**{"stale.k8_plain": plain}))
    assert (not found) == is_enough


def test_the_verdict_says_how_far_ahead_it_is_and_must_be():
    said = stale.verdict(figures(**{"stale.k8_plain": 160.0}), 8)
    assert said == "K = 8: median area of decoupled 200.0, of plain 160.0: +25.0 %, at least +5 % demanded"


@pytest.mark.component
def test_a_short_run_fills_rollouts_with_whole_segments_and_learns_without_a_rollback(monkeypatch):
    seen = []
    fill = stale.Driver.fill

    def watched(self, rollout, *words):
        fill(self, rollout, *words)
        rows = np.arange(rollout.rows)
        successor = rollout.successor[: rollout.rows]
        seen.append(successor.copy())
        assert np.all((successor == TERMINATED) | (successor > rows))
        assert np.all(rollout.u[: rollout.rows].sum(axis=1) == 1)
        assert np.all(rollout.log_prob[: rollout.rows] < 0)

    monkeypatch.setattr(stale.Driver, "fill", watched)
    ends = stale.learn(2, "decoupled", 0, 4 * stale.SETTINGS["rollout"])
    assert len(seen) == 4
    assert ends
    assert all(at <= 4 * stale.SETTINGS["rollout"] for at, _ in ends)
    assert sum((each == TERMINATED).sum() for each in seen) == len(ends)
