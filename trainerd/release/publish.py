"""Decide which policy the rovers should drive: the newest one, or one that somebody chose."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.messages import Offer
from protocol.node.log import get_logger
from trainerd.release.registry import NoSuchPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainerd.release.registry import Entry, Registry

log = get_logger()
HISTORY = 50
LATEST = "latest"


class NothingToRollBackError(RoverError):
    """There is no policy before the wanted one."""


class Publisher:
    """Keep what is wanted and tell ``on_wanted`` (the offer, and whether somebody chose it); thread-safe."""

    def __init__(self, registry: Registry, run_id: str, choice: Path, on_wanted: Callable[[Offer, bool], None]) -> None:
        """Want nothing yet; the pinned policy is kept in the file ``choice``."""
        self.run_id = run_id
        self.exports = 0
        self.is_following = True
        self.wanted: Entry | None = None
        self._registry = registry
        self._choice = choice
        self._on_wanted = on_wanted
        self._history: list[str] = []
        self._lock = threading.Lock()

    def publish(self, bundle: bytes) -> Entry:
        """Keep a new policy, and want it unless one is pinned.

        Raises:
            BundleError: it is not a bundle.
            OSError: the disk refuses.

        """
        entry = self._registry.add(bundle)
        with self._lock:
            self.exports += 1
            if self.is_following:
                self._want(entry, is_chosen=False)
            used = {entry.policy_id, *self._history[-2:]} | ({self.wanted.policy_id} if self.wanted else set())
        self._registry.prune(used)
        return entry

    def deploy(self, policy_id: str) -> tuple[Entry, bool]:
        """Want a policy from now on; ``latest`` follows the newest again. Also tell whether that changes anything.

        Raises:
            NoSuchPolicyError: there is none of this id.

        """
        entry = self._registry.newest(self.run_id) if policy_id == LATEST else self._registry.get(policy_id)
        if entry is None:
            raise NoSuchPolicyError("policy latest: nothing was exported in this run yet")
        with self._lock:
            follow = policy_id == LATEST
            is_change = self.wanted is None or self.wanted.policy_id != entry.policy_id or follow != self.is_following
            self.is_following = follow
            self._remember(None if follow else entry.policy_id)
            self._want(entry, is_chosen=True)
        log.info("policy.deployed", policy_id=entry.policy_id, counter=entry.counter, is_following=follow)
        return entry, is_change

    def rollback(self) -> Entry:
        """Want the policy that was wanted before this one and pin it; raises NothingToRollBackError."""
        with self._lock:
            known = {entry.policy_id for entry in self._registry.entries()}
            wanted = self.wanted.policy_id if self.wanted else ""
            while self._history and (self._history[-1] == wanted or self._history[-1] not in known):
                self._history.pop()
            if not self._history:
                raise NothingToRollBackError("policy rollback: no policy was wanted before this one")
            entry = self._registry.get(self._history.pop())
            self.is_following = False
            self._remember(entry.policy_id)
            self._want(entry, is_chosen=True, keep=False)
        log.info("policy.rolled_back", policy_id=entry.policy_id, counter=entry.counter)
        return entry

    def offer_of(self, policy_id: str) -> Offer:
        """Return the offer of any policy; raises NoSuchPolicyError."""
        return _offer(self._registry.get(policy_id))

    def _want(self, entry: Entry, *, is_chosen: bool, keep: bool = True) -> None:
        if keep and self.wanted is not None and self.wanted.policy_id != entry.policy_id:
            self._history = [*self._history[-HISTORY:], self.wanted.policy_id]
        self.wanted = entry
        self._on_wanted(_offer(entry), is_chosen)

    def resume(self) -> None:
        """Want what was wanted before the start: the pinned policy, else the newest of the run."""
        try:
            pinned = str(json.loads(self._choice.read_bytes())["policy_id"])
            self.wanted = self._registry.get(pinned)
            self.is_following = False
        except (OSError, ValueError, KeyError, TypeError, NoSuchPolicyError):
            self.wanted = self._registry.newest(self.run_id)
        if self.wanted is not None:
            self._on_wanted(_offer(self.wanted), True)

    def _remember(self, policy_id: str | None) -> None:
        """Keep a pinned policy across restarts."""
        if policy_id is None:
            self._choice.unlink(missing_ok=True)
        else:
            write_atomic(self._choice, json.dumps({"policy_id": policy_id, "time_s": time.time()}).encode())


def _offer(entry: Entry) -> Offer:
    return Offer(entry.policy_id, entry.counter, entry.size_bytes, entry.sha256)
