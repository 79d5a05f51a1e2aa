"""Write and verify MCAP files whose every synced byte survives a kill, and of which every byte is covered by a CRC.

The format is MCAP (https://mcap.dev/spec) with chunks that are not compressed. Two private records, which other readers
skip as the specification tells them to, close what MCAP leaves open:

- a *guard* ends the prologue (header, schemas, channels, metadata) with its CRC;
- a *seal* ends each chunk with its message indexes: a CRC over all that the chunk's own CRC leaves out, the chunk's
  place in the file, and the seq of each record in it. Chunk, indexes and seal are one *group*: written together, synced
  together, and valid only whole. So a torn group is known as such, and the rest of the file is found behind damage.

A file without a summary is one that is being written, or was when its writer died. Nothing here knows of robots.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
MESSAGE_INDEX, CHUNK_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = (
    0x07, 0x08, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F,
)  # fmt: skip
GUARD, SEAL = 0x80, 0x81
GUARD_MARK = b"RLguard\x01"
SEAL_MARK = b"RLseal\xa5\x01"

MAX_PROLOGUE_BYTES = 4 << 20
MAX_CHUNK_BYTES = 1 << 30
IOV_MAX = 1024
MESSAGE_HEAD = struct.Struct("<BQHIQQ")
"""Opcode, length, channel, sequence, log time, publish time."""
MESSAGE_FIELDS_BYTES = 22
"""The part of a message's head that its length counts."""
_RECORD_HEAD = struct.Struct("<BQ")
_CHUNK_HEAD = struct.Struct("<BQQQQIIQ")
"""Opcode, length; start and end time, uncompressed size, CRC, length of the compression's name (0), size."""
_SEAL_HEAD = struct.Struct("<BQI")
"""Opcode, length; number of records."""
_SEAL_ENTRY = struct.Struct("<QI")
"""Seq of a record, place of its first message in the chunk."""
_SEAL_PLACE = struct.Struct("<Q")
_SEAL_END = struct.Struct("<I8s")
"""CRC, mark: the mark comes last, so that a group that was written whole is told from one that was not."""
_SEAL_TAIL_BYTES = _SEAL_PLACE.size + _SEAL_END.size
_GUARD = struct.Struct("<BQ8sQI")
"""Opcode, length; mark, size of what is before it, CRC of that."""
_INDEX_HEAD = struct.Struct("<BQHI")
_FOOTER = struct.Struct("<BQQQI")
_CRC = struct.Struct("<I")
_DATA_END = _RECORD_HEAD.pack(DATA_END, 4) + _CRC.pack(0)
_TAIL_BYTES = _FOOTER.size + len(MAGIC)


class McapError(RoverError):
    """A place in a file is not what it must be; the message names it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A chunk with its indexes and seal."""

    offset: int
    """Where the chunk begins in the file."""
    length: int
    data_size: int
    crc: int
    """CRC-32 of the chunk's data."""
    start_ns: int
    end_ns: int
    entries: tuple[tuple[int, int], ...]
    """For each record its seq and the place of its first message in the chunk's data."""
    index_offsets: tuple[tuple[int, int, int], ...]
    """Channel, offset of its message index in the file, messages."""

    @property
    def data_offset(self) -> int:
        """Where the chunk's data begins in the file."""
        return self.offset + _CHUNK_HEAD.size

    @property
    def end(self) -> int:
        """Where the next group begins."""
        return self.offset + self.length


@dataclass
class Prologue:
    """What stands before the first group."""

    size: int
    """Bytes up to the first group, the guard included."""
    channels: dict[int, Channel]
    metadata: dict[str, dict[str, str]]
    schemas: bytes
    """The schema records, as they stand in the file."""
    channel_records: bytes
    metadata_index: bytes
    content: bytes = b""
    """All of it, as it stands in the file."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A stream of messages."""

    id: int
    topic: str
    message_encoding: str
    schema_id: int = 0
    metadata: tuple[tuple[str, str], ...] = ()


class ChunkBuilder:
    """Collect the messages of one group as buffers that are written without being copied."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.buffers: list[bytes | memoryview] = []
        self.size = 0
        self.crc = 0
        self.start_ns = 0
        self.end_ns = 0
        self.entries: list[tuple[int, int]] = []
        self._indexes: dict[int, list[int]] = {}

    @classmethod
    def of(cls, data: bytes, entries: Sequence[tuple[int, int]]) -> ChunkBuilder:
        """Return the builder of a chunk's data that is to be written elsewhere; raises McapError."""
        builder, seqs = cls(), {place: seq for seq, place in entries}
        for channel, sequence, log_ns, publish_ns, payload in messages_at(data, 0):
            if builder.size in seqs:
                builder.begin_record(seqs[builder.size], log_ns)
            builder.add(channel, sequence, log_ns, publish_ns, b"", payload)
        return builder

    def begin_record(self, seq: int, log_ns: int) -> None:
        """Note that the messages that follow belong to the record ``seq``."""
        if self.entries:
            self.start_ns, self.end_ns = min(self.start_ns, log_ns), max(self.end_ns, log_ns)
        else:
            self.start_ns = self.end_ns = log_ns
        self.entries.append((seq, self.size))

    def add(
        self, channel: int, sequence: int, log_ns: int, publish_ns: int, prefix: bytes, content: bytes | memoryview
    ) -> None:
        """Add a message whose payload is ``prefix`` and ``content``."""
        size = MESSAGE_FIELDS_BYTES + len(prefix) + len(content)
        head = MESSAGE_HEAD.pack(MESSAGE, size, channel, sequence, log_ns, publish_ns) + prefix
        self.buffers.append(head)
        self.buffers.append(content)
        self.crc = zlib.crc32(content, zlib.crc32(head, self.crc))
        index = self._indexes.get(channel)
        if index is None:
            index = self._indexes[channel] = []
        index.append(log_ns)
        index.append(self.size)
        self.size += 9 + size

    def finish(self, offset: int) -> tuple[list[bytes | memoryview], Group]:
        """Return the buffers of the whole group, for a file in which it begins at ``offset``."""
        head = _CHUNK_HEAD.pack(
            CHUNK, _CHUNK_HEAD.size - 9 + self.size, self.start_ns, self.end_ns, self.size, self.crc, 0, self.size
        )
        at = offset + len(head) + self.size
        indexes, places = [], []
        for channel, values in self._indexes.items():
            record = _INDEX_HEAD.pack(MESSAGE_INDEX, 6 + 8 * len(values), channel, 8 * len(values)) + struct.pack(
                f"<{len(values)}Q", *values
            )
            indexes.append(record)
            places.append((channel, at, len(values) // 2))
            at += len(record)
        tail = b"".join(indexes) + _seal(offset, self.entries)
        tail += _SEAL_END.pack(zlib.crc32(tail, zlib.crc32(head)), SEAL_MARK)
        group = Group(
            offset=offset,
            length=len(head) + self.size + len(tail),
            data_size=self.size,
            crc=self.crc,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            entries=tuple(self.entries),
            index_offsets=tuple(places),
        )
        return [head, *self.buffers, tail], group


def _seal(offset: int, entries: Sequence[tuple[int, int]]) -> bytes:
    """Return a seal without its CRC and mark."""
    length = _SEAL_HEAD.size - 9 + _SEAL_ENTRY.size * len(entries) + _SEAL_TAIL_BYTES
    content = b"".join([_SEAL_ENTRY.pack(seq, place) for seq, place in entries])
    return _SEAL_HEAD.pack(SEAL, length, len(entries)) + content + _SEAL_PLACE.pack(offset)


def string(text: str) -> bytes:
    """Return a text as MCAP writes it."""
    content = text.encode()
    return _CRC.pack(len(content)) + content


def record(opcode: int, content: bytes) -> bytes:
    """Return a record."""
    return _RECORD_HEAD.pack(opcode, len(content)) + content


def _strings(values: Iterable[tuple[str, str]]) -> bytes:
    content = b"".join(string(key) + string(value) for key, value in values)
    return _CRC.pack(len(content)) + content


def schema_record(schema_id: int, name: str, encoding: str, text: str) -> bytes:
    """Return a schema; its id is at least 1."""
    return record(SCHEMA, struct.pack("<H", schema_id) + string(name) + string(encoding) + string(text))


def channel_record(channel: Channel) -> bytes:
    """Return a channel."""
    head = struct.pack("<HH", channel.id, channel.schema_id)
    return record(CHANNEL, head + string(channel.topic) + string(channel.message_encoding) + _strings(channel.metadata))


def metadata_record(name: str, values: Mapping[str, str]) -> bytes:
    """Return metadata."""
    return record(METADATA, string(name) + _strings(values.items()))


def prologue_bytes(
    library: str, schemas: Sequence[bytes], channels: Sequence[Channel], metadata: Mapping[str, Mapping[str, str]]
) -> bytes:
    """Return everything before the first group, the guard included."""
    content = MAGIC + record(HEADER, string("") + string(library)) + b"".join(schemas)
    content += b"".join(map(channel_record, channels))
    content += b"".join(metadata_record(name, values) for name, values in metadata.items())
    return content + _GUARD.pack(GUARD, _GUARD.size - 9, GUARD_MARK, len(content), zlib.crc32(content))


def parse_prologue(content: bytes) -> Prologue:
    """Verify the beginning of a file; raises McapError."""
    if not content.startswith(MAGIC):
        raise McapError("byte 0: the file does not begin as an MCAP file")
    offset = len(MAGIC)
    found = Prologue(0, {}, {}, b"", b"", b"")
    try:
        while True:
            opcode, length = _RECORD_HEAD.unpack_from(content, offset)
            end = offset + 9 + length
            if opcode == GUARD:
                _, size, mark, before, crc = _GUARD.unpack_from(content, offset)
                if (size, mark, before) != (_GUARD.size - 9, GUARD_MARK, offset):
                    raise McapError(f"byte {offset}: the guard of the prologue is damaged")
                if zlib.crc32(content[:offset]) != crc:
                    raise McapError("byte 0: the CRC of the prologue is wrong")
                found.size = end
                break
            if end > len(content) or opcode not in {HEADER, SCHEMA, CHANNEL, METADATA}:
                raise McapError(f"byte {offset}: a record of kind {opcode} and {length} bytes in the prologue")
            offset = end
    except struct.error as error:
        raise McapError(f"byte {offset}: the prologue has no end") from error
    found.content = content[: found.size]
    _parse_records(content, found)
    return found


def _parse_records(content: bytes, found: Prologue) -> None:
    """Take the records of a prologue whose CRC is right."""
    offset = len(MAGIC)
    try:
        while offset < found.size - _GUARD.size:
            opcode, length = _RECORD_HEAD.unpack_from(content, offset)
            whole = content[offset : offset + 9 + length]
            if opcode == SCHEMA:
                found.schemas += whole
            elif opcode == CHANNEL:
                channel = _parse_channel(whole[9:])
                found.channels[channel.id] = channel
                found.channel_records += whole
            elif opcode == METADATA:
                name, at = _parse_string(whole, 9)
                found.metadata[name] = dict(_parse_strings(whole, at))
                found.metadata_index += record(METADATA_INDEX, struct.pack("<QQ", offset, len(whole)) + string(name))
            offset += len(whole)
    except (struct.error, UnicodeDecodeError) as error:
        raise McapError(f"byte {offset}: {error}") from error


def _parse_channel(content: bytes) -> Channel:
    channel_id, schema_id = struct.unpack_from("<HH", content)
    topic, at = _parse_string(content, 4)
    encoding, at = _parse_string(content, at)
    return Channel(channel_id, topic, encoding, schema_id, tuple(_parse_strings(content, at)))


def _parse_string(content: bytes, at: int) -> tuple[str, int]:
    (length,) = _CRC.unpack_from(content, at)
    return content[at + 4 : at + 4 + length].decode(), at + 4 + length


def _parse_strings(content: bytes, at: int) -> list[tuple[str, str]]:
    (length,) = _CRC.unpack_from(content, at)
    at += 4
    end, found = at + length, []
    while at < end:
        key, at = _parse_string(content, at)
        value, at = _parse_string(content, at)
        found.append((key, value))
    return found


def read_group(fd: int, offset: int, size: int, *, verify: bool = True) -> tuple[Group, bytes]:
    """Return the group at ``offset`` of a file of ``size`` bytes, and its chunk's data where ``verify`` read it.

    Raises:
        McapError: there is no whole group, or a CRC is wrong.
        OSError: reading failed.

    """
    head = os.pread(fd, _CHUNK_HEAD.size, offset)
    if len(head) < _CHUNK_HEAD.size:
        raise McapError(f"byte {offset}: {len(head)} bytes where a chunk should begin")
    opcode, length, start_ns, end_ns, data_size, crc, name_size, stored = _CHUNK_HEAD.unpack(head)
    if (opcode, name_size, length) != (CHUNK, 0, _CHUNK_HEAD.size - 9 + data_size) or stored != data_size:
        raise McapError(f"byte {offset}: not the beginning of a chunk")
    at = offset + len(head) + data_size
    if data_size > MAX_CHUNK_BYTES or at > size:
        raise McapError(f"byte {offset}: a chunk of {data_size} bytes in a file of {size}")
    tail, places, seal_at = _read_tail(fd, at, size)
    stated_crc, mark = _SEAL_END.unpack_from(tail, len(tail) - _SEAL_END.size)
    (chunk_offset,) = _SEAL_PLACE.unpack_from(tail, len(tail) - _SEAL_TAIL_BYTES)
    if mark != SEAL_MARK or chunk_offset != offset:
        raise McapError(f"byte {at + seal_at}: the seal is not that of the chunk at {offset}")
    if zlib.crc32(tail[: -_SEAL_END.size], zlib.crc32(head)) != stated_crc:
        raise McapError(f"byte {offset}: the CRC of the chunk's seal is wrong")
    (count,) = struct.unpack_from("<I", tail, seal_at + 9)
    entries = tuple(_SEAL_ENTRY.iter_unpack(tail[seal_at + _SEAL_HEAD.size : -_SEAL_TAIL_BYTES]))
    if len(entries) != count:
        raise McapError(f"byte {at + seal_at}: {len(entries)} records in a seal of {count}")
    group = Group(offset, at + len(tail) - offset, data_size, crc, start_ns, end_ns, entries, places)
    return group, read_data(fd, group) if verify else b""


def _read_tail(fd: int, at: int, size: int) -> tuple[bytes, tuple[tuple[int, int, int], ...], int]:
    """Return the bytes from the indexes to the end of the seal, where each index stands, and where the seal stands."""
    content = os.pread(fd, 1 << 16, at)
    places: list[tuple[int, int, int]] = []
    offset = 0
    while True:
        if offset + _SEAL_HEAD.size > len(content):
            content = _more(fd, at, content)
            if offset + _SEAL_HEAD.size > len(content):
                raise McapError(f"byte {at + offset}: the chunk's indexes are cut off")
        opcode, length = _RECORD_HEAD.unpack_from(content, offset)
        end = offset + 9 + length
        if opcode not in {MESSAGE_INDEX, SEAL} or at + end > size or length > 1 << 28:
            raise McapError(f"byte {at + offset}: a record of kind {opcode} behind a chunk")
        while end > len(content):
            more = _more(fd, at, content)
            if len(more) == len(content):
                raise McapError(f"byte {at + offset}: the chunk's indexes are cut off")
            content = more
        if opcode == SEAL:
            entry_bytes = length - (_SEAL_HEAD.size - 9) - _SEAL_TAIL_BYTES
            if entry_bytes < 0 or entry_bytes % _SEAL_ENTRY.size:
                raise McapError(f"byte {at + offset}: a seal of {length} bytes")
            return content[:end], tuple(places), offset
        _, _, channel, index_bytes = _INDEX_HEAD.unpack_from(content, offset)
        places.append((channel, at + offset, index_bytes // 16))
        offset = end


def _more(fd: int, at: int, content: bytes) -> bytes:
    return content + os.pread(fd, max(1 << 16, len(content)), at + len(content))


def read_data(fd: int, group: Group, *, verify: bool = True) -> bytes:
    """Return the data of a group's chunk; raises McapError: it is cut off or, with ``verify``, its CRC is wrong."""
    data = os.pread(fd, group.data_size, group.data_offset)
    while len(data) < group.data_size:
        more = os.pread(fd, group.data_size - len(data), group.data_offset + len(data))
        if not more:
            raise McapError(f"byte {group.data_offset + len(data)}: the chunk is cut off")
        data += more
    if verify and zlib.crc32(data) != group.crc:
        raise McapError(f"byte {group.data_offset}: the CRC of the chunk at {group.offset} is wrong")
    return data


def messages_at(data: bytes, place: int) -> Iterable[tuple[int, int, int, int, memoryview]]:
    """Yield (channel, sequence, log time, publish time, payload) from a place in a chunk on; raises McapError."""
    view = memoryview(data)
    while place < len(data):
        if place + MESSAGE_HEAD.size > len(data):
            raise McapError(f"chunk's byte {place}: a message is cut off")
        opcode, length, channel, sequence, log_ns, publish_ns = MESSAGE_HEAD.unpack_from(data, place)
        end = place + 9 + length
        if opcode != MESSAGE or length < MESSAGE_FIELDS_BYTES or end > len(data):
            raise McapError(f"chunk's byte {place}: a record of kind {opcode} and {length} bytes")
        yield channel, sequence, log_ns, publish_ns, view[place + MESSAGE_HEAD.size : end]
        place = end


@dataclass
class Layout:
    """What a file holds, group by group."""

    size: int
    prologue: Prologue
    groups: list[Group] = field(default_factory=list)
    is_finished: bool = False
    """A valid summary follows the last group."""
    torn_bytes: int = 0
    """Bytes behind the last group of a file that is, or was, being written."""
    damage: list[str] = field(default_factory=list)
    """Each place that is damaged; the groups are those around it."""

    @property
    def data_end(self) -> int:
        """Where the next group would begin."""
        return self.groups[-1].end if self.groups else self.prologue.size


def scan(fd: int, *, verify: bool = True, prologue: Prologue | None = None) -> Layout:
    """Find every valid group of a file, beyond damage too.

    A file whose last group is not whole counts as torn, not as damaged: its writer died, and nothing of that group was
    acknowledged. Where the group's seal was reached, or a summary, it had been whole, so it is damage.

    Args:
        fd: the file, open for reading.
        verify: check the CRC of every chunk's data; else only the seals are checked.
        prologue: to go by instead of the file's own, which is damaged.

    Raises:
        McapError: the prologue is damaged.
        OSError: reading failed.

    """
    size = os.fstat(fd).st_size
    layout = Layout(size, prologue or parse_prologue(os.pread(fd, MAX_PROLOGUE_BYTES, 0)))
    offset = layout.prologue.size
    while offset < size:
        try:
            group, _ = read_group(fd, offset, size, verify=verify)
        except McapError as error:
            following = None
            if not _ends_well(fd, offset, size, layout):
                following = _next_group(fd, offset + 1, size, layout, str(error), verify=verify)
            if following is None:
                break
            group = following
        layout.groups.append(group)
        offset = group.end
    return layout


def _ends_well(fd: int, offset: int, size: int, layout: Layout) -> bool:
    """Tell whether the summary begins here, and take note of what is wrong with it."""
    content = os.pread(fd, len(_DATA_END), offset)
    if content != _DATA_END:
        return False
    error = check_summary(fd, offset + len(_DATA_END), size)
    if error and not _has(fd, offset, size, SEAL_MARK):
        torn = size - offset < len(_DATA_END) + _TAIL_BYTES or os.pread(fd, len(MAGIC), size - len(MAGIC)) != MAGIC
        if torn:
            layout.torn_bytes = size - offset
        else:
            layout.damage.append(error)
        return True
    layout.is_finished = not error
    return not error


def check_summary(fd: int, start: int, size: int) -> str:
    """Return what is wrong with the summary that begins at ``start``, or an empty text."""
    content = os.pread(fd, size - start, start)
    if len(content) < _TAIL_BYTES or not content.endswith(MAGIC):
        return f"byte {start}: the summary is cut off"
    opcode, length, summary_start, _, crc = _FOOTER.unpack_from(content, len(content) - _TAIL_BYTES)
    if (opcode, length, summary_start) != (FOOTER, _FOOTER.size - 9, start):
        return f"byte {size - _TAIL_BYTES}: the footer is damaged"
    if zlib.crc32(content[: -(len(MAGIC) + _CRC.size)]) != crc:
        return f"byte {start}: the CRC of the summary is wrong"
    return ""


def _next_group(fd: int, offset: int, size: int, layout: Layout, error: str, *, verify: bool) -> Group | None:
    """Return the next valid group from ``offset`` on; note damage, or the torn bytes, before it."""
    begun = offset - 1
    has_seal = False
    for place in find(fd, offset, size, SEAL_MARK):
        has_seal = True
        chunk_offset = int.from_bytes(os.pread(fd, 8, place - _CRC.size - 8), "little")
        if not offset <= chunk_offset < place:
            continue
        try:
            group, _ = read_group(fd, chunk_offset, size, verify=verify)
        except McapError:
            continue
        layout.damage.append(error)
        return group
    if has_seal or os.pread(fd, len(MAGIC), max(0, size - len(MAGIC))) == MAGIC:
        layout.damage.append(error)
    layout.torn_bytes = size - begun
    return None


def _has(fd: int, offset: int, size: int, mark: bytes) -> bool:
    return any(True for _ in find(fd, offset, size, mark))


def find(fd: int, offset: int, size: int, mark: bytes) -> Iterable[int]:
    """Yield every place of ``mark`` in a file from ``offset`` on."""
    step = 1 << 22
    while offset < size:
        content = os.pread(fd, step + len(mark) - 1, offset)
        if not content:
            return
        place = content.find(mark)
        while place >= 0:
            yield offset + place
            place = content.find(mark, place + 1)
        offset += step


def summary_bytes(prologue: Prologue, groups: Sequence[Group], start: int) -> bytes:
    """Return everything behind the last group, for a file in which the summary's first record stands at ``start``.

    DataEnd, which comes first, is counted: it stands at ``start`` less its size.
    """
    counts: dict[int, int] = {}
    for group in groups:
        for channel, _, messages in group.index_offsets:
            counts[channel] = counts.get(channel, 0) + messages
    statistics = record(
        STATISTICS,
        struct.pack(
            "<QHIIIIQQ",
            sum(counts.values()),
            _count(prologue.schemas),
            len(prologue.channels),
            0,
            len(prologue.metadata),
            len(groups),
            min((group.start_ns for group in groups), default=0),
            max((group.end_ns for group in groups), default=0),
        )
        + _CRC.pack(10 * len(counts))
        + b"".join(struct.pack("<HQ", *each) for each in counts.items()),
    )
    parts = (
        (SCHEMA, prologue.schemas),
        (CHANNEL, prologue.channel_records),
        (STATISTICS, statistics),
        (CHUNK_INDEX, b"".join(map(_chunk_index, groups))),
        (METADATA_INDEX, prologue.metadata_index),
    )
    summary, offsets, at = b"", b"", start
    for opcode, content in parts:
        if content:
            offsets += record(SUMMARY_OFFSET, struct.pack("<BQQ", opcode, at, len(content)))
        summary += content
        at += len(content)
    footer = _FOOTER.pack(FOOTER, _FOOTER.size - 9, start, at, 0)[: -_CRC.size]
    content = summary + offsets + footer
    return _DATA_END + content + _CRC.pack(zlib.crc32(content)) + MAGIC


def summary_start(data_end: int) -> int:
    """Return where the summary's first record stands in a file whose groups end at ``data_end``."""
    return data_end + len(_DATA_END)


def _count(records: bytes) -> int:
    count = at = 0
    while at < len(records):
        at += 9 + _RECORD_HEAD.unpack_from(records, at)[1]
        count += 1
    return count


def _chunk_index(group: Group) -> bytes:
    chunk_bytes = _CHUNK_HEAD.size + group.data_size
    places = b"".join([struct.pack("<HQ", channel, at) for channel, at, _ in group.index_offsets])
    seal_bytes = _SEAL_HEAD.size + _SEAL_ENTRY.size * len(group.entries) + _SEAL_TAIL_BYTES
    return record(
        CHUNK_INDEX,
        struct.pack("<QQQQI", group.start_ns, group.end_ns, group.offset, chunk_bytes, len(places))
        + places
        + struct.pack("<QIQQ", group.length - chunk_bytes - seal_bytes, 0, group.data_size, group.data_size),
    )


def write_all(fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
    """Write buffers at ``offset`` without copying them together; return how many bytes. A short write is gone on with.

    Raises:
        OSError: as the disk says, some of the bytes may have been written.

    """
    total = 0
    for start in range(0, len(buffers), IOV_MAX):
        part = buffers[start : start + IOV_MAX]
        size = sum(map(len, part))
        written = os.pwritev(fd, part, offset + total)
        if written < size:
            rest = memoryview(b"".join(part))[written:]
            while rest:  # a full disk writes a part first and says so at the next try
                count = os.pwrite(fd, rest, offset + total + written)
                rest, written = rest[count:], written + count
        total += size
    return total
