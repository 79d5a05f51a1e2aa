"""Simulated rovers speak the protocol, resend after a loss, and know what was acknowledged to them."""

from __future__ import annotations

import threading
import time

import pytest
import zmq

from protocol import PROTOCOL_VERSION
from protocol.framing import decode_record, record_kind, unpack
from protocol.messages import Ack, Welcome, encode
from tests.daemon.daemons import free_port
from tests.faults.fleet import ROBOT, TASK, Fleet, make_keys
from tests.faults.ledger import digest

NAMES = ("sim-0", "sim-1", "sim-2")
pytestmark = pytest.mark.component


class Trainer:
    """Store records in memory and acknowledge; ``forget`` drops records without a word."""

    def __init__(self, port, keys=None):
        self.port, self.keys = port, keys
        self.stored = {}
        self.drop = 0
        self.boots = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join(5.0)

    def _main(self):
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 0)
            if self.keys:
                router.setsockopt(zmq.CURVE_SERVER, 1)
                router.setsockopt(zmq.CURVE_SECRETKEY, self.keys[1])
            router.bind(f"tcp://127.0.0.1:{self.port}")
            while not self._stop.is_set():
                if router.poll(20):
                    identity, *frames = router.recv_multipart()
                    for reply in self._replies(identity, frames):
                        router.send_multipart([identity, *encode(reply)])

    def _replies(self, identity, frames):
        header = unpack(frames[0])
        if header["kind"] == "hello":
            self.boots[identity] = (header["rover_id"], header["boot_id"])
            yield Welcome(PROTOCOL_VERSION, "test", "run", 8, header["boot_id"])
        elif record_kind(header) and identity in self.boots:
            if self.drop:
                self.drop -= 1
                return
            decode_record(header, frames[1:], ROBOT, TASK)
            boot = self.boots[identity]
            self.stored.setdefault(boot, {})[header["seq"]] = digest(frames)
            yield Ack(header["boot_id"], [[header["seq"], header["seq"]]], 8)


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("is_encrypted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_fleet_drives_survives_a_restart_and_its_account_agrees_with_the_store(is_encrypted):
    port, pair = free_port(), zmq.curve_keypair()
    keys = {name: make_keys(pair[0].decode()) for name in NAMES} if is_encrypted else None
    with Fleet(f"tcp://127.0.0.1:{port}", NAMES, keys) as fleet:
        for rover in fleet.rovers:
            rover.rate_hz = 50.0
        with Trainer(port, pair if is_encrypted else None) as first:
            until(lambda: fleet.linked == 3)
            until(lambda: all(len(rover.acked) >= 60 for rover in fleet.rovers))
            fleet.stand()
            until(lambda: fleet.unacknowledged == 0)
        told = fleet.lost(first.stored)
        assert told["acked_lost"] == told["undetected_corruption"] == 0
        assert told["acked"] == sum(map(len, first.stored.values())) >= 180
        del first.stored[NAMES[0], fleet.rovers[0].boot_id][7]
        assert fleet.lost(first.stored)["acked_lost"] == 1
        assert fleet.counts()["welcomes"] == 3


def test_what_was_sent_and_not_acknowledged_comes_again_after_a_reconnect(monkeypatch):
    monkeypatch.setattr("tests.faults.fleet.DEAD_AFTER_S", 0.6)
    port = free_port()
    with Fleet(f"tcp://127.0.0.1:{port}", NAMES[:1]) as fleet:
        with Trainer(port) as first:
            first.drop = 5
            until(lambda: fleet.counts().get("sent", 0) >= 5)
        moment = time.monotonic()
        with Trainer(port) as second:
            until(lambda: fleet.back_since(moment) == 1)
            until(lambda: 0 in second.stored.get((NAMES[0], fleet.rovers[0].boot_id), {}))
        assert fleet.counts()["reconnects"] >= 1
