import json
import os
import socket
import stat
import threading
import time
from collections import Counter

import pytest
import structlog
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from protocol.keys import KeyFileError, KeyPair, fingerprint
from trainerd import access as module
from trainerd.access import ZAP_DOMAIN, Access, AccessError, ZapHandler

WAIT_MS = 2000


def make():
    return KeyPair(*(half.decode() for half in zmq.curve_keypair()))


KEYS = [make().public for _ in range(5)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "rovers.json"


@pytest.fixture
def access(path):
    return Access(path)


def test_nobody_is_let_in_at_first(access):
    assert access.name_of(KEYS[0]) is None
    assert access.rows() == []


def test_a_key_that_was_added_is_let_in_also_after_a_restart(access, path):
    assert access.add("rover-1", KEYS[0])
    assert access.name_of(KEYS[0]) == Access(path).name_of(KEYS[0]) == "rover-1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_adding_again_succeeds_and_changes_nothing(access, path):
    access.add("rover-1", KEYS[0])
    before = path.stat().st_mtime_ns
    assert not access.add("rover-1", KEYS[0])
    assert path.stat().st_mtime_ns == before


def test_a_name_may_have_two_keys_and_not_three(access):
    access.add("rover-1", KEYS[0])
    access.add("rover-1", KEYS[1])
    with pytest.raises(AccessError, match=f"two keys already, {fingerprint(KEYS[0])}.*revoke rover-1 --key"):
        access.add("rover-1", KEYS[2])
    access.revoke("rover-1", KEYS[0])
    assert access.add("rover-1", KEYS[2])
    assert access.keys_of("rover-1") == [KEYS[1], KEYS[2]]


def test_a_key_belongs_to_one_name(access):
    access.add("rover-1", KEYS[0])
    with pytest.raises(AccessError, match="is rover-1's"):
        access.add("rover-2", KEYS[0])
    assert access.name_of(KEYS[0]) == "rover-1"


@pytest.mark.parametrize("name", ["", "Rover", "../rover", "rover 1", "a" * 65, "rover\n"])
def test_a_name_that_could_be_a_path_is_refused(access, name):
    with pytest.raises(AccessError, match="a name has lower-case"):
        access.add(name, KEYS[0])


@pytest.mark.parametrize("key", ["", "x" * 39, "~" * 40, "0" * 40])
def test_what_is_no_key_is_refused(access, key):
    with pytest.raises(AccessError, match="no public key"):
        access.add("rover-1", key)


def test_revoking_shuts_all_keys_of_a_rover_out_and_says_which(access, path):
    access.add("rover-1", KEYS[0])
    access.add("rover-1", KEYS[1])
    access.add("rover-2", KEYS[2])
    heard = []
    access.on_revoked.append(lambda rover_id, keys: heard.append((rover_id, keys, access.name_of(KEYS[0]))))
    assert access.revoke("rover-1") == KEYS[:2]
    assert heard == [("rover-1", KEYS[:2], None)], "by then the key opens no door any more"
    for each in (access, Access(path)):
        assert [each.name_of(key) for key in KEYS[:3]] == [None, None, "rover-2"]
        assert [each.was_revoked(key) for key in KEYS[:4]] == [True, True, False, False]


def test_revoking_again_succeeds_and_cuts_nobody(access):
    access.add("rover-1", KEYS[0])
    access.revoke("rover-1")
    heard = []
    access.on_revoked.append(lambda *facts: heard.append(facts))
    assert access.revoke("rover-1") == []
    assert heard == []


def test_one_of_two_keys_can_be_revoked_by_its_fingerprint(access):
    access.add("rover-1", KEYS[0])
    access.add("rover-1", KEYS[1])
    assert access.revoke("rover-1", fingerprint(KEYS[1])) == [KEYS[1]]
    assert access.keys_of("rover-1") == [KEYS[0]]


@pytest.mark.parametrize("facts", [("rover-9",), ("rover-1", KEYS[1]), ("rover-2", KEYS[0])])
def test_revoking_what_never_was_is_an_error(access, facts):
    access.add("rover-1", KEYS[0])
    with pytest.raises(AccessError, match=r"no key.*trainerctl rover list"):
        access.revoke(*facts)
    assert access.name_of(KEYS[0]) == "rover-1"


def test_a_revoked_key_comes_back_only_where_somebody_insists(access):
    access.add("rover-1", KEYS[0])
    access.revoke("rover-1")
    with pytest.raises(AccessError, match=r"was revoked 20.*--again"):
        access.add("rover-1", KEYS[0])
    assert access.name_of(KEYS[0]) is None
    assert access.add("rover-1", KEYS[0], again=True)
    assert access.name_of(KEYS[0]) == "rover-1"


def test_rows_say_who_was_let_in_and_who_no_longer(access):
    access.add("rover-1", KEYS[0])
    access.add("rover-1", KEYS[1])
    access.revoke("rover-1", KEYS[0])
    facts = [(row["public"], row["state"], bool(row["revoked_at"]), row["fingerprint"]) for row in access.rows()]
    assert sorted(facts) == sorted(
        [(KEYS[0], "revoked", True, fingerprint(KEYS[0])), (KEYS[1], "allowed", False, fingerprint(KEYS[1]))]
    )


def refuse_disk(monkeypatch):
    def refuse(*_):
        raise KeyFileError("disk full")

    monkeypatch.setattr(module, "write_private", refuse)


def test_a_full_disk_lets_nobody_new_in(access, monkeypatch):
    refuse_disk(monkeypatch)
    with pytest.raises(AccessError, match="disk full"):
        access.add("rover-1", KEYS[0])
    assert access.name_of(KEYS[0]) is None


def test_a_full_disk_does_not_keep_the_door_open_and_a_second_try_saves_it(access, path, monkeypatch):
    access.add("rover-1", KEYS[0])
    heard = []
    access.on_revoked.append(lambda *facts: heard.append(facts))
    with monkeypatch.context() as patch:
        refuse_disk(patch)
        with pytest.raises(AccessError, match="only until this daemon ends"):
            access.revoke("rover-1")
    assert access.name_of(KEYS[0]) is None
    assert heard
    assert Access(path).name_of(KEYS[0]) == "rover-1"
    assert access.revoke("rover-1") == []
    assert Access(path).name_of(KEYS[0]) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": [{}]}', '{"keys": [1]}', '{"keys": [{"rover_id": "a"'])
def test_a_damaged_list_stops_the_start(access, path, text):
    access.add("rover-1", KEYS[0])
    path.write_text(text)
    with pytest.raises(AccessError, match=str(path)):
        Access(path)


@pytest.mark.parametrize("change", [{"rover_id": "../x"}, {"public": "0" * 40}, {"revoked_at": 3}, {"extra": "x"}])
def test_a_row_that_is_no_rover_stops_the_start(access, path, change):
    access.add("rover-1", KEYS[0])
    rows = json.loads(path.read_text())["keys"]
    path.write_text(json.dumps({"keys": [{**rows[0], **change}]}))
    with pytest.raises(AccessError, match=str(path)):
        Access(path)


def test_a_list_that_others_may_change_stops_the_start(access, path):
    access.add("rover-1", KEYS[0])
    path.chmod(0o660)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        Access(path)


def test_threads_that_add_and_revoke_at_once_lose_nothing(access, path):
    names = [f"rover-{i}" for i in range(12)]
    keys = [make().public for _ in names]

    def work(name, key):
        access.add(name, key)
        if name.endswith("1"):
            access.revoke(name)

    threads = [threading.Thread(target=work, args=each) for each in zip(names, keys, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in (access, Access(path)):
        assert [each.name_of(key) for key in keys] == [None if name.endswith("1") else name for name in names]


class Door:
    """A ROUTER with CURVE and the handler, both run by hand as the link's thread would."""

    def __init__(self, access):
        self.keys = make()
        self.context = zmq.Context()
        self.zap = ZapHandler(self.context, access)
        self.router = self.context.socket(zmq.ROUTER)
        self.router.curve_server = True
        self.router.curve_secretkey = self.keys.secret.encode()
        self.router.zap_domain = ZAP_DOMAIN.encode()
        self.router.linger = 0
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.clients, self.monitors = [], []

    def client(self, pair, server=None):
        client = self.context.socket(zmq.DEALER)
        client.linger = 0
        if pair is not None:
            client.curve_publickey, client.curve_secretkey = pair.public.encode(), pair.secret.encode()
            client.curve_serverkey = (server or self.keys.public).encode()
        self.monitors.append(client.get_monitor_socket())
        client.connect(f"tcp://127.0.0.1:{self.port}")
        self.clients.append(client)
        return client

    def serve(self, until, timeout_ms=WAIT_MS):
        """Answer at the door until the condition holds; give its value."""
        poller = zmq.Poller()
        for each in (self.zap.socket, self.router, *self.monitors, *self.clients):
            poller.register(each, zmq.POLLIN)
        deadline = time.monotonic() + 1e-3 * timeout_ms
        while time.monotonic() < deadline:
            poller.poll(20)
            self.zap.answer()
            if (value := until()) is not None:
                return value
        return None

    def received(self):
        try:
            return self.router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None

    def outcome(self):
        """Give the name of the newest client's handshake event."""
        try:
            event = recv_monitor_message(self.monitors[-1], zmq.NOBLOCK)
        except zmq.Again:
            return None
        name = zmq.Event(event["event"]).name
        return (name, event["value"]) if name.startswith("HANDSHAKE") else None

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def door(access):
    door = Door(access)
    yield door
    door.close()


def test_a_key_of_the_list_may_come_in_and_is_its_identity(access, door):
    pair = make()
    access.add("rover-1", pair.public)
    door.client(pair).send(b"hello")
    frames = door.serve(door.received)
    assert [bytes(frame) for frame in frames[1:]] == [b"hello"]
    assert frames[1].get("User-Id") == pair.public
    assert door.zap.refusals == Counter()


def test_a_key_that_nobody_knows_is_refused_with_400_and_logged_by_its_fingerprint(door):
    pair = make()
    with structlog.testing.capture_logs() as logs:
        door.client(pair).send(b"hello")
        assert door.serve(door.outcome) == ("HANDSHAKE_FAILED_AUTH", 400)
    assert door.zap.refusals == {"unknown": 1}
    assert [(line["event"], line["fingerprint"]) for line in logs] == [("rover.key_refused", fingerprint(pair.public))]
    assert pair.public not in str(logs)
    assert fingerprint(pair.public) in door.zap.last_refusal
    assert door.received() is None


def test_a_revoked_key_is_refused_at_its_next_handshake(access, door):
    pair = make()
    access.add("rover-1", pair.public)
    access.revoke("rover-1")
    door.client(pair)
    assert door.serve(door.outcome) == ("HANDSHAKE_FAILED_AUTH", 400)
    assert door.zap.refusals == {"revoked": 1}


def test_without_curve_nobody_comes_in(door):
    door.client(None).send(b"hello")
    assert door.serve(door.outcome)[0] == "HANDSHAKE_FAILED_PROTOCOL"
    assert door.received() is None


def test_a_rover_that_expects_another_trainer_sends_nothing(access, door):
    pair = make()
    access.add("rover-1", pair.public)
    door.client(pair, server=make().public).send(b"hello")
    assert door.serve(door.outcome)[0] == "HANDSHAKE_FAILED_NO_DETAIL"
    assert door.received() is None


def test_revoking_cuts_a_live_connection_within_a_second(access, door):
    pair = make()
    access.add("rover-1", pair.public)
    client = door.client(pair)
    client.send(b"hello")
    descriptor = door.serve(door.received)[1].get(zmq.SRCFD)
    copy = socket.socket(fileno=os.dup(descriptor))
    access.on_revoked.append(lambda *_: copy.shutdown(socket.SHUT_RDWR))
    assert door.serve(door.outcome)[0] == "HANDSHAKE_SUCCEEDED"
    began = time.monotonic()
    access.revoke("rover-1")
    assert door.serve(door.outcome) == ("HANDSHAKE_FAILED_AUTH", 400), "it is cut, comes again, and is refused"
    assert time.monotonic() - began < 1.0
    copy.close()


def request(door, *frames):
    asker = door.context.socket(zmq.DEALER)
    asker.linger = 0
    asker.connect("inproc://zeromq.zap.01")
    asker.send_multipart([b"", *frames])
    door.clients.append(asker)
    return asker


@pytest.mark.parametrize(
    ("domain", "mechanism", "credentials"),
    [
        (ZAP_DOMAIN.encode(), b"NULL", []),
        (ZAP_DOMAIN.encode(), b"PLAIN", [b"rover-1", b"secret"]),
        (ZAP_DOMAIN.encode(), b"CURVE", []),
        (ZAP_DOMAIN.encode(), b"CURVE", [b"short"]),
        (b"", b"CURVE", [z85.decode(KEYS[0])]),
        (b"other", b"CURVE", [z85.decode(KEYS[0])]),
        (ZAP_DOMAIN.encode(), b"PLAIN", [z85.decode(KEYS[0])]),
    ],
)
def test_other_mechanisms_domains_and_credentials_are_refused(access, door, domain, mechanism, credentials):
    access.add("rover-1", KEYS[0])
    asker = request(door, b"1.0", b"7", domain, b"10.0.0.9", b"", mechanism, *credentials)
    assert door.serve(lambda: asker.poll(0) or None)
    assert asker.recv_multipart() == [b"", b"1.0", b"7", b"400", b"not allowed", b"", b""]
    assert door.zap.refusals.total() == 1


def test_nonsense_at_the_door_is_counted_and_the_next_is_answered(door):
    request(door, b"9.9")
    request(door, b"1.0", b"6", ZAP_DOMAIN.encode())
    asker = request(door, b"1.0", b"8", b"", b"", b"", b"NULL")
    assert door.serve(lambda: asker.poll(0) or None)
    assert door.zap.refusals == {"malformed": 2, "mechanism": 1}


def test_a_stranger_with_ever_new_keys_does_not_fill_the_log_or_the_memory(access, door):
    with structlog.testing.capture_logs() as logs:
        for i in range(3000):
            door.zap._refuse("unknown", "", f"{i:040d}", "10.0.0.9")
    assert len(logs) <= module.NAMED_STRANGERS + 4
    assert len(door.zap._strangers) <= module.NAMED_STRANGERS + 1
    assert len(door.zap._repeats._counts) <= module.NAMED_STRANGERS + 1


def test_an_answer_takes_less_than_a_millisecond_with_a_full_list(access, door):
    access._grants = {
        key: module.Grant(f"rover-{i}", key, "") for i, key in enumerate(f"{n:040d}" for n in range(1000))
    }
    frames = [b"id", b"", b"1.0", b"1", ZAP_DOMAIN.encode(), b"10.0.0.9", b"", b"CURVE", bytes(32)]
    best = float("inf")
    for _ in range(50):
        began = time.perf_counter()
        door.zap._answer(frames)
        best = min(best, time.perf_counter() - began)
    assert best < 1e-3
