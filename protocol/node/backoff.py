"""Wait before a start that follows upon failed ones, longer each time.

systemd starts a daemon again for ever (``StartLimitIntervalSec=0``), because a limit would take its socket down with
it. A growing delay is in systemd only from version 254 on, so it is here: the count of starts that came to nothing is
kept in the runtime directory, which a boot empties.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from protocol.node import sdnotify
from protocol.node.log import get_logger

log = get_logger()
FREE_STARTS = 3
"""Failed starts that cost no wait: a robot that was hit once must be back at once."""
FIRST_S, MAX_S = 0.5, 10.0


def hold_back() -> None:
    """Count this start as failed until ``forget``, and wait if those before it failed; nothing without systemd.

    To be called before anything that can crash, the import of the daemon included.
    """
    path = _path()
    if path is None:
        return
    failed = _read(path)
    with contextlib.suppress(OSError):  # a full disk must not keep a daemon from starting
        path.write_text(str(failed + 1))
    seconds = delay_s(failed)
    if seconds:
        text = f"the last {failed} starts failed; this one waits {seconds:g} s"
        sdnotify.status(text)
        hint = "see above why they failed; systemctl stop ends the wait, and the start after it waits no more"
        log.warning("start.held_back", failed=failed, seconds=seconds, hint=hint)
        _sleep(seconds)
        sdnotify.status("starting")


def delay_s(failed: int) -> float:
    """Return the wait behind so many failed starts, s."""
    return min(MAX_S, FIRST_S * 2.0 ** min(failed - FREE_STARTS, 32)) if failed >= FREE_STARTS else 0.0


def forget() -> None:
    """Take the present start as a good one: it serves, or was stopped in order."""
    path = _path()
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _sleep(seconds: float) -> None:
    """Sleep; SIGTERM ends the process in order, for which the event loop is not there yet."""

    def stop(_signal: int, _frame: object) -> None:
        forget()
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, stop)
    time.sleep(seconds)
    signal.signal(signal.SIGTERM, before)


def _path() -> Path | None:
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(folder) / "failed-starts" if folder else None


def _read(path: Path) -> int:
    try:
        return max(0, int(path.read_text()))
    except (OSError, ValueError):
        return 0
