"""The trainer's doctor names what is wrong and what to do about it."""

import os
import socket

from protocol.spec import Element, RobotSpec
from trainerd import doctor

ROVER = {"rover_id": "rover-1", "connected": True, "round_trip_ms": 0.5, "clock_skew_s": 0.01, "refused": {}}
SPEC = RobotSpec("one", (), (), (Element("linear", "m/s", 0.0, 0.5),), 10.0)


def failed(context):
    return {each["check"]: each for each in doctor.examine(context) if not each["ok"]}


def test_a_healthy_trainer_has_nothing_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 0)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        folders = {"state_dir": tmp_path, "checkpoint_dir": tmp_path / "new" / "deeper", "tensorboard_dir": tmp_path}
        link = {"host": "127.0.0.1", "port": 5555, "is_listening": True, "rovers": [ROVER]}
        specs = {"robot": SPEC.to_map(), "policy_robot": SPEC.to_map()}
        plugins = [{"group": "rewards", "name": "a", "state": "ready", "last_error": ""}]
        checks = doctor.examine({**folders, **link, **specs, "plugins": plugins, "control_socket": path})
    assert len(checks) == 14
    assert all(each["ok"] and each["hint"] == "" for each in checks)


def test_a_check_without_its_facts_is_left_out():
    assert doctor.examine({}) == []


def test_a_port_that_another_program_has_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = failed({"host": "127.0.0.1", "port": port})["port"]
    assert "address already in use" in found["measured"]
    assert "--port" in found["hint"]


def test_listening_to_this_machine_only_while_no_rover_comes_is_named():
    found = failed({"host": "127.0.0.1", "port": 5555, "is_listening": True, "rovers": []})
    assert "0.0.0.0" in found["reach"]["hint"]
    assert "--trainer" in found["rovers"]["hint"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 62)
    assert "MiB free" in failed({"state_dir": tmp_path})["disk of state_dir"]["measured"]


def test_a_folder_of_somebody_else_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "writable" in failed({"state_dir": tmp_path / "state"})["state dir"]["hint"]


def test_a_file_in_place_of_the_state_folder_is_named(tmp_path):
    (tmp_path / "state").write_text("")
    assert "not a folder" in failed({"state_dir": tmp_path / "state"})["state dir"]["measured"]


def test_a_control_socket_that_everybody_may_use_is_named(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        assert "0666" in failed({"control_socket": path})["control socket"]["measured"]


def test_a_daemon_that_does_not_run_is_named(tmp_path):
    assert "not running" in failed({"control_socket": tmp_path / "none"})["control socket"]["hint"]


def test_a_slow_link_a_wrong_clock_and_a_refused_policy_are_named_for_each_rover():
    sick = ROVER | {"rover_id": "r2", "round_trip_ms": 80.0, "clock_skew_s": -7.0, "refused": {"p" * 64: "NaN output"}}
    found = failed({"rovers": [ROVER, sick]})
    assert set(found) == {"link to r2", "clock of r2", "policies at r2"}
    assert "-7.000 s" in found["clock of r2"]["measured"]
    assert "NaN output" in found["policies at r2"]["measured"]


def test_a_refused_rover_is_shown_with_its_reason():
    found = failed({"rovers": [ROVER], "last_refusal": "rover-2 differs: action_repeat: 3 here, 2 there"})
    assert "action_repeat" in found["refused rovers"]["measured"]


def test_plugins_that_failed_are_listed():
    rows = [{"group": "rewards", "name": "mine", "state": "disabled", "last_error": "raised 3 times"}]
    assert failed({"plugins": rows})["plugins"]["measured"] == "rewards.mine: raised 3 times"


def test_a_policy_for_another_robot_is_told_by_the_difference():
    other = RobotSpec("one", (), (), (Element("linear", "m/s", 0.0, 0.5),), 20.0)
    found = failed({"robot": SPEC.to_map(), "policy_robot": other.to_map()})
    assert "control_rate_hz: 10.0 here, 20.0 there" in found["policy against robot spec"]["measured"]


def test_a_gpu_that_is_asked_for_and_not_there_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in failed({"device": "cuda"})["torch device"]["hint"]
    assert "torch device" not in failed({"device": "auto"})
