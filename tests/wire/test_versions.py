"""What a peer of another version says is understood as far as this version goes, or refused in a sentence."""

from __future__ import annotations

import pytest

from protocol.framing import unpack
from protocol.messages import decode, encode
from tests.wire.generate import read
from tests.wire.peers import FOLDER, RANGES, UNKNOWN, hello, welcome, with_unknown_keys

GOLDEN = {
    "message.hello_1": hello(*RANGES["this_to_newer"]),
    "message.hello_2": hello(*RANGES["newer"]),
    "message.welcome_1": welcome(1),
    "message.welcome_2": welcome(2),
}


def test_every_golden_message_of_a_newer_version_is_looked_at() -> None:
    assert sorted(path.name.removesuffix(".bin") for path in FOLDER.glob("*.bin")) == sorted(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_unknown_keys_of_a_newer_version_are_ignored(name: str) -> None:
    header, *frames = read(FOLDER / f"{name}.bin")
    assert unpack(header).keys() > UNKNOWN.keys()
    assert encode(decode(unpack(header), frames)) == encode(GOLDEN[name])


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_bytes_of_a_newer_version_are_still_what_the_helper_makes(name: str) -> None:
    assert with_unknown_keys(GOLDEN[name]) == read(FOLDER / f"{name}.bin")
