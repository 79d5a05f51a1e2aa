"""The real client of roverd meets the real desk of trainerd over loopback, alone or with somebody in between."""

import asyncio
import secrets
import socket
from types import SimpleNamespace

import pytest
import structlog
import zmq

from protocol import pairing as wire
from protocol.keys import KeyPair, commit, fingerprint, short_code
from protocol.node.socket import Request, answer
from roverd.pairing import Pairing, TrustedTrainer
from roverd.pairing import PairingError as RoverPairingError
from trainerd.access import Access, AccessError
from trainerd.api import Api
from trainerd.pairing import PairingDesk, PairingError, PairingLimits

pytestmark = pytest.mark.component
LINK_PORT = 5555
QUICK = PairingLimits(answer_s=2.0, keepalive_s=0.05)


def make():
    return KeyPair(*(half.decode() for half in zmq.curve_keypair()))


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Bench:
    """A desk that listens, and rovers that ask it."""

    def __init__(self, folder, limits=QUICK):
        self.folder, self.clock, self.keys = folder, Clock(), make()
        self.access = Access(folder / "rovers.json")
        self.desk = PairingDesk(
            "127.0.0.1", 0, self.keys, self.access, link_port=lambda: LINK_PORT, limits=limits, clock=self.clock
        )
        self.desk.start()
        self.tasks = [asyncio.create_task(self.desk.run())]

    def rover(self, rover_id="rover-1", keys=None, port=None, **facts):
        """Begin a pairing as roverd does; ``rover.task`` is its end."""
        pairing = Pairing(keys or make(), rover_id, "127.0.0.1", port or self.desk.port, **facts)
        pairing.task = asyncio.create_task(pairing.run())
        self.tasks.append(pairing.task)
        return pairing

    async def asking(self, *names, **facts):
        """Return rovers that show their codes and wait at the desk."""
        rovers = [self.rover(name, **facts) for name in names or ("rover-1",)]
        await until(lambda: all(each.state == "comparing" for each in rovers))
        await until(lambda: len(self.desk.rows()) >= len(rovers))
        return rovers

    async def stranger(self, **facts):
        """Speak to the desk without the client: send a request, return the streams and the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.desk.port)
        self.tasks.append(SimpleNamespace(cancel=writer.close))
        writer.write(wire.encode("pair", **{**asked(make().public), **facts}))
        return reader, writer, await wire.receive(reader)

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*(t for t in self.tasks if isinstance(t, asyncio.Task)), return_exceptions=True)


NONCE = b"n" * 32


def asked(public, rover_id="rover-1"):
    return {"version": wire.VERSION, "rover_id": rover_id, "public": public, "commit": commit(NONCE, public)}


async def until(condition, timeout_s=5.0):
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.005)


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_a_person_who_types_the_code_lets_the_rover_in_and_the_rover_trusts_the_trainer(bench, tmp_path):
    (rover,) = await bench.asking()
    assert bench.access.rows() == []
    assert bench.desk.confirm(rover.code)["paired"] == "rover-1"
    await rover.task
    trust = TrustedTrainer(tmp_path / "trainer.json")
    assert rover.state == "confirmed"
    assert trust.public == "", "nothing is trusted before the person at the rover has agreed"
    assert rover.accept(trust)
    assert bench.access.name_of(rover._keys.public) == "rover-1"
    assert (trust.public, trust.address) == (bench.keys.public, f"tcp://127.0.0.1:{LINK_PORT}")


@pytest.mark.parametrize("style", ["{}", " {} ", "digits", "{}\n"])
async def test_a_code_may_be_typed_in_any_style(bench, style):
    (rover,) = await bench.asking()
    typed = rover.code.replace("-", "" if style == "digits" else " ")
    assert bench.desk.confirm(style.format(typed) if "{}" in style else typed)["paired"] == "rover-1"


async def test_confirming_twice_succeeds(bench):
    (rover,) = await bench.asking()
    first = bench.desk.confirm(rover.code)
    assert bench.desk.confirm(rover.code) == {**first, "already_paired": True}


async def test_pairing_again_with_the_same_keys_succeeds(bench, tmp_path):
    keys, trust = make(), TrustedTrainer(tmp_path / "trainer.json")
    for is_news in (True, False):
        (rover,) = await bench.asking(keys=keys)
        assert ("already_paired" in bench.desk.confirm(rover.code)) is not is_news
        await rover.task
        assert rover.accept(trust) is is_news
    assert len(bench.access.rows()) == 1


async def test_each_of_several_rovers_is_let_in_by_its_own_code(bench):
    rovers = await bench.asking("rover-1", "rover-2", "rover-3")
    assert bench.desk.confirm(rovers[1].code)["paired"] == "rover-2"
    await rovers[1].task
    assert [each.state for each in rovers] == ["comparing", "confirmed", "comparing"]
    assert [row["rover_id"] for row in bench.access.rows()] == ["rover-2"]


async def test_the_list_of_those_who_wait_does_not_tell_their_codes(bench):
    (rover,) = await bench.asking()
    row = bench.desk.rows()[0]
    assert (row["rover_id"], row["fingerprint"]) == ("rover-1", fingerprint(rover._keys.public))
    assert rover.code not in str(bench.desk.rows()) + repr(bench.desk._waiting)


async def test_codes_and_secrets_are_not_logged(bench):
    with structlog.testing.capture_logs() as logs:
        (rover,) = await bench.asking()
        bench.desk.confirm(rover.code)
        await rover.task
    assert {"pairing.requested", "pairing.compared", "rover.paired"} <= {line["event"] for line in logs}
    for secret in (rover.code, rover._keys.secret, bench.keys.secret):
        assert secret not in str(logs)


def another(code):
    return f"{(int(code.replace('-', '')) + 1) % 10**6:06d}"


async def test_three_wrong_codes_end_a_request(bench):
    (rover,) = await bench.asking()
    for left in (2, 1):
        with pytest.raises(PairingError, match="somebody may stand between"):
            bench.desk.confirm(another(rover.code))
        assert bench.desk.rows()[0]["tries_left"] == left
    with pytest.raises(PairingError, match="start anew"):
        bench.desk.confirm(another(rover.code))
    await rover.task
    assert (rover.state, bench.desk.rows()) == ("failed", [])
    assert "3 wrong codes" in rover.reason
    with pytest.raises(PairingError, match="no rover waits"):
        bench.desk.confirm(rover.code)
    assert bench.access.rows() == []


@pytest.mark.parametrize("text", ["", "12345", "1234567", "abc-def", "٤١٧٩٠٢"])
async def test_what_is_no_code_costs_no_try(bench, text):
    await bench.asking()
    with pytest.raises(PairingError, match="six digits"):
        bench.desk.confirm(text)
    assert bench.desk.rows()[0]["tries_left"] == 3


async def test_two_requests_with_the_same_code_are_both_turned_down(bench):
    rovers = await bench.asking("rover-1", "rover-2")
    bench.desk._waiting[1].code = bench.desk._waiting[0].code
    with pytest.raises(PairingError, match="2 requests"):
        bench.desk.confirm(bench.desk._waiting[0].code)
    await asyncio.gather(*(each.task for each in rovers))
    assert [each.state for each in rovers] == ["failed", "failed"]
    assert bench.access.rows() == []


async def test_a_rover_that_gives_up_waits_no_more_and_its_code_lets_nobody_in(bench):
    (rover,) = await bench.asking()
    rover.task.cancel()
    await until(lambda: bench.desk.rows() == [])
    with pytest.raises(PairingError, match="no rover waits"):
        bench.desk.confirm(rover.code)


async def test_a_request_expires(bench):
    (rover,) = await bench.asking()
    bench.clock.now_s += QUICK.window_s
    await rover.task
    assert "nobody typed the code" in rover.reason
    assert bench.desk.rows() == []


async def test_what_the_allow_list_does_not_take_leaves_the_rover_waiting(bench):
    keys = make()
    bench.access.add("rover-1", keys.public)
    bench.access.revoke("rover-1")
    (rover,) = await bench.asking(keys=keys)
    assert bench.desk.rows()[0]["was_revoked"]
    with pytest.raises(AccessError, match="--again"):
        bench.desk.confirm(rover.code)
    assert bench.desk.confirm(rover.code, again=True)["paired"] == "rover-1"


async def test_a_new_key_of_a_known_name_is_shown_before_and_after(bench):
    bench.access.add("rover-1", make().public)
    (rover,) = await bench.asking()
    assert (bench.desk.rows()[0]["keys"], bench.desk.rows()[0]["known_as"]) == (1, None)
    assert bench.desk.confirm(rover.code)["keys"] == 2


class Between:
    """Somebody in the middle: ``own`` are his keys; those of either side are told on only where he wants so."""

    def __init__(self, bench, *, hides_rover, hides_trainer):
        self.bench, self.own, self.nonce = bench, make(), secrets.token_bytes(32)
        self.hides_rover, self.hides_trainer = hides_rover, hides_trainer
        self.port = 0

    async def listen(self):
        server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        self.bench.tasks.append(SimpleNamespace(cancel=server.close))
        self.port = server.sockets[0].getsockname()[1]

    async def relay(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.bench.desk.port)
        try:
            _, pair = await wire.receive(reader)
            facts = dict(pair._values)
            if self.hides_rover:
                facts |= {"public": self.own.public, "commit": commit(self.nonce, self.own.public)}
            far_writer.write(wire.encode(**facts))
            _, key = await wire.receive(far_reader)
            writer.write(wire.encode(**key._values | ({"public": self.own.public} if self.hides_trainer else {})))
            _, told = await wire.receive(reader)
            far_writer.write(wire.encode(**told._values | ({"nonce": self.nonce} if self.hides_rover else {})))
            while True:
                _, fields = await wire.receive(far_reader)
                writer.write(wire.encode(**fields._values))
        except wire.PeerLeftError:
            pass
        finally:
            writer.close()
            far_writer.close()


async def test_a_relay_that_changes_nothing_is_no_harm(bench):
    between = Between(bench, hides_rover=False, hides_trainer=False)
    await between.listen()
    (rover,) = await bench.asking(port=between.port)
    assert bench.desk.confirm(rover.code)["paired"] == "rover-1"
    await rover.task
    assert rover.trainer_public == bench.keys.public


@pytest.mark.parametrize(("hides_rover", "hides_trainer"), [(True, True), (True, False), (False, True)])
async def test_somebody_in_the_middle_makes_the_codes_differ(bench, hides_rover, hides_trainer):
    between = Between(bench, hides_rover=hides_rover, hides_trainer=hides_trainer)
    await between.listen()
    (rover,) = await bench.asking(port=between.port)
    assert rover.code != bench.desk._waiting[0].code
    with pytest.raises(PairingError, match="somebody may stand between"):
        bench.desk.confirm(rover.code)
    assert bench.access.rows() == []


async def test_who_says_done_himself_is_not_trusted_without_the_person(bench, tmp_path):
    """He can tell the rover that its code was typed; but the trainer never printed its name, and the person says so."""
    own = make()

    async def pretend(reader, writer):
        await wire.receive(reader)
        writer.write(wire.encode("pair_key", public=own.public, nonce=NONCE, link_port=LINK_PORT))
        await wire.receive(reader)
        writer.write(wire.encode("pair_done"))
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    rover = bench.rover(port=server.sockets[0].getsockname()[1])
    await rover.task
    server.close()
    assert rover.state == "confirmed"
    with pytest.raises(PairingError, match="no rover waits"):
        bench.desk.confirm(rover.code)
    rover.fail("the person said no")
    trust = TrustedTrainer(tmp_path / "trainer.json")
    with pytest.raises(RoverPairingError, match="the person said no"):
        rover.accept(trust)
    assert trust.public == ""


async def test_the_nonce_must_be_the_one_that_was_committed_to(bench):
    reader, writer, (kind, _) = await bench.stranger()
    assert kind == "pair_key"
    writer.write(wire.encode("pair_nonce", nonce=b"m" * 32))
    kind, fields = await wire.receive(reader)
    assert (kind, bench.desk.rows()) == ("pair_refused", [])
    assert "committed" in fields.get("reason", str)


async def test_a_commitment_to_another_key_does_not_count(bench):
    reader, writer, (kind, _) = await bench.stranger(public=KEY.public, commit=commit(NONCE, make().public))
    assert kind == "pair_key"
    writer.write(wire.encode("pair_nonce", nonce=NONCE))
    assert (await wire.receive(reader))[0] == "pair_refused"


KEY = make()


async def test_who_leaves_and_comes_again_until_the_code_fits_is_stopped(tmp_path):
    """After the desk's nonce he knows the code; he would need about a million tries."""
    bench = Bench(tmp_path, PairingLimits(requests=5, requests_per_address=100, keepalive_s=0.05))
    for _ in range(5):
        _, writer, (kind, fields) = await bench.stranger(public=KEY.public, commit=commit(NONCE, KEY.public))
        assert kind == "pair_key"
        assert short_code("rover-1", KEY.public, bench.keys.public, NONCE, fields.get("nonce", bytes))
        writer.close()
    _, _, (kind, fields) = await bench.stranger()
    assert kind == "pair_refused"
    assert "try again in 300 s" in fields.get("reason", str)
    bench.clock.now_s += 301
    assert (await bench.stranger())[2][0] == "pair_key"
    await bench.close()


async def test_one_address_cannot_use_up_the_tries_of_all(tmp_path):
    bench = Bench(tmp_path, PairingLimits(requests=16, requests_per_address=2))
    bench.desk._ration("10.0.0.9")
    for _ in range(2):
        assert (await bench.stranger())[2][0] == "pair_key"
    kind, fields = (await bench.stranger())[2]
    assert kind == "pair_refused"
    assert "roverctl key show" in fields.get("reason", str)
    bench.desk._ration("10.0.0.9")
    await bench.close()


@pytest.mark.parametrize("change", [{"version": 2}, {"version": 0}])
async def test_another_version_is_refused_with_who_has_to_update(bench, change):
    _, _, (kind, fields) = await bench.stranger(**change)
    assert kind == "pair_refused"
    assert f"update {'the rover' if change['version'] == 0 else 'the trainer'}" in fields.get("reason", str)


@pytest.mark.parametrize(
    "change",
    [{"rover_id": "../x"}, {"rover_id": 3}, {"public": "0" * 40}, {"commit": b"x"}, {"commit": "x"}, {"version": "1"}],
)
async def test_a_malformed_request_is_told_so_and_counted_and_takes_no_try(bench, change):
    _, _, (kind, _) = await bench.stranger(**change)
    assert kind == "pair_refused"
    assert bench.desk.malformed.total() == 1
    assert not bench.desk._tries


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x00",
        b"\xff\xff" + b"x" * 5000,
        b"\x00\x05hello",
        b"\x00\x01\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x02\x91\x01",
    ],
)
async def test_nonsense_is_answered_and_the_desk_goes_on(bench, raw):
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.desk.port)
    writer.write(raw)
    assert (await wire.receive(reader))[0] == "pair_refused"
    writer.close()
    (rover,) = await bench.asking()
    assert bench.desk.confirm(rover.code)


async def test_who_says_nothing_is_dropped(tmp_path):
    bench = Bench(tmp_path, PairingLimits(answer_s=0.05))
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.desk.port)
    assert await reader.read() == b""
    writer.close()
    await bench.close()


async def test_a_crowd_of_silent_connections_is_bounded(bench):
    crowd = [await asyncio.open_connection("127.0.0.1", bench.desk.port) for _ in range(80)]
    reads = [asyncio.create_task(reader.read(1)) for reader, _ in crowd]
    await until(lambda: sum(read.done() for read in reads) == 80 - 64)
    assert len(bench.desk._connections) == 64
    for _, writer in crowd:
        writer.close()
    await until(lambda: not bench.desk._connections)
    await asyncio.gather(*reads)


async def test_a_port_in_use_is_named_with_the_remedy(bench):
    desk = PairingDesk("127.0.0.1", bench.desk.port, bench.keys, bench.access, link_port=lambda: LINK_PORT)
    with pytest.raises(PairingError, match=rf"{bench.desk.port}: .*link.pairing_port"):
        desk.start()


async def test_stopping_frees_the_port_and_tells_those_who_wait(bench):
    (rover,) = await bench.asking()
    bench.tasks[0].cancel()
    await asyncio.wait([bench.tasks[0]])
    await rover.task
    assert "closed the connection" in rover.reason
    with socket.create_server(("127.0.0.1", bench.desk.port)):
        pass


async def test_a_trainer_that_is_not_there_is_named_with_the_remedy(bench):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rover = bench.rover(port=port)
    await rover.task
    assert f"127.0.0.1:{port}: " in rover.reason
    assert "link.pairing" in rover.reason


async def test_a_trainer_that_speaks_nonsense_fails_the_pairing(bench):
    for raw in (
        b"\x00\x00",
        wire.encode("pair_done"),
        wire.encode("pair_key", public="x", nonce=b"", link_port=1),
        b"",
    ):

        async def pretend(reader, writer, raw=raw):
            writer.write(raw)
            writer.close()

        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        rover = bench.rover(port=server.sockets[0].getsockname()[1])
        await rover.task
        server.close()
        assert rover.state == "failed", raw
        assert rover.reason


def api_of(bench, desk):
    daemon = SimpleNamespace(access=bench.access, pairing=desk, keys=bench.keys)
    routes = {(route.method, route.path): route for route in Api(daemon, None).routes()}

    async def ask(method, path, params=None, **body):
        return await answer(routes[method, path], Request(params or {}, {}, body))

    return ask, routes


async def test_the_commands_of_the_trainer_pair_add_and_revoke(bench):
    ask, routes = api_of(bench, bench.desk)
    (rover,) = await bench.asking()
    status, waiting = await ask("GET", "/pairing")
    assert (status, waiting["enabled"], len(waiting["pending"])) == (200, True, 1)
    status, refused = await ask("POST", "/pairing/confirm", code=another(rover.code))
    assert (status, refused["ok"]) == (409, False)
    status, paired = await ask("POST", "/pairing/confirm", code=rover.code)
    assert (status, paired["paired"]) == (200, "rover-1")
    name = {"id": "rover-2"}
    assert (await ask("POST", "/rovers/{id}/keys", name, public=KEY.public))[1]["keys"] == 1
    assert (await ask("POST", "/rovers/{id}/keys", name, public=KEY.public))[1]["already_added"]
    assert (await ask("POST", "/rovers/{id}/keys", name, public="x"))[0] == 409
    assert (await ask("POST", "/rovers/{id}/keys", name, public=3))[0] == 400
    keys = (await ask("GET", "/keys"))[1]
    assert {row["rover_id"]: row["state"] for row in keys["keys"]} == {"rover-1": "allowed", "rover-2": "allowed"}
    assert keys["public"] == bench.keys.public
    assert bench.keys.secret not in str(keys)
    assert (await ask("POST", "/rovers/{id}/revoke", name))[1]["revoked"] == [KEY.public]
    assert (await ask("POST", "/rovers/{id}/revoke", name))[1]["already_revoked"]
    assert (await ask("POST", "/rovers/{id}/revoke", {"id": "rover-9"}))[0] == 409
    changing = ("/pairing/confirm", "/rovers/{id}/keys", "/rovers/{id}/revoke")
    assert all(routes["POST", path].mutating for path in changing), "they belong into the audit log"


async def test_where_pairing_is_off_the_commands_say_so(bench):
    ask, _ = api_of(bench, None)
    assert (await ask("GET", "/pairing"))[1] == {"ok": True, "enabled": False, "port": 0, "pending": []}
    status, refused = await ask("POST", "/pairing/confirm", code="123-456")
    assert status == 409
    assert "trainerctl rover add" in refused["error"]
