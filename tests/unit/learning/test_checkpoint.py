import json
from pathlib import Path

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


def test_later_checkpoints_are_set_aside_and_no_longer_the_newest(learner, tmp_path):
    for learner.updates in (2, 4, 6):
        checkpoint.save(tmp_path, learner)
    aside = checkpoint.set_aside(tmp_path, above=2)
    assert [path.name for path in checkpoint.found(aside)] == ["ppo_update_4", "ppo_update_6"]
    assert checkpoint.latest(tmp_path)[0].path.name == "ppo_update_2"
    assert checkpoint.set_aside(tmp_path, above=2) is None
    again = checkpoint.set_aside(tmp_path)
    assert again != aside
    assert checkpoint.found(tmp_path) == []


class PowerCutError(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_power_cut_while_a_checkpoint_replaces_another_leaves_one_of_the_two(learner, tmp_path, monkeypatch, renames):
    path = checkpoint.save(tmp_path, learner, extra={"which": "old"})
    rename, left = Path.rename, [renames]

    def cut(self, target):
        if left[0] == 0:
            raise PowerCutError
        left[0] -= 1
        return rename(self, target)

    def no_time(*_arguments, **_facts):
        pass

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        patch.setattr("shutil.rmtree", no_time)
        if renames < 2:
            with pytest.raises(PowerCutError):
                checkpoint.save(tmp_path, learner, extra={"which": "new"})
        else:
            checkpoint.save(tmp_path, learner, extra={"which": "new"})
    newest, reasons = checkpoint.latest(tmp_path)
    assert (newest.path, reasons) == (path, [])
    assert newest.facts["extra"] == {"which": "new" if renames == 2 else "old"}
    assert checkpoint.found(tmp_path) == [path]
    checkpoint.save(tmp_path, learner, extra={"which": "last"})
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "nothing is left lying about"
    assert checkpoint.load(path).facts["extra"] == {"which": "last"}


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
