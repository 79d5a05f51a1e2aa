"""Whether the robot did what was applied: measured speeds against commands, and who decided the commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.step import EpisodeEnd, Intervention, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import RobotSpec
    from trainerd.episodes.checks.entry import Entry
    from trainerd.episodes.checks.findings import Findings
    from trainerd.episodes.checks.thresholds import Thresholds

Array = npt.NDArray[np.float64]
UNITS = ("m/s", "rad/s")
WINDOW_S = 0.1
WINDOWS = 8
"""The gain counts what a command does within this many windows: 0.8 s."""
LAGS = 2
"""Ticks before a window whose commands may still show in it: dead time."""
NOISY = 4.0
"""Power of the changes, in that of the noise, below which nothing can be said."""
SIGMA_OF_MEDIAN = 1.4826
ROWS_A_NUMBER = 4
"""Ticks that a fit needs for each of its free numbers."""


def pairs(robot: RobotSpec) -> list[tuple[int, int]]:
    """Return (state index, action index) of each speed that is both commanded and measured.

    They belong together when their names begin with the same word (``linear_vel``, ``linear_cmd``) and they have the
    same unit, m/s or rad/s.
    """
    return [
        (measured, command)
        for command, action in enumerate(robot.action)
        for measured, state in enumerate(robot.state)
        if action.unit == state.unit and action.unit in UNITS and _stem(action.name) == _stem(state.name)
    ]


def _stem(name: str) -> str:
    return name.split("_", 1)[0]


# -- who decided ---------------------------------------------------------------------------------------------------


def check_sources(entries: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    """Check that each applied action is that of the source that the record names, and within the robot's limits."""
    low, high = np.array([[e.low, e.high] for e in robot.action]).T
    slack = limits.action_error * (high - low)
    for entry in entries:
        step = entry.record
        if not isinstance(step, Step):
            continue
        within = bool(np.all((step.action >= low - slack) & (step.action <= high + slack)))
        what = f"applied {step.action.tolist()}, the limits are {low.tolist()} to {high.tolist()}"
        if findings.hold("applied.source", entry.seq, what, holds=within):
            _check_source(step, slack, findings)


CHANGED = (
    Intervention.LIMITED | Intervention.FORWARD_STOP | Intervention.SLOWED | Intervention.RAMPED | Intervention.STALLED
)
"""Flags of an action that the safety gate changed in part."""
REASONS = (
    Intervention.MISSED
    | Intervention.STALE
    | Intervention.NON_FINITE
    | Intervention.E_STOP
    | Intervention.FROZEN
    | Intervention.TILTED
    | Intervention.WHEEL_LOCKED
)
"""Flags of a safe action."""


def _check_source(step: Step, slack: Array, findings: Findings) -> None:
    flags = step.interventions
    wanted = step.human_action if step.source == "human" else step.policy_action
    if step.source == "fallback":
        what = "the safe action was applied and no flag says why"
        findings.hold("applied.source", step.seq, what, holds=bool(flags & REASONS), interventions=flags)
    elif step.source == "gate":
        what = "the safety gate changed the action and no flag says how"
        findings.hold("applied.source", step.seq, what, holds=bool(flags & CHANGED), interventions=flags)
    elif wanted is None:
        findings.skip("applied.source", "what the source wanted is not recorded")
    elif not flags & CHANGED:
        off = np.abs(step.action.astype(np.float64) - wanted)
        index = int(np.argmax(off))
        what = f"applied {step.action.tolist()}, the {step.source} wanted {wanted.tolist()}, and no flag says why"
        findings.hold(
            "applied.source",
            step.seq,
            what,
            holds=bool(np.all(off <= slack)),
            applied=step.action[index],
            wanted=wanted[index],
        )


# -- what the robot did --------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Windows of one speed of one robot, ready for regression; arrays have one row for each tick that begins one.

    A window is WINDOW_S or one tick, whichever is longer, so that what a command does in it exceeds the noise.
    change: float64[n], the speed's change in the window.
    before: float64[n], its change in the window before, 0 at the start.
    error: float64[n, ticks + LAGS], command (of the window's last tick, of the one before, ...) minus first speed.
    later: float64[n], the command of the tick after the window minus first speed, NaN where there is none.
    speed: float64[n], at the end of the window.
    history: float64[n, WINDOWS], mean command of this window and of those before it.
    """

    name: str
    scale: float
    """The largest command."""
    seq: npt.NDArray[np.int64]
    change: Array
    before: Array
    error: Array
    later: Array
    speed: Array
    history: Array


@dataclass
class Motion:
    """Collect the rows of one robot over its episodes, so that short and calm ones are judged together too."""

    rows: dict[str, list[tuple[dict[str, object], Rows]]] = field(default_factory=dict)

    def add(self, place: dict[str, object], rows: Sequence[Rows]) -> None:
        """Keep an episode's rows; ``place`` names the episode."""
        for each in rows:
            self.rows.setdefault(each.name, []).append((place, each))

    def judge(self, limits: Thresholds, findings: Findings) -> dict[str, object]:
        """Judge all episodes as one; returns the place of the episode that fits worst."""
        worst: dict[str, object] = {}
        for name, kept in self.rows.items():
            merged = _merge([rows for _, rows in kept])
            mine = type(findings)()
            judge(merged, limits, mine)
            if mine.offences and not worst:
                place, rows = max(kept, key=lambda each: _misfit(merged, each[1]))
                worst = {**place, "seq": int(rows.seq[0]), "name": name}
            findings.add(mine)
        return worst


def rows_of(entries: Sequence[Entry], robot: RobotSpec) -> list[Rows]:
    """Return the rows of every commanded and measured speed of an episode."""
    found = []
    for measured, command in pairs(robot):
        element = robot.action[command]
        scale = max(abs(element.low), abs(element.high))
        parts = [_segment(part, measured, command, robot) for part in _segments(entries)]
        kept = [part for part in parts if part is not None and len(part[0])]
        if kept:
            columns = [np.concatenate(column) for column in zip(*kept, strict=True)]
            found.append(Rows(robot.state[measured].name, scale, columns[0].astype(np.int64), *columns[1:]))
    return found


def check_motion(rows: Sequence[Rows], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    """Judge the speeds of one episode."""
    if not pairs(robot):
        for check in ("applied.gain", "applied.follow", "applied.cause"):
            findings.skip(check, "no state element measures what an action element commands")
    for each in rows:
        judge(each, limits, findings)


def judge(rows: Rows, limits: Thresholds, findings: Findings) -> None:
    """Make the three checks of a speed; the seq of an offence is that of the row with the largest difference."""
    _judge_gain(rows, limits, findings)
    _judge_answers(rows, limits, findings)


def _segments(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Cut at known gaps and lost ticks; breaks within the episode hold no new observation and are left out."""
    parts: list[list[Entry]] = [[]]
    for entry in entries:
        record, before = entry.record, parts[-1][-1].record if parts[-1] else None
        if isinstance(record, EpisodeEnd) and not record.ends_episode:
            continue
        lost = isinstance(record, Step) and isinstance(before, Step) and record.tick > before.tick + 1
        if entry.after_gap or lost:
            parts.append([])
        parts[-1].append(entry)
    return parts


def _segment(part: Sequence[Entry], measured: int, command: int, robot: RobotSpec) -> tuple[Array, ...] | None:
    steps = [entry for entry in part if isinstance(entry.record, Step)]
    ticks = max(1, round(WINDOW_S / robot.period_s))
    count = min(len(steps), len(part) - 1) - ticks + 1
    if count < 1:
        return None
    speed = np.array([float(entry.observation.state[measured]) for entry in part])
    action = np.array([float(_action(entry)[command]) for entry in steps])
    first = ticks * WINDOWS
    padded = np.concatenate((np.full(first, float(steps[0].observation.in_flight[command])), action, [np.nan]))
    sums = np.concatenate(([0.0], np.cumsum(padded)))
    begin = np.arange(count)
    last = first + begin + ticks - 1
    ends = [last + 1 - window * ticks for window in range(WINDOWS)]
    history = np.stack([(sums[end] - sums[end - ticks]) / ticks for end in ends], axis=1)
    at_first = speed[:count]
    error = np.stack([padded[last - lag] - at_first for lag in range(ticks + LAGS)], axis=1)
    change = speed[ticks : ticks + count] - at_first
    before = np.concatenate((np.zeros(ticks), change))[:count]
    counts = np.array([_counts(part[k], part[k + 1]) for k in range(count + ticks - 1)])
    keep = np.array([bool(counts[k : k + ticks].all()) for k in range(count)])
    keep &= np.isfinite(change)
    seqs = np.array([entry.seq for entry in steps[:count]])
    columns = (seqs, change, before, error, padded[last + 1] - at_first, speed[ticks : ticks + count], history)
    return tuple(column[keep] for column in columns)


def _action(entry: Entry) -> npt.NDArray[np.float32]:
    assert isinstance(entry.record, Step)  # noqa: S101 - filtered by the caller
    return entry.record.action


def _counts(entry: Entry, following: Entry) -> bool:
    """Leave out ticks between which there was no new reading, and those of an emergency stop (it acts between)."""
    assert isinstance(entry.record, Step)  # noqa: S101 - only the last of a part is an end
    stopped = entry.record.interventions & Intervention.E_STOP
    return not (entry.is_repeated or following.is_repeated or stopped)


def _judge_gain(rows: Rows, limits: Thresholds, findings: Findings) -> None:
    if len(rows.seq) < limits.least_rows:
        findings.skip("applied.gain", "too few ticks")
        return
    rms = float(np.sqrt(np.mean(rows.history**2)))
    if rms < limits.excitation * rows.scale:
        findings.skip("applied.gain", "the commands are too small")
        return
    ridge = 1e-6 * len(rows.seq) * rows.scale**2
    gram = rows.history.T @ rows.history + ridge * np.eye(WINDOWS)
    gain = float(np.linalg.solve(gram, rows.history.T @ rows.speed).sum())
    what = (
        f"{rows.name} is {gain:.2f} times its command over {len(rows.seq)} ticks, expected {limits.least_gain:g} to "
        f"{limits.most_gain:g}"
    )
    holds = limits.least_gain <= gain <= limits.most_gain
    findings.hold("applied.gain", _worst(rows), what, holds=holds, gain=gain, ticks=len(rows.seq), rms_command=rms)


def _judge_answers(rows: Rows, limits: Thresholds, findings: Findings) -> None:
    has_later = np.isfinite(rows.later)
    asked = np.abs(rows.error).max(axis=1)
    least = limits.event * rows.scale
    known, both = _features(rows), np.column_stack((_features(rows), rows.later))
    is_acausal = False
    noise = _noise(rows, limits)
    events = (np.maximum(asked, np.abs(rows.later)) >= least) & has_later
    if _can_judge("applied.cause", both[events], rows.change[events], noise, limits, findings):
        explained = _explained(known[events], rows.change[events], noise)
        foreseen = _explained(both[events], rows.change[events], noise)
        is_acausal = foreseen - explained >= limits.foreseen and foreseen >= limits.explained
        what = (
            f"{rows.name} answers commands of the tick after: they explain {100 * foreseen:.0f} % of its changes, "
            f"those of before {100 * explained:.0f} %: observations are stored with the step before their own"
        )
        numbers = {"explained": explained, "explained_with_later": foreseen, "ticks": int(np.count_nonzero(events))}
        seq = _farthest(rows, known, events)
        findings.hold("applied.cause", seq, what, holds=not is_acausal, **numbers)
    events = asked >= least
    if is_acausal:  # the commands do reach the motors
        findings.skip("applied.follow", "the order of cause and effect is wrong")
    elif _can_judge("applied.follow", known[events], rows.change[events], noise, limits, findings):
        explained, ticks = _explained(known[events], rows.change[events], noise), int(np.count_nonzero(events))
        what = (
            f"{100 * explained:.0f} % of the changes of {rows.name} in {ticks} ticks are explained by the applied "
            f"commands, expected at least {100 * limits.explained:.0f} %: commands do not reach the motors in time"
        )
        seq = _farthest(rows, known, events)
        findings.hold(
            "applied.follow", seq, what, holds=explained >= limits.explained, explained=explained, ticks=ticks
        )


def _can_judge(
    check: str, features: Array, change: Array, noise: float, limits: Thresholds, findings: Findings
) -> bool:
    count, free = features.shape
    if count < max(limits.least_rows, ROWS_A_NUMBER * free):
        findings.skip(check, "the commands change too seldom")
        return False
    if noise > 0 and np.mean(change**2) <= NOISY * noise:
        findings.skip(check, "the noise of the speed hides its changes")
        return False
    return True


def _farthest(rows: Rows, features: Array, events: npt.NDArray[np.bool_]) -> int:
    """Return the seq of the event that the commands explain least."""
    return int(rows.seq[events][np.argmax(_residual(features[events], rows.change[events]))])


def _features(rows: Rows) -> Array:
    """What an honest motor may answer to: commands, acceleration up to a limit, its own momentum, and a bias."""
    knee = 0.2 * rows.scale
    ticks = rows.error.shape[1] - LAGS
    limited = np.tanh(rows.error[:, : ticks + 1] / knee)
    return np.column_stack((rows.error, limited, rows.before, np.ones(len(rows.seq))))


def _noise(rows: Rows, limits: Thresholds) -> float:
    """Variance of the speed's change where nothing was asked of it; 0 where that hardly ever was so.

    What is larger than ``steady`` is no noise: the robot moves although nothing was asked of it.
    """
    asked = limits.steady * rows.scale
    steady = np.abs(rows.error).max(axis=1) <= asked
    if np.count_nonzero(steady) < limits.least_rows // 3:
        return 0.0
    spread = SIGMA_OF_MEDIAN * float(np.median(np.abs(rows.change[steady])))  # a jump or two is no noise
    return min(spread, asked) ** 2


def _explained(features: Array, change: Array, noise: float) -> float:
    """Share of the power of ``change`` beyond noise that a linear fit explains, corrected for its free numbers."""
    count, free = features.shape
    power = float(np.mean(change**2)) - noise
    if power <= 0 or count <= free:
        return 0.0
    left = float(np.sum(_residual(features, change) ** 2)) / (count - free) - noise
    return float(1.0 - max(left, 0.0) / power)


def _residual(features: Array, change: Array) -> Array:
    solution, *_ = np.linalg.lstsq(features, change, rcond=None)
    left: Array = np.abs(change - features @ solution)
    return left


def _worst(rows: Rows) -> int:
    return int(rows.seq[np.argmax(np.abs(rows.speed - rows.history[:, 0]))])


def _merge(rows: Sequence[Rows]) -> Rows:
    names = ("seq", "change", "before", "error", "later", "speed", "history")
    return Rows(rows[0].name, rows[0].scale, *(np.concatenate([getattr(r, name) for r in rows]) for name in names))


def _misfit(merged: Rows, rows: Rows) -> float:
    solution, *_ = np.linalg.lstsq(_features(merged), merged.change, rcond=None)
    left: Array = rows.change - _features(rows) @ solution
    return float(np.mean(left**2)) if len(rows.seq) else 0.0
