"""Which keys are down, as far as a terminal tells: it says when a key is pressed and repeated, never when it is let go.

So a key counts as held for a time after each time it came. That time is the dead-man time, or, for the first press, as
long as the person asked for: keyboards repeat a key only after a delay (often 500 to 660 ms), and until then a held key
and a tapped one look the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ARROWS = {"A": "w", "B": "s", "C": "d", "D": "a"}
"""The last letter of the escape sequences of the arrow keys, and what they stand for."""
FORGOTTEN_S = 1.0
"""A key that did not come for so long is pressed anew when it comes again."""
ESCAPE = "\x1b"


def split(text: str) -> tuple[list[str], str]:
    """Return the keys in what a terminal sent, arrows as letters, and the rest of a sequence that is not complete."""
    keys = []
    while text:
        if not text.startswith(ESCAPE):
            keys.append(text[0].lower())
            text = text[1:]
            continue
        if len(text) == 1 or (text[1] in "[O" and not (end := _sequence_end(text))):
            return keys, text
        if text[1] in "[O":
            keys += [ARROWS[text[end - 1]]] if end == 3 and text[end - 1] in ARROWS else []
            text = text[end:]
        else:  # Escape, or Alt with a key: the key counts, it may be the emergency stop
            text = text[1:]
    return keys, ""


def _sequence_end(text: str) -> int:
    """Return where an escape sequence ends, 0 where it does not yet."""
    for place, letter in enumerate(text[2:], 2):
        if "@" <= letter <= "~":
            return place + 1
    return 0


class Keyboard:
    """Turn keys into pushes of -1 to 1."""

    def __init__(self, pairs: Sequence[tuple[str, str]], *, hold_s: float, hold_first_s: float = 0.0) -> None:
        """Take a pair of keys (more, less) for each axis, and for how long a key counts as held."""
        self._pairs = pairs
        self._hold_s, self._hold_first_s = hold_s, max(hold_s, hold_first_s)
        self._pressed_s: dict[str, float] = {}
        self._held_until_s: dict[str, float] = {}

    def press(self, key: str, now_s: float) -> bool:
        """Note a key that came, pressed or repeated; False where it moves nothing."""
        if not any(key in pair for pair in self._pairs):
            return False
        is_first = now_s - self._pressed_s.get(key, -FORGOTTEN_S) >= FORGOTTEN_S
        self._pressed_s[key] = now_s
        self._held_until_s[key] = now_s + (self._hold_first_s if is_first else self._hold_s)
        for pair in self._pairs:
            if key in pair:  # the other direction is let go
                other = pair[1] if key == pair[0] else pair[0]
                self._held_until_s.pop(other, None)
        return True

    def let_go(self) -> None:
        """Count every key as let go."""
        self._held_until_s.clear()

    def pushes(self, now_s: float) -> list[float]:
        """Return how far each axis is pushed."""
        return [self._is_held(more, now_s) - self._is_held(less, now_s) for more, less in self._pairs]

    def _is_held(self, key: str, now_s: float) -> float:
        return 1.0 if now_s < self._held_until_s.get(key, now_s) else 0.0

    def held(self, now_s: float) -> Iterator[str]:
        """List the keys that count as held."""
        return (key for key, until_s in self._held_until_s.items() if now_s < until_s)
