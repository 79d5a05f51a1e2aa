"""Start roverd, after a look at whether what it needs is installed."""

from __future__ import annotations

import faulthandler

from protocol.node import backoff
from protocol.node.log import configure
from protocol.node.require import exit_without

NEEDED = ("onnxruntime",)


def main() -> None:
    """Run the daemon and exit with its status."""
    faulthandler.enable(2)  # the watchdog ends a hanging daemon by SIGABRT: the log then shows where it hung
    configure("roverd")
    backoff.hold_back()  # not later: a library that crashes at its import must not burn the machine either
    exit_without("roverd", "rover", NEEDED)
    from roverd.main import main as run  # noqa: PLC0415 - not before the look

    run()


if __name__ == "__main__":
    main()
