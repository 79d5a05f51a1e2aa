"""Show a demo run while it learns: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainerd.demo.report import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trainerd.demo.report import Evidence

BLOCKS = " ▁▂▃▄▅▆▇█"
LINE_S = 15.0
WIDTH = 60


class Screen(Protocol):
    """Where a demo run is shown."""

    def show(self, evidence: Evidence, now_s: float, note: str = "") -> None:
        """Show how far the run is."""


class Lines:
    """One line to stderr every quarter of a minute, and each note once."""

    def __init__(self) -> None:
        """Begin with a line at once."""
        self._said_s = -LINE_S
        self._note = ""

    def show(self, evidence: Evidence, now_s: float, note: str = "") -> None:
        """Print a line where one is due."""
        if note == self._note and now_s - self._said_s < LINE_S:
            return
        self._said_s, self._note = now_s, note
        learned, budget = number(evidence.trainer, "decisions"), number(evidence.trainer, "decision_budget")
        rate = number(evidence.trainer, "decisions_per_second")
        progress = f"{learned:,.0f} of {budget:,.0f} decisions, {rate:,.0f}/s, success {success_now(evidence)}"
        print(f"{now_s - evidence.began_s:6.0f} s  {note or progress}", file=sys.stderr, flush=True)


class Panel:
    """A live panel of a terminal."""

    def __init__(self, live: Live) -> None:
        """Draw on ``live``."""
        self._live = live

    def show(self, evidence: Evidence, now_s: float, note: str = "") -> None:
        """Draw it anew."""
        self._live.update(panel(evidence, now_s, note))


@contextlib.contextmanager
def on_terminal() -> Iterator[Screen]:
    """Show a live panel on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    with Live(refresh_per_second=4) as live:
        yield Panel(live)


def panel(evidence: Evidence, now_s: float, note: str = "") -> Group:
    """Return the panel's content."""
    trainer, rover = evidence.trainer, evidence.rover
    learned, budget = number(trainer, "decisions"), number(trainer, "decision_budget")
    table = Table.grid(padding=(0, 2))
    table.add_row("", ProgressBar(total=max(budget, 1.0), completed=min(learned, budget), width=WIDTH))
    for label, value in (
        ("learned from", f"{learned:,.0f} of {budget:,.0f} decisions, {number(trainer, 'updates'):.0f} updates"),
        ("rate", rates(evidence)),
        ("success", f"{sparkline(evidence.trainer.get('success_history') or [])} {success_now(evidence)}"),
        ("driving", f"policy {driving(rover)}, {number(rover, 'swaps'):.0f} swapped in"),
        ("time", f"{clock(now_s - evidence.began_s)}{remaining(evidence, now_s)}"),
    ):
        table.add_row(Text(label, style="dim"), value)
    return Group(table, Text(note or warning(trainer), style="yellow"))


def rates(evidence: Evidence) -> str:
    """Return how fast the rover decides and ticks."""
    decisions = number(evidence.trainer, "decisions_per_second")
    return f"{decisions:,.0f} decisions/s, {number(evidence.rover, 'ticks_per_second'):,.0f} control ticks/s"


def success_now(evidence: Evidence) -> str:
    """Return the success of the newest training episodes, ``-`` before the first."""
    success = evidence.trainer.get("success") or {}
    return f"{100 * success['rate']:.0f} %" if success.get("n") and success.get("rate") is not None else "-"


def sparkline(history: Sequence[dict[str, Any]], width: int = 40) -> str:
    """Return success rates as a line of blocks, averaged down to ``width`` characters."""
    rates = [float(each["rate"]) for each in history]
    if not rates:
        return ""
    groups = [rates[len(rates) * i // width : len(rates) * (i + 1) // width] for i in range(width)]
    means = [sum(group) / len(group) for group in groups if group]
    return "".join(BLOCKS[min(8, max(0, round(8 * mean)))] for mean in means)


def driving(rover: dict[str, Any]) -> str:
    """Return counter and beginning of the id of the policy that drives."""
    policy = rover.get("policy") or {}
    return f"{policy.get('counter', '-')} ({str(policy.get('policy_id') or 'none')[:8]})"


def warning(trainer: dict[str, Any]) -> str:
    """Return why training is not healthy, empty where it is."""
    health = trainer.get("health") or {}
    return "" if health.get("ok", True) else "; ".join(str(cause) for cause in health.get("causes") or ())


def remaining(evidence: Evidence, now_s: float) -> str:
    """Return the time that is left at the mean rate so far, empty while unknown."""
    learned, budget = number(evidence.trainer, "decisions"), number(evidence.trainer, "decision_budget")
    if evidence.first_step_s is None or not 0 < learned < budget:
        return ""
    return f", {clock((budget - learned) * (now_s - evidence.first_step_s) / learned)} left"


def clock(seconds: float) -> str:
    """Return minutes and seconds."""
    return time.strftime("%M:%S", time.gmtime(seconds)) if seconds < 3600 else f"{seconds / 3600:.1f} h"
