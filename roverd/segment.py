"""The files of the spool: records one behind the other, each with checksums of its header and of its content.

A file begins with two copies of its header (whose boot this is), so that one flipped bit does not orphan it. A record
is ``<IIQII``: magic, length, seq, checksum of the content, checksum of this header; then the content: the number of
frames, their lengths, the frames. Nothing is believed that does not match its checksum: a torn tail ends the file, a
damaged content costs its record, and behind a damaged header the next good one is searched for.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from bisect import bisect_left
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import RoverError
from protocol.files import sync_folder
from protocol.framing import ProtocolError, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE_MAGIC = b"rvspool1"
HEADER_BYTES = 512
DATA_AT = 2 * HEADER_BYTES
RECORD = struct.Struct("<IIQII")
PREFIX = struct.Struct("<IIQI")
RECORD_MAGIC = 0xA55E6D1B
MAGIC_BYTES = RECORD_MAGIC.to_bytes(4, "little")
MAX_CONTENT_BYTES = 32 << 20
SEARCH_BYTES = 1 << 20
_LENGTH = struct.Struct("<H")


class SegmentError(RoverError):
    """A file is not a segment of a spool, or its header is damaged in both copies."""


class Files:
    """What the spool asks of the operating system; a test takes its place to make disks fill up and fail."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)

    def writev(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        """Append buffers; may write less."""
        return os.writev(fd, buffers)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read a piece."""
        return os.pread(fd, size, offset)

    def fdatasync(self, fd: int) -> None:
        """Wait until the content is on the disk."""
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it, durably."""
        if not path.is_dir():
            self.make_folder(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
            self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        sync_folder(path)

    def free_bytes(self, path: Path) -> int:
        """Return what an ordinary user may still write."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


@dataclass(frozen=True)
class BootFacts:
    """Whose records these are."""

    rover_id: str
    boot_id: str
    boot: int
    """Starts are counted; a later one is newer."""
    specs: str
    """Hash of the robot's and the task's specs: records of another robot are not for this run."""
    epoch_ns: int
    """Wall clock less monotonic clock at the start of the boot; 0 where it is not known."""

    @property
    def salt(self) -> int:
        """What the checksums of this boot's record headers begin with: no record passes for one of another boot."""
        return zlib.crc32(self.boot_id.encode())


def encode_header(facts: BootFacts) -> bytes:
    """Return the beginning of a segment's file."""
    content = pack(asdict(facts))
    block = FILE_MAGIC + struct.pack("<I", len(content)) + content
    block = block.ljust(HEADER_BYTES - 4, b"\0")
    block += struct.pack("<I", zlib.crc32(block))
    return block * 2


def decode_header(content: bytes, where: str) -> BootFacts:
    """Return whose a file is; raises SegmentError unless one of the two copies is whole."""
    for start in (0, HEADER_BYTES):
        block = content[start : start + HEADER_BYTES]
        if len(block) < HEADER_BYTES or block[:8] != FILE_MAGIC:
            continue
        if zlib.crc32(block[:-4]) != struct.unpack("<I", block[-4:])[0]:
            continue
        (size,) = struct.unpack_from("<I", block, 8)
        try:
            values = unpack(block[12 : 12 + size])
            facts = BootFacts(**{each.name: values[each.name] for each in fields(BootFacts)})
        except (ProtocolError, KeyError) as error:
            raise SegmentError(f"{where}: header: {error}") from error
        return facts
    raise SegmentError(f"{where}: no whole header of a spool segment")


def encode_record(seq: int, frames: Sequence[bytes], salt: int) -> list[bytes]:
    """Return the buffers of a record, ready to be written."""
    table = struct.pack(f"<H{len(frames)}I", len(frames), *map(len, frames))
    checksum = zlib.crc32(table)
    for frame in frames:
        checksum = zlib.crc32(frame, checksum)
    prefix = PREFIX.pack(RECORD_MAGIC, len(table) + sum(map(len, frames)), seq, checksum)
    return [prefix + struct.pack("<I", zlib.crc32(prefix, salt)) + table, *frames]


def decode_record_header(header: bytes, salt: int) -> tuple[int, int, int] | None:
    """Return (length, seq, checksum of the content), or None where this is no whole header of this boot."""
    if len(header) < RECORD.size:
        return None
    magic, length, seq, checksum, own = RECORD.unpack_from(header)
    if magic != RECORD_MAGIC or own != zlib.crc32(header[: PREFIX.size], salt) or length > MAX_CONTENT_BYTES:
        return None
    return length, seq, checksum


def decode_content(content: bytes) -> list[bytes] | None:
    """Return the frames of a content whose checksum is right, or None where its table of frames does not fit."""
    if len(content) < _LENGTH.size:
        return None
    (count,) = _LENGTH.unpack_from(content)
    if _LENGTH.size + 4 * count > len(content):
        return None
    sizes = struct.unpack_from(f"<{count}I", content, _LENGTH.size)
    if _LENGTH.size + 4 * count + sum(sizes) != len(content):
        return None
    at = _LENGTH.size + 4 * count
    frames = []
    for size in sizes:
        frames.append(content[at : at + size])
        at += size
    return frames


@dataclass
class Segment:
    """One file: which records it may have, and, once it was looked through, where each begins."""

    path: Path
    first: int
    limit: int
    """Records from here on are not this file's, whatever stands in it: the next file has them."""
    size: int
    is_indexed: bool = False
    seqs: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    damages: int = 0
    """Places where no whole record was found although later ones followed."""
    torn_bytes: int = 0

    @property
    def last(self) -> int:
        """The last record that may be here; less than ``first`` where none is."""
        if self.is_indexed:
            return self.seqs[-1] if self.seqs else self.first - 1
        return self.limit - 1

    def note(self, seq: int, offset: int) -> None:
        """Enter a record that was written or found."""
        self.seqs.append(seq)
        self.offsets.append(offset)

    def index(self, files: Files, fd: int, salt: int) -> None:
        """Look through the file's record headers; contents are checked when they are read."""
        self.seqs, self.offsets = array("Q"), array("Q")
        self.damages = self.torn_bytes = 0
        at, last = DATA_AT, self.first - 1
        while at < self.size:
            found = decode_record_header(files.pread(fd, RECORD.size, at), salt)
            if found is None or not last < found[1]:
                following = self._search(files, fd, salt, at + 1, last)
                if following is None:
                    self.torn_bytes = self.size - at
                    break
                self.damages += 1
                at = following
                continue
            length, seq, _ = found
            if seq >= self.limit:
                break
            end = at + RECORD.size + length
            if end > self.size:
                self.torn_bytes = self.size - at
                break
            self.note(seq, at)
            last, at = seq, end
        self.is_indexed = True

    def _search(self, files: Files, fd: int, salt: int, at: int, last: int) -> int | None:
        """Return the place of the next whole record header from ``at`` on."""
        while at < self.size:
            content = files.pread(fd, SEARCH_BYTES + RECORD.size, at)
            place = content.find(MAGIC_BYTES)
            while 0 <= place < SEARCH_BYTES:
                found = decode_record_header(content[place : place + RECORD.size], salt)
                if found is not None and last < found[1] < self.limit:
                    return at + place
                place = content.find(MAGIC_BYTES, place + 1)
            at += SEARCH_BYTES
        return None

    def read(self, files: Files, fd: int, salt: int, seq: int) -> list[bytes] | None:
        """Return a record's frames, or None where it is not here or does not match its checksums."""
        place = bisect_left(self.seqs, seq)
        if place >= len(self.seqs) or self.seqs[place] != seq:
            return None
        at = self.offsets[place]
        header = decode_record_header(files.pread(fd, RECORD.size, at), salt)
        if header is None or header[1] != seq:
            return None
        content = files.pread(fd, header[0], at + RECORD.size)
        if len(content) != header[0] or zlib.crc32(content) != header[2]:
            return None
        return decode_content(content)
