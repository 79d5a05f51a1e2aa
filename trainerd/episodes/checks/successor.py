"""Whether what a transition calls its successor is the next thing that happened."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from protocol.step import EpisodeEnd, Step
from trainerd.episodes.checks.entry import closing
from trainerd.episodes.checks.motion import pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import RobotSpec
    from trainerd.episodes.checks.entry import Entry
    from trainerd.episodes.checks.findings import Findings
    from trainerd.episodes.checks.thresholds import Thresholds

LEAST_DECISIONS = 4


def check_successors(
    entries: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings, *, is_complete: bool
) -> None:
    """Make the successor checks; an episode that is not complete may lack its end."""
    _check_actions(entries, findings)
    _check_ends(entries, findings, is_complete=is_complete)
    _check_decisions(entries, robot, limits, findings)
    _check_rewards(entries, limits, findings)
    _check_state(entries, robot, limits, findings)


def _check_actions(entries: Sequence[Entry], findings: Findings) -> None:
    """What is in flight at an observation is what was applied in the tick before it."""
    previous: Step | None = None
    for entry in entries:
        if entry.after_gap:
            previous = None
            findings.skip("successor.action", "records before it are known to be lost")
        if previous is not None:
            applied, in_flight = previous.action, entry.observation.in_flight
            index = int(np.argmax(applied != in_flight))
            what = (
                f"action in flight {in_flight.tolist()} differs from what step {previous.episode_step} applied, "
                f"{applied.tolist()}"
            )
            holds = np.array_equal(applied, in_flight)
            findings.hold(
                "successor.action", entry.seq, what, holds=holds, in_flight=in_flight[index], applied=applied[index]
            )
            if isinstance(entry.record, Step):
                _check_tick(previous, entry.record, findings)
        if isinstance(entry.record, Step):
            previous = entry.record


def _check_tick(before: Step, after: Step, findings: Findings) -> None:
    if before.tick == after.tick == 0:
        findings.skip("successor.tick", "no tick numbers are recorded")
        return
    what = f"control tick {after.tick} follows {before.tick}: the report of a tick is lost"
    findings.hold("successor.tick", after.seq, what, holds=after.tick == before.tick + 1, before=before.tick)


def _check_ends(entries: Sequence[Entry], findings: Findings, *, is_complete: bool) -> None:
    for before, after in itertools.pairwise(entries):
        if after.after_gap:
            continue
        if isinstance(before.record, Step):
            _check_last(before.record, after, findings)
        elif before.record.ends_episode:
            what = "the episode goes on after its end"
            findings.hold("successor.end", after.seq, what, holds=False)
        elif isinstance(after.record, Step):
            _check_break(before.record, after, findings)
    if closing(entries) is None:
        if is_complete:
            findings.hold("successor.end", entries[-1].seq, "the last record is not the episode's end", holds=False)
        else:
            findings.skip("successor.end", "the episode is known to be incomplete")


def _check_last(step: Step, after: Entry, findings: Findings) -> None:
    """A verdict of the task ends the episode, and nothing else says that it did."""
    is_over = step.terminated or step.truncated
    record = after.record
    if isinstance(record, EpisodeEnd):
        what = f"the end says {record.reason}, terminated {record.terminated}; its last step {_verdict(step)}"
        reason = "terminated" if step.terminated else "truncated" if step.truncated else ""
        agrees = (record.reason == reason if is_over else record.reason not in {"terminated", "truncated"}) and (
            record.terminated == step.terminated and (record.ends_episode or not is_over)
        )
        findings.hold("successor.end", after.seq, what, holds=agrees)
    else:
        what = f"a step follows one that says {_verdict(step)}"
        findings.hold("successor.end", after.seq, what, holds=not is_over)


def _verdict(step: Step) -> str:
    return "terminated" if step.terminated else "truncated" if step.truncated else "that it goes on"


def _check_break(end: EpisodeEnd, after: Entry, findings: Findings) -> None:
    """The final observation of a break within an episode is the one that the next step saw."""
    ours, theirs = end.final, after.observation
    same = ours.stamp_ns == theirs.stamp_ns and all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in ((ours.state, theirs.state), (ours.task, theirs.task), (ours.in_flight, theirs.in_flight))
    )
    what = f"the break ({end.reason}) before it ends with an observation of {ours.stamp_ns} ns, which it did not see"
    findings.hold("successor.end", after.seq, what, holds=same, final_ns=ours.stamp_ns, seen_ns=theirs.stamp_ns)


def _check_decisions(entries: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    steps = [entry for entry in entries if isinstance(entry.record, Step)]
    lengths: list[tuple[int, int]] = []
    for before, after in itertools.pairwise([None, *steps]):
        assert after is not None  # noqa: S101 - only the first of the row is None
        step = after.record
        assert isinstance(step, Step)  # noqa: S101 - filtered above
        what = f"tick {step.tick_in_decision} of decision {step.decision_id}, which lasts {robot.action_repeat} ticks"
        holds = step.tick_in_decision < robot.action_repeat
        findings.hold("successor.decision", after.seq, what, holds=holds, tick=step.tick_in_decision)
        if before is None or after.after_gap:
            continue
        previous = before.record
        assert isinstance(previous, Step)  # noqa: S101 - filtered above
        goes_on = (previous.decision_id, previous.tick_in_decision + 1)
        here = (step.decision_id, step.tick_in_decision)
        holds = here in {goes_on, (previous.decision_id + 1, 0)}
        what = f"decision {here[0]} tick {here[1]} follows decision {previous.decision_id} tick {goes_on[1] - 1}"
        findings.hold("successor.decision", after.seq, what, holds=holds)
        if step.tick_in_decision == 0:
            lengths.append((previous.seq, goes_on[1]))
    short = [(seq, length) for seq, length in lengths if length < robot.action_repeat]
    if len(lengths) >= LEAST_DECISIONS:
        share = len(short) / len(lengths)
        what = f"{len(short)} of {len(lengths)} decisions last less than {robot.action_repeat} ticks"
        seq = short[0][0] if short else steps[0].seq
        findings.hold("successor.decision", seq, what, holds=share <= limits.short_share, share=share)


def _check_rewards(entries: Sequence[Entry], limits: Thresholds, findings: Findings) -> None:
    total, is_whole = 0.0, not entries[0].after_gap
    for entry in entries:
        record = entry.record
        is_whole = is_whole and not entry.after_gap
        if isinstance(record, Step):
            if not math.isfinite(record.reward):
                findings.skip("successor.reward", "the reward is not finite: the step was quarantined")
                continue
            total += record.reward
            _check_terms(record, limits, findings)
        elif is_whole:
            off = abs(record.return_ - total)
            what = f"return {record.return_:g}, its rewards sum to {total:g}"
            holds = off <= limits.sum_error * max(1.0, abs(total))
            findings.hold("successor.reward", entry.seq, what, holds=holds, stated=record.return_, summed=total)


def _check_terms(step: Step, limits: Thresholds, findings: Findings) -> None:
    if not step.reward_terms:
        findings.skip("successor.reward", "the step names no reward terms")
        return
    summed = sum(step.reward_terms.values())
    holds = abs(summed - step.reward) <= limits.sum_error * max(1.0, abs(step.reward))
    what = f"reward {step.reward:g}, its terms sum to {summed:g}"
    findings.hold("successor.reward", step.seq, what, holds=holds, stated=step.reward, summed=summed)


def _check_state(entries: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    """Elements without a range (low not below high) are only checked to be finite."""
    low = np.array([e.low if e.low < e.high else -np.inf for e in robot.state])
    high = np.array([e.high if e.low < e.high else np.inf for e in robot.state])
    with np.errstate(invalid="ignore"):
        slack = np.where(np.isfinite(high - low), limits.range_share * (high - low), 0.0)
    names = [element.name for element in robot.state]
    commands = pairs(robot)
    for before, entry in itertools.pairwise([None, *entries]):
        assert entry is not None  # noqa: S101 - only the first of the row is None
        state = entry.observation.state.astype(np.float64)
        fits = np.isfinite(state) & (state >= low - slack) & (state <= high + slack)
        index = int(np.argmin(fits)) if fits.size else 0
        if not fits.all():
            what = f"{names[index]} is {state[index]:g}, its range is {low[index]:g} to {high[index]:g}"
            findings.hold("successor.state", entry.seq, what, holds=False, value=state[index])
            continue
        findings.hold("successor.state", entry.seq, "", holds=True)
        if before is None or entry.after_gap:
            continue
        for measured, command in commands:
            element = robot.action[command]
            jump = float(state[measured] - before.observation.state[measured])
            most = limits.jump_spans * (element.high - element.low)
            what = f"{names[measured]} changes by {jump:g} in a tick; its command spans {element.high - element.low:g}"
            findings.hold("successor.state", entry.seq, what, holds=abs(jump) <= most, jump=jump, most=most)
