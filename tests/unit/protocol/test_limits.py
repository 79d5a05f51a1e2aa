"""Bombs: small inputs that ask for much memory or time are refused before they get it."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

import protocol
from protocol.bundle import GOLDEN, MANIFEST, ONNX, BundleError, check_fit, golden_bytes, pack_bundle, unpack_bundle
from protocol.framing import MAX_HEADER_BYTES, ProtocolError, pack, unpack
from protocol.images import MAX_SCANS, RAW, ImageError, decode_depth, decode_rgb, encode_rgb
from protocol.spec import canonical_hash
from tests.unit.protocol.samples import ROBOT, TASK, golden, manifest, packed

MIB = 1 << 20


@contextlib.contextmanager
def peak_below(limit: int):
    """Fail when more than ``limit`` bytes are allocated inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


@pytest.mark.parametrize("marker", [b"\xdc\x10\x00", b"\xdd\x00\x00\x10\x00"], ids=["array16", "array32"])
@pytest.mark.parametrize("size", [3000, MAX_HEADER_BYTES])
def test_nested_beginnings_of_lists_allocate_nothing(marker: bytes, size: int) -> None:
    bomb = b"\x81\xa1a" + marker * ((size - 3) // len(marker))
    with peak_below(MIB), pytest.raises(ProtocolError, match="not msgpack"):
        unpack(bomb)


def test_a_header_full_of_empty_lists_is_as_large_as_they_are() -> None:
    inner = b"\xdc\x0f\xff" + b"\x90" * 4095
    bomb = b"\x81\xa1a" + b"\x9f" + inner * 15
    with peak_below(8 * MIB):
        assert len(unpack(bomb)["a"]) == 15


def test_bytes_that_look_like_lists_are_none() -> None:
    header = {"kind": "step", "state": b"\xdc\xdd" * 4096}
    assert unpack(pack(header)) == header


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
        b"\x81\xa1a" + b"\x91" * 60_000,
        b"\x81\xa1a" + b"\x91" * 600 + b"\x00",
    ],
    ids=["array", "map", "inner array", "text", "bytes", "ext", "timestamp", "nested", "nested whole"],
)
def test_a_header_that_promises_much_is_refused(bomb: bytes) -> None:
    with peak_below(MIB), pytest.raises(ProtocolError):
        unpack(bomb)


def progressive(scans: int) -> bytes:
    """Return a grey 8x8 JPEG of a progressive kind with so many scans, each of which is a pass over the image."""
    plain = encode_rgb(np.full((8, 8, 3), 128, np.uint8))
    begin = plain.index(b"\xff\xda")
    return plain[:begin] + plain[begin:-2] * scans + plain[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    out = np.empty((8, 8, 3), np.uint8)
    decode_rgb(progressive(1), out)
    began = time.perf_counter()
    with pytest.raises(ImageError, match="scans"):
        decode_rgb(progressive(MAX_SCANS + 1), out)
    with pytest.raises(ImageError, match="scans"):
        decode_rgb(progressive(20_000), out)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize("codec", ["delta", "palette"])
def test_a_zstd_frame_may_not_ask_for_a_large_window(codec: str) -> None:
    window_log, size = 27, 9600
    head = b"\x28\xb5\x2f\xfd\x40" + bytes([(window_log - 10) << 3]) + (size - 256).to_bytes(2, "little")
    bomb = head + (8 * size).to_bytes(3, "little") + bytes(100)  # a raw block that is cut short
    stated = zstandard.get_frame_parameters(bomb)
    assert (stated.window_size, stated.content_size) == (1 << window_log, size)
    with pytest.raises(ImageError, match="memory"):
        decode_depth(codec, bomb, np.zeros((60, 80), np.int16))


@pytest.mark.parametrize("codec", ["delta", "palette"])
def test_a_zstd_frame_that_does_not_state_its_size_is_refused(codec: str) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(12))
    with pytest.raises(ImageError, match="states"):
        decode_depth(codec, bomb, np.zeros((2, 3), np.int16))


def test_the_smallest_zstd_frame_that_claims_the_most_is_refused() -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8
    with peak_below(MIB), pytest.raises(ImageError):
        decode_depth("delta", bomb, np.zeros((2, 3), np.int16))


def test_raw_depth_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match="expected 12"):
        decode_depth(RAW, bytes(13), np.zeros((2, 3), np.int16))


def bundled(golden_file: bytes, **changes: object) -> bytes:
    """Return a bundle around a golden file, with hashes and policy id that fit."""
    return pack_bundle(manifest(b"a graph", golden_file, **changes), b"a graph", golden_file)


def npz(compression: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name in ("image", "vector", "mean"):
            archive.writestr(f"{name}.npy", files.get(name, b""))
    return out.getvalue()


def npy(shape: str, dtype: str = "<f4", content: bytes = b"") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content


def test_a_golden_file_that_inflates_is_refused_before_it_does() -> None:
    bomb = npz(zipfile.ZIP_DEFLATED, image=npy("(4194304, 4)", content=bytes(64 * MIB)))
    assert len(bomb) < MIB
    content = bundled(bomb)
    with peak_below(4 * MIB), pytest.raises(BundleError, match="compressed"):
        unpack_bundle(content)


@pytest.mark.parametrize(
    "shape",
    ["(1099511627776,)", "(1048576, 1048576)", "(2, 1000000000000000000000)", "(-1,)", "(1,)" * 2, "()", "(1, " * 90],
)
def test_a_golden_array_that_lies_about_its_shape_is_refused(shape: str) -> None:
    content = bundled(npz(image=npy(shape), vector=npy(shape), mean=npy(shape)))
    with peak_below(MIB), pytest.raises(BundleError, match=GOLDEN):
        unpack_bundle(content)


@pytest.mark.parametrize("dtype", ["|O", "<f8", "<U1000000", "|V9", "<c8"])
def test_a_golden_array_of_another_type_is_refused(dtype: str) -> None:
    content = bundled(npz(image=npy("(0,)", dtype), vector=npy("(0,)", dtype), mean=npy("(0,)", dtype)))
    with pytest.raises(BundleError, match=GOLDEN):
        unpack_bundle(content)


def test_a_golden_array_of_a_newer_npy_format_is_refused() -> None:
    newer = b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little")
    with peak_below(MIB), pytest.raises(BundleError, match="format"):
        unpack_bundle(bundled(npz(image=newer)))


def rezipped(files: dict[str, bytes], more: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for index in range(more):
            archive.writestr(f"{index:x}", b"")
    return out.getvalue()


def test_a_zip_of_very_many_names_is_refused_before_they_are_listed() -> None:
    content = rezipped({MANIFEST: b"{}", ONNX: b"", GOLDEN: b""}, more=20_000)
    with peak_below(MIB), pytest.raises(BundleError, match="20003 files"):
        unpack_bundle(content)


def test_a_zip_whose_size_is_stated_elsewhere_is_refused() -> None:
    content = packed()
    locator = b"PK\x06\x07" + bytes(16)
    with pytest.raises(BundleError, match="its end"):
        unpack_bundle(content[:-22] + locator + content[-22:])


def test_a_zip_with_a_comment_is_refused() -> None:
    out = io.BytesIO(packed())
    with zipfile.ZipFile(out, "a") as archive:
        archive.comment = b"hello"
    with pytest.raises(BundleError, match="its end"):
        unpack_bundle(out.getvalue())


def restated(text: bytes) -> bytes:
    content = golden_bytes(golden())
    return rezipped({MANIFEST: text, ONNX: b"a graph", GOLDEN: content})


def test_a_huge_manifest_is_refused_before_it_is_parsed() -> None:
    content = restated(b"[" + b"[]," * MIB + b"[]]")
    with peak_below(24 * MIB), pytest.raises(BundleError, match="manifest: 3145732 bytes"):  # the archive, four times
        unpack_bundle(content)


@pytest.mark.parametrize("depth", [700, 990, 100_000])
def test_a_very_deep_manifest_is_refused(depth: int) -> None:
    text = b'{"format": 1, "metrics": ' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(BundleError, match="manifest"):
        unpack_bundle(restated(text))


def changed(**changes: object) -> bytes:
    graph, content = b"a graph", golden_bytes(golden())
    made = manifest(graph, content)
    values = {**json.loads(made.to_json()), **changes}
    values.pop("policy_id")
    return restated(json.dumps({"policy_id": canonical_hash(values), **values}).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("counter", "3"),
        ("counter", 10**300),
        ("counter", True),
        ("parent", 7),
        ("robot", [1]),
        ("inputs", [1]),
        ("log_std", 1.0),
        ("log_std", ["0"]),
        ("action_low", [10**300, 0.0]),
        ("control_rate_hz", "10"),
        ("metrics", []),
        ("files", None),
    ],
)
def test_a_manifest_field_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BundleError, match=field):
        unpack_bundle(changed(**{field: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"robot": {**ROBOT.to_map(), "control_rate_hz": 10**400}},
        {"robot": {**ROBOT.to_map(), "cameras": 3}},
        {"transform": {"version": 1, "planes": [], "height": "x", "width": 1, "elements": [], "masked": []}},
        {"transform": {"version": 1, "planes": [], "height": 10**400, "width": 1, "elements": [], "masked": []}},
        {"task": {"name": [], "features": {}, "masked_state": 0}},
    ],
)
def test_a_bundle_of_odd_specs_is_refused_and_stops_nothing(changes: dict[str, object]) -> None:
    with pytest.raises(BundleError):
        check_fit(unpack_bundle(changed(**changes)), ROBOT, TASK)


def test_a_manifest_that_is_otherwise_good_may_not_be_deep() -> None:
    deep: dict[str, object] = {}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(BundleError, match="within each other"):
        unpack_bundle(changed(metrics=deep))


def test_a_good_bundle_still_passes_all_of_this() -> None:
    bundle = unpack_bundle(changed())
    assert hashlib.sha256(bundle.onnx).hexdigest() == bundle.manifest.files[ONNX]
    check_fit(bundle, ROBOT, TASK)


def calls_and_imports(source: str) -> set[str]:
    """Return the names of modules that a source imports, and of what it calls, as it writes them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found


UNSAFE = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "torch.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "eval",
    "exec",
}


@pytest.mark.parametrize("package", ["protocol", "roverd", "trainerd", "plugins"])
def test_nothing_is_read_that_can_hold_code(package: str) -> None:
    sources = sorted((Path(protocol.__file__).parents[1] / package).rglob("*.py"))
    found = {f"{path.name}: {name}" for path in sources for name in calls_and_imports(path.read_text()) & UNSAFE}
    assert sources
    assert found == set()


def test_the_search_for_unsafe_readers_finds_them() -> None:
    source = "import pickle\nfrom torch import load\nnp.load(x)\nmodel.eval()\n"
    assert calls_and_imports(source) & UNSAFE == {"pickle", "np.load", "torch.load"}


def test_a_jpeg_of_a_subsampling_that_nobody_knows_is_refused() -> None:
    content = bytes.fromhex(
        "ffd8ffe00000ffc00011080010001803011400021101031101ffda000c0301000215038ee400ffda0c77e5ffda"
    )
    with pytest.raises(ImageError, match="JPEG of 45 bytes"):
        decode_rgb(content, np.empty((16, 24, 3), np.uint8))
