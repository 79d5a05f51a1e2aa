"""What a demo run has come to: the figures of its JSON file, from what both daemons say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Status = dict[str, Any]


@dataclass
class Evidence:
    """Everything a demo run learned about itself; times are seconds on a monotonic clock."""

    seed: int
    task: str = "goal"
    began_s: float = 0.0
    first_step_s: float | None = None
    learned_s: float | None = None
    """When the budget was used up."""
    trainer: Status = field(default_factory=dict)
    """Newest status of trainerd."""
    rover: Status = field(default_factory=dict)
    """Newest status of roverd."""
    learned_trainer: Status = field(default_factory=dict)
    """Status of trainerd at ``learned_s``: what comes later is evaluation, not learning."""
    learned_rover: Status = field(default_factory=dict)
    evaluations: dict[str, Status] = field(default_factory=dict)
    """Finished evaluations by what was asked for: latest, random, reactive."""

    def see(self, trainer: Status, rover: Status, now_s: float) -> None:
        """Take in one status of each daemon."""
        self.trainer, self.rover = trainer, rover
        if self.first_step_s is None and number(trainer, "steps", "received") > 0:
            self.first_step_s = now_s
        if self.learned_s is None and is_learned(trainer):
            self.learned_s = now_s
            self.learned_trainer, self.learned_rover = trainer, rover

    @property
    def is_finished(self) -> bool:
        """True when the budget is used up."""
        return self.learned_s is not None


def is_learned(trainer: Status) -> bool:
    """Tell whether trainerd has used up its budget."""
    return trainer.get("state") == "finished"


def number(status: Status, *path: str) -> float:
    """Return a number at a place of a status, 0 where it is not there yet."""
    value: Any = status
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


def report(evidence: Evidence, now_s: float) -> dict[str, Any]:
    """Return the content of the JSON file; keys are only ever added."""
    trainer = evidence.learned_trainer or evidence.trainer
    rover = evidence.learned_rover or evidence.rover
    ended_s = evidence.learned_s if evidence.learned_s is not None else now_s
    wall_s = ended_s - evidence.first_step_s if evidence.first_step_s is not None else 0.0
    decisions = int(number(trainer, "decisions"))
    last = evidence.trainer or trainer
    return {
        "seed": evidence.seed,
        "task": evidence.task,
        "finished": evidence.is_finished,
        "wall_seconds": round(wall_s, 3),
        "total_seconds": round(now_s - evidence.began_s, 3),
        "steps": int(number(trainer, "steps", "received")),
        "decisions": decisions,
        "episodes": int(number(rover, "episodes")),
        "updates": int(number(trainer, "updates")),
        "decisions_per_second": round(decisions / wall_s, 2) if wall_s > 0 else 0.0,
        "policies_exported": int(number(trainer, "policy", "exports")),
        "policies_swapped": int(number(rover, "swaps")),
        "success": [
            {"decision": int(each["decision"]), "rate": float(each["rate"]), "n": int(each["n"])}
            for each in trainer.get("success_history") or []
        ],
        "final": result(evidence.evaluations.get("latest")),
        "random": result(evidence.evaluations.get("random")),
        "reactive": result(evidence.evaluations.get("reactive")),
        "lost_steps": int(number(last, "steps", "lost")),
        "duplicate_steps": int(number(last, "steps", "duplicates")),
        "stale_steps": int(number(last, "steps", "stale")),
        "update_to_driving_seconds": number(trainer, "policy", "update_to_driving_s", "max"),
    }


def result(evaluation: Status | None) -> dict[str, Any] | None:
    """Return what an evaluation showed, with ``policy``: a policy's id or a controller's name; None without one."""
    if not evaluation or not evaluation.get("result"):
        return None
    return {"policy": evaluation.get("policy_id") or evaluation.get("policy") or "", **evaluation["result"]}


def summary(figures: dict[str, Any]) -> str:
    """Return the outcome in a few lines for people."""
    swaps, slowest = figures["policies_swapped"], figures["update_to_driving_seconds"]
    faults = ", ".join(f"{figures[f'{name}_steps']} {name}" for name in ("lost", "duplicate", "stale"))
    rate = f"{figures['decisions_per_second']:.0f} decisions/s"
    lines = [
        f"{figures['decisions']:,} decisions in {figures['updates']} updates, {figures['wall_seconds']:.0f} s, {rate}",
        f"{swaps} policies swapped in; a finished update drove the rover at most {slowest:.2f} s later",
        f"{figures['steps']:,} steps received, {faults}",
    ]
    names = {"final": "learned", "reactive": "reactive", "random": "random"}
    lines += [f"{label:<9} {percent(figures[key])}" for key, label in names.items() if figures[key]]
    return "\n".join(lines)


def percent(outcome: dict[str, Any]) -> str:
    """Return a success rate with its interval, such as ``85.0 % success (81.2-88.2 %, 400 arenas)``."""
    rate, low, high = (100 * outcome[key] for key in ("success", "low", "high"))
    return f"{rate:.1f} % success ({low:.1f}-{high:.1f} %, {outcome['n']} arenas)"
