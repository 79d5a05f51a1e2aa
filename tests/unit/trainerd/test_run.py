import json

import pytest

from tests.unit.trainerd.rover import ROBOT, TASK
from trainerd.run import RunError, RunFile


def test_a_run_keeps_its_name_and_specs(tmp_path):
    path = tmp_path / "run.json"
    run = RunFile(path).fix(ROBOT, TASK)
    assert RunFile(path).run == run


def test_a_run_that_no_rover_joined_has_no_specs_and_no_file(tmp_path):
    assert RunFile(tmp_path / "run.json").run.specs is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"run_id": "x", "robot": {}, "task": {}}))
    with pytest.raises(RunError, match="robot spec"):
        RunFile(path)
