"""What the checks found: how often each was made, left out for a reason, or failed, and the first failure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

CHECKS = {
    "order.crc": "every record of the file matches its checksum and can be decoded",
    "order.catalogue": "the catalogue says of the episode what its file says",
    "order.seq": "seq and episode_step rise by one, and every record belongs to the episode",
    "order.time": "ticks and observations follow each other at the recorded times",
    "order.rate": "few ticks are later than the control period says",
    "order.age": "the ages of sensor readings are possible, and stale ones are flagged",
    "successor.action": "the action in flight of a step is the one applied in the step before, to the bit",
    "successor.tick": "no control tick is missing between a step and its successor",
    "successor.end": "the end of a segment follows its last step and holds what the next step saw",
    "successor.decision": "decisions count up by one and are held for action_repeat ticks",
    "successor.reward": "the reward is the sum of its terms, the return the sum of the rewards",
    "successor.state": "state elements are finite, in range, and do not jump beyond what commands can do",
    "applied.source": "the applied action is that of whom the record names as its source, within the limits",
    "applied.gain": "the measured speed has the sign and the size of the applied command",
    "applied.follow": "changes of the measured speed are explained by the applied commands",
    "applied.cause": "the measured speed answers commands of before, not of after",
    "frames.size": "images decode to the declared height and width",
    "frames.layout": "rows and columns of an image are not swapped in memory",
    "frames.frozen": "images change while the robot moves",
    "frames.blank": "images show something",
    "frames.time": "color and depth of a camera belong together in time",
    "policy.mean": "the stored policy gives the recorded mean for the stored observation",
    "policy.log_prob": "log_prob is the density of u under the recorded mean and log_std",
    "policy.action": "the policy's action is the recorded u, squashed into the action limits",
}
"""Every check by its stable id, in the order in which they are reported."""


@dataclass(frozen=True)
class Offence:
    """One place where a check failed; ``seq`` is that of the record, ``numbers`` are what was compared."""

    check: str
    seq: int
    what: str
    numbers: dict[str, float] = field(default_factory=dict)
    path: str = ""
    rover_id: str = ""
    boot_id: str = ""
    episode_id: int = -1

    def to_map(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "file": self.path,
            "seq": self.seq,
            "check": self.check,
            "what": self.what,
            "numbers": {name: value if math.isfinite(value) else None for name, value in self.numbers.items()},
            "rover_id": self.rover_id,
            "boot_id": self.boot_id,
            "episode_id": self.episode_id,
        }


@dataclass
class Tally:
    """How often one check was made, left out (by reason), and failed."""

    checked: int = 0
    offences: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class Findings:
    """Collect the outcome of every check; a check that could not be made is counted with its reason."""

    KEPT = 20
    """Offences kept of one check in one episode: a broken episode fails on every step."""

    def __init__(self) -> None:
        """Start with nothing checked."""
        self.tallies = {check: Tally() for check in CHECKS}
        self.offences: list[Offence] = []

    def hold(self, check: str, seq: int, what: str, *, holds: bool, **numbers: float) -> bool:
        """Count a check; where it does not hold, ``what`` says what is wrong. Returns ``holds``."""
        tally = self.tallies[check]
        tally.checked += 1
        if not holds:
            tally.offences += 1
            if tally.offences <= self.KEPT:
                plain = {name: float(value) for name, value in numbers.items()}
                self.offences.append(Offence(check, seq, what, plain))
        return holds

    def skip(self, check: str, reason: str, count: int = 1) -> None:
        """Count a check that could not be made."""
        if count:
            self.tallies[check].skipped[reason] += count

    def failed(self, check: str) -> bool:
        """Return True if a check failed at least once."""
        return self.tallies[check].offences > 0

    def locate(self, **place: Any) -> None:
        """Name the file and the episode in every offence."""
        self.offences = [replace(offence, **place) for offence in self.offences]

    def note(self, text: str) -> None:
        """Add a remark to what every offence says."""
        self.offences = [replace(offence, what=f"{offence.what} ({text})") for offence in self.offences]

    def add(self, other: Findings) -> None:
        """Add what was found in another episode."""
        for check, tally in other.tallies.items():
            mine = self.tallies[check]
            mine.checked += tally.checked
            mine.offences += tally.offences
            mine.skipped.update(tally.skipped)
        self.offences += other.offences

    @property
    def first(self) -> Offence | None:
        """The first offence: of the first episode, the one at the lowest seq."""
        if not self.offences:
            return None
        path = self.offences[0].path
        order = {check: place for place, check in enumerate(CHECKS)}
        return min((o for o in self.offences if o.path == path), key=lambda o: (o.seq, order[o.check]))
