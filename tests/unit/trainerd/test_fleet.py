import pytest

from protocol import messages
from protocol.errors import RoverError
from protocol.messages import Hello, Offer, Order, OrderUpdate, Ping, Refuse, Verdict, Welcome
from protocol.step import EpisodeEnd
from tests.unit.trainerd.conftest import Shelf
from tests.unit.trainerd.rover import BARE, ROBOT, TASK
from trainerd.evaluate import STALL_S, evaluation_order
from trainerd.fleet import Fleet
from trainerd.rover import plain
from trainerd.run import RunError, RunFile
from trainerd.settings import LinkSettings

LINK = LinkSettings()
OFFER = Offer("p" * 8, 3, 100, "0" * 64)


def hello(rover_id="rover-1", boot_id="boot-1", robot=ROBOT, **changes):
    values = {
        "oldest_version": 1,
        "newest_version": 1,
        "codecs": [],
        "software": "",
        "next_seq": 0,
        "oldest_unacked": 0,
    }
    return Hello(
        **{
            "rover_id": rover_id,
            "boot_id": boot_id,
            "robot": robot.to_map(),
            "task": TASK.to_map(),
            **values,
            **changes,
        }
    )


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(RunFile(tmp_path / "run.json"), LINK, Shelf(), check_specs=lambda *_: None, on_specs=lambda _: None)
    fleet.set_mode("train", 0.0)
    return fleet


def sent(fleet, kind):
    found = [message for _, message in fleet.outbox if isinstance(message, kind)]
    fleet.outbox = type(fleet.outbox)(pair for pair in fleet.outbox if not isinstance(pair[1], kind))
    return found


def greeted(fleet, now_s=0.0, identity=b"a", **changes):
    rover = fleet.greet(identity, hello(**changes), now_s)
    assert rover is not None, sent(fleet, Refuse)
    return rover


def refusal(fleet, now_s=0.0, identity=b"b", **changes):
    assert fleet.greet(identity, hello(**changes), now_s) is None
    return sent(fleet, Refuse)[0]


def test_the_first_rover_fixes_the_run_on_disk(fleet, tmp_path):
    greeted(fleet)
    assert sent(fleet, Welcome)[0].received == []
    assert RunFile(tmp_path / "run.json").run.specs == (ROBOT, TASK)


def test_another_spec_is_refused_by_name_of_the_difference(fleet):
    greeted(fleet)
    assert "action_repeat: 3 here, 1 there" in refusal(fleet, rover_id="rover-2", robot=BARE).reason
    assert fleet.refused_hellos["spec"] == 1


def test_a_robot_that_the_encoder_cannot_read_is_refused(tmp_path):
    def check(*_specs):
        raise RoverError("no camera front")

    fleet = Fleet(RunFile(tmp_path / "run.json"), LINK, Shelf(), check_specs=check, on_specs=lambda _: None)
    assert refusal(fleet).reason == "rover-1: no camera front"
    assert fleet.specs is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rover_id": "../../etc"}, "name"),
        ({"rover_id": ""}, "name"),
        ({"boot_id": "A B"}, "name"),
        ({"oldest_version": 2, "newest_version": 9}, "version"),
        ({"oldest_version": 0, "newest_version": 0}, "version"),
        ({"oldest_unacked": 5, "next_seq": 4}, "seq"),
        ({"oldest_unacked": -1}, "seq"),
    ],
)
def test_a_hello_that_cannot_be_served_is_refused(fleet, changes, code):
    assert refusal(fleet, **changes).code == code


def test_a_refused_version_says_which_side_to_update(fleet):
    assert (
        "it speaks protocol 2 to 9, this side 1 to 1: update trainerd"
        in refusal(fleet, oldest_version=2, newest_version=9).reason
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m["cameras"][0].update(height=10**9),
        lambda m: m["cameras"][0].update(height=2.5),
        lambda m: m["cameras"][0].update(name=7),
        lambda m: m["state"][0].update(low=float("nan")),
        lambda m: m.update(action_repeat=10**9),
        lambda m: m.update(cameras="x"),
        lambda m: m.pop("action"),
    ],
)
def test_a_spec_of_nonsense_is_refused_before_anything_is_allocated(fleet, spoil):
    robot = ROBOT.to_map()
    robot["cameras"], robot["state"] = [dict(c) for c in robot["cameras"]], [dict(e) for e in robot["state"]]
    spoil(robot)
    bad = hello()
    object.__setattr__(bad, "robot", robot)
    assert fleet.greet(b"b", bad, 0.0) is None
    assert sent(fleet, Refuse)[0].code == "spec"


def test_a_second_rover_of_the_same_name_is_refused_while_the_first_lives(fleet):
    first = greeted(fleet)
    first.heard_s = 10.0
    answer = refusal(fleet, now_s=10.5, boot_id="boot-2")
    assert (answer.code, answer.retry) == ("duplicate", True)


def test_a_restarted_rover_takes_over_once_the_old_one_is_silent_or_gone(fleet):
    first = greeted(fleet)
    greeted(fleet, now_s=1.5, identity=b"b", boot_id="boot-2")
    assert fleet.rover_of(b"a") is None
    assert first.boot.is_over
    assert not fleet.rovers["rover-1"].boot.is_over
    fleet.part(fleet.rovers["rover-1"], "goodbye")
    greeted(fleet, now_s=1.6, identity=b"c", boot_id="boot-3")


@pytest.mark.parametrize(("named", "is_over"), [(31, True), (32, False)])
def test_a_boot_that_is_not_named_is_over_unless_there_may_be_more_than_a_hello_names(fleet, named, is_over):
    first = greeted(fleet)
    backlog = [{"boot_id": f"older-{number}", "first": 0, "next": 9} for number in range(named)]
    greeted(fleet, now_s=1.5, identity=b"b", boot_id="boot-2", backlog=backlog)
    assert first.boot.is_over is is_over
    assert len(sent(fleet, Welcome)[-1].backlog) == named


def test_the_same_boot_comes_back_at_once_and_keeps_its_lane(fleet):
    rover = greeted(fleet)
    for seq in range(3):
        rover.boot.keep(seq, None)
        rover.boot.live.take()
        rover.boot.safe(seq)
    again = greeted(fleet, now_s=0.1, identity=b"b", next_seq=5, oldest_unacked=1)
    assert again.boot is rover.boot
    assert sent(fleet, Welcome)[-1].received == [[0, 2]]


def test_the_wanted_policy_is_offered_until_it_drives_ever_more_slowly(fleet):
    rover = greeted(fleet)
    fleet.want(OFFER, is_chosen=True)
    times = []
    for tenth in range(200):
        fleet.ping(rover, Ping(0, order_id="train"), tenth / 10)
        times += [tenth / 10] * len(sent(fleet, Offer))
    assert times == [0.0, 1.0, 3.0, 7.0, 15.0]
    fleet.ping(rover, Ping(0, OFFER.policy_id, 3, "train"), 40.0)
    assert sent(fleet, Offer) == []


def test_a_late_rover_gets_the_policy_at_its_hello(fleet):
    fleet.want(OFFER, is_chosen=True)
    greeted(fleet, now_s=60.0)
    assert sent(fleet, Offer) == [OFFER]


def test_a_policy_that_a_rover_refused_is_not_offered_again_but_a_newer_one_is(fleet):
    rover = greeted(fleet)
    fleet.want(OFFER, is_chosen=False)
    fleet.verdict(rover, Verdict(OFFER.policy_id, "refused", "NaN in golden"), 1.0)
    sent(fleet, Offer)
    fleet.tick(100.0)
    rover.connected, rover.heard_s = True, 100.0
    fleet.ping(rover, Ping(0), 100.0)
    assert sent(fleet, Offer) == []
    assert "rover-1: refused policy pppppppp: NaN in golden" in fleet.causes(100.0)
    newer = Offer("q" * 8, 4, 100, "0" * 64)
    fleet.want(newer, is_chosen=False)
    fleet.ping(rover, Ping(0), 101.0)
    assert sent(fleet, Offer) == [newer]


def test_an_older_policy_is_offered_as_a_rollback(fleet):
    rover = greeted(fleet, policy_id="z", policy_counter=9)
    fleet.want(OFFER, is_chosen=True)
    fleet.converge(rover, 0.0)
    assert sent(fleet, Offer)[0].rollback


def test_the_time_from_update_to_driving_is_measured(fleet):
    rover = greeted(fleet)
    fleet.expect(OFFER.counter, 10.0)
    fleet.want(OFFER, is_chosen=False)
    fleet.verdict(rover, Verdict(OFFER.policy_id, "driving"), 10.75)
    fleet.ping(rover, Ping(0, OFFER.policy_id, 3), 11.0)
    assert fleet.update_to_driving_s == [0.75]


def test_updates_that_were_overtaken_before_they_drove_count_with_the_age_they_had(fleet):
    rover = greeted(fleet)
    offers = [Offer(letter * 8, counter, 100, "0" * 64) for counter, letter in ((3, "p"), (5, "q"), (6, "r"))]
    for counter, finished_s in ((3, 10.0), (4, 11.0), (5, 12.0), (6, 13.0)):  # the export of the second one failed
        fleet.expect(counter, finished_s)
    for offer in offers:
        fleet.want(offer, is_chosen=False)
    fleet.verdict(rover, Verdict(offers[1].policy_id, "driving"), 12.5)
    assert fleet.update_to_driving_s == [2.5, 1.5, 0.5]
    fleet.ping(rover, Ping(0, offers[1].policy_id, 5), 12.6)
    fleet.ping(rover, Ping(0, "unheard of", 99), 12.7)
    assert len(fleet.update_to_driving_s) == 3
    fleet.ping(rover, Ping(0, offers[2].policy_id, 6), 14.0)
    assert fleet.update_to_driving_s[3:] == [1.0]


def test_updates_are_not_expected_to_drive_once_an_older_policy_was_chosen(fleet):
    rover = greeted(fleet)
    fleet.expect(4, 10.0)
    fleet.want(OFFER, is_chosen=True)
    newer = Offer("q" * 8, 4, 100, "0" * 64)
    fleet.want(newer, is_chosen=True)
    fleet.verdict(rover, Verdict(newer.policy_id, "driving"), 500.0)
    assert fleet.update_to_driving_s == []


def test_what_a_rover_dropped_is_counted_for_each_boot_and_named_in_the_health(fleet):
    rover = greeted(fleet)
    for stated in (3, 7, 5, "many", None, -1):
        fleet.ping(rover, Ping(0, order_id="train", status={"overflow": stated}), 0.1)
    assert fleet.overflow == 7
    assert "rover-1: it dropped 7 records while the trainer was away" in fleet.causes(0.2)
    again = greeted(fleet, now_s=0.3, identity=b"b")
    assert fleet.overflow == 7, "the same boot came back"
    fleet.part(again, "goodbye")
    new = greeted(fleet, now_s=2.0, identity=b"c", boot_id="boot-2")
    assert fleet.overflow == 7
    assert not [cause for cause in fleet.causes(2.1) if "dropped" in cause]
    fleet.ping(new, Ping(0, order_id="train", status={"overflow": 2}), 2.2)
    assert (fleet.overflow, new.to_map(2.2)["overflow"]) == (9, 2)


def test_a_rover_gets_its_order_again_after_a_restart(fleet):
    rover = greeted(fleet)
    assert [order.mode for order in sent(fleet, Order)] == ["train"]
    fleet.order_update(rover, OrderUpdate("train", "running"), 0.1)
    fleet.set_mode("idle", 1.0)
    assert [order.mode for order in sent(fleet, Order)] == ["idle"]
    greeted(fleet, now_s=9.0, identity=b"b", boot_id="boot-2")
    assert [order.mode for order in sent(fleet, Order)] == ["idle"]


def test_silence_is_noticed_and_named(fleet):
    rover = greeted(fleet)
    assert fleet.tick(1.0) == []
    fleet.ping(rover, Ping(0, order_id="train"), 1.0)
    rover.heard_s = 12.0
    assert fleet.causes(12.0) == ["rover-1: no step in 11 s although it is ordered to drive"]
    assert fleet.tick(17.1) == [rover]
    assert fleet.causes(30.0) == ["no rover is connected"]


@pytest.mark.parametrize("mode", ["teleop", "collect"])
def test_a_rover_that_waits_for_a_person_is_not_missed(fleet, mode):
    rover = greeted(fleet)
    fleet.ping(rover, Ping(0, order_id="collect-set", status={"mode": mode}), 1.0)
    rover.heard_s = 12.0
    assert fleet.causes(12.0) == []


def ended(order_id, serial, *, success=True, return_=1.0, reason="terminated"):
    facts = {"duration_s": 4.0, "path_m": 2.0, "shortest_path_m": 1.5, "collided": float(not success)}
    end = EpisodeEnd.__new__(EpisodeEnd)
    values = {"order_id": order_id, "episode_serial": serial, "success": success, "return_": return_, "metrics": facts}
    for name, value in {"ends_episode": True, "reason": reason, **values}.items():
        setattr(end, name, value)
    return end


def test_an_evaluation_waits_for_its_policy_and_then_the_rover_goes_back_to_its_order(fleet):
    rover = greeted(fleet)
    fleet.want(Offer("new", 5, 1, ""), is_chosen=True)
    fleet.ping(rover, Ping(0, "new", 5, "train"), 0.0)
    fleet.outbox.clear()
    fleet.know(OFFER)
    order = evaluation_order("policy", OFFER.policy_id, 2, 1_000_000)
    evaluation = fleet.evaluations.ask("rover-1", "pppp", order, 0.0)
    fleet.converge(rover, 0.0)
    assert (len(sent(fleet, Offer)), sent(fleet, Order)) == (1, [])
    fleet.verdict(rover, Verdict(OFFER.policy_id, "driving"), 0.5)
    assert sent(fleet, Order) == [order]
    fleet.order_update(rover, OrderUpdate(order.order_id, "running"), 0.6)
    fleet.evaluations.collect(ended(order.order_id, 0), 1.0)
    fleet.evaluations.collect(ended(order.order_id, 0), 1.0)
    assert evaluation.stage == "running"
    fleet.evaluations.collect(ended(order.order_id, 1, success=False), 2.0)
    result = evaluation.to_map()["result"]
    assert (result["n"], result["success"], result["collisions"], result["path_efficiency"]) == (2, 0.5, 1, 0.75)
    fleet.converge(rover, 2.0)
    assert [order.mode for order in sent(fleet, Order)] == ["train"]
    assert [offer.policy_id for offer in sent(fleet, Offer)] == ["new"]


@pytest.mark.parametrize("reason", ["stopped", "fault", "takeover"])
def test_an_episode_that_the_task_did_not_end_is_no_result_of_an_evaluation(fleet, reason):
    greeted(fleet)
    order = evaluation_order("reactive", "", 2, 0)
    evaluation = fleet.evaluations.ask("rover-1", "reactive", order, 0.0)
    fleet.evaluations.collect(ended(order.order_id, 0, success=False, reason=reason), 1.0)
    assert (evaluation.ends, evaluation.progress_s) == ({}, 0.0)
    fleet.evaluations.collect(ended(order.order_id, 0), 2.0)
    fleet.evaluations.collect(ended(order.order_id, 1, success=False, reason=reason), 3.0)
    assert evaluation.stage == "running"
    fleet.evaluations.collect(ended(order.order_id, 1, reason="truncated"), 4.0)
    assert (evaluation.stage, evaluation.to_map()["result"]["n"]) == ("finished", 2)


def test_an_evaluation_fails_when_the_rover_refuses_or_is_silent(fleet):
    rover = greeted(fleet)
    first = fleet.evaluations.ask("rover-1", "x", evaluation_order("x", "", 2, 0), 0.0)
    second = fleet.evaluations.ask("rover-1", "y", evaluation_order("y", "", 2, 0), 0.0)
    fleet.order_update(rover, OrderUpdate(first.order.order_id, "refused", reason="no controller x"), 1.0)
    assert (first.stage, first.reason) == ("failed", "no controller x")
    fleet.tick(STALL_S + 1)
    assert second.stage == "failed"
    assert "no episode in 120 s on rover-1" in second.reason


def test_what_a_rover_sends_becomes_plain_json():
    odd = {"a": b"\x00", "b": float("nan"), "c": [1, {"d": {"e": {"f": 1}}}], "g": "x" * 9999}
    assert plain(odd) == {"a": "b'\\x00'", "b": None, "c": [1, {"d": {"e": "{'f': 1}"}}], "g": "x" * 400}


def test_a_damaged_run_file_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="move it away to begin a new run"):
        RunFile(tmp_path / "run.json")


def test_every_message_of_the_fleet_can_be_encoded(fleet):
    greeted(fleet)
    fleet.want(OFFER, is_chosen=True)
    fleet.tick(0.0)
    assert all(messages.encode(message) for _, message in fleet.outbox)
