"""Our end that sends: records as roverd makes them, over a ZeroMQ DEALER, within the credit that trainerd grants."""

import time

import zmq

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import encode_record, unpack
from protocol.images import CODECS
from protocol.messages import Ack, Hello, Ping, Pong, Refuse, Resend, Welcome, decode, encode
from tests.bench.linkbench.clock import Counter, cpu_ns, options, say
from tests.bench.linkbench.load import Load

PATIENCE_S = 20.0


class Sender:
    """A connection that was welcomed; ``send_to`` goes on to a number of records and waits until all are safe."""

    def __init__(self, load, told):
        self._load = load
        self._sock = zmq.Context.instance().socket(zmq.DEALER)
        self._sock.setsockopt(zmq.LINGER, 0)
        self._sock.setsockopt(zmq.SNDHWM, 4096)
        if told.get("server_key"):
            self._sock.curve_publickey, self._sock.curve_secretkey = (each.encode() for each in told["keys"])
            self._sock.curve_serverkey = told["server_key"].encode()
        self._sock.connect(f"tcp://127.0.0.1:{told['port']}")
        self._consumed = Counter(told["counter"])
        self._most = told.get("credit") or 4096
        self.credit = 0
        self.acked = 0
        self.sent = 0
        self.resends = 0
        self.bytes = 0
        self._greet()

    def _greet(self):
        load = self._load
        hello = Hello(
            rover_id=load.rover_id,
            boot_id=load.boot_id,
            oldest_version=OLDEST_PROTOCOL_VERSION,
            newest_version=PROTOCOL_VERSION,
            robot=load.robot.to_map(),
            task=load.task.to_map(),
            codecs=list(CODECS),
            software="bench",
            next_seq=0,
            oldest_unacked=0,
        )
        began = time.monotonic()
        while not self.credit:
            if time.monotonic() - began > PATIENCE_S:
                raise SystemExit("bench link: no welcome")
            self._sock.send_multipart(encode(hello))
            self._hear(250)

    def send_to(self, target):
        """Send records up to ``target`` and return once all are acknowledged and consumed."""
        began = time.monotonic()
        while self.acked < target or self._consumed.get() < target:
            while self.sent < target and self.sent - self.acked < min(self.credit, self._most):
                frames = encode_record(self._load.record(self.sent), self._load.encoded(self.sent))
                self._sock.send_multipart(frames)
                self.bytes += sum(map(len, frames))
                self.sent += 1
                if self.sent % 8 == 0:
                    self._hear(0)
            self._hear(5 if self.acked < target else 1)
            if time.monotonic() - began > PATIENCE_S + 0.02 * target:
                raise SystemExit(f"bench link: {self.acked} of {target} acknowledged, {self._consumed.get()} consumed")

    def _hear(self, wait_ms):
        if not self._sock.poll(wait_ms):
            return
        while self._sock.poll(0):
            frames = self._sock.recv_multipart()
            message = decode(unpack(frames[0]), frames[1:])
            if isinstance(message, Welcome):
                self.credit = message.credit
            elif isinstance(message, Ack):
                self.credit = message.credit
                self.acked = max([self.acked, *(last + 1 for first, last in message.ranges if first <= self.acked)])
            elif isinstance(message, Resend):
                self.resends += 1
            elif isinstance(message, Ping):
                self._sock.send_multipart(encode(Pong(message.sent_ns)))
            elif isinstance(message, Refuse) and message.code != "hello_first":
                raise SystemExit(f"bench link: refused: {message.reason}")


def main():
    told = options()
    load = Load(told["frames"])
    load.encode_all()
    sender = Sender(load, told)
    sender.send_to(told["warm"])
    before, bytes_before, began = cpu_ns(told["pid"]), sender.bytes, time.monotonic()
    sender.send_to(told["warm"] + told["steps"])
    say(
        cpu_us=(cpu_ns(told["pid"]) - before) / 1e3 / told["steps"],
        wall_us=(time.monotonic() - began) * 1e6 / told["steps"],
        bytes=(sender.bytes - bytes_before) / told["steps"],
        resends=sender.resends,
    )


if __name__ == "__main__":
    main()
