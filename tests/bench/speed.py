"""Measure decisions per second with and without learning, and which process spends how much of each decision."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bench.figures import json_option, median, write
from trainerd.demo.daemons import Pair, assignments

CLOCK_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
BUDGET = 10**9
"""Decisions of the run: it never ends by itself."""
STALLS = ("tick_gaps", "waits")
"""Counters of roverd's status: gaps between ticks, and how often the simulator waited for the trainer."""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench speed", description=__doc__)
    json_option(parser)
    parser.add_argument("--windows", type=int, default=3, metavar="N", help="repetitions")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="length of a repetition")
    parser.add_argument("--set-trainerd", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--set-roverd", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(arguments)
    figures = []
    for name, settings in (("learning", {}), ("frozen", {"train.frozen": "true"})):
        figures += measure(options, name, settings)
    write(options.json, figures)
    return 0


def measure(options, name, settings):
    """Run both daemons and return the figures of one mode."""
    trainer = assignments({"seed": 0, "train.decisions": BUDGET} | settings)
    trainer += [word for each in options.set_trainerd for word in ("--set", each)]
    rover = assignments({"seed": 0}) + [word for each in options.set_roverd for word in ("--set", each)]
    with (
        tempfile.TemporaryDirectory(prefix="roverloop-speed-") as folder,
        Pair(Path(folder), trainerd=trainer, roverd=rover) as pair,
    ):
        warm_up(pair, is_learning=not settings)
        windows = [window(pair, options.seconds) for _ in range(options.windows)]
    stalls = {stall: sum(each[stall] for each in windows) for stall in STALLS}
    print(f"  {name}: " + ", ".join(f"{count} {stall.replace('_', ' ')}" for stall, count in stalls.items()))
    figures = [
        median(f"speed.{name}.ticks_per_second", [w["ticks"] / w["seconds"] for w in windows], "1/s"),
        median(f"speed.{name}.decisions_per_second", [w["decisions"] / w["seconds"] for w in windows], "1/s"),
    ]
    spent = Counter()
    for each in windows:
        for process, seconds in each["cpu"].items():
            spent[process] += seconds
    for process, _ in spent.most_common(10):
        values = [1000 * w["cpu"].get(process, 0.0) / max(1, w["decisions"]) for w in windows]
        if statistics.median(values) > 0.001:
            figures.append(median(f"speed.{name}.cpu_ms_per_decision.{process}", values, "ms"))
    return figures


def warm_up(pair, *, is_learning):
    """Wait until the loop turns: two updates, or without learning two thousand decisions."""
    while True:
        trainer, rover = pair.trainerd.get("/status"), pair.roverd.get("/status")
        if trainer.get("updates", 0) >= 2 if is_learning else rover.get("decisions", 0) >= 2000:
            return
        time.sleep(0.5)


def window(pair, seconds):
    """Return the differences of counters and of CPU times over a time."""
    before, cpu_before, began = pair.roverd.get("/status"), cpu_times(pair), time.monotonic()
    time.sleep(seconds)
    after, cpu_after, ended = pair.roverd.get("/status"), cpu_times(pair), time.monotonic()
    return {
        "seconds": ended - began,
        "ticks": after["ticks"] - before["ticks"],
        "decisions": after["decisions"] - before["decisions"],
        **{name: after[name] - before[name] for name in STALLS},
        "cpu": {name: cpu_after[name] - cpu_before.get(name, 0.0) for name in cpu_after},
    }


def cpu_times(pair):
    """Return CPU seconds by process and thread, such as ``roverd.policy.process-2:python-0``."""
    spent = {}
    for daemon in (pair.trainerd, pair.roverd):
        for place, pid in enumerate(tree(daemon.process.pid)):
            name = f"{module(pid)}-{place}"
            for task in Path(f"/proc/{pid}/task").iterdir():
                comm, seconds = stat(task)
                spent[f"{name}:{comm}-{int(task.name) - pid}"] = seconds
    return spent


def module(pid):
    """Return the module that a Python process was started with, as in ``python -m MODULE``."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return words[words.index("-m") + 1] if "-m" in words[:-1] else Path(words[0]).name


def tree(pid):
    """Return a process and its descendants, parents first."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def stat(task):
    """Return a thread's name and its CPU seconds."""
    head, _, rest = (task / "stat").read_text().rpartition(")")
    fields = rest.split()
    return head.partition("(")[2].replace(" ", "_"), (int(fields[11]) + int(fields[12])) * CLOCK_TICK_S


if __name__ == "__main__":
    sys.exit(main())
