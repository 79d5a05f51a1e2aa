"""Ends of other protocol versions meet: they speak the common version, or each says who must be updated."""

from __future__ import annotations

import pytest

from protocol import PROTOCOL_VERSION
from protocol.framing import pack, record_kind, unpack
from protocol.messages import Ack, Hello, Refuse, Welcome, encode
from tests.daemon.daemons import free_port, wait_until
from tests.daemon.strangers import Stranger, hello
from tests.daemon.tap import Recorder
from tests.unit.protocol.samples import ROBOT, TASK

RANGES = {"older": (0, 0), "newer": (2, 2), "older_to_this": (0, 1), "this_to_newer": (1, 2), "swapped": (2, 1)}


@pytest.fixture(scope="module")
def trainer(shared_site):
    made = shared_site.trainer({"link.curve": False})
    wait_until(lambda: made.get()["port"], what="trainerd answers")
    return made


def greet(trainer, name, **more):
    """Say hello as a rover of these versions; return the answer."""
    message = hello(name.replace("_", "-"), ROBOT.to_map(), TASK.to_map())
    oldest, newest = RANGES[name]
    header = {**unpack(encode(message)[0]), "oldest_version": oldest, "newest_version": newest, **more}
    with Stranger(trainer.get()["port"]) as rover:
        rover.send(pack(header))
        return rover.answer("welcome", "refuse")


@pytest.mark.parametrize(("name", "who"), [("older", "the rover"), ("newer", "trainerd")])
def test_a_rover_without_a_common_version_is_told_who_must_be_updated(trainer, name, who):
    refused = trainer.get()["refused_hellos"].get("version", 0)
    answer = greet(trainer, name)
    assert (answer["kind"], answer["code"], answer["retry"]) == ("refuse", "version", False)
    assert answer["reason"].endswith(f"update {who}")
    assert trainer.get()["refused_hellos"]["version"] == refused + 1
    logged = trainer.events("rover.refused")
    assert any(f"update {who}" in each["reason"] for each in logged) or refused


@pytest.mark.parametrize("name", ["older_to_this", "this_to_newer"])
def test_a_rover_with_a_common_version_is_welcomed_with_it_whatever_else_it_says(trainer, name):
    answer = greet(trainer, name, lidar={"beams": 1081}, nothing=None)
    assert (answer["kind"], answer["version"]) == ("welcome", PROTOCOL_VERSION)


def test_a_range_of_versions_that_makes_no_sense_ends_nothing(trainer):
    greet(trainer, "swapped")
    assert trainer.get()["port"]
    assert "Traceback" not in trainer.log_text()


class Trainer(Recorder):
    """A trainer of another version: it answers each hello with what it is told to."""

    def __init__(self, port, answer):
        super().__init__(port)
        self._answer = answer

    def _reply(self, frames):
        header = self.stream.see(frames, "to_trainer")
        if header.get("kind") == Hello.kind:
            return self._answer(header)
        return Ack(header["boot_id"], [[header["seq"], header["seq"]]], 512) if record_kind(header) else None


@pytest.mark.parametrize("kind", ["welcome", "refuse"])
def test_a_rover_that_meets_a_trainer_of_another_version_says_so_and_keeps_its_steps(site, kind):
    sentence = "rover-1: it speaks protocol 1 to 1, this side 2 to 2: update the rover"

    def answer(header):
        if kind == "welcome":
            return Welcome(2, "trainerd", "run", 512, header["boot_id"])
        return Refuse("version", sentence)

    with Trainer(port := free_port(), answer) as newer:
        rover = site.rover({"link.curve": False}, port=port)

        def refused():
            status = rover.get()
            return status if status["link"]["state"] == "refused" else None

        status = wait_until(refused, 20, what="the rover says that it is refused")
        assert "protocol" in status["link"]["refusal"]
        assert "2" in status["link"]["refusal"]
        assert "update" in status["link"]["refusal"]
        assert not status["health"]["ok"]
        assert not newer.stream.headers, "records were sent in a language that the trainer does not speak"
        assert rover.events("link.refused")[0]["hint"]
        said = newer.stream.hellos["rover-1"]
        assert (said.oldest_version, said.newest_version) == (1, PROTOCOL_VERSION)
