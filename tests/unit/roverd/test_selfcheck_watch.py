"""While it drives: a sensor that flips or falls silent is told of, and nothing else is."""

from __future__ import annotations

import random

import pytest

from roverd.selfcheck.watch import LEAST_BLOCKS, Block, Watch, block, contradiction
from tests.unit.roverd.recordings import drive

FASTEST = (0.18, 1.5)


def blocks(shares, command=0.1):
    return [Block(command, share * command) for share in shares]


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ([1.0] * 10, ""),
        ([-1.0] * LEAST_BLOCKS, "opposite"),
        ([-1.0] * (LEAST_BLOCKS - 1), ""),
        ([-0.3] * 10, "opposite"),
        ([-0.29] * 10, ""),
        ([-1.0] * 9 + [1.0], "opposite"),
        ([-1.0] * 8 + [1.0] * 2, ""),
        ([0.0] * 10, "does not follow"),
        ([0.099] * 10, "does not follow"),
        ([0.1] * 10, ""),
        ([0.0] * 8 + [0.5] * 2, ""),
        ([-1.0] * 5 + [0.0] * 5, ""),
    ],
)
def test_only_a_clear_contradiction_is_told(shares, word):
    told = contradiction("linear_vel", blocks(shares))
    assert word in told
    assert bool(told) is bool(word)


def test_it_says_what_was_commanded_and_measured():
    told = contradiction("angular_vel", blocks([-0.9] * 8, command=-0.5))
    assert "8 half seconds 0.50 rad/s was commanded and 0.45 was measured" in told


def test_a_block_needs_a_clear_command_and_most_of_its_time():
    samples = drive(0.1, 0.0, ticks=5)
    assert set(block(samples, FASTEST)) == {"linear_vel", "odometry"}
    assert block(samples[:3], FASTEST) == {}, "two tenths of five"
    assert block(drive(0.035, 0.29, ticks=5), FASTEST) == {}, "below a fifth of the fastest on both axes"
    assert set(block(drive(0.036, 0.0, ticks=5), FASTEST)) == {"linear_vel", "odometry"}
    assert block(samples, (0.0, 0.0)) == {}


def feed(watch, samples):
    for sample in samples:
        watch.add(sample)


def test_a_sensor_that_turns_while_driving_is_told_once_and_taken_back_when_it_agrees_again():
    watch = Watch(FASTEST, 5.0)
    feed(watch, drive(0.1, 0.4, ticks=100))
    assert watch.contradictions == {}
    feed(watch, drive(0.1, 0.4, ticks=80, gyro=-1.0, start=100))
    assert list(watch.contradictions) == ["angular_vel"]
    feed(watch, drive(0.1, 0.4, ticks=80, start=180))
    assert watch.contradictions == {}


def test_an_encoder_that_is_pulled_out_is_told():
    watch = Watch(FASTEST, 5.0)
    feed(watch, drive(0.1, 0.0, ticks=60, wheel=0.0, odometry=(0.0, 1.0)))
    assert set(watch.contradictions) == {"linear_vel", "odometry"}
    watch.forget()
    assert watch.contradictions == {}


def test_a_window_of_nothing_looks_at_nothing():
    watch = Watch(FASTEST, 0.0)
    feed(watch, drive(0.1, 0.0, ticks=60, wheel=-1.0))
    assert watch.contradictions == {}


def test_a_robot_at_rest_tells_nothing():
    watch = Watch(FASTEST, 5.0)
    feed(watch, [each._replace(state={"linear_vel": -0.5, "angular_vel": 0.5}) for each in drive(0.0, 0.0, ticks=200)])
    assert watch.contradictions == {}


def test_a_lagging_robot_that_is_steered_at_random_is_never_accused():
    rng, watch = random.Random(1), Watch((0.5, 1.5), 10.0)
    forward = left = speed = turn = 0.0
    for tick in range(20_000):
        if tick % 3 == 0:
            forward, left = rng.uniform(0.0, 0.5), rng.uniform(-1.5, 1.5)
        speed, turn = speed + 0.5 * (forward - speed), turn + 0.5 * (left - turn)
        (sample,) = drive(forward, left, ticks=1, start=tick)
        noisy = {"linear_vel": speed + rng.gauss(0, 0.01), "angular_vel": turn + rng.gauss(0, 0.02)}
        watch.add(sample._replace(state=noisy))
        assert watch.contradictions == {}
