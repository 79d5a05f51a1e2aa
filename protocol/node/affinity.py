"""Keep a daemon and its children on chosen processor cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Sequence


class AffinityError(RoverError):
    """The cores asked for are not there, or not allowed to this process."""


def pin(cpus: Sequence[int]) -> None:
    """Run this process, and what it starts from now on, on ``cpus`` only; none given changes nothing.

    Raises:
        AffinityError: none of them may be used; the message names those that may.

    """
    if not cpus:
        return
    allowed = os.sched_getaffinity(0)
    if not set(cpus) <= allowed:
        raise AffinityError(f"cpus: {sorted(set(cpus) - allowed)} cannot be used here; choose of {sorted(allowed)}")
    os.sched_setaffinity(0, cpus)
