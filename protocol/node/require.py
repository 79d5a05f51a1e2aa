"""Missing extras and shadowed packages, told apart from bugs by a message that says what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import RoverError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_DISTRIBUTION = "roverloop"
_GENERIC_NAMES = ("protocol", "plugins")
_OWN_NAMES = ("roverd", "trainerd")


class MissingExtraError(RoverError):
    """An optional package is not installed; the message has the command that installs it."""


class ShadowedPackageError(RoverError):
    """``protocol`` or ``plugins`` is somebody else's: another distribution brought a folder of the same name."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: its import name, such as ``mujoco``.
        extra: the extra of roverloop that brings it.

    Raises:
        MissingExtraError: the module, or something that it needs itself, is not installed.

    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"{module}: {error.name} is not installed; it needs the extra: pip install '{_DISTRIBUTION}[{extra}]'"
        raise MissingExtraError(message) from error


def exit_without(program: str, extra: str, modules: Sequence[str]) -> None:
    """End the process with one line and status 1 unless all ``modules`` are installed; imports none of them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"{program}: {', '.join(missing)} not installed; needs the extra: pip install '{_DISTRIBUTION}[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(1)


def check_ownership() -> None:
    """Make sure that the generic names ``protocol`` and ``plugins`` are really ours.

    Raises:
        ShadowedPackageError: one of them lies elsewhere than the daemons, or another distribution has it as well.

    """
    home = _home()
    owners = importlib.metadata.packages_distributions()
    for name in _GENERIC_NAMES:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != _DISTRIBUTION})
        if others:
            culprit = others[0]
            message = f"package {name}: the distribution {culprit} has one of the same name"
            raise ShadowedPackageError(f"{message}; pip uninstall {culprit}, then reinstall {_DISTRIBUTION}")
        folder = _folder(name)
        if folder is not None and home is not None and folder.parent != home:
            message = f"package {name}: found {folder}, which is not part of {_DISTRIBUTION} in {home}"
            raise ShadowedPackageError(f"{message}; start from another folder, or with PYTHONSAFEPATH=1")


def _home() -> Path | None:
    """Give the folder that the daemons lie in, found without importing them."""
    for name in _OWN_NAMES:
        folder = _folder(name)
        if folder is not None:
            return folder.parent
    return None


def _folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent
