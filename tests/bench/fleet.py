"""Drive a hundred simulated rovers against one trainerd; kill it, cut the network, and see when all are back."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure, json_option, total, worst, write
from tests.daemon.daemons import OPEN, Site, wait_until
from tests.faults.fleet import RATE_HZ, Fleet, make_keys
from tests.faults.ledger import Store
from tests.faults.wire import Wire

PATIENCE_S = 120.0


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench fleet", description=__doc__)
    json_option(parser)
    parser.add_argument("--rovers", type=int, default=100, metavar="N")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="time before and between the faults")
    parser.add_argument("--outage", type=float, default=10.0, metavar="S", help="length of the network's cut")
    parser.add_argument("--no-curve", action="store_true", help="without keys")
    parser.add_argument("--learn", action="store_true", help="let trainerd learn meanwhile")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="roverloop-fleet-") as folder:
        figures, is_good = measure(options, Path(folder))
    write(options.json, figures)
    return 0 if is_good else 1


def measure(options, folder):
    site = Site(folder)
    state = folder / "trainerd" / "state"
    names = [f"sim-{number:03d}" for number in range(options.rovers)]
    keys = None if options.no_curve else admit(state, names)
    settings = {"train.frozen": not options.learn, "ppo.rollout": 8192, "ppo.minibatch": 512}
    settings["ppo.behaviour_limit"] = 0.0  # what they act is made up
    OPEN.append(site)
    try:
        trainer = site.trainer({**settings, "link.curve": keys is not None})
        with Wire(site.port) as wire, Fleet(f"tcp://127.0.0.1:{wire.port}", names, keys) as fleet:
            result = storms(options, trainer, wire, fleet)
            fleet.stand()
            wait_until(lambda: fleet.unacknowledged == 0, PATIENCE_S, what="everything is acknowledged")
            status = trainer.get()
        site.check()
    finally:
        wrong = site.close()
        OPEN.remove(site)
    store = Store(state / "episodes").read()
    found = fleet.lost(store.digests)
    counts = fleet.counts()
    print(
        f"  {counts}; {found}; repeated {len(store.repeated)}, unreadable {store.unreadable}; {wrong or 'ended well'}"
    )
    found["duplicates"] = len(store.repeated)
    count = options.rovers
    figures = [
        Figure("fleet.rovers", count, "", 1, count, count),
        worst("fleet.storm_recovery_seconds", result["storms"], "s"),
        Figure("fleet.steps_per_second", result["rate"], "1/s", 1, result["rate"], result["rate"]),
        *(total(f"fleet.{name}", [value], "records") for name, value in found.items()),
        total("fleet.refusals", [counts.get("refusals", 0)], ""),
    ]
    if (zap_ms := find(status, "zap_ms")) is not None:
        figures.append(worst("fleet.zap_ms", [zap_ms], "ms"))
    is_good = not (found["acked_lost"] or found["duplicates"] or found["undetected_corruption"] or wrong)
    return figures, is_good


def admit(state, names):
    """Make keys for the trainer and every rover, and let them in."""
    from protocol.keys import load_or_make
    from trainerd.access import Access

    state.mkdir(parents=True)
    trainer = load_or_make(state / "keys" / "curve.json").public
    access = Access(state / "rovers.json")
    keys = {name: make_keys(trainer) for name in names}
    for name, each in keys.items():
        access.add(name, each.public)
    return keys


def storms(options, trainer, wire, fleet):
    """Return the rate of steps, and the seconds until all rovers were back after each storm."""
    count = options.rovers
    wait_until(lambda: fleet.back_since(0.0) == count, PATIENCE_S, what=f"{count} rovers are linked")
    wait_until(lambda: fleet.unacknowledged < 10 * count, PATIENCE_S, what="what waited during the start is there")
    before, began = fleet.counts()["acknowledged"], time.monotonic()
    time.sleep(options.seconds)
    rate = (fleet.counts()["acknowledged"] - before) / (time.monotonic() - began)
    print(f"  {count} rovers linked; {rate:.0f} records/s acknowledged of {count * RATE_HZ:.0f}", flush=True)

    trainer.kill()
    killed = time.monotonic()
    time.sleep(2.0)
    trainer.start()
    wait_until(lambda: trainer.is_running and trainer.get()["port"], PATIENCE_S, what="trainerd answers")
    seconds = [back(fleet, killed, count, "kill -9 of trainerd")]
    time.sleep(options.seconds)

    wire.refuse()
    cut = time.monotonic()
    time.sleep(options.outage)
    wire.heal()
    seconds.append(back(fleet, cut, count, "cut of the network"))
    time.sleep(options.seconds / 3)
    return {"rate": rate, "storms": seconds}


def back(fleet, since, count, what):
    """Wait until every rover was welcomed and acknowledged again; return how long that takes from now."""
    began = time.monotonic()
    wait_until(lambda: fleet.back_since(since) == count, PATIENCE_S, what=f"{count} rovers are back")
    seconds = time.monotonic() - began
    print(f"  {what}: all {count} back in {seconds:.1f} s", flush=True)
    return seconds


def find(values, key):
    """Return the value of a key anywhere in a status."""
    if isinstance(values, dict):
        if key in values:
            return values[key]
        return next((each for value in values.values() if (each := find(value, key)) is not None), None)
    return None


if __name__ == "__main__":
    sys.exit(main())
