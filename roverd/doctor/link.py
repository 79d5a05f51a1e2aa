"""Checks of the way to the trainer: keys, connection, what answers at its address, round trip, clocks, spec."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from protocol.keys import fingerprint
from protocol.node.checkup.address import Reach, judge_reach
from protocol.node.checkup.check import Check, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW_LINK_MS = 50.0
MAX_SKEW_S = 2.0


def keys(own: str, trainer: str, *, is_curve: bool) -> Iterator[Check]:
    """Judge whether it is paired; ``own`` and ``trainer`` are public keys."""
    if not is_curve:
        yield judge("keys", "link.curve is off", "off only towards this machine's own trainer", "", ok=True)
        return
    measured = f"rover {fingerprint(own)}, trainer {fingerprint(trainer) if trainer else 'none'}"
    yield judge("keys", measured, "paired with a trainer", "roverctl pair HOST", ok=bool(trainer))


def link(state: str, address: str, *, refusal: str, degraded: str) -> Iterator[Check]:
    """Judge the connection; the reason is the one that the trainer gave, or that this side sees."""
    why = refusal or degraded
    hint = why or f"is trainerd running at {address}? does a firewall let it through? see the port below"
    ok = state == "linked" and not degraded
    yield judge("link", f"{state} {why}".strip(), f"linked to {address}", hint, ok=ok)


def port(address: str, found: Reach | None) -> Iterator[Check]:
    """Judge what answers at the trainer's address; a link that works was not tried (None)."""
    if found is None:
        yield judge("port of the trainer", f"{address}: linked", "a trainer answers", "", ok=True)
    else:
        yield from judge_reach(address, found)


def quality(round_trip_ms: float, skew_s: float) -> Iterator[Check]:
    """Judge a link that works: how fast it is and whether both wall clocks agree; NaN is not known yet."""
    if not math.isnan(round_trip_ms):
        hint = "the network is slow: nearer to the access point, 5 GHz or a cable, look for other traffic"
        measured, ok = f"{round_trip_ms:.2f} ms", round_trip_ms < SLOW_LINK_MS
        yield judge("link round trip", measured, f"below {SLOW_LINK_MS:g} ms", hint, ok=ok)
    if not math.isnan(skew_s):
        hint = "people read wall clocks: run an NTP client on both machines (timedatectl set-ntp true)"
        ok = abs(skew_s) <= MAX_SKEW_S
        yield judge("clock skew", f"{skew_s:+.3f} s", f"within {MAX_SKEW_S:g} s", hint, ok=ok)


def spec(robot_hash: str, refusal: str) -> Iterator[Check]:
    """Judge whether the trainer's run is for this robot; its refusal names each difference."""
    ok = "spec" not in refusal and "differs" not in refusal
    yield judge("robot spec", robot_hash[:12], "the trainer's run has the same", refusal, ok=ok)
