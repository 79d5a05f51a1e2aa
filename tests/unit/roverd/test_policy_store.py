"""Policies on the robot's disk: only verified ones, and what drove last and before that is remembered."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from protocol.bundle import BundleError
from roverd.policies import PolicyStore, PolicyStoreError
from roverd.policies.store import KEEP, MAX_BARRED, Note
from tests.unit.protocol.samples import ROBOT, TASK, packed


@pytest.fixture
def store(tmp_path) -> PolicyStore:
    return PolicyStore(tmp_path / "policies", ROBOT, TASK)


def again(tmp_path) -> PolicyStore:
    """Return the store as a restart finds it."""
    return PolicyStore(tmp_path / "policies", ROBOT, TASK)


def test_an_added_policy_is_there(store: PolicyStore) -> None:
    policy_id = store.add(packed())
    assert (store.has(policy_id), store.path(policy_id).read_bytes()) == (True, packed())


def test_a_damaged_policy_is_not_stored(store: PolicyStore, tmp_path) -> None:
    with pytest.raises(BundleError):
        store.add(packed()[:-30])
    assert not (tmp_path / "policies").exists()


def test_a_policy_for_another_robot_is_not_stored(tmp_path) -> None:
    store = PolicyStore(tmp_path / "policies", replace(ROBOT, action_repeat=4), TASK)
    with pytest.raises(BundleError, match="action_repeat"):
        store.add(packed())
    assert not (tmp_path / "policies").exists()


def test_a_damaged_policy_on_disk_is_written_anew(store: PolicyStore) -> None:
    policy_id = store.add(packed())
    store.path(policy_id).write_bytes(b"x" * len(packed()))
    store.add(packed())
    assert store.verify(policy_id).policy_id == policy_id


def test_a_stored_policy_that_is_damaged_is_removed_so_that_it_is_fetched_again(store: PolicyStore) -> None:
    policy_id = store.add(packed())
    store.path(policy_id).write_bytes(packed()[:-9])
    with pytest.raises(BundleError):
        store.verify(policy_id)
    assert not store.has(policy_id)


def test_a_stored_policy_under_the_name_of_another_is_removed(store: PolicyStore) -> None:
    first, second = store.add(packed()), store.add(packed(counter=4))
    store.path(first).write_bytes(store.path(second).read_bytes())
    with pytest.raises(BundleError, match="which its name does not say"):
        store.verify(first)
    assert (store.has(first), store.has(second)) == (False, True)


def test_a_stored_policy_for_another_robot_stays_and_is_refused(store: PolicyStore, tmp_path) -> None:
    policy_id = store.add(packed())
    other = PolicyStore(tmp_path / "policies", replace(ROBOT, action_repeat=4), TASK)
    with pytest.raises(BundleError, match="action_repeat"):
        other.verify(policy_id)
    assert store.has(policy_id)


def test_a_policy_that_is_not_stored_cannot_be_verified(store: PolicyStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.verify("a" * 64)


def test_the_current_policy_survives_a_restart(store: PolicyStore, tmp_path) -> None:
    policy_id = store.add(packed())
    store.keep(Note(policy_id))
    assert again(tmp_path).current() == policy_id


def test_the_note_survives_a_restart_with_what_was_rolled_back(store: PolicyStore, tmp_path) -> None:
    note = Note(store.add(packed()), store.add(packed(counter=4)), {"c" * 64: "it was bad"})
    store.keep(note)
    assert again(tmp_path).note() == note


def test_only_the_newest_of_many_barred_policies_are_remembered(store: PolicyStore) -> None:
    store.keep(Note(barred={f"{number:064x}": "bad" for number in range(MAX_BARRED + 5)}))
    assert list(store.note().barred) == [f"{number:064x}" for number in range(5, MAX_BARRED + 5)]


def test_a_note_of_an_earlier_version_is_read(store: PolicyStore, tmp_path) -> None:
    policy_id = store.add(packed())
    (tmp_path / "policies" / "current.json").write_text(json.dumps({"policy_id": policy_id}))
    assert (store.note(), store.current()) == (Note(policy_id), policy_id)


def test_without_a_policy_there_is_no_current_one(store: PolicyStore) -> None:
    assert (store.current(), store.listing()) == ("", [])


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty"])
def test_a_damaged_current_policy_falls_back_to_the_one_before(store: PolicyStore, tmp_path, damage: str) -> None:
    older, newer = store.add(packed()), store.add(packed(counter=4))
    store.keep(Note(newer, older))
    path = store.path(newer)
    content = bytearray(path.read_bytes())
    match damage:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(content[:-30])
        case "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "empty":
            path.write_bytes(b"")
    assert again(tmp_path).current() == older


def test_without_any_whole_policy_there_is_no_current_one(store: PolicyStore) -> None:
    older, newer = store.add(packed()), store.add(packed(counter=4))
    store.keep(Note(newer, older))
    for policy_id in (older, newer):
        store.path(policy_id).write_bytes(b"nothing")
    assert store.current() == ""


def test_a_current_policy_for_another_robot_is_passed_over(store: PolicyStore, tmp_path) -> None:
    store.keep(Note(store.add(packed())))
    assert PolicyStore(tmp_path / "policies", replace(ROBOT, action_repeat=4), TASK).current() == ""


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"3", b"null", b"{}", b'{"policy_id": "../../etc/passwd"}', b"\xff\xfe"),
        *(b'{"policy_id": 5, "barred": 3}', b'{"policy_id": "", "barred": {"a": "b"}, "previous": ["x"]}'),
    ],
)
def test_a_damaged_note_of_the_current_policy_is_no_policy(store: PolicyStore, tmp_path, content: bytes) -> None:
    store.add(packed())
    (tmp_path / "policies" / "current.json").write_bytes(content)
    assert store.current() == ""


@pytest.mark.parametrize(
    "name", ["", "../x", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 63 + "\0"]
)
def test_a_name_that_is_no_hash_is_refused(store: PolicyStore, name: str) -> None:
    with pytest.raises(PolicyStoreError, match="not a sha256"):
        store.path(name)


def aged(store: PolicyStore, count: int) -> list[str]:
    """Store policies, each a second newer than the one before."""
    ids = [store.add(packed(counter=counter)) for counter in range(count)]
    for age, policy_id in enumerate(ids):
        os.utime(store.path(policy_id), (1_000_000 + age, 1_000_000 + age))
    return ids


def test_the_oldest_policies_are_dropped_beyond_a_few(store: PolicyStore) -> None:
    ids = aged(store, KEEP + 3)
    store.keep(Note(ids[-1]))
    assert [policy_id for policy_id in ids if store.has(policy_id)] == ids[3:]


def test_the_current_policy_the_one_before_and_those_in_use_are_never_dropped(store: PolicyStore) -> None:
    ids = aged(store, KEEP + 4)
    store.keep(Note(ids[0], ids[1]), {ids[2]})
    assert [store.has(policy_id) for policy_id in ids[:4]] == [True, True, True, False]


def test_policies_are_listed_from_the_newest(store: PolicyStore) -> None:
    ids = aged(store, 3)
    assert [row["policy_id"] for row in store.listing()] == ids[::-1]


def test_what_a_start_before_did_not_finish_writing_goes(store: PolicyStore, tmp_path) -> None:
    policy_id = store.add(packed())
    left_over = tmp_path / "policies" / f".{policy_id}.bundle.0a1b2c3d"
    left_over.write_bytes(b"half")
    assert again(tmp_path).has(policy_id)
    assert not left_over.exists()
