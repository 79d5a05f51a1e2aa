"""The loop closes: steps go up, policies come down, and both ends tell the truth about it. The tests share one pair."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from protocol.framing import unpack
from protocol.messages import Chunk, encode
from protocol.step import EpisodeEnd, Step
from tests.daemon.bundles import by_counter, means, packed, stored, with_output, with_weights
from tests.daemon.daemons import driving, free_port, unbalanced, wait_until
from tests.daemon.tap import Tap

CURVE = False
"""The tests look at the link or join it, which nobody can who has no key."""


class Pair:
    """A trainer, a rover, and a tap between them."""

    def __init__(self, site, tap):
        self.site, self.tap = site, tap
        self.trainer = site.trainer({"checkpoint_interval": 1000})
        self.rover = site.rover(port=tap.port)

    def wait_for_updates(self, count, deadline_s=60):
        goal = self.trainer.get()["updates"] + count
        return wait_until(
            lambda: (status := self.trainer.get())["updates"] >= goal and status, deadline_s, what=f"{count} updates"
        )


@pytest.fixture(scope="module")
def pair(shared_site):
    with Tap(free_port(), shared_site.port) as tap:
        made = Pair(shared_site, tap)
        driving(made.rover)
        yield made


def test_steps_become_updates_and_updates_become_driving_policies(pair, record_figure):
    def is_closed():
        trainer, rover = pair.trainer.get(), pair.rover.get()
        enough = trainer["updates"] >= 4 and trainer["policy"]["update_to_driving_s"]["n"] >= 3 and rover["swaps"] >= 3
        is_settled = trainer["steps"]["trained"] >= 4 * 256  # counted on another thread than the updates
        return (trainer, rover) if enough and is_settled else None

    trainer, rover = wait_until(is_closed, 90, what="the loop closes")
    assert rover["link"]["state"] == "linked"
    assert rover["policy"]["refusals"] == rover["policy"]["crashes"] == rover["tick_gaps"] == 0
    assert trainer["health"] == {"ok": True, "causes": []}
    assert trainer["policy"]["export_failed"] == 0
    for name in ("lost", "duplicates", "late", "refused", "malformed", "quarantined"):
        assert trainer["steps"][name] == 0, name
    worst = trainer["policy"]["update_to_driving_s"]["max"]
    record_figure("update_to_driving_s", worst)
    assert 0 < worst < 10


def test_every_step_of_an_episode_names_one_policy_and_policies_change_between_episodes(pair):
    wait_until(lambda: pair.rover.get()["swaps"] >= 3, what="three swaps")
    policies = defaultdict(list)
    for header in pair.tap.stream.headers_of():
        if header["kind"] == "step" and header["purpose"] == "training":
            policies[header["boot_id"], header["episode_id"]].append((header["policy_id"], header["policy_counter"]))
    assert all(len(set(each)) == 1 for each in policies.values())
    in_order = [each[0] for _, each in sorted(policies.items())]
    assert len(set(in_order)) >= 3
    counters = [counter for _, counter in in_order]
    assert counters == sorted(counters), "an older policy drove after a newer one"


def test_row_15_the_successor_of_each_step_is_the_next_step_of_its_episode(pair):
    wait_until(lambda: pair.rover.get()["episodes"] >= 8, what="eight episodes")
    headers = sorted(pair.tap.stream.headers_of(), key=lambda header: header["seq"])
    assert [header["seq"] for header in headers] == list(range(len(headers)))
    episodes = defaultdict(list)
    for header in headers:
        episodes[header["episode_id"]].append(header)
    complete = 0
    for records in episodes.values():
        steps = [each for each in records if each["kind"] == "step"]
        assert [step["episode_step"] for step in steps] == list(range(len(steps)))
        for before, after in pairwise(steps):
            assert after["in_flight"] == before["action"]
            assert after["stamp_ns"] - before["stamp_ns"] == pytest.approx(1e8, abs=1)
        if records[-1]["kind"] == "episode_end":
            end, last = records[-1], steps[-1]
            complete += 1
            assert end["ends_episode"]
            assert end["episode_steps"] == len(steps)
            assert end["in_flight"] == last["action"]
            assert end["return"] == pytest.approx(sum(step["reward"] for step in steps))
            assert (last["terminated"], last["truncated"]) == (end["terminated"], end["reason"] == "truncated")
    assert complete >= 8


def test_row_15_every_step_that_came_in_is_in_exactly_one_counter(pair):
    for _ in range(20):
        assert unbalanced(pair.trainer.get()["steps"]) == 0


def test_row_1_a_new_policy_acts_as_the_trainer_says_and_unlike_the_one_before(pair):
    bundles = wait_until(
        lambda: len(found := by_counter(stored(pair.rover.state_dir))) >= 2 and found, what="two bundles"
    )
    for before, after in pairwise(bundles):
        for each in (before, after):
            there = means(each, each.golden.image, each.golden.vector)
            np.testing.assert_allclose(there, each.golden.mean, atol=1e-4)
        assert before.manifest.weights_sha256 != after.manifest.weights_sha256
        unlike = np.abs(means(after, before.golden.image, before.golden.vector) - before.golden.mean)
        assert unlike.max() > 1e-5


def test_row_1_and_16_recorded_actions_are_those_of_the_policy_that_they_name(pair):
    bundles = wait_until(lambda: len(found := stored(pair.rover.state_dir)) >= 2 and found, what="two bundles")
    robot, _ = pair.tap.stream.specs()
    low = np.array([element.low for element in robot.action])
    span = np.array([element.high for element in robot.action]) - low
    checked = set()
    for step in pair.tap.stream.decoded():
        if not isinstance(step, Step) or step.policy_id not in bundles or step.episode_step not in {0, 1, 7}:
            continue
        bundle, behaviour, seen = bundles[step.policy_id], step.behaviour, step.observation
        assert behaviour is not None
        image = bundle.transform.image(seen.images)[None]
        vector = bundle.transform.vector(seen.state, seen.task, seen.in_flight)[None]
        np.testing.assert_allclose(means(bundle, image, vector)[0], behaviour.mean, atol=1e-5)
        scaled = (behaviour.u - behaviour.mean) / np.exp(behaviour.log_std)
        density = -0.5 * (scaled**2).sum() - behaviour.log_std.sum() - 0.5 * len(low) * np.log(2 * np.pi)
        assert behaviour.log_prob == pytest.approx(density, abs=1e-3)
        wanted = low + (np.tanh(behaviour.u.astype(np.float64)) + 1) / 2 * span
        np.testing.assert_allclose(step.policy_action, wanted, atol=1e-5)
        if step.source == "policy":
            np.testing.assert_allclose(step.action, step.policy_action, atol=1e-6)
        checked.add(step.policy_id)
    assert len(checked) >= 2


def test_row_12_what_is_decoded_owns_its_memory_and_can_be_written(pair):
    records = pair.tap.stream.decoded()[-200:]
    assert {type(record) for record in records} == {Step, EpisodeEnd}
    for record in records:
        seen = record.observation if isinstance(record, Step) else record.final
        assert seen.images
        for array in (*seen.images.values(), seen.state, seen.task, seen.in_flight):
            assert array.flags.writeable
            assert array.flags.owndata


def test_row_13_no_process_of_the_rover_has_loaded_torch(pair):
    def maps(daemon):
        return {pid: Path(f"/proc/{pid}/maps").read_text() for pid in daemon.pids()}

    assert any("libtorch" in text for text in maps(pair.trainer).values()), "the check itself must see torch"
    of_rover = maps(pair.rover)
    assert len(of_rover) >= 4, "roverd, control and two policy processes"
    for text in of_rover.values():
        assert "torch" not in text


def test_row_37_a_humans_steps_are_marked_and_the_segment_breaks_where_the_hand_changes(pair):
    """The wheel is taken three times for 0.5 s of the robot's clock: five ticks."""
    taken = pair.trainer.get()["steps"]["demonstration"]
    for _ in range(3):
        before = len(pair.tap.stream.headers)
        answer = pair.rover.ctl("drive", "0.2", "0.4", "--seconds", "0.5", "--json")
        assert answer.status == 0
        wait_until(
            lambda start=before: any(unpack(raw).get("source") == "human" for raw in pair.tap.stream.headers[start:]),
            what="a human's step",
        )
    goal = len(pair.tap.stream.headers) + 500
    wait_until(lambda: len(pair.tap.stream.headers) > goal, what="steps after it")
    records = sorted(pair.tap.stream.headers_of(), key=lambda header: header["seq"])
    human = [each for each in records if each["kind"] == "step" and each["source"] == "human"]
    assert 3 <= len(human) <= 3 * 6
    wanted = np.array((0.2, 0.4), np.float32).tobytes()
    assert all(step["human_action"] == step["action"] == wanted for step in human)
    assert all("policy_action" in step for step in human)
    strangers = [
        each for each in records if each["kind"] == "step" and each["source"] not in {"policy", "gate", "human"}
    ]
    assert not strangers
    wait_until(lambda: pair.trainer.get()["steps"]["demonstration"] - taken >= len(human), what="they are learned from")
    status = pair.trainer.get()
    assert status["steps"]["demonstration"] - taken == len(human)
    assert status["steps"]["lost"] == status["steps"]["duplicates"] == 0


def test_row_37_a_break_with_its_final_observation_stands_at_each_change_of_hands(pair):
    records = sorted(pair.tap.stream.decoded(), key=lambda record: record.seq)
    breaks = [each for each in records if isinstance(each, EpisodeEnd) and not each.ends_episode]
    assert breaks, "the test before took the wheel"
    assert {each.reason for each in breaks} <= {"takeover", "release"}
    for each in breaks:
        assert each.final.images
    for before, after in pairwise(records):
        if isinstance(before, Step) and isinstance(after, Step) and before.episode_id == after.episode_id:
            assert (before.source == "human") == (after.source == "human"), (
                f"no break between seq {before.seq} and the next"
            )
    for index, each in enumerate(records[1:-1], 1):
        if isinstance(each, EpisodeEnd) and not each.ends_episode:
            after = records[index + 1]
            assert isinstance(after, Step)
            assert (after.source == "human") == (each.reason == "takeover"), f"{each.reason} at seq {each.seq}"
            np.testing.assert_array_equal(each.final.state, after.observation.state)


def test_row_37_a_hold_longer_than_its_episode_leaves_the_next_episode_to_the_policy(pair):
    before = len(pair.tap.stream.headers)
    assert pair.rover.ctl("drive", "0.0", "1.5", "--seconds", "30").status == 0

    def headers():
        return [unpack(raw) for raw in pair.tap.stream.headers[before:]]

    def is_past():
        human = [each for each in headers() if each.get("source") == "human"]
        return human and headers()[-1]["stamp_ns"] > human[0]["stamp_ns"] + 40e9 and human

    first_human = wait_until(is_past, what="40 s on the robot's clock")[0]
    later = [each for each in headers() if each["episode_id"] > first_human["episode_id"]]
    assert later
    assert {each["source"] for each in later if each["kind"] == "step"} <= {"policy", "gate"}
    assert all(each["ends_episode"] for each in later if each["kind"] == "episode_end"), "a break without a human"


READ = {
    "trainerctl": (
        ["status"],
        ["doctor"],
        ["checkpoint", "list"],
        ["policy", "list"],
        ["rover", "list"],
        ["plugins"],
        ["config", "show", "--origin"],
    ),
    "roverctl": (["status"], ["doctor"], ["policy", "list"], ["plugins"], ["config", "show"]),
}


class TestCommandLine:
    """Row 40, while nobody learns or drives: stdout is for the answer, stderr for what went wrong."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def paused(cls, pair):
        pair.trainer.post("/train/pause")
        yield
        pair.trainer.post("/train/resume")

    @pytest.mark.parametrize(("tool", "words"), [(tool, words) for tool, each in READ.items() for words in each])
    def test_row_40_a_read_command_prints_one_json_document_and_nothing_else(self, pair, tool, words):
        daemon = pair.trainer if tool == "trainerctl" else pair.rover
        answer = daemon.ctl(*words, "--json")
        assert answer.status in ({0, 1} if words[0] in {"status", "doctor"} else {0}), answer
        document = json.loads(answer.out)
        assert isinstance(document, dict)
        assert answer.out.count("\n") == 1
        assert answer.err == ""

    def test_row_40_one_policy_is_shown_with_its_manifest_as_json(self, pair):
        policy_id = pair.trainer.get()["policy"]["wanted"]
        shown = pair.trainer.ctl("policy", "show", policy_id, "--json")
        assert shown.status == 0
        assert shown.json["manifest"]["weights_sha256"]

    def test_row_40_a_refusal_exits_1_and_says_why_on_stderr(self, pair):
        for daemon, words in (
            (pair.trainer, ("policy", "show", "ffffff")),
            (pair.trainer, ("checkpoint", "restore", "no")),
        ):
            answer = daemon.ctl(*words, "--json")
            assert answer.status == 1
            assert answer.json["ok"] is False
            assert answer.err.count("\n") == 1

    def test_row_40_wrong_usage_exits_2_and_leaves_stdout_empty(self, pair):
        for daemon in (pair.trainer, pair.rover):
            answer = daemon.ctl("nonsense")
            assert (answer.status, answer.out) == (2, "")

    def test_row_40_no_daemon_exits_1_with_one_line(self, pair, tmp_path):
        for name in ("trainerd", "roverd"):
            command = [sys.executable, "-m", f"{name}.ctl", "--control-socket", str(tmp_path / "no.sock"), "status"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.count("\n") == 1
            assert "no daemon answers" in done.stderr


def test_an_evaluation_prints_success_with_its_interval(pair):
    for policy, episodes in (("random", 4), ("reactive", 4), ("latest", 3)):
        shown = pair.trainer.ctl("evaluate", "--policy", policy, "--episodes", str(episodes))
        assert shown.status == 0, shown
        assert re.search(rf"success \d+\.\d % \[\d+\.\d, \d+\.\d\] of {episodes}, collisions \d", shown.out), shown.out
    rows = pair.trainer.get("/evaluations")["evaluations"]
    assert [row["stage"] for row in rows[-3:]] == ["finished"] * 3
    assert all(row["result"]["low"] <= row["result"]["success"] <= row["result"]["high"] for row in rows[-3:])
    headers = [each for each in pair.tap.stream.headers_of() if each["purpose"] == "evaluation"]
    ends = [each for each in headers if each["kind"] == "episode_end" and each["ends_episode"]]
    assert min(end["arena_seed"] for end in ends) >= 1_000_000
    arenas = [end["arena_seed"] for end in ends if end["order_id"] == rows[-1]["id"]]
    assert arenas == [1_000_000, 1_000_001, 1_000_002]
    explored = [each for each in headers if "behaviour" in each and each["behaviour"]["u"] != each["behaviour"]["mean"]]
    assert not explored, "an evaluation explores"
    pair.wait_for_updates(1)


def test_pause_and_resume_hold_the_learner_and_repeated_commands_succeed(pair):
    assert pair.trainer.ctl("train", "pause", "--json").json["state"] == "paused"
    again = pair.trainer.ctl("train", "pause", "--json")
    assert (again.status, again.json["already_paused"]) == (0, True)
    wait_until(lambda: pair.rover.get()["mode"] == "idle", what="the rover stands")
    ticks, updates = pair.rover.get()["ticks"], pair.trainer.get()["updates"]
    for _ in range(10):
        assert pair.rover.get()["ticks"] == ticks
        assert pair.trainer.get()["updates"] == updates
    assert pair.trainer.ctl("train", "resume", "--json").json["state"] == "training"
    assert pair.trainer.ctl("train", "start", "--json").json["already_training"] is True
    pair.wait_for_updates(2)


def test_a_checkpoint_is_saved_listed_and_restored_and_the_policy_counter_does_not_go_back(pair):
    saved = pair.trainer.ctl("checkpoint", "save", "--json")
    assert saved.status == 0, saved
    name = saved.json["checkpoint"]
    assert re.fullmatch(r"ppo_update_\d+", name)
    assert pair.trainer.ctl("checkpoint", "save").status == 0
    pair.wait_for_updates(2)
    status = pair.trainer.get()
    assert name in [row["name"] for row in pair.trainer.ctl("checkpoint", "list", "--json").json["checkpoints"]]
    restored = pair.trainer.ctl("checkpoint", "restore", name, "--json")
    assert restored.status == 0, restored
    assert f"ppo_update_{restored.json['update']}" == name
    counter = status["policy"]["counter"]
    later = wait_until(
        lambda: (new := pair.trainer.get())["policy"]["counter"] > counter and new, what="a policy of the restored run"
    )
    assert later["updates"] < status["updates"] + 40
    wait_until(lambda: pair.rover.get()["policy"]["counter"] > counter, what="the rover drives it")
    pair.wait_for_updates(1)


def test_a_policy_is_deployed_rolled_back_and_followed_again(pair):
    def drives(policy_id):
        wait_until(lambda: pair.rover.get()["policy"]["policy_id"] == policy_id, what=f"{policy_id[:12]} drives")

    older, oldest = [row["policy_id"] for row in pair.trainer.ctl("policy", "list", "--json").json["policies"]][3:5]
    assert pair.trainer.ctl("policy", "deploy", older, "--json").status == 0
    drives(older)
    assert pair.trainer.ctl("policy", "deploy", older, "--json").json["already_deployed"] is True
    assert pair.trainer.ctl("policy", "deploy", oldest, "--json").status == 0
    drives(oldest)
    assert pair.trainer.ctl("policy", "rollback", "--json").json["policy_id"] == older
    drives(older)
    assert pair.rover.ctl("policy", "rollback", "--json").json["policy_id"] == oldest
    drives(oldest)  # the rover's own word holds until a newer policy comes
    told = wait_until(
        lambda: pair.trainer.get("/rovers")["rovers"][0]["refused"].get(older), what="the trainer is told"
    )
    assert "rolled back" in told
    assert pair.trainer.ctl("policy", "deploy", "latest", "--json").json["is_following"] is True
    pair.wait_for_updates(2)
    wait_until(lambda: pair.rover.get()["policy"]["counter"] > 5, what="a new policy drives")
    assert pair.trainer.get()["health"]["ok"]


def test_the_rover_stands_and_drives_on_at_its_own_command(pair):
    assert pair.rover.ctl("episode", "stop").status == 0
    wait_until(lambda: pair.rover.get()["mode"] == "held", what="held")
    assert pair.rover.ctl("episode", "start").status == 0
    ticks = pair.rover.get()["ticks"]
    wait_until(lambda: pair.rover.get()["ticks"] > ticks + 10, what="ticks after start")
    assert pair.rover.ctl("estop", "--json").json["already_latched"] is False
    assert pair.rover.ctl("estop", "--json").json["already_latched"] is True
    wait_until(lambda: pair.rover.get()["mode"] == "e_stop", what="e-stop")
    assert pair.rover.ctl("clear", "--json").json["already_clear"] is False
    assert pair.rover.ctl("clear", "--json").json["already_clear"] is True
    ticks = pair.rover.get()["ticks"]
    wait_until(lambda: pair.rover.get()["ticks"] > ticks + 10, what="ticks after clear")
    assert pair.rover.ctl("policy", "reload").status == 0
    wait_until(lambda: pair.rover.get()["health"]["ok"], what="healthy after reload")


class TestBadPolicies:
    """A bad policy is refused with a reason, and the one before drives on."""

    @pytest.fixture
    def good(self, pair):
        """Return the policy that drives, pinned so that it goes on doing so."""
        policy_id = pair.trainer.get()["policy"]["wanted"]
        pair.trainer.post(f"/policies/{policy_id}/deploy")
        wait_until(lambda: pair.rover.get()["policy"]["policy_id"] == policy_id, what="the pinned policy drives")
        yield stored(pair.rover.state_dir)[policy_id]
        pair.tap.to_rover = lambda _, frames: frames
        pair.trainer.post("/policies/latest/deploy")
        pair.wait_for_updates(1)

    def refuse(self, pair, good, content, policy_id):
        before = pair.rover.get()
        pair.tap.offer(content, policy_id, good.manifest.counter + 1)
        after = wait_until(
            lambda: (new := pair.rover.get())["policy"]["refusals"] > before["policy"]["refusals"] and new,
            what="a refusal",
        )
        assert after["policy"]["policy_id"] == good.policy_id
        assert after["policy"]["crashes"] == before["policy"]["crashes"] == 0
        assert after["swaps"] == before["swaps"]
        ticks = pair.rover.get()["ticks"]
        wait_until(lambda: pair.rover.get()["ticks"] > ticks + 50, what="the old policy drives on")
        drove = len(pair.tap.stream.headers)

        def drove_on():
            newest = [unpack(raw) for raw in pair.tap.stream.headers[max(drove, len(pair.tap.stream.headers) - 50) :]]
            return newest and {each["policy_id"] for each in newest if each["kind"] == "step"} == {good.policy_id}

        wait_until(drove_on, what="steps of the old policy alone")  # those of before may have waited for credit
        refused = [each for each in pair.rover.events("policy.refused") if each["policy_id"] == policy_id[:12]]
        assert len(refused) == 1
        told = wait_until(
            lambda: pair.trainer.get("/rovers")["rovers"][0]["refused"].get(policy_id), what="the trainer is told"
        )
        assert told == refused[0]["reason"]
        return told

    def test_a_policy_whose_network_is_not_what_its_manifest_says_is_refused(self, pair, good):
        content = bytearray(packed(good, counter=good.manifest.counter + 1))
        content[content.index(good.onnx) + 100] ^= 1
        assert re.search("sha256|CRC-32", self.refuse(pair, good, bytes(content), "a" * 64))

    @pytest.mark.slow
    def test_a_policy_that_was_cut_short_is_refused(self, pair, good):
        content = packed(good, counter=good.manifest.counter + 1)
        assert "bundle" in self.refuse(pair, good, content[: len(content) // 2], "b" * 64)

    @pytest.mark.slow
    def test_another_policy_than_the_one_offered_is_refused(self, pair, good):
        content = packed(good, counter=good.manifest.counter + 1)
        assert "instead" in self.refuse(pair, good, content, "c" * 64)

    def test_a_policy_with_nan_in_its_output_is_refused(self, pair, good):
        self.refuse_network(pair, good, with_weights(good, float("nan")), r"not usable|nan")

    @pytest.mark.slow
    def test_a_policy_that_acts_unlike_at_the_trainer_is_refused(self, pair, good):
        self.refuse_network(pair, good, with_weights(good, 1.5), r"golden outputs differ")

    def test_a_policy_with_another_number_of_actions_is_refused(self, pair, good):
        self.refuse_network(pair, good, with_output("mean", 3), r"golden output")

    @pytest.mark.slow
    def test_a_policy_with_other_outputs_is_refused(self, pair, good):
        self.refuse_network(pair, good, with_output("value", 2), r"graph|outputs")

    @pytest.mark.slow
    def test_a_file_that_is_no_network_is_refused(self, pair, good):
        self.refuse_network(pair, good, b"\x80\x04\x95no network", r"cannot be loaded")

    def test_rows_16_and_17_a_policy_for_a_robot_with_height_and_width_swapped_is_refused_by_name(self, pair, good):
        robot = json.loads(json.dumps(good.manifest.robot))
        for camera in robot["cameras"]:
            camera["height"], camera["width"] = camera["width"], camera["height"]
        reason = self.refuse_manifest(pair, good, robot=robot)
        assert "height: 12 here, 20 there" in reason

    @pytest.mark.slow
    def test_row_16_a_policy_for_a_robot_with_a_renamed_element_is_refused_by_name(self, pair, good):
        robot = json.loads(json.dumps(good.manifest.robot))
        robot["state"][0]["name"] = "linear_speed"
        reason = self.refuse_manifest(pair, good, robot=robot)
        assert "linear_speed" in reason
        assert "linear_vel" in reason

    def refuse_network(self, pair, good, network, pattern):
        content = packed(good, network, counter=good.manifest.counter + 1)
        policy_id = json.loads(_member(content, "manifest.json"))["policy_id"]
        reason = self.refuse(pair, good, content, policy_id)
        assert re.search(pattern, reason), reason

    def refuse_manifest(self, pair, good, **changes):
        content = packed(good, **changes)
        return self.refuse(pair, good, content, json.loads(_member(content, "manifest.json"))["policy_id"])

    def test_chunks_that_are_altered_on_the_way_are_refused_and_the_next_policy_gets_through(self, pair, good):
        refusals = pair.rover.get()["policy"]["refusals"]

        def alter(header, frames):
            if header.get("kind") != Chunk.kind:
                return frames
            content = bytearray(frames[1])
            content[len(content) // 2] ^= 0x40
            return encode(Chunk(header["policy_id"], header["offset"], bytes(content)))

        pair.tap.to_rover = alter
        pair.trainer.post("/policies/latest/deploy")
        wait_until(lambda: pair.rover.get()["policy"]["refusals"] > refusals, what="a refusal")
        pair.tap.to_rover = lambda _, frames: frames
        swaps = pair.rover.get()["swaps"]
        wait_until(lambda: pair.rover.get()["swaps"] > swaps, what="the next policy drives")


def _member(content, name):
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(name)


def test_a_link_that_is_cut_for_three_seconds_loses_and_doubles_nothing(pair):
    before = pair.trainer.get()["steps"]["received"]
    pair.tap.cut(3.0)
    wait_until(
        lambda: (
            "connection" in str(pair.trainer.events("rover.disconnected"))
            or pair.rover.get()["link"]["unacknowledged"] > 512
        ),
        30,
        what="the cut shows",
    )
    wait_until(lambda: pair.trainer.get()["steps"]["received"] > before + 1500, 60, what="steps flow again")
    wait_until(lambda: pair.rover.get()["link"]["state"] == "linked", what="linked")
    steps = pair.trainer.get()["steps"]
    assert steps["lost"] == steps["duplicates"] == steps["late"] == steps["malformed"] == 0
    assert unbalanced(steps) == 0
    assert pair.rover.get()["link"]["overflow"] == 0
    seqs = [header["seq"] for header in pair.tap.stream.headers_of()]
    assert sorted(seqs) == list(range(max(seqs) + 1))


def test_everything_the_rover_recorded_arrives_once_it_stands(pair):
    pair.rover.post("/episode/stop")
    wait_until(
        lambda: (new := pair.rover.get())["mode"] == "held" and not new["link"]["unacknowledged"],
        what="all acknowledged",
    )
    row = pair.trainer.get("/rovers")["rovers"][0]
    steps = pair.trainer.get()["steps"]
    assert row["next_seq"] == steps["records"] == len(pair.tap.stream.headers_of())
    assert steps["received"] == pair.rover.get()["ticks"]
    assert steps["lost"] == steps["duplicates"] == 0
    pair.rover.post("/episode/start")
    pair.wait_for_updates(1)


def test_row_2_an_export_that_fails_ends_neither_training_nor_driving(pair):
    """A file lies where the folder of the policies should be."""
    folder = pair.trainer.state_dir / "policies"
    before = pair.trainer.get()
    assert before["policy"]["export_failed"] == 0
    aside = folder.rename(folder.with_name("policies-aside"))
    folder.write_text("no folder")
    try:
        failed = wait_until(
            lambda: (new := pair.trainer.get())["policy"]["export_failed"] >= 2 and new, what="two failed exports"
        )
        assert failed["state"] == "training"
        assert not failed["health"]["ok"]
        assert any("policies" in cause for cause in failed["health"]["causes"])
        assert pair.trainer.ctl("status").status == 1
        after = pair.wait_for_updates(2)
        assert after["updates"] > before["updates"]
        driven = pair.rover.get()["policy"]["counter"]
        ticks = pair.rover.get()["ticks"]
        wait_until(lambda: pair.rover.get()["ticks"] > ticks + 100, what="the old policy drives on")
        assert pair.rover.get()["policy"]["counter"] in {driven, before["policy"]["counter"]}
        errors = pair.trainer.events("export.failed")
        assert errors
        assert all(each["level"] == "error" and each["hint"] for each in errors)
    finally:
        folder.unlink()
        aside.rename(folder)
    driven = pair.rover.get()["policy"]["counter"]
    wait_until(lambda: pair.rover.get()["policy"]["counter"] > driven, what="exports work again")
    wait_until(lambda: pair.trainer.get()["health"]["ok"], what="healthy again")
