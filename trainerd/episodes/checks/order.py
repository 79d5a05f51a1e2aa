"""Whether the records of an episode follow each other, in number and in time."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from protocol.step import EpisodeEnd, Intervention, Step
from trainerd.episodes.checks.entry import closing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.spec import RobotSpec
    from trainerd.episodes.checks.entry import Entry
    from trainerd.episodes.checks.findings import Findings
    from trainerd.episodes.checks.thresholds import Thresholds


def check_order(entries: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    """Make the order checks; ``entries`` are the records in the order of the file."""
    _check_identity(entries, findings)
    _check_times(entries, robot, limits, findings)
    _check_ages(entries, robot, findings)


def _check_identity(entries: Sequence[Entry], findings: Findings) -> None:
    first = entries[0].record
    place = (first.rover_id, first.boot_id, first.episode_id)
    for entry in entries:
        record = entry.record
        here = (record.rover_id, record.boot_id, record.episode_id)
        findings.hold("order.seq", entry.seq, f"belongs to {here}, the file to {place}", holds=here == place)
    if isinstance(first, Step) and not entries[0].after_gap:
        what = f"the episode begins with step {first.episode_step}, expected 0"
        findings.hold("order.seq", first.seq, what, holds=first.episode_step == 0, episode_step=first.episode_step)
    for before, after in itertools.pairwise(entries):
        if after.after_gap:
            findings.skip("order.seq", "records before it are known to be lost")
            continue
        what = f"seq {after.seq} follows {before.seq}"
        findings.hold("order.seq", after.seq, what, holds=after.seq == before.seq + 1, before=before.seq)
        expected = _steps_after(before)
        taken = after.record.episode_steps if isinstance(after.record, EpisodeEnd) else after.record.episode_step
        what = f"{taken} steps of the episode lie before it, expected {expected}"
        findings.hold("order.seq", after.seq, what, holds=taken == expected, counted=taken, expected=expected)


def _steps_after(entry: Entry) -> int:
    record = entry.record
    return record.episode_step + 1 if isinstance(record, Step) else record.episode_steps


def _check_times(entries: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    steps = [entry for entry in entries if isinstance(entry.record, Step)]
    if not steps:
        findings.skip("order.time", "the episode has no steps")
        return
    _check_stamps(steps, entries, findings)
    if all(_step(entry).tick_ns == 0 for entry in steps):  # recorded in one process, or by a version 0 collector
        findings.skip("order.time", "no tick times are recorded", len(steps))
        _check_rate([entry.observation.stamp_ns for entry in steps], steps, robot, limits, findings)
        return
    _check_ticks(steps, robot, limits, findings)
    if all(_step(entry).tick_ns == entry.observation.stamp_ns for entry in steps):
        _check_lock_step(steps, robot, limits, findings)
    else:
        _check_rate([_step(entry).tick_ns for entry in steps], steps, robot, limits, findings)
        _check_drift(steps, robot, limits, findings)


def _step(entry: Entry) -> Step:
    assert isinstance(entry.record, Step)  # noqa: S101 - callers pass steps only
    return entry.record


def _check_stamps(steps: Sequence[Entry], entries: Sequence[Entry], findings: Findings) -> None:
    end = closing(entries)
    last = [] if end is None else [(end.seq, end.final.stamp_ns, False, entries[-1].after_gap)]
    rows = [(e.seq, e.observation.stamp_ns, e.is_repeated, e.after_gap) for e in steps] + last
    for (_, before, _, _), (seq, after, is_repeated, after_gap) in itertools.pairwise(rows):
        if is_repeated and not after_gap:
            what = f"says that it saw the observation of the step before, whose stamp is {before} ns, not {after} ns"
            findings.hold("order.time", seq, what, holds=after == before, before_ns=before, after_ns=after)
        else:
            what = f"its observation, of {after} ns, is not newer than the one before, of {before} ns"
            findings.hold("order.time", seq, what, holds=after > before, before_ns=before, after_ns=after)


def _check_ticks(steps: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    period_ns, delay_ns = 1e9 * robot.period_s, int(1e6 * robot.action_delay_ms)
    for before, after in itertools.pairwise(steps):
        elapsed = _step(after).tick_ns - _step(before).tick_ns
        whole = round(elapsed / period_ns)
        fits = whole >= 1 and abs(elapsed - whole * period_ns) <= limits.period_share * period_ns
        what = f"its tick is {elapsed / 1e6:.3f} ms after the one before, no multiple of {period_ns / 1e6:.3f} ms"
        findings.hold("order.time", after.seq, what, holds=fits, elapsed_ms=elapsed / 1e6, period_ms=period_ns / 1e6)
    for entry in steps:
        step = _step(entry)
        acted, stamp = step.applied_ns, entry.observation.stamp_ns
        early = step.tick_ns + delay_ns - acted
        what = f"applied {early / 1e6:.3f} ms before its time, {robot.action_delay_ms:g} ms after the tick"
        findings.hold("order.time", entry.seq, what, holds=early <= 0, early_ms=early / 1e6)
        what = f"its observation is {(stamp - acted) / 1e6:.3f} ms newer than the action that answers it"
        findings.hold("order.time", entry.seq, what, holds=stamp <= acted, newer_ms=(stamp - acted) / 1e6)


def _check_lock_step(steps: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    """A simulated clock knows no late tick."""
    for before, after in itertools.pairwise(steps):
        if after.after_gap:
            continue
        elapsed = (after.observation.stamp_ns - before.observation.stamp_ns) * 1e-9 / robot.period_s
        what = f"observed {elapsed:.3f} control periods after the one before, expected 1 of the simulated clock"
        holds = abs(elapsed - 1) <= limits.period_share
        findings.hold("order.rate", after.seq, what, holds=holds, periods=elapsed)


def _check_rate(
    times_ns: Sequence[int], steps: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings
) -> None:
    """Late ticks happen, and are recorded with their real times; a loop that is mostly late is another loop."""
    period_ns = 1e9 * robot.period_s
    excused = Intervention.OBSERVATION_REPEATED | Intervention.STALE
    late: list[tuple[int, float]] = []
    total = 0
    for (before_ns, _), (now_ns, entry) in itertools.pairwise(zip(times_ns, steps, strict=True)):
        if entry.after_gap or _step(entry).interventions & excused:
            findings.skip("order.rate", "flagged as late or stale, or after a gap")
            continue
        total += 1
        waited, age = (now_ns - before_ns) / period_ns, (now_ns - entry.observation.stamp_ns) / period_ns
        if max(waited, age) > limits.late_periods:
            late.append((entry.seq, max(waited, age)))
    if not total:
        return
    share = len(late) / total
    is_slow = len(late) >= limits.least_late and share > limits.late_share
    what = f"{len(late)} of {total} ticks are late and not flagged: the loop does not hold {robot.control_rate_hz:g} Hz"
    seq, worst = (late[0][0], max(periods for _, periods in late)) if late else (steps[0].seq, 0.0)
    findings.hold("order.rate", seq, what, holds=not is_slow, share=share, worst_periods=worst)


def _check_drift(steps: Sequence[Entry], robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
    fresh = [entry for entry in steps if not entry.is_repeated]
    if len(fresh) < 2:
        return
    first, last = fresh[0], fresh[-1]
    observed = last.observation.stamp_ns - first.observation.stamp_ns
    ticked = _step(last).tick_ns - _step(first).tick_ns
    off = abs(observed - ticked) * 1e-9 / robot.period_s
    what = f"the observations span {observed / 1e9:.3f} s, the ticks {ticked / 1e9:.3f} s"
    findings.hold("order.time", last.seq, what, holds=off <= limits.drift_periods, periods=off)


def _check_ages(entries: Sequence[Entry], robot: RobotSpec, findings: Findings) -> None:
    stale_after = {camera.key: camera.stale_after_ms for camera in robot.cameras}
    known = {*stale_after, *(element.name for element in robot.state), "state"}
    captured: dict[str, float] = {}
    aged = 0
    for entry in entries:
        ages = entry.observation.ages_ms
        aged += bool(ages)
        for key, age in ages.items():
            possible = key in known and math.isfinite(age) and age >= 0
            what = f"age of {key} is {age:g} ms"
            if not findings.hold("order.age", entry.seq, what, holds=possible, age_ms=age) or entry.after_gap:
                continue
            record = entry.record
            at_ns = record.tick_ns if isinstance(record, Step) and record.tick_ns else entry.observation.stamp_ns
            now_ms = at_ns * 1e-6 - age
            before = captured.get(key, -math.inf)
            what = f"the reading of {key} is {before - now_ms:.1f} ms older than the one that the step before had"
            findings.hold("order.age", entry.seq, what, holds=now_ms >= before - 1.0, age_ms=age)
            captured[key] = now_ms
            if isinstance(record, Step) and record.source != "fallback" and age > stale_after.get(key, math.inf):
                what = f"{key} is {age:.0f} ms old, stale after {stale_after[key]:.0f} ms, and an action was applied"
                findings.hold("order.age", entry.seq, what, holds=False, age_ms=age, stale_after_ms=stale_after[key])
    if aged < len(entries):
        findings.skip("order.age", "the record has no ages of sensors", len(entries) - aged)
