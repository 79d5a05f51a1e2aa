"""The rover's side of pairing without a trainer: what is pinned, what the control socket and roverctl say."""

import argparse
import asyncio
import json
import stat
from types import SimpleNamespace

import pytest
import zmq

from protocol.keys import KeyFileError, KeyPair, fingerprint
from protocol.node.socket import Request, answer
from roverd import api, ctl
from roverd.pairing import Pairing, PairingError, TrustedTrainer


def make():
    return KeyPair(*(half.decode() for half in zmq.curve_keypair()))


KEY, OTHER = make().public, make().public
ADDRESS = "tcp://10.0.0.2:5555"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trainer.json"


@pytest.fixture
def trust(path):
    return TrustedTrainer(path)


def test_nobody_is_trusted_at_first(trust):
    assert (trust.public, trust.address, trust.paired_at) == ("", "", "")


def test_trust_outlives_a_restart_and_only_the_owner_may_change_it(trust, path):
    assert trust.trust(KEY, ADDRESS)
    again = TrustedTrainer(path)
    assert (again.public, again.address) == (KEY, ADDRESS)
    assert again.paired_at.endswith("Z")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_trusting_the_same_again_changes_nothing(trust):
    trust.trust(KEY, ADDRESS)
    assert not trust.trust(KEY, ADDRESS)
    assert not trust.trust(KEY)
    assert trust.address == ADDRESS


def test_only_the_newest_trainer_is_trusted(trust, path):
    trust.trust(KEY, ADDRESS)
    assert trust.trust(OTHER)
    assert (TrustedTrainer(path).public, TrustedTrainer(path).address) == (OTHER, "")


@pytest.mark.parametrize("key", ["", "x", "0" * 40])
def test_what_is_no_key_is_not_trusted(trust, path, key):
    with pytest.raises(PairingError, match="trainerctl key show"):
        trust.trust(key)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"public": "x"}', '{"public": null}'])
def test_a_damaged_file_stops_the_start(trust, path, text):
    trust.trust(KEY)
    path.write_text(text)
    with pytest.raises(KeyFileError, match="pair again"):
        TrustedTrainer(path)


def test_a_file_that_others_may_change_stops_the_start(trust, path):
    trust.trust(KEY)
    path.chmod(0o666)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        TrustedTrainer(path)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def confirmed(**facts):
    pairing = Pairing(make(), "rover-1", "10.0.0.2", **facts)
    pairing.state, pairing.code, pairing.trainer_public, pairing.address = "confirmed", "417-902", KEY, ADDRESS
    return pairing


def test_a_trainer_that_has_not_confirmed_is_not_trusted(trust):
    pairing = confirmed()
    pairing.state = "comparing"
    with pytest.raises(PairingError, match="trainerctl rover confirm 417-902 is still to come"):
        pairing.accept(trust)
    assert trust.public == ""


def test_the_persons_word_comes_too_late(trust):
    clock = Clock()
    pairing = confirmed(clock=clock)
    clock.now_s = 301.0
    with pytest.raises(PairingError, match="too much time"):
        pairing.accept(trust)
    assert trust.public == ""


def test_nothing_fails_after_it_was_trusted(trust):
    pairing = confirmed()
    assert pairing.accept(trust)
    pairing.fail("late")
    assert (pairing.state, pairing.accept(trust)) == ("trusted", False)


def test_the_secret_does_not_show():
    pairing = confirmed()
    assert pairing._keys.secret not in f"{pairing!r} {pairing.to_map()} {vars(pairing)}"


class Uplink:
    def __init__(self):
        self.state, self.refusal, self.is_linked, self.rekeyed = "connecting", "", False, []

    def rekey(self, keys, trainer):
        self.rekeyed.append((keys.public, trainer))


@pytest.fixture
def parts(trust):
    link = SimpleNamespace(trainer="tcp://127.0.0.1:5555", trainer_key="")
    settings = SimpleNamespace(rover_id="rover-1", link=link)
    rest = SimpleNamespace(routes=list)
    return SimpleNamespace(
        settings=settings, keys=make(), trust=trust, uplink=Uplink(), teleop=rest, policies=rest, store=rest
    )


@pytest.fixture
def ask(parts):
    routes = {(route.method, route.path): route for route in api.routes(parts, None)}

    async def ask(method, path, **body):
        return await answer(routes[method, path], Request({}, {}, body))

    ask.routes, ask.slot = routes, routes["POST", "/pair"].handler.__self__._pairing
    return ask


async def test_a_key_brought_by_hand_is_trusted_and_the_link_is_made_anew(ask, parts):
    status, facts = await ask("POST", "/trust", key=KEY, address=ADDRESS)
    assert (status, facts["trainer"], facts["trainer_fingerprint"]) == (200, KEY, fingerprint(KEY))
    assert "set link.trainer" in facts["hint"]
    assert parts.uplink.rekeyed == [(parts.keys.public, KEY)]
    parts.uplink.is_linked = True
    assert (await ask("POST", "/trust", key=KEY))[1]["already_trusted"]
    assert len(parts.uplink.rekeyed) == 1, "a good link is left alone"
    assert parts.keys.secret not in json.dumps((await ask("GET", "/keys"))[1])


@pytest.mark.parametrize(
    "body", [{}, {"key": 3}, {"key": "x"}, {"key": KEY, "address": "10.0.0.2"}, {"key": KEY, "address": 1}]
)
async def test_a_bad_key_or_address_is_refused(ask, parts, body):
    status, refused = await ask("POST", "/trust", **body)
    assert status in {400, 409}
    assert refused["error"].startswith("trust: ")
    assert parts.uplink.rekeyed == []


async def test_a_key_in_the_settings_wins_and_that_is_said(ask, parts):
    parts.settings.link.trainer_key = OTHER
    for path, body in (("/trust", {"key": KEY}), ("/pair", {"host": "x"})):
        status, refused = await ask("POST", path, **body)
        assert status == 409
        assert "link.trainer_key" in refused["error"]
    assert (await ask("GET", "/keys"))[1]["trainer"] == OTHER


@pytest.mark.parametrize("body", [{}, {"host": ""}, {"host": 3}, {"host": "a" * 300}, {"host": "a\n"}])
async def test_a_bad_host_is_refused(ask, body):
    assert (await ask("POST", "/pair", **body))[0] == 400


@pytest.mark.parametrize("port", [0, 65536, "5557", True, None])
async def test_a_bad_port_is_refused(ask, port):
    assert (await ask("POST", "/pair", host="127.0.0.1", port=port))[0] == 400


async def test_accepting_needs_the_code_that_the_person_saw(ask, parts):
    assert (await ask("GET", "/pair"))[1]["state"] == "none"
    ask.slot.current = confirmed()
    for code in ("", None, "417-903", 417902):
        status, refused = await ask("POST", "/pair/accept", code=code)
        assert status == 409
        assert "no pairing with code" in refused["error"]
    assert parts.trust.public == ""
    status, facts = await ask("POST", "/pair/accept", code="417-902")
    assert (status, facts["state"], facts["trainer_fingerprint"]) == (200, "trusted", fingerprint(KEY))
    assert parts.uplink.rekeyed == [(parts.keys.public, KEY)]
    assert (await ask("POST", "/pair/accept", code="417-902"))[1]["already_trusted"]


async def test_what_the_trainer_says_against_the_link_is_shown_with_the_pairing(ask, parts):
    parts.uplink.state, parts.uplink.refusal = "refused", "the trainer does not know this key"
    assert (await ask("GET", "/pair"))[1]["link"] == {
        "state": "refused",
        "refusal": "the trainer does not know this key",
    }


async def test_a_new_pairing_ends_the_one_before_it_and_cancel_ends_that(ask):
    server = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await ask("POST", "/pair", host="127.0.0.1", port=port)
    first = ask.slot.current
    await ask("POST", "/pair", host="127.0.0.1", port=port)
    assert (first.state, first.reason) == ("failed", "another pairing was begun")
    assert await ask("POST", "/pair/cancel") == (200, {"ok": True})
    assert (await ask("POST", "/pair/cancel"))[1]["already_over"]
    assert (await ask("GET", "/pair"))[1]["reason"] == "it was given up at the rover"
    server.close()


def test_what_changes_something_is_in_the_audit_log(parts):
    mutating = {route.path for route in api.routes(parts, None) if route.mutating}
    assert {"/pair", "/pair/accept", "/pair/cancel", "/trust"} <= mutating


class Daemon:
    """A control client whose daemon goes on one state at each look."""

    def __init__(self, *states, link="linked", refusal=""):
        self.states, self.link, self.posted = list(states), {"state": link, "refusal": refusal}, []

    def facts(self, state):
        known = state not in {"connecting", "none"}
        facts = {
            "state": state,
            "reason": "the trainer refused: no" if state == "failed" else "",
            "rover_id": "rover-1",
        }
        facts |= {"code": "417-902" if known else "", "trainer_fingerprint": fingerprint(KEY) if known else ""}
        return {"ok": True, **facts, "address": ADDRESS, "link": self.link}

    def get(self, _path):
        return self.facts(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def post(self, path, body=None):
        self.posted.append((path, body))
        return self.facts("trusted" if path == "/pair/accept" else "connecting")


def pair(daemon, monkeypatch, *, line=None, yes=False):
    stdin = SimpleNamespace(isatty=lambda: line is not None, readline=lambda: line)
    monkeypatch.setattr(ctl.sys, "stdin", stdin)
    monkeypatch.setattr(ctl, "POLL_S", 0.0)
    return ctl._pair(daemon, argparse.Namespace(host="10.0.0.2", port=5557, yes=yes))


def test_the_code_is_shown_once_and_the_person_is_asked(monkeypatch, capsys):
    daemon = Daemon("connecting", "comparing", "comparing", "confirmed")
    facts, status = pair(daemon, monkeypatch, line="y\n")
    shown = capsys.readouterr().err
    assert status == 0
    assert shown.count("trainerctl rover confirm 417-902") == 1
    assert "did trainerctl print 'paired rover-1'?" in shown
    assert daemon.posted[-1] == ("/pair/accept", {"code": "417-902"})
    assert ctl._paired(facts).splitlines()[0] == f"paired with trainer {fingerprint(KEY)} at {ADDRESS}"


@pytest.mark.parametrize("line", ["n\n", "\n", ""])
def test_a_person_who_does_not_say_yes_keeps_the_trainer_out(monkeypatch, line):
    daemon = Daemon("confirmed")
    with pytest.raises(PairingError, match="somebody else answered"):
        pair(daemon, monkeypatch, line=line)
    assert [path for path, _ in daemon.posted] == ["/pair", "/pair/cancel"]


def test_where_nobody_can_be_asked_nothing_is_begun_without_yes(monkeypatch):
    daemon = Daemon("confirmed")
    with pytest.raises(PairingError, match="--yes"):
        pair(daemon, monkeypatch)
    assert daemon.posted == []
    assert pair(daemon, monkeypatch, yes=True)[1] == 0


def test_a_trainer_that_refuses_is_quoted(monkeypatch):
    with pytest.raises(PairingError, match="the trainer refused: no"):
        pair(Daemon("comparing", "failed"), monkeypatch, yes=True)


def test_a_link_that_is_refused_after_pairing_is_told_with_status_1(monkeypatch):
    daemon = Daemon("confirmed", link="refused", refusal="spec: it differs")
    facts, status = pair(daemon, monkeypatch, yes=True)
    assert status == 1
    assert "link: refused: spec: it differs" in ctl._paired(facts)


def test_ctrl_c_gives_the_pairing_up(monkeypatch):
    daemon = Daemon("comparing")

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(ctl.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pair(daemon, monkeypatch, yes=True)
    assert daemon.posted[-1][0] == "/pair/cancel"


def test_the_key_is_shown_as_a_command_that_a_shell_takes(parts):
    client = SimpleNamespace(get=lambda _path: api.key_facts(parts))
    command = ctl._key(client, argparse.Namespace())[0]["at_the_trainer"]
    assert ctl.shlex.split(command) == ["trainerctl", "rover", "add", "rover-1", parts.keys.public]
