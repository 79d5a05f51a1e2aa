import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from tests.unit.episodes.making import BOOT, EPOCH_NS, OTHER_BOOT, ROBOT, ROVER, RUN, TASK
from trainerd.episodes import catalogue as module
from trainerd.episodes.catalogue import BootRow, Catalogue, CatalogueBusyError, CatalogueError, EpisodeRow, Event

BOOT_ROW = BootRow(ROVER, BOOT, RUN, EPOCH_NS, ROBOT, TASK, [[0, 9], [12, 12]], [[10, 11]], 5)
ROW = EpisodeRow(
    run_id=RUN,
    rover_id=ROVER,
    boot_id=BOOT,
    episode_id=3,
    path="rover-1/0123456789abcdef/00000003.mcap",
    state="complete",
    first_seq=0,
    last_seq=(1 << 63) - 1,
    records=10,
    steps=9,
    purpose="training",
    success=True,
    reason="terminated",
    return_=1.5,
    human_steps=0,
    policy_ids=("ab" * 32,),
    min_counter=1,
    max_counter=2,
    bytes=1000,
    created_ns=7,
)


@pytest.fixture
def catalogue(tmp_path):
    made = Catalogue(tmp_path / "catalogue.db")
    yield made
    made.close()


def test_rows_come_back_as_they_were_written(catalogue):
    event = Event(1, "damaged", "a text")
    catalogue.settle([BOOT_ROW], [ROW], [event])
    assert catalogue.boots() == [BOOT_ROW]
    assert catalogue.episodes() == [replace(ROW, id=1)]
    assert catalogue.events() == [event]
    assert catalogue.total_bytes() == 1000


def test_an_episode_keeps_its_id_and_its_birth_when_it_is_written_again(catalogue):
    catalogue.settle(episodes=[replace(ROW, state="open")])
    catalogue.settle(episodes=[replace(ROW, created_ns=99, state="incomplete", return_=float("nan"))])
    (row,) = catalogue.episodes()
    assert (row.id, row.created_ns, row.state, row.return_) == (1, 7, "incomplete", None)


def test_episodes_are_found_by_what_they_are(catalogue):
    rows = [
        ROW,
        replace(ROW, episode_id=4, purpose="evaluation"),
        replace(ROW, episode_id=5, state="damaged"),
        replace(ROW, boot_id=OTHER_BOOT),
        replace(ROW, rover_id="rover-2", run_id="run-2", human_steps=3),
    ]
    catalogue.settle(episodes=rows)

    def ids(**where):
        return [row.id for row in catalogue.episodes(**where)]

    assert ids() == [1, 2, 3, 4, 5]
    assert ids(run_id="run-2") == ids(rover_id="rover-2") == [5]
    assert ids(boot_id=OTHER_BOOT) == [4]
    assert ids(boot_id=BOOT, rover_id=ROVER, episode_id=4) == [2]
    assert ids(states=["damaged", "open"]) == [3]
    assert ids(purposes=["training"], after_id=1, limit=2) == [3, 4]
    assert [row.id for row in catalogue.deletable()] == [1, 4]


def test_an_episode_being_deleted_is_hidden_until_it_is_forgotten(catalogue):
    catalogue.settle(episodes=[ROW, replace(ROW, episode_id=4)])
    first, second = catalogue.episodes()
    catalogue.begin_deletion([first])
    assert catalogue.episodes() == [second]
    assert [row.id for row in catalogue.deleting()] == [first.id]
    catalogue.end_deletion([first])
    assert catalogue.deleting() == []


def test_a_hash_is_kept(catalogue):
    catalogue.settle(episodes=[ROW])
    catalogue.set_sha256(1, "cd" * 32)
    assert catalogue.episodes()[0].sha256 == "cd" * 32


def test_every_write_survives_a_power_cut(catalogue):
    assert catalogue._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert catalogue._writer.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_locked_catalogue_says_so_and_writes_later(catalogue):
    with closing(sqlite3.connect(catalogue.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogueBusyError, match="locked"):
            catalogue.settle(episodes=[ROW])
        assert catalogue.episodes() == []
        other.execute("ROLLBACK")
    catalogue.settle(episodes=[ROW])
    assert len(catalogue.episodes()) == 1


def test_nothing_of_a_transaction_that_fails_stays(catalogue):
    with pytest.raises(CatalogueError):
        catalogue.settle([BOOT_ROW], [replace(ROW, run_id=None)])
    assert catalogue.boots() == []
    catalogue.settle([BOOT_ROW], [ROW])


def test_a_damaged_catalogue_is_put_aside(tmp_path):
    path = tmp_path / "catalogue.db"
    path.write_bytes(b"not a database" * 100)
    catalogue = Catalogue(path)
    assert catalogue.episodes() == []
    assert catalogue.damaged_path.read_bytes() == b"not a database" * 100
    catalogue.close()


def test_a_catalogue_with_a_damaged_page_is_put_aside(tmp_path):
    path = tmp_path / "catalogue.db"
    catalogue = Catalogue(path)
    catalogue.settle([BOOT_ROW], [replace(ROW, episode_id=k) for k in range(100)])
    catalogue.close()
    content = bytearray(path.read_bytes())
    content[4096 + 100 : -1] = bytes(len(content) - 4096 - 101)
    path.write_bytes(content)
    catalogue = Catalogue(path)
    assert catalogue.damaged_path
    catalogue.close()


def test_an_older_schema_is_brought_up_to_date_and_a_newer_one_refused(tmp_path, monkeypatch):
    path = tmp_path / "catalogue.db"
    catalogue = Catalogue(path)
    catalogue.settle(episodes=[ROW])
    catalogue.close()
    older = module._MIGRATIONS
    monkeypatch.setattr(module, "_MIGRATIONS", (*older, "ALTER TABLE events ADD COLUMN more TEXT"))
    catalogue = Catalogue(path)
    assert len(catalogue.episodes()) == 1
    catalogue._writer.execute("SELECT more FROM events")
    catalogue.close()
    monkeypatch.setattr(module, "_MIGRATIONS", older)
    with pytest.raises(CatalogueError, match="schema version 2, this trainerd knows 1; update trainerd"):
        Catalogue(path)
