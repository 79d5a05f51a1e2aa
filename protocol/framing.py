"""Turn records into ZeroMQ frames and back; anything malformed is a ProtocolError, whatever the bytes.

A record is one multipart message: a msgpack map, then one frame per image in the order of the map's ``blobs``. Unknown
keys are ignored; keys are never reused for another meaning. Vectors travel as little-endian float32 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from protocol.distribution import KINDS
from protocol.errors import RoverError
from protocol.images import CODECS, JPEG, DepthEncoder, ImageError, decode_depth, decode_rgb, encode_rgb
from protocol.step import END_REASONS, PURPOSES, SOURCES, Behaviour, EpisodeEnd, Observation, Record, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from protocol.spec import RobotSpec, TaskSpec

FloatArray = npt.NDArray[np.float32]
Images = dict[str, npt.NDArray[np.generic]]
Buffers = dict[str, npt.NDArray[np.generic]]
T = TypeVar("T")

MAX_HEADER_BYTES = 64 * 1024
MAX_TEXT = 4096
MAX_ELEMENTS = 4096
MAX_DEPTH = 16
"""Maps and lists within each other: beyond some hundreds even printing the value overflows Python's stack."""
ARRAY_MARKERS = (b"\xdc", b"\xdd")
"""msgpack's array16 and array32, which state their length in advance."""
STEP = "step"
END = "episode_end"
FLOATS = np.dtype("<f4")


class ProtocolError(RoverError):
    """Bytes from the other side are not a message of this protocol; the connection may go on or be refused."""


def pack(header: Mapping[str, Any]) -> bytes:
    """Return a header as msgpack."""
    return bytes(msgpack.packb(header, use_bin_type=True))


def unpack(frame: bytes) -> dict[str, Any]:
    """Return the map of a header frame; raises ProtocolError on anything but a small map with text keys."""
    if len(frame) > MAX_HEADER_BYTES:
        raise ProtocolError(f"header: {len(frame)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    try:
        if sum(map(frame.count, ARRAY_MARKERS)) > MAX_DEPTH:
            _check_complete(frame)
        header = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_HEADER_BYTES,
            max_array_len=MAX_ELEMENTS,
            max_map_len=MAX_ELEMENTS,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises many unrelated types on hostile bytes
        raise ProtocolError(f"header: not msgpack: {type(error).__name__} {error}") from error
    if not isinstance(header, dict) or not all(isinstance(key, str) for key in header):
        raise ProtocolError("header: not a map with text keys")
    if is_deeper(header, MAX_DEPTH):
        raise ProtocolError(f"header: more than {MAX_DEPTH} maps and lists within each other")
    return header


def _check_complete(frame: bytes) -> None:
    """Raise where lists are longer than what follows, building nothing.

    msgpack allocates a list when it reads its stated length: 3 kB of nested beginnings are 32 MB. In a complete frame
    every entry takes at least a byte, so lists are as small as the frame.
    """
    reader = msgpack.Unpacker(max_buffer_size=MAX_HEADER_BYTES, max_ext_len=0)
    reader.feed(frame)
    reader.skip()


def is_deeper(value: dict[Any, Any] | list[Any], levels: int) -> bool:
    """Tell whether maps and lists lie within each other in more than so many levels."""
    if levels == 0:
        return True
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, (dict, list)) and is_deeper(each, levels - 1):
            return True
    return False


class Fields:
    """Read typed values of a header map; each getter raises ProtocolError that names message and key."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        """Wrap ``values``; ``where`` starts every error."""
        self._where = where
        self._values = values

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of exactly this type; int stands for float too; a missing key without default is an error."""
        value = self._values.get(key)
        if value is None:
            if default is None:
                raise ProtocolError(f"{self._where}: no {key}")
            return default
        if kind is float and type(value) is int:
            return float(value)  # type: ignore[return-value]
        if type(value) is not kind:
            raise ProtocolError(f"{self._where}: {key} is {type(value).__name__}, expected {kind.__name__}")
        return value

    def has(self, key: str) -> bool:
        """Return True if the key is there and not nil."""
        return self._values.get(key) is not None

    def count(self, key: str, default: int | None = None) -> int:
        """Return an integer in [0, 2**63)."""
        value = self.get(key, int, default)
        if not 0 <= value < 1 << 63:
            raise ProtocolError(f"{self._where}: {key} {value} is out of range")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of the given texts."""
        value = self.get(key, str, default)
        if value not in choices:
            raise ProtocolError(f"{self._where}: {key} {value[:40]!r} is none of {list(choices)}")
        return value

    def floats(self, key: str, size: int) -> FloatArray:
        """Return float32[size], owned and writable."""
        raw = self.get(key, bytes)
        if len(raw) != 4 * size:
            raise ProtocolError(f"{self._where}: {key} has {len(raw)} bytes, expected {size} float32")
        return np.frombuffer(raw, FLOATS).astype(np.float32)

    def numbers(self, key: str) -> dict[str, float]:
        """Return a map of text to float, empty when missing."""
        values = self.get(key, dict, {})
        if not all(isinstance(k, str) and isinstance(v, int | float) for k, v in values.items()):
            raise ProtocolError(f"{self._where}: {key} is not a map of names to numbers")
        return {k: float(v) for k, v in values.items()}


class RecordEncoder:
    """Encode the records of one robot; keeps the depth codec's choice per camera; not thread-safe."""

    def __init__(self, spec: RobotSpec) -> None:
        """Encode images in the order of ``spec.cameras``."""
        self._cameras = spec.cameras
        self._depth = {camera.key: DepthEncoder() for camera in spec.cameras if camera.kind == "depth"}

    def encode_image(self, key: str, pixels: npt.NDArray[np.generic]) -> tuple[str, bytes]:
        """Return (codec id, bytes) of one camera's frame."""
        if key in self._depth:
            return self._depth[key].encode(pixels)  # type: ignore[arg-type]
        return JPEG, encode_rgb(pixels)  # type: ignore[arg-type]

    def encode_images(self, images: Images) -> dict[str, tuple[str, bytes]]:
        """Return the encoded form of each image, by blob key, in the spec's order."""
        return {c.key: self.encode_image(c.key, images[c.key]) for c in self._cameras if c.key in images}


def decode_images(encoded: Mapping[str, tuple[str, bytes]], into: Buffers) -> None:
    """Decode images into buffers of the right shape, by blob key; raises ImageError."""
    for key, (codec, content) in encoded.items():
        if codec == JPEG:
            decode_rgb(content, into[key])  # type: ignore[arg-type]
        else:
            decode_depth(codec, content, into[key])  # type: ignore[arg-type]


def encode_record(record: Record, encoded: Mapping[str, tuple[str, bytes]]) -> list[bytes]:
    """Return the frames of a record whose images were encoded before (each image is encoded once, at capture)."""
    observation = record.observation if isinstance(record, Step) else record.final
    header = _step_header(record) if isinstance(record, Step) else _end_header(record)
    header["state"] = _bytes(observation.state)
    header["task"] = _bytes(observation.task)
    header["in_flight"] = _bytes(observation.in_flight)
    header["stamp_ns"] = observation.stamp_ns
    if observation.ages_ms:
        header["ages_ms"] = observation.ages_ms
    header["blobs"] = [[key, codec] for key, (codec, _) in encoded.items()]
    return [pack(header), *(content for _, content in encoded.values())]


def record_kind(header: Mapping[str, Any]) -> bool:
    """Return True if a header is that of a record."""
    return header.get("kind") in (STEP, END)  # no set: a list or map, which cannot be looked up, may stand there


def allocate(spec: RobotSpec) -> Buffers:
    """Return owned, writable, zeroed (and so pre-faulted) buffers for one observation's images, by blob key."""
    buffers: Buffers = {}
    for camera in spec.cameras:
        buffers[camera.key] = np.empty(camera.shape, camera.dtype)
        buffers[camera.key].fill(0)
    return buffers


def decode_record(
    header: Mapping[str, Any],
    frames: Sequence[bytes],
    spec: RobotSpec,
    task: TaskSpec,
    buffers: Callable[[], Buffers] | None = None,
) -> Record:
    """Decode a record whose header was unpacked; ``frames`` are the image frames.

    ``buffers`` is called once, and only for a record with images, to get the arrays to decode into.

    Raises:
        ProtocolError: any field or image is not what the robot's spec promises.

    """
    if not record_kind(header):
        raise ProtocolError(f"record: kind {str(header.get('kind'))[:40]!r} is none of {[STEP, END]}")
    fields = Fields(header["kind"], header)
    observation = Observation(
        state=fields.floats("state", len(spec.state)),
        task=fields.floats("task", len(task.features)),
        in_flight=fields.floats("in_flight", len(spec.action)),
        stamp_ns=fields.count("stamp_ns"),
        ages_ms=fields.numbers("ages_ms"),
    )
    observation.images = _decode_blobs(fields, frames, spec, buffers)
    try:
        if header["kind"] == STEP:
            return _step(fields, observation, len(spec.action))
        return _end(fields, observation)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{header['kind']}: {error}") from error


def _decode_blobs(
    fields: Fields, frames: Sequence[bytes], spec: RobotSpec, buffers: Callable[[], Buffers] | None
) -> Images:
    blobs = fields.get("blobs", list)
    if len(blobs) != len(frames) or len(blobs) > len(spec.cameras):
        raise ProtocolError(f"blobs: {len(blobs)} named, {len(frames)} sent, {len(spec.cameras)} cameras declared")
    if not blobs:
        return {}
    encoded: dict[str, tuple[str, bytes]] = {}
    sizes = {camera.key: camera.nbytes for camera in spec.cameras}
    for blob, content in zip(blobs, frames, strict=True):
        names_camera = isinstance(blob, list) and len(blob) >= 2 and isinstance(blob[0], str) and blob[0] in sizes
        if not names_camera or blob[0] in encoded:
            raise ProtocolError(f"blobs: {str(blob)[:60]} is not [camera, codec] of {list(sizes)}")
        if blob[1] not in CODECS or (blob[1] == JPEG) != (".images." in blob[0]):
            raise ProtocolError(f"{blob[0]}: codec {str(blob[1])[:20]!r} is not known for it")
        if len(content) > 2 * sizes[blob[0]] + 4096:
            raise ProtocolError(f"{blob[0]}: {len(content)} bytes for a frame of {sizes[blob[0]]}")
        encoded[blob[0]] = (blob[1], content)
    into = buffers() if buffers else allocate(spec)
    try:
        decode_images(encoded, into)
    except ImageError as error:
        raise ProtocolError(f"{fields.get('kind', str)}: {error}") from error
    return {key: into[key] for key in encoded}


def _bytes(values: FloatArray) -> bytes:
    return values.astype(FLOATS, copy=False).tobytes()


def _step_header(step: Step) -> dict[str, Any]:
    header: dict[str, Any] = {
        "kind": STEP,
        "rover_id": step.rover_id,
        "boot_id": step.boot_id,
        "seq": step.seq,
        "episode_id": step.episode_id,
        "episode_step": step.episode_step,
        "decision_id": step.decision_id,
        "tick_in_decision": step.tick_in_decision,
        "action": _bytes(step.action),
        "source": step.source,
        "reward": step.reward,
        "policy_id": step.policy_id,
        "policy_counter": step.policy_counter,
        "purpose": step.purpose,
        "interventions": step.interventions,
        "reward_terms": step.reward_terms,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "success": step.success,
        "tick": step.tick,
        "tick_ns": step.tick_ns,
        "applied_ns": step.applied_ns,
    }
    if step.behaviour is not None:
        behaviour = step.behaviour
        header["behaviour"] = {
            "kind": behaviour.kind,
            "u": _bytes(behaviour.u),
            "mean": _bytes(behaviour.mean),
            "log_std": _bytes(behaviour.log_std),
            "log_prob": behaviour.log_prob,
        }
    if step.policy_action is not None:
        header["policy_action"] = _bytes(step.policy_action)
    if step.human_action is not None:
        header["human_action"] = _bytes(step.human_action)
    if step.clearance_m is not None:
        header["clearance_m"] = step.clearance_m
    return header


def _end_header(end: EpisodeEnd) -> dict[str, Any]:
    return {
        "kind": END,
        "rover_id": end.rover_id,
        "boot_id": end.boot_id,
        "seq": end.seq,
        "episode_id": end.episode_id,
        "episode_steps": end.episode_steps,
        "reason": end.reason,
        "ends_episode": end.ends_episode,
        "success": end.success,
        "terminated": end.terminated,
        "purpose": end.purpose,
        "arena_seed": end.arena_seed,
        "return": end.return_,
        "metrics": end.metrics,
        "policy_id": end.policy_id,
        "episode_serial": end.episode_serial,
        "order_id": end.order_id,
    }


def _step(fields: Fields, observation: Observation, actions: int) -> Step:
    return Step(
        rover_id=fields.get("rover_id", str),
        boot_id=fields.get("boot_id", str),
        seq=fields.count("seq"),
        episode_id=fields.count("episode_id"),
        episode_step=fields.count("episode_step"),
        decision_id=fields.count("decision_id"),
        tick_in_decision=fields.count("tick_in_decision"),
        observation=observation,
        action=fields.floats("action", actions),
        source=fields.choice("source", SOURCES),
        reward=fields.get("reward", float),
        policy_id=fields.get("policy_id", str, ""),
        policy_counter=fields.count("policy_counter", 0),
        purpose=fields.choice("purpose", PURPOSES, "training"),
        behaviour=_behaviour(fields, actions),
        policy_action=_optional(fields, "policy_action", actions),
        human_action=_optional(fields, "human_action", actions),
        interventions=fields.count("interventions", 0),
        reward_terms=fields.numbers("reward_terms"),
        terminated=fields.get("terminated", bool, default=False),
        truncated=fields.get("truncated", bool, default=False),
        success=fields.get("success", bool, default=False),
        tick=fields.count("tick", 0),
        tick_ns=fields.count("tick_ns", 0),
        applied_ns=fields.count("applied_ns", 0),
        clearance_m=fields.get("clearance_m", float, -1.0) if fields.has("clearance_m") else None,
    )


def _end(fields: Fields, observation: Observation) -> EpisodeEnd:
    return EpisodeEnd(
        rover_id=fields.get("rover_id", str),
        boot_id=fields.get("boot_id", str),
        seq=fields.count("seq"),
        episode_id=fields.count("episode_id"),
        episode_steps=fields.count("episode_steps"),
        reason=fields.choice("reason", END_REASONS),
        final=observation,
        ends_episode=fields.get("ends_episode", bool, default=True),
        success=fields.get("success", bool, default=False),
        terminated=fields.get("terminated", bool, default=False),
        purpose=fields.choice("purpose", PURPOSES, "training"),
        arena_seed=fields.count("arena_seed", 0),
        return_=fields.get("return", float, 0.0),
        metrics=fields.numbers("metrics"),
        policy_id=fields.get("policy_id", str, ""),
        episode_serial=fields.count("episode_serial", 0),
        order_id=fields.get("order_id", str, ""),
    )


def _behaviour(fields: Fields, actions: int) -> Behaviour | None:
    if not fields.has("behaviour"):
        return None
    inner = Fields("behaviour", fields.get("behaviour", dict))
    return Behaviour(
        kind=inner.choice("kind", KINDS),
        u=inner.floats("u", actions),
        mean=inner.floats("mean", actions),
        log_std=inner.floats("log_std", actions),
        log_prob=inner.get("log_prob", float),
    )


def _optional(fields: Fields, key: str, size: int) -> FloatArray | None:
    return fields.floats(key, size) if fields.has(key) else None
