"""The rover's side without a robot: what encoding and spooling cost, and an outage that is replayed.

``python -m ... spool JSON`` measures, ``outage JSON`` sends.
"""

import asyncio
import sys
import time
from pathlib import Path

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import RecordEncoder, encode_record
from protocol.images import CODECS
from protocol.keys import KeyPair
from protocol.messages import Hello, Ping
from roverd.segment import BootFacts
from roverd.settings import LinkSettings, SpoolSettings
from roverd.spool import Spool
from roverd.uplink import Uplink
from tests.bench.linkbench.clock import Counter, options, say
from tests.bench.linkbench.load import EPISODE, Load

UNDER_WAY = 64
"""Records that stay unacknowledged while the spool's cost is measured, as on a good link."""
FEW = 32
"""Records between two looks at what the disk's thread and the connection did."""
BEHIND = 512
"""So many records may wait for the disk's thread."""
PATIENCE_S = 900.0


def open_spool(load, folder, **more):
    """Return the spool of a robot that does not wait."""
    specs = f"{load.robot.hash} {load.task.hash}"
    facts = BootFacts(rover_id=load.rover_id, boot_id=load.boot_id, boot=1, specs=specs, epoch_ns=time.time_ns())
    return Spool(SpoolSettings(), Path(folder) / "spool", facts, is_clocked=True, **more)


async def measure_spool(told):
    """Encode and append as fast as it goes; say the milliseconds of each repetition a step."""
    load = Load(told["frames"])
    encoder = RecordEncoder(load.robot)
    spool = open_spool(load, told["folder"])
    service = asyncio.create_task(spool.run())
    seq, cpu_ms, wall_ms = 0, [], []
    for repetition in range(told["repetitions"] + 1):  # the first one warms up
        cpu, wall = time.process_time(), 0.0
        for _ in range(told["steps"]):
            record = load.record(seq)
            began = time.perf_counter()
            spool.append(seq, encode_record(record, encoder.encode_images(load.images(seq))))
            wall += time.perf_counter() - began
            seq += 1
            if seq % FEW == 0:
                spool.acknowledge(load.boot_id, [(0, seq - 1 - UNDER_WAY)] if seq > UNDER_WAY else [])
                await asyncio.sleep(0)
        while spool.disk.unwritten:
            await asyncio.sleep(0.002)
        if repetition:
            cpu_ms.append(1e3 * (time.process_time() - cpu) / told["steps"])
            wall_ms.append(1e3 * wall / told["steps"])
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)
    say(cpu_ms=cpu_ms, wall_ms=wall_ms)


class Rover:
    """What roverd is of a robot without its control: records, a spool, and later a link."""

    def __init__(self, told):
        self.load = Load(told["frames"])
        self.load.encode_all()
        self.spool = open_spool(self.load, told["folder"])
        self.driven = 0
        settings = LinkSettings(trainer=f"tcp://127.0.0.1:{told['port']}", curve=bool(told["curve"]))
        secrets = {}
        if told["curve"]:
            secrets = {"keys": KeyPair(*told["keys"]), "trainer_public": told["server_key"]}
        self.uplink = Uplink(settings, self.spool, self.hello, self.ping, **secrets)

    @property
    def oldest(self):
        return self.spool.oldest if self.spool.oldest is not None else self.driven

    def hello(self):
        return Hello(
            rover_id=self.load.rover_id,
            boot_id=self.load.boot_id,
            oldest_version=OLDEST_PROTOCOL_VERSION,
            newest_version=PROTOCOL_VERSION,
            robot=self.load.robot.to_map(),
            task=self.load.task.to_map(),
            codecs=list(CODECS),
            software="bench",
            next_seq=self.driven,
            oldest_unacked=self.oldest,
            live_seq=self.spool.live_seq if self.uplink.is_linked else self.spool.choose_live(),
            epoch_ns=self.spool.facts.epoch_ns,
            backlog=self.spool.offer(),
        )

    def ping(self):
        return Ping(time.monotonic_ns(), oldest_unacked=self.oldest, status={"overflow": self.spool.overflow})

    async def drive(self, records):
        """Make records as fast as it goes, but let the disk's thread keep up, as it does with a robot of 10 Hz."""
        for _ in range(records):
            seq = self.driven
            if seq % (EPISODE + 1) == 0:
                self.spool.mark_episode(seq)
            self.uplink.send_record(seq, encode_record(self.load.record(seq), self.load.encoded(seq)))
            self.driven += 1
            if self.driven % FEW == 0:
                await asyncio.sleep(0)
                while self.spool.disk.unwritten > BEHIND:
                    await asyncio.sleep(0.001)


async def outage(told):
    """Drive for hours without a trainer, in fast time; then find one, and go on until everything is acknowledged."""
    rover = Rover(told)
    service = asyncio.create_task(rover.spool.run())
    began = time.monotonic()
    await rover.drive(told["records"])
    drove_s, on_disk = time.monotonic() - began, rover.spool.report()["disk_bytes"]
    linked = asyncio.create_task(rover.uplink.run())
    began, consumed = time.monotonic(), Counter(told["counter"])
    while (rover.spool.waiting or consumed.get() < rover.driven) and time.monotonic() - began < PATIENCE_S:
        await asyncio.sleep(0.02)
    replay_s = time.monotonic() - began
    for task in (linked, service):
        task.cancel()
    await asyncio.gather(linked, service, return_exceptions=True)
    say(
        records=rover.driven,
        waiting=rover.spool.waiting,
        overflow=rover.spool.overflow,
        resent=rover.spool.resent,
        disk_bytes=on_disk,
        drove_s=drove_s,
        replay_s=replay_s,
        refusal=rover.uplink.refusal,
    )


if __name__ == "__main__":
    verb = sys.argv.pop(1)
    asyncio.run({"spool": measure_spool, "outage": outage}[verb](options()))
