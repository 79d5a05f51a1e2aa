"""Break a driving robot in every way there is, and time how long its motors go on; then kill its processes 100 times.

The robot is a real roverd with a motor board beside it, in a process of its own, whose journal says when the motors
stood. Limits are those of the safety chain: docs/safety.md.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure, json_option, worst, write
from tests.daemon.conftest import opened
from tests.daemon.daemons import wait_until
from tests.faults import spooled
from tests.faults.stand import Stand
from tests.faults.standby import StandbyStand
from tests.faults.stops import DECISION_MS, FAULTS, time_one

FEW = 8
PAUSE_S = 1.2
"""Between two kills: control that dies ten times within ten seconds ends roverd on purpose."""


def shared_kb():
    """Return the shared memory of the machine, which is where a ring without a holder would stay."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Shmem:")))


def shared_names():
    return {each.name for each in Path("/dev/shm").iterdir()}


def stolen_ticks():
    return int(Path("/proc/stat").read_text().splitlines()[0].split()[8])


def measure_faults(stand, names, repetitions):
    """Return the times of each fault in ms; a try during which the host stole the processor is made again, once."""
    taken = {fault: [] for fault in FAULTS if not names or fault.name in names}
    for count in range(repetitions):
        for fault, times in taken.items():
            stolen = stolen_ticks()
            took = time_one(stand, fault)
            if took > fault.limit_ms and stolen_ticks() > stolen:
                print(f"  {fault.name}: {took:.1f} ms while the host had the processor; again", flush=True)
                took = time_one(stand, fault)
            times.append(took)
            time.sleep(0.0 if len(taken) > FEW else PAUSE_S)
        print(f"repetition {count + 1} of {repetitions}", flush=True)
    for fault, times in taken.items():
        mark = "" if max(times) <= fault.limit_ms else "  OVER THE LIMIT"
        told = f"worst {max(times):7.1f} of {fault.limit_ms:5.1f} ms, n = {len(times)}"
        print(f"{fault.name:<26} {told}{mark}", flush=True)
    return taken


def measure_standby(site, folder, repetitions):
    """Return, for a killed and a stopped policy process, after how many ms the standby's first answer was applied."""
    stand = StandbyStand(site, folder, count=2 * repetitions + 2)
    moments = {}
    try:
        for _ in range(repetitions):
            for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
                stand.advance()
                stand.wait_ready()
                time.sleep(1.0)
                pid = stand.policy()
                moments.setdefault(name, []).append((time.monotonic_ns(), stand.second))
                os.kill(pid, number)
                wait_until(lambda pid=pid: stand.policy() != pid, what="another policy process drives")
        stand.rover.stop()
        driven = [
            (each["applied_ns"], each["policy_id"])
            for each in spooled.headers(stand.rover.state_dir)
            if each["kind"] == "step" and each["source"] == "policy"
        ]
    finally:
        stand.close()
    return {
        name: [
            1e-6 * (min(ns for ns, policy_id in driven if ns > moment and policy_id != killed) - moment)
            for moment, killed in times
        ]
        for name, times in moments.items()
    }


def kill_at_random(stand, kills, seed):
    """Kill -9 random processes of the rover; return (leaked kB, names left in /dev/shm, processes left)."""
    draw = random.Random(seed)
    stand.drive()
    names, before = shared_names(), shared_kb()
    for count in range(kills):
        wait_until(lambda: stand.rover.is_running and stand.rover.get()["control"]["has_spare"], what="all runs")
        pids = stand.rover.pids()
        victim = draw.choice(pids)
        if victim == stand.rover.pid:
            stand.rover.was_killed = True
        os.kill(victim, signal.SIGKILL)
        time.sleep(PAUSE_S)
        if not stand.rover.is_running:
            stand.rover.start()
        if count % 10 == 9:
            print(f"  {count + 1} kills, {shared_kb() - before:+d} kB of shared memory", flush=True)
    stand.drive()
    leaked = shared_kb() - before
    stand.rover.stop()
    time.sleep(1.0)
    return leaked, sorted(shared_names() - names), len(stand.rover.pids()) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20, help="tries of each fault (20)")
    parser.add_argument("--kills", type=int, default=100, help="random kill -9 afterwards (100)")
    parser.add_argument("--only", nargs="*", default=[], help="names of faults")
    parser.add_argument("--seed", type=int, default=0)
    json_option(parser)
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), curve=False) as site:
        stand = Stand(site)
        try:
            taken = measure_faults(stand, options.only, options.repetitions)
            figures += [worst(f"stop.{fault.name}_ms", times, "ms") for fault, times in taken.items()]
            over = [fault.name for fault, times in taken.items() if max(times) > fault.limit_ms]
            figures.append(Figure("stop.over_the_limit", len(over), "faults", len(taken), 0, len(over)))
            if not options.only:
                for name, times in measure_standby(site, Path(folder), options.repetitions).items():
                    figures.append(worst(f"stop.policy_{name}_standby_ms", times, "ms"))
                    over += [name] if max(times) > DECISION_MS + 1.0 else []
            if options.kills:
                leaked, names, processes = kill_at_random(stand, options.kills, options.seed)
                figures.append(Figure("control.leaked_kb_100_kills", leaked, "kB", options.kills, leaked, leaked))
                figures.append(Figure("control.names_left", len(names), "names", options.kills, 0, len(names)))
                figures.append(Figure("control.processes_left", processes, "processes", options.kills, 0, processes))
        finally:
            stand.close()
    write(options.json, figures)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
