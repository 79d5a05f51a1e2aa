"""Ask the kernel for punctuality: real-time priority, locked memory, a fine timer; and tell what it granted.

Measured under load at 100 Hz (p99 lateness): SCHED_FIFO 0.09 ms, nice -10 7 ms, neither 12 ms. So FIFO is what counts,
and where the kernel refuses it the reason must be readable, because nothing else shows it.
"""

from __future__ import annotations

import ctypes
import gzip
import os
import platform
import resource
import signal
from pathlib import Path
from typing import Any

PR_SET_TIMERSLACK = 29
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
CONTROL_PRIORITY, POLICY_PRIORITY = 50, 20
CONTROL_NICE, POLICY_NICE = -10, -5
BUDGETS = ("/sys/fs/cgroup/cpu/cpu.rt_runtime_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.rt_runtime_us")
"""Files that only a kernel with CONFIG_RT_GROUP_SCHED has."""


def apply(priority: int, nice: int, *, locks_memory: bool) -> dict[str, Any]:
    """Set this process up as far as the kernel lets it; return what it granted.

    Args:
        priority: of SCHED_FIFO, 1 to 99; children do not inherit it.
        nice: what is tried where FIFO is refused.
        locks_memory: keep every page that is ever used in memory (about 33 MB with numpy).

    Returns:
        {fifo, priority, nice, mlockall, affinity, reason}; ``reason`` says why FIFO or locking was refused.

    """
    reasons = []
    is_fifo = _set_fifo(priority)
    if not is_fifo:
        reasons.append(why_no_fifo(priority))
        _set_nice(nice)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # ns; 50 us is the default, which a process of normal priority feels
    is_locked = locks_memory and libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0
    if locks_memory and not is_locked:
        reasons.append(f"mlockall: {os.strerror(ctypes.get_errno())}: set LimitMEMLOCK=infinity (ulimit -l unlimited)")
    return _report(priority if is_fifo else 0, "; ".join(reasons), is_locked=is_locked)


def ignore_group_signals() -> None:
    """Leave it to the end of roverd, seen on the link, when this process ends: the robot must be stopped before.

    systemd sends SIGTERM (a stop, or what is left when roverd died) and SIGABRT (roverd hangs) to all of the unit.
    """
    for each in (signal.SIGTERM, signal.SIGABRT):
        signal.signal(each, signal.SIG_IGN)


def ordinary() -> dict[str, Any]:
    """Return the report of a process that asked for nothing, as in lock-step."""
    return _report(0, "not asked for", is_locked=False)


def _report(priority: int, reason: str, *, is_locked: bool) -> dict[str, Any]:
    return {
        "fifo": priority > 0,
        "priority": priority,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "mlockall": is_locked,
        "affinity": sorted(os.sched_getaffinity(0)),
        "reason": reason,
    }


def why_no_fifo(priority: int) -> str:
    """Say what refuses SCHED_FIFO to this process and what ends that."""
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    if os.geteuid() != 0 and 0 <= limit < priority:
        return f"SCHED_FIFO: RLIMIT_RTPRIO is {limit}, {priority} is needed: set LimitRTPRIO=60 (ulimit -r 60)"
    if has_group_scheduling():
        return (
            "SCHED_FIFO: the kernel has CONFIG_RT_GROUP_SCHED and this process's cgroup has no real-time budget: "
            "write 950000 to its cpu.rt_runtime_us (cgroup v1), or sysctl kernel.sched_rt_runtime_us=-1, "
            "or run a kernel without it"
        )
    return "SCHED_FIFO: refused (EPERM): CAP_SYS_NICE or LimitRTPRIO=60 is needed"


def has_group_scheduling() -> bool:
    """Say whether the kernel was built with CONFIG_RT_GROUP_SCHED, from what it tells about itself."""
    if any(Path(each).exists() for each in BUDGETS):
        return True
    return "CONFIG_RT_GROUP_SCHED=y" in _kernel_config()


def _kernel_config() -> str:
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{platform.release()}").read_text(errors="replace")
    except OSError:
        return ""


def _set_fifo(priority: int) -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError:
        return False
    return True


def _set_nice(nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError:  # RLIMIT_NICE: an ordinary user keeps 0
        return
