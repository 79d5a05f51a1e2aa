"""Checks of punctuality: what the kernel granted to the processes that keep time, and how late they really were."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

from protocol.node.checkup.check import Check, judge, note
from roverd.control import realtime as kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GOOD_P99_MS = 1.0
MOST_OF_PERIOD = 0.1
"""A tick that is later than this share of its period is no longer the tick that the policy was trained for."""
GOOD_MISSED, MOST_MISSED = 0.001, 0.01
LEAST_TICKS = 50
LEAST_LOCKED_BYTES = 160 << 20
"""What mlockall of the control process needs."""


def processes(reports: Mapping[str, Mapping[str, Any]], *, is_clocked: bool, is_real: bool) -> Iterator[Check]:
    """Judge what each process was granted; a simulator, and lock-step even more, can do without."""
    if not is_clocked:
        yield judge("realtime", "lock-step: nothing is timed", "not needed in lock-step", "", ok=True)
        return
    if not reports:
        yield judge("realtime", "no process reported", "control and its spare", "see the log of roverd", ok=False)
    for name, report in reports.items():
        is_control = not name.startswith("policy")
        yield judge(
            f"realtime of {name}",
            granted(report),
            "SCHED_FIFO" + (", memory locked" if is_control else ""),
            remedy(report),
            ok=bool(report.get("fifo")) and (bool(report.get("mlockall")) or not is_control),
            is_needed=is_real and is_control,
        )


def granted(report: Mapping[str, Any]) -> str:
    """Return what a process was granted, in words."""
    how = f"SCHED_FIFO {report.get('priority')}" if report.get("fifo") else f"nice {report.get('nice')}, no SCHED_FIFO"
    locked = "memory locked" if report.get("mlockall") else "memory not locked"
    return f"{how}, {locked}, cores {','.join(map(str, report.get('affinity') or ()))}"


def remedy(report: Mapping[str, Any]) -> str:
    """Return what ends a refusal."""
    reason = str(report.get("reason") or "")
    if reason == "not asked for":
        return "control.realtime is off: set it, and start roverd by its unit (it has LimitRTPRIO and LimitMEMLOCK)"
    return reason or "start roverd by its unit: it has LimitRTPRIO=60 and LimitMEMLOCK=infinity"


def lateness(report: Mapping[str, float], period_ms: float, *, is_clocked: bool, is_real: bool) -> Iterator[Check]:
    """Judge how late ticks and actions were, in milliseconds, of a robot with this period."""
    count = int(report.get("n", 0))
    if not is_clocked or count < LEAST_TICKS:
        why = "lock-step" if not is_clocked else f"{count} ticks so far"
        yield judge("lateness", f"not judged: {why}", f"p99 of the ticks below {GOOD_P99_MS:g} ms", "", ok=True)
        return
    hint = (
        "something takes the processor: see realtime, stolen time, cpu governor; keep cores for control (control.cpus) "
        "and everything else off them (cpus)"
    )
    for name in ("tick", "action"):
        p99_ms = report.get(f"{name}_p99_ms", 0.0)
        words = [f"{label} {report.get(f'{name}_{key}_ms', 0.0):.3f}" for label, key in PERCENTILES]
        measured, most_ms = f"{', '.join(words)} ms of {count}", MOST_OF_PERIOD * period_ms
        is_fatal = is_real and p99_ms > most_ms
        expected = f"p99 below {GOOD_P99_MS:g} ms, never above {most_ms:g} ms"
        yield judge(f"lateness of {name}s", measured, expected, hint, ok=p99_ms <= GOOD_P99_MS, is_needed=is_fatal)


PERCENTILES = (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999"), ("worst", "max"))


def ticks(counts: Mapping[str, int], *, is_clocked: bool, is_real: bool) -> Iterator[Check]:
    """Judge proposals that came too late or not at all, and ticks that roverd did not hear of."""
    total = counts.get("ticks", 0)
    if not is_clocked or total < LEAST_TICKS:
        return
    missed, skipped, dropped = (counts.get(name, 0) for name in ("missed", "skipped", "dropped_frames"))
    share = missed / total
    hint = "the policy is slower than the action delay, or its process does not get the processor: see realtime, npu"
    measured, expected = f"{missed} of {total} ({100 * share:.2f} %)", f"at most {100 * GOOD_MISSED:g} %"
    is_fatal = is_real and share > MOST_MISSED
    yield judge("missed proposals", measured, expected, hint, ok=share <= GOOD_MISSED, is_needed=is_fatal)
    lost = skipped + dropped
    hint = "roverd itself was away for too long: see stolen time, memory, disk; its episodes were cut there"
    measured = f"{skipped} ticks not heard of, {dropped} pictures dropped, of {total} ticks"
    ok = lost <= GOOD_MISSED * total
    yield judge("gaps", measured, f"at most {100 * GOOD_MISSED:g} %", hint, ok=ok, is_needed=False)


def control(status: Mapping[str, Any]) -> Iterator[Check]:
    """Judge the control process: does its spare stand by, does the actuator take commands."""
    takeovers, failure = int(status.get("takeovers", 0)), str(status.get("actuator_failure", ""))
    if status.get("needs_spare"):
        hint = "it is started again within seconds; if not, see the log of roverd (control.spare_failed)"
        measured = "stands by" if status.get("has_spare") else "none"
        yield judge("spare control", measured, "stands by", hint, ok=bool(status.get("has_spare")))
    if takeovers:
        yield note("takeovers", f"{takeovers} since the start", "0", "control died or hung: the log says why")
    hint = "see its cable, its address and its supply; the robot stands by its own dead-man timer"
    measured = failure or f"{status.get('actuator', 'simulated')}: takes commands"
    yield judge("actuator", measured, "takes commands", hint, ok=not failure)


def permission(limits: Mapping[str, str], *, is_needed: bool) -> Iterator[Check]:
    """Try, where no daemon runs, whether a process may have SCHED_FIFO; ``limits`` are those of the unit, if any."""
    may = try_fifo()
    measured = "granted to this user" if may else "refused to this user"
    hint = kernel.why_no_fifo(kernel.CONTROL_PRIORITY)
    if not may and limits.get("LimitRTPRIO", "0") not in {"", "0"} and not kernel.has_group_scheduling():
        measured += f", the unit has LimitRTPRIO={limits['LimitRTPRIO']}"
        may = True
    if kernel.has_group_scheduling():
        measured += "; the kernel has CONFIG_RT_GROUP_SCHED"
    yield judge("SCHED_FIFO", measured, "granted", hint, ok=may, is_needed=is_needed)
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    is_enough = soft == resource.RLIM_INFINITY or soft >= LEAST_LOCKED_BYTES or os.geteuid() == 0
    by_unit = limits.get("LimitMEMLOCK") == "infinity"
    shown = "no limit" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    hint = "LimitMEMLOCK=infinity in the unit (ulimit -l unlimited)"
    yield judge(
        "locked memory",
        shown + (", the unit has no limit" if by_unit else ""),
        f"at least {LEAST_LOCKED_BYTES >> 20} MiB",
        hint,
        ok=is_enough or by_unit,
        is_needed=is_needed,
    )


def try_fifo() -> bool:
    """Take SCHED_FIFO for a moment; True where the kernel lets this process."""
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(kernel.CONTROL_PRIORITY))
    except OSError:
        return False
    os.sched_setscheduler(0, before, parameter)
    return True
