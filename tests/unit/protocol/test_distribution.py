"""What a policy's network describes: a squashed Gaussian over continuous actions, a choice among discrete ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.distribution import distribution_of
from protocol.spec import Element, RobotSpec, SpecError
from tests.unit.protocol.samples import ROBOT

CHOICES = tuple(Element(f"choice_{i}", "", 0.0, 1.0) for i in range(3))
CHOOSER = replace(ROBOT, action=CHOICES, action_space="discrete")
LOGITS = np.log(np.array([0.2, 0.5, 0.3]))
ZEROS = np.zeros(3)


def test_choices_are_drawn_as_often_as_the_softmax_says() -> None:
    chooser, generator = distribution_of(CHOOSER), np.random.default_rng(1)
    drawn = sum(chooser.sample(LOGITS + 7.0, ZEROS, generator) for _ in range(20_000)) / 20_000
    np.testing.assert_allclose(drawn, [0.2, 0.5, 0.3], atol=0.015)


def test_a_choice_is_one_hot_and_its_log_prob_that_of_the_softmax() -> None:
    chooser = distribution_of(CHOOSER)
    for index, share in enumerate((0.2, 0.5, 0.3)):
        choice = np.eye(3)[index]
        assert chooser.log_prob(choice, LOGITS - 3.0, ZEROS) == pytest.approx(np.log(share))
        np.testing.assert_array_equal(chooser.action(choice), choice)
    np.testing.assert_array_equal(chooser.mode(LOGITS), [0, 1, 0])
    np.testing.assert_array_equal(chooser.u_of(np.array([0.1, 0.2, 0.9])), [0, 0, 1])


def test_huge_logits_have_a_finite_log_prob() -> None:
    assert np.isfinite(distribution_of(CHOOSER).log_prob(np.eye(3)[0], np.array([900.0, -900.0, 0.0]), ZEROS))


def test_an_action_of_a_gaussian_is_within_its_range_and_comes_back() -> None:
    gaussian, generator = distribution_of(ROBOT), np.random.default_rng(1)
    for _ in range(100):
        action = gaussian.action(gaussian.sample(np.zeros(2), np.zeros(2), generator))
        assert all(e.low <= value <= e.high for e, value in zip(ROBOT.action, action, strict=True))
        np.testing.assert_allclose(gaussian.action(gaussian.u_of(action)), action, atol=2e-3)


def test_a_continuous_action_space_keeps_the_hash_of_specs_from_before_there_were_others() -> None:
    assert "action_space" not in ROBOT.to_map()
    assert RobotSpec.from_map(CHOOSER.to_map()) == CHOOSER
    assert CHOOSER.differences(replace(CHOOSER, action_space="continuous")) == [
        "action_space: discrete here, None there"
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action": CHOICES[:1]}, "two or more choices"),
        ({"action": ROBOT.action}, "two or more choices"),
        ({"action_space": "both"}, "none of continuous, discrete"),
    ],
)
def test_an_impossible_action_space_is_refused(changes, text) -> None:
    with pytest.raises(SpecError, match=text):
        replace(CHOOSER, **changes)
