"""How a stick or a pair of keys moves an action element, so that one client drives any robot.

A client says how far each axis is pushed, -1 to 1, in the order of RobotSpec.action; here this becomes an action in
the robot's own units and limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import Element, RobotSpec

FORWARD, TURN = "forward", "turn"
_ROLES = (("linear", FORWARD), ("angular", TURN))
JOG_S = 4.0
"""How long a fully pushed axis takes to move a held element (a joint) through its whole range."""
LARGEST_PUSH = 1e6
"""What is beyond it is no push that was meant; up to it, more than 1 counts as 1."""
LONGEST_JOG_S = 0.25
"""No single command moves a held element further than this much time does, however long nothing was said."""
KEYS = (("w", "s"), ("a", "d"), ("t", "g"), ("y", "h"), ("u", "j"), ("i", "k"), ("o", "l"))
"""Pairs of keys, more and less: the forward axis has the first, the turning one the second, others what is left."""


class AxisError(RoverError):
    """A client pushed axes that the robot does not have, or by no number."""


@dataclass(frozen=True)
class Axis:
    """One action element as a client moves it."""

    name: str
    unit: str
    role: str
    """forward, turn, or empty for an element that is neither."""
    low: float
    high: float
    is_jogged: bool
    """The element is held where it is (a joint): pushing moves it on. Else (a velocity) pushing is the command."""
    keys: tuple[str, str]

    def follow(self, push: float, *, held: float, seconds: float) -> float:
        """Return the command for a push of -1 to 1, where the element was commanded ``held`` some seconds ago."""
        push = min(max(push, -1.0), 1.0)
        if self.is_jogged:
            wanted = held + push * (self.high - self.low) / JOG_S * min(seconds, LONGEST_JOG_S)
        else:
            wanted = push * self.high if push > 0 else -push * self.low
        return min(max(wanted, self.low), self.high)

    def to_map(self) -> dict[str, Any]:
        """Return what a client shows of it."""
        return {
            **{key: getattr(self, key) for key in ("name", "unit", "role", "low", "high", "is_jogged")},
            "keys": list(self.keys),
        }


class Axes:
    """All axes of a robot."""

    def __init__(self, spec: RobotSpec, safe_action: Sequence[float | None], *, max_speed_mps: float) -> None:
        """Read them off a spec: elements called linear... are driven forward, angular... turned.

        ``safe_action`` has None for the elements that are held; linear ones are limited to ``max_speed_mps``.
        """
        roles = _roles(spec.action)
        keys = _keys(roles)
        self._axes = tuple(
            _axis(element, role, each_keys, is_jogged=safe is None, max_speed_mps=max_speed_mps)
            for element, role, each_keys, safe in zip(spec.action, roles, keys, safe_action, strict=True)
        )

    def __len__(self) -> int:
        """Return how many action elements there are."""
        return len(self._axes)

    def check(self, pushes: object) -> tuple[float, ...]:
        """Return a client's pushes as numbers; raises AxisError, which names what is wrong."""
        names = ", ".join(axis.name for axis in self._axes)
        is_list = isinstance(pushes, list | tuple) and len(pushes) == len(self._axes)
        if not isinstance(pushes, list | tuple) or not is_list:
            raise AxisError(f"axes: {pushes!r:.60} is not a list of {len(self._axes)} numbers ({names})")
        if not all(isinstance(each, int | float) and abs(each) <= LARGEST_PUSH for each in pushes):  # NaN is not either
            raise AxisError(f"axes: {pushes!r:.60} is not a list of numbers of -1 to 1 ({names})")
        return tuple(float(each) for each in pushes)

    def action(self, pushes: Sequence[float], *, held: Sequence[float], seconds: float) -> tuple[float, ...]:
        """Return the action for pushes; ``held`` is the action before, given ``seconds`` ago."""
        return tuple(
            axis.follow(push, held=each, seconds=seconds)
            for axis, push, each in zip(self._axes, pushes, held, strict=True)
        )

    def rest(self, held: Sequence[float]) -> tuple[float, ...]:
        """Return the action of axes that nobody pushes: velocities 0, held elements where they are."""
        return self.action((0.0,) * len(self), held=held, seconds=0.0)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the axes as a client shows them."""
        return [axis.to_map() for axis in self._axes]


def _roles(elements: Sequence[Element]) -> list[str]:
    """Give the first linear element the forward axis and the first angular one the turning axis."""
    roles = [""] * len(elements)
    for prefix, role in _ROLES:
        for place, element in enumerate(elements):
            if element.name.startswith(prefix) and not roles[place]:
                roles[place] = role
                break
    return roles


def _keys(roles: Sequence[str]) -> list[tuple[str, str]]:
    """Give out the pairs of keys; a robot with more elements than there are pairs has some without."""
    wanted = {FORWARD: KEYS[0], TURN: KEYS[1]}
    left = [pair for pair in KEYS if pair not in {wanted[role] for role in roles if role}]
    return [wanted[role] if role else left.pop(0) if left else ("", "") for role in roles]


def _axis(element: Element, role: str, keys: tuple[str, str], *, is_jogged: bool, max_speed_mps: float) -> Axis:
    low, high = element.low, element.high
    if element.name.startswith("linear"):
        low, high = max(low, -max_speed_mps), min(high, max_speed_mps)
    return Axis(element.name, element.unit, role, low, high, is_jogged, keys)
