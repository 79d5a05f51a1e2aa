"""Released bytes are understood for ever, and are still what is sent."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from protocol import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocol.framing import decode_record, encode_record, unpack
from protocol.images import CODECS
from protocol.messages import KINDS, decode, encode
from protocol.spec import RobotSpec, TaskSpec
from tests.wire.examples import FRONT, MESSAGES, REAR, RGB, ROBOT, TASK, images, records
from tests.wire.generate import FOLDER, read

V1 = FOLDER / "v1"
RECORDS = records()


def plain(value):
    """Return a record as plain values that compare; images are looked at apart."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.name != "images"}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return repr(value) if isinstance(value, float) else value


def decoded(name: str):
    header, *frames = read(V1 / f"record.{name}.bin")
    return decode_record(unpack(header), frames, ROBOT, TASK)


def without_tuples(values):
    """Return nested values as msgpack gives them back."""
    if isinstance(values, dict):
        return {key: without_tuples(each) for key, each in values.items()}
    return [without_tuples(each) for each in values] if isinstance(values, list | tuple) else values


def test_every_version_that_is_still_spoken_has_golden_files() -> None:
    assert [v for v in range(OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION + 1) if not (FOLDER / f"v{v}").is_dir()] == []


def test_every_message_has_a_golden_file() -> None:
    assert sorted(path.name.split(".")[1] for path in V1.glob("message.*.bin")) == sorted(KINDS)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_message_means_what_it_meant(name: str) -> None:
    header, *frames = read(V1 / f"message.{name}.bin")
    found, expected = decode(unpack(header), frames), MESSAGES[name]
    assert without_tuples(found.__dict__) == without_tuples(expected.__dict__)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_message_is_sent_as_the_same_bytes(name: str) -> None:
    frames = read(V1 / f"message.{name}.bin")
    assert encode(MESSAGES[name]) == frames
    assert encode(decode(unpack(frames[0]), frames[1:])) == frames


def test_the_golden_hello_holds_the_golden_robot_and_task() -> None:
    hello = decode(unpack(read(V1 / "message.hello.bin")[0]))
    assert (RobotSpec.from_map(hello.robot), TaskSpec.from_map(hello.task)) == (ROBOT, TASK)


def test_the_hashes_of_robot_and_task_never_change() -> None:
    assert (ROBOT.hash[:16], TASK.hash[:16]) == ("e258d5c6338885dd", "fb82940de5a51c66")


@pytest.mark.parametrize("name", RECORDS)
def test_a_golden_record_means_what_it_meant(name: str) -> None:
    assert plain(decoded(name)) == plain(RECORDS[name])


@pytest.mark.parametrize("name", RECORDS)
def test_a_golden_record_is_sent_as_the_same_bytes(name: str) -> None:
    frames = read(V1 / f"record.{name}.bin")
    blobs = {key: (codec, frame) for (key, codec), frame in zip(unpack(frames[0])["blobs"], frames[1:], strict=True)}
    assert encode_record(RECORDS[name], blobs) == frames
    assert encode_record(decoded(name), blobs) == frames


def test_golden_depth_of_either_codec_is_bit_exact() -> None:
    seen = decoded("step").observation.images
    np.testing.assert_array_equal(seen[FRONT], images()[FRONT])
    np.testing.assert_array_equal(seen[REAR], images()[REAR])


def test_the_golden_step_uses_every_codec_that_is_chosen() -> None:
    codecs = [codec for _, codec in unpack(read(V1 / "record.step.bin")[0])["blobs"]]
    assert sorted(codecs) == sorted(set(CODECS) - {"raw"})


def test_golden_pixels_stand_in_their_rows_and_columns() -> None:
    rgb = decoded("step").observation.images[RGB].astype(int)
    assert np.abs(rgb - images()[RGB]).max() <= 24


@pytest.mark.parametrize(
    ("name", "keys"), [("step", {RGB, FRONT, REAR}), ("step_human", {FRONT}), ("step_held", set())]
)
def test_a_golden_step_has_the_images_that_were_recorded(name: str, keys: set[str]) -> None:
    assert decoded(name).observation.images.keys() == keys
