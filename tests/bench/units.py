"""Measure how the daemons come back under a real systemd, and how exposed their units are.

They run in a container that systemd-nspawn boots (tests/faults/machine.py), installed by ``./dev install`` with the
units as they are shipped. A recovery is the time from a fault until another process has said READY to systemd. A robot
does not wait for it: control stops the wheels within milliseconds of roverd's end.
"""

import argparse
import sys
import time

from tests.bench.figures import Figure, json_option, median, worst, write
from tests.faults.machine import Machine, why_not

DAEMONS = ("roverd", "trainerd")
HANGS = ("STOP", "USR2")
"""The whole process stopped, and a call in the event loop that does not return."""
LIMIT_S = 5.0
EXPOSED = 2.0


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench units", description=__doc__)
    json_option(parser)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="of each fault and daemon")
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"./dev bench units: {reason}", file=sys.stderr)
        return 1
    with Machine() as machine:
        machine.install("rover", "trainer")
        machine.sabotage("uplink")
        figures = [
            *(exposure(machine, daemon) for daemon in DAEMONS),
            *recoveries(machine, options.repetitions),
            activation(machine, options.repetitions),
        ]
    write(options.json, figures)
    return 0 if all(is_good(each) for each in figures) else 1


def is_good(figure):
    """Compare with what the units promise."""
    if "security" in figure.name:
        return figure.value <= EXPOSED
    return "watchdog" not in figure.name or figure.value <= LIMIT_S


def exposure(machine, daemon):
    value = machine.exposure(f"{daemon}.service")
    return Figure(f"systemd.security_{daemon}", value, "", 1, value, value)


def recoveries(machine, repetitions):
    """Measure the worst recovery of each daemon from hangs, and the usual one from kill -9."""
    for daemon in DAEMONS:
        machine.must("systemctl", "start", daemon)
        hung = [recovery(machine, daemon, how) for _ in range(repetitions) for how in HANGS]
        killed = [recovery(machine, daemon, "KILL") for _ in range(repetitions)]
        machine.must("systemctl", "stop", daemon)
        name = "systemd.watchdog_recovery_seconds"
        yield worst(name if daemon == "roverd" else f"{name}_{daemon}", hung, "s")
        yield median(f"systemd.kill_recovery_seconds_{daemon}", killed, "s")


def recovery(machine, daemon, how):
    machine.settle(daemon)
    seconds = machine.back_after(daemon, how)
    print(f"  {daemon} back {seconds:.2f} s after {how}", flush=True)
    return seconds


def activation(machine, repetitions):
    """Measure the first answer of a trainerd that a call starts."""
    seconds = []
    for _ in range(repetitions):
        machine.must("systemctl", "stop", "trainerd.socket", "trainerd")
        machine.must("systemctl", "start", "trainerd.socket")
        began_s = time.monotonic()
        machine.client("trainerd").get("/status")
        seconds.append(time.monotonic() - began_s)
    return median("systemd.socket_activation_seconds", seconds, "s")


if __name__ == "__main__":
    sys.exit(main())
