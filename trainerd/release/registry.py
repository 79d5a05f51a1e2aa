"""The policies of a run on disk: one bundle file each, the index rebuilt at start, damaged files left out."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.bundle import BundleError, Manifest, unpack_bundle, write_atomic
from protocol.errors import RoverError
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection

log = get_logger()
SUFFIX = ".bundle"


class NoSuchPolicyError(RoverError):
    """No policy has this id, or more than one begins with it."""


@dataclass(frozen=True)
class Entry:
    """One policy: what its manifest says and where its file is."""

    policy_id: str
    path: Path
    size_bytes: int
    sha256: str
    manifest: Manifest

    @property
    def counter(self) -> int:
        """Order among the policies of the run."""
        return self.manifest.counter


class Registry:
    """Keep bundles in a folder. Any thread may call it."""

    def __init__(self, folder: Path, *, keep: int = 20) -> None:
        """Read every bundle below ``folder``; ``keep`` newest ones survive ``prune``."""
        self.damaged: dict[str, str] = {}
        self._folder = folder
        self._keep = keep
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            self._read(path)

    def add(self, content: bytes) -> Entry:
        """Keep a bundle, on disk before it returns; raises BundleError if it is not one."""
        bundle = unpack_bundle(content)
        path = self._folder / f"{bundle.policy_id}{SUFFIX}"
        write_atomic(path, content)
        return self._index(path, content, bundle.manifest)

    def get(self, policy_id: str) -> Entry:
        """Return the policy whose id begins so; raises NoSuchPolicyError."""
        with self._lock:
            exact = self._entries.get(policy_id)
            begins = [e for e in self._entries.values() if policy_id and e.policy_id.startswith(policy_id)]
        found = [exact] if exact else begins
        if len(found) != 1:
            what = "there is none" if not found else f"{len(found)} policies begin so"
            raise NoSuchPolicyError(f"policy {policy_id or '(empty)'}: {what}; see trainerctl policy list")
        return found[0]

    def entries(self) -> list[Entry]:
        """Return every policy, newest first."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.counter, reverse=True)

    def newest(self, run_id: str) -> Entry | None:
        """Return the policy of a run with the highest counter."""
        return next((entry for entry in self.entries() if entry.manifest.run_id == run_id), None)

    def read(self, policy_id: str, offset: int, length: int) -> bytes:
        """Return a piece of a bundle file; raises NoSuchPolicyError, or OSError where the file is gone."""
        entry = self.get(policy_id)
        with entry.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def prune(self, used: Collection[str]) -> None:
        """Remove all but the newest policies and those in ``used``."""
        for entry in self.entries()[self._keep :]:
            if entry.policy_id not in used:
                with self._lock:
                    del self._entries[entry.policy_id]
                entry.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            bundle = unpack_bundle(content)
            _check_name(path, bundle.policy_id)
        except (BundleError, OSError) as error:
            self.damaged[path.name] = str(error)
            log.warning("policy.skipped", path=str(path), reason=str(error), hint="remove the file")
            return
        self._index(path, content, bundle.manifest)

    def _index(self, path: Path, content: bytes, manifest: Manifest) -> Entry:
        digest = hashlib.sha256(content).hexdigest()
        entry = Entry(manifest.policy_id, path, len(content), digest, manifest)
        with self._lock:
            self._entries[entry.policy_id] = entry
        return entry


def _check_name(path: Path, policy_id: str) -> None:
    if path.name != f"{policy_id}{SUFFIX}":
        raise BundleError(f"holds policy {policy_id[:12]}, which its name does not say")
