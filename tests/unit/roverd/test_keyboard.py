"""Keys of a terminal, which never says that one is let go."""

import pytest

from roverd.keyboard import Keyboard, split

PAIRS = [("w", "s"), ("a", "d")]


@pytest.mark.parametrize(
    ("text", "keys", "rest"),
    [
        ("wW", ["w", "w"], ""),
        ("\x1b[A\x1b[B\x1b[C\x1b[D", ["w", "s", "d", "a"], ""),
        ("\x1bOA", ["w"], ""),
        ("\x1b", [], "\x1b"),
        ("\x1b[", [], "\x1b["),
        ("\x1b[1;5", [], "\x1b[1;5"),
        ("\x1b[1;5Aq", ["q"], ""),
        ("\x1b[3~e", ["e"], ""),
        ("\x1be", ["e"], ""),
        ("", [], ""),
    ],
)
def test_sequences_become_keys(text, keys, rest):
    assert split(text) == (keys, rest)


def test_a_sequence_in_pieces_is_put_together():
    keys, rest = split("w\x1b")
    assert (keys, split(rest + "[A")) == (["w"], (["w"], ""))


def test_a_key_counts_for_the_dead_man_time_after_it_came():
    keyboard = Keyboard(PAIRS, hold_s=0.25)
    assert keyboard.press("w", 10.0)
    assert keyboard.pushes(10.24) == [1.0, 0.0]
    assert keyboard.pushes(10.25) == [0.0, 0.0]


def test_repeats_keep_it_and_two_keys_add_up():
    keyboard = Keyboard(PAIRS, hold_s=0.25)
    for tenth in range(10):
        keyboard.press("w", tenth / 10)
    keyboard.press("d", 0.95)
    assert keyboard.pushes(1.0) == [1.0, -1.0]
    assert list(keyboard.held(1.0)) == ["w", "d"]


def test_only_the_first_press_is_held_longer_and_only_where_that_was_asked_for():
    keyboard = Keyboard(PAIRS, hold_s=0.25, hold_first_s=0.6)
    keyboard.press("w", 10.0)
    assert keyboard.pushes(10.59) == [1.0, 0.0]
    keyboard.press("w", 10.59)
    assert keyboard.pushes(10.85) == [0.0, 0.0]
    keyboard.press("w", 20.0)
    assert keyboard.pushes(20.5) == [1.0, 0.0]


def test_the_other_direction_and_the_space_bar_let_go():
    keyboard = Keyboard(PAIRS, hold_s=0.25)
    keyboard.press("w", 0.0)
    keyboard.press("s", 0.1)
    assert keyboard.pushes(0.15) == [-1.0, 0.0]
    keyboard.let_go()
    assert keyboard.pushes(0.15) == [0.0, 0.0]


def test_other_keys_move_nothing():
    keyboard = Keyboard([*PAIRS, ("", "")], hold_s=0.25)
    assert not keyboard.press("z", 0.0)
    assert keyboard.pushes(0.0) == [0.0, 0.0, 0.0]
