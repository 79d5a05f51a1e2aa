"""Learn environments of Gymnasium and compare the returns with what others published for the same budgets.

The short ones go through both daemons, as a robot does: roverd drives in lock-step, trainerd learns, exports and
publishes, and the last policy is evaluated without exploration by an order. The long ones run in one process over the
same learner. Each bar is for the median of the seeds; each seed counts with the mean of its evaluation episodes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from protocol.errors import RoverError
from protocol.node import log as logs
from tests.bench.figures import ROOT, json_option, write
from tests.bench.figures import median as median_figure
from trainerd.demo.daemons import Pair, assignments
from trainerd.demo.report import is_learned

POLL_S = 0.5
PATIENCE_S = 3600.0
EVALUATION_SEED = 1_000_000
"""First arena of the evaluation; roverd's training arenas are below it."""


@dataclass(frozen=True)
class Case:
    """One environment, its budget of decisions, and the least median return."""

    environment: str
    decisions: int
    bar: float
    through_daemons: bool
    source: str


CASES = (
    Case("CartPole-v1", 100_000, 475.0, True, "the environment's own threshold"),
    Case("InvertedPendulum-v5", 100_000, 900.0, True, "of 1,000; CleanRL has 963 after 1M steps"),
    Case("Pendulum-v1", 100_000, -250.0, True, "rl-baselines3-zoo has -172 +- 104"),
    Case("HalfCheetah-v4", 1_000_000, 1442.64 - 46.03, False, "CleanRL's table less one standard deviation"),
    Case("Hopper-v4", 1_000_000, 2382.86 - 271.74, False, "CleanRL's table less one standard deviation"),
)


class RunFailedError(RoverError):
    """A run ended without a result."""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench correctness", description=__doc__)
    json_option(parser)
    names = [case.environment for case in CASES]
    parser.add_argument("--only", action="append", choices=names, metavar="ENV", help=f"one of {', '.join(names)}")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (drawn here, not chosen)")
    parser.add_argument("--steps", type=int, metavar="N", help="budget of each run (default: that of the bar)")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="episodes of each evaluation")
    parser.add_argument("--in-process", action="store_true", help="without daemons, to try hyperparameters")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the runs here")
    options = parser.parse_args(arguments)
    output = options.output or Path(tempfile.mkdtemp(prefix="roverloop-correctness-"))
    output.mkdir(parents=True, exist_ok=True)
    seeds = [int.from_bytes(os.urandom(3), "big") for _ in range(options.seeds)]
    print(f"seeds {seeds}, runs in {output}", flush=True)
    figures, is_below = [], False
    for case in CASES:
        if options.only and case.environment not in options.only:
            continue
        runs = [measure(case, seed, options, output / f"{case.environment}-{seed}") for seed in seeds]
        figures += figures_of(case, runs)
        reached = median(run["return"] for run in runs)
        verdict = "reached" if reached >= case.bar else "BELOW THE BAR"
        print(f"{case.environment}: median {reached:.1f}, bar {case.bar:.1f} ({case.source}): {verdict}", flush=True)
        is_below |= reached < case.bar
        write(options.json, figures)  # already now: a later failure must not cost an hour of runs
    return int(is_below)


def measure(case, seed, options, output):
    """Run one seed; return its figures."""
    steps = options.steps or case.decisions
    learn = through_daemons if case.through_daemons and not options.in_process else in_process
    began_s = time.monotonic()
    run = {**learn(case.environment, seed, steps, options.episodes, output), "wall_s": time.monotonic() - began_s}
    print(f"{case.environment} seed {seed}: return {run['return']:.1f}, {run['wall_s']:.0f} s", flush=True)
    return run


def figures_of(case, runs):
    """Return the figures of one environment."""
    name = case.environment
    figures = [median_figure(f"return.{name}", [run["return"] for run in runs], "return")]
    for key, unit in (("return_exploring", "return"), ("steps_per_cpu_second", "1/s"), ("decisions_per_second", "1/s")):
        values = [run[key] for run in runs if key in run]
        figures += [median_figure(f"{key}.{name}", values, unit)] if values else []
    return figures


def in_process(environment, seed, steps, episodes, output):
    """Learn in a process of its own, without daemons."""
    output.mkdir(parents=True, exist_ok=True)
    report = output / "figures.json"
    words = ["--env", environment, "--seed", seed, "--steps", steps, "--episodes", episodes, "--json", report]
    status = subprocess.run(
        [sys.executable, "-m", "trainerd.learning.gymrun", *map(str, words)], cwd=ROOT, check=False
    ).returncode
    if status != 0:
        raise RunFailedError(f"{environment} seed {seed}: the runner ended with status {status}")
    return json.loads(report.read_text())


def through_daemons(environment, seed, steps, episodes, output):
    """Learn with trainerd and roverd as processes of their own, then order an evaluation."""
    trainer = ["--profile", f"gym:{environment}", *assignments({"seed": seed, "train.decisions": steps})]
    rover = ["--profile", "gym", "--robot", f"gym:{environment}", *assignments({"seed": seed})]
    with Pair(output, trainerd=trainer, roverd=rover) as pair:
        began_s = time.monotonic()
        status = waited(pair, lambda: pair.trainerd.get("/status"), is_learned)
        seconds = time.monotonic() - began_s
        asked = {"policy": "latest", "episodes": episodes, "seed": EVALUATION_SEED}
        place = f"/evaluations/{pair.trainerd.client.post('/evaluate', asked)['id']}"
        evaluation = waited(
            pair, lambda: pair.trainerd.get(place), lambda found: found["stage"] in {"finished", "failed"}
        )
    if evaluation["stage"] == "failed":
        raise RunFailedError(f"{environment} seed {seed}: evaluation: {evaluation['reason']}")
    return {"return": evaluation["result"]["return"], "decisions_per_second": status["decisions"] / seconds}


def waited(pair, ask, is_enough):
    """Ask until the answer is enough; raises where a daemon died or nothing comes of it for an hour."""
    end_s = time.monotonic() + PATIENCE_S
    while not is_enough(answer := ask()):
        pair.roverd.check()
        if time.monotonic() > end_s:
            raise RunFailedError(f"not done within {PATIENCE_S:g} s: {answer}")
        time.sleep(POLL_S)
    return answer


if __name__ == "__main__":
    logs.configure("bench", level="warning")  # what the daemons say stands in their own files
    try:
        sys.exit(main())
    except RoverError as error:
        sys.exit(f"bench correctness: {error}")
