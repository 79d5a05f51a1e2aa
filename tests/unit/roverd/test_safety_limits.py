"""The limits of the safety gate: what is refused, and how they reach the control process."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace

import msgpack
import pytest

from protocol.step import Intervention as Flag
from roverd.control.safety import GATE, Limits, LimitsError, Verdict
from tests.unit.roverd.safe_robot import ARM, BASE, INF, NAN, Robot


def test_the_defaults_of_the_limits_are_those_of_the_documents() -> None:
    assert asdict(BASE) == {
        "low": (-0.5, -1.5),
        "high": (0.5, 1.5),
        "safe_action": (0.0, 0.0),
        "period_s": 0.1,
        "forward": 0,
        "max_acceleration": (),
        "max_jerk": (),
        "safety_distance_m": 0.25,
        "slow_distance_m": 0.6,
        "release_margin_m": 0.05,
        "release_frames": 2,
        "stale_after_ns": 180_000_000,
        "max_tilt_rad": 0.6,
        "stall_after_ns": 1_000_000_000,
        "stall_wait_ns": 1_000_000_000,
        "stall_from": 0.03,
    }


@pytest.mark.parametrize("limits", [BASE, ARM, replace(BASE, max_acceleration=(1.0, 2.0), max_jerk=(0.5, 0.0))])
def test_limits_travel_as_a_map(limits: Limits) -> None:
    assert Limits.from_map(msgpack.unpackb(msgpack.packb(asdict(limits)))) == limits


def test_limits_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        BASE.period_s = 1.0


NUMBER = "expected a finite number from 0 on"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"high": (0.5,)}, "high has 1 elements, low has 2"),
        ({"safe_action": (0.0, 0.0, 0.0)}, "safe_action has 3 elements, low has 2"),
        ({"max_acceleration": (1.0,)}, "max_acceleration has 1 elements, expected none or 2"),
        ({"max_jerk": (1.0,)}, "max_jerk has 1 elements, expected none or 2"),
        ({"forward": 2}, "forward is 2, expected -1 to 1"),
        ({"forward": -2}, "forward is -2, expected -1 to 1"),
        ({"low": (0.0, 1.6)}, "element 1 goes from 1.6 to 1.5"),
        ({"high": (NAN, 1.0)}, "element 0 goes from -0.5 to nan"),
        ({"low": (0.0, -INF)}, "element 1 goes from -inf to 1.5"),
        ({"safe_action": (0.0, 1.6)}, "the safe action of element 1 is 1.6, expected -1.5 to 1.5"),
        ({"safe_action": (0.0, -1.6)}, "the safe action of element 1 is -1.6, expected -1.5 to 1.5"),
        ({"safe_action": (0.0, NAN)}, "the safe action of element 1 is nan, expected -1.5 to 1.5"),
        ({"safe_action": (0.1, 0.0)}, "the safe action of forward motion is 0.1, expected 0"),
        ({"safe_action": (0.0, None), "forward": 1}, "the safe action of forward motion is None, expected 0"),
        ({"max_jerk": (-1.0, 0.0)}, "max_jerk is [-1.0, 0.0], expected finite numbers from 0 on"),
        ({"max_acceleration": (0.0, INF)}, "max_acceleration is [0.0, inf], expected finite numbers from 0 on"),
        ({"period_s": 0.0}, "period_s is 0.0, expected more than 0"),
        ({"period_s": INF}, "period_s is inf, expected more than 0"),
        ({"release_frames": 0}, "release_frames is 0, expected at least 1"),
        ({"safety_distance_m": -0.1}, f"safety_distance_m is -0.1, {NUMBER}"),
        ({"slow_distance_m": NAN}, f"slow_distance_m is nan, {NUMBER}"),
        ({"release_margin_m": INF}, f"release_margin_m is inf, {NUMBER}"),
        ({"stale_after_ns": -1}, f"stale_after_ns is -1, {NUMBER}"),
        ({"max_tilt_rad": -1.0}, f"max_tilt_rad is -1.0, {NUMBER}"),
        ({"stall_after_ns": -1}, f"stall_after_ns is -1, {NUMBER}"),
        ({"stall_wait_ns": -1}, f"stall_wait_ns is -1, {NUMBER}"),
        ({"stall_from": -1.0}, f"stall_from is -1.0, {NUMBER}"),
        ({"period_s": -1.0, "release_frames": 0}, "period_s is -1.0, expected more than 0; release_frames is 0"),
        ({"high": (0.5,), "forward": 3}, "high has 1 elements, low has 2; forward is 3, expected -1 to 1"),
        ({"extra": 1}, "Limits.__init__() got an unexpected keyword argument 'extra'"),
        ({"period_s": "x"}, "'<' not supported between instances of 'int' and 'str'"),
    ],
)
def test_limits_that_nothing_can_be_kept_within_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(LimitsError) as refused:
        Limits.from_map({**asdict(BASE), **changes})
    assert str(refused.value).startswith(f"limits: {problem}")


def test_limits_without_what_they_need_are_refused() -> None:
    with pytest.raises(LimitsError, match=r"^limits: .* missing .*'period_s'$"):
        Limits.from_map({"low": [0.0], "high": [1.0], "safe_action": [0.0]})


FIXED = {"low": (0.0, 1.5), "high": (0.0, 1.5), "safe_action": (0.0, 1.5)}


@pytest.mark.parametrize("edge", [{"forward": -1}, {"forward": 1}, {"release_frames": 1}, {"low": (0.0, 0.0)}, FIXED])
def test_limits_at_the_edge_are_taken(edge: dict[str, object]) -> None:
    assert replace(BASE, **edge)


def test_switching_everything_off_leaves_the_limits() -> None:
    off = dict.fromkeys(("safety_distance_m", "slow_distance_m", "release_margin_m", "max_tilt_rad", "stall_from"), 0.0)
    off |= dict.fromkeys(("stale_after_ns", "stall_after_ns", "stall_wait_ns"), 0)
    robot = Robot(replace(BASE, **off, max_acceleration=(0.0, 0.0), max_jerk=(0.0, 0.0)))
    for _ in range(30):
        verdict = robot.tick((9.0, 0.0), clearance_m=0.0, speed_mps=0.0, roll_rad=3.0)
        assert verdict == Verdict((0.5, 0.0), GATE, Flag.LIMITED, None)
