"""Measure the learner: one update of the same network on the same rollout, ours and four peers', in turn.

Every learner starts from the same weights, which is checked on what its network answers, and has the same
hyperparameters and one torch thread. Counted is the CPU time of what turns a filled storage into new weights. What the
peers' collection computes besides (values, log-probabilities) is given to them; ours computes it within the update.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.bench.figures import ROOT, Figure, json_option, median, write
from tests.bench.linkbench.pairs import told_by
from tests.bench.peers import advantages, environment, exporting, gpu, two_ranks
from tests.bench.peers.practice import make_rollout

SIZE = (240, 424)
PEERS = ("sb3", "cleanrl", "torchrl", "rsl_rl")
OURS = {"ours": {"autocast": "bfloat16"}, "ours_f32": {"autocast": "none"}}
HYPERPARAMETERS = {
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "lambda_": 0.95,
    "clip": 0.2,
    "entropy": 0.01,
    "value": 0.5,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-5,
}
AGREED = 5e-3
"""Largest difference of a mean or a value between ours and a peer's network before the update (a GPU may use TF32)."""
AT_LEAST = {
    "learner.ratio_sb3": 3.0,
    "learner.ratio_cleanrl": 3.0,
    "learner.ratio_torchrl": 6.0,
    "learner.ratio_rsl_rl": 6.0,
    **{f"learner.f32_ratio_{peer}": 1.5 for peer in PEERS},
    "gpu.roofline_percent": 30.0,
}
AT_MOST = {
    "learner.rss_share": 1.0,
    "gae.ms": 1.5,
    "gae.max_error": 1e-5,
    "export.ms": 50.0,
    "ddp.max_difference": 1e-6,
    "gpu.update_seconds": 0.8,
    "gpu.vram_gb": 8.0,
}
"""The bars; a figure that was not measured has none."""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="./dev bench learner", description=__doc__)
    json_option(parser)
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="decisions of the rollout")
    parser.add_argument("--minibatch", type=int, default=32, metavar="N")
    parser.add_argument("--epochs", type=int, default=4, metavar="N")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument("--gpu-rows", type=int, default=8192, metavar="N", help="the same with a GPU, minibatch 256")
    parser.add_argument("--only", default=",".join(PEERS), metavar="NAME,NAME", help="peers; empty for ours alone")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures are worth little")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.minibatch, options.epochs, options.repetitions = 16, 8, 1, 1
    torch.set_num_threads(1)
    peers = [name for name in options.only.split(",") if name]
    python = environment.install() if peers else None
    figures = []
    try:
        with tempfile.TemporaryDirectory(prefix="roverloop-bench-") as folder:
            figures += [*advantages.measure(), *exporting.measure(*SIZE)]
            figures += on_cpu(options, Path(folder), python, peers)
            figures += on_gpu(options, Path(folder), python, peers)
            figures += two_ranks.measure(Path(folder), options.repetitions, quick=options.quick)
    finally:
        write(options.json, figures)  # a failure must not cost what was measured before it
    failed = [each for each in figures if not is_good(each)]
    for each in failed:
        print(f"bench learner: {each.name} is {each.value:.4g}, {bar(each.name)} is asked for", file=sys.stderr)
    return 1 if failed else 0


def on_cpu(options, folder, python, peers):
    """Return the figures of the comparison on this processor."""
    path = folder / "rollout.npz"
    make_rollout(path, options.rows, SIZE)
    told = {"rows": options.rows, "minibatch": options.minibatch, "epochs": options.epochs, "device": "cpu"}
    results = interleaved(path, told, python, [*OURS, *peers], options.repetitions)
    path.unlink()
    return [*comparison(results, peers), *memory(results, peers)]


def on_gpu(options, folder, python, peers):
    """Return the figures of an update at full size on a GPU, or none with a line that says so."""
    if not torch.cuda.is_available():
        print(f"bench learner: torch {torch.__version__} sees no GPU; nothing of gpu.* was measured")
        return []
    path = folder / "rollout.npz"
    make_rollout(path, options.gpu_rows, SIZE, "cuda")
    bounds = gpu.roofs()
    torch.cuda.empty_cache()
    told = {"rows": options.gpu_rows, "minibatch": 256, "epochs": options.epochs, "device": "cuda"}
    told["autocast"] = "auto"
    results = interleaved(path, told, python, ["ours", *peers], options.repetitions)
    return gpu.figures(results, options.gpu_rows, options.epochs, *bounds)


def interleaved(path, told, python, names, repetitions):
    """Run each learner once a repetition, in turn, so that a slow minute of the machine is everybody's."""
    results = {name: [] for name in names}
    for repetition in range(repetitions):
        for name in names:
            result = run(name, path, {**told, "seed": repetition}, python)
            check(name, result, results["ours"][0] if results["ours"] else result)
            results[name].append(result)
            rate = result["samples"] / result["cpu_s"]
            spent = f"{result['cpu_s']:>7.2f} s CPU {result['wall_s']:>7.2f} s"
            memory_mb = f"{result['peak_rss_mb']:>6.0f} MB"
            print(f"  {repetition + 1}  {name:<10} {spent} {rate:>7.1f} samples/s {memory_mb}", flush=True)
    return results


def run(name, path, told, python):
    """Run one learner in a process of its own and return what it said."""
    is_ours = name.startswith("ours")
    precision = {"autocast": told["autocast"]} if "autocast" in told else OURS.get(name, {})
    told = {"ppo": HYPERPARAMETERS, "ours": precision, "rollout": str(path), **told}
    module = "ours" if is_ours else f"peer_{name}"
    words = [sys.executable if is_ours else str(python), "-m", f"tests.bench.peers.{module}", json.dumps(told)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    answer = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ, check=False)
    if answer.returncode:
        raise SystemExit(f"bench learner: {name} ended with {answer.returncode}")
    return told_by(answer.stdout)


def check(name, result, ours):
    """Raise SystemExit where a learner's network is not the one that ours is, or its new weights are not finite."""
    apart = float(np.abs(np.subtract(result["answers"], ours["answers"])).max())
    if not apart <= AGREED or result["parameters"] != ours["parameters"] or not result["finite"]:
        network = f"{result['parameters']} parameters, answers {apart:.2g} apart, finite {result['finite']}"
        raise SystemExit(f"bench learner: {name}: {network}; ours has {ours['parameters']} parameters")


def comparison(results, peers):
    """Return the ratios of CPU time within each repetition, and samples a second of one core."""

    def spent(name):
        return [each["cpu_s"] for each in results[name]]

    def over(peer, ours):
        return [theirs / own for theirs, own in zip(spent(peer), spent(ours), strict=True)]

    figures = [median(f"learner.ratio_{peer}", over(peer, "ours"), "x") for peer in peers]
    figures += [median(f"learner.f32_ratio_{peer}", over(peer, "ours_f32"), "x") for peer in peers]
    rates = {name: [each["samples"] / each["cpu_s"] for each in results[name]] for name in results}
    figures.append(median("learner.samples_per_cpu_second", rates["ours"], "1/s"))
    figures.append(median("learner.f32_samples_per_cpu_second", rates["ours_f32"], "1/s"))
    return figures + [median(f"learner.samples_per_cpu_second_{peer}", rates[peer], "1/s") for peer in peers]


def memory(results, peers):
    """Return the peaks of resident memory, and ours as a share of the smallest peer's."""

    def peaks(name):
        return [each["peak_rss_mb"] for each in results[name]]

    figures = [median("learner.peak_rss_mb", peaks("ours"), "MB")]
    figures.append(median("learner.f32_peak_rss_mb", peaks("ours_f32"), "MB"))
    figures += [median(f"learner.peak_rss_mb_{peer}", peaks(peer), "MB") for peer in peers]
    if peers:
        share = statistics.median(peaks("ours")) / min(statistics.median(peaks(peer)) for peer in peers)
        figures.append(Figure("learner.rss_share", share, "x", 1, share, share))
    return figures


def is_good(figure):
    """Compare a figure with its bar."""
    least, most = AT_LEAST.get(figure.name, -np.inf), AT_MOST.get(figure.name, np.inf)
    return bool(least <= figure.value <= most)


def bar(name):
    """Say what is asked of a figure."""
    return f"at least {AT_LEAST[name]:g}" if name in AT_LEAST else f"at most {AT_MOST[name]:g}"


if __name__ == "__main__":
    sys.exit(main())
