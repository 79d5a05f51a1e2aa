"""One rover as trainerd sees it, and how what it says of itself is judged and kept."""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import Fields, ProtocolError
from protocol.messages import NAME, Hello, Refuse
from protocol.step import Record
from trainerd.episodes.records import StoredRecord
from trainerd.lane import Boot

Waiting = StoredRecord | Record
"""A record that waits: as it came, or decoded, where the consumer was busy."""

VERDICTS_KEPT = 50
MAX_BACKLOG = 32
"""Earlier boots that a hello may name."""
MAX_SEQ = 1 << 62


@dataclass
class Rover:
    """One rover of the run, connected or not."""

    rover_id: str
    boot_id: str
    identity: bytes
    boot: Boot[Waiting]
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
    """Records of this boot that the rover dropped unsent because its spool was full."""
    round_trip_ms: float | None = None
    key: str = ""
    """Public CURVE key of its connection; empty where the link is plain."""
    fd: int = -1
    """Socket of its connection, as the last hello came from."""
    told_credit: int = 0
    allowance: float = 0.0
    """Bytes that it may send now, and when that was computed."""
    allowed_s: float = 0.0
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
            "waiting": self.boot.waiting,
            "next_seq": self.boot.live.next_seq,
            "live_seq": self.boot.live.start,
            "backfill_seq": self.boot.backfill.next_seq,
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


@dataclass(frozen=True)
class Backlog:
    """What a rover holds of an earlier boot."""

    boot_id: str
    first: int
    next: int
    epoch_ns: int


def backlog_of(hello: Hello) -> list[Backlog]:
    """Return the backlog of a hello; raises ProtocolError where it is none."""
    backlog = []
    for each in hello.backlog[:MAX_BACKLOG]:
        if type(each) is not dict:  # it came over the wire
            raise ProtocolError(f"hello.backlog: {str(each)[:60]} is no map")
        fields = Fields("hello.backlog", each)
        boot_id = fields.get("boot_id", str)
        first, following = fields.count("first"), fields.count("next")
        if not re.fullmatch(NAME, boot_id) or first > following or following >= MAX_SEQ or boot_id == hello.boot_id:
            raise ProtocolError(f"hello.backlog: {boot_id[:64]!r}, {first} to {following}")
        backlog.append(Backlog(boot_id, first, following, fields.count("epoch_ns", 0)))
    return backlog


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
    if not 0 <= hello.oldest_unacked <= hello.next_seq < MAX_SEQ or not 0 <= hello.live_seq <= hello.next_seq:
        text = f"oldest unacked {hello.oldest_unacked}, live from {hello.live_seq}, next {hello.next_seq}"
        return Refuse("seq", f"{name}: {text}")
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


def realtime_words(granted: Any) -> str:
    """Return ``control fifo 50 locked, policy 0 nice -5`` of what a rover said in its greeting."""
    if not isinstance(granted, dict):
        return ""
    words = []
    for name, report in sorted(granted.items()):
        if isinstance(report, dict):
            how = f"fifo {report.get('priority')}" if report.get("fifo") else f"nice {report.get('nice')}"
            words.append(f"{name} {how}" + (" locked" if report.get("mlockall") else ""))
    return ", ".join(words)
