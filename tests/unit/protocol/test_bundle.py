"""A bundle is whole and for this robot, or it is refused with what is wrong."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest

from protocol.bundle import (
    GOLDEN,
    MANIFEST,
    ONNX,
    Bundle,
    BundleError,
    Signature,
    check_fit,
    golden_bytes,
    pack_bundle,
    unpack_bundle,
    write_atomic,
)
from protocol.spec import canonical_hash
from protocol.transform import InputTransform
from tests.unit.protocol.samples import DEPTH, PLANES, RGB, ROBOT, TASK, golden, manifest, packed

CONTENT = packed()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def restated(**changes) -> bytes:
    """Return a bundle whose manifest was changed, with the policy id that fits it."""
    files = members(CONTENT)
    values = {**json.loads(files[MANIFEST]), **changes}
    values.pop("policy_id")
    try:
        policy_id = canonical_hash(values)
    except ValueError:
        policy_id = "nan"
    return zipped({**files, MANIFEST: json.dumps({"policy_id": policy_id, **values}).encode()})


def same(ours: Bundle, theirs: Bundle) -> bool:
    arrays = [(getattr(ours.golden, n), getattr(theirs.golden, n)) for n in ("image", "vector", "mean")]
    return (ours.manifest, ours.onnx) == (theirs.manifest, theirs.onnx) and all(
        np.array_equal(*pair) for pair in arrays
    )


def test_a_bundle_comes_back_with_its_graph_and_manifest() -> None:
    bundle = unpack_bundle(CONTENT)
    assert (bundle.onnx, bundle.manifest.run_id, bundle.policy_id) == (b"a graph", "run", bundle.manifest.policy_id)


def test_equal_content_gives_equal_bytes() -> None:
    assert packed() == CONTENT


def test_another_graph_gives_another_policy_id() -> None:
    assert unpack_bundle(packed(b"another graph")).policy_id != unpack_bundle(CONTENT).policy_id


def test_the_policy_id_survives_the_file() -> None:
    content = golden_bytes(golden())
    made = manifest(b"a graph", content)
    assert unpack_bundle(pack_bundle(made, b"a graph", content)).policy_id == made.policy_id


def test_a_whole_bundle_fits_its_robot() -> None:
    check_fit(unpack_bundle(CONTENT), ROBOT, TASK)


def only_bundle_errors(content: bytes) -> None:
    """Damage must be refused; what a zip keeps beside the content (stamps, attributes) may differ."""
    try:
        bundle = unpack_bundle(content)
    except BundleError:
        return
    assert same(bundle, unpack_bundle(CONTENT))


def test_a_flipped_byte_anywhere_is_refused_or_changes_nothing() -> None:
    for place in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[place] ^= (0x01, 0x08, 0xFF)[place % 3]
        only_bundle_errors(bytes(damaged))


@pytest.mark.parametrize("name", [MANIFEST, ONNX, GOLDEN])
def test_a_flipped_byte_within_any_file_is_refused(name: str) -> None:
    inside = CONTENT.index(members(CONTENT)[name]) + len(members(CONTENT)[name]) // 2
    damaged = bytearray(CONTENT)
    damaged[inside] ^= 1
    with pytest.raises(BundleError):
        unpack_bundle(bytes(damaged))


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_cut_bundle_is_refused(share: float) -> None:
    with pytest.raises(BundleError):
        unpack_bundle(CONTENT[: int(share * len(CONTENT))])


@pytest.mark.parametrize("name", [MANIFEST, ONNX, GOLDEN])
def test_a_missing_file_is_named(name: str) -> None:
    files = members(CONTENT)
    del files[name]
    with pytest.raises(BundleError, match=name):
        unpack_bundle(zipped(files))


@pytest.mark.parametrize("name", [ONNX, GOLDEN])
def test_a_file_of_another_hash_is_named(name: str) -> None:
    files = members(CONTENT)
    with pytest.raises(BundleError, match=f"{name} has sha256"):
        unpack_bundle(zipped({**files, name: files[name] + b"!"}))


def test_packing_refuses_a_manifest_of_other_files() -> None:
    with pytest.raises(BundleError, match=ONNX):
        pack_bundle(manifest(b"a graph", golden_bytes(golden())), b"another graph", golden_bytes(golden()))


def test_a_compressed_member_is_refused() -> None:
    with pytest.raises(BundleError, match="compressed"):
        unpack_bundle(zipped(members(CONTENT), zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"format": 99}',
        b'{"format": 1, "files": 3}',
    ],
)
def test_a_malformed_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError):
        unpack_bundle(zipped({**members(CONTENT), MANIFEST: content}))


def test_a_changed_manifest_no_longer_matches_its_policy_id() -> None:
    files = members(CONTENT)
    changed = files[MANIFEST].replace(b'"counter": 3', b'"counter": 4')
    with pytest.raises(BundleError, match="policy_id"):
        unpack_bundle(zipped({**files, MANIFEST: changed}))


@pytest.mark.parametrize("change", [{"control_rate_hz": float("nan")}, {"log_std": [float("inf")]}, {"files": []}])
def test_an_impossible_manifest_is_refused_though_its_policy_id_fits(change: dict[str, object]) -> None:
    with pytest.raises(BundleError):
        unpack_bundle(restated(**change))


def test_an_unknown_key_of_a_newer_manifest_breaks_its_policy_id() -> None:
    with pytest.raises(BundleError, match="policy_id"):
        unpack_bundle(restated(colour="red"))


@pytest.mark.parametrize(
    "arrays",
    [
        replace(golden(), mean=np.full((2, 2), np.nan, np.float32)),
        replace(golden(), vector=np.zeros((2, 5), np.float64)),
    ],
    ids=["nan", "float64"],
)
def test_golden_arrays_are_finite_float32(arrays) -> None:
    with pytest.raises(BundleError, match="finite float32"):
        unpack_bundle(packed(arrays=arrays))


def test_a_golden_file_with_pickled_objects_is_refused() -> None:
    out = io.BytesIO()
    np.savez(out, image=np.array([{}], object), vector=np.zeros(1), mean=np.zeros(1))
    content = out.getvalue()
    bundle = pack_bundle(manifest(b"a graph", content), b"a graph", content)
    with pytest.raises(BundleError, match=GOLDEN):
        unpack_bundle(bundle)


def fit_error(content: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        check_fit(unpack_bundle(content), ROBOT, TASK)
    return str(caught.value)


def test_each_difference_of_another_robot_and_task_is_named() -> None:
    robot = replace(ROBOT, action_repeat=5, state=(replace(ROBOT.state[0], scale=2.0), ROBOT.state[1]))
    message = fit_error(packed(robot=robot.to_map(), task=replace(TASK, name="drive").to_map(), runner="chunk"))
    expected = ("action_repeat: 2 here, 5 there", "state.linear_vel.scale: 0.5 here, 2.0 there", "task.name", "runner")
    assert [part for part in expected if part not in message] == []


def test_another_transform_version_is_refused() -> None:
    transform = InputTransform.of(ROBOT, TASK, ()).to_map()
    assert "version 2" in fit_error(packed(transform={**transform, "version": 2}))


def test_a_transform_with_height_and_width_swapped_is_refused() -> None:
    transform = replace(InputTransform.of(ROBOT, TASK, PLANES), height=10, width=6)
    assert "transform: (10, 6) pixels" in fit_error(packed(transform=transform.to_map()))


def test_a_transform_of_other_elements_is_refused() -> None:
    made = InputTransform.of(ROBOT, TASK, ())
    transform = replace(made, elements=(replace(made.elements[0], scale=2.0), *made.elements[1:]))
    assert "transform" in fit_error(packed(transform=transform.to_map()))


@pytest.mark.parametrize("plane", [{"camera": RGB, "kind": "hue"}, {"camera": "x", "kind": "rgb"}, {"camera": DEPTH}])
def test_a_transform_of_unknown_planes_is_refused(plane: dict[str, str]) -> None:
    transform = InputTransform.of(ROBOT, TASK, ()).to_map()
    assert "is for another robot" not in fit_error(packed(transform={**transform, "planes": [plane]}))


@pytest.mark.parametrize("log_std", [[], [0.0], [0.0, 0.0, 0.0]])
def test_a_log_std_of_another_length_is_refused(log_std: list[float]) -> None:
    assert "log_std" in fit_error(packed(log_std=log_std))


@pytest.mark.parametrize(
    "arrays",
    [
        golden(0),
        golden(channels=1),
        replace(golden(), vector=golden(3).vector),
        replace(golden(), mean=golden().vector),
    ],
    ids=["none", "images", "counts", "actions"],
)
def test_golden_arrays_of_another_shape_are_refused(arrays) -> None:
    assert "golden arrays" in fit_error(packed(arrays=arrays))


@pytest.mark.parametrize("robot", [{}, {"name": "x"}, None])
def test_a_manifest_without_a_robot_is_refused(robot: object) -> None:
    with pytest.raises(BundleError):
        check_fit(unpack_bundle(packed(robot=robot)), ROBOT, TASK)


def test_the_manifest_says_what_it_was_made_with() -> None:
    stated = json.loads(members(CONTENT)[MANIFEST])
    assert stated == json.loads(
        json.dumps({**asdict(unpack_bundle(CONTENT).manifest), "policy_id": stated["policy_id"]})
    )


def test_a_file_appears_whole_in_a_new_folder(tmp_path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"


def test_no_temporary_file_stays_behind(tmp_path) -> None:
    write_atomic(tmp_path / "file", b"old")
    write_atomic(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, function: str) -> None:
    write_atomic(tmp_path / "file", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


SIGNATURE = Signature("0123456789abcdef", 7, "ab" * 64)


def signed(**changes) -> bytes:
    """Return a bundle whose manifest carries a signature with some fields changed; None takes a field away."""
    files = members(CONTENT)
    values = {key: value for key, value in (SIGNATURE.to_map() | changes).items() if value is not None}
    return zipped({**files, MANIFEST: json.dumps({**json.loads(files[MANIFEST]), "signature": values}).encode()})


def test_a_signed_policy_is_the_same_policy_with_its_signature() -> None:
    files = members(CONTENT)
    bundle = unpack_bundle(pack_bundle(manifest(files[ONNX], files[GOLDEN]), files[ONNX], files[GOLDEN], SIGNATURE))
    assert (bundle.signature, bundle.policy_id) == (SIGNATURE, unpack_bundle(CONTENT).policy_id)


def test_a_bundle_without_a_signature_has_none() -> None:
    assert unpack_bundle(CONTENT).signature is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"algorithm": "rsa"}, "algorithm 'rsa', expected ed25519"),
        ({"algorithm": None}, "algorithm"),
        ({"key_id": "0123456789ABCDEF"}, "key_id"),
        ({"key_id": "0123"}, "key_id"),
        ({"key_id": 5}, "key_id"),
        ({"counter": -1}, "counter '-1'"),
        ({"counter": 1.5}, "counter"),
        ({"counter": True}, "counter"),
        ({"counter": 1 << 60}, "counter"),
        ({"value": "ab" * 63}, "value of 126 characters, expected 64 bytes in hex"),
        ({"value": "xy" * 64}, "value"),
        ({"value": None}, "value"),
    ],
)
def test_a_malformed_signature_is_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(BundleError, match="signature") as caught:
        unpack_bundle(signed(**changes))
    assert named in str(caught.value)


def test_all_mistakes_of_a_signature_are_named_at_once() -> None:
    with pytest.raises(BundleError, match=r"algorithm.*key_id.*counter.*value"):
        unpack_bundle(signed(algorithm=1, key_id=1, counter="", value=1))


@pytest.mark.parametrize("value", [None, [], "signed", 5])
def test_a_signature_that_is_no_map_is_refused(value: object) -> None:
    files = members(CONTENT)
    content = json.dumps({**json.loads(files[MANIFEST]), "signature": value}).encode()
    with pytest.raises(BundleError, match="signature"):
        unpack_bundle(zipped({**files, MANIFEST: content}))
