"""Every decoder stands what hypothesis makes of golden bytes; the long runs are ``./dev bench fuzz``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.framing import ProtocolError
from tests.fuzz import services, wire
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = {"control": 15, "bundle": 15, "legacy": 15, "episode": 15}
SEEDS = {name: target.seeds() for name, target in TARGETS.items()}


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
    """Draw a seed with some bytes changed, a piece cut out, and a piece put in."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        begin = draw(st.integers(0, len(content)))
        del content[begin : begin + draw(st.integers(0, 40))]
    if draw(st.booleans()):
        place = draw(st.integers(0, len(content)))
        content[place:place] = draw(st.binary(max_size=20))
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_understood_and_small_enough(name: str) -> None:
    for seed in SEEDS[name]:
        assert len(seed) <= TARGETS[name].max_bytes
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_stands_changed_bytes(name: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(name, 30), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(mutated(SEEDS[name]) | st.binary(max_size=200))
    def stands(data: bytes) -> None:
        TARGETS[name].run(data)

    stands()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 100, bytes(1000)], ids=["empty", "zero", "ones", "zeros"])
def test_a_decoder_stands_plain_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


def test_the_control_socket_is_asked_what_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PATIENCE_S", 1.0)  # a busy machine may be late
    status = [
        services.asked(services.server().path, services.request(seed)).partition(b"\r\n")[0]
        for seed in SEEDS["control"]
    ]
    assert [each.split()[1] for each in status] == [b"200", b"200", b"400", b"200", b"200", b"400", b"400"]


def test_an_error_that_is_not_the_decoders_own_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_data: bytes) -> None:
        raise IndexError("planted")

    monkeypatch.setattr(wire, "unpack", broken)
    with pytest.raises(IndexError, match="planted"):
        TARGETS["header"].run(SEEDS["header"][0])


def test_writing_beside_the_output_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_data: bytes, out: np.ndarray) -> None:
        out.base[0] = 7

    monkeypatch.setattr(wire, "decode_rgb", broken)
    with pytest.raises(AssertionError, match="beside"):
        TARGETS["jpeg"].run(b"")


def test_what_a_pairing_stranger_leaves_behind_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ProtocolError("and nobody catches it")

    _, desk = services.desk()
    monkeypatch.setattr(desk, "_connected", broken)
    with pytest.raises(ProtocolError, match="nobody"):
        TARGETS["pairing"].run(SEEDS["pairing"][0])
