"""What both doctors look at: each judgement with what it measured, and nothing hidden by what fails."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import threading

import pytest

from protocol.node.checkup import machine
from protocol.node.checkup.address import REMEDIES, Reach, judge_reach, reach
from protocol.node.checkup.check import FAIL, NOTE, answer_of, gather, judge, note, render
from protocol.node.checkup.command import daemon_words, installed_words
from protocol.node.checkup.firewall import Firewall, is_dropping, judge_firewall, mentions
from protocol.node.checkup.listening import Listener, describe, listeners, parse_listener
from protocol.node.checkup.machine import CpuTimes, Requirement
from protocol.node.checkup.systemd import control_socket, daemon, unit


def only(checks):
    (check,) = checks
    return check


def by_name(checks):
    return {each.check: each for each in checks}


# -- a check and an answer


def test_a_hint_is_given_only_where_something_is_wrong():
    assert judge("disk", 5, "10", "free space", ok=True).hint == ""
    wrong = judge("disk", 5, "10", "free space", ok=False)
    assert (wrong.ok, wrong.hint, wrong.measured) == (False, "free space", "5")


def test_what_is_not_needed_is_a_note_and_does_not_make_anybody_ill():
    odd = judge("cpu", "slow", "fast", "buy another", ok=False, is_needed=False)
    assert (odd.ok, odd.state, odd.hint) == (True, NOTE, "buy another")
    assert answer_of([odd, note("npu", "none", "one")], is_running=True)["healthy"]


def test_a_check_that_breaks_is_told_with_its_place_and_hides_no_other():
    def broken():
        yield judge("first", 1, "1", "", ok=True)
        raise KeyError("colour")

    checks = gather("machine", broken, lambda: [judge("second", 2, "2", "", ok=True)])
    assert [(each.check, each.state) for each in checks] == [("first", "ok"), ("doctor", FAIL), ("second", "ok")]
    assert "KeyError: 'colour' (test_checkup.py:" in checks[1].measured
    assert {each.section for each in checks} == {"machine"}


def test_an_answer_says_which_checks_failed_and_people_see_why():
    checks = gather("link", lambda: [judge("port", "closed", "open", "open it", ok=False), note("clock", "?", "right")])
    answer = answer_of(checks, is_running=True)
    assert (answer["healthy"], answer["failed"], answer["is_running"]) == (False, ["port"], True)
    assert set(answer["checks"][0]) == {"section", "check", "ok", "state", "measured", "expected", "hint"}
    text = render(answer)
    assert text.splitlines() == [
        "link",
        "  FAIL  port: closed",
        "        expected: open",
        "        do: open it",
        "  note  clock: ? (expected: right)",
        "1 of 2 checks failed: port",
    ]
    assert render(answer_of(checks[1:], is_running=True)).endswith("healthy: 1 checks, 1 worth a look")


# -- the machine


@pytest.mark.parametrize(("version", "ok"), [((3, 9), False), ((3, 10), True), ((3, 13), True), ((3, 14), False)])
def test_the_versions_of_python_that_will_do(version, ok):
    assert only(machine.python((*version, 1))).ok is ok


def test_a_foreign_package_of_our_name_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"protocol": ["foreign"]})
    check = only(machine.modules())
    assert not check.ok
    assert "foreign" in check.measured
    assert "pip uninstall foreign" in check.hint


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("numpy>=2.0", ("", Requirement("numpy", "2.0"))),
        ("PyTurboJPEG<2,>=1.8", ("", Requirement("PyTurboJPEG", "1.8", "2"))),
        ('onnxruntime>=1.19; extra == "rover"', ("rover", Requirement("onnxruntime", "1.19"))),
        ("zstandard", ("", Requirement("zstandard"))),
        ('tomli>=2.0; python_version < "3.11"', None),
        ('lite2>=2.3; (sys_platform == "linux") and extra == "rknn"', None),
        ("name @ https://example.org/x.whl", None),
    ],
)
def test_requirements_are_read_from_the_metadata(line, parsed):
    assert machine.parse_requirement(line) == parsed


@pytest.mark.parametrize(
    ("requirement", "fault"),
    [
        (Requirement("pytest", "1.0"), ""),
        (Requirement("pytest", "999"), "is older than 999"),
        (Requirement("pytest", "", "2"), "is not below 2"),
        (Requirement("no-such-package-here"), "no-such-package-here is not installed"),
    ],
)
def test_packages_are_missing_too_old_or_too_new(requirement, fault):
    check = only(machine.packages({"rover": [requirement]}))
    assert check.ok is (fault == "")
    assert fault in check.measured
    assert fault == "" or check.hint == "pip install 'roverloop[rover]'"


def test_the_project_declares_what_it_needs():
    found = machine.requirements(["rover", "trainer"])
    assert {each.name for each in found["trainer"]} >= {"torch", "onnx"}
    assert "numpy" in {each.name for each in found[""]}
    assert machine.requirements([], "no-such-package-here") == {}
    assert all(check.ok for check in machine.packages(found))


@pytest.mark.parametrize(("kilobytes", "ok"), [(256 << 10, True), ((256 << 10) - 1, False)])
def test_memory_below_the_least_is_told(kilobytes, ok):
    assert only(machine.memory(f"MemTotal: 9 kB\nMemAvailable:  {kilobytes} kB\n")).ok is ok
    assert list(machine.memory("nothing")) == []


@pytest.mark.parametrize(("stolen", "ok"), [(50, True), (51, False), (0, True)])
def test_stolen_time_above_five_percent_spoils_every_time(stolen, ok):
    check = only(machine.stolen(CpuTimes(1000, 7), CpuTimes(2000, 7 + stolen)))
    assert check.ok is ok
    assert f"{stolen / 10:.1f} %" in check.measured
    assert only(machine.stolen(CpuTimes(5, 0), CpuTimes(5, 0))).ok


def test_the_first_line_of_proc_stat_is_read():
    assert machine.cpu_times("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n") == CpuTimes(36, 8)
    assert machine.cpu_times("cpu 1 2 3 4").stolen == 0
    assert only(machine.measure_stolen(is_needed=False)).check == "stolen time"


@pytest.mark.parametrize(("state", "words"), [(True, "kept right"), (False, "nothing keeps"), (None, "unknown")])
def test_a_clock_that_nothing_keeps_right_is_only_noted(state, words):
    check = only(machine.clock(is_synchronised=state))
    assert check.ok
    assert words in check.measured
    assert machine.is_clock_synchronised() in {True, False, None}


def test_a_folder_to_be_made_is_judged_by_what_is_above_it(tmp_path):
    checks = by_name(machine.folder("state dir", tmp_path / "new" / "deeper", "set state_dir"))
    assert checks["state dir"].ok
    assert checks["disk of state dir"].measured.endswith(f"MiB free at {tmp_path / 'new' / 'deeper'}")


def test_a_folder_of_somebody_else_and_a_file_in_its_place_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "not a folder" in only(machine.folder("state dir", tmp_path / "file", "set state_dir")).measured
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    check = only(machine.folder("state dir", tmp_path, "set state_dir"))
    assert not check.ok
    assert f"chown {machine.user()} {tmp_path}" in check.hint


@pytest.mark.parametrize(("free", "ok"), [(1 << 30, True), ((1 << 30) - 1, False)])
def test_a_full_disk_is_told(tmp_path, monkeypatch, free, ok):
    usage = type("Usage", (), {"free": free})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert by_name(machine.folder("state dir", tmp_path, "set it"))["disk of state dir"].ok is ok


def test_a_daemon_that_has_the_state_folder_is_noticed(tmp_path):
    import fcntl

    assert list(machine.lock("trainerd", tmp_path / "lock", tmp_path)) == []
    with (tmp_path / "lock").open("w") as held:
        assert only(machine.lock("trainerd", tmp_path / "lock", tmp_path)).ok
        fcntl.flock(held, fcntl.LOCK_EX)
        check = only(machine.lock("trainerd", tmp_path / "lock", tmp_path))
    assert not check.ok
    assert "trainerctl --control-socket" in check.hint


# -- an address


@pytest.fixture
def listener():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


def answering(made, words):
    def serve():
        connection, _ = made.accept()
        with connection:
            connection.sendall(words) if words else connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return f"tcp://127.0.0.1:{made.getsockname()[1]}"


def test_a_trainer_and_another_program_are_told_apart_by_their_first_byte(listener):
    assert reach(answering(listener, b"\xff\0\0")).outcome == "answers"
    assert reach(answering(listener, b"SSH-2.0")).outcome == "another program"
    assert reach(answering(listener, b""), 0.2).outcome == "silent"


def test_a_port_where_nobody_listens_refuses(listener):
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    assert reach(address).outcome == "refused"


@pytest.mark.parametrize(
    ("address", "outcome"),
    [("ipc:///tmp/x", "answers"), ("tcp://host", "no address"), ("tcp://127.0.0.1:99999", "no address")],
)
def test_what_is_no_tcp_address_is_not_tried(address, outcome):
    assert reach(address).outcome == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OSError(errno.EHOSTUNREACH, "No route to host"), "no route"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "no network"),
        (TimeoutError("timed out"), "timeout"),
        (socket.gaierror(-2, "Name or service not known"), "no name"),
    ],
)
def test_each_way_of_not_connecting_has_its_own_remedy(monkeypatch, error, outcome):
    def fail(*_):
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    found = reach("tcp://trainer:5555")
    assert found.outcome == outcome
    check = only(judge_reach("tcp://trainer:5555", found))
    assert not check.ok
    assert check.hint == REMEDIES[outcome].format(host="trainer", port="5555")
    assert len(set(REMEDIES.values())) == len(REMEDIES)


def test_an_answer_is_healthy():
    assert only(judge_reach("tcp://[fe80::1]:5555", Reach("answers"))).ok


# -- ports


def test_who_listens_is_found_with_its_process(listener):
    port = listener.getsockname()[1]
    (found,) = listeners(port)
    assert (found.host, found.port, found.pid) == ("127.0.0.1", port, os.getpid())
    assert f"127.0.0.1:{port} (pid {os.getpid()}: " in describe([found])
    assert "another user's" in describe([Listener("0.0.0.0", 5555)])


@pytest.mark.skipif(sys.byteorder != "little", reason="the lines are of a little-endian machine")
@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("0: 0100007F:15B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1", "127.0.0.1"),
        ("1: 00000000:15B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1", "0.0.0.0"),
        (f"2: {'0' * 32}:15B3 {'0' * 32}:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1", "::"),
        (f"3: 0000000000000000FFFF00000100007F:15B3 {'0' * 32}:0000 0A 0:0 00:0 0 0 0 77 1", "127.0.0.1"),
    ],
)
def test_a_line_of_proc_net_tcp_is_read(line, host):
    assert parse_listener(line) == (Listener(host, 5555), "77")


def test_a_connection_is_no_listener():
    line = "0: 0100007F:15B3 0100007F:9999 01 00000000:00000000 00:00000000 00000000 0 0 77 1"
    assert parse_listener(line) is None


# -- firewalls

NFT = """table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy %s;
\t\tct state vmap { established : accept, related : accept }
\t\ttcp dport { 22, 5555 } accept
\t\ttcp dport 6000-6010 counter packets 0 bytes 0 accept
\t\t%s
\t}
\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
"""
UFW = "Status: active\nDefault: deny (incoming), allow (outgoing)\n22/tcp  ALLOW IN  Anywhere\n5555/tcp  DENY IN  Any\n"
IPTABLES = "-P INPUT DROP\n-A INPUT -p tcp -m multiport --dports 22,5555:5560 -j ACCEPT\n-A INPUT --dport 70 -j DROP\n"


@pytest.mark.parametrize(
    ("firewall", "drops"),
    [
        (Firewall("nft", NFT % ("drop", "")), True),
        (Firewall("nft", NFT % ("accept", "counter packets 3 bytes 9 reject with icmpx admin-prohibited")), True),
        (Firewall("nft", NFT % ("accept", "iifname lo accept")), False),
        (Firewall("nft", ""), False),
        (Firewall("ufw", UFW), True),
        (Firewall("ufw", "Status: inactive\n"), False),
        (Firewall("iptables", IPTABLES), True),
        (Firewall("iptables", "-P INPUT ACCEPT\n"), False),
        (Firewall("iptables", "-P INPUT ACCEPT\n-A INPUT -j REJECT\n"), True),
    ],
)
def test_a_firewall_that_drops_what_nobody_allows_is_known(firewall, drops):
    assert is_dropping(firewall) is drops


@pytest.mark.parametrize(
    ("firewall", "ports", "strange"),
    [
        (Firewall("nft", NFT % ("drop", "")), (22, 5555, 6000, 6010), (5556, 6011)),
        (Firewall("ufw", UFW), (22,), (5555,)),
        (Firewall("iptables", IPTABLES), (22, 5555, 5560), (70, 5561)),
    ],
)
def test_the_ports_that_a_rule_lets_in(firewall, ports, strange):
    assert [mentions(firewall, port) for port in ports] == [True] * len(ports)
    assert [mentions(firewall, port) for port in strange] == [False] * len(strange)


def test_a_closed_port_is_told_with_the_command_that_opens_it():
    check = only(judge_firewall(Firewall("ufw", UFW), [5555, 22], is_needed=True))
    assert not check.ok
    assert "5555" in check.measured
    assert "sudo ufw allow 5555/tcp" in check.hint
    assert only(judge_firewall(Firewall("ufw", UFW), [5555], is_needed=False)).state == NOTE
    assert only(judge_firewall(Firewall("ufw", UFW), [22], is_needed=True)).ok


def test_rules_that_may_not_be_read_are_only_noted():
    check = only(judge_firewall(Firewall("", "", "nft: Operation not permitted"), [5555], is_needed=True))
    assert check.state == NOTE
    assert "not permitted" in check.measured
    assert "as root" in check.hint


# -- how a daemon is run

ACTIVE = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}


@pytest.mark.parametrize(
    ("facts", "is_running", "state", "word"),
    [
        (None, False, NOTE, "no systemd"),
        ({"LoadState": "not-found"}, False, NOTE, "not installed"),
        (ACTIVE, True, "ok", "active (running)"),
        ({**ACTIVE, "ActiveState": "inactive"}, False, FAIL, "inactive"),
        ({**ACTIVE, "ActiveState": "inactive"}, True, "ok", "inactive"),
        ({**ACTIVE, "ActiveState": "failed", "Result": "exit-code"}, False, FAIL, "exit-code"),
    ],
)
def test_a_unit_is_judged_by_what_systemd_says(facts, is_running, state, word):
    check = only(unit("roverd", facts, is_running=is_running))
    assert check.state == state
    assert word in check.measured


def test_restarts_of_a_unit_are_noted():
    checks = by_name(unit("roverd", {**ACTIVE, "NRestarts": "3"}, is_running=True))
    assert checks["restarts"].measured == "3 since it was started"


def test_the_control_socket_is_judged_by_its_file(tmp_path, monkeypatch):
    path = tmp_path / "control.sock"
    assert not only(control_socket(path)).ok
    path.write_text("")
    assert "something else" in only(control_socket(path)).measured
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        path.chmod(0o660)
        assert only(control_socket(path)).ok
        path.chmod(0o666)
        assert "0666" in only(control_socket(path)).measured
        path.chmod(0o660)
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert "usermod" in by_name(control_socket(path))["access"].hint


def test_a_daemon_that_does_not_run_or_hangs_is_told_with_its_remedy():
    stopped = only(daemon("roverd", "no daemon answers", "roverd --config /etc/roverd.toml"))
    assert "systemctl start roverd, or roverd --config /etc/roverd.toml" in stopped.hint
    assert "hangs" in only(daemon("roverd", "no answer", "roverd", TimeoutError())).hint
    assert "usermod -aG roverd" in only(daemon("roverd", "permission denied", "roverd", PermissionError())).hint


def test_the_settings_of_a_daemon_that_does_not_run_are_named_as_on_its_own_command_line(tmp_path):
    from argparse import Namespace

    given = Namespace(config=tmp_path / "a.toml", profile="demo", set=["a=1", "b=2"])
    assert daemon_words(given) == [
        "--config",
        str(tmp_path / "a.toml"),
        "--profile",
        "demo",
        *["--set", "a=1", "--set", "b=2"],
    ]
    assert daemon_words(Namespace(config=None, profile=None, set=[])) == []
    assert installed_words("roverd", tmp_path) == []
    (tmp_path / "roverd.toml").write_text("")
    assert installed_words("roverd", tmp_path) == ["--config", str(tmp_path / "roverd.toml")]
