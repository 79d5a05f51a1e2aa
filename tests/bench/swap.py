"""Swap policies under load, and inject a fault at each stage: no tick may be missed and no wrong policy may drive.

A real roverd with a clock drives a synthetic robot at 30 Hz beside processes that keep each core busy. Policies are
made here and installed one after the other, half of them with --now. Every recorded action is computed again by the
policy that its step names. Rounds in which the machine's owner took CPU time away are counted apart: they say nothing.
"""

import argparse
import random
import sys
import time
from collections import Counter
from contextlib import nullcontext

from protocol.node.socket import ControlError
from tests.bench.figures import Figure, json_option, median, total, write
from tests.bench.load import busy_cores, stolen_s
from tests.daemon.swapfaults import FAULTS
from tests.daemon.swapping import clocked_world
from tests.daemon.track import blocks, missed, skipped, wrong

SETTLE_TICKS = 5
"""Ticks after a swap that still belong to it."""
STEAL_S = 0.005
"""Less stolen time than this in a round is what the clock of /proc/stat cannot tell from none."""


class Round:
    """What one swap came to."""

    def __init__(self, seconds, stolen, steps, before, after):
        self.seconds = seconds
        self.stolen = stolen
        self.skipped, self.missed, self.wrong = skipped(steps), missed(steps), wrong(steps)
        self.is_in_order = blocks(steps) == [before, after]
        self.steps = len(steps)
        self.repeated = sum(bool(step.flags & 512) for step in steps)

    @property
    def counts(self):
        return self.stolen < STEAL_S

    @property
    def is_clean(self):
        return not self.missed and not self.skipped and not self.wrong and self.is_in_order


def swap_rounds(made, count, draw):
    """Swap again and again; return the rounds."""
    rounds, before = [], made.state()["driving"]
    start = len(made.track)
    for index in range(count):
        stolen = stolen_s()
        policy_id, seconds = made.install(now=index % 2 == 0)
        made.wait_steps(SETTLE_TICKS + draw.randrange(3))
        end = len(made.track)
        steps = made.track.since(start)[: end - start]
        rounds.append(Round(seconds, stolen_s() - stolen, steps, before, policy_id))
        start, before = end, policy_id
        last = rounds[-1]
        if not last.is_clean:
            facts = f"missed {last.missed}, skipped {last.skipped}, wrong {last.wrong}, in order {last.is_in_order}"
            print(f"  swap {index + 1}: {facts}, stolen {last.stolen:.3f} s", flush=True)
        elif (index + 1) % 50 == 0:
            print(f"  {index + 1} swaps, the last took {seconds:.2f} s", flush=True)
    return rounds


def baseline(made, seconds):
    """Return how many ticks were missed or skipped while nothing was swapped."""
    start = len(made.track)
    time.sleep(seconds)
    steps = made.track.since(start)
    return missed(steps) + skipped(steps), len(steps)


def inject(made, repetitions, draw):
    """Inject each fault; return how often it was survived, and what went wrong."""
    survived, failures = Counter(), []
    for name, fault in FAULTS.items():
        for repetition in range(repetitions):
            try:
                outcome = fault(made, draw)
            except (AssertionError, ControlError) as error:
                failures.append(f"{name} {repetition + 1}: {str(error)[:300]}")
                print(f"  FAILED {failures[-1]}", flush=True)
            else:
                survived[name] += 1
        print(f"  {name}: survived {survived[name]} of {repetitions}: {outcome}", flush=True)
    return survived, failures


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench swap", description=__doc__)
    json_option(parser)
    parser.add_argument("--swaps", type=int, default=500, metavar="N", help="how many swaps")
    parser.add_argument("--faults", type=int, default=5, metavar="N", help="how often to inject each fault")
    parser.add_argument("--baseline", type=float, default=10.0, metavar="S", help="seconds without a swap, to compare")
    parser.add_argument("--idle", action="store_true", help="without other work on the cores")
    parser.add_argument("--seed", type=int, default=None, metavar="S")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 30) if options.seed is None else options.seed
    draw = random.Random(seed)
    print(f"seed {seed}", flush=True)
    rounds, survived, failures = [], Counter(), []
    quiet = (0, 1)
    with clocked_world(seed=seed) as made:
        granted = {name: each.get("fifo") for name, each in made.rover.get()["control"]["realtime"].items()}
        print(f"  SCHED_FIFO: {granted}", flush=True)
        with nullcontext() if options.idle else busy_cores():
            if options.baseline > 0:
                quiet = baseline(made, options.baseline)
                print(f"  without swaps: {quiet[0]} of {quiet[1]} ticks missed or skipped", flush=True)
            rounds = swap_rounds(made, options.swaps, draw)
            if options.faults > 0:
                survived, failures = inject(made, options.faults, draw)
    write(options.json, figures(rounds, quiet, survived, failures, options))
    return 0 if not failures and all(each.is_clean for each in rounds if each.counts) else 1


def figures(rounds, quiet, survived, failures, options):
    counted = [each for each in rounds if each.counts] or [Round(0.0, 0.0, [], "", "")]
    stolen = [each for each in rounds if not each.counts]
    injected = options.faults * len(FAULTS)
    now, later = [r.seconds for r in rounds[::2]] or [0.0], [r.seconds for r in rounds[1::2]] or [0.0]
    return [
        Figure("swap.count", len(rounds), "", 1, len(rounds), len(rounds)),
        Figure("swap.rounds_with_steal", len(stolen), "", 1, len(stolen), len(stolen)),
        total("swap.missed_ticks", [each.missed + each.skipped for each in counted], "ticks"),
        total("swap.missed_ticks_with_steal", [r.missed + r.skipped for r in stolen] or [0], "ticks"),
        Figure("swap.missed_ticks_without_swaps", quiet[0], "ticks", quiet[1], quiet[0], quiet[0]),
        total("swap.wrong_policy", [each.wrong + (not each.is_in_order) for each in rounds] or [0], "steps"),
        total("swap.ticks", [each.steps for each in rounds] or [0], "ticks"),
        median("swap.now_seconds", now, "s"),
        median("swap.next_episode_seconds", later, "s"),
        total("swap.observations_repeated", [each.repeated for each in rounds] or [0], "ticks"),
        Figure("swap.faults_injected", injected, "", len(FAULTS), options.faults, options.faults),
        total("swap.faults_survived", [survived[name] for name in FAULTS] if injected else [0], ""),
        total("swap.fault_failures", [len(failures)], ""),
        *(total(f"swap.fault.{name}", [survived[name]], "") for name in FAULTS if injected),
    ]


if __name__ == "__main__":
    sys.exit(main())
