import pytest

from trainerd.collection import Collection, Rate


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


class Written:
    def system(self, values, *, step):
        self.values, self.step = values, step


def test_the_rates_of_the_link_are_written_with_the_slowest_rover():
    written = Written()
    collection = Collection(written, clock=lambda: 10.0)
    for tick in range(500):
        collection.steps.count(5.0 + tick / 100)
    collection.write_rates([0.5, 2.0], 1024)
    assert written.values == {"link/steps_per_second": pytest.approx(100, rel=0.05), "link/round_trip_ms": 2.0}
    assert written.step == 1024
    collection.write_rates([], 2048)
    assert list(written.values) == ["link/steps_per_second"]
