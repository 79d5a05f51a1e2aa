"""Whatever happens to a file, nothing altered comes out of it, what is lost is told, and the rest is kept."""

import os

import pytest
from mcap.reader import SeekingReader

from tests.unit.episodes.making import BOOT, BOOT_ROW, DEPTH, RGB, ROVER, end, episode, file_path, step, write_file
from trainerd.episodes import mcap, recovery
from trainerd.episodes.reader import EpisodeError, open_episode

KNOWN = {(ROVER, BOOT): BOOT_ROW}


def replace(path, content):
    path.unlink(missing_ok=True)  # a file system may sync one that is overwritten
    path.write_bytes(content)


@pytest.fixture
def unsynced(monkeypatch):
    """Leave out what makes a test of thousands of files slow."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


SMALL = {RGB: ("jpeg", b"red, green, blue"), DEPTH: ("palette", b"near and far")}
THREE = [*(step(seq, images=SMALL) for seq in range(3)), end(3)]
QUICK_OR_ALL = pytest.mark.parametrize(
    "stride", [61, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)


@QUICK_OR_ALL
def test_a_file_cut_at_any_byte_keeps_every_whole_group(tmp_path, unsynced, stride):
    groups = [THREE[:2], THREE[2:]]
    path = write_file(file_path(tmp_path), groups)
    layout = open_episode(path).layout
    whole, content = [group.end for group in layout.groups], path.read_bytes()
    edges = {at + near for at in (0, layout.prologue.size, *whole, len(content)) for near in (-1, 0, 1)}
    for size in sorted({*range(0, len(content), stride), *edges} & {*range(len(content) + 1)}):
        replace(path, content[:size])
        kept = [record for end, group in zip(whole, groups, strict=True) for record in group if end <= size]
        try:
            assert list(open_episode(path).records()) == kept
        except EpisodeError:
            assert size < layout.prologue.size
        findings = recovery.Findings()
        found = recovery.recover_file(path, tmp_path / "episodes", tmp_path / "quarantine", KNOWN, findings)
        assert not findings.damaged, size
        if not kept:
            assert found is None
            assert not path.exists()
            assert findings.emptied == [(path, size)]
            continue
        file = open_episode(path)
        assert list(file.records()) == kept
        assert file.is_finished
        assert found.row.records == len(kept)
        assert found.row.bytes == path.stat().st_size
        assert found.row.state == ("complete" if len(kept) == 4 else "incomplete")
        cut = sum(count for _, count in findings.truncated)
        assert cut == (0 if size in {*whole, len(content)} else size - max(end for end in whole if end <= size))


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 1 << (at % 8)
    return changed


@pytest.mark.parametrize("is_finished", [True, False])
def test_reading_a_file_with_any_byte_flipped_gives_no_altered_record(tmp_path, is_finished):
    path = write_file(file_path(tmp_path), [THREE[:2], THREE[2:]], is_finished=is_finished)
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as stream:
        for at in range(len(content)):
            os.pwrite(stream.fileno(), flipped(content, at)[at : at + 1], at)
            read, error = [], ""
            try:
                file = open_episode(path)
                for record in file.records():
                    read.append(record)  # noqa: PERF402 - what was read before the error counts
            except EpisodeError as raised:
                error = str(raised)
                assert str(path) in error
            assert read in ([], THREE[:2], THREE), at
            assert error or file.torn_bytes > 0, at  # every flip is noticed
            assert error or read == THREE or not is_finished, at
            os.pwrite(stream.fileno(), content[at : at + 1], at)


@QUICK_OR_ALL
@pytest.mark.parametrize("is_finished", [True, False])
def test_recovery_of_a_file_with_any_byte_flipped_keeps_what_it_can_and_says_so(
    tmp_path, unsynced, is_finished, stride
):
    path = write_file(file_path(tmp_path), [THREE[:2], THREE[2:]], is_finished=is_finished)
    content = path.read_bytes()
    for at in range(0, len(content), stride):
        replace(path, flipped(content, at))
        findings = recovery.Findings()
        found = recovery.recover_file(path, tmp_path / "episodes", tmp_path / "quarantine", KNOWN, findings)
        assert findings.damaged or findings.truncated or findings.emptied, at
        kept = list(open_episode(path).records()) if found else []
        assert kept in ([], THREE[:2], THREE[2:], THREE), at
        assert kept or not is_finished, at  # one group is lost at most
        for aside, _ in findings.damaged:
            assert aside.read_bytes() == flipped(content, at)
            aside.unlink()


def test_records_behind_damage_are_saved_and_the_damaged_file_is_kept(tmp_path):
    records = episode(9)
    path = write_file(file_path(tmp_path), [records[:3], records[3:6], records[6:]])
    middle = open_episode(path).layout.groups[1]
    content = bytearray(path.read_bytes())
    content[middle.data_offset + 50] ^= 4
    path.write_bytes(content)
    with pytest.raises(EpisodeError, match=f"byte {middle.data_offset}: the CRC of the chunk"):
        list(open_episode(path).records())
    findings = recovery.Findings()
    found = recovery.recover_file(path, tmp_path / "episodes", tmp_path / "quarantine", KNOWN, findings)
    ((aside, reason),) = findings.damaged
    assert aside.read_bytes() == content
    assert "CRC" in reason
    assert [record.seq for record in open_episode(path).records()] == [0, 1, 2, 6, 7, 8, 9]
    assert (found.row.state, found.row.first_seq, found.row.last_seq, found.row.records) == ("damaged", 0, 9, 7)
    with path.open("rb") as stream:
        assert len(list(SeekingReader(stream, validate_crcs=True).iter_messages(topics=["/step"]))) == 6


def test_a_file_whose_beginning_is_damaged_is_read_by_what_its_boot_is_known_to_be(tmp_path):
    records = episode(3)
    path = write_file(file_path(tmp_path), [records])
    content = bytearray(path.read_bytes())
    content[40:80] = bytes(40)
    path.write_bytes(content)
    findings = recovery.Findings()
    assert recovery.recover_file(path, tmp_path / "episodes", tmp_path / "quarantine", KNOWN, findings)
    assert len(findings.damaged) == 1
    assert list(open_episode(path).records()) == records


def test_a_file_whose_beginning_is_damaged_and_whose_boot_is_unknown_is_put_aside_whole(tmp_path):
    path = write_file(file_path(tmp_path), [episode(3)])
    content = bytearray(path.read_bytes())
    content[40:80] = bytes(40)
    path.write_bytes(content)
    findings = recovery.Findings()
    assert recovery.recover_file(path, tmp_path / "episodes", tmp_path / "quarantine", {}, findings) is None
    ((aside, _),) = findings.damaged
    assert aside.read_bytes() == content
    assert not path.exists()


def test_a_seal_within_an_image_does_not_mislead(tmp_path):
    hostile = (8).to_bytes(8, "little") + bytes(4) + mcap.SEAL_MARK + mcap.GUARD_MARK + mcap.MAGIC
    record = step(0, images={RGB: ("jpeg", hostile * 3)})
    path = write_file(file_path(tmp_path), [[record], [step(1)]])
    assert list(open_episode(path).records()) == [record, step(1)]
    content = bytearray(path.read_bytes())
    content[open_episode(path).layout.groups[0].data_offset + 3] ^= 1
    path.write_bytes(content)
    findings = recovery.Findings()
    recovery.recover_file(path, tmp_path / "episodes", tmp_path / "quarantine", KNOWN, findings)
    assert list(open_episode(path).records()) == [step(1)]
