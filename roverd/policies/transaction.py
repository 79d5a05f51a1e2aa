"""How one policy goes live, as a state machine: its stages, what may follow which, and how long each may take.

    PULLING -> VERIFYING -> LOADING -> SHADOWING -> READY -> WATCHING -> SETTLED
    VERIFYING -> PULLING where the stored bundle is damaged
    from each of the first five: -> REFUSED (the policy's fault) or -> ABANDONED (not its fault: it may be tried again)
    WATCHING -> ROLLED_BACK

Nothing here waits or sends: roverd/policies/service.py does, and says here how far it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Target:
    """What should drive: a stored policy, or a scripted controller."""

    kind: str
    name: str
    seed: int = 0
    turn: int = 0
    """Counts the wishes to load the same once more."""

    @property
    def is_policy(self) -> bool:
        """True for a policy, which is proved before it drives; a script is not."""
        return self.kind == "policy"


class Stage(Enum):
    """How far a policy is on its way to the wheels."""

    PULLING = "pulling"
    """Its pieces come from the trainer."""
    VERIFYING = "verifying"
    """Hashes, the form of its signature, the specs of robot and task."""
    LOADING = "loading"
    """The standby process loads it, replays its golden frames, warms it up, and measures its latency."""
    SHADOWING = "shadowing"
    """The standby answers live observations; nothing that it says is applied."""
    READY = "ready"
    """It waits for the end of the episode, or with ``--now`` for the next tick."""
    WATCHING = "watching"
    """It drives, and its first decisions are counted."""
    SETTLED = "settled"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    ABANDONED = "abandoned"


FAILURES = {Stage.REFUSED, Stage.ABANDONED}
FOLLOWING = {
    Stage.PULLING: {Stage.VERIFYING, *FAILURES},
    Stage.VERIFYING: {Stage.LOADING, Stage.PULLING, *FAILURES},
    Stage.LOADING: {Stage.SHADOWING, Stage.READY, *FAILURES},
    Stage.SHADOWING: {Stage.READY, *FAILURES},
    Stage.READY: {Stage.WATCHING, Stage.SETTLED, *FAILURES},
    Stage.WATCHING: {Stage.SETTLED, Stage.ROLLED_BACK, Stage.ABANDONED},
}
DEADLINES_S: dict[Stage, float | None] = {
    Stage.PULLING: 600.0,
    Stage.VERIFYING: 30.0,
    Stage.LOADING: 30.0,
    Stage.SHADOWING: 60.0,
    Stage.READY: None,
    Stage.WATCHING: None,
}
"""What takes longer is given up: a link or a disk that hangs, a process that loads for ever, a robot that makes a
decision every ten seconds. READY waits for an episode to end and WATCHING for decisions; a robot at rest makes none."""


class TransactionError(Exception):
    """A stage was left for one that cannot follow it: a mistake in this program."""


@dataclass
class Transaction:
    """One attempt to bring a target to the wheels."""

    target: Target
    began_s: float
    is_now: bool = False
    """True where it was asked for between two ticks; else it waits for the end of the episode."""
    stage: Stage = Stage.PULLING
    entered_s: float = 0.0
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was measured on the way: golden_error, latency_ms, shadowed, late, and the seconds of each stage."""

    def __post_init__(self) -> None:
        """Begin its first stage."""
        self.entered_s = self.began_s

    @property
    def is_under_way(self) -> bool:
        """True until it drives, or is over."""
        return self.stage in FOLLOWING and self.stage is not Stage.WATCHING

    def enter(self, stage: Stage, now_s: float, reason: str = "") -> None:
        """Go on to a stage; raises TransactionError where it cannot follow."""
        if stage not in FOLLOWING.get(self.stage, set()):
            raise TransactionError(f"{self.stage.value} -> {stage.value}")
        self.facts[f"{self.stage.value}_s"] = round(now_s - self.entered_s, 4)
        self.stage, self.entered_s, self.reason = stage, now_s, reason

    def remaining_s(self, now_s: float) -> float | None:
        """Return how long the present stage may still take; None where it may take any time."""
        limit_s = DEADLINES_S.get(self.stage)
        return None if limit_s is None else limit_s - (now_s - self.entered_s)

    @property
    def proof(self) -> dict[str, Any]:
        """What was measured of the policy itself."""
        names = ("golden_error", "latency_ms", "shadowed", "shadow_late")
        return {name: self.facts[name] for name in names if name in self.facts}

    def to_map(self, now_s: float) -> dict[str, Any]:
        """Return what status and ``policy show`` tell of it."""
        end_s = now_s if self.stage in FOLLOWING else self.entered_s
        return {
            "stage": self.stage.value,
            "name": self.target.name,
            "kind": self.target.kind,
            "now": self.is_now,
            "seconds": round(end_s - self.began_s, 3),
            "reason": self.reason,
            **self.facts,
        }
