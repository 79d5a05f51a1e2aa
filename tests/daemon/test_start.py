"""Starts that must not succeed say in one line what to do, and wrong settings are named all at once."""

from __future__ import annotations

import socket

import pytest

THREE_MISTAKES = {
    "trainerd": "[ppo]\nclip_epsilom = 0.2\ngama = 0.9\nminibatch = -1\n[link]\nping_interval_s = 1.0\n",
    "roverd": 'rover_idd = "x"\n[control]\nrate_hertz = 10\nmax_speed_mps = -1.0\n[link]\nping_s = 1.0\n',
}
NAMED = {
    "trainerd": ("ppo.clip_epsilom", "ppo.gama; did you mean ppo.gamma?", "ppo.minibatch must be at least 1"),
    "roverd": (
        "rover_idd; did you mean rover_id?",
        "control.rate_hertz; did you mean control.rate_hz?",
        "control.max_speed_mps must be at least 0",
    ),
}


def one_line(answer, status):
    assert answer.status == status, answer
    lines = [line for line in (answer.out + answer.err).splitlines() if not line.startswith("{")]
    assert len(lines) == 1, answer.out + answer.err
    assert "Traceback" not in answer.out + answer.err
    return lines[0]


@pytest.mark.parametrize("daemon", ["trainerd", "roverd"])
def test_three_mistakes_in_a_file_are_all_named_with_file_and_nearest_name_and_exit_2(site, daemon):
    file = site.folder / "wrong.toml"
    file.write_text(THREE_MISTAKES[daemon])
    answer = site.run(daemon, "--config", str(file))
    assert answer.status == 2
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert len(lines) == 3, answer.err
    for mistake in NAMED[daemon]:
        assert [line for line in lines if mistake in line and str(file) in line], mistake


@pytest.mark.parametrize("daemon", [pytest.param("trainerd", marks=pytest.mark.slow), "roverd"])
def test_mistakes_of_file_environment_and_command_line_are_named_together_with_their_source(site, daemon):
    file = site.folder / "wrong.toml"
    file.write_text("link = 3\n")
    prefix = daemon.upper()
    words = ("--config", str(file), "--set", "seed=many")
    answer = site.run(daemon, *words, env={f"{prefix}_LINK__DEAD_AFTER": "3"})
    assert answer.status == 2
    text = answer.err
    assert str(file) in text
    assert f"environment {prefix}_LINK__DEAD_AFTER: no option link.dead_after; did you mean link.dead_after_s?" in text
    assert "--set seed=many: seed must be a whole number" in text


def test_a_port_in_use_is_one_line_and_exit_1(site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line(site.run("trainerd", "--port", str(port)), 1)
    assert f"port {port}: in use" in line
    assert "--port" in line


def test_a_missing_plugin_is_one_line_that_names_the_nearest(site):
    common = ("--control-socket", "c.sock", "--state-dir", "state", "--rate", "0")
    for words in (("--set", "robot=syntethic"), ("--set", "robot=synthetic", "--task", "gaol")):
        line = one_line(site.run("roverd", *common, *words), 1)
        assert "did you mean synthetic?" in line or "did you mean goal?" in line
    weights = ("--set", "robot=synthetic", "--set", "reward.weights=progres=1")
    assert "did you mean progress?" in one_line(site.run("roverd", *common, *weights), 1)
    line = one_line(site.run("trainerd", "--port", "0", "--set", "network.encoder=colunm"), 1)
    assert "did you mean column?" in line


@pytest.mark.parametrize(
    ("daemon", "module", "extra", "words"),
    [
        ("roverd", "mujoco", "sim", ("--set", "robot=sim")),
        ("roverd", "onnxruntime", "rover", ("--set", "robot=synthetic")),
        ("trainerd", "torch", "trainer", ("--port", "0")),
        pytest.param("trainerd", "safetensors", "trainer", ("--port", "0"), marks=pytest.mark.slow),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(site, daemon, module, extra, words):
    blocker = site.folder / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Blind(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        is_missing = name.partition('.')[0] == {module!r}\n"
        "        return None if is_missing else super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Blind if each is PathFinder else each for each in sys.meta_path]\n"
    )
    common = ("--set", "control_socket=c.sock", "--state-dir", "state")
    line = one_line(site.run(daemon, *common, *words, env={"PYTHONPATH": str(blocker)}), 1)
    assert f"pip install 'roverloop[{extra}]'" in line
    assert module in line


def test_a_state_folder_that_cannot_be_made_is_one_line(site):
    (site.folder / "file").write_text("in the way")
    line = one_line(site.run("trainerd", "--port", "0", "--state-dir", "file/state"), 1)
    assert "file" in line
    assert "--state-dir" in line
    answer = site.run("roverd", "--set", "robot=synthetic", "--state-dir", "file/state", "--control-socket", "c.sock")
    assert "file" in one_line(answer, 1)
