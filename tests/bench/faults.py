"""Break a trainer and a rover again and again, and audit that nothing acknowledged is lost, doubled or changed.

Each cycle draws a fault. Some cycles run in worlds where the robot has a clock, some in lock-step, some encrypted.
After so many cycles a world is drained and stopped, and the ledger is compared with the trainer's store.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bench.figures import Figure, json_option, total, worst, write
from tests.faults import powercut, spooled
from tests.faults.world import World, flip_bits

LEAST_HOLD_S, LONGEST_HOLD_S = 0.5, 4.0
KINDS_OF_WORLDS = (("clocked", {}), ("lock-step", {"is_clocked": False}), ("encrypted", {"curve": True}))


def hold(draw, low=LEAST_HOLD_S, high=LONGEST_HOLD_S):
    time.sleep(draw.uniform(low, high))


def kill_trainer(world, draw):
    world.kill(world.trainer)
    hold(draw, 0.0, 2.0)
    world.trainer.start()


def kill_rover(world, draw):
    world.kill(world.rover)
    world.rover.start()


def kill_both(world, draw):
    world.kill(world.trainer)
    world.kill(world.rover)
    world.rover.start()
    hold(draw, 0.0, 2.0)
    world.trainer.start()


def cut_both_ways(world, draw):
    world.wire.cut()
    hold(draw)
    world.wire.heal()


def cut_up(world, draw):
    world.wire.up.is_cut = True
    hold(draw)
    world.wire.heal()


def cut_down(world, draw):
    world.wire.down.is_cut = True
    hold(draw)
    world.wire.heal()


def slow_link(world, draw):
    world.wire.slow(delay_s=draw.uniform(0.02, 0.3), jitter_s=draw.uniform(0, 0.1))
    hold(draw)
    world.wire.heal()


def thin_link(world, draw):
    world.wire.slow(rate_bytes_per_s=draw.uniform(4e3, 5e4))
    hold(draw)
    world.wire.heal()


def reset_link(world, draw):
    for _ in range(draw.randrange(1, 6)):
        world.wire.reset()
        hold(draw, 0.0, 0.5)


def refuse_link(world, draw):
    world.wire.refuse()
    hold(draw)
    world.wire.heal()


def power_cut_trainer(world, draw):
    world.cut_power("trainer")
    hold(draw, 0.0, 2.0)
    world.trainer.start()


def power_cut_rover(world, draw):
    """Half of the time the link is down before, so that the last seconds are on the rover's disk only."""
    if draw.random() < 0.5:
        world.wire.cut()
        hold(draw, 1.0)
    world.cut_power("rover")
    world.wire.heal()
    world.rover.start()


def power_cut_both(world, draw):
    world.cut_power("trainer", "rover")
    world.rover.start()
    world.trainer.start()


def full_trainer(world, draw):
    world.disks["trainer"].fill(leave_bytes=draw.choice((0, 0, 1 << 16)))
    try:
        hold(draw, 2.0)
        assert world.trainer.is_running, "trainerd ended on a full disk"
    finally:
        world.disks["trainer"].free()


def full_rover(world, draw):
    """The link is down meanwhile, so that the spool must grow."""
    world.disks["rover"].fill(leave_bytes=draw.choice((0, 0, 1 << 16)))
    try:
        world.wire.cut()
        ticks = world.rover.get()["ticks"]
        hold(draw, 2.0)
        assert world.rover.get()["ticks"] > ticks or not world.is_clocked, "the robot stands on a full disk"
    finally:
        world.disks["rover"].free()
        world.wire.heal()


def freeze_trainer(world, draw):
    world.freeze(world.trainer)
    hold(draw, 0.5, 5.0)
    if draw.random() < 0.5:
        world.kill(world.trainer)
        world.trainer.start()
    else:
        world.thaw(world.trainer)


def freeze_rover(world, draw):
    world.freeze(world.rover)
    hold(draw)
    world.thaw(world.rover)


def flip_spool(world, draw):
    """Let records lie in the spool, end the rover, flip bits, and start it again."""
    world.wire.cut()
    hold(draw, 1.0, 2.5)
    world.kill(world.rover)
    world.expect_spooled()
    flip_bits(spooled.segments(world.rover_state), draw, draw.randrange(1, 6))
    world.wire.heal()
    world.rover.start()


def corrupt_link(world, draw):
    """Flip bits of what passes; only where keys protect it can that be noticed."""
    for way in (world.wire.up, world.wire.down):
        way.flip_every_bytes = draw.randrange(2_000, 50_000)
    hold(draw)
    world.wire.heal()
    world.wire.reset()


FAULTS = {
    each.__name__: each
    for each in (
        kill_trainer,
        kill_rover,
        kill_both,
        cut_both_ways,
        cut_up,
        cut_down,
        slow_link,
        thin_link,
        reset_link,
        refuse_link,
        power_cut_trainer,
        power_cut_rover,
        power_cut_both,
        full_trainer,
        full_rover,
        freeze_trainer,
        freeze_rover,
        flip_spool,
        corrupt_link,
    )
}
NEED_DISKS = {"power_cut_trainer", "power_cut_rover", "power_cut_both", "full_trainer", "full_rover"}
ENCRYPTED_ONLY = {"corrupt_link"}
PLAIN_ONLY = {"flip_spool", "full_rover"}
"""Records may be given up there, and the audit has to hear the rover say which."""


class Tally:
    """What all cycles found."""

    def __init__(self):
        self.kinds = Counter()
        self.verdicts = []
        self.losses_s = []
        self.back_s = []
        self.failures = []
        self.damages = 0
        """Log lines of rovers that found damage in their spool."""

    @property
    def is_clean(self):
        return not self.failures and all(verdict.is_clean for verdict in self.verdicts)

    def figures(self):
        def found(name):
            return [getattr(verdict, name) for verdict in self.verdicts] or [0]

        return [
            Figure(
                "faults.cycles", sum(self.kinds.values()), "", 1, sum(self.kinds.values()), sum(self.kinds.values())
            ),
            total("faults.acked_lost", found("acked_lost"), "records"),
            total("faults.duplicates", found("duplicates"), "records"),
            total("faults.undetected_corruption", found("undetected_corruption"), "records"),
            total("faults.gaps", found("gaps"), "records"),
            total("faults.given_up", found("given_up"), "records"),
            worst("faults.unacked_loss_seconds", self.losses_s or [0.0], "s"),
            worst("faults.back_at_work_seconds", self.back_s or [0.0], "s"),
            total("faults.records_audited", found("stored"), "records"),
            total("faults.detected_damage", [self.damages], ""),
            total("faults.failures", [len(self.failures)], ""),
            *(total(f"faults.kind.{name}", [count], "") for name, count in sorted(self.kinds.items())),
        ]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench faults", description=__doc__)
    json_option(parser)
    parser.add_argument("--cycles", type=int, default=20, metavar="N", help="faults in all")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="draw the same faults again")
    parser.add_argument("--per-world", type=int, default=10, metavar="N", help="faults before a new pair and an audit")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="draw from these faults")
    parser.add_argument("--world", choices=[name for name, _ in KINDS_OF_WORLDS], help="only worlds of this kind")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and files here")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 30) if options.seed is None else options.seed
    print(f"seed {seed}" + (f"; {reason}" if (reason := powercut.why_not()) else ""))
    tally, left, number = Tally(), options.cycles, 0
    while left > 0:
        count = min(left, options.per_world)
        run_world(options, tally, random.Random(f"{seed}/{number}"), number, count)
        left, number = left - count, number + 1
    for line in tally.failures:
        print(f"  FAILED {line}")
    write(options.json, tally.figures())
    return 0 if tally.is_clean else 1


def run_world(options, tally, draw, number, count):
    """Run cycles in one world and audit it; a world that does not come back is a failure and is left."""
    kinds = [each for each in KINDS_OF_WORLDS if options.world in {None, each[0]}]
    kind, facts = kinds[number % len(kinds)]
    with tempfile.TemporaryDirectory(prefix="roverloop-faults-", ignore_cleanup_errors=True) as temporary:
        folder = (options.keep or Path(temporary)) / f"world-{number}"
        place = f"world {number} ({kind})"
        try:
            with World(folder, seed=draw.randrange(1 << 30), **facts) as world:
                run_cycles(options, tally, world, draw, place, count)
            tally.failures += [f"{place}: {each}" for each in world.wrong]
        except (AssertionError, OSError) as error:
            tally.failures.append(f"{place}: {type(error).__name__}: {str(error)[:400]}")
            print(f"  {tally.failures[-1]}", flush=True)


def run_cycles(options, tally, world, draw, place, count):
    names = [
        name
        for name in options.only or FAULTS
        if not (name in NEED_DISKS and not world.disks)
        and not (name in ENCRYPTED_ONLY and not world.curve)
        and not (name in PLAIN_ONLY and world.curve)
    ]
    world.wait_driving()
    for cycle in range(count):
        name = draw.choice(names)
        tally.kinds[name] += 1
        hold(draw, 0.2, 1.5)
        began = time.monotonic()
        try:
            FAULTS[name](world, draw)
            healed = time.monotonic()
            world.wait_flowing()
        except AssertionError as error:
            raise AssertionError(f"cycle {cycle}, {name}: {error}") from error
        tally.back_s.append(time.monotonic() - healed)
        print(f"  {place}, {name}: {time.monotonic() - began:.1f} s, back {tally.back_s[-1]:.1f} s", flush=True)
    world.drain()
    for daemon in (world.rover, world.trainer):
        assert daemon.stop() == 0, f"{daemon.name} ended with {daemon.process.returncode}"
    verdict = world.audit()
    tally.verdicts.append(verdict)
    tally.damages += len(world.rover.events("spool.damaged", "spool.held_back"))
    tally.damages += sum(bool(each.get("damaged")) for each in world.rover.events("spool.recovered"))
    tally.losses_s += world.losses_s() if world.is_clocked else []
    tally.failures += [f"{place}: {each}" for each in verdict.details]
    tally.failures += [f"{place}: {path}: {error}" for path, error in world.store.unreadable.items()]
    print(
        f"  {place}: {verdict.stored} records stored, {verdict.acked} acknowledged, clean: {verdict.is_clean}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
