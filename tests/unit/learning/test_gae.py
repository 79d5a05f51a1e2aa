import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainerd.learning.gae import TERMINATED, gae

SEGMENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans(), st.integers(0, 2**16)), min_size=1, max_size=8
)


def loop(rewards, values, last, gamma, lam):
    advantage, out = 0.0, []
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(values) else last
        advantage = rewards[t] + gamma * following - values[t] + gamma * lam * advantage
        out.append(advantage)
    return out[::-1]


@given(SEGMENTS, st.floats(0, 1), st.floats(0, 1), st.randoms())
def test_interleaved_segments_equal_the_textbook_loop_on_each(segments, gamma, lam, random):
    rng = np.random.default_rng(segments[0][3])
    order = [index for index, (_, length, _, _) in enumerate(segments) for _ in range(length)]
    random.shuffle(order)
    rows = {index: [row for row, owner in enumerate(order) if owner == index] for index in range(len(segments))}
    reward = rng.normal(size=len(order)).astype(np.float32)
    value = rng.normal(size=len(order) + len(segments)).astype(np.float32)
    successor = np.zeros(len(order), np.int64)
    expected = np.zeros(len(order))
    for index, (_, _, is_terminated, _) in enumerate(segments):
        mine, final = rows[index], len(order) + index
        successor[mine] = [*mine[1:], TERMINATED if is_terminated else final]
        last = 0.0 if is_terminated else value[final]
        expected[mine] = loop(reward[mine], value[mine], last, gamma, lam)
    found = gae(reward, value, successor, gamma=gamma, lam=lam)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_successor_that_is_not_later_is_refused():
    with pytest.raises(ValueError, match="row 1: successor 0"):
        gae(np.zeros(2, np.float32), np.zeros(3, np.float32), np.array([1, 0]), gamma=0.9, lam=0.9)
