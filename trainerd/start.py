"""What happens once, when trainerd starts: which folder is its own, and which run it goes on with."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from protocol.errors import RoverError
from protocol.node.log import get_logger
from protocol.node.reach import is_loopback
from trainerd.learning import checkpoint
from trainerd.run import RunFile, parse_specs

if TYPE_CHECKING:
    from pathlib import Path

    from trainerd.settings import Settings

log = get_logger()


class ReachError(RoverError):
    """Others than this machine would reach a port that asks nobody who he is."""


def check_reach(settings: Settings) -> None:
    """Raise ReachError where the link would be plain for other machines."""
    if not settings.link.curve and not is_loopback(settings.host):
        hint = "leave link.curve on and pair the rovers, or listen on 127.0.0.1"
        raise ReachError(f"link.curve is off and host {settings.host} is not loopback: anybody could join; {hint}")


class BudgetError(RoverError):
    """A schedule has no end to run to."""


def check_budget(settings: Settings) -> None:
    """Raise BudgetError where the learning rate should fall over a budget that is not set."""
    if settings.ppo.anneal and not settings.train.decisions:
        raise BudgetError("ppo.anneal lowers the learning rate over train.decisions, which is 0: set it")


def hold(state_dir: Path) -> int:
    """Take the state folder for this process; return the descriptor that holds it for as long as it is open.

    Raises:
        FolderError: another trainerd has it, or it cannot be written.

    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FolderError(f"{error.filename}: {error.strerror}; choose another --state-dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FolderError(
            f"{state_dir}: another trainerd uses it; stop that one, or choose another --state-dir"
        ) from error
    return descriptor


class FolderError(RoverError):
    """A folder that trainerd keeps things in cannot be written."""


def open_run(settings: Settings) -> RunFile:
    """Return the run to go on with: the state folder's, else that of the newest checkpoint, else a new one.

    With ``train.fresh`` it is a new one, and the old one's checkpoints are set aside.

    Raises:
        RoverError: a folder cannot be written, or the file of the run is damaged.

    """
    path = settings.state_dir / "run.json"
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        settings.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        if settings.train.fresh:
            path.unlink(missing_ok=True)
            (settings.state_dir / "deployed.json").unlink(missing_ok=True)
            aside = checkpoint.set_aside(settings.checkpoint_dir)
            if aside is not None:
                log.info("checkpoints.set_aside", folder=str(aside), count=len(checkpoint.found(aside)))
    except OSError as error:
        raise FolderError(f"{error.filename}: {error.strerror}; choose another --state-dir or folder") from error
    run_file = RunFile(path)
    if run_file.run.specs is None:
        newest, _ = checkpoint.latest(settings.checkpoint_dir)
        if newest is not None:
            run_file.fix(*parse_specs(newest.facts["robot"], newest.facts["task"]))
            log.info("run.recovered", run_id=run_file.run.run_id, checkpoint=newest.path.name)
    return run_file
