"""The peer that calls: a protobuf message with the arrays' raw bytes over a gRPC stream, as LeRobot does it.

``python -m ... serve JSON`` receives, ``send JSON`` sends. By default the sender streams, and the receiver answers each
``EVERY`` steps with the number that it has, where ``durable`` is set after a file with them was synced; with ``unary``
each step is a call of its own, of which ``IN_FLIGHT`` are under way.
"""

import contextlib
import queue
import sys
import threading
import time
from collections import deque
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.bench.linkbench.clock import cpu_ns, options, say
from tests.bench.linkbench.load import Load
from tests.bench.linkbench.peer_store import Journal, Ring

EVERY = 16
IN_FLIGHT = 8
DURABLE_EVERY = 64
SYNC_S = 0.1
PATIENCE_S = 120.0
METHOD = "/bench.Link/Stream"
UNARY = "/bench.Link/Put"
WIDE = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
KIND = descriptor_pb2.FieldDescriptorProto
FIELDS = (
    ("seq", KIND.TYPE_UINT64, KIND.LABEL_OPTIONAL),
    ("rgb", KIND.TYPE_BYTES, KIND.LABEL_OPTIONAL),
    ("depth", KIND.TYPE_BYTES, KIND.LABEL_OPTIONAL),
    ("state", KIND.TYPE_FLOAT, KIND.LABEL_REPEATED),
    ("action", KIND.TYPE_FLOAT, KIND.LABEL_REPEATED),
    ("reward", KIND.TYPE_FLOAT, KIND.LABEL_OPTIONAL),
    ("done", KIND.TYPE_BOOL, KIND.LABEL_OPTIONAL),
)


def step_class():
    """Return the class of the message, as protoc would make it."""
    file = descriptor_pb2.FileDescriptorProto(name="bench_link.proto", package="bench", syntax="proto3")
    message = file.message_type.add(name="Step")
    for number, (name, kind, label) in enumerate(FIELDS, start=1):
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Step"))


STEP = step_class()


class Server:
    """One stream's receiver."""

    def __init__(self, told):
        self.rows, self.columns = told["shape"]
        self.depth_type = np.dtype(told["depth"])
        self.ring = Ring(told["shape"])
        self.lock = threading.Lock()
        self.journal = Journal(told["folder"]) if told["durable"] else None

    def stream(self, requests, _context):
        """Take a stream in, and say now and then how many steps it had."""
        if self.journal is None:
            for count, step in enumerate(requests, start=1):
                self.put(step)
                if count % EVERY == 0:
                    yield count.to_bytes(8, "little")
            return
        for count, raw in enumerate(requests, start=1):
            self.put(STEP.FromString(raw))
            self.journal.append(raw)
            if count % DURABLE_EVERY == 0 or self.journal.is_due(SYNC_S):
                self.journal.sync()
                yield count.to_bytes(8, "little")

    def call(self, step, _context):
        """Take one step in."""
        with self.lock:
            self.put(step)
        return b""

    def put(self, step):
        rgb = np.frombuffer(step.rgb, np.uint8).reshape(self.rows, self.columns, 3)
        depth = np.frombuffer(step.depth, self.depth_type).reshape(self.rows, self.columns)
        if self.depth_type.kind == "f":
            depth = depth * 1000.0
        self.ring.put(rgb, depth, step.state, step.action, step.reward)


def serve(told):
    """Answer until stdin closes."""
    state = Server(told)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2), options=WIDE)
    decode = None if told["durable"] else STEP.FromString
    handler = grpc.stream_stream_rpc_method_handler(state.stream, decode, None)
    handlers = {"Stream": handler, "Put": grpc.unary_unary_rpc_method_handler(state.call, STEP.FromString, None)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Link", handlers),))
    if told["secure"]:
        chain = [Path(path).read_bytes() for path in told["certificate"]]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(chain[0], chain[1])]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(port=port)
    sys.stdin.read()
    server.stop(0)
    say(consumed=state.ring.count)


def message(load, index, depth_type):
    """Return a step's message as bytes."""
    rgb, depth = load.images(index).values()
    depth = depth.view(np.uint16)
    if depth_type.kind == "f":
        depth = depth.astype(depth_type) * np.float32(1e-3)
    return STEP(
        seq=index,
        rgb=rgb.tobytes(),
        depth=depth.tobytes(),
        state=load.numbers(10),
        action=load.numbers(2),
        reward=0.5,
    ).SerializeToString()


def streaming(channel, messages):
    """Return a function that streams so many more steps and returns once all are answered for."""
    budget, room, acked = queue.Queue(), threading.Semaphore(512), queue.Queue()

    def outgoing():
        index = 0
        while (steps := budget.get()) is not None:
            for _ in range(steps):
                room.acquire()
                yield messages[index % len(messages)]
                index += 1

    def listen(answers):
        have = 0
        with contextlib.suppress(grpc.RpcError):  # the channel is closed in the end
            for answer in answers:
                count = int.from_bytes(answer, "little")
                room.release(count - have)
                have = count
                acked.put(have)

    call = channel.stream_stream(METHOD, None, None)(outgoing())
    threading.Thread(target=listen, args=(call,), daemon=True).start()

    target = 0

    def push(steps):
        nonlocal target
        target += steps
        budget.put(steps)
        while acked.get(timeout=PATIENCE_S) < target:
            pass

    return push


def calling(channel, messages):
    """Return a function that makes a call for each of so many steps, a few of them under way at a time."""
    call = channel.unary_unary(UNARY, None, None)

    def push(steps):
        under_way = deque()
        for index in range(steps):
            if len(under_way) >= IN_FLIGHT:
                under_way.popleft().result(PATIENCE_S)
            under_way.append(call.future(messages[index % len(messages)]))
        for each in under_way:
            each.result(PATIENCE_S)

    return push


def send(told):
    """Stream messages that were made before, and measure the server's CPU time a step."""
    load = Load(told["frames"])
    messages = [message(load, index, np.dtype(told["depth"])) for index in range(len(load))]
    if told["secure"]:
        trust = grpc.ssl_channel_credentials(Path(told["certificate"][1]).read_bytes())
        name = (("grpc.ssl_target_name_override", "localhost"),)
        channel = grpc.secure_channel(f"127.0.0.1:{told['port']}", trust, options=[*WIDE, *name])
    else:
        channel = grpc.insecure_channel(f"127.0.0.1:{told['port']}", options=WIDE)
    push = calling(channel, messages) if told.get("unary") else streaming(channel, messages)
    push(told["warm"])
    before, began = cpu_ns(told["pid"]), time.monotonic()
    push(told["steps"])
    say(
        cpu_us=(cpu_ns(told["pid"]) - before) / 1e3 / told["steps"],
        wall_us=(time.monotonic() - began) * 1e6 / told["steps"],
        bytes=sum(map(len, messages)) / len(messages),
    )
    channel.close()


if __name__ == "__main__":
    verb = sys.argv.pop(1)
    {"serve": serve, "send": send}[verb](options())
