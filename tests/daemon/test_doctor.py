"""Doctor on both machines: silent where all is well, and where something is wrong it is named with what to do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.daemon.daemons import driving, free_port, wait_until
from tests.faults.mounts import mount, unmount

pytestmark = pytest.mark.slow

KEYS = {"section", "check", "ok", "state", "measured", "expected", "hint"}


def told(daemon, *words):
    """Return what the command line says as (exit status, checks by name)."""
    answer = daemon.ctl("doctor", "--json", *words)
    assert answer.out.count("\n") == 1, answer
    assert answer.status == (0 if answer.json["healthy"] else 1)
    return answer.status, checked(answer.json)


def asked(daemon):
    """Return what a running daemon says, without the start of a command line: the checks by name."""
    return checked(daemon.get("/doctor"))


def checked(document):
    failed = [each["check"] for each in document["checks"] if not each["ok"]]
    assert (document["failed"], document["healthy"]) == (failed, not failed)
    for each in document["checks"]:
        assert set(each) == KEYS
        assert each["measured"]
        assert each["ok"] or (each["expected"] and each["hint"]), each
    return {each["check"]: each for each in document["checks"]}


@pytest.fixture(scope="module")
def pair(shared_site, lone_begun):  # all three start at once
    trainer = shared_site.trainer({"train.frozen": True})  # no policy is replaced while it is looked at
    rover = shared_site.rover()
    driving(rover)
    return trainer, rover


@pytest.mark.parametrize(
    "ask",
    [asked, pytest.param(lambda daemon: told(daemon)[1], marks=pytest.mark.slow)],
    ids=["socket", "shell"],
)
def test_a_healthy_pair_has_nothing_to_mend(pair, ask):
    trainer, rover = pair
    for daemon, sections in (
        (rover, ["machine", "realtime", "sensors", "policy", "link", "storage", "plugins"]),
        (trainer, ["machine", "gpu", "storage", "link", "rovers", "policy", "plugins"]),
    ):
        checks = ask(daemon)
        if any(not each["ok"] for each in checks.values()):  # a machine that others use as well is slow for a moment
            checks = ask(daemon)
        assert all(each["ok"] for each in checks.values()), [each for each in checks.values() if not each["ok"]]
        assert list(dict.fromkeys(each["section"] for each in checks.values())) == sections
    assert "drives" in checks["policy of rover-1"]["measured"]
    assert str(trainer.pid) in checks["port"]["measured"]


@pytest.mark.slow
def test_people_read_one_line_a_check_and_a_verdict(pair):
    trainer, _ = pair
    out = trainer.ctl("doctor").out
    assert "  ok    rovers: rover-1 (expected: at least one connected)" in out
    assert "checks" in out.splitlines()[-1]
    assert "control " in trainer.ctl("rover", "list").out.splitlines()[1], "what the rover's kernel granted"


def test_an_emergency_stop_is_named_at_the_rover_until_it_is_cleared(pair):
    _, rover = pair
    rover.post("/e_stop", {"reason": "a button"})
    assert asked(rover)["emergency stop"]["measured"] == "latched: a button"
    rover.post("/clear")
    assert asked(rover)["emergency stop"]["ok"]


def test_a_revoked_rover_is_told_at_both_ends_what_to_do(pair):
    trainer, rover = pair
    trainer.post("/rovers/rover-1/revoke")
    wait_until(lambda: rover.get()["link"]["refusal"], what="the rover knows")
    checks = asked(rover)
    assert "does not know this rover's key" in checks["link"]["measured"]
    assert "roverctl pair" in checks["link"]["hint"]
    assert checks["port of the trainer"]["measured"].endswith("answers"), "the network is not to blame"
    wait_until(lambda: trainer.get()["refused_keys"], what="it tries again")
    checks = asked(trainer)
    assert "none connected" in checks["rovers"]["measured"]
    assert "revoked key" in checks["keys"]["measured"]


@pytest.fixture(scope="module")
def small_disk():
    """A file system of 24 MiB."""
    place = Path(tempfile.mkdtemp(prefix="rl-small-"))
    try:
        mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place))
    except OSError as error:
        place.rmdir()
        pytest.skip(f"no mounts here: {error}")
    try:
        yield place
    finally:
        unmount(place)
        place.rmdir()


@pytest.fixture(scope="module")
def lone_begun(shared_site, tmp_path_factory):
    address = f"tcp://127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("lone") / "state"
    rover = shared_site.rover({"link.trainer": address, "state_dir": folder}, name="lone")
    return rover, address


@pytest.fixture(scope="module")
def lone(lone_begun):
    """A rover that nobody answers."""
    rover, address = lone_begun
    wait_until(rover.get, what="roverd answers")
    return rover, address


def test_a_wrong_address_is_named_with_what_a_refused_connection_means(lone):
    rover, address = lone
    checks = asked(rover)
    assert f"{address}: refused" in checks["port of the trainer"]["measured"]
    assert "0.0.0.0" in checks["port of the trainer"]["hint"]
    assert not checks["link"]["ok"]
    assert checks["disk"]["ok"]


@pytest.mark.slow
def test_a_daemon_that_answers_on_another_socket_is_noticed_by_its_state_folder(lone):
    rover, _ = lone
    own, rover.socket = rover.socket, rover.socket.with_name("elsewhere.sock")
    status, checks = told(rover, "--set", f"state_dir={rover.state_dir}")
    rover.socket = own
    assert status == 1
    assert f"a roverd that runs has {rover.state_dir}" in checks["state folder"]["measured"]
    assert "--control-socket" in checks["state folder"]["hint"]


@pytest.mark.slow
def test_a_daemon_that_does_not_run_is_looked_at_from_outside_with_the_command_that_starts_it(lone):
    rover, address = lone
    assert rover.stop() == 0
    status, checks = told(rover, "--set", f"state_dir={rover.state_dir}", "--set", f"link.trainer={address}")
    assert status == 1
    assert "no daemon answers" in checks["daemon"]["measured"]
    assert "systemctl start roverd" in checks["daemon"]["hint"]
    assert f"state_dir={rover.state_dir}" in checks["daemon"]["hint"]
    assert checks["state folder"]["ok"], "nobody else has it"
    assert "refused" in checks["port of the trainer"]["measured"]
    assert {"python", "packages", "SCHED_FIFO", "npu driver", "disk", "selfcheck"} <= set(checks)


@pytest.mark.slow
def test_a_full_disk_is_named_with_the_setting_that_moves_the_folder(lone, small_disk):
    rover, _ = lone
    status, checks = told(rover, "--set", f"state_dir={small_disk / 'rover'}")
    assert status == 1
    assert "MiB free" in checks["disk"]["measured"]
    assert int(checks["disk"]["measured"].split()[0]) <= 24
    assert "state_dir" in checks["disk"]["hint"]
