"""The distribution of actions that a policy's network describes: one definition for the robot and the audit.

A network gives one number per action element. For a robot with a continuous action space that is the mean of u, and the
action is tanh(u) stretched to the element's range; for one with a discrete action space it is the logit of a choice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from protocol.spec import RobotSpec

Floats = npt.NDArray[np.floating]
LOG_2PI = math.log(2 * math.pi)
SQUASHED_GAUSSIAN, CATEGORICAL = "squashed_gaussian", "categorical"
KINDS = (SQUASHED_GAUSSIAN, CATEGORICAL)
REACHED_SHARE = 0.999
"""Share of an action's range beyond which a demonstrated action is not told apart: tanh reaches 1 nowhere."""


class Distribution(Protocol):
    """Vectors have one entry per action element; arithmetic is that of the arguments' dtype."""

    kind: str
    """As ``Behaviour.kind`` names it."""

    def sample(self, mean: Floats, log_std: Floats, generator: np.random.Generator) -> Floats:
        """Draw u."""

    def mode(self, mean: Floats) -> Floats:
        """Return the u of the deterministic policy."""

    def action(self, u: Floats) -> Floats:
        """Return the action of u, in the units of RobotSpec.action."""

    def u_of(self, action: Floats) -> Floats:
        """Return the u whose action this is, as near as there is one."""

    def log_prob(self, u: Floats, mean: Floats, log_std: Floats) -> float:
        """Return the log-density (or log-probability) of u that Behaviour defines."""


class SquashedGaussian:
    """N(mean, exp(log_std)) over u; action = low + (tanh(u) + 1) / 2 x (high - low)."""

    kind = SQUASHED_GAUSSIAN

    def __init__(self, robot: RobotSpec) -> None:
        """Take the ranges of the robot's actions."""
        self._low = np.array([e.low for e in robot.action], np.float64)
        self._span = np.array([e.high - e.low for e in robot.action], np.float64)

    def sample(self, mean: Floats, log_std: Floats, generator: np.random.Generator) -> Floats:
        """Draw u."""
        drawn: Floats = mean + np.exp(log_std) * generator.standard_normal(len(mean))
        return drawn

    def mode(self, mean: Floats) -> Floats:
        """Return the mean."""
        return mean

    def action(self, u: Floats) -> Floats:
        """Return the squashed and stretched u."""
        squashed: Floats = self._low + (np.tanh(u) + 1) * 0.5 * self._span
        return squashed

    def u_of(self, action: Floats) -> Floats:
        """Return u of an action in its units; an action at its limits is taken a little inside."""
        share = 2.0 * (action - self._low) / self._span - 1.0
        u: Floats = np.arctanh(np.clip(share, -REACHED_SHARE, REACHED_SHARE))
        return u

    def log_prob(self, u: Floats, mean: Floats, log_std: Floats) -> float:
        """Return log N(u; mean, exp(log_std)), without the Jacobian of tanh."""
        scaled = (u - mean) * np.exp(-log_std)
        return float(-0.5 * (scaled @ scaled) - log_std.sum() - 0.5 * len(scaled) * LOG_2PI)


class Categorical:
    """Softmax over logits; u and the action are the choice as one-hot vector."""

    kind = CATEGORICAL

    def sample(self, mean: Floats, log_std: Floats, generator: np.random.Generator) -> Floats:  # noqa: ARG002 - the protocol passes it
        """Draw a choice: the largest of the logits with Gumbel noise (Gumbel 1954)."""
        return self.mode(mean + generator.gumbel(size=len(mean)))

    def mode(self, mean: Floats) -> Floats:
        """Return the likeliest choice, the first of several."""
        chosen = np.zeros(len(mean), mean.dtype)
        chosen[int(np.argmax(mean))] = 1
        return chosen

    def action(self, u: Floats) -> Floats:
        """Return the choice itself."""
        return u

    def u_of(self, action: Floats) -> Floats:
        """Return the choice that an action is nearest to."""
        return self.mode(action)

    def log_prob(self, u: Floats, mean: Floats, log_std: Floats) -> float:  # noqa: ARG002 - the protocol passes it
        """Return the log-probability of the choice."""
        largest = mean.max()
        return float(mean @ u - largest - np.log(np.exp(mean - largest).sum()))


def distribution_of(robot: RobotSpec) -> Distribution:
    """Return the distribution that a robot's action space calls for."""
    return Categorical() if robot.is_discrete else SquashedGaussian(robot)
