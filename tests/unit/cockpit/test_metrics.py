"""The curves of a run are complete, and nobody waits for them."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from protocol.step import EpisodeEnd, Observation
from trainerd.cockpit.eventfile import EventFile
from trainerd.cockpit.metrics import Metrics


def read(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def end(**changes):
    nothing = np.zeros(0, np.float32)
    facts = {"episode_id": 1, "episode_steps": 30, "reason": "terminated", "success": True, "return_": 1.5}
    final = Observation(nothing, nothing, nothing)
    return EpisodeEnd(rover_id="r", boot_id="b", seq=0, final=final, **(facts | changes))


@pytest.fixture
def metrics(tmp_path):
    metrics = Metrics(tmp_path)
    yield metrics
    metrics.close()


def test_an_update_is_found_under_the_documents_tags(metrics, tmp_path):
    metrics.update({"policy_loss": 0.5, "value_loss": 0.25, "entropy": 1.0}, step=1024)
    metrics.close()
    curves = read(tmp_path)
    assert curves == {
        "train/policy_loss": [(1024, 0.5)],
        "train/value_loss": [(1024, 0.25)],
        "train/entropy": [(1024, 1.0)],
    }


def test_an_episode_writes_reward_length_and_success(metrics, tmp_path):
    metrics.episode(end(), 10)
    metrics.episode(end(success=False, metrics={"path_m": 2.0}), 20)
    metrics.close()
    curves = read(tmp_path)
    assert curves["train/episode_reward"] == [(10, 1.5), (20, 1.5)]
    assert curves["train/episode_length"][0] == (10, 30.0)
    assert curves["train/success"] == [(10, 1.0), (20, 0.0)]
    assert curves["train/success_rate"] == [(10, 1.0), (20, 0.5)]
    assert curves["train/episode_path_m"] == [(20, 2.0)]


@pytest.mark.parametrize("changes", [{"ends_episode": False}, {"purpose": "evaluation"}])
def test_breaks_and_evaluation_episodes_are_not_training_episodes(metrics, tmp_path, changes):
    metrics.episode(end(**changes), 10)
    metrics.update({"entropy": 1.0}, step=1)
    metrics.close()
    assert list(read(tmp_path)) == ["train/entropy"]


def test_a_value_that_is_not_finite_leaves_a_gap_in_its_curve_only(metrics, tmp_path):
    metrics.update({"entropy": float("nan"), "policy_loss": 1.0}, step=1)
    metrics.close()
    assert list(read(tmp_path)) == ["train/policy_loss"]


def test_evaluations_and_rates_have_groups_of_their_own(metrics, tmp_path):
    metrics.evaluation("latest", {"success": 0.875}, step=5)
    metrics.system({"link/steps_per_second": 1500.0}, step=5)
    metrics.close()
    assert read(tmp_path) == {"evaluation/latest/success": [(5, 0.875)], "link/steps_per_second": [(5, 1500.0)]}


def test_a_disk_that_is_far_behind_costs_counted_events_and_no_time(tmp_path):
    file = EventFile(tmp_path, capacity=1)
    file.close()
    file._is_closed = False
    for step in range(3):
        file.add({"a": 1.0}, step)
    assert file.dropped == 2


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    metrics = Metrics(tmp_path / "runs")
    metrics.update({"entropy": 1.0}, step=1)
    metrics.close()
    assert metrics.dropped == 1


def test_closing_twice_is_harmless(metrics):
    metrics.close()
    metrics.close()
    metrics.update({"entropy": 1.0}, step=1)
