import pytest

from trainerd.collection import Rate


def test_a_steady_rate_is_told_as_it_is_for_as_long_as_it_lasts():
    rate = Rate(10.0)
    for tick in range(10_000):
        rate.count(tick / 100)
        if tick > 1000 and tick % 97 == 0:
            assert rate.per_second(tick / 100) == pytest.approx(100, rel=0.05)


def test_a_rate_falls_to_nothing_within_the_window():
    rate = Rate(10.0)
    for tick in range(1000):
        rate.count(tick / 100)
    assert rate.per_second(15.0) == pytest.approx(50, rel=0.05)
    assert rate.per_second(20.1) == 0.0
    rate.count(100.0)
    assert rate.per_second(100.5) == 1.0


def test_nothing_counted_is_no_rate():
    assert Rate().per_second(5.0) == 0.0
