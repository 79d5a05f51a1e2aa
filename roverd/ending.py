"""Why an episode ends: the task's outcome, a person's word above it, or something that stops the robot."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.moment import RUNNING, Outcome

FINISHED = {"terminated", "truncated"}
"""Ends of an episode that was driven to its end; others cut it off."""


@dataclass(frozen=True)
class Ending:
    """How an episode ended."""

    reason: str
    outcome: Outcome
    is_discarded: bool = False

    @property
    def kind(self) -> str:
        """The reason as records name it."""
        return self.reason if self.reason in FINISHED | {"fault"} else "stopped"

    @property
    def is_finished(self) -> bool:
        """False where the episode was only cut off."""
        return self.reason in FINISHED

    @property
    def verdict(self) -> str | None:
        """Success, failure, discard, or None where the episode was only cut off."""
        if self.is_discarded:
            return "discard"
        if not self.is_finished:
            return None
        return "success" if self.outcome.success else "failure"


class Stop:
    """What was said to end the running episode; it ends at its next tick."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self.reason = ""
        """Why the episode shall end; empty while it may run."""
        self._success: bool | None = None

    def finish(self, success: bool | None) -> None:  # noqa: FBT001 - the verdict itself
        """Take a person's word; None discards the episode."""
        self._success = success
        self.reason = "discard" if success is None else "person"

    def judged(self, outcome: Outcome) -> Outcome:
        """Let a person's word stand above the task's."""
        if self.reason == "discard":
            return RUNNING
        if self.reason != "person" or self._success is None:
            return outcome
        return Outcome(terminated=True, truncated=False, success=self._success, reason="person")
