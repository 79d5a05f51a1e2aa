import pytest

from tests.unit.trainerd.bundles import bundle
from trainerd.release.publish import NothingToRollBackError, Publisher
from trainerd.release.registry import NoSuchPolicyError, Registry


@pytest.fixture
def wanted():
    return []


@pytest.fixture
def publisher(tmp_path, wanted):
    registry = Registry(tmp_path / "policies", keep=3)
    return Publisher(
        registry, "run-1", tmp_path / "deployed.json", lambda offer, _finished: wanted.append(offer.counter)
    )


def test_policies_are_found_again_after_a_restart_and_damaged_ones_are_left_out(tmp_path):
    registry = Registry(tmp_path)
    entries = [registry.add(bundle(counter)) for counter in range(4)]
    entries[0].path.write_bytes(entries[0].path.read_bytes()[:-7])
    entries[1].path.rename(tmp_path / f"{'0' * 64}.bundle")
    (tmp_path / ".half.bundle.123").write_bytes(b"x")
    again = Registry(tmp_path)
    assert [entry.counter for entry in again.entries()] == [3, 2]
    assert set(again.damaged) == {entries[0].path.name, f"{'0' * 64}.bundle"}
    assert again.newest("run-1").counter == 3
    assert again.newest("run-2") is None


def test_a_policy_is_found_by_the_beginning_of_its_id(tmp_path):
    registry = Registry(tmp_path)
    entry = registry.add(bundle(1))
    assert registry.get(entry.policy_id[:10]) == entry
    for wrong in ("", "nope"):
        with pytest.raises(NoSuchPolicyError, match="there is none"):
            registry.get(wrong)


def test_a_bundle_is_read_in_pieces(tmp_path):
    registry, content = Registry(tmp_path), bundle(1)
    entry = registry.add(content)
    pieces = [registry.read(entry.policy_id, offset, 100) for offset in range(0, len(content) + 100, 100)]
    assert b"".join(pieces) == content
    assert pieces[-1] == b""


def test_the_newest_policy_is_wanted_until_one_is_chosen(publisher, wanted):
    first = publisher.publish(bundle(0))
    publisher.publish(bundle(1))
    assert publisher.deploy(first.policy_id) == (first, True)
    publisher.publish(bundle(2))
    assert wanted == [0, 1, 0]
    assert publisher.deploy(first.policy_id)[1] is False
    publisher.deploy("latest")
    publisher.publish(bundle(3))
    assert wanted[-2:] == [2, 3]


def test_rollback_goes_back_one_policy_at_a_time(publisher, wanted):
    for counter in range(3):
        publisher.publish(bundle(counter))
    assert [publisher.rollback().counter for _ in range(2)] == [1, 0]
    with pytest.raises(NothingToRollBackError):
        publisher.rollback()
    publisher.publish(bundle(9))
    assert wanted == [0, 1, 2, 1, 0]


def test_a_chosen_policy_survives_a_restart(publisher, tmp_path):
    first = publisher.publish(bundle(0))
    publisher.publish(bundle(1))
    publisher.deploy(first.policy_id)
    again, wanted = Registry(tmp_path / "policies"), []
    after = Publisher(again, "run-1", tmp_path / "deployed.json", lambda offer, _: wanted.append(offer.counter))
    after.resume()
    after.publish(bundle(2))
    assert (wanted, after.is_following) == ([0], False)


def test_only_the_newest_policies_and_the_wanted_one_are_kept(publisher):
    first = publisher.publish(bundle(0))
    publisher.deploy(first.policy_id)
    for counter in range(1, 9):
        publisher.publish(bundle(counter))
    assert [entry.counter for entry in publisher._registry.entries()] == [8, 7, 6, 0]


def test_a_full_disk_is_an_error_and_leaves_what_was_wanted(publisher, wanted, monkeypatch):
    publisher.publish(bundle(0))

    def refuse(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainerd.release.registry.write_atomic", refuse)
    with pytest.raises(OSError, match="No space left"):
        publisher.publish(bundle(1))
    assert (wanted, publisher.wanted.counter) == ([0], 0)
