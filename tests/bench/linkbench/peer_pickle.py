"""The peer that pickles: a dict of arrays through pickle and lz4 over ZeroMQ REQ/REP, as agentlace does it.

``python -m ... serve JSON`` receives, ``send JSON`` sends. One request carries ``batch`` steps. Where ``durable`` is
set, the bytes of a request are appended to a file and synced before the reply.
"""

import pickle
import sys
import threading
import time

import lz4.frame
import numpy as np
import zmq

from tests.bench.linkbench.clock import cpu_ns, options, say
from tests.bench.linkbench.load import Load
from tests.bench.linkbench.peer_store import Journal, Ring


def pack(value):
    return lz4.frame.compress(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


def unpack(content):
    return pickle.loads(lz4.frame.decompress(content))


def transition(load, index, depth_type):
    """Return a step as a dict of arrays; depth of a float type is in metres."""
    rgb, depth = load.images(index).values()
    depth = depth.view(np.uint16)
    if depth_type.kind == "f":
        depth = depth.astype(depth_type) * np.float32(1e-3)
    return {
        "observations": {"rgb": rgb, "depth": depth, "state": load.numbers(10)},
        "actions": load.numbers(2),
        "rewards": np.float32(0.5),
        "masks": np.float32(1.0),
        "dones": False,
    }


def serve(told):
    """Answer requests until stdin closes."""
    ring = Ring(told["shape"])
    journal = Journal(told["folder"]) if told["durable"] else None
    sock = zmq.Context.instance().socket(zmq.REP)
    facts = {}
    if told["secure"]:
        public, secret = zmq.curve_keypair()
        sock.curve_server, sock.curve_publickey, sock.curve_secretkey = True, public, secret
        facts["server_key"] = public.decode()
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    say(port=port, **facts)
    threading.Thread(target=answer, args=(sock, ring, journal), daemon=True).start()
    sys.stdin.read()
    say(consumed=ring.count)


def answer(sock, ring, journal):
    while True:
        content = sock.recv()
        for step in unpack(content):
            seen = step["observations"]
            depth = seen["depth"] if seen["depth"].dtype.kind == "u" else seen["depth"] * 1000.0
            ring.put(seen["rgb"], depth, seen["state"], step["actions"], step["rewards"])
        if journal is not None:
            journal.append(content)
            journal.sync()
        sock.send(pack({"success": True}))


def send(told):
    """Send requests that were packed before, and measure the server's CPU time a step."""
    load, batch = Load(told["frames"]), told["batch"]
    sock = zmq.Context.instance().socket(zmq.REQ)
    if told["secure"]:
        sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
        sock.curve_serverkey = told["server_key"].encode()
    sock.connect(f"tcp://127.0.0.1:{told['port']}")
    kinds = max(1, len(load) // batch)
    depth_type = np.dtype(told["depth"])
    requests = [
        pack([transition(load, first * batch + at, depth_type) for at in range(batch)]) for first in range(kinds)
    ]

    def push(steps):
        for index in range(steps // batch):
            sock.send(requests[index % kinds])
            sock.recv()
        return steps // batch * batch

    push(told["warm"])
    before, began = cpu_ns(told["pid"]), time.monotonic()
    steps = push(told["steps"])
    say(
        cpu_us=(cpu_ns(told["pid"]) - before) / 1e3 / steps,
        wall_us=(time.monotonic() - began) * 1e6 / steps,
        bytes=sum(map(len, requests)) / (kinds * batch),
    )


if __name__ == "__main__":
    verb = sys.argv.pop(1)
    {"serve": serve, "send": send}[verb](options())
