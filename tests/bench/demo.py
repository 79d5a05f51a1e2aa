"""Measure the demo: success over seeds that nobody chose, a blind run, speed, losses, and the tests' own time."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import ROOT, json_option, median, total, worst, write

UNIT_REPETITIONS = 3


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench demo", description=__doc__)
    json_option(parser)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (drawn here, not chosen)")
    parser.add_argument("--decisions", type=int, metavar="N", help="budget of each run (default: the demo's)")
    parser.add_argument("--eval-episodes", type=int, default=400, metavar="N")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the runs here")
    parser.add_argument("--no-blind", action="store_true", help="leave out the run without cameras")
    parser.add_argument("--no-tests", action="store_true", help="leave out the time of the tests")
    options = parser.parse_args(arguments)
    output = options.output or Path(tempfile.mkdtemp(prefix="roverloop-bench-"))
    seeds = [int.from_bytes(os.urandom(3), "big") for _ in range(options.seeds)]
    print(f"seeds {seeds}, runs in {output}", flush=True)
    runs = [demo(options, output / f"seed-{seed}", "--seed", str(seed)) for seed in seeds]
    figures = run_figures(runs)
    if not options.no_blind:
        blind = demo(options, output / "blind", "--seed", str(seeds[0]), "--blind", "--no-random", "--no-reactive")
        figures.append(median("demo.success_blind", [blind["final"]["success"]], "fraction"))
    write(options.json, figures)  # already now: a failing test must not cost an hour of runs
    if not options.no_tests:
        write(options.json, figures + measure_tests())
    return 0


def demo(options, output, *words):
    """Run the demo once and return its figures; ends the measurement where it fails."""
    output.mkdir(parents=True, exist_ok=True)
    report = output / "figures.json"
    budget = ["--decisions", str(options.decisions)] if options.decisions else []
    common = ["--headless", "--json", str(report), "--output", str(output)]
    episodes = ["--eval-episodes", str(options.eval_episodes)]
    status = subprocess.run(
        [sys.executable, "-m", "trainerd.demo", *common, *budget, *episodes, *words], cwd=ROOT, check=False
    ).returncode
    if status != 0:
        sys.exit(f"bench demo: the run in {output} ended with status {status}")
    return json.loads(report.read_text())


def run_figures(runs):
    """Return the figures of equal runs with different seeds."""

    def success(kind):
        return [run[kind]["success"] for run in runs if run[kind]]

    return [
        median("demo.success_final", success("final"), "fraction"),
        worst("demo.success_worst_seed", success("final"), "fraction", pick=min),
        median("demo.success_random", success("random"), "fraction"),
        median("demo.success_reactive", success("reactive"), "fraction"),
        median("demo.decisions_per_second", [run["decisions_per_second"] for run in runs], "1/s"),
        median("demo.wall_seconds", [run["wall_seconds"] for run in runs], "s"),
        worst("demo.update_to_driving_seconds", [run["update_to_driving_seconds"] for run in runs], "s"),
        total("demo.lost_steps", [run["lost_steps"] for run in runs], "steps"),
        total("demo.duplicate_steps", [run["duplicate_steps"] for run in runs], "steps"),
        total("demo.stale_steps", [run["stale_steps"] for run in runs], "steps"),
    ]


def measure_tests():
    """Return how long the unit tests and everything of ``./dev test`` take."""
    unit = [
        timed(sys.executable, "-m", "pytest", "-q", "-m", "not component and not slow", "tests/unit", "tests/wire")
        for _ in range(UNIT_REPETITIONS)
    ]
    everything = [timed("./dev", "test")]
    return [median("test.unit_seconds", unit, "s"), median("test.total_seconds", everything, "s")]


def timed(*words):
    """Return the seconds a command takes; ends the measurement where it fails."""
    began = time.monotonic()
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    if status != 0:
        sys.exit(f"bench demo: {' '.join(words)} ended with status {status}")
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
