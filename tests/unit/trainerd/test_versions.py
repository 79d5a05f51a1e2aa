"""A rover of another version is admitted with the common version, or told in a sentence who must be updated."""

from __future__ import annotations

import pytest

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from tests.wire.peers import RANGES, hello
from trainerd.rover import refusal_of_text


@pytest.mark.parametrize(("name", "who"), [("older", "the rover"), ("newer", "trainerd")])
def test_a_rover_without_a_common_version_is_refused_and_told_who_must_update(name: str, who: str) -> None:
    oldest, newest = RANGES[name]
    refusal = refusal_of_text(hello(oldest, newest))
    assert refusal is not None
    assert (refusal.code, refusal.reason.endswith(f"update {who}")) == ("version", True)
    assert f"speaks protocol {oldest} to {newest}" in refusal.reason
    assert f"this side {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}" in refusal.reason


@pytest.mark.parametrize("name", ["older_to_this", "this_to_newer"])
def test_a_rover_with_a_common_version_is_not_refused(name: str) -> None:
    assert refusal_of_text(hello(*RANGES[name])) is None


@pytest.mark.parametrize("versions", [(2, 1), (-1, -1), (-5, 1 << 62), (1 << 62, 1 << 62)])
def test_versions_that_make_no_sense_stop_nothing(versions: tuple[int, int]) -> None:
    refusal = refusal_of_text(hello(*versions))
    assert refusal is None or refusal.code == "version"
