"""Targets for what comes over the network: each returns, or raises on a finding; the decoder's own error is none."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zipfile
from dataclasses import fields

import numpy as np
import zstandard

from protocol.bundle import (
    GOLDEN,
    MANIFEST,
    ONNX,
    BundleError,
    Manifest,
    check_fit,
    golden_bytes,
    pack_bundle,
    unpack_bundle,
)
from protocol.framing import MAX_HEADER_BYTES, ProtocolError, decode_record, encode_record, record_kind, unpack
from protocol.images import CODECS, DEPTH_CODECS, ImageError, decode_depth, decode_rgb, encode_rgb
from protocol.legacy import ACTION_BYTES, DEPTH_BYTES, PROPRIO_BYTES, decode_legacy, encode_legacy
from protocol.messages import Hello, decode, encode, ranges_of
from protocol.spec import SpecError
from protocol.step import Step
from tests.unit.protocol import samples
from tests.wire import generate_v0
from tests.wire.examples import ROBOT, TASK, images
from tests.wire.generate import FOLDER, read
from trainerd.legacy import LegacyEpisodes
from trainerd.rover import plain, refusal_of_text
from trainerd.run import parse_specs

GUARD = 64
"""Bytes on either side of a decoder's output that it must leave alone."""


def guarded(shape, dtype):
    """Return (an array, a function that raises if anything beside it was written)."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * GUARD, 0xA5, np.uint8)

    def check():
        if (memory[:GUARD] != 0xA5).any() or (memory[-GUARD:] != 0xA5).any():
            raise AssertionError("the decoder wrote beside its output")

    return memory[GUARD:-GUARD].view(dtype).reshape(shape), check


def nodes(value):
    """Count the values in nested lists and maps."""
    if isinstance(value, dict):
        return 1 + sum(nodes(each) + 1 for each in value.values())
    return 1 + sum(map(nodes, value)) if isinstance(value, list) else 1


def header(data):
    """Unpack a header, decode the message, judge it as the trainer does, and encode it again."""
    try:
        values = unpack(data)
        assert nodes(values) <= len(data) <= MAX_HEADER_BYTES
        if record_kind(values):
            return
        message = decode(values, [data[:100]])
        for name in ("ranges", "received"):
            ranges_of(getattr(message, name, []), "ranges")
    except ProtocolError:
        return
    if isinstance(message, Hello):
        refusal_of_text(message)
        with contextlib.suppress(SpecError):
            parse_specs(message.robot, message.task)
        json.dumps(plain(message.settings), allow_nan=False)
    frames = encode(message)
    if len(frames[0]) <= MAX_HEADER_BYTES:
        assert encode(decode(unpack(frames[0]), frames[1:])) == frames


def record(data):
    """Decode a record of the golden robot; what it gives has the robot's shapes and can be sent again."""
    try:
        frames = read_frames(data)
        found = decode_record(unpack(frames[0]), frames[1:], ROBOT, TASK)
    except ProtocolError:
        return
    seen = found.observation if isinstance(found, Step) else found.final
    shapes = {camera.key: (camera.shape, np.dtype(camera.dtype)) for camera in ROBOT.cameras}
    assert all(shapes[key] == (image.shape, image.dtype) for key, image in seen.images.items())
    again = encode_record(found, {})
    decode_record(unpack(again[0]), [], ROBOT, TASK)


def read_frames(data):
    """Return length-prefixed frames, as the golden files have them; the last may be cut."""
    frames, at = [], 0
    while at < len(data) and len(frames) < 8:
        (size,) = struct.unpack("<I", data[at : at + 4].ljust(4, b"\0"))
        frames.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return frames or [b""]


def jpeg(data):
    """Decode a JPEG of 16x24 pixels into guarded memory."""
    out, check = guarded((16, 24, 3), np.uint8)
    with contextlib.suppress(ImageError):
        decode_rgb(data, out)
    check()


def depth(data):
    """Decode depth: the first byte chooses the codec, its highest bit whether the rest is to be compressed first."""
    codec, content = DEPTH_CODECS[(data[0] if data else 0) % len(DEPTH_CODECS)], data[1:]
    if data and data[0] & 0x80:
        content = zstandard.compress(content)
    out, check = guarded((12, 20), np.int16)
    with contextlib.suppress(ImageError):
        decode_depth(codec, content, out)
    check()


def bundle(data):
    """Unpack a bundle as it is, or one with hashes that fit around a fuzzed manifest or a fuzzed golden file."""
    mode, rest = (data[0] % 3 if data else 0), data[1:]
    try:
        content = (lambda each: each, with_manifest, with_golden)[mode](rest)
        check_fit(unpack_bundle(content), samples.ROBOT, samples.TASK)
    except BundleError:
        return


def with_manifest(text):
    """Return a bundle with this manifest, whose policy id is made to fit where that is possible."""
    try:
        values = json.loads(text)
        values.pop("policy_id", None)
        made = Manifest(**{k: v for k, v in values.items() if k in {each.name for each in fields(Manifest)}})
        text = json.dumps({"policy_id": made.policy_id, **values}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return zipped({MANIFEST: text, ONNX: b"a graph", GOLDEN: golden_bytes(samples.golden())})


def with_golden(content):
    """Return a bundle whose hashes fit this golden file."""
    return pack_bundle(samples.manifest(b"a graph", content), b"a graph", content)


def zipped(files):
    """Return an uncompressed zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


TAIL = bytes(DEPTH_BYTES + PROPRIO_BYTES + ACTION_BYTES)
LEGACY_JPEG = encode_rgb(generate_v0.rgb())
LEGACY_TEXT = json.dumps({**generate_v0.METADATA, "rgb_compressed": True}).encode()


def legacy(data):
    """Decode a packet of version 0 (as it is, or only its metadata or its JPEG fuzzed) and make records of it."""
    mode, rest = (data[0] % 3 if data else 0), data[1:]
    if mode == 1:
        rest = rest + LEGACY_JPEG + TAIL
    elif mode == 2:
        rest = len(LEGACY_TEXT).to_bytes(4, "little") + LEGACY_TEXT + rest + TAIL
    try:
        packet = decode_legacy(rest)
    except ProtocolError:
        return
    decode_legacy(encode_legacy(packet))
    for made, encoded in LegacyEpisodes("legacy", "boot").follow(packet):
        frames = encode_record(made, encoded)
        assert unpack(frames[0])["kind"] in {"step", "episode_end"}
        assert all(codec in CODECS for codec, _ in encoded.values())


def golden_seeds(pattern):
    """Return golden files of versions that are spoken, and of the next one."""
    return [path.read_bytes() for path in sorted(FOLDER.glob(pattern))]


def header_seeds():
    return [frames[0] for path in sorted(FOLDER.glob("*/message.*.bin")) if (frames := read(path))]


def record_seeds():
    return golden_seeds("v1/record.*.bin")


def jpeg_seeds():
    rgb = next(iter(images().values()))
    return [encode_rgb(rgb), encode_rgb(rgb[::-1]), encode_rgb(np.zeros((8, 8, 3), np.uint8))]


def depth_seeds():
    frame = images()["observation.depth.front"]
    planes = frame.view(np.uint8).reshape(-1, 2).T.tobytes()
    golden = [frames[2:] for path in FOLDER.glob("v1/record.step.bin") if (frames := read(path))]
    seeds = [b"\x02" + frame.tobytes(), b"\x80" + planes, b"\x81\x02\0" + bytes(4) + planes]
    return seeds + [bytes([index]) + blob for blobs in golden for index, blob in enumerate(blobs)]


def bundle_seeds():
    made = samples.packed()
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        return [b"\0" + made, b"\x01" + archive.read(MANIFEST), b"\x02" + archive.read(GOLDEN)]


def legacy_seeds():
    text = len(LEGACY_TEXT).to_bytes(4, "little") + LEGACY_TEXT
    return [b"\x01" + text, b"\x02" + LEGACY_JPEG, b"\0" + text]
