"""Checkpoints: folders that appear whole, are checked before use, and hold no pickle.

``ppo_update_50/`` has ``model.safetensors``, ``optimizer.safetensors`` and ``state.json`` (counters, random state,
specs, and the sha256 of the other two). See Litestream's docs/PATTERNS.md for the order of writing. Checkpoints of a
line that was left lie in ``before-<time>/``, where nothing looks for them.

Torch is imported where tensors are: a trainerd that only lists checkpoints, as at its start, need not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from protocol.errors import RoverError
from protocol.files import sync_folder
from protocol.spec import RobotSpec, TaskSpec, canonical_hash

if TYPE_CHECKING:
    from torch import Tensor

    from trainerd.learning.learner import Learner, LearnerState  # noqa: TC004 - torch, see above

FORMAT = 1
ROLLING_KEPT = 2
"""Newest checkpoints that stay, whatever they were written for."""
_NAME = re.compile(r"ppo_update_(\d+)")
_REPLACED = re.compile(r"\.(ppo_update_\d+)\.replaced")
"""A checkpoint that another of the same update is about to replace, or was when the power went."""
_FILES = ("model.safetensors", "optimizer.safetensors")


class CheckpointError(RoverError):
    """A checkpoint is damaged or does not fit the learner; the message names what."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and is undamaged."""

    path: Path
    state: LearnerState
    facts: dict[str, Any]
    """All of ``state.json``: specs and transform as maps, counters, hashes, extra values of the caller."""


def save(
    folder: Path, learner: Learner, *, keep: int = 5, rolling: bool = False, extra: dict[str, Any] | None = None
) -> Path:
    """Write ``folder/ppo_update_<n>`` so that a power cut leaves either all or nothing of it.

    Args:
        folder: is made where missing.
        learner: between two updates.
        keep: newest checkpoints that stay; older ones are deleted.
        rolling: it is there for a restart only, and goes once two newer ones are there.
        extra: plain JSON that is given back by ``load``.

    Raises:
        CheckpointError: the disk refused, with its reason; older checkpoints are untouched.

    """
    from safetensors.torch import save as save_tensors  # noqa: PLC0415 - as above

    state = learner.capture()
    contents = dict(zip(_FILES, (save_tensors(state.weights), save_tensors(state.optimizer)), strict=True))
    facts = {
        "format": FORMAT,
        "counters": state.counters,
        "keys_hash": canonical_hash(sorted(state.weights)),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "robot": learner.robot.to_map(),
        "task": learner.task.to_map(),
        "transform": learner.transform.to_map(),
        "network": vars(learner.network_settings),
        "ppo": vars(learner.ppo_settings),
        "rolling": rolling,
        "extra": extra or {},
    }
    contents["state.json"] = json.dumps(facts, indent=1, sort_keys=True).encode()
    path = folder / f"ppo_update_{learner.updates}"
    try:
        _write_whole(folder, path, contents)
        _prune(folder, keep)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror or error}") from error
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every hash.

    Raises:
        CheckpointError: a file is missing, cut short or altered, or the format is unknown.

    """
    from trainerd.learning import learner as learners  # noqa: PLC0415 - as above

    try:
        facts = json.loads((path / "state.json").read_bytes())
        if facts["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {path}: format {facts['format']}, this version reads {FORMAT}")
        weights, optimizer = (_tensors(path, name, facts["sha256"][name]) for name in _FILES)
        if canonical_hash(sorted(weights)) != facts["keys_hash"]:
            raise CheckpointError(f"checkpoint {path}: names of weights are not those that were saved")
        return Checkpoint(path, learners.LearnerState(weights, optimizer, facts["counters"]), facts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: {error!r}") from error


def resume(path: Path, learner: Learner) -> Checkpoint:
    """Load a checkpoint into a learner, which then goes on as if it had never stopped.

    Raises:
        CheckpointError: it is damaged, or weights, settings or specs differ; the message names them.

    """
    from trainerd.learning.learner import LearnerError  # noqa: PLC0415 - as above

    checkpoint = load(path)
    differences = [
        *learner.robot.differences(RobotSpec.from_map(checkpoint.facts["robot"])),
        *learner.task.differences(TaskSpec.from_map(checkpoint.facts["task"])),
    ]
    if differences:
        raise CheckpointError(f"checkpoint {path}: " + "; ".join(differences))
    try:
        learner.restore(checkpoint.state)
    except (LearnerError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    return checkpoint


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest undamaged checkpoint, and the reasons why newer ones were passed over.

    It mends what a power cut left, so not while another thread saves.
    """
    _mend(folder)
    reasons: list[str] = []
    for path in reversed(found(folder)):
        try:
            return load(path), reasons
        except CheckpointError as error:
            reasons.append(str(error))
    return None, reasons


def set_aside(folder: Path, *, above: int = -1) -> Path | None:
    """Move the checkpoints of updates above ``above`` into a folder of their own; return it, or None without any.

    Raises:
        CheckpointError: the disk refused, with its reason.

    """
    try:
        _mend(folder)
        left = [path for path in found(folder) if update_of(path) > above]
        if not left:
            return None
        aside = _new_folder(folder / f"before-{time.strftime('%Y%m%dT%H%M%S')}")
        for path in left:
            path.rename(aside / path.name)
        sync_folder(aside)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"checkpoints in {folder}: {error.strerror or error}") from error
    return aside


def update_of(path: Path) -> int:
    """Return the update of a checkpoint folder."""
    return int(path.name.rpartition("_")[2])


def found(folder: Path) -> list[Path]:
    """List checkpoint folders, the one with the highest update last; damaged ones included."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=update_of)


def _tensors(path: Path, name: str, sha256: str) -> dict[str, Tensor]:
    from safetensors.torch import load as load_tensors  # noqa: PLC0415 - as above

    content = (path / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"checkpoint {path}: {name} is not what was saved ({len(content)} bytes)")
    return load_tensors(content)


def _write_whole(folder: Path, path: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, content in contents.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(temporary)
        _mend(folder)
        if path.exists():  # no rename replaces a folder that has something in it: _mend takes back a half of the two
            path.rename(folder / f".{path.name}.replaced")
        temporary.rename(path)
        sync_folder(folder)
        _mend(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mend(folder: Path) -> None:
    """Remove what was replaced, and bring back what was moved aside before its replacement was in place."""
    for aside in list(folder.iterdir()) if folder.is_dir() else []:
        match = _REPLACED.fullmatch(aside.name)
        if match and (folder / match[1]).exists():
            shutil.rmtree(aside, ignore_errors=True)
        elif match:
            aside.rename(folder / match[1])


def _new_folder(wanted: Path) -> Path:
    path, count = wanted, 1
    while path.exists():
        count += 1
        path = wanted.with_name(f"{wanted.name}-{count}")
    path.mkdir()
    return path


def _prune(folder: Path, keep: int) -> None:
    paths = found(folder)
    kept = [path for path in paths if not is_rolling(path)][-max(keep, 1) :]
    for path in paths[:-ROLLING_KEPT]:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def is_rolling(path: Path) -> bool:
    """Tell whether a checkpoint is there for a restart only; a damaged one counts as such."""
    try:
        return bool(json.loads((path / "state.json").read_bytes()).get("rolling", False))
    except (OSError, ValueError, AttributeError):
        return True
