"""Row 31: a robot whose signs are wrong is not driven by a policy, and is told which sensor it is."""

from __future__ import annotations

import json
import re

import pytest

from protocol.node.socket import ControlError
from tests.daemon.daemons import wait_until
from tests.daemon.policies import CLOCKED as POLICIES_CLOCK
from tests.daemon.policies import Maker
from tests.faults import spooled

pytestmark = pytest.mark.slow

ALWAYS = {"selfcheck.required": "always"}
CLOCKED = {
    **ALWAYS,
    "control.rate_hz": 20,
    "plugins.synthetic.control_rate_hz": 20,
    "plugins.synthetic.action_delay_ms": 25,
    "selfcheck.seconds": 0.3,
}


def selfcheck(rover):
    """Make one as a person does; return (exit status, answer)."""
    answer = rover.ctl("selfcheck", "--yes", "--json")
    assert "the robot will move by itself: forward" in answer.err
    return answer.status, answer.json


def failed(answer):
    return [each["check"] for each in answer["checks"] if not each["ok"]]


@pytest.mark.parametrize(
    ("turned", "settings", "first", "words"),
    [
        pytest.param(
            *("wheel_sign", CLOCKED, "forward: linear_vel", "the encoder of the wheels counts backwards: +0.050 m/s"),
            marks=pytest.mark.slow,
        ),
        ("gyro_sign", ALWAYS, "left: angular_vel", "the gyroscope counts backwards: +0.300 rad/s"),
        pytest.param(
            *("odometry_sign", ALWAYS, "forward: odometry", "odometry counts backwards: +0.050 m/s"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["wheels, clocked", "gyroscope", "odometry"],
)
def test_row_31_a_turned_sign_is_named_and_keeps_the_robot_unarmed(site, turned, settings, first, words):
    rover = site.rover({**settings, f"plugins.synthetic.{turned}": -1})
    wait_until(rover.get, what="roverd answers")
    with pytest.raises(ControlError, match=r"unarmed: it was never checked .* roverctl selfcheck"):
        rover.post("/episode/start", {"controller": "random"})
    status, answer = selfcheck(rover)
    assert (status, answer["passed"], answer["armed"]) == (1, False, False)
    assert failed(answer)[0] == first
    assert answer["fault"].startswith(words)
    shown = rover.get()
    assert (shown["mode"], shown["health"]["ok"]) == ("unarmed", False)
    with pytest.raises(ControlError, match=f"unarmed: .*{re.escape(words)}"):
        rover.post("/episode/start", {"controller": "random"})
    assert rover.get()["ticks"] == shown["ticks"], "something drove"
    assert any("roverctl selfcheck" in cause and words in cause for cause in shown["health"]["causes"])
    check = next(each for each in rover.get("/doctor")["checks"] if each["check"] == "selfcheck")
    assert not check["ok"]
    assert words in check["measured"]


@pytest.mark.slow
def test_row_31_no_policy_and_no_controller_drives_before_the_signs_are_proved_and_a_person_may(site):
    policy = Maker.of().write(site.folder, 1)
    rover = site.rover({**POLICIES_CLOCK, **ALWAYS, "selfcheck.seconds": 0.3}, "--policy", str(policy))
    status = wait_until(lambda: (new := rover.get())["policy"]["policy_id"] and new, what="a policy is loaded")
    assert (status["mode"], status["ticks"]) == ("unarmed", 0)
    with pytest.raises(ControlError, match=r"unarmed: it was never checked .* roverctl selfcheck"):
        rover.post("/episode/start", {"controller": "random"})
    rover.post("/drive", {"action": [0.1, 0.0], "seconds": 0.5})
    driven = wait_until(lambda: (new := rover.get())["episodes"] == 1 and new, what="he drove, and nobody after him")
    assert 10 <= driven["ticks"] <= 25, "half a second at 30 Hz"
    rover.post("/wheel/take", {"owner": "anna"})
    rover.post("/wheel/drive", {"owner": "anna", "axes": [0.5, 0.0]})
    wait_until(lambda: rover.get()["ticks"] > driven["ticks"], what="she drives")
    rover.post("/wheel/release", {"owner": "anna"})
    driven = wait_until(lambda: (new := rover.get())["episodes"] == 2 and new, what="it stands when she lets go")
    answer = rover.post("/selfcheck")
    assert (answer["passed"], failed(answer)) == (True, [])
    after = rover.get()
    assert (after["mode"], after["policy"]["policy_id"]) == ("train", driven["policy"]["policy_id"])
    wait_until(lambda: rover.get()["ticks"] > after["ticks"] + 30, what="the policy drives")
    kept = json.loads((rover.state_dir / "calibration.json").read_text())
    assert (kept["passed"], kept["spec_hash"]) == (True, after["spec_hash"])
    assert rover.stop() == 0
    records = spooled.headers(rover.state_dir)
    steps = [each for each in records if each["kind"] == "step"]
    first = next(each["episode_id"] for each in steps if each["source"] == "policy")
    assert {each["source"] for each in steps if each["episode_id"] < first} == {"human", "fallback"}
    checking = [each for each in records if 2 < each["episode_id"] < first]
    assert {each["purpose"] for each in checking} == {"collection"}
    ends = [each for each in checking if each.get("ends_episode")]
    assert ends
    assert all(each["metrics"]["discarded"] == 1.0 for each in ends), "what it drove for the check is no demonstration"


@pytest.mark.slow
def test_row_31_a_robot_that_was_mended_passes_and_its_pass_counts_for_this_robot_only(site):
    rover = site.rover({**CLOCKED, "plugins.synthetic.wheel_sign": -1})
    wait_until(rover.get, what="roverd answers")
    refused = rover.ctl("selfcheck")
    assert refused.status == 1
    assert "nobody is here to be asked" in refused.err
    assert rover.get()["ticks"] == 0, "it did not move"
    status, answer = selfcheck(rover)
    assert status == 1
    assert {"forward: linear_vel"} == set(failed(answer))
    assert rover.get()["mode"] == "unarmed"
    assert not rover.get("/wheel")["view"]["wheel"]["owner"]
    assert rover.stop() == 0
    rover.words = [word.replace("wheel_sign=-1", "wheel_sign=1") for word in rover.words]
    rover.start()
    wait_until(rover.get, what="roverd answers")
    status, answer = selfcheck(rover)
    assert (status, answer["armed"]) == (0, True), answer
    assert rover.ctl("selfcheck", "--show").status == 0
    assert rover.stop() == 0
    rover.words = [word.replace("action_delay_ms=25", "action_delay_ms=20") for word in rover.words]
    rover.start()
    shown = wait_until(rover.get, what="roverd answers")
    assert shown["mode"] == "unarmed"
    assert any("another robot spec" in cause for cause in shown["health"]["causes"])


@pytest.mark.slow
def test_an_encoder_that_turns_while_it_drives_is_told_by_health_event_and_doctor(site):
    rover = site.rover({"plugins.synthetic.gyro_sign": -1, "plugins.synthetic.sensors_turn_after_s": 20.0})
    wait_until(rover.get, what="roverd answers")
    rover.post("/episode/start", {"controller": "spin", "episodes": 10_000})
    told = wait_until(lambda: rover.events("motion.contradicts"), what="the contradiction")
    assert told[0]["signal"] == "angular_vel"
    assert "opposite" in told[0]["fact"]
    health = rover.get()["health"]
    assert any("angular_vel says the opposite" in cause for cause in health["causes"])
    check = next(each for each in rover.get("/doctor")["checks"] if each["check"] == "motion")
    assert not check["ok"]
    assert len(rover.events("motion.contradicts")) == 1
