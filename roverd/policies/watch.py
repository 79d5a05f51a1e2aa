"""Watch the first decisions of a policy that drives, against those of the policy before it."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from protocol.step import Intervention
from roverd.control import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

DANGER = Intervention.FORWARD_STOP | Intervention.TILTED | Intervention.STALLED
"""What safety does because of where the robot is going. Limits of speed, ramps and slowing down near obstacles are no
danger: many a good policy asks for more than it may have, on every tick."""
NOT_ITS_OWN = Intervention.HUMAN | Intervention.E_STOP | Intervention.WHEEL_LOCKED | Intervention.TOOK_OVER
"""Decisions that say nothing about the policy: somebody else drives, or the clock changed hands."""
BAD_INPUT = Intervention.STALE | Intervention.FROZEN | Intervention.NON_FINITE | Intervention.ACTUATOR_FAILED
"""Decisions on which a sensor or an actuator failed, unless it is the policy's own action that is not finite."""
UNANSWERED = Intervention.MISSED | Intervention.FAILOVER
LEAST = 8
"""A share of fewer decisions is chance."""


class Seen(NamedTuple):
    """What became of one decision."""

    is_missed: bool
    is_danger: bool
    """Safety had to step in."""
    may_be_stopped: bool
    """Safety may step in: the policy learns, or is measured as it is."""


class Shares(NamedTuple):
    """What became of a number of decisions."""

    decisions: int
    missed: float
    danger: float


def shares(seen: Iterable[Seen]) -> Shares:
    """Count."""
    rows = list(seen)
    count = max(1, len(rows))
    return Shares(len(rows), sum(row.is_missed for row in rows) / count, sum(row.is_danger for row in rows) / count)


class Watch:
    """Keep the newest decisions of what drives; while a policy is new, say when it must not go on."""

    def __init__(self, window: int, *, late_share: float, rise: float) -> None:
        """Look at the first ``window`` decisions of a policy; 0 never rolls back."""
        self._window, self._late_share, self._rise = window, late_share, rise
        self._recent: deque[Seen] = deque(maxlen=max(window, LEAST))
        self._before: Shares | None = None
        self.left = 0
        """Decisions that are still to be watched."""
        self.last_s = -math.inf
        """When the newest decision was seen."""

    def begin(self, *, is_watched: bool) -> None:
        """Another policy drives from now on; what the one before did is what it is compared with."""
        past = shares(self._recent)
        self._before = past if past.decisions >= LEAST else None
        self._recent.clear()
        self.left = self._window if is_watched else 0

    def see(self, applied: wire.Applied, now_s: float, *, may_be_stopped: bool = False) -> str:
        """Count a decision; return why the policy must not go on, or an empty text.

        Where it ``may_be_stopped`` by safety, however often, that is not held against it: a policy that learns has to
        drive against walls, and one that is evaluated may be weak.
        """
        flags = Intervention(applied.interventions)
        is_nonsense = applied.has & wire.HAS_POLICY and not all(map(math.isfinite, applied.policy_action))
        if applied.tick_in_decision or flags & NOT_ITS_OWN or (flags & BAD_INPUT and not is_nonsense):
            return ""
        self.last_s = now_s
        self._recent.append(Seen(bool(flags & UNANSWERED), bool(flags & DANGER), may_be_stopped))
        if not self.left:
            return ""
        self.left -= 1
        reason = "it proposed an action that is not finite" if is_nonsense else self._judge()
        if reason:
            self.left = 0
        return reason

    def _judge(self) -> str:
        now, before = shares(self._recent), self._before or Shares(0, 0.0, 0.0)
        allowed = self._late_share + before.missed
        missed = round(now.missed * now.decisions)
        if missed > allowed * self._window:
            was = f"{before.missed:.0%} before" if self._before else "none before it"
            return f"{missed} of {now.decisions} decisions had no answer in time ({was})"
        judged = shares(row for row in self._recent if not row.may_be_stopped)
        is_enough = judged.decisions >= min(LEAST, self._window) and self._before is not None
        if self.left == 0 and is_enough and judged.danger > before.danger + self._rise:
            share = f"{judged.danger:.0%} of its decisions, {before.danger:.0%} of those before"
            return f"safety stepped in at {share}; at most {self._rise:.0%} more is allowed"
        return ""

    @property
    def facts(self) -> dict[str, float | int]:
        """What was counted, for status."""
        now = shares(self._recent)
        facts: dict[str, float | int] = {
            "watched": now.decisions,
            "missed_share": round(now.missed, 3),
            "intervention_share": round(now.danger, 3),
        }
        if self._before is not None:
            facts["missed_share_before"] = round(self._before.missed, 3)
            facts["intervention_share_before"] = round(self._before.danger, 3)
        return facts
