"""Policies on the robot's disk: verified bundles, and a note of which one drives and which drove before it.

Whatever is cut off at whatever moment, a bundle is there whole or not at all, and so is the note; the note is written
once the bundle that it names is durable, and the bundle before is kept. So a start finds a policy that loads.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.bundle import MAX_BUNDLE_BYTES, BundleError, check_fit, unpack_bundle, write_atomic
from protocol.errors import RoverError
from protocol.files import sync_folder
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from protocol.bundle import Bundle
    from protocol.spec import RobotSpec, TaskSpec

log = get_logger()
KEEP = 8
"""Bundles that stay on disk; the one that drives and the one before are never among those that go."""
MAX_BARRED = 32
NOTE = "current.json"
SUFFIX = ".bundle"


class PolicyStoreError(RoverError):
    """A policy cannot be fetched, found or loaded."""


@dataclass(frozen=True)
class Note:
    """What must be known after a restart."""

    policy_id: str = ""
    """The policy that drives."""
    previous: str = ""
    """The one that drove before, and drives again where the first no longer loads."""
    barred: dict[str, str] = field(default_factory=dict)
    """Policies that were rolled back on this robot, with the reason: no offer brings them back."""
    overruled: str = ""
    """What the trainer wanted when a person let another policy drive: it must offer a newer one to be heard again."""


class PolicyStore:
    """Bundles in a folder, by policy id, and the note (``current.json``)."""

    def __init__(self, folder: Path, robot: RobotSpec, task: TaskSpec) -> None:
        """Open; the folder is made on the first write, and what an earlier start did not finish writing goes."""
        self._folder = folder
        self._robot, self._task = robot, task
        for left_over in folder.glob(".*"):
            left_over.unlink(missing_ok=True)

    def path(self, policy_id: str) -> Path:
        """Return where a policy's bundle lies or would lie; raises PolicyStoreError on a name that is not a hash."""
        if len(policy_id) != 64 or not all(c in "0123456789abcdef" for c in policy_id):
            raise PolicyStoreError(f"policy {policy_id[:20]!r}: not a sha256 in hex")
        return self._folder / f"{policy_id}{SUFFIX}"

    def has(self, policy_id: str) -> bool:
        """Return True if the bundle is stored."""
        return self.path(policy_id).is_file()

    def add(self, content: bytes) -> str:
        """Verify a bundle and store it, durably; return its policy id.

        Raises:
            BundleError: it is damaged, its signature slot is malformed, or it is not for this robot and task.
            OSError: the disk refuses.

        """
        bundle = unpack_bundle(content)
        check_fit(bundle, self._robot, self._task)
        path = self.path(bundle.policy_id)
        if not _holds(path, content):
            self._make_folder()
            write_atomic(path, content)
        return bundle.policy_id

    def verify(self, policy_id: str) -> Bundle:
        """Read a stored bundle and check it; one that is damaged is removed, so that it can be fetched again.

        Raises:
            BundleError: it is damaged, or is not for this robot and task.
            FileNotFoundError: it is not stored.

        """
        path = self.path(policy_id)
        content = path.read_bytes()
        try:
            bundle = _unpack_named(content, policy_id)
        except BundleError as error:
            log.warning("policy.discarded", policy_id=policy_id[:12], reason=str(error), hint="it is fetched again")
            path.unlink(missing_ok=True)
            raise
        check_fit(bundle, self._robot, self._task)
        return bundle

    # -- the note ---------------------------------------------------------------------------------------------------

    def note(self) -> Note:
        """Return the note; an empty one where there is none or it cannot be read."""
        try:
            values = json.loads((self._folder / NOTE).read_text())
            barred = {str(name): str(reason) for name, reason in dict(values.get("barred", {})).items()}
            previous, overruled = str(values.get("previous", "")), str(values.get("overruled", ""))
            return Note(str(values["policy_id"]), previous, barred, overruled)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Note()

    def keep(self, note: Note, used: Collection[str] = ()) -> None:
        """Write the note, and drop the oldest bundles beyond a few that are not ``used``; raises OSError."""
        self._make_folder()
        barred = dict(list(note.barred.items())[-MAX_BARRED:])
        write_atomic(self._folder / NOTE, json.dumps(asdict(note) | {"barred": barred}).encode())
        for path in self._newest_first()[KEEP:]:
            if path.stem not in {note.policy_id, note.previous, *used}:
                path.unlink(missing_ok=True)

    def current(self) -> str:
        """Return the policy to drive with after a start: the one that drove, else the one before; empty without one."""
        note = self.note()
        for policy_id in (note.policy_id, note.previous):
            if not policy_id:
                continue
            try:
                self.verify(policy_id)
            except (RoverError, OSError) as error:
                hint = "the policy before drives, or the trainer offers one"
                log.warning("policy.passed_over", policy_id=policy_id[:12], reason=str(error), hint=hint)
            else:
                return policy_id
        return ""

    def listing(self) -> list[dict[str, Any]]:
        """Return id, size and age of the stored bundles, newest first."""
        rows = []
        for path in self._newest_first():
            stat = path.stat()
            age_s = round(time.time() - stat.st_mtime, 1)
            rows.append({"policy_id": path.stem, "size_bytes": stat.st_size, "age_s": age_s})
        return rows

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)

    def _make_folder(self) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True)
            sync_folder(self._folder.parent)


def _unpack_named(content: bytes, policy_id: str) -> Bundle:
    bundle = unpack_bundle(content)
    if bundle.policy_id != policy_id:
        raise BundleError(f"{policy_id[:12]}{SUFFIX} holds policy {bundle.policy_id[:12]}, which its name does not say")
    return bundle


def _holds(path: Path, content: bytes) -> bool:
    """Say whether a file is there with just this content."""
    try:
        return path.stat().st_size == len(content) <= MAX_BUNDLE_BYTES and path.read_bytes() == content
    except OSError:
        return False
