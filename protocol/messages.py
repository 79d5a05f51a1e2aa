"""The messages that are not experience: greeting, acknowledgement, liveness, policies and orders.

Each is a msgpack map with its ``kind``; a Chunk carries its bytes in a second frame. ``decode`` checks the type of each
field and ignores unknown ones.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from protocol.framing import Fields, ProtocolError, pack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_CHUNK_BYTES = 1 << 20
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
"""What a rover, run or policy name may look like."""


@dataclass(frozen=True)
class Message:
    """Base of all messages; ``kind`` names them on the wire."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Hello(Message):
    """Rover to trainer, first on a connection and again after each silence."""

    kind: ClassVar[str] = "hello"
    rover_id: str
    boot_id: str
    oldest_version: int
    newest_version: int
    robot: dict[str, Any]
    task: dict[str, Any]
    codecs: list[str]
    software: str
    next_seq: int
    """The seq that the next new record will get."""
    oldest_unacked: int
    policy_id: str = ""
    policy_counter: int = 0
    order_id: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else must be known of the run: seed, reward weights, real-time state."""
    live_seq: int = 0
    """Records of this boot from here on come in the live lane; unacknowledged ones below it in the backfill lane."""
    epoch_ns: int = 0
    """The rover's wall clock less its monotonic clock at the start of this boot; 0 where it is not known."""
    backlog: list[dict[str, Any]] = field(default_factory=list)
    """What is held of earlier boots, oldest first: maps of boot_id, first and next (seq), epoch_ns."""


@dataclass(frozen=True)
class Welcome(Message):
    """Trainer to rover: the common version, credit, and what of this boot was already received."""

    kind: ClassVar[str] = "welcome"
    version: int
    trainer_id: str
    run_id: str
    credit: int
    boot_id: str
    received: list[list[int]] = field(default_factory=list)
    """Inclusive ranges of seq of this boot that are safe at the trainer."""
    backlog: dict[str, list[list[int]]] = field(default_factory=dict)
    """The same of each earlier boot that the hello named; a boot that is missing here is not wanted now."""


@dataclass(frozen=True)
class Refuse(Message):
    """Trainer to rover: not admitted; ``retry`` tells whether trying again may help."""

    kind: ClassVar[str] = "refuse"
    code: str
    reason: str
    retry: bool = False


@dataclass(frozen=True)
class Ack(Message):
    """Trainer to rover: inclusive ranges of seq that are safe at the trainer, and how many may be under way."""

    kind: ClassVar[str] = "ack"
    boot_id: str
    ranges: list[list[int]]
    credit: int


@dataclass(frozen=True)
class Resend(Message):
    """Trainer to rover: these inclusive ranges of seq did not arrive although later ones did; send them again."""

    kind: ClassVar[str] = "resend"
    boot_id: str
    ranges: list[list[int]]


@dataclass(frozen=True)
class Gone(Message):
    """Rover to trainer: these inclusive ranges of seq will never come; the rover does not have them any more."""

    kind: ClassVar[str] = "gone"
    boot_id: str
    ranges: list[list[int]]
    reason: str = ""


@dataclass(frozen=True)
class Ping(Message):
    """Either way, once a second; the rover states which policy drives (the trainer converges it)."""

    kind: ClassVar[str] = "ping"
    sent_ns: int
    policy_id: str = ""
    policy_counter: int = 0
    order_id: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    oldest_unacked: int = 0
    """The rover no longer has any record below it: what is missing there will never come."""


@dataclass(frozen=True)
class Pong(Message):
    """Answer to a ping, with its stamp."""

    kind: ClassVar[str] = "pong"
    sent_ns: int
    status: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer(Message):
    """Trainer to rover: the policy that should drive; the rover pulls it in chunks."""

    kind: ClassVar[str] = "offer"
    policy_id: str
    counter: int
    size_bytes: int
    sha256: str
    rollback: bool = False
    """An older counter is wanted on purpose."""


@dataclass(frozen=True)
class ChunkRequest(Message):
    """Rover to trainer: one piece of an offered bundle."""

    kind: ClassVar[str] = "chunk_request"
    policy_id: str
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk(Message):
    """Trainer to rover: a piece of a bundle; its bytes are the second frame."""

    kind: ClassVar[str] = "chunk"
    policy_id: str
    offset: int
    content: bytes = b""


@dataclass(frozen=True)
class Verdict(Message):
    """Rover to trainer: what became of a policy. ``stage``: fetched, verified, driving, refused, rolled_back."""

    kind: ClassVar[str] = "verdict"
    policy_id: str
    stage: str
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Order(Message):
    """Trainer to rover: how to drive from the next episode on.

    ``mode``: train (explore with the current policy), evaluate (``episodes`` episodes in arenas ``seed`` and up,
    without exploration), idle. ``controller``: policy, or the name of a controller plugin.
    """

    kind: ClassVar[str] = "order"
    order_id: str
    mode: str
    controller: str = "policy"
    policy_id: str = ""
    episodes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class OrderUpdate(Message):
    """Rover to trainer: ``stage`` is running, finished or refused."""

    kind: ClassVar[str] = "order_update"
    order_id: str
    stage: str
    episodes: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Goodbye(Message):
    """Either way: the sender stops now, by intention."""

    kind: ClassVar[str] = "goodbye"
    reason: str = ""


KINDS: dict[str, type[Message]] = {
    cls.kind: cls
    for cls in (
        Hello,
        Welcome,
        Refuse,
        Ack,
        Resend,
        Gone,
        Ping,
        Pong,
        Offer,
        ChunkRequest,
        Chunk,
        Verdict,
        Order,
        OrderUpdate,
        Goodbye,
    )
}
_TYPES = {"str": str, "int": int, "bool": bool, "float": float}
M = TypeVar("M", bound=Message)


def encode(message: Message) -> list[bytes]:
    """Return the frames of a message."""
    values = asdict(message)
    content = values.pop("content", None)
    frames = [pack({"kind": message.kind, **values})]
    return frames if content is None else [*frames, content]


def decode(header: Mapping[str, Any], frames: Sequence[bytes] = ()) -> Message:
    """Return the message of an unpacked header; raises ProtocolError on an unknown kind or a wrong field."""
    cls = KINDS.get(str(header.get("kind"))[:40])
    if cls is None:
        raise ProtocolError(f"message: kind {str(header.get('kind'))[:40]!r} is not known")
    reader = Fields(cls.kind, header)
    values: dict[str, Any] = {}
    for each in fields(cls):
        if each.name == "content":
            values["content"] = _content(frames)
            continue
        kind = _TYPES.get(str(each.type), dict if str(each.type).startswith("dict") else list)
        default = each.default if each.default is not MISSING else None
        if default is None and each.default_factory is not MISSING:
            default = each.default_factory()
        values[each.name] = reader.get(each.name, kind, default)
    return cls(**values)


def ranges_of(values: Sequence[Any], where: str) -> list[tuple[int, int]]:
    """Return checked inclusive ranges; raises ProtocolError."""
    ranges = []
    for each in values:
        if (
            not isinstance(each, list)
            or len(each) != 2
            or not all(type(v) is int and 0 <= v < 1 << 63 for v in each)
            or each[0] > each[1]
        ):
            raise ProtocolError(f"{where}: {str(each)[:60]} is not a range of seq")
        ranges.append((each[0], each[1]))
    return ranges


def _content(frames: Sequence[bytes]) -> bytes:
    if len(frames) != 1 or len(frames[0]) > MAX_CHUNK_BYTES:
        raise ProtocolError(f"chunk: {len(frames)} frames, expected one of at most {MAX_CHUNK_BYTES} bytes")
    return frames[0]
