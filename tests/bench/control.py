"""Time the clock of a driving robot at 30 Hz: with and without a load on its cores, with SCHED_FIFO and without.

A real roverd with a real policy (ONNX Runtime) drives; the load is what a trainer on the same cores would be: two
processes that train a convolutional network, and two that run Python. Rounds in which the host took the processor away
(steal time of /proc/stat) are shown and left out: such a round says nothing of us.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.bench.figures import Figure, json_option, write
from tests.bench.seed_policy import bundles, specs
from tests.daemon.conftest import opened
from tests.daemon.daemons import DIE_WITH_PARENT, driving, wait_until

ROUND_S = 10.0
RATE_HZ, DELAY_MS = 30.0, 20.0
STEAL_TOLERATED_S = 0.02
"""Steal that a round may show: a hundredth of a core-second is the resolution."""
SIZE = {"image_height": 60, "image_width": 106}
LIMITS = {
    "control.p99_ms_fifo_loaded": 1.0,
    "control.p999_ms_fifo_loaded": 5.0,
    "control.missed_proposals_percent": 0.1,
}
TRAINING = """
import torch
torch.set_num_threads(1)
net = torch.nn.Sequential(
    torch.nn.Conv2d(4, 32, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 2))
step = torch.optim.Adam(net.parameters())
x = torch.rand(256, 4, 60, 106)
while True:
    step.zero_grad()
    net(x).square().mean().backward()
    step.step()
"""
PYTHON = "n = 0\nwhile True: n = (n * 31 + 7) % 1000003"


@contextlib.contextmanager
def load(is_on):
    words = [TRAINING, TRAINING, PYTHON, PYTHON] if is_on else []
    running = [subprocess.Popen([sys.executable, "-c", DIE_WITH_PARENT, "-c", each]) for each in words]
    time.sleep(3.0 if is_on else 0.0)
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def stolen_s():
    return int(Path("/proc/stat").read_text().splitlines()[0].split()[8]) / 100


class Measured:
    """What the rounds of one condition gave."""

    def __init__(self, name):
        self.name, self.ticks_ms, self.actions_ms = name, [], []
        self.per_round, self.rounds, self.stolen_rounds, self.stolen_s = [], 0, 0, 0.0
        self.ticks = self.missed = self.skipped = 0

    def add(self, before, after, stolen, lateness):
        self.rounds += 1
        self.stolen_s += stolen
        if stolen > STEAL_TOLERATED_S:
            self.stolen_rounds += 1
            return
        ticks_ms = np.array(lateness["ticks_ns"]) * 1e-6
        self.ticks_ms.append(ticks_ms)
        self.actions_ms.append(np.array(lateness["actions_ns"]) * 1e-6)
        self.per_round.append(float(np.percentile(ticks_ms, 99)))
        self.ticks += after["ticks"] - before["ticks"]
        for name in ("missed", "skipped"):
            setattr(self, name, getattr(self, name) + after["control"][name] - before["control"][name])

    def figures(self):
        if not self.ticks_ms:
            print(f"{self.name}: the host took the processor away in each of {self.rounds} rounds")
            return []
        made = []
        low, high = min(self.per_round), max(self.per_round)
        for kind, values in (("", np.concatenate(self.ticks_ms)), ("action_", np.concatenate(self.actions_ms))):
            for label, q in (("p50", 50), ("p99", 99), ("p999", 99.9), ("max", 100)):
                value = float(np.percentile(values, q))
                spread = (low, high) if (kind, label) == ("", "p99") else (value, value)
                made.append(Figure(f"control.{kind}{label}_ms_{self.name}", value, "ms", len(values), *spread))
        percent = 100 * self.missed / max(1, self.ticks)
        made.append(Figure(f"control.missed_percent_{self.name}", percent, "%", self.ticks, percent, percent))
        made.append(Figure(f"control.skipped_ticks_{self.name}", self.skipped, "ticks", self.ticks, 0, self.skipped))
        stolen = (self.stolen_s, "s", self.rounds, 0, self.stolen_s)
        made.append(Figure(f"control.stolen_seconds_{self.name}", *stolen))
        made.append(Figure(f"control.rounds_left_out_{self.name}", self.stolen_rounds, "rounds", self.rounds, 0, 0))
        return made


def measure(rover, name, seconds, *, is_loaded):
    measured = Measured(name)
    with load(is_loaded):
        for _ in range(max(1, round(seconds / ROUND_S))):
            count, before, stolen = rover.get("/lateness")["count"], rover.get(), stolen_s()
            time.sleep(ROUND_S)
            stolen = stolen_s() - stolen
            measured.add(before, rover.get(), stolen, rover.get(f"/lateness?since={count}"))
    print(f"{name}: p99 of each round {', '.join(f'{each:.3f}' for each in measured.per_round)} ms", flush=True)
    return measured


def drive(site, bundle, *, is_realtime):
    settings = {
        "robot": "synthetic",
        "control.rate_hz": RATE_HZ,
        "control.realtime": is_realtime,
        "plugins.synthetic.control_rate_hz": RATE_HZ,
        "plugins.synthetic.action_delay_ms": DELAY_MS,
        **{f"plugins.synthetic.{key}": value for key, value in SIZE.items()},
        "selfcheck.required": "never",
        "teleop.port": 0,
        "link.curve": False,
    }
    rover = site.rover(settings, "--policy", str(bundle), name="fifo" if is_realtime else "fallback")
    driving(rover)
    wait_until(lambda: rover.get()["control"]["has_spare"], what="the spare")
    return rover


def judge(values) -> int:
    """Return 0 where the limits hold, 1 where one does not, 2 where every round had stolen time."""
    over = [name for name, limit in LIMITS.items() if values.get(name, 0.0) > limit]
    missing = [name for name in LIMITS if name not in values]
    for name in over:
        print(f"{name} is over its limit of {LIMITS[name]:g}")
    if missing:
        print(f"not measured, because the host took the processor away in every round: {', '.join(missing)}")
    return 1 if over else 2 if missing else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="time of each condition (120)")
    json_option(parser)
    options = parser.parse_args()
    robot = {**SIZE, "control_rate_hz": RATE_HZ, "action_delay_ms": DELAY_MS}
    found = []
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), curve=False) as site:
        path = Path(folder) / "seed.bundle"
        path.write_bytes(bundles(*specs("synthetic", "goal", robot), 1)[0])
        for is_realtime, name in ((True, "fifo"), (False, "fallback")):
            rover = drive(site, path, is_realtime=is_realtime)
            granted = rover.get()["control"]["realtime"]
            print({each: (facts["fifo"], facts["nice"], facts["reason"]) for each, facts in granted.items()})
            found.append(measure(rover, f"{name}_idle", options.seconds, is_loaded=False))
            found.append(measure(rover, f"{name}_loaded", options.seconds, is_loaded=True))
            rover.stop()
    figures = [figure for each in found for figure in each.figures()]
    loaded = next(each for each in found if each.name == "fifo_loaded")
    if loaded.ticks:
        percent = 100 * loaded.missed / loaded.ticks
        figures.append(Figure("control.missed_proposals_percent", percent, "%", loaded.ticks, percent, percent))
    write(options.json, figures)
    return judge({each.name: each.value for each in figures})


if __name__ == "__main__":
    sys.exit(main())
