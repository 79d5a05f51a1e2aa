"""Policies on the robot's disk: only verified ones, and the one that drove last is remembered."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from protocol.bundle import BundleError
from roverd.policies import KEEP, PolicyStore, PolicyStoreError
from tests.unit.protocol.samples import ROBOT, TASK, packed


@pytest.fixture
def store(tmp_path) -> PolicyStore:
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


def test_the_current_policy_survives_a_restart(store: PolicyStore, tmp_path) -> None:
    policy_id = store.add(packed())
    store.set_current(policy_id, set())
    assert PolicyStore(tmp_path / "policies", ROBOT, TASK).current() == policy_id


def test_without_a_policy_there_is_no_current_one(store: PolicyStore) -> None:
    assert (store.current(), store.listing()) == ("", [])


def test_a_current_policy_whose_bundle_is_gone_is_forgotten(store: PolicyStore) -> None:
    policy_id = store.add(packed())
    store.set_current(policy_id, set())
    store.path(policy_id).unlink()
    assert store.current() == ""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"policy_id": "../../etc/passwd"}', b"\xff\xfe"])
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
    store.set_current(ids[-1], set())
    assert [policy_id for policy_id in ids if store.has(policy_id)] == ids[3:]


def test_the_current_policy_and_the_one_before_are_never_dropped(store: PolicyStore) -> None:
    ids = aged(store, KEEP + 3)
    store.set_current(ids[0], {ids[1]})
    assert (store.has(ids[0]), store.has(ids[1]), store.has(ids[2])) == (True, True, False)


def test_policies_are_listed_from_the_newest(store: PolicyStore) -> None:
    ids = aged(store, 3)
    assert [row["policy_id"] for row in store.listing()] == ids[::-1]
