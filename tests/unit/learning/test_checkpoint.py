import json

import numpy as np
import pytest

from trainerd.learning import checkpoint
from trainerd.learning.checkpoint import CheckpointError

pytestmark = pytest.mark.component


@pytest.fixture
def learner(toy, finish):
    learner = toy.learner()
    finish(learner.update(toy.filled(learner)))
    return learner


def test_a_checkpoint_has_safetensors_and_json_and_its_update_in_its_name(learner, tmp_path):
    path = checkpoint.save(tmp_path, learner, extra={"run": "r1"})
    assert path.name == "ppo_update_1"
    assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    loaded = checkpoint.load(path)
    assert loaded.facts["extra"] == {"run": "r1"}
    assert loaded.facts["robot"]["name"] == "toy"
    for name, value in learner.snapshot().items():
        np.testing.assert_array_equal(loaded.state.weights[name].numpy(), value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "altered"])
def test_a_damaged_newest_one_is_passed_over_with_a_reason(learner, tmp_path, name, damage):
    good = checkpoint.save(tmp_path, learner)
    learner.updates = 2
    file = checkpoint.save(tmp_path, learner) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"\x00" + file.read_bytes()[1:])
    newest, reasons = checkpoint.latest(tmp_path)
    assert newest.path == good
    assert len(reasons) == 1
    assert "ppo_update_2" in reasons[0]


def test_a_half_written_one_is_no_checkpoint(learner, tmp_path):
    (tmp_path / ".ppo_update_9.partial").mkdir()
    assert checkpoint.found(tmp_path) == []
    assert checkpoint.latest(tmp_path) == (None, [])
    assert checkpoint.latest(tmp_path / "absent") == (None, [])


def test_only_the_newest_are_kept(learner, tmp_path):
    for learner.updates in (1, 2, 9, 10):
        checkpoint.save(tmp_path, learner, keep=2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["ppo_update_9", "ppo_update_10"]


def test_other_names_of_weights_are_refused_by_name(learner, toy, tmp_path):
    path = checkpoint.save(tmp_path, learner)
    facts = json.loads((path / "state.json").read_text())
    facts["keys_hash"] = "0"
    (path / "state.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="names of weights"):
        checkpoint.load(path)


def test_another_robot_is_refused_with_the_difference(learner, tmp_path, toy):
    from dataclasses import replace

    path = checkpoint.save(tmp_path, learner)
    other = type(toy)(robot=replace(toy.robot, action_repeat=3)).learner()
    with pytest.raises(CheckpointError, match="action_repeat: 3 here, 2 there"):
        checkpoint.resume(path, other)


def test_a_disk_that_refuses_is_reported_and_leaves_nothing(learner, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="ppo_update_1"):
        checkpoint.save(blocked, learner)
