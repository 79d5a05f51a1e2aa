"""Which policies drove well before, and the note of it on disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from protocol.node.log import get_logger
from roverd.policies.store import Note

if TYPE_CHECKING:
    from collections.abc import Collection

    from roverd.policies.refusals import Refusals
    from roverd.policies.store import PolicyStore

log = get_logger()
MAX_PAST = 8


class History:
    """Remember in order what drove; write notes beside the loop, for a slow disk must stop nothing."""

    def __init__(self, store: PolicyStore, refusals: Refusals, previous: str) -> None:
        """Begin with what an earlier start left behind."""
        self._store, self._refusals = store, refusals
        self._past = [previous] if previous else []
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policies")
        """One thread, so that notes are written in order."""

    def knows(self, policy_id: str) -> bool:
        """Say whether a policy drove before and was not rolled back."""
        return policy_id in self._past and policy_id not in self._refusals.barred

    def drove(self, policy_id: str) -> None:
        """Take it that a policy drove until now."""
        self._past = [*(name for name in self._past if name != policy_id), policy_id][-MAX_PAST:]

    def previous(self, driving_id: str) -> str:
        """Return the newest one that drove before what drives now and may drive again, or an empty text."""
        names = (n for n in reversed(self._past) if n != driving_id and n not in self._refusals.barred)
        return next((name for name in names if self._store.has(name)), "")

    def note(self, driving_id: str, used: Collection[str], overruled: str) -> None:
        """Write down what drives; bundles in ``used`` stay on disk."""
        note = Note(driving_id, self.previous(driving_id), self._refusals.lasting, overruled)
        self._writer.submit(self._write, note, set(used))

    def close(self) -> None:
        """Finish writing."""
        self._writer.shutdown()

    def _write(self, note: Note, used: set[str]) -> None:
        try:
            self._store.keep(note, used)
        except OSError as error:
            hint = "after a restart an older policy would drive; see the disk of state_dir"
            log.error("policy.note_failed", policy_id=note.policy_id[:12], error=str(error), hint=hint)  # noqa: TRY400
