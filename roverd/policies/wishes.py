"""What should drive: the trainer's offers, an order's own choice, a person's word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from roverd.policies.transaction import Target

if TYPE_CHECKING:
    from collections.abc import Sequence


class Wishes:
    """The standing choice, an order's choice above it, and whether a person cannot wait for the episode's end."""

    def __init__(self, overruled: str) -> None:
        """Want nothing; take what a person had overruled before the restart."""
        self.standing: Target | None = None
        self._order: Target | None = None
        self._now: Target | None = None
        self.offered = ""
        """What the trainer wants, whether it may drive here or not."""
        self.overruled = overruled
        """What the trainer wanted when a person chose another policy; it has no say until it wants a newer one."""

    @property
    def target(self) -> Target | None:
        """What should drive."""
        return self._order or self.standing

    @property
    def is_ordered(self) -> bool:
        """True while an order says what drives."""
        return self._order is not None

    def is_now(self, target: Target) -> bool:
        """Say whether a target was asked for between two ticks."""
        return self._now == target

    def want(self, policy_id: str, loaded: Sequence[Target | None], *, now: bool = False) -> None:
        """Make a policy the standing choice; one that is loaded already is taken as it is."""
        if self.standing is None or self.standing.name != policy_id:
            self.standing = _as_loaded(Target("policy", policy_id), loaded)
        if now:
            self._now = self.standing

    def order(self, target: Target | None, loaded: Sequence[Target | None]) -> None:
        """Let an order choose; None returns to the standing choice."""
        self._order = _as_loaded(target, loaded) if target is not None else None

    def hurry(self) -> None:
        """Let the target drive from the next tick on, once it is ready: what drives must not."""
        self._now = self.target

    def swapped(self) -> None:
        """Take it that a person's haste is satisfied: what is lost later comes back at the next episode."""
        self._now = None

    def overrule(self, policy_id: str) -> None:
        """Take a person's word for a policy above the trainer's present wish."""
        self.overruled = self.offered if self.offered != policy_id else ""

    def heed_trainer(self, loaded: Sequence[Target | None]) -> None:
        """Want again what a person had overruled."""
        overruled, self.overruled = self.overruled, ""
        if overruled:
            self.want(overruled, loaded)

    def again(self, *, now: bool) -> Target | None:
        """Want the target once more although it may drive already; return it."""
        target = self.target
        if target is None:
            return None
        again = replace(target, turn=target.turn + 1)
        if self._order is not None:
            self._order = again
        else:
            self.standing = again
        self._now = again if now else None
        return again


def _as_loaded(target: Target, loaded: Sequence[Target | None]) -> Target:
    """Return what is loaded where it is the same but for the count of wishes."""
    for each in loaded:
        if each is not None and replace(each, turn=target.turn) == target:
            return each
    return target
