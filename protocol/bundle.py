"""The policy bundle: one file that holds a network, how to feed it, and proof of what it answers.

A bundle is an uncompressed zip of ``manifest.json``, ``policy.onnx`` and ``golden.npz``, with fixed time stamps, so
that equal content gives equal bytes. ``policy_id`` is the sha256 of the manifest without itself; the manifest holds the
sha256 of every file.

A signature may stand in the manifest, beside ``policy_id`` and outside of what that is the hash of: signed or not, a
policy is the same one. ``{"algorithm": "ed25519", "key_id": 16 hex digits, "counter": whole number, "value": 128 hex
digits}``; the counter of a key never goes down.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import secrets
import struct
import zipfile
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.errors import RoverError
from protocol.files import sync_folder
from protocol.framing import MAX_DEPTH, is_deeper
from protocol.spec import RobotSpec, SpecError, TaskSpec, canonical_hash
from protocol.transform import InputTransform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT = 1
ONNX = "policy.onnx"
GOLDEN = "golden.npz"
MANIFEST = "manifest.json"
MAX_BUNDLE_BYTES = 256 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_ENTRIES = 16
"""Files in a bundle or in its golden.npz: a list of many names takes far more memory than their bytes."""
GOLDEN_COUNT, GOLDEN_LEAST, GOLDEN_VALUES = 8, 2, 1 << 20
"""Golden inputs of a policy, fewer where their images have more values than that: each travels, and is run, anew."""
GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a pre-tanh mean between trainer and robot, float32 networks."""
GOLDEN_ARRAYS = ("image", "vector", "mean")
END_RECORD = struct.Struct("<4s4H2IH")
"""End of a zip (APPNOTE.TXT 4.3.16): signature, disks, entries here and in all, size and place of the list, comment."""
NPY_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00([\x00-\xff]{2})"
    rb"\{'descr': '<f4', 'fortran_order': False, 'shape': \(((?:[0-9]{1,9}, ?){0,4}[0-9]{0,9})\), \} {0,63}\n"
)
"""What NumPy writes before a float32 array; its own reader evaluates a Python literal and allocates what that says."""
NPY_PREFIX_BYTES = 10
MAX_WHOLE = 1 << 53
"""Beyond it a float does not hold every whole number, and some JSON readers change them."""
ALGORITHM = "ed25519"
KEY_ID = re.compile(r"[0-9a-f]{16}")
SIGNATURE_VALUE = re.compile(r"[0-9a-f]{128}")
"""64 bytes (RFC 8032, 5.1.6)."""
FloatArray = npt.NDArray[np.float32]


def golden_count(transform: InputTransform) -> int:
    """Return how many golden inputs a policy for this input has."""
    values = max(1, transform.channels * transform.height * transform.width)
    return max(GOLDEN_LEAST, min(GOLDEN_COUNT, GOLDEN_VALUES // values))


class BundleError(RoverError):
    """A bundle is damaged, incomplete, or not for this robot."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of its policy.

    ``log_std`` is the exploration's log standard deviation per action element, constant for the bundle. ``inputs`` and
    ``outputs`` are (name, shape, dtype) of the graph, batch size 1.
    """

    counter: int
    """Orders the policies of a run; identity is ``policy_id``."""
    parent: str
    run_id: str
    robot: dict[str, Any]
    task: dict[str, Any]
    transform: dict[str, Any]
    runner: str
    inputs: list[list[Any]]
    outputs: list[list[Any]]
    control_rate_hz: float
    action_repeat: int
    action_delay_ms: float
    action_low: list[float]
    action_high: list[float]
    log_std: list[float]
    files: dict[str, str]
    weights_sha256: str
    """Hash of the exported weights: a different policy has a different one."""
    keys_sha256: str
    """Hash of the sorted parameter names and shapes."""
    update: int = 0
    decisions: int = 0
    checkpoint: str = ""
    code_version: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def policy_id(self) -> str:
        """Content hash of the policy (sha256, hex)."""
        return canonical_hash(asdict(self))

    def to_json(self, signature: Signature | None = None) -> bytes:
        """Return the manifest file, with ``policy_id`` and the signature in it."""
        beside: dict[str, Any] = {"policy_id": self.policy_id}
        if signature is not None:
            beside["signature"] = signature.to_map()
        return json.dumps({**beside, **asdict(self)}, sort_keys=True, indent=1).encode()


@dataclass(frozen=True)
class Signature:
    """Who vouches for a policy: well-formed, but not yet checked against any key."""

    key_id: str
    """The first 8 bytes of the sha256 of the public key, in hex."""
    counter: int
    """Grows with each policy that the key signs, so that an older one can be told from a newer one."""
    value: str
    """64 bytes in hex."""

    def to_map(self) -> dict[str, Any]:
        """Return what stands in the manifest."""
        return {"algorithm": ALGORITHM, **asdict(self)}

    @classmethod
    def from_map(cls, values: Any) -> Signature:
        """Read what stands in the manifest; raises BundleError that names each mistake."""
        if not isinstance(values, dict):
            raise BundleError(f"manifest: signature is {type(values).__name__}, expected a map")
        key_id, counter, value = (values.get(name) for name in ("key_id", "counter", "value"))
        mistakes = []
        if values.get("algorithm") != ALGORITHM:
            mistakes.append(f"algorithm {str(values.get('algorithm'))[:20]!r}, expected {ALGORITHM}")
        if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
            mistakes.append(f"key_id {str(key_id)[:20]!r}, expected 16 hex digits")
        if type(counter) is not int or not 0 <= counter < MAX_WHOLE:
            mistakes.append(f"counter {str(counter)[:20]!r}, expected a whole number")
        if not isinstance(value, str) or not SIGNATURE_VALUE.fullmatch(value):
            mistakes.append(f"value of {len(str(value))} characters, expected 64 bytes in hex")
        if mistakes:
            raise BundleError("manifest: signature: " + "; ".join(mistakes))
        return cls(str(key_id), int(counter or 0), str(value))


@dataclass(frozen=True)
class Golden:
    """Recorded network inputs and the means that the trainer computed for them.

    image: float32[G, C, H, W] (C may be 0); vector: float32[G, n]; mean: float32[G, a], pre-tanh.
    """

    image: FloatArray
    vector: FloatArray
    mean: FloatArray


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory."""

    manifest: Manifest
    onnx: bytes
    golden: Golden
    signature: Signature | None = None

    @property
    def policy_id(self) -> str:
        """Content hash of the policy."""
        return self.manifest.policy_id

    @property
    def transform(self) -> InputTransform:
        """The input transform that the policy was trained with."""
        return InputTransform.from_map(self.manifest.transform)


def golden_bytes(golden: Golden) -> bytes:
    """Return golden.npz as bytes, equal for equal arrays."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in GOLDEN_ARRAYS:
            array = io.BytesIO()
            np.lib.format.write_array(array, np.ascontiguousarray(getattr(golden, name)), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), array.getvalue())
    return out.getvalue()


def pack_bundle(manifest: Manifest, onnx: bytes, golden: bytes, signature: Signature | None = None) -> bytes:
    """Return the bundle file; raises BundleError unless the manifest holds the hashes of both files."""
    contents = {ONNX: onnx, GOLDEN: golden}
    _check_files(manifest, contents)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((MANIFEST, manifest.to_json(signature)), *contents.items()):
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def unpack_bundle(content: bytes) -> Bundle:
    """Verify a bundle file and return it; raises BundleError that names what is wrong.

    It takes about twice the file's memory, whatever the file says of itself.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise BundleError(f"bundle: {len(content)} bytes, at most {MAX_BUNDLE_BYTES} are allowed")
    contents = _read_stored("bundle", content, (MANIFEST, ONNX, GOLDEN))
    values = _manifest_values(contents.pop(MANIFEST))
    manifest = _manifest(values)
    signature = Signature.from_map(values["signature"]) if "signature" in values else None
    _check_files(manifest, contents)
    return Bundle(manifest, contents[ONNX], _golden(contents[GOLDEN]), signature)


def check_fit(bundle: Bundle, robot: RobotSpec, task: TaskSpec) -> None:
    """Raise BundleError, naming every difference, unless the bundle is for this robot and task."""
    manifest = bundle.manifest
    try:
        differences = robot.differences(RobotSpec.from_map(manifest.robot))
        differences += task.differences(TaskSpec.from_map(manifest.task))
        transform = bundle.transform
        if not differences and transform != InputTransform.of(robot, task, transform.planes, transform.masked):
            size = (transform.height, transform.width)
            differences.append(f"transform: {size} pixels (height first) and elements are not those of robot and task")
    except (SpecError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"policy {bundle.policy_id[:12]}: {error}") from error
    if manifest.runner != "single":
        differences.append(f"runner: single here, {manifest.runner} there")
    if differences:
        raise BundleError(f"policy {bundle.policy_id[:12]} is for another robot: " + "; ".join(differences)[:3000])
    if len(manifest.log_std) != len(robot.action) or not np.isfinite(manifest.log_std).all():
        raise BundleError(f"policy {bundle.policy_id[:12]}: log_std {manifest.log_std} for {len(robot.action)} actions")
    golden = bundle.golden
    shapes = (golden.image.shape[1:], golden.vector.shape[1:], golden.mean.shape[1:])
    expected = ((transform.channels, transform.height, transform.width), (transform.size,), (len(robot.action),))
    if shapes != expected or not len(golden.image) == len(golden.vector) == len(golden.mean) > 0:
        raise BundleError(f"policy {bundle.policy_id[:12]}: golden arrays {shapes}, expected {expected}")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it becomes visible whole: beside, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _read_stored(where: str, content: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """Return files of an uncompressed zip without a comment, which together are no larger than the zip."""
    end = content[-END_RECORD.size :]
    if len(end) < END_RECORD.size or not end.startswith(b"PK\5\6") or content[-42:-38] == b"PK\6\7":
        raise BundleError(f"{where} of {len(content)} bytes: its end is not that of a zip as it is packed here")
    entries, directory_bytes = END_RECORD.unpack(end)[4:6]
    if entries > MAX_ENTRIES or directory_bytes > MAX_ENTRIES * 256:  # else zipfile would list them all
        raise BundleError(f"{where}: {entries} files in a list of {directory_bytes} bytes, at most {MAX_ENTRIES}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise BundleError(f"{where}: a file in it is compressed")
            if sum(sizes[name] for name in names) > len(content):
                raise BundleError(f"{where}: its files are larger than itself")
            return {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError, RuntimeError) as error:
        raise BundleError(f"{where} of {len(content)} bytes: {error}") from error


def _manifest_values(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest: {len(content)} bytes, at most {MAX_MANIFEST_BYTES} are allowed")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest: {error}") from error
    if not isinstance(values, dict) or is_deeper(values, MAX_DEPTH):  # asdict and json.dumps overflow the stack
        raise BundleError(f"manifest: not a map, or more than {MAX_DEPTH} maps and lists within each other")
    return values


def _manifest(values: dict[str, Any]) -> Manifest:
    if values.get("format") != FORMAT:
        raise BundleError(f"manifest: format {str(values.get('format'))[:40]} unknown")
    stated = values.pop("policy_id", None)
    try:
        manifest = Manifest(**{k: v for k, v in values.items() if k in Manifest.__dataclass_fields__})
        policy_id = manifest.policy_id
    except (TypeError, ValueError) as error:  # a missing field, or a number that is not finite
        raise BundleError(f"manifest: {error}") from error
    if stated != policy_id:
        raise BundleError(f"manifest: policy_id {str(stated)[:12]} does not match its content")
    wrong = [each.name for each in fields(Manifest) if not _has_type(getattr(manifest, each.name), str(each.type))]
    if wrong:
        raise BundleError(f"manifest: {', '.join(wrong)} of the wrong type")
    return manifest


def _has_type(value: Any, declared: str) -> bool:
    """Tell whether a JSON value is what the annotation of a field of Manifest says."""
    if declared == "float":
        return _is_number(value)
    if declared == "int":
        return type(value) is int and abs(value) < MAX_WHOLE
    if declared == "str":
        return isinstance(value, str)
    if declared.startswith("list"):
        inner = list if "list[Any]" in declared else None
        return isinstance(value, list) and all(isinstance(v, inner) if inner else _is_number(v) for v in value)
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < MAX_WHOLE)


def _check_files(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    if not isinstance(manifest.files, dict):
        raise BundleError("manifest: files is not a map of names to hashes")
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if manifest.files.get(name) != digest:
            raise BundleError(f"bundle: {name} has sha256 {digest[:12]}, manifest says {manifest.files.get(name)}")


def _golden(content: bytes) -> Golden:
    names = [f"{name}.npy" for name in GOLDEN_ARRAYS]
    return Golden(*(_array(name, each) for name, each in _read_stored(GOLDEN, content, names).items()))


def _array(name: str, content: bytes) -> FloatArray:
    """Return the float32 array of a .npy file, whose shape must fit its size before anything is allocated for it."""
    head = NPY_HEAD.match(content)
    if head is None or int.from_bytes(head[1], "little") != head.end() - NPY_PREFIX_BYTES:
        raise BundleError(f"{GOLDEN}: {name} is not finite float32 in C order, as NumPy's format 1.0 writes it")
    shape = tuple(int(each) for each in head[2].split(b",") if each.strip())
    if 4 * math.prod(shape) != len(content) - head.end():
        raise BundleError(f"{GOLDEN}: {name} has {len(content) - head.end()} bytes for the shape {shape}")
    array: FloatArray = np.frombuffer(content, "<f4", offset=head.end()).astype(np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise BundleError(f"{GOLDEN}: {name} is not finite float32")
    return array
