"""Targets for what is read from disks, where a crash, a full disk or a flipped bit may have been at work.

Checksums would hide the readers from a fuzzer, so an odd first byte takes them as right: each one is 0 then, in the
seeds too.
"""

from __future__ import annotations

import contextlib
import os
import types
from pathlib import Path
from unittest.mock import patch

from protocol.errors import RoverError
from protocol.framing import ProtocolError, RecordEncoder, encode_record, unpack
from protocol.step import Step
from roverd import segment
from tests.wire.examples import ROBOT, TASK, records
from trainerd.episodes import mcap
from trainerd.episodes.reader import EpisodeError, decode, open_episode
from trainerd.episodes.records import Format, StoredRecord
from trainerd.episodes.records import decode as decode_messages

NO_CHECKSUMS = types.SimpleNamespace(crc32=lambda *_: 0)
CHANNELS = {channel.id: channel for channel in Format.of(ROBOT).prologue_parts[1]}
FACTS = segment.BootFacts("rover-1", "0123456789abcdef", 3, "ab" * 32, 1_700_000_000_000_000_000)


@contextlib.contextmanager
def checksums(module, *, are_right):
    """Take every checksum as right, where asked for."""
    with patch.object(module, "zlib", NO_CHECKSUMS) if are_right else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def in_memory(content):
    """Hold bytes as a file that has no name."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def chunk(data):
    """Read the record at the beginning of a chunk's data, as if its checksum were right."""
    try:
        found = decode_messages(data, 0, 0, ("rover-1", FACTS.boot_id), CHANNELS)
    except mcap.McapError:
        return
    assert sum(map(len, found.frames)) <= len(data)
    with contextlib.suppress(ProtocolError):
        decode(found, ROBOT, TASK)


def episode(data):
    """Open an episode's file and read every record of it; what passes the checksums is a record or an error."""
    with checksums(mcap, are_right=bool(data) and data[0] & 1), in_memory(data[1:]) as fd:
        try:
            found = open_episode(Path(f"/proc/self/fd/{fd}"))
        except EpisodeError:
            return
        for each in found.salvage():
            if isinstance(each, mcap.McapError):
                continue
            assert sum(map(len, each.frames)) <= len(data)
            with contextlib.suppress(ProtocolError):
                decode(each, ROBOT, TASK)
        with contextlib.suppress(RoverError):
            list(found.records())


def spool(data):
    """Index a segment of the spool and read every record of it."""
    with checksums(segment, are_right=bool(data) and data[0] & 1):
        content = data[1:]
        try:
            facts = segment.decode_header(content[: segment.DATA_AT], "fuzz")
        except segment.SegmentError:
            facts = FACTS
        salt = facts.salt if isinstance(facts.boot_id, str) else 0
        with in_memory(content) as fd:
            found = segment.Segment(Path("fuzz"), 0, 1 << 62, len(content))
            files = segment.Files()
            found.index(files, fd, salt)
            assert list(found.seqs) == sorted(set(found.seqs))
            for seq in found.seqs:
                frames = found.read(files, fd, salt, seq)
                assert frames is None or sum(map(len, frames)) <= len(content)


def golden_records():
    """Return (seq, episode, frames) of the golden records."""
    found = []
    for seq, each in enumerate(records().values()):
        seen = each.observation if isinstance(each, Step) else each.final
        found.append((seq, each.episode_id, encode_record(each, RecordEncoder(ROBOT).encode_images(seen.images))))
    return found


def episode_file():
    """Return the bytes of a small episode's file: two groups and the summary."""
    names = {"rover_id": "rover-1", "boot_id": FACTS.boot_id, "run_id": "run-1"}
    numbers = {"format": "1", "episode_id": "4", "epoch_ns": "0", "created_ns": "1"}
    layout = Format.of(ROBOT)
    content = layout.prologue({**names, **numbers}, ROBOT, TASK)
    groups = []
    for part in (golden_records()[:1], golden_records()[1:]):
        builder = mcap.ChunkBuilder()
        for seq, episode_id, frames in part:
            stored = StoredRecord("rover-1", FACTS.boot_id, seq, episode_id, unpack(frames[0]), frames)
            layout.encode(stored, builder, 0, 1_000)
        buffers, group = builder.finish(len(content))
        groups.append(group)
        content += b"".join(buffers)
    return content + mcap.summary_bytes(mcap.parse_prologue(content), groups, mcap.summary_start(len(content)))


def chunk_seeds():
    seeds = []
    for _, episode_id, frames in golden_records():
        builder = mcap.ChunkBuilder()
        stored = StoredRecord("rover-1", FACTS.boot_id, 0, episode_id, unpack(frames[0]), frames)
        Format.of(ROBOT).encode(stored, builder, 0, 1_000)
        seeds.append(b"".join(builder.buffers))
    return seeds


def episode_seeds():
    seeds = []
    for are_right in (False, True):
        with checksums(mcap, are_right=are_right):
            content = bytes([are_right]) + episode_file()
        seeds += [content, content[:-100]]
    return seeds


def spool_seeds():
    seeds = []
    for are_right in (False, True):
        with checksums(segment, are_right=are_right):
            content = segment.encode_header(FACTS)
            for seq, _, frames in golden_records():
                content += b"".join(segment.encode_record(seq, frames, FACTS.salt))
            seeds += [bytes([are_right]) + content, bytes([are_right]) + content[:-10]]
    return seeds
