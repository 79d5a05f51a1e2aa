"""Start trainerd, after a look at whether what it needs is installed."""

from __future__ import annotations

import sys

from protocol.node.require import exit_without

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "tensorboard", "numba")


def main() -> None:
    """Run the daemon and exit with its status."""
    exit_without("trainerd", "trainer", NEEDED)
    from trainerd.main import main as run  # noqa: PLC0415 - imports torch

    sys.exit(run())


if __name__ == "__main__":
    main()
