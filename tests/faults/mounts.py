"""Mount and unmount, with errors that say what the tool said."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TRIES = 40


def run(*words: str) -> None:
    """Run a tool; raises OSError with what it wrote where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise OSError(done.returncode, f"{' '.join(words)}: {done.stderr.strip()}")


def mount(*words: str) -> None:
    run("mount", *words)


def unmount(root: Path) -> None:
    """Unmount, waiting a moment for processes that just ended to let go of it; lazily at last."""
    for _ in range(TRIES):
        try:
            run("umount", str(root))
        except OSError as error:
            if "not mounted" in str(error):
                return
            time.sleep(0.05)
        else:
            return
    run("umount", "-l", str(root))
    raise OSError(f"{root} is still in use; it was detached")
