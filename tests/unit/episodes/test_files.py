"""The files alone: what goes in comes out again byte for byte, whoever reads."""

import io

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import NonSeekingReader, SeekingReader

from protocol.step import EpisodeEnd
from tests.unit.episodes.making import (
    BOOT,
    DEPTH,
    EPOCH_NS,
    RGB,
    ROBOT,
    ROVER,
    TASK,
    episode,
    file_path,
    observation,
    step,
    stored,
    write_file,
)
from trainerd.episodes.reader import EpisodeError, decode, open_episode
from trainerd.episodes.records import Facts, Format, RecordError, StoredRecord

BLOBS = st.binary(max_size=300)
ROWS = st.tuples(st.integers(0, (1 << 63) - 1), BLOBS, BLOBS, st.integers(0, 3))


@settings(max_examples=50)
@given(
    st.lists(ROWS, max_size=20, unique_by=lambda row: row[0]),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0, EPOCH_NS]),
)
def test_records_come_back_byte_for_byte_in_rising_seq(tmp_path_factory, rows, size, is_finished, epoch_ns):
    records = []
    for seq, jpeg, depth, kind in rows:
        images = {RGB: ("jpeg", jpeg), DEPTH: ("palette", depth)}
        if kind & 1:
            images = dict(reversed(images.items()))  # in the order of the header, whatever that is
        if kind & 2:
            images.popitem()
        records.append(step(seq, 0, 1, images=images))
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    path = write_file(tmp_path_factory.mktemp("e") / "a.mcap", groups, is_finished=is_finished, epoch_ns=epoch_ns)
    file = open_episode(path)
    assert list(file.records()) == sorted(records, key=lambda each: each.seq)
    assert list(file.records(verify=False)) == list(file.records())
    assert (file.robot, file.task, file.is_finished, file.torn_bytes) == (ROBOT, TASK, is_finished, 0)
    assert file.metadata["rover_id"], file.metadata["epoch_ns"] == (ROVER, EPOCH_NS)


def test_a_record_decodes_to_the_step_that_it_was(tmp_path):
    path = write_file(file_path(tmp_path), [episode(2)])
    file = open_episode(path)
    decoded = [decode(record, file.robot, file.task) for record in file.records()]
    assert [each.seq for each in decoded] == [0, 1, 2]
    assert decoded[0].observation.images[DEPTH].shape == (6, 10)


@pytest.mark.parametrize("reader", [SeekingReader, NonSeekingReader])
def test_a_foreign_reader_finds_every_message(tmp_path, reader):
    records = episode(5)
    path = write_file(file_path(tmp_path), [records[:3], records[3:]])

    def query(ask):
        with path.open("rb") as stream:
            return ask(reader(stream, validate_crcs=True))

    found = query(lambda r: list(r.iter_messages()))
    steps = [message.data for _, channel, message in found if channel.topic == "/step"]
    assert steps == [record.frames[0] for record in records[:-1]]
    assert [m.data for _, c, m in found if c.topic == "/episode_end"] == [records[-1].frames[0]]
    schema, channel, message = next(each for each in found if each[1].topic == "/observation/images/front")
    assert (schema.name, schema.encoding, channel.message_encoding) == (
        "sensor_msgs/msg/CompressedImage",
        "ros2msg",
        "cdr",
    )
    assert message.data.endswith(records[0].frames[1])
    assert (message.sequence, message.log_time) == (0, EPOCH_NS)
    depth = [m for _, c, m in found if c.topic == "/observation/depth/front"]
    values = msgpack.unpackb(depth[1].data)
    assert values == {"codec": records[1].header["blobs"][1][1], "height": 6, "width": 10, "data": records[1].frames[2]}
    assert query(lambda r: r.get_header()).profile == ""
    summary = query(lambda r: r.get_summary())
    assert summary.statistics.message_count == len(found) == 16
    assert summary.statistics.chunk_count == 2
    assert {m.name for m in query(lambda r: list(r.iter_metadata()))} == {"roverloop.episode", "roverloop.spec"}
    assert len(query(lambda r: list(r.iter_messages(topics=["/episode_end"])))) == 1


def test_the_image_message_is_the_cdr_that_ros_reads(tmp_path):
    path = write_file(file_path(tmp_path), [[step(2, 0, 0)]])
    with path.open("rb") as stream:
        data = next(m.data for _, c, m in SeekingReader(stream).iter_messages() if c.message_encoding == "cdr")
    stream = io.BytesIO(data[4:])
    assert data[:4] == b"\0\1\0\0"

    def number():
        stream.seek((stream.tell() + 3) // 4 * 4)
        return int.from_bytes(stream.read(4), "little")

    assert (number(), number()) == (EPOCH_NS // 10**9, 2000)
    assert stream.read(number()) == b"front\0"
    assert stream.read(number()) == b"jpeg\0"
    size = number()
    assert stream.read() == step(2, 0, 0).frames[1]
    assert size == len(step(2, 0, 0).frames[1])


@pytest.mark.parametrize(
    ("changes", "frames", "complaint"),
    [
        ({"kind": "ping"}, 3, "kind 'ping'"),
        ({"stamp_ns": -1}, 3, "stamp_ns"),
        ({"stamp_ns": 1 << 63}, 3, "stamp_ns"),
        ({"blobs": None}, 3, "2 images"),
        ({"blobs": [[RGB, "jpeg"]]}, 3, "2 images"),
        ({"blobs": [[RGB, "jpeg"], [RGB, "jpeg"]]}, 3, "there twice"),
        ({"blobs": [["observation.images.rear", "jpeg"]]}, 2, "rear"),
        ({"blobs": [[RGB, "raw"]]}, 2, "codec 'raw'"),
        ({"blobs": [[DEPTH, "jpeg"]]}, 2, "codec 'jpeg'"),
        ({"blobs": [[DEPTH, ["delta"]]]}, 2, "codec"),
        ({"blobs": [[["a"], "jpeg"]]}, 2, "is not"),
        ({"blobs": ["observation"]}, 2, "is not"),
    ],
)
def test_a_record_that_could_not_be_read_again_is_refused(changes, frames, complaint):
    good = step(0)
    bad = StoredRecord(ROVER, BOOT, 0, 0, {**good.header, **changes}, [b""] * frames)
    with pytest.raises(RecordError, match=complaint):
        Format.of(ROBOT).check(bad)


def test_the_facts_of_an_episode_survive_fields_of_any_type():
    values = st.one_of(
        st.none(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(),
        st.sampled_from(["", "training", "x" * 100]),
        st.lists(st.integers(), max_size=2),
    )
    keys = ["purpose", "ends_episode", "success", "reason", "return", "episode_steps", "policy_id", "policy_counter"]

    @given(st.sampled_from(["step", "episode_end"]), st.dictionaries(st.sampled_from(keys), values))
    def add(kind, header):
        Facts().add(5, {"kind": kind, **header})

    add()


def test_an_episode_is_complete_from_its_first_step_to_its_end():
    def facts(records):
        made = Facts()
        for record in records:
            made.add(record.seq, record.header)
        return made

    whole = episode(4, first=10)
    assert facts(whole).is_complete
    assert facts(reversed(whole)).is_complete
    assert facts(episode(0)).is_complete
    assert not facts([step(9, 0, 7), *whole]).is_complete
    for missing in range(5):
        assert not facts(whole[:missing] + whole[missing + 1 :]).is_complete
    broken = stored(EpisodeEnd(ROVER, BOOT, 12, 0, 2, "takeover", observation(12), ends_episode=False), {})
    assert not facts([*whole[:2], broken]).is_complete


def test_a_missing_or_foreign_file_is_named(tmp_path):
    for content, complaint in ((None, "No such file"), (b"", "does not begin"), (b"not an episode at all", "MCAP")):
        path = tmp_path / "x.mcap"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EpisodeError, match=complaint) as raised:
            open_episode(path)
        assert str(path) in str(raised.value)
