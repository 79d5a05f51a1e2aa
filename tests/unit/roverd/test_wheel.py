"""Who has the wheel, by a clock that is set by hand."""

import errno

import pytest
from structlog.testing import capture_logs

from roverd.axes import Axes
from roverd.wheel import ABANDON_S, FREE, HELD, LOCKED, Wheel, WheelError
from tests.unit.roverd.steered import ARM, ROVER, Clock, Robot

DEAD_MAN_S = 0.25


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def robot():
    return Robot()


def wheel_of(robot, clock, **more):
    axes = Axes(ROVER, (0.0, 0.0), max_speed_mps=0.3)
    return Wheel(robot, axes, dead_man_s=DEAD_MAN_S, clock=clock, **more)


@pytest.fixture
def wheel(robot, clock):
    return wheel_of(robot, clock)


def test_nobody_has_it_at_first(wheel, robot):
    assert (wheel.state, wheel.owner, wheel.cause, wheel.silent_s, robot.told) == (FREE, "", "", 0.0, [])


def test_whoever_takes_it_stops_the_robot_until_he_commands(wheel, robot):
    assert wheel.take("anna")
    assert robot.told == [((0.0, 0.0), DEAD_MAN_S, True)]
    assert wheel.state == HELD


def test_a_command_counts_for_the_dead_man_time_and_locks_behind_itself(wheel, robot, clock):
    wheel.take("anna")
    assert wheel.drive("anna", (1.0, -0.5))
    assert robot.told[-1] == ((0.3, -0.75), DEAD_MAN_S, True)
    clock.now_s += DEAD_MAN_S - 0.001
    assert wheel.state == HELD
    clock.now_s += 0.002
    assert wheel.state == LOCKED
    assert wheel.cause.startswith("wheel: anna has it and has said nothing for 0.3 s")


def test_a_locked_wheel_stays_locked_however_long(wheel, robot, clock):
    wheel.take("anna")
    told = len(robot.told)
    clock.now_s += 3600
    wheel.watch()
    assert (wheel.state, wheel.owner, len(robot.told)) == (LOCKED, "anna", told)


def test_its_owner_commands_again_and_goes_on(wheel, clock):
    wheel.take("anna")
    clock.now_s += 10
    with capture_logs() as logs:
        wheel.watch()
        assert wheel.drive("anna", (1.0, 0.0))
    assert wheel.state == HELD
    assert [each["event"] for each in logs] == ["wheel.locked", "wheel.resumed"]
    assert wheel.counts["locks"] == 1


def test_a_lock_is_told_once(wheel, clock):
    wheel.take("anna")
    with capture_logs() as logs:
        for _ in range(5):
            clock.now_s += 1
            wheel.watch()
    assert [each["event"] for each in logs] == ["wheel.locked"]


def test_nobody_else_drives_or_lets_go(wheel, robot, clock):
    wheel.take("anna")
    told = len(robot.told)
    for wait_s in (0.0, 10.0):  # held and locked
        clock.now_s += wait_s
        with pytest.raises(WheelError, match="anna has it"):
            wheel.drive("ben", (1.0, 0.0))
        with pytest.raises(WheelError, match="anna has it"):
            wheel.release("ben")
    assert len(robot.told) == told
    with pytest.raises(WheelError, match="nobody has it"):
        wheel_of(robot, clock).drive("ben", (1.0, 0.0))


def test_a_wheel_that_is_held_is_taken_by_force_only(wheel, robot):
    wheel.take("anna")
    with pytest.raises(WheelError, match="anna drives"):
        wheel.take("ben")
    assert wheel.take("ben", by_force=True)
    assert (wheel.owner, wheel.counts["takeovers"]) == ("ben", 1)
    assert robot.told[-1] == ((0.0, 0.0), DEAD_MAN_S, True)
    with pytest.raises(WheelError, match="ben has it"):
        wheel.drive("anna", (1.0, 0.0))


def test_a_locked_wheel_is_taken_without_force(wheel, clock):
    wheel.take("anna")
    clock.now_s += 1
    assert wheel.take("ben")
    assert wheel.owner == "ben"


def test_taking_it_twice_changes_nothing(wheel, robot):
    wheel.take("anna")
    assert not wheel.take("anna")
    assert len(robot.told) == 1
    assert wheel.counts["takes"] == 1


def test_letting_go_lets_the_policy_drive_on(wheel, robot):
    wheel.take("anna")
    assert wheel.release("anna")
    assert robot.told[-1] == "let go"
    assert (wheel.state, wheel.owner) == (FREE, "")
    assert not wheel.release("anna")


def test_force_releases_whoever_has_it(wheel, robot, clock):
    wheel.take("anna")
    clock.now_s += 5
    assert wheel.release("roverctl", by_force=True)
    assert robot.told[-1] == "let go"


def test_a_command_that_hung_in_the_network_is_not_obeyed_and_keeps_nothing_alive(wheel, robot, clock):
    wheel.take("anna")
    told = len(robot.told)
    clock.now_s += 0.3
    assert not wheel.drive("anna", (1.0, 0.0), age_s=DEAD_MAN_S)
    assert (len(robot.told), wheel.state, wheel.counts["stale"]) == (told, LOCKED, 1)


@pytest.mark.parametrize("age_s", [-1.0, 0.0, 0.1, 0.249])
def test_what_a_command_was_under_way_is_taken_off_the_time_that_it_counts(wheel, robot, clock, age_s):
    wheel.take("anna")
    clock.now_s += 0.3
    left_s = DEAD_MAN_S - max(0.0, age_s)
    assert wheel.drive("anna", (1.0, 0.0), age_s=age_s)
    assert robot.told[-1] == ((0.3, 0.0), pytest.approx(left_s), True)
    clock.now_s += left_s - 0.0005
    assert wheel.state == HELD
    clock.now_s += 0.001
    assert wheel.state == LOCKED


def test_a_connection_that_is_lost_stops_the_robot_at_once_and_locks(wheel, robot):
    wheel.take("anna")
    wheel.drive("anna", (1.0, 0.0))
    robot.in_episode = True
    wheel.lose("ben")
    assert wheel.state == HELD
    wheel.lose("anna")
    assert robot.told[-1] == ((0.0, 0.0), 0.0, True)
    assert (wheel.state, wheel.owner) == (LOCKED, "anna")


def test_a_connection_that_is_lost_while_nothing_runs_begins_no_episode(wheel, robot):
    wheel.take("anna")
    told = len(robot.told)
    wheel.lose("anna")
    assert (wheel.state, len(robot.told)) == (LOCKED, told)


def test_an_episode_whose_owner_does_not_come_back_ends_and_the_wheel_stays_locked(wheel, robot, clock):
    wheel.take("anna")
    robot.in_episode = True
    clock.now_s += ABANDON_S
    wheel.watch()
    assert robot.in_episode
    clock.now_s += 0.1
    wheel.watch()
    assert robot.told[-1] == "wheel_locked"
    assert (wheel.state, wheel.owner) == (LOCKED, "anna")


def test_a_robot_that_must_not_move_is_held_all_the_same(wheel, robot):
    robot.moves = False
    wheel.take("anna")
    assert not wheel.drive("anna", (1.0, 0.0))
    assert (wheel.state, wheel.status()["is_obeyed"]) == (HELD, False)


def test_a_robot_in_lock_step_is_not_driven_by_hand(robot, clock):
    wheel = wheel_of(robot, clock, refusal="too fast")
    with pytest.raises(WheelError, match="too fast"):
        wheel.take("anna")
    assert robot.told == []


@pytest.mark.parametrize("owner", ["", "x" * 65, "a\nb", " anna", "ann\u00e4"])
def test_an_owner_has_a_name(wheel, owner):
    with pytest.raises(WheelError, match="is no name"):
        wheel.take(owner)


def test_joints_are_moved_on_from_what_was_commanded_and_from_where_they_are_after_a_lock(clock):
    robot = Robot(3)
    robot.applied_action = (0.5, 0.0, 0.0)
    wheel = Wheel(robot, Axes(ARM, (None, None, 0.0), max_speed_mps=1), dead_man_s=DEAD_MAN_S, clock=clock)
    wheel.take("anna")
    for _ in range(5):  # faster than the robot applies them
        clock.now_s += 0.02
        wheel.drive("anna", (1.0, 0.0, 0.0))
    assert robot.told[-1][0][0] == pytest.approx(0.6)
    clock.now_s += 5
    wheel.watch()
    robot.applied_action = (-1.0, 0.0, 0.0)
    wheel.drive("anna", (0.0, 0.0, 0.0))
    assert robot.told[-1][0][0] == -1.0


class TestRestart:
    """The wheel outlives roverd."""

    def test_it_is_locked_for_who_had_it(self, robot, clock, tmp_path):
        wheel_of(robot, clock, file=tmp_path / "wheel").take("anna")
        robot.told.clear()
        after = wheel_of(robot, clock, file=tmp_path / "wheel")
        assert (after.owner, after.state) == ("anna", LOCKED)
        assert robot.told == []
        assert after.drive("anna", (1.0, 0.0))
        assert robot.told[-1] == ((0.3, 0.0), DEAD_MAN_S, True)

    def test_it_is_free_where_it_was_released(self, robot, clock, tmp_path):
        wheel = wheel_of(robot, clock, file=tmp_path / "wheel")
        wheel.take("anna")
        wheel.release("anna")
        assert wheel_of(robot, clock, file=tmp_path / "wheel").state == FREE

    def test_a_full_disk_keeps_nobody_from_it(self, robot, clock, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("roverd.wheel.write_atomic", full)
        wheel = wheel_of(robot, clock, file=tmp_path / "wheel")
        with capture_logs() as logs:
            assert wheel.take("anna")
        assert wheel.state == HELD
        assert "wheel.unwritten" in [each["event"] for each in logs]


def test_a_collection_hears_of_a_new_owner_before_the_robot_is_told(wheel, robot):
    heard = []
    wheel.on_change = lambda: heard.append((wheel.owner, list(robot.told)))
    wheel.take("anna")
    wheel.release("anna")
    assert heard == [("anna", []), ("", [((0.0, 0.0), DEAD_MAN_S, True)])]
