import numpy as np
import pytest
import torch

from protocol.spec import Element
from trainerd.learning.distributions import (
    Categorical,
    SquashedGaussian,
    entropy,
    log_prob,
    log_prob_numpy,
    squash,
    unsquash,
)

ACTION = (Element("linear", "m/s", 0.0, 0.5), Element("angular", "rad/s", -1.5, 1.5))


def test_log_prob_is_that_of_torchs_normal_and_equal_in_numpy():
    u, mean, log_std = torch.randn(5, 2), torch.randn(5, 2), torch.tensor([-0.5, 0.2])
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(u).sum(-1)
    torch.testing.assert_close(log_prob(u, mean, log_std), expected)
    ours = log_prob_numpy(u.numpy(), mean.numpy(), log_std.numpy())
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("std", [0.3, 0.9])
def test_entropy_is_close_to_that_of_many_squashed_draws(std):
    torch.manual_seed(0)
    mean, log_std = torch.tensor([[0.7, -0.2]]), torch.full((2,), std).log()
    u = mean + std * torch.randn(200_000, 2)
    log_slope = torch.log1p(-(torch.tanh(u) ** 2)).sum(-1)
    drawn = -(log_prob(u, mean, log_std) - log_slope).mean()
    assert entropy(mean, log_std).item() == pytest.approx(drawn.item(), abs=0.02)


def test_squash_and_unsquash_are_inverse_within_the_limits():
    u = np.array([[0.5, -1.0]], np.float32)
    action = squash(u, ACTION)
    assert 0.0 <= action[0, 0] <= 0.5
    np.testing.assert_allclose(unsquash(action, ACTION), u, rtol=1e-4)
    assert np.isfinite(unsquash(np.array([0.5, -1.5], np.float32), ACTION)).all()


def test_a_categorical_is_torchs():
    torch.manual_seed(0)
    logits, other, u = torch.randn(5, 4), torch.randn(5, 4), torch.eye(4)[[0, 3, 1, 2, 2]]
    none = torch.zeros(4)
    theirs, p = torch.distributions.OneHotCategorical(logits=logits), Categorical()
    torch.testing.assert_close(p.log_prob(u, logits, none), theirs.log_prob(u))
    torch.testing.assert_close(p.entropy(logits, none), theirs.entropy())
    expected = torch.distributions.kl_divergence(theirs, torch.distributions.OneHotCategorical(logits=other))
    torch.testing.assert_close(p.kl(logits, none, other, none), expected)
    np.testing.assert_allclose(p.log_prob_numpy(u.numpy(), logits.numpy(), none.numpy()), theirs.log_prob(u), rtol=1e-5)


def test_the_kl_of_two_gaussians_is_torchs():
    torch.manual_seed(0)
    mean, log_std, other = torch.randn(5, 2), torch.randn(5, 2), torch.randn(5, 2)
    normals = [torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_std), (other, 0.5 * log_std))]
    expected = torch.distributions.kl_divergence(*normals).sum(-1)
    torch.testing.assert_close(SquashedGaussian().kl(mean, log_std, other, 0.5 * log_std), expected)
