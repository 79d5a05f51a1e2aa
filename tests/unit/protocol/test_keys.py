import json
import os
import re
import stat
import threading

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from protocol import keys
from protocol.keys import (
    KeyFileError,
    KeyPair,
    commit,
    fingerprint,
    load_or_make,
    read_private,
    short_code,
    valid_public,
    write_private,
)

ROVER, TRAINER = (zmq.curve_keypair()[0].decode() for _ in range(2))
FACTS = {
    "rover_id": "rover-1",
    "rover_public": ROVER,
    "trainer_public": TRAINER,
    "rover_nonce": b"r" * 32,
    "trainer_nonce": b"t" * 32,
}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "keys" / "curve.json"


def test_the_first_start_makes_a_key_that_only_the_owner_may_read(path):
    before = os.umask(0)
    try:
        pair = load_or_make(path)
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert zmq.curve_public(pair.secret.encode()).decode() == pair.public
    assert valid_public(pair.public)
    assert [each.name for each in path.parent.iterdir()] == ["curve.json"]


def test_a_later_start_has_the_same_key(path):
    assert load_or_make(path) == load_or_make(path)


def test_of_two_first_starts_at_once_both_have_the_key_that_is_on_disk(path):
    made = []
    threads = [threading.Thread(target=lambda: made.append(load_or_make(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(made) == {load_or_make(path)}
    assert len(made) == 8


def test_a_secret_does_not_show(path):
    pair = load_or_make(path)
    assert pair.secret not in f"{pair!r} {pair} {[pair]}"
    assert pair.public in repr(pair)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(path, bits):
    load_or_make(path)
    path.chmod(bits)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        load_or_make(path)


def test_a_folder_that_others_may_enter_is_refused_with_the_remedy(path):
    load_or_make(path)
    path.parent.chmod(0o750)
    with pytest.raises(KeyFileError, match=f"chmod 700 {path.parent}"):
        load_or_make(path)


def test_a_key_of_another_user_is_refused(path, monkeypatch):
    load_or_make(path)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(KeyFileError, match="belongs to user"):
        load_or_make(path)


def damaged(pair):
    other = zmq.curve_keypair()[0].decode()
    whole = {"public": pair.public, "secret": pair.secret}
    yield ""
    yield "{"
    yield "[]"
    yield "null"
    yield json.dumps({"public": pair.public})
    yield json.dumps({**whole, "public": other})
    yield json.dumps({**whole, "secret": pair.secret[:-1]})
    yield json.dumps({**whole, "secret": "\u00e4" * 40})
    yield json.dumps(whole)[:-9]


def test_a_damaged_key_is_refused_and_stays_and_the_secret_is_not_in_the_error(path):
    pair = load_or_make(path)
    for text in damaged(pair):
        path.write_text(text)
        with pytest.raises(KeyFileError, match="move it away") as caught:
            load_or_make(path)
        assert path.read_text() == text
        assert pair.secret[:-1] not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_what_is_no_file_is_refused_and_does_not_hang(path):
    load_or_make(path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="not a file"):
        load_or_make(path)


def test_a_disk_that_refuses_leaves_what_was_there(path, monkeypatch):
    path.parent.mkdir(parents=True)
    write_private(path, b"old")

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KeyFileError, match="No space left"):
        write_private(path, b"new")
    assert read_private(path) == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["curve.json"]


def test_a_key_never_looks_like_an_option(monkeypatch):
    pairs = iter([(b"-" + b"a" * 39, b"x"), (b"b" * 40, b"y")])
    monkeypatch.setattr(zmq, "curve_keypair", lambda: next(pairs))
    assert keys._make_pair() == KeyPair("b" * 40, "y")


def test_a_public_key_is_forty_characters_of_z85():
    assert valid_public(ROVER)
    for text in ("", ROVER[:-1], ROVER + "a", ROVER + "\n", ROVER[:-1] + "~", ROVER[:-1] + "\u00e4", "#" * 40):
        assert not valid_public(text), text


def test_a_key_whose_secret_everybody_knows_is_none():
    prime = 2**255 - 19
    for point in (0, 1, prime - 1, prime, prime + 1, *keys._SMALL_ORDER, 1 << 255):
        raw = point.to_bytes(32, "little")
        assert not valid_public(z85.encode(raw).decode()), point


def test_a_fingerprint_is_four_groups_and_differs_between_keys():
    assert fingerprint("a" * 40) == fingerprint("a" * 40)
    assert fingerprint(ROVER) != fingerprint(TRAINER)
    assert [len(group) for group in fingerprint(ROVER).split("-")] == [4, 4, 4, 4]


def test_known_values_stay_as_they_are():
    """Both machines must compute the same in all versions."""
    assert short_code("rover-1", "a" * 40, "b" * 40, bytes(32), b"\1" * 32) == KNOWN["code"]
    assert commit(bytes(32), "a" * 40).hex() == KNOWN["commit"]
    assert fingerprint("a" * 40) == KNOWN["fingerprint"]


@pytest.mark.parametrize("name", FACTS)
def test_the_code_depends_on_everything_that_both_saw(name):
    value = FACTS[name]
    codes = set()
    for i in range(20):
        tail = chr(97 + i) if isinstance(value, str) else bytes([97 + i])
        codes.add(short_code(**{**FACTS, name: value[:-1] + tail}))
    assert len(codes) > 15


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_the_code_is_six_digits(rover_id, first, second):
    assert re.fullmatch(r"\d{3}-\d{3}", short_code(rover_id, ROVER, TRAINER, first, second))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=8), st.binary(min_size=1, max_size=8))
def test_what_is_hashed_cannot_flow_from_one_part_into_the_next(first, second):
    assert keys._digest(b"", first, second) != keys._digest(b"", first + second[:1], second[1:])


def test_a_commitment_fixes_the_nonce_and_the_key():
    assert len(commit(b"n" * 32, ROVER)) == 32
    assert len({commit(b"n" * 32, ROVER), commit(b"m" * 32, ROVER), commit(b"n" * 32, TRAINER)}) == 3


KNOWN = {
    "code": "851-100",
    "commit": "85092ed8487818f1f0a59822a28a6494e77307f8c387d4db80cd1f3ecc097fbd",
    "fingerprint": "4M6N-7HD7-OEQL-TDUM",
}
