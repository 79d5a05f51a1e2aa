"""The wire does what its name says, and what passes is what was sent unless bits were to be flipped."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.faults.wire import DOWN, UP, Wire

BITS = [f"{byte:b}".count("1") for byte in range(256)]


class Echo:
    """A server that sends back what comes."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self._stopped:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer):
        with peer, contextlib.suppress(OSError):
            while content := peer.recv(65536):
                peer.sendall(content)

    def close(self):
        self._stopped = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(2.0)


@pytest.fixture
def echo():
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def seen():
    return {UP: bytearray(), DOWN: bytearray()}


@pytest.fixture
def wire(echo, seen):
    with Wire(echo.port, observe=lambda _, way, content: seen[way].extend(content), seed=1) as made:
        yield made


@pytest.fixture
def peer(wire):
    with socket.create_connection(("127.0.0.1", wire.port), timeout=5.0) as made:
        yield made


def receive(peer, count):
    got = b""
    while len(got) < count:
        part = peer.recv(count - len(got))
        if not part:
            break
        got += part
    return got


def ask(peer, content):
    peer.sendall(content)
    return receive(peer, len(content))


def test_what_passes_is_what_was_sent_and_both_directions_are_observed(peer, seen):
    content = bytes(range(256)) * 200
    assert ask(peer, content) == content
    assert bytes(seen[UP]) == bytes(seen[DOWN]) == content


def test_a_delay_comes_twice_in_a_round_trip(wire, peer):
    wire.slow(delay_s=0.05)
    began = time.monotonic()
    ask(peer, b"x")
    assert 0.1 <= time.monotonic() - began < 1.0


def test_a_rate_bounds_the_bytes_per_second(wire, peer):
    wire.up.rate_bytes_per_s = 100_000
    began = time.monotonic()
    ask(peer, bytes(30_000))
    assert time.monotonic() - began >= 0.25


def test_a_cut_holds_what_comes_and_a_heal_lets_it_pass(wire, peer):
    ask(peer, b"before")
    wire.cut()
    peer.sendall(b"during")
    peer.settimeout(0.1)
    with pytest.raises(TimeoutError):
        peer.recv(1)
    peer.settimeout(5.0)
    wire.heal()
    assert receive(peer, 6) == b"during"


def test_a_one_way_cut_lets_the_other_way_pass(wire, peer, seen):
    wire.down.is_cut = True
    peer.sendall(b"hello")
    end = time.monotonic() + 5.0
    while bytes(seen[DOWN]) != b"hello":  # it reached the server, and its answer came as far as the wire
        assert time.monotonic() < end
        time.sleep(0.005)
    peer.settimeout(0.1)
    with pytest.raises(TimeoutError):
        peer.recv(1)


def test_a_reset_breaks_connections_and_new_ones_work(wire, peer):
    ask(peer, b"before")
    wire.reset()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    with socket.create_connection(("127.0.0.1", wire.port), timeout=5.0) as again:
        assert ask(again, b"after") == b"after"


def test_a_refusal_lasts_until_it_is_healed(wire, peer):
    ask(peer, b"before")
    port = wire.port
    wire.refuse()
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # while it closes, the latter
        socket.create_connection(("127.0.0.1", port), timeout=5.0)
    wire.heal()
    assert wire.port == port
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as again:
        assert ask(again, b"after") == b"after"


def test_flipped_bits_are_counted_and_the_observer_sees_what_was_sent(wire, peer, seen):
    content = bytes(100_000)
    wire.up.flip_every_bytes = 10_000
    got = ask(peer, content)
    wrong = sum(BITS[byte] for byte in got)
    assert wrong == wire.up.flipped > 0
    assert bytes(seen[UP]) == content


def test_nobody_behind_it_closes_the_connection(wire, echo):
    echo.close()
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", wire.port), timeout=5.0) as alone:
        assert alone.recv(1) == b""
