"""Keep every core busy with other work, and read how much time the machine's owner took away."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

SPIN = "while True: pass"
MATRICES = "import numpy as np\na = np.ones((300, 300), np.float32)\nwhile True: a = a @ a / 300"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def busy_cores(processes=2):
    """Run so many pure-Python and so many numpy processes for each core, at ordinary priority."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    cores = len(os.sched_getaffinity(0))
    running = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **one_thread})
        for code in (SPIN, MATRICES)
        for _ in range(cores * processes // 2)
    ]
    try:
        yield
    finally:
        for each in running:
            each.kill()
        for each in running:
            each.wait()


def stolen_s():
    """Return the CPU seconds that a hypervisor took from this machine since it started, over all cores."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(words[8]) / TICKS_PER_S
