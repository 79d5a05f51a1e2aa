"""Start roverd, after a look at whether what it needs is installed."""

from __future__ import annotations

from protocol.node.require import exit_without

NEEDED = ("onnxruntime",)


def main() -> None:
    """Run the daemon and exit with its status."""
    exit_without("roverd", "rover", NEEDED)
    from roverd.main import main as run  # noqa: PLC0415 - not before the look

    run()


if __name__ == "__main__":
    main()
