from types import SimpleNamespace

from trainerd.evaluate import judge_ranking, summarise


def end(*, success, path_m=2.0, shortest_path_m=1.0, collided=0.0, reason="terminated", **facts):
    metrics = {"duration_s": 4.0, "path_m": path_m, "shortest_path_m": shortest_path_m, "collided": collided, **facts}
    return SimpleNamespace(success=success, metrics=metrics, reason=reason, return_=1.0)


def test_a_summary_counts_and_averages():
    ends = [
        end(success=True),
        end(success=False, collided=1.0),
        end(success=False, reason="truncated"),
        end(success=True),
    ]
    result = summarise(ends)
    assert (result["n"], result["successes"], result["success"]) == (4, 2, 0.5)
    assert (result["collisions"], result["timeouts"], result["duration_s"]) == (1, 1, 4.0)
    assert result["path_efficiency"] == 0.5
    assert result["low"] < 0.5 < result["high"]


def test_path_efficiency_leaves_out_what_was_not_measured_and_is_at_most_one():
    assert summarise([end(success=True, path_m=0.0)])["path_efficiency"] is None
    assert summarise([end(success=False)])["path_efficiency"] is None
    assert summarise([end(success=True, path_m=0.9)])["path_efficiency"] == 1.0


def test_nothing_gives_nothing():
    assert summarise([])["success"] is None


def test_a_reward_that_pays_for_spinning_fails_the_lint():
    returns = {"drive": {0: 1.0, 1: 1.2}, "spin": {0: 2.0, 1: 2.2}, "still": {0: 0.0, 1: 0.0}}
    verdicts = judge_ranking([("drive", "spin"), ("drive", "still")], returns)
    assert [verdict["passed"] for verdict in verdicts] == [False, True]


def test_a_reward_that_is_not_finite_or_equal_fails_the_lint():
    returns = {"drive": {0: float("nan"), 1: 1.0}, "spin": {0: 0.0, 1: 0.0}, "still": {0: 0.0, 1: 0.0}}
    verdicts = judge_ranking([("drive", "spin"), ("spin", "still")], returns)
    assert [verdict["passed"] for verdict in verdicts] == [False, False]
