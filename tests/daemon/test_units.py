"""The units under a real systemd: installed, started, stopped, killed, hung, refused, and found alive again.

The machine is a container booted by systemd-nspawn (tests/faults/machine.py). How fast they come back is measured by
``./dev bench units``; here the machine may be busy with other tests.
"""

from __future__ import annotations

import json
import re
import time
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from protocol.node.socket import ControlError
from tests.faults.machine import Machine, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.timeout(300)]

DAEMONS = ["roverd", "trainerd"]
PART = {"roverd": "uplink", "trainerd": "store"}
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        made.open()
    except OSError as error:
        pytest.skip(f"no machine can be booted here: {error}")
    try:
        made.install("rover", "trainer")
        made.give_controllers()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def _fresh(machine: Machine) -> Iterator[None]:
    """Begin each test with both daemons stopped, their sockets too, and the settings of a simulated rover."""
    yield
    for unit in ("trainerd.socket", *DAEMONS):
        machine.call("systemctl", "stop", unit)
        machine.call("systemctl", "reset-failed", unit)
    machine.configure()


def start(machine: Machine, daemon: str) -> None:
    machine.must("systemctl", "start", daemon)


def said(machine: Machine, daemon: str, *matches: str) -> list[dict[str, Any]]:
    """Return what the present start of a daemon wrote to the journal."""
    invocation = machine.show(daemon)["InvocationID"]
    return machine.journal(f"_SYSTEMD_INVOCATION_ID={invocation}", *matches)


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_installed_units_are_clean_and_locked_up(machine: Machine) -> None:
    units = ("roverd.service", "trainerd.service", "trainerd.socket")
    done = machine.call("systemd-analyze", "verify", *units)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for unit in units[:2]:
        assert machine.exposure(unit) <= 2.0


def test_installing_again_changes_nothing_and_keeps_changed_settings(machine: Machine) -> None:
    settings = machine.path("/etc/roverloop/roverd.toml")
    before = settings.read_text()
    settings.write_text(before.replace('rover_id = "rover-1"', 'rover_id = "mine"'))
    try:
        said = machine.install("rover", "trainer").partition("\nNext:")[0].splitlines()
        changed = [line for line in said if not line.startswith("unchanged")]
        assert changed == ["kept       /etc/roverloop/roverd.toml, which was changed here"]
        assert 'rover_id = "mine"' in settings.read_text()
    finally:
        settings.write_text(before)


def test_an_ordinary_user_installs_twice_into_a_folder(machine: Machine) -> None:
    machine.must("useradd", "--create-home", "someone")
    machine.lend("/home/someone/image/opt/roverloop")
    machine.must("chown", "-R", "someone:", "/home/someone")
    words = ("setpriv", "--reuid=someone", "--regid=someone", "--init-groups", "env", "HOME=/home/someone")
    words += ("PIP_NO_INDEX=1", "PIP_NO_BUILD_ISOLATION=0", "python3", "-B", "/src/dev", "install", "rover")
    first = machine.must(*words, "--root", "/home/someone/image")
    assert "wrote      /etc/roverloop/roverd.toml" in first
    again = machine.must(*words, "--root", "/home/someone/image").partition("\nNext")[0]
    assert {line.split()[0] for line in again.splitlines()} == {"unchanged"}
    script = machine.path("/home/someone/image/opt/roverloop/bin/roverd").read_text()
    assert script.startswith("#!/opt/roverloop/bin/python\n")
    done = machine.call(*words)
    assert done.returncode == 1
    assert "sudo ./dev install" in done.stderr
    assert "Traceback" not in done.stderr


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_starts_answers_and_stops_in_order(machine: Machine, daemon: str) -> None:
    start(machine, daemon)
    assert machine.is_active(daemon)
    status = json.loads(machine.call(f"{daemon.removesuffix('d')}ctl", "status", "--json").stdout)
    assert status["ok"]
    machine.must("systemctl", "stop", daemon)
    facts = machine.show(daemon)
    assert (facts["ActiveState"], facts["Result"], facts["ExecMainStatus"]) == ("inactive", "success", "0")
    assert facts["NRestarts"] == "0"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_log_lines_are_fields_of_the_journal(machine: Machine, daemon: str) -> None:
    start(machine, daemon)
    (entry,) = said(machine, daemon, "ROVERLOOP_EVENT=daemon.started")
    assert entry["SYSLOG_IDENTIFIER"] == daemon
    assert (entry["PRIORITY"], entry["_TRANSPORT"], entry["_SYSTEMD_UNIT"]) == ("6", "journal", f"{daemon}.service")
    assert entry["MESSAGE"].startswith("daemon.started ")
    key = {"roverd": "ROVERLOOP_BOOT_ID", "trainerd": "ROVERLOOP_RUN_ID"}[daemon]
    assert f"{key.removeprefix('ROVERLOOP_').lower()}={entry[key]}" in entry["MESSAGE"]


def test_a_flood_of_log_lines_reaches_the_journal_as_what_it_takes(machine: Machine) -> None:
    code = (
        "from protocol.node.log import configure, get_logger; configure('flood'); log = get_logger()\n"
        "for number in range(50_000): log.info('a.flooded', number=number)\n"
        "try: raise ValueError('one\\ntwo')\n"
        "except ValueError: log.exception('b.failed')\n"
    )
    machine.must("systemd-run", "--wait", "--unit=flood", "/opt/roverloop/bin/python", "-c", code)
    entries = machine.journal("SYSLOG_IDENTIFIER=flood")
    flooded = [each for each in entries if each["ROVERLOOP_EVENT"] == "a.flooded"]
    assert 100 < len(flooded) < 500
    suppressed = sum(json.loads(each.get("ROVERLOOP_SUPPRESSED", "{}")).get("a.flooded", 0) for each in entries)
    assert len(flooded) + suppressed == 50_000
    assert entries[-1]["ROVERLOOP_EXCEPTION"].endswith("ValueError: one\ntwo")
    assert entries[-1]["PRIORITY"] == "3"
    dropped = machine.journal("_SYSTEMD_UNIT=systemd-journald.service", "_COMM=systemd-journal")
    assert [each for each in dropped if "Suppressed" in each["MESSAGE"]] == []


@pytest.mark.parametrize("how", ["KILL", "STOP", "USR2", "USR1"], ids=["killed", "stopped", "loop hangs", "part hangs"])
@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_that_dies_or_hangs_is_started_again(machine: Machine, daemon: str, how: str) -> None:
    machine.sabotage(PART[daemon])
    start(machine, daemon)
    machine.settle(daemon)
    began = time.time()
    seconds = machine.back_after(daemon, how, PATIENCE_S)
    print(f"{daemon} back {seconds:.2f} s after {how}")
    assert machine.show(daemon)["NRestarts"] == "1"
    since = [f"--since=@{began:.0f}", f"--unit={daemon}"]
    text = "\n".join(str(each["MESSAGE"]) for each in machine.journal(*since))
    if how != "KILL":
        assert "Fatal Python error: Aborted" in text, "no trace of where it hung"
    if how == "USR2":
        assert "in hang" in text
    if how == "USR1":
        (tripped,) = machine.journal(*since, "ROVERLOOP_EVENT=watchdog.tripped")
        assert json.loads(tripped["ROVERLOOP_PARTS"]) == [PART[daemon]]


def test_a_daemon_whose_service_failed_is_started_again(machine: Machine) -> None:
    start(machine, "roverd")
    before = machine.pid("roverd")

    def is_another() -> bool:
        """Kill control and its spare until roverd gives up; it may have started another spare meanwhile."""
        if machine.pid("roverd") == before and (controls := machine.pids_of("roverd.control.process")):
            machine.call("sh", "-c", f"kill -KILL {' '.join(map(str, controls))}")
        return machine.pid("roverd") not in {0, before}

    machine.wait(is_another, PATIENCE_S, what="another roverd")
    machine.wait(lambda: machine.is_active("roverd"), PATIENCE_S, what="roverd is up")
    assert machine.show("roverd")["NRestarts"] == "1"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_crash_loop_goes_on_ever_slower_and_ends_when_the_cause_does(machine: Machine, daemon: str) -> None:
    cause = {"roverd": "ROVERD_ROBOT=synthetik", "trainerd": "TRAINERD_NETWORK__ENCODER=colunm"}[daemon]
    machine.configure(**{daemon: cause})
    machine.must("systemctl", "start", "--no-block", "trainerd.socket", daemon)
    machine.wait(lambda: int(machine.show(daemon)["NRestarts"]) >= 6, 100.0, what="six starts that fail")
    facts = machine.show(daemon)
    assert facts["ActiveState"] == "activating"
    waits = [
        float(each["ROVERLOOP_SECONDS"])
        for each in machine.journal("--unit=" + daemon, "ROVERLOOP_EVENT=start.held_back")
    ]
    assert waits[:3] == [0.5, 1.0, 2.0]
    if daemon == "trainerd":
        assert machine.is_active("trainerd.socket")
    machine.configure()
    machine.wait(lambda: machine.is_active(daemon), 60.0, what=f"{daemon} runs without any help")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_wrong_settings_are_named_once_and_not_tried_again(machine: Machine, daemon: str) -> None:
    machine.configure(**{daemon: f"{daemon.upper()}_LOG_LEVEL=loud"})
    machine.call("systemctl", "start", daemon)
    machine.wait(lambda: machine.show(daemon)["ActiveState"] == "failed", PATIENCE_S, what="it gave up")
    time.sleep(1.0)
    facts = machine.show(daemon)
    assert (facts["ActiveState"], facts["ExecMainStatus"], facts["NRestarts"]) == ("failed", "2", "0")
    lines = [str(each["MESSAGE"]) for each in said(machine, daemon, f"_SYSTEMD_UNIT={daemon}.service")]
    assert [line for line in lines if "log_level" in line and "loud" in line], lines
    machine.configure()
    start(machine, daemon)


def test_what_a_daemon_leaves_running_and_writable(machine: Machine) -> None:
    start(machine, "roverd")
    enter = ("nsenter", "-t", str(machine.pid("roverd")), "-m", "--")
    for path in ("/opt/roverloop/x", "/etc/roverloop/x", "/usr/x", "/srv/x"):
        assert machine.call(*enter, "touch", path).returncode, f"{path} can be written"
    assert machine.call(*enter, "touch", "/var/lib/roverd/x").returncode == 0
    assert machine.must(*enter, "ls", "/home") == ""
    assert re.search(r"^CapBnd:\s+0+$", machine.path(f"/proc/{machine.pid('roverd')}/status").read_text(), re.MULTILINE)
    machine.must("systemctl", "stop", "roverd")
    assert machine.pids_of("roverd.") == []


# -- the socket ----------------------------------------------------------------------------------------------------


def test_a_call_starts_trainerd_and_a_stop_is_final(machine: Machine) -> None:
    start(machine, "trainerd.socket")
    assert not machine.is_active("trainerd")
    assert machine.client("trainerd").get("/status")["ok"]
    machine.wait(lambda: machine.is_active("trainerd"), PATIENCE_S, what="trainerd is up")
    machine.must("systemctl", "restart", "trainerd")
    assert machine.is_active("trainerd.socket")
    machine.must("systemctl", "stop", "trainerd")
    machine.wait(lambda: not machine.is_active("trainerd.socket"), PATIENCE_S, what="the socket stopped too")
    with pytest.raises(ControlError):
        machine.client("trainerd").get("/status")
    start(machine, "trainerd")
    assert machine.is_active("trainerd.socket")


def test_a_call_during_a_crash_is_answered_on_the_same_socket(machine: Machine) -> None:
    start(machine, "trainerd")
    path = machine.path("/run/trainerd/control.sock")
    inode = path.stat().st_ino
    answers: list[Any] = []
    machine.break_down("trainerd", "KILL")
    answers.append(machine.client("trainerd").get("/status")["ok"])  # none is there
    machine.wait(lambda: machine.is_active("trainerd"), PATIENCE_S, what="trainerd is up")
    machine.break_down("trainerd", "STOP")
    waiting = Thread(target=lambda: answers.append(machine.client("trainerd").get("/status")["ok"]))
    waiting.start()  # one is there that never answers
    time.sleep(0.3)
    machine.break_down("trainerd", "KILL")
    waiting.join(PATIENCE_S)
    assert answers == [True, True]
    assert path.stat().st_ino == inode


def test_who_calls_a_trainerd_with_wrong_settings_hears_what_is_wrong_and_once(machine: Machine) -> None:
    machine.configure(trainerd="TRAINERD_PPO__GAMA=1")
    start(machine, "trainerd.socket")
    done = machine.call("trainerctl", "status")
    assert done.returncode == 1
    assert "no option ppo.gama; did you mean ppo.gamma?" in done.stderr
    machine.wait(lambda: machine.show("trainerd")["ActiveState"] == "failed", PATIENCE_S, what="it gave up")
    tried = machine.show("trainerd")["InvocationID"]
    time.sleep(4.0)
    facts = machine.show("trainerd")
    assert (facts["ActiveState"], facts["InvocationID"]) == ("failed", tried), "an answered call started it again"
    assert machine.is_active("trainerd.socket")
    machine.configure()
    assert machine.call("trainerctl", "status").returncode == 0


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_socket_is_for_members_of_the_group_and_the_audit_log_knows_them(machine: Machine, daemon: str) -> None:
    start(machine, daemon)
    tool = f"{daemon.removesuffix('d')}ctl"
    stranger = machine.call("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", tool, "status")
    assert stranger.returncode == 1
    assert f"members of group {daemon} may" in stranger.stderr
    gid = machine.must("getent", "group", daemon).split(":")[2]
    member = ("setpriv", "--reuid=4321", "--regid=4321", f"--groups={gid}", tool)
    assert json.loads(machine.call(*member, "status", "--json").stdout)["ok"]
    command = {"roverd": ("clear",), "trainerd": ("train", "pause")}[daemon]
    machine.must(*member, *command)
    lines = machine.path(f"/var/lib/{daemon}/audit.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["uid"] == 4321


# -- the robot -----------------------------------------------------------------------------------------------------


def test_the_wheels_are_told_to_stop_before_systemd_ends_control(machine: Machine) -> None:
    board = machine.board()
    for how in ("KILL", "KILL", "STOP", "USR2"):
        machine.sabotage("uplink")
        machine.drive_in_circles()
        machine.wait(board.is_moving, PATIENCE_S, what="the motors turn")
        began_s = time.monotonic()
        before = machine.break_down("roverd", how)
        machine.wait(lambda: not board.is_moving(), PATIENCE_S, what=f"the motors stand after {how}")
        stopped = board.last()
        assert stopped["cause"] == "command", f"{how}: only the motors' own dead-man timer stopped them"
        print(f"stood {1e3 * (stopped['time_s'] - began_s):.0f} ms after {how}")
        machine.wait(lambda before=before: machine.pid("roverd") not in {0, before}, PATIENCE_S, what="another roverd")
        machine.wait(lambda: machine.is_active("roverd"), PATIENCE_S, what="roverd is up")


def test_a_control_and_a_spare_that_both_hang_are_noticed_by_roverd(machine: Machine) -> None:
    board = machine.board()
    machine.drive_in_circles()
    machine.wait(board.is_moving, PATIENCE_S, what="the motors turn")
    before, began = machine.pid("roverd"), time.time()
    machine.kill(*machine.pids_of("roverd.control.process"), how="STOP")
    machine.wait(lambda: machine.pid("roverd") not in {0, before}, PATIENCE_S, what="another roverd")
    machine.wait(lambda: machine.is_active("roverd"), PATIENCE_S, what="roverd is up")
    (tripped,) = machine.journal(f"--since=@{began:.0f}", "--unit=roverd", "ROVERLOOP_EVENT=watchdog.tripped")
    assert json.loads(tripped["ROVERLOOP_PARTS"]) == ["drive"]
    assert len(machine.pids_of("roverd.control.process")) == 2, "stopped processes were left behind"


def test_an_ordinary_user_gets_real_time_priority_from_the_unit(machine: Machine) -> None:
    if not machine.may_raise_limits:
        pytest.skip("this machine has no CAP_SYS_RESOURCE, so its systemd cannot grant LimitRTPRIO=")
    start(machine, "roverd")
    granted = machine.client("roverd").get("/status")["control"]["realtime"]["control"]
    if not granted["fifo"] and "CONFIG_RT_GROUP_SCHED" in granted["reason"]:
        pytest.skip(granted["reason"])
    assert (granted["fifo"], granted["mlockall"]) == (True, True)
