"""One update at full size on a GPU: seconds, memory, and the share of what the GPU's own roofs would allow.

Traffic and arithmetic of the network at 240x424, counted once (facts of the network, not of a GPU): a trained sample
moves 30 MB in 16 bits where a layer's work is fused and takes 2.578 GFLOP, a sample that is only looked at (the pass
before the update) 9.1 MB and 0.907 GFLOP. The roofs are measured on the GPU itself.
"""

import torch

from tests.bench.figures import Figure, median

TRAINED_BYTES, SEEN_BYTES = 30.0e6, 9.1e6
TRAINED_FLOP, SEEN_FLOP = 2.5779e9, 0.9068e9
GIB = 1 << 30


def roofline_s(rows, epochs, bytes_per_s, flop_per_s):
    """Return the seconds below which no update of this network can be: the slower of memory and arithmetic."""
    moved = rows * (epochs * TRAINED_BYTES + SEEN_BYTES)
    computed = rows * (epochs * TRAINED_FLOP + SEEN_FLOP)
    return max(moved / bytes_per_s, computed / flop_per_s)


def roofs():
    """Measure the GPU's bytes a second (a copy of 2 GiB) and its bfloat16 operations a second (a matrix product)."""
    bytes_a_copy, side = 2 * GIB, 8192
    source = torch.empty(bytes_a_copy, dtype=torch.uint8, device="cuda")
    copied = 2 * bytes_a_copy / best_s(torch.empty_like(source).copy_, source)
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return copied, 2 * side**3 / best_s(torch.matmul, left, right)


def best_s(work, *operands, repetitions=10):
    """Return the shortest time of a call on the GPU, in seconds."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    for _ in range(repetitions):
        begin.record()
        work(*operands)
        end.record()
        torch.cuda.synchronize()
        spent.append(begin.elapsed_time(end) * 1e-3)
    return min(spent[1:])


def figures(results, rows, epochs, bytes_per_s, flop_per_s):
    """Return the figures of repetitions; ``results`` maps ``ours`` and the peers to what their processes said."""
    seconds = [each["wall_s"] for each in results["ours"]]
    bound = roofline_s(rows, epochs, bytes_per_s, flop_per_s)
    found = [
        median("gpu.update_seconds", seconds, "s"),
        median("gpu.roofline_percent", [100 * bound / each for each in seconds], "%"),
        median("gpu.vram_gb", [each["vram_gb"] for each in results["ours"]], "GB"),
        Figure("gpu.memory_gb_per_second", bytes_per_s / 1e9, "GB/s", 1, bytes_per_s / 1e9, bytes_per_s / 1e9),
        Figure("gpu.tflop_per_second", flop_per_s / 1e12, "TFLOP/s", 1, flop_per_s / 1e12, flop_per_s / 1e12),
    ]
    for peer in (name for name in results if name != "ours"):
        shares = [theirs["wall_s"] / own for theirs, own in zip(results[peer], seconds, strict=True)]
        found.append(median(f"gpu.ratio_{peer}", shares, "x"))
    return found
