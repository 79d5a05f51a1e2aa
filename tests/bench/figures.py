"""The form that every measurement is written in: commit, machine, and figures with their spread."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Figure:
    """One measured number; ``low`` and ``high`` are the spread over ``n`` repetitions."""

    name: str
    value: float
    unit: str
    n: int
    low: float
    high: float


def median(name, values, unit):
    """Make a figure of the median of repetitions."""
    return Figure(name, statistics.median(values), unit, len(values), min(values), max(values))


def worst(name, values, unit, *, pick=max):
    """Make a figure of the worst of repetitions: the largest, or with ``pick=min`` the smallest."""
    return Figure(name, pick(values), unit, len(values), min(values), max(values))


def total(name, values, unit):
    """Make a figure of the sum of repetitions."""
    return Figure(name, sum(values), unit, len(values), min(values), max(values))


def write(path, figures):
    """Print the figures, and write them to ``path`` where one is given."""
    for each in figures:
        spread = f"  ({each.low:.4g} to {each.high:.4g}, n = {each.n})" if each.n > 1 else ""
        print(f"{each.name:<40} {each.value:>10.4g} {each.unit}{spread}")
    if path is not None:
        content = {"commit": commit(), "machine": machine(), "figures": [asdict(each) for each in figures]}
        path.write_text(json.dumps(content, indent=1) + "\n")


def json_option(parser: argparse.ArgumentParser):
    """Add the option that every measurement has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write {commit, machine, figures} here")


def commit():
    """Return the commit that was measured, with ``-dirty`` where files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine():
    """Return what the figures depend on besides the code."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
    }


def cpu_model():
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
