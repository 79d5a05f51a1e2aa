"""How the records of a rover become the messages of an episode file, and the exact same frames again."""

from __future__ import annotations

import importlib.metadata
import json
import math
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgpack

from protocol.errors import RoverError
from protocol.framing import END, STEP, ProtocolError, unpack
from protocol.images import CODECS, JPEG
from protocol.ranges import Ranges
from protocol.step import PURPOSES
from trainerd.episodes import mcap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.spec import RobotSpec, TaskSpec

FORMAT = 1
EPISODE_METADATA = "roverloop.episode"
SPEC_METADATA = "roverloop.spec"
STEP_TOPIC = "/step"
END_TOPIC = "/episode_end"
STEP_CHANNEL, END_CHANNEL, FIRST_CAMERA_CHANNEL = 1, 2, 3
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
_COMPRESSED_IMAGE_SCHEMA = 1
_RULE = "=" * 80
_COMPRESSED_IMAGE_TEXT = f"""std_msgs/Header header
string format
uint8[] data
{_RULE}
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{_RULE}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
_CDR_LITTLE_ENDIAN = b"\x00\x01\x00\x00"
_STAMP = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_BIN32 = struct.Struct(">BI")
MAX_POLICIES = 64
"""Policies that an episode's row names at most."""
_LIMIT = 1 << 63


class RecordError(RoverError):
    """A record does not fit its boot's robot: it is counted as malformed and given up, for it cannot be stored."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it came: ``frames[0]`` is the packed ``header``, the rest are the blobs it names."""

    rover_id: str
    boot_id: str
    seq: int
    episode_id: int
    header: dict[str, Any]
    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class _Camera:
    channel: int
    key: str
    is_rgb: bool
    before_stamp: bytes
    after_stamp: bytes
    """Of an RGB camera: what stands in the message between the stamp and the JPEG's length."""
    size: tuple[int, int]


@dataclass(frozen=True)
class Format:
    """The channels of one robot's episode files."""

    cameras: dict[str, _Camera]
    prologue_parts: tuple[list[bytes], list[mcap.Channel]]

    @classmethod
    def of(cls, robot: RobotSpec) -> Format:
        """Give each camera a channel, in the order of the spec."""
        cameras = {}
        channels = [
            mcap.Channel(STEP_CHANNEL, STEP_TOPIC, "msgpack"),
            mcap.Channel(END_CHANNEL, END_TOPIC, "msgpack"),
        ]
        for number, camera in enumerate(robot.cameras, FIRST_CAMERA_CHANNEL):
            is_rgb = camera.kind == "rgb"
            after_stamp = _cdr_middle(camera.name) if is_rgb else b""
            size = (camera.height, camera.width)
            cameras[camera.key] = _Camera(number, camera.key, is_rgb, _CDR_LITTLE_ENDIAN, after_stamp, size)
            topic = "/" + camera.key.replace(".", "/")
            encoding, schema = ("cdr", _COMPRESSED_IMAGE_SCHEMA) if is_rgb else ("msgpack", 0)
            channels.append(mcap.Channel(number, topic, encoding, schema, (("blob", camera.key),)))
        image = mcap.schema_record(_COMPRESSED_IMAGE_SCHEMA, COMPRESSED_IMAGE, "ros2msg", _COMPRESSED_IMAGE_TEXT)
        schemas = [image] if any(camera.is_rgb for camera in cameras.values()) else []
        return cls(cameras, (schemas, channels))

    def check(self, record: StoredRecord) -> None:
        """Raise RecordError unless the record can be stored and read again byte for byte."""
        header = record.header
        kind, stamp_ns, blobs = header.get("kind"), header.get("stamp_ns"), header.get("blobs")
        if kind not in (STEP, END):
            raise RecordError(f"{_name(record)}: kind {str(kind)[:40]!r} is none of {[STEP, END]}")
        for what, value in (("seq", record.seq), ("episode_id", record.episode_id), ("stamp_ns", stamp_ns)):
            if type(value) is not int or not 0 <= value < _LIMIT:
                raise RecordError(f"{_name(record)}: {what} {str(value)[:40]!r} is no number of this protocol")
        if not isinstance(blobs, list) or len(blobs) != len(record.frames) - 1:
            raise RecordError(f"{_name(record)}: {len(record.frames) - 1} images, named are {str(blobs)[:80]}")
        seen = []
        for blob in blobs:
            if not isinstance(blob, list) or len(blob) < 2 or not isinstance(blob[0], str):
                raise RecordError(f"{_name(record)}: {str(blob)[:60]} is not [camera, codec]")
            camera, codec = self.cameras.get(blob[0]), blob[1]
            if camera is None or blob[0] in seen:
                raise RecordError(f"{_name(record)}: camera {blob[0][:60]} is not the robot's, or is there twice")
            if codec not in CODECS or (codec == JPEG) is not camera.is_rgb:
                raise RecordError(f"{_name(record)}: codec {str(codec)[:20]!r} is not one for {blob[0]}")
            seen.append(blob[0])

    def encode(self, record: StoredRecord, builder: mcap.ChunkBuilder, epoch_ns: int, wall_ns: int) -> None:
        """Add a checked record to a chunk.

        Args:
            record: what to add.
            builder: the chunk.
            epoch_ns: the rover's wall clock less its monotonic clock, or 0 where it is not known.
            wall_ns: when the record was received.

        """
        header = record.header
        log_ns = min(epoch_ns + header["stamp_ns"], (1 << 64) - 1) if epoch_ns > 0 else wall_ns
        sequence = record.seq & 0xFFFFFFFF
        builder.begin_record(record.seq, log_ns)
        channel = STEP_CHANNEL if header["kind"] == STEP else END_CHANNEL
        builder.add(channel, sequence, log_ns, wall_ns, b"", record.frames[0])
        for (key, codec, *_), content in zip(header["blobs"], record.frames[1:], strict=True):
            camera = self.cameras[key]
            if camera.is_rgb:
                seconds, nanoseconds = divmod(log_ns, 1_000_000_000)
                prefix = (
                    camera.before_stamp
                    + _STAMP.pack(seconds & 0xFFFFFFFF, nanoseconds)
                    + camera.after_stamp
                    + _LENGTH.pack(len(content))
                )
            else:
                prefix = _depth_prefix(codec, *camera.size) + _BIN32.pack(0xC6, len(content))
            builder.add(camera.channel, sequence, log_ns, wall_ns, prefix, content)

    def prologue(self, metadata: Mapping[str, str], robot: RobotSpec, task: TaskSpec) -> bytes:
        """Return the beginning of an episode's file."""
        spec = {"robot": json.dumps(robot.to_map()), "task": json.dumps(task.to_map())}
        return mcap.prologue_bytes(
            f"roverloop {_version()}", *self.prologue_parts, {EPISODE_METADATA: metadata, SPEC_METADATA: spec}
        )


def decode(
    data: bytes, place: int, seq: int, identity: tuple[str, str], channels: Mapping[int, mcap.Channel]
) -> StoredRecord:
    """Return the record of a rover's boot (``identity``) at a place of a chunk's data.

    Raises:
        mcap.McapError: the messages there are not that record.

    """
    messages = iter(mcap.messages_at(data, place))
    first = next(messages, None)
    if first is None or first[0] not in {STEP_CHANNEL, END_CHANNEL} or first[1] != seq & 0xFFFFFFFF:
        raise mcap.McapError(f"chunk's byte {place}: not the record {seq}")
    frame = bytes(first[4])
    try:
        header = unpack(frame)
    except ProtocolError as error:
        raise mcap.McapError(f"record {seq}: {error}") from error
    frames, blobs = [frame], header.get("blobs")
    if not isinstance(blobs, list):
        raise mcap.McapError(f"record {seq}: no list of blobs")
    for blob, message in zip(blobs, islice(messages, len(blobs)), strict=False):
        channel = channels.get(message[0])
        if not isinstance(blob, list) or not blob or not isinstance(blob[0], str):
            raise mcap.McapError(f"record {seq}: {str(blob)[:60]} is no blob")
        if channel is None or ("blob", blob[0]) not in channel.metadata:
            raise mcap.McapError(f"record {seq}: another channel's message where {str(blob)[:60]} should be")
        frames.append(_content(channel.message_encoding, message[4]))
    if len(frames) != 1 + len(blobs):
        raise mcap.McapError(f"record {seq}: {len(frames) - 1} of {len(blobs)} images")
    return StoredRecord(*identity, seq, header.get("episode_id", 0), header, frames)


def _content(encoding: str, payload: memoryview) -> bytes:
    """Return the blob within a message."""
    try:
        if encoding == "cdr":
            (name_bytes,) = _LENGTH.unpack_from(payload, 12)
            at = _aligned(16 + name_bytes)
            (format_bytes,) = _LENGTH.unpack_from(payload, at)
            at = _aligned(at + 4 + format_bytes)
            (size,) = _LENGTH.unpack_from(payload, at)
            content = bytes(payload[at + 4 :])
        else:
            content = msgpack.unpackb(payload, max_bin_len=len(payload))["data"]
            size = len(content)
    except (struct.error, ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise mcap.McapError(f"image message of {len(payload)} bytes: {error!r}") from error
    if size != len(content):
        raise mcap.McapError(f"image message: {len(content)} bytes, {size} are stated")
    return content


@dataclass
class Facts:
    """What an episode's records say of it, record by record."""

    seqs: Ranges = field(default_factory=Ranges)
    steps: int = 0
    purpose: str = "training"
    success: bool = False
    reason: str = ""
    return_: float = 0.0
    human_steps: int = 0
    policy_ids: set[str] = field(default_factory=set)
    min_counter: int | None = None
    max_counter: int | None = None
    begins: int | None = None
    """Seq of the record that begins the episode, where it is there."""
    ends: int | None = None
    """Seq of the record that ends the episode, where it is there."""

    def add(self, seq: int, header: Mapping[str, Any]) -> None:
        """Take a record into account; what has a wrong type is passed over, for nobody has decoded it yet."""
        self.seqs.add(seq)
        purpose = header.get("purpose")
        if purpose in PURPOSES and isinstance(purpose, str):
            self.purpose = purpose
        if header["kind"] == STEP:
            self._add_step(seq, header)
        elif header.get("ends_episode", True) is True:
            self.ends = seq
            self.success = header.get("success") is True
            reason, return_ = header.get("reason"), header.get("return")
            self.reason = reason[:64] if isinstance(reason, str) else ""
            self.return_ = float(return_) if isinstance(return_, int | float) and math.isfinite(return_) else math.nan
            if header.get("episode_steps") == 0:
                self.begins = seq

    def _add_step(self, seq: int, header: Mapping[str, Any]) -> None:
        self.steps += 1
        if header.get("episode_step") == 0:
            self.begins = seq
        if header.get("source") == "human":
            self.human_steps += 1
        policy_id, counter = header.get("policy_id"), header.get("policy_counter")
        if policy_id and isinstance(policy_id, str):
            if policy_id not in self.policy_ids and len(self.policy_ids) < MAX_POLICIES:
                self.policy_ids.add(policy_id[:64])
            if type(counter) is int and 0 <= counter < _LIMIT:
                self.min_counter = counter if self.min_counter is None else min(self.min_counter, counter)
                self.max_counter = counter if self.max_counter is None else max(self.max_counter, counter)

    @property
    def is_complete(self) -> bool:
        """True where every record from the episode's first to its end is there."""
        return self.begins is not None and self.is_over(Ranges()) and self.seqs.first == self.begins

    def is_over(self, gone: Ranges) -> bool:
        """Tell whether nothing more can come: the end is there, and all before it is there or ``gone``."""
        if self.ends is None:
            return False
        missing = self.seqs.missing_within(self.seqs.first or 0, self.ends)
        return all(not gone.missing_within(*each) for each in missing)


@lru_cache(maxsize=256)
def _depth_prefix(codec: str, height: int, width: int) -> bytes:
    """Return the message {codec, height, width, data} up to the data, which is then appended as it came."""
    head = msgpack.packb({"codec": codec, "height": height, "width": width})
    return b"\x84" + bytes(head[1:]) + bytes(msgpack.packb("data"))


def _cdr_middle(frame_id: str) -> bytes:
    """Return the CDR between the stamp and the length of the data: frame_id and format, each aligned to 4 bytes."""
    content = b"\0" * 12  # encapsulation and stamp, for the alignment
    for text in (frame_id, "jpeg"):
        encoded = text.encode() + b"\0"
        content += _LENGTH.pack(len(encoded)) + encoded
        content += b"\0" * (_aligned(len(content)) - len(content))
    return content[12:]


def _aligned(at: int) -> int:
    """Return the next place that is aligned to 4 bytes; the encapsulation before it has 4, so it does not matter."""
    return (at + 3) & ~3


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return importlib.metadata.version("roverloop")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _name(record: StoredRecord) -> str:
    return f"{record.rover_id} boot {record.boot_id} record {str(record.seq)[:20]}"
