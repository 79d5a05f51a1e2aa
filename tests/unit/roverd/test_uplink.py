"""The link as the rover sees it: who is let in, what is said when not, and which records go when."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from protocol import messages
from protocol.node.config import ConfigError, Layer, load
from roverd import uplink as module
from roverd.segment import BootFacts
from roverd.settings import LinkSettings, Settings, SpoolSettings
from roverd.spool import Spool
from tests.unit.roverd.spools import FailingFiles
from tests.unit.roverd.trainers import BOOT, Rover, Trainer, key_pair, record, until

HERE, THERE = key_pair(), key_pair()
KEYS = {"keys": HERE, "trainer_public": THERE.public}


@pytest.fixture
def tmp_path():
    """Give a folder in memory: what a disk's sync costs is not looked at here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:  # noqa: PTH112
        yield Path(folder)


@pytest.fixture(autouse=True)
def _short_stops(monkeypatch):
    monkeypatch.setattr(module, "LAST_ACKS_S", 0.2)


@pytest.fixture
def logged(monkeypatch):
    lines = []
    for level in ("info", "warning", "error"):

        def note(event, level=level, **facts):
            lines.append((level, event, facts))

        monkeypatch.setattr(f"roverd.uplink.log.{level}", note, raising=False)
    return lines


def events(lines, name):
    return [(level, facts) for level, event, facts in lines if event == name]


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_a_paired_rover_is_linked_and_its_records_are_acknowledged(tmp_path) -> None:
    async with Trainer(THERE, allowed={HERE.public}) as trainer, Rover(tmp_path, trainer.address, **KEYS) as rover:
        rover.drive(20)
        await until(lambda: rover.uplink.counts["acknowledged"] == 20)
        assert trainer.seqs() == list(range(20))
        assert len(rover.spool) == 0
        assert all(each.startswith(b"\0") for each in trainer.identities), "a routing id was set"


async def test_a_rover_whose_key_is_not_known_is_told_so_and_is_let_in_once_it_is(tmp_path, logged) -> None:
    async with (
        Trainer(THERE, allowed=set()) as trainer,
        Rover(tmp_path, trainer.address, dead_after_s=60.0, **KEYS) as rover,  # ZeroMQ alone would not try again
    ):
        rover.drive(3)
        await until(lambda: rover.uplink.counts["reconnects"] >= 3)
        assert rover.uplink.state == "refused"
        assert "does not know this rover's key: roverctl pair HOST" in rover.uplink.refusal
        assert len(events(logged, "link.refused")) == 1, "each reason is logged once"
        assert len(rover.spool) == 3
        trainer.allowed.add(HERE.public)
        await until(lambda: rover.uplink.counts["acknowledged"] == 3)
        assert rover.uplink.refusal == ""


@pytest.mark.parametrize("keys", [key_pair(), None], ids=["another key", "no curve"])
async def test_a_trainer_that_is_not_the_trusted_one_is_named_as_the_cause(tmp_path, keys, logged) -> None:
    allowed = {HERE.public} if keys else None
    async with Trainer(keys, allowed=allowed) as trainer, Rover(tmp_path, trainer.address, **KEYS) as rover:
        await until(lambda: rover.uplink.state == "refused")
        assert "has another key than the one that is trusted here, or is no trainerd" in rover.uplink.refusal
        assert "roverctl pair HOST" in rover.uplink.refusal
        await asyncio.sleep(0.2)
        assert len(events(logged, "link.refused")) == 1
        assert trainer.heard == []


async def test_a_rover_without_curve_is_not_linked_to_a_trainer_that_wants_it(tmp_path) -> None:
    async with Trainer(THERE, allowed={HERE.public}) as trainer, Rover(tmp_path, trainer.address) as rover:
        await until(lambda: rover.uplink.state == "refused")
        assert "leave link.curve on" in rover.uplink.refusal


async def test_an_unpaired_rover_keeps_its_records_and_is_linked_when_it_is_paired(tmp_path, logged) -> None:
    async with (
        Trainer(THERE, allowed={HERE.public}) as trainer,
        Rover(tmp_path, trainer.address, keys=HERE) as rover,
    ):
        rover.drive(4)
        await until(lambda: rover.uplink.state == "unpaired")
        assert rover.uplink.refusal.startswith("not paired: run `roverctl pair HOST`")
        rover.uplink.rekey(HERE, THERE.public)
        await until(lambda: rover.uplink.counts["acknowledged"] == 4)
        assert (rover.uplink.state, rover.uplink.refusal) == ("linked", "")
        assert len(events(logged, "link.unpaired")) == 1


async def test_new_keys_make_a_live_link_anew(tmp_path) -> None:
    async with Trainer(THERE, allowed={HERE.public}) as trainer, Rover(tmp_path, trainer.address, **KEYS) as rover:
        await rover.linked()
        rover.uplink.rekey(key_pair(), THERE.public)
        await until(lambda: rover.uplink.state == "refused")


@pytest.mark.parametrize("trainer", ["tcp://10.0.0.1:5555", "tcp://127.evil.org:5555", "tcp://localhost.org:1"])
def test_an_open_link_to_another_machine_is_a_mistake(trainer) -> None:
    layer = Layer("test", {"link": {"curve": False, "trainer": trainer}})
    with pytest.raises(ConfigError, match=r"leave link\.curve on and run roverctl pair HOST"):
        load(Settings, layers=[layer], env_prefix="X_", environ={})


@pytest.mark.parametrize("trainer", ["", "tcp://127.0.0.1:5", "tcp://localhost:5", "tcp://[::1]:5", "ipc:///run/x"])
def test_an_open_link_within_the_machine_is_allowed(trainer) -> None:
    assert LinkSettings(curve=False, trainer=trainer).trainer == trainer


# -- records -------------------------------------------------------------------------------------------------------


async def test_a_second_welcome_sends_nothing_again(tmp_path) -> None:
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        trainer.acknowledges = False
        rover.drive(5)
        await until(lambda: len(trainer.records) == 5)
        trainer.say(messages.Welcome(1, "trainerd", "run", 64, BOOT, [[0, 1]]))
        await until(lambda: len(rover.spool) == 3)
        await asyncio.sleep(0.1)
        assert trainer.seqs() == [0, 1, 2, 3, 4]


async def test_after_a_lost_link_only_what_the_trainer_lacks_is_sent_again(tmp_path, logged) -> None:
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        trainer.acknowledges = False
        rover.drive(6)
        await until(lambda: len(trainer.records) == 6)
        trainer.received[BOOT] = [[0, 1], [4, 4]]
        trainer.answers = False
        began = time.monotonic()
        await until(lambda: not rover.uplink.is_linked)
        assert time.monotonic() - began < 0.6 + 0.2, "a peer that fell silent is found in time"
        assert events(logged, "link.lost")[0][0] == "warning"
        trainer.answers = True
        await rover.linked()
        await until(lambda: len(trainer.records) == 9)
        assert trainer.seqs()[6:] == [2, 3, 5]
        assert rover.spool.resent == 3


async def test_a_goodbye_is_no_alarm(tmp_path, logged) -> None:
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        await rover.linked()
        trainer.say(messages.Goodbye("trainerd stops"))
        await until(lambda: events(logged, "link.lost"))
        assert [level for level, _ in events(logged, "link.lost")] == ["info"]
        await rover.linked()


async def test_what_is_asked_for_again_and_is_gone_is_answered(tmp_path) -> None:
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        rover.drive(4)
        await until(lambda: len(rover.spool) == 0)
        trainer.acknowledges = False
        rover.drive(2)
        await until(lambda: len(trainer.records) == 6)
        trainer.say(messages.Resend(BOOT, [[2, 4]]))
        await until(lambda: trainer.of(messages.Gone))
        (gone,) = trainer.of(messages.Gone)
        assert (gone.boot_id, gone.ranges) == (BOOT, [[2, 3]])
        assert trainer.seqs()[6:] == [4]
        trainer.say(messages.Resend("unknown", [[0, 5]]))
        await until(lambda: len(trainer.of(messages.Gone)) == 2)
        assert trainer.of(messages.Gone)[1].boot_id == "unknown"


def earlier(folder, boots: int, records: int) -> None:
    for boot in range(boots):
        facts = BootFacts("rover-1", f"{boot:016x}", boot, "specs", 7)
        spool = Spool(SpoolSettings(), folder, facts, files=FailingFiles())
        for seq in range(records):
            spool.append(seq, record(facts.boot_id, seq))
        spool.disk.finish()
        spool.close()


async def test_what_earlier_boots_left_is_sent_boot_after_boot_and_the_disk_is_empty_then(tmp_path) -> None:
    earlier(tmp_path, 3, 5)
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        trainer.received[f"{1:016x}"] = [[0, 3]]
        await until(lambda: rover.spool.waiting == 0)
        sent = [(each["boot_id"], each["seq"]) for each in trainer.records]
        assert sent == [(f"{0:016x}", n) for n in range(5)] + [(f"{1:016x}", 4)] + [(f"{2:016x}", n) for n in range(5)]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


async def test_more_boots_than_one_hello_can_name_are_offered_in_turn(tmp_path) -> None:
    earlier(tmp_path, 36, 1)
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        await until(lambda: rover.spool.waiting == 0)
        assert all(len(hello.backlog) <= 32 for hello in trainer.of(messages.Hello))
        assert len(trainer.records) == 36
        assert rover.uplink.counts["reconnects"] == 0


async def test_a_boot_that_is_not_wanted_stays_on_disk(tmp_path) -> None:
    earlier(tmp_path, 1, 5)
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        trainer.wants = False
        rover.drive(3)
        await until(lambda: rover.uplink.counts["acknowledged"] == 3)
        await asyncio.sleep(0.1)
        assert (len(trainer.records), rover.spool.waiting) == (3, 5)


async def test_a_stop_waits_for_the_last_acknowledgements_and_says_goodbye(tmp_path) -> None:
    async with Trainer() as trainer:
        async with Rover(tmp_path, trainer.address) as rover:
            await rover.linked()
            rover.drive(5)
        await until(lambda: trainer.of(messages.Goodbye))
        assert rover.uplink.counts["acknowledged"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


async def test_a_stop_does_not_wait_for_a_trainer_that_is_not_there(tmp_path) -> None:
    async with Rover(tmp_path, "tcp://127.0.0.1:9") as rover:
        rover.drive(5)
        await asyncio.sleep(0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert len(list(tmp_path.glob("*/*.seg"))) == 1


# -- what is said of it --------------------------------------------------------------------------------------------


async def drive_until(rover, condition) -> None:
    end = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        rover.drive(1)
        await asyncio.sleep(0.02)


async def test_a_robot_that_drives_without_a_trainer_says_which_address_does_not_answer(
    tmp_path, monkeypatch, logged
) -> None:
    monkeypatch.setattr(module, "DEGRADED_S", 0.3)
    async with Rover(tmp_path, "tcp://127.0.0.1:9") as rover:
        began = time.monotonic()
        await drive_until(rover, lambda: rover.uplink.degraded)
        assert time.monotonic() - began < 1.0
        assert rover.uplink.degraded.startswith("no answer from tcp://127.0.0.1:9: wrong address")
        await asyncio.sleep(0.3)
        assert [level for level, _ in events(logged, "link.degraded")] == ["warning"]


async def test_something_that_is_no_trainer_at_the_address_is_named_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "DEGRADED_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with Rover(tmp_path, f"tcp://127.0.0.1:{other.getsockname()[1]}") as rover:
            await drive_until(rover, lambda: rover.uplink.degraded)
            assert "does not answer as a trainer" in rover.uplink.degraded


async def test_a_trainer_that_acknowledges_nothing_is_named_as_the_cause_until_it_does(
    tmp_path, monkeypatch, logged
) -> None:
    monkeypatch.setattr(module, "DEGRADED_S", 0.3)
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        trainer.acknowledges = False
        await drive_until(rover, lambda: rover.uplink.degraded)
        assert "acknowledges nothing" in rover.uplink.degraded
        trainer.acknowledge(BOOT, 0, rover.seq)
        await until(lambda: not rover.uplink.degraded)
        assert events(logged, "link.restored")


async def test_a_robot_that_rests_is_not_degraded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "DEGRADED_S", 0.2)
    async with Rover(tmp_path, "tcp://127.0.0.1:9") as rover:
        await asyncio.sleep(0.6)
        assert rover.uplink.degraded == ""


@pytest.mark.parametrize("address", ["tcp://*:5555", "ipc:///" + "x" * 200])
async def test_an_address_that_cannot_be_does_not_stop_the_daemon(tmp_path, address) -> None:
    async with Rover(tmp_path, address, keys=HERE, trainer_public=THERE.public) as rover:
        await until(lambda: rover.uplink.state == "refused")
        assert f"link.trainer {address}" in rover.uplink.refusal
        assert not rover.tasks[1].done()


async def test_nonsense_is_counted_and_the_link_goes_on(tmp_path) -> None:
    async with Trainer() as trainer, Rover(tmp_path, trainer.address) as rover:
        await rover.linked()
        trainer.router.send_multipart([trainer.identity, b"\xc1"])
        trainer.say(messages.Welcome(1, "t", "run", 64, BOOT, [], {"x": "nonsense"}))
        trainer.say(messages.Ack(BOOT, [[3, 1]], 64))
        await until(lambda: rover.uplink.counts["malformed"] == 3)
        assert rover.uplink.is_linked
