"""Measure the link: steps per second of one trainer core, bytes a step, and the same work through two peers.

docs/benchmarks/link.md says what each figure is and how it is measured.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from protocol.framing import encode_record
from tests.bench.figures import Figure, json_option, median, write
from tests.bench.linkbench import codecs, frames, load, pairs
from trainerd.episodes.catalogue import Catalogue
from trainerd.episodes.reader import open_episode

PART = "tests.bench.linkbench"
OURS = ([f"{PART}.receiver"], [f"{PART}.sender"])
PICKLE = ([f"{PART}.peer_pickle", "serve"], [f"{PART}.peer_pickle", "send"])
GRPC = ([f"{PART}.peer_grpc", "serve"], [f"{PART}.peer_grpc", "send"])
VARIANTS = {
    "plain": (OURS, {"curve": False, "durable": False}),
    "curve": (OURS, {"curve": True, "durable": False}),
    "durable": (OURS, {"curve": True, "durable": True}),
    "pickle_lz4": (PICKLE, {"depth": "uint16", "batch": 1, "durable": False, "secure": False}),
    "pickle_lz4_64": (PICKLE, {"depth": "uint16", "batch": 64, "durable": False, "secure": False}),
    "pickle_lz4_float32": (PICKLE, {"depth": "float32", "batch": 1, "durable": False, "secure": False}),
    "grpc": (GRPC, {"depth": "uint16", "durable": False, "secure": False}),
    "grpc_unary": (GRPC, {"depth": "uint16", "durable": False, "secure": False, "unary": True}),
    "grpc_float32": (GRPC, {"depth": "float32", "durable": False, "secure": False}),
    "durable_pickle_lz4": (PICKLE, {"depth": "uint16", "batch": 16, "durable": True, "secure": False}),
    "durable_pickle_lz4_64": (PICKLE, {"depth": "uint16", "batch": 64, "durable": True, "secure": False}),
    "durable_grpc": (GRPC, {"depth": "uint16", "durable": True, "secure": False}),
    "durable_grpc_float32": (GRPC, {"depth": "float32", "durable": True, "secure": False}),
    "secure_durable_pickle_lz4": (PICKLE, {"depth": "uint16", "batch": 16, "durable": True, "secure": True}),
    "secure_durable_grpc": (GRPC, {"depth": "uint16", "durable": True, "secure": True}),
}
"""What is measured in turn, so that a slow minute of the machine is everybody's."""
QUICK = ("plain", "curve", "durable", "pickle_lz4", "grpc", "durable_pickle_lz4", "durable_grpc")
STEPS_OF_BATCHES = 64
"""Numbers of steps are multiples of it, so that no peer has half a batch."""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench link", description=__doc__)
    json_option(parser)
    parser.add_argument("--frames", type=Path, metavar="DIR", help="also measure sizes on real frames: rgb/, depth/")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=2048, metavar="N", help="steps of a repetition")
    parser.add_argument("--outage-hours", type=float, default=6.0, metavar="H", help="0 leaves the outage out")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="a folder on the disk to measure (default: temporary)"
    )
    parser.add_argument("--only", default="", metavar="NAME,NAME", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures are worth little")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repetitions, options.steps = 1, 256
        options.outage_hours = min(options.outage_hours, 0.05)
    pairs.install()
    with tempfile.TemporaryDirectory(prefix="roverloop-bench-", dir=options.scratch) as folder:
        figures = sizes(options) + speeds(options, Path(folder))
        if options.outage_hours:
            figures += outage(options, Path(folder))
    write(options.json, figures)
    return 0


def sizes(options):
    """Return bytes a step, and how far our depth codec is from the best one, on each set of frames."""
    synthetic = frames.synthetic(12 if options.quick else 64)
    sets = {"": synthetic, "_filtered": frames.filtered(synthetic)}
    if options.frames:
        sets |= {f"_frames_{fit}": frames.recorded(options.frames, fit) for fit in ("crop", "nearest")}
    figures = []
    print(
        f"{'mean bytes of a frame':<34} {'ours':>8} {'left+s.':>8} {'palette':>8} {'zstd-1':>8} {'RVL':>8} {'PNG':>8}"
    )
    for name, each in sets.items():
        mean = codecs.compare(each)
        colour_bytes, decibel = codecs.colour(each)
        columns = ("ours", "left + split", "palette + 2-D", "zstd-1", "RVL", "PNG")
        row = " ".join(f"{mean[key]:>8.0f}" for key in columns)
        print(f"{each.name:<34} {row}  JPEG {colour_bytes:.0f}, {decibel:.1f} dB")
        best = min(value for key, value in mean.items() if key != "ours")
        figures.append(record_bytes(each, f"link.bytes_per_step{name}"))
        excess = 100 * (mean["ours"] / best - 1)
        figures.append(Figure(f"link.depth_excess_percent{name}", excess, "%", len(each.depth), excess, excess))
    return figures


def record_bytes(each, name):
    """Return the mean size of a record with these frames: header, colour and depth."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.npz"
        load.save(each, path)
        steps = load.Load(path)
        steps.encode_all()
        values = [sum(map(len, encode_record(steps.record(seq), steps.encoded(seq)))) for seq in range(len(each.depth))]
    return Figure(name, float(np.mean(values)), "bytes", len(values), min(values), max(values))


def speeds(options, folder):
    """Return the figures of both ends and of the peers, repetition by repetition in turn."""
    path = folder / "frames.npz"
    load.save(frames.synthetic(64), path)
    steps = max(1, options.steps // STEPS_OF_BATCHES) * STEPS_OF_BATCHES
    common = {
        "frames": str(path),
        "shape": [frames.HEIGHT, frames.WIDTH],
        "scratch": str(folder),
        "warm": 128 if options.quick else 512,
        "steps": steps,
        "certificate": pairs.certificate(folder),
    }
    wanted = [name for name in options.only.split(",") if name] or list(QUICK if options.quick else VARIANTS)
    if common["certificate"] is None:
        wanted = [name for name in wanted if name != "secure_durable_grpc"]
    microseconds = {name: [] for name in wanted}
    for repetition in range(options.repetitions):
        for name in wanted:
            modules, told = VARIANTS[name]
            result = pairs.run(*modules, peers=modules is not OURS, **told, **common)
            check(name, result, steps + common["warm"])
            microseconds[name].append(result["cpu_us"])
            rate = f"{1e6 / result['cpu_us']:>6.0f} steps/s/core"
            print(
                f"  {repetition + 1}  {name:<28} {result['cpu_us']:>7.0f} us {rate}  {result['bytes']:>8.0f} bytes",
                flush=True,
            )
    spent = pairs.alone(
        [f"{PART}.rover", "spool"],
        scratch=str(folder),
        frames=str(path),
        repetitions=options.repetitions,
        steps=64 if options.quick else 500,
    )
    return [
        *ratios(microseconds),
        median("link.encode_spool_ms", spent["wall_ms"], "ms"),
        median("link.encode_spool_cpu_ms", spent["cpu_ms"], "ms"),
    ]


def check(name, result, records):
    """Raise SystemExit where a receiver lost, refused or repeated something: its figure would be worth nothing."""
    said = result["receiver"]
    faults = {key: said.get(key, 0) for key in ("malformed", "duplicates", "refused", "lost")}
    if said["consumed"] != records or any(faults.values()):
        raise SystemExit(f"bench link: {name}: {said['consumed']} of {records} records came, {faults}")


def ratios(microseconds):
    """Return the figures of CPU time: steps a core and second, the share of CURVE, and ours over the peers."""

    def rates(name):
        return [1e6 / each for each in microseconds.get(name, [])]

    def over(name, ours, *peers):
        """Compare within each repetition, with the faster of the peers' ways."""
        theirs = [max(each) for each in zip(*[rates(peer) for peer in peers if rates(peer)], strict=True)]
        values = [mine / peer for mine, peer in zip(rates(ours), theirs, strict=False)]
        return [median(name, values, "x")] if values else []

    figures = [
        median(f"link.{figure}", rates(name), "1/s")
        for figure, name in (("steps_per_core", "plain"), ("durable_steps_per_core", "durable"))
        if rates(name)
    ]
    pairs_of = zip(microseconds.get("plain", []), microseconds.get("curve", []), strict=False)
    if shares := [100 * (curve / plain - 1) for plain, curve in pairs_of]:
        figures.append(median("link.curve_cost_percent", shares, "%"))
    for prefix, ours in (("", "plain"), ("durable_", "durable")):
        for peer, ways in (
            ("pickle_lz4", ("pickle_lz4",) if not prefix else ("pickle_lz4", "pickle_lz4_64")),
            ("pickle_lz4_64", ("pickle_lz4_64",)),
            ("pickle_lz4_float32", ("pickle_lz4_float32",)),
            ("grpc", ("grpc", "grpc_unary")),
            ("grpc_float32", ("grpc_float32",)),
        ):
            measured = [prefix + way for way in ways if prefix + way in microseconds]
            figures += over(f"link.{prefix}ratio_{peer}", ours, *measured)
    figures += over("link.secure_durable_ratio_pickle_lz4", "durable", "secure_durable_pickle_lz4")
    figures += over("link.secure_durable_ratio_grpc", "durable", "secure_durable_grpc")
    figures += [median(f"link.cpu_us.{name}", values, "us") for name, values in microseconds.items()]
    return figures


def outage(options, folder):
    """Return what became of the records of hours without a link, as they lie in the trainer's store."""
    path = folder / "small.npz"
    load.save(frames.small(16), path)
    hours, rate_hz = options.outage_hours, 10
    result = pairs.run(
        OURS[0],
        [f"{PART}.rover", "outage"],
        scratch=str(folder),
        inspect=stored,
        curve=True,
        durable=True,
        frames=str(path),
        records=int(3600 * hours * rate_hz),
    )
    found = result["found"]
    records = result["records"]
    lost = len(set(range(records)) - found["seqs"])
    spooled = f"{result['disk_bytes'] >> 20} MiB spooled in {result['drove_s']:.0f} s"
    replayed = f"replayed in {result['replay_s']:.0f} s, {result['resent']} sent again"
    print(f"outage of {hours:g} h: {records} records, {spooled}, {replayed}, {found['episodes']} episodes stored")
    if result["waiting"] or result["overflow"]:
        print(f"outage: {result['waiting']} records wait, {result['overflow']} overflowed, {result['refusal']}")
    return [
        Figure("link.outage_records", records, "records", 1, records, records),
        Figure("link.outage_lost", lost, "records", 1, lost, lost),
        Figure("link.outage_duplicates", found["duplicates"], "records", 1, found["duplicates"], found["duplicates"]),
        Figure("link.outage_replay_seconds", result["replay_s"], "s", 1, result["replay_s"], result["replay_s"]),
    ]


def stored(folder):
    """Read every stored episode and return which records are there, and how many are there again."""
    seqs, duplicates = set(), 0
    catalogue = Catalogue(folder / "catalogue.db")
    try:
        rows = catalogue.episodes()
    finally:
        catalogue.close()
    for row in rows:
        for record in open_episode(folder / "episodes" / row.path).records():
            duplicates += record.seq in seqs
            seqs.add(record.seq)
    return {"seqs": seqs, "duplicates": duplicates, "episodes": len(rows)}


if __name__ == "__main__":
    sys.exit(main())
