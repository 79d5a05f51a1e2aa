"""Packets of the emulated network come late, or not at all, and TCP goes on through it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from tests.faults import netem

pytestmark = pytest.mark.component
ECHO = (
    "import socket\n"
    "server = socket.create_server(('{address}', 5555))\n"
    "print('ready', flush=True)\n"
    "peer = server.accept()[0]\n"
    "while content := peer.recv(65536):\n"
    "    peer.sendall(content)\n"
)
ASK = (
    "import socket, sys, time\n"
    "peer = socket.create_connection(('{address}', 5555), timeout=20)\n"
    "for line in sys.stdin:\n"
    "    content, began = bytes(range(256)) * int(line), time.monotonic()\n"
    "    peer.sendall(content)\n"
    "    got = b''\n"
    "    while len(got) < len(content):\n"
    "        got += peer.recv(65536)\n"
    "    print(got == content, time.monotonic() - began, flush=True)\n"
)


@pytest.fixture
def net():
    if reason := netem.why_not():
        pytest.skip(reason)
    with netem.Netem(seed=1) as made:
        yield made


@pytest.fixture
def ask(net):
    """Send so many times 256 bytes to a server at the other end and back; return the seconds."""
    code = [text.format(address=netem.TRAINER_ADDRESS) for text in (ECHO, ASK)]
    words = (sys.executable, "-S", "-c")
    with subprocess.Popen([*net.in_trainer, *words, code[0]], stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([*net.in_rover, *words, code[1]], **pipes) as client:

            def question(count):
                client.stdin.write(f"{count}\n")
                client.stdin.flush()
                is_equal, seconds = client.stdout.readline().split()
                assert is_equal == "True"
                return float(seconds)

            yield question
            client.stdin.close()
            client.wait(10)
        server.kill()


def test_a_delay_comes_twice_in_a_round_trip(net, ask):
    ask(1)
    net.up.delay_s = net.down.delay_s = 0.05
    assert 0.1 <= ask(1) < 1.0


def test_lost_doubled_and_overtaking_packets_change_nothing_of_what_tcp_carries(net, ask):
    for way in (net.up, net.down):
        way.loss, way.duplicate, way.jitter_s = 0.05, 0.05, 0.01
    ask(200)
    assert net.up.dropped > 0


def test_a_cut_in_one_direction_stalls_until_it_is_healed(net, ask):
    ask(1)
    net.down.is_cut = True
    began = time.monotonic()
    timer = threading.Timer(0.4, net.heal)
    timer.start()
    ask(1)
    assert time.monotonic() - began >= 0.4
    timer.join()
