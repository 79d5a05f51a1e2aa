"""Functions in compiled code, from a cache where one can be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., object]")


def njit(function: Function) -> Function:
    """Compile a function at its first call; it lets other threads run meanwhile."""
    try:
        return cast("Function", numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # neither the package's folder nor a home is writable: compile anew in each process
        return cast("Function", numba.njit(nogil=True)(function))
