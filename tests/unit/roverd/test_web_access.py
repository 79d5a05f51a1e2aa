"""Who may use the page: host, origin, token, cookie."""

import stat

import pytest

from protocol.keys import KeyFileError
from roverd.web.access import Access, load_token

TOKEN = "a" * 32


@pytest.fixture
def access():
    return Access(TOKEN, 8081, ("rover.local", "Rover.Example:443"))


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("127.0.0.1:8081", True),
        ("localhost:8081", True),
        ("LOCALHOST:8081", True),
        ("[::1]:8081", True),
        ("192.168.1.7:8081", True),
        ("rover.local:8081", True),
        ("rover.example:443", True),
        ("rover.example", True),
        ("rover.example:8081", False),
        ("127.0.0.1", False),
        ("127.0.0.1:8082", False),
        ("evil.example:8081", False),
        ("localhost.evil.example:8081", False),
        ("evil.example:8081@127.0.0.1:8081", False),
        ("127.0.0.1:8081/x", False),
        ("127.0.0.1:port", False),
        ("[::1", False),
        ("", False),
        (None, False),
    ],
)
def test_only_names_of_this_server_are_known(access, host, is_known):
    assert access.knows_host(host) == is_known


@pytest.mark.parametrize(
    ("origin", "is_known"),
    [
        ("http://127.0.0.1:8081", True),
        ("http://localhost:8081", True),
        ("https://rover.example", True),
        ("http://evil.example:8081", False),
        ("http://127.0.0.1:8080", False),
        ("file://", False),
        ("null", False),
        ("http://127.0.0.1:8081/path", False),
        ("ftp://127.0.0.1:8081", False),
        ("http://[", False),
        ("", False),
        (None, False),
    ],
)
def test_only_pages_of_this_server_are_known(access, origin, is_known):
    assert access.knows_origin(origin) == is_known


def test_the_token_opens_and_the_cookie_is_not_the_token(access):
    assert access.knows_token(TOKEN)
    assert access.knows_cookie(access.cookie)
    assert TOKEN not in access.cookie
    for wrong in ("", TOKEN[:-1], TOKEN + "a", "\ud800", "\u00e4" * 32):
        assert not access.knows_token(wrong)
        assert not access.knows_cookie(wrong)
    assert not access.knows_cookie(None)
    assert not access.knows_cookie(TOKEN)


def test_a_cookie_outlives_a_restart_and_no_new_token():
    assert Access(TOKEN, 8081, ()).cookie == Access(TOKEN, 8081, ()).cookie
    assert Access("b" * 32, 8081, ()).cookie != Access(TOKEN, 8081, ()).cookie


def test_a_token_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "web.token"
    token = load_token(path)
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_token(path) == token
    assert load_token(tmp_path / "other.token") != token


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"a\nb" * 20])
def test_a_file_without_a_token_is_refused(tmp_path, content):
    path = tmp_path / "web.token"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="no token"):
        load_token(path)


def test_a_token_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "web.token"
    load_token(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_token(path)
