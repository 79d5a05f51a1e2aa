"""Checks of each rover as the trainer sees it: does it come, does it send, does it drive what it should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.node.checkup.check import Check, judge, note
from trainerd.rover import realtime_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trainerd.fleet import Fleet

SLOW_LINK_MS = 50.0
CLOCK_SKEW_S = 2.0
DEAD_STREAM_S = 10.0
LEAST_OF_RATE = 0.9
PATIENT_OFFERS = 4.0
"""An offer is repeated after twice the time each; a rover that was asked so much longer ago does not follow."""
STANDING = {
    "e_stop": "its emergency stop is latched: at the rover, roverctl clear",
    "held": "somebody stopped it: at the rover, roverctl episode start",
    "unarmed": "it did not pass its self-check yet: at the rover, roverctl selfcheck",
    "task_disabled": "its task plugin failed: at the rover, roverctl plugins",
}
"""What a rover's own mode says about why it sends nothing."""


@dataclass(frozen=True)
class RoverFacts:
    """What is known of one rover at a moment."""

    rover_id: str
    connected: bool = True
    silent_s: float = 0.0
    software: str = ""
    round_trip_ms: float | None = None
    stepless_s: float = 0.0
    """Time since the last new step, or since it was told to drive."""
    is_to_drive: bool = False
    waiting: int = 0
    """Records that came and could not be taken yet: the trainer's fault, not the rover's."""
    overflow: int = 0
    malformed: int = 0
    wanted: str = ""
    policy_id: str = ""
    offered_again_s: float = 0.0
    """How long the trainer waits until it offers the wanted policy again: it doubles with each offer."""
    refused: Mapping[str, str] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def rovers_of(fleet: Fleet, now_s: float) -> list[RoverFacts]:
    """Copy what is known of every rover; on the link thread."""
    facts = []
    for rover in fleet.rovers.values():
        offer = fleet.offer_for(rover)
        wanted = offer.policy_id if offer is not None else ""
        facts.append(
            RoverFacts(
                rover.rover_id,
                rover.connected,
                now_s - rover.heard_s,
                rover.software,
                rover.round_trip_ms,
                now_s - rover.stepped_s,
                rover.order_id not in {"", "idle"} or fleet.order_for(rover).order_id != "idle",
                rover.boot.waiting,
                rover.overflow,
                rover.malformed,
                wanted,
                rover.policy_id,
                rover.offered[2] if rover.offered[0] == wanted else 0.0,
                dict(rover.refused),
                dict(rover.status),
                dict(rover.settings),
            )
        )
    return facts


def presence(rovers: Sequence[RoverFacts], known: Sequence[str], *, address: str, refusal: str) -> Iterator[Check]:
    """Judge who is here of those who have a key, and who was turned away."""
    here = {each.rover_id for each in rovers if each.connected}
    away = sorted({*known, *(each.rover_id for each in rovers)} - here)
    hint = refusal or f"start roverd with --trainer {address}; at a new rover: roverctl pair HOST"
    yield judge("rovers", ", ".join(sorted(here)) or "none connected", "at least one connected", hint, ok=bool(here))
    if here and away:
        hint = "switch it on, or trainerctl rover revoke NAME where it is gone for good; roverctl doctor at the rover"
        yield note("rovers away", ", ".join(away), "every rover that has a key is here", hint)
    if refusal:
        is_over = any(refusal.startswith(name) for name in here)
        hint = "the rover is not of this run: correct it, or begin a run of its own in another state_dir"
        yield judge("refused rovers", refusal, "none", hint, ok=False, is_needed=not is_over)


def keys(rows: Sequence[Mapping[str, Any]], last_refusal: str, count: int, *, is_anybody_here: bool) -> Iterator[Check]:
    """Judge whose keys were turned away; one that was let in since is nobody's worry."""
    allowed = {row["fingerprint"] for row in rows if row["state"] == "allowed"}
    who = last_refusal.rpartition(" ")[2]
    if not last_refusal or who in allowed:
        yield judge("keys", f"{len(allowed)} let in", "nobody else tries", "", ok=True)
        return
    revoked = "revoked" in last_refusal
    hint = "it was shut out on purpose: stop it, or pair it again (trainerctl rover confirm CODE --again)"
    if not revoked:
        hint = "if it is yours, pair it: at the rover, roverctl pair HOST"
    is_needed = not revoked and not is_anybody_here
    yield judge("keys", f"{last_refusal} ({count} refused)", "nobody else tries", hint, ok=False, is_needed=is_needed)


def rover(facts: RoverFacts, ours: str) -> Iterator[Check]:
    """Run every check of one connected rover; ``ours`` is this side's version of the software."""
    yield from link(facts)
    yield from stream(facts)
    yield from policy(facts)
    yield from software(facts, ours)
    yield from realtime(facts)


def link(facts: RoverFacts) -> Iterator[Check]:
    """Judge the round trip, the clocks and what did not arrive."""
    name, skew_s = facts.rover_id, facts.status.get("clock_skew_s")
    if facts.round_trip_ms is not None:
        expected, ok = f"below {SLOW_LINK_MS:g} ms", facts.round_trip_ms < SLOW_LINK_MS
        hint = "the network is slow: move nearer to the access point, use 5 GHz or a cable, look for other traffic"
        yield judge(f"link to {name}", f"{facts.round_trip_ms:.2f} ms round trip", expected, hint, ok=ok)
    if isinstance(skew_s, int | float):
        expected, ok = f"within {CLOCK_SKEW_S:g} s", abs(skew_s) <= CLOCK_SKEW_S
        hint = "wall clocks differ (only people read them): timedatectl set-ntp true on both machines"
        yield judge(f"clock of {name}", f"{skew_s:+.3f} s", expected, hint, ok=ok)
    if facts.overflow or facts.malformed:
        measured = f"{facts.overflow} records dropped at the rover, {facts.malformed} malformed here"
        hint = "its spool was full while the trainer was away: raise spool.max_mb; malformed: update the older side"
        yield judge(f"records of {name}", measured, "none lost", hint, ok=False, is_needed=bool(facts.overflow))


def stream(facts: RoverFacts) -> Iterator[Check]:
    """Judge whether a rover that is told to drive sends steps, and how many a second."""
    name, mode = facts.rover_id, str(facts.status.get("mode", ""))
    rate, nominal = facts.status.get("ticks_per_second"), facts.settings.get("rate_hz")
    expected = f"a step in the last {DEAD_STREAM_S:g} s"
    if not facts.is_to_drive:
        yield judge(f"steps of {name}", "it is told to rest", "none while it rests", "", ok=True)
        return
    is_dead = facts.stepless_s > DEAD_STREAM_S and not facts.waiting
    measured = f"the last one {facts.stepless_s:.1f} s ago" + (f", mode {mode}" if mode else "")
    if isinstance(rate, int | float):
        measured += f", {rate:.1f} ticks a second"
    hint = STANDING.get(mode, "roverctl status and roverctl doctor at the rover say what it waits for")
    yield judge(f"steps of {name}", measured, expected, hint, ok=not is_dead)
    if not is_dead and _is_slow(rate, nominal) and mode not in STANDING:
        expected = f"at least {100 * LEAST_OF_RATE:g} % of {nominal:g} ticks a second while it drives"
        hint = "between episodes a rate is lower; if it stays: roverctl doctor at the rover (lateness, missed ticks)"
        yield note(f"rate of {name}", f"{rate:.1f} ticks a second", expected, hint)


def _is_slow(rate: Any, nominal: Any) -> bool:
    is_known = isinstance(rate, int | float) and isinstance(nominal, int | float)
    return is_known and nominal > 0 and rate < LEAST_OF_RATE * nominal


def policy(facts: RoverFacts) -> Iterator[Check]:
    """Judge whether it drives what it should; an offer that is on its way is no fault."""
    name, wanted = facts.rover_id, facts.wanted
    check, expected = f"policy of {name}", f"drives {wanted[:12]}"
    if not wanted:
        yield judge(check, facts.policy_id[:12] or "none", "none is wanted yet", "", ok=True)
    elif wanted in facts.refused:
        hint = "the rover keeps the policy it had; a newer one will be offered; trainerctl rover list, roverctl status"
        yield judge(check, f"refused {wanted[:12]}: {facts.refused[wanted]}", expected, hint, ok=False)
    elif facts.policy_id != wanted and facts.offered_again_s > PATIENT_OFFERS:
        hint = "it does not take what it is offered: roverctl doctor at the rover, and its log (policy.*)"
        measured = f"drives {facts.policy_id[:12] or 'nothing'} although it was offered another again and again"
        yield judge(check, measured, expected, hint, ok=False)
    else:
        state = "" if facts.policy_id == wanted else ", the wanted one is on its way"
        yield judge(check, f"drives {facts.policy_id[:12] or 'none'}{state}", expected, "", ok=True)
    older = {key: reason for key, reason in facts.refused.items() if key != wanted}
    if older:
        reasons = "; ".join(f"{key[:12]}: {reason}" for key, reason in list(older.items())[-3:])
        yield note(f"refused by {name}", reasons, "none", "they are not offered again")


def software(facts: RoverFacts, ours: str) -> Iterator[Check]:
    """Say whether both sides run the same release; the protocol is judged at the greeting."""
    hint = "both speak one protocol, so it works; update the older one"
    ok = facts.software == ours
    yield judge(f"version of {facts.rover_id}", facts.software or "unknown", ours, hint, ok=ok, is_needed=False)


def realtime(facts: RoverFacts) -> Iterator[Check]:
    """Show what its kernel granted to the processes that keep time; the rover's own doctor judges it."""
    granted = facts.settings.get("realtime")
    if not isinstance(granted, dict) or not granted or not facts.settings.get("rate_hz"):
        return
    reasons = sorted({str(each.get("reason")) for each in granted.values() if isinstance(each, dict) and _lacks(each)})
    measured, check = realtime_words(granted), f"realtime of {facts.rover_id}"
    yield judge(
        check, measured, "SCHED_FIFO for control and policy", "; ".join(reasons), ok=not reasons, is_needed=False
    )


def _lacks(report: Mapping[str, Any]) -> bool:
    return not report.get("fifo") and bool(report.get("reason"))
