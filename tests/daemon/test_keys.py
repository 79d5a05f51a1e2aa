"""Only paired machines take part: a stranger is told so, a pair is made by a person's word, and revocation cuts."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import zmq

from protocol.keys import load_or_make
from protocol.messages import encode
from tests.daemon.daemons import driving, free_port, wait_until
from tests.daemon.strangers import hello


@pytest.fixture(scope="module")
def world(shared_site):
    port = free_port()
    trainer = shared_site.trainer({"link.pairing": True, "link.pairing_port": port})
    rover = shared_site.rover({"link.trainer_key": ""})
    wait_until(lambda: trainer.get()["is_ready"] and rover.get(), what="both daemons")
    assert trainer.get("/keys")["keys"] == [], "nobody is let in yet"
    return trainer, rover, port


@contextmanager
def pairing(rover, port):
    """Begin ``roverctl pair`` as a person would; give it with the code that it shows."""
    words = [sys.executable, "-m", "roverd.ctl", "--control-socket", str(rover.socket)]
    words += ["pair", "127.0.0.1", "--port", str(port), "--yes"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=rover.env) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if code := re.search(r"code (\d{3}-\d{3})", line):
                yield process, code[1]
                return
        raise AssertionError(f"no code: {''.join(lines)}")


def test_an_unpaired_rover_says_what_to_do_and_is_paired_by_its_code(world, record_figure):
    trainer, rover, port = world
    unpaired = rover.get()
    assert "roverctl pair" in unpaired["link"]["refusal"]
    assert not unpaired["health"]["ok"]
    with pairing(rover, port) as (process, code):
        pending = trainer.ctl("rover", "pending", "--json").json["pending"]
        assert [each["rover_id"] for each in pending] == ["rover-1"]
        assert code not in str(pending), "the code is read at the robot, or it proves nothing"
        wrong = f"{(int(code[:3]) + 1) % 1000:03}-{code[4:]}"
        assert trainer.ctl("rover", "confirm", wrong).status != 0
        confirmed = trainer.ctl("rover", "confirm", code)
        assert (confirmed.status, "paired rover-1" in confirmed.out) == (0, True)
        assert process.wait(30) == 0, process.stdout.read()
    began_s = time.monotonic()
    driving(rover)
    record_figure("paired_to_driving_s", time.monotonic() - began_s)
    wait_until(lambda: trainer.get()["steps"]["received"] > 0, what="steps")


def test_files_with_keys_are_private(world):
    trainer, rover, _ = world
    for daemon in (trainer, rover):
        path = daemon.state_dir / "keys" / "curve.json"
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert load_or_make(path).secret not in daemon.log_text()


@pytest.mark.parametrize("kind", ["plain", "unknown key", "another rover's name"])
def test_nobody_else_gets_in(world, kind):
    trainer, rover, _ = world
    driving(rover)
    before = trainer.get()
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        if kind != "plain":
            public, secret = zmq.curve_keypair()
            stranger.curve_publickey, stranger.curve_secretkey = public, secret
            stranger.curve_serverkey = load_or_make(trainer.state_dir / "keys" / "curve.json").public.encode()
        if kind == "another rover's name":
            trainer.post("/rovers/thief/keys", {"public": public.decode()})
        stranger.connect(f"tcp://127.0.0.1:{trainer.get()['port']}")
        stranger.send_multipart(encode(hello("rover-1", {}, {})))
        answered = stranger.poll(1500)
        if kind == "another rover's name":
            assert answered
            assert b"identity" in stranger.recv_multipart()[0]
        else:
            assert not answered, "a word was said to a stranger"
    after = trainer.get()
    if kind == "another rover's name":
        assert after["refused_hellos"]["identity"] > before["refused_hellos"].get("identity", 0)
    elif kind == "unknown key":
        assert after["refused_keys"] > before["refused_keys"]
    assert [row["rover_id"] for row in trainer.get("/rovers")["rovers"] if row["connected"]] == ["rover-1"]
    assert rover.get()["link"]["state"] == "linked"


def test_a_revoked_rover_is_cut_within_a_second_and_told(world, record_figure):
    trainer, rover, _ = world
    driving(rover)
    began_s = time.monotonic()
    assert trainer.ctl("rover", "revoke", "rover-1").status == 0
    wait_until(lambda: not trainer.get("/rovers")["rovers"][0]["connected"], 2, what="the cut")
    received = trainer.get()["steps"]["records"]
    record_figure("revoked_to_cut_s", time.monotonic() - began_s)  # with the time of starting trainerctl
    told = wait_until(
        lambda: "does not know" in (link := rover.get()["link"])["refusal"] and link, what="the rover knows"
    )
    assert told["state"] != "linked"
    assert "roverctl pair" in told["refusal"]
    wait_until(lambda: rover.events("link.refused"), what="its log says so")
    time.sleep(1.0)
    assert trainer.get()["steps"]["records"] == received
    assert trainer.ctl("rover", "revoke", "rover-1").status == 0, "again is fine"


@pytest.mark.slow
def test_a_rover_that_is_let_in_again_goes_on_without_a_loss(world):
    trainer, rover, port = world
    with pairing(rover, port) as (process, code):
        assert trainer.ctl("rover", "confirm", code).status != 0, "a revoked key is not let in by habit"
        assert trainer.ctl("rover", "confirm", code, "--again").status == 0
        assert process.wait(30) == 0, process.stdout.read()
    before = trainer.get()["steps"]["records"]
    wait_until(lambda: trainer.get()["steps"]["records"] > before + 50, what="steps flow again")
    steps = trainer.get()["steps"]
    assert (steps["lost"], steps["malformed"]) == (0, 0)
