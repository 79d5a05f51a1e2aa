"""What a demo run reports, shows and starts; the daemons themselves are run by the daemon tests."""

import json
import os
import socket
import sys

import pytest

from trainerd.demo.__main__ import evaluated, main, parse, rover_words, trainer_words, write
from trainerd.demo.daemons import (
    Daemon,
    DaemonDiedError,
    free_port,
    rover_arguments,
    short_folder,
    tail,
    trainer_arguments,
)
from trainerd.demo.report import Evidence, report, summary
from trainerd.demo.screen import Lines, panel, sparkline

pytestmark = pytest.mark.component

TRAINER = {
    "state": "training",
    "updates": 3,
    "decisions": 3000,
    "decision_budget": 3000,
    "decisions_per_second": 600.0,
    "steps": {"received": 9000, "duplicates": 0, "lost": 0, "stale": 4},
    "success": {"rate": 0.5, "n": 100},
    "success_history": [{"decision": 1000, "rate": 0.25, "n": 40}, {"decision": 2000, "rate": 0.5, "n": 100}],
    "policy": {"counter": 3, "exports": 4, "update_to_driving_s": {"max": 0.75}},
    "health": {"ok": True, "causes": []},
}
ROVER = {"ticks_per_second": 1800.0, "episodes": 55, "policy": {"policy_id": "ab" * 32, "counter": 3}, "swaps": 4}
RESULT = {"n": 400, "successes": 340, "success": 0.85, "low": 0.81, "high": 0.88, "collisions": 20, "timeouts": 40}


@pytest.fixture
def evidence():
    evidence = Evidence(seed=7, began_s=100.0)
    evidence.see({"state": "waiting"}, {}, 101.0)
    evidence.see(TRAINER, ROVER, 110.0)
    return evidence


@pytest.fixture
def finished(evidence):
    evidence.see(TRAINER | {"state": "finished"}, ROVER, 115.0)
    evidence.see(TRAINER | {"state": "finished", "decisions": 9999}, ROVER | {"swaps": 9}, 140.0)
    evidence.evaluations["latest"] = {"policy": "latest", "policy_id": "ab" * 32, "result": RESULT}
    evidence.evaluations["random"] = {"policy": "random", "policy_id": "", "result": RESULT | {"success": 0.01}}
    return evidence


def test_learning_is_timed_from_the_first_step_to_the_end_of_the_budget(finished):
    figures = report(finished, 150.0)
    assert figures["wall_seconds"] == 5.0
    assert figures["total_seconds"] == 50.0
    assert figures["decisions_per_second"] == 600.0


def test_what_comes_after_learning_does_not_count_as_learning(finished):
    figures = report(finished, 150.0)
    assert (figures["decisions"], figures["policies_swapped"]) == (3000, 4)


def test_the_report_holds_every_promised_key(finished):
    promised = {"seed", "wall_seconds", "steps", "decisions", "updates", "decisions_per_second", "policies_swapped"}
    promised |= {"success", "final", "random", "reactive", "lost_steps", "duplicate_steps", "stale_steps"}
    figures = report(finished, 150.0)
    assert promised | {"update_to_driving_seconds"} <= figures.keys()
    assert figures["success"] == TRAINER["success_history"]
    assert {"policy", "success", "low", "high", "n"} <= figures["final"].keys()
    json.dumps(figures)


def test_a_result_names_the_policy_by_id_and_a_controller_by_name(finished):
    figures = report(finished, 150.0)
    assert (figures["final"]["policy"], figures["random"]["policy"]) == ("ab" * 32, "random")
    assert figures["reactive"] is None


def test_an_interrupted_run_reports_what_was_reached(evidence):
    figures = report(evidence, 112.0)
    assert figures["finished"] is False
    assert (figures["wall_seconds"], figures["decisions"], figures["final"]) == (2.0, 3000, None)
    assert "3,000 decisions in 3 updates" in summary(figures)


def test_a_run_that_never_began_reports_zeros():
    figures = report(Evidence(seed=1), 5.0)
    assert (figures["wall_seconds"], figures["steps"], figures["decisions_per_second"]) == (0.0, 0, 0.0)


def test_the_summary_gives_success_with_its_interval(finished):
    text = summary(report(finished, 150.0))
    assert "learned   85.0 % success (81.0-88.0 %, 400 arenas)" in text
    assert "4 stale" in text


def test_the_json_file_and_the_picture_are_written(finished, tmp_path, capsys):
    options = parse(["--json", str(tmp_path / "figures.json"), "--output", str(tmp_path)])
    write(options, report(finished, 150.0))
    assert json.loads((tmp_path / "figures.json").read_text())["seed"] == 7
    assert (tmp_path / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert "600 decisions/s" in capsys.readouterr().out


def test_both_daemons_get_the_demo_profile_the_seed_and_the_budget(tmp_path):
    options = parse(["--seed", "7", "--decisions", "5000", "--task", "drive", "--blind", "--set-roverd", "a.b=1"])
    trainer = trainer_arguments(tmp_path, 5000, trainer_words(options))
    rover = rover_arguments(tmp_path, 5000, "key", rover_words(options))
    assert trainer[:4] == ["--profile", "demo", "--port", "5000"]
    assert {"seed=7", "train.decisions=5000", "network.encoder=blind"} <= set(trainer)
    assert rover[:4] == ["--profile", "demo", "--trainer", "tcp://127.0.0.1:5000"]
    assert {"seed=7", "task=drive", "a.b=1", "link.trainer_key=key"} <= set(rover)


def test_the_profiles_budget_holds_where_none_is_given():
    assert not any("decisions" in word for word in trainer_words(parse([])))


def test_the_drive_task_has_no_goal_for_the_reactive_controller():
    assert evaluated(parse(["--task", "drive"])) == ["latest", "random"]
    assert evaluated(parse([])) == ["latest", "random", "reactive"]
    assert evaluated(parse(["--no-reactive"])) == ["latest", "random"]
    assert evaluated(parse(["--eval-episodes", "0"])) == []


def test_a_daemon_that_dies_is_reported_with_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brokend").mkdir()
    lines = "\n".join(f"print('line {n}')" for n in range(30))
    (tmp_path / "brokend" / "__main__.py").write_text(f"{lines}\nraise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    daemon = Daemon("brokend", [], control_socket=tmp_path / "c.sock", log=tmp_path / "log")
    with pytest.raises(DaemonDiedError) as caught:
        daemon.get("/status")
    assert "status 3" in str(caught.value)
    assert "line 29" in str(caught.value)
    assert "line 9\n" not in str(caught.value)
    daemon.stop()


def test_a_daemon_that_dies_gives_exit_status_1_and_leaves_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    figures = tmp_path / "figures.json"
    assert main(["--headless", "--output", str(tmp_path / "out"), "--json", str(figures)]) == 1
    assert "trainerd ended with status 1" in capsys.readouterr().err
    assert json.loads(figures.read_text())["finished"] is False


def test_the_tail_of_a_log_that_is_not_there_says_so(tmp_path):
    assert "No such file" in tail(tmp_path / "none")


def test_control_sockets_fit_into_a_unix_address_however_deep_the_output_lies(monkeypatch, tmp_path):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    folder = short_folder()
    path = folder / "trainerd.sock"
    assert len(os.fsencode(path)) < 108
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.unlink()
    folder.rmdir()


def test_a_free_port_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


@pytest.mark.parametrize(
    ("history", "expected"),
    [([], ""), ([{"rate": 0.0}], " "), ([{"rate": n / 8} for n in range(9)], " ▁▂▃▄▅▆▇█")],
)
def test_the_sparkline_rises_with_success(history, expected):
    assert sparkline(history) == expected


def test_a_long_sparkline_is_averaged_to_its_width():
    assert len(sparkline([{"rate": 0.5}] * 1000, width=40)) == 40


def test_the_panel_shows_progress_and_what_is_wrong(evidence):
    from rich.console import Console

    evidence.trainer = TRAINER | {"health": {"ok": False, "causes": ["no step for 10 s"]}}
    console = Console(width=120, file=open(os.devnull, "w", encoding="utf-8"), record=True)  # noqa: PTH123, SIM115
    console.print(panel(evidence, 112.0))
    console.file.close()
    text = console.export_text()
    for part in ("3,000 of 3,000 decisions", "1,800 control ticks/s", "50 %", "abababab", "no step for 10 s"):
        assert part in text


def test_without_a_terminal_a_line_is_said_now_and_then(evidence, capsys):
    lines = Lines()
    for now_s in (110.0, 111.0, 126.0):
        lines.show(evidence, now_s)
    lines.show(evidence, 127.0, "evaluating latest")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "600/s" in said[0]
    assert said[2].endswith("evaluating latest")
