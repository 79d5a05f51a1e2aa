"""One rover as trainerd sees it, and how what it says of itself is judged and kept."""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.messages import NAME, Hello, Refuse
from protocol.step import Record
from trainerd.lane import Lane

Waiting = tuple[dict[str, Any], list[bytes]] | Record
"""A record that waits: its header and its image frames, or decoded, where the consumer was busy."""

VERDICTS_KEPT = 50


@dataclass
class Rover:
    """One rover of the run, connected or not."""

    rover_id: str
    boot_id: str
    identity: bytes
    lane: Lane[Waiting]
    software: str = ""
    connected: bool = True
    heard_s: float = 0.0
    stepped_s: float = 0.0
    """When the last new record came, or the rover was ordered to train."""
    steps: int = 0
    policy_id: str = ""
    policy_counter: int = 0
    order_id: str = ""
    order_stage: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Policies that the rover refused, with its reason."""
    verdicts: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=VERDICTS_KEPT))
    malformed: int = 0
    overflow: int = 0
    """Records of this boot that the rover dropped unsent because its outbox was full."""
    round_trip_ms: float | None = None
    acked_s: float = 0.0
    oldest_unacked: int = 0
    """The rover has no record below it any more."""
    offered: tuple[str, float, float] = ("", 0.0, 0.0)
    """What was offered last: policy, when, and how long to wait before it is said again."""
    ordered: tuple[str, float, float] = ("", 0.0, 0.0)
    """Likewise for the order."""

    def to_map(self, now_s: float) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {
            "rover_id": self.rover_id,
            "boot_id": self.boot_id,
            "connected": self.connected,
            "silent_s": round(now_s - self.heard_s, 3),
            "software": self.software,
            "steps": self.steps,
            "waiting": len(self.lane.waiting),
            "next_seq": self.lane.next_seq,
            "malformed": self.malformed,
            "overflow": self.overflow,
            "round_trip_ms": self.round_trip_ms,
            "policy_id": self.policy_id,
            "policy_counter": self.policy_counter,
            "order_id": self.order_id,
            "order_stage": self.order_stage,
            "refused": dict(list(self.refused.items())[-10:]),
            "verdicts": list(self.verdicts)[-10:],
            "status": self.status,
            "settings": self.settings,
        }


def refusal_of_text(hello: Hello) -> Refuse | None:
    """Judge what of a hello can be judged by itself."""
    name = hello.rover_id[:80]
    if not re.fullmatch(NAME, hello.rover_id) or not re.fullmatch(NAME, hello.boot_id):
        return Refuse("name", f"rover {name!r}, boot {hello.boot_id[:80]!r}: names must match {NAME}")
    if hello.newest_version < OLDEST_PROTOCOL_VERSION or hello.oldest_version > PROTOCOL_VERSION:
        older = "the rover" if hello.newest_version < OLDEST_PROTOCOL_VERSION else "trainerd"
        theirs = f"it speaks protocol {hello.oldest_version} to {hello.newest_version}"
        ours = f"this side {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}"
        return Refuse("version", f"{name}: {theirs}, {ours}: update {older}")
    if not 0 <= hello.oldest_unacked <= hello.next_seq < 1 << 62:
        return Refuse("seq", f"{name}: oldest unacked {hello.oldest_unacked}, next {hello.next_seq}")
    return None


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Reduce what a rover sent to what JSON can say: text, finite numbers, lists and maps, not deep, not long."""
    return {str(key)[:80]: _plain(value, 3) for key, value in list(values.items())[:100]}


def whole(value: Any) -> int:
    """Return a count that a rover stated, or 0 where it is none."""
    return value if type(value) is int and value > 0 else 0


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value[:400]
    if depth and isinstance(value, dict):
        return {str(key)[:80]: _plain(each, depth - 1) for key, each in list(value.items())[:100]}
    if depth and isinstance(value, list):
        return [_plain(each, depth - 1) for each in value[:100]]
    return str(value)[:80]
