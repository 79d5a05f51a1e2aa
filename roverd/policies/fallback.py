"""Keep a policy loaded beside the one that drives, so that it can stand in for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from protocol.errors import RoverError
from protocol.node.log import get_logger
from roverd.control import wire
from roverd.policies.transaction import Target, Transaction
from roverd.processes import NotRunningError

if TYPE_CHECKING:
    from roverd.policies.history import History
    from roverd.policies.live import Live
    from roverd.policies.prepare import Preparer
    from roverd.policies.refusals import Refusals
    from roverd.policies.slots import Slots

log = get_logger()


class Fallback:
    """Give what sits in the standby its role, or load what drove before."""

    def __init__(self, slots: Slots, live: Live, preparer: Preparer, history: History, refusals: Refusals) -> None:
        """Take the parts."""
        self._slots, self._live, self._preparer = slots, live, preparer
        self._history, self._refusals = history, refusals
        self._failed = ""

    def missing(self) -> str:
        """Return the policy that should be loaded to stand in for what drives; empty where nothing is to be done."""
        transaction, slot, driving_id = self._live.transaction, self._slots.standby, self._live.driving_id
        if not self._live.allows_fallback or not driving_id or (transaction and transaction.is_under_way):
            return ""
        standby = self._slots.loaded[slot]
        if standby is not None and standby.is_policy and standby.name not in self._refusals.barred:
            if self._slots.role != wire.FALLBACK:
                self._slots.give(wire.FALLBACK)
            return ""
        name = self._history.previous(driving_id)
        return name if name != self._failed and self._slots.is_alive(slot) else ""

    async def restore(self, policy_id: str) -> None:
        """Load a policy beside the one that drives; where that fails for its own sake, it is not tried again."""
        try:
            await self._preparer.restore_fallback(Transaction(Target("policy", policy_id), time.monotonic()))
        except NotRunningError:
            return
        except (RoverError, OSError) as error:
            self._failed = policy_id
            hint = "what drives has no policy that could stand in for it"
            log.warning("policy.passed_over", policy_id=policy_id[:12], reason=str(error), hint=hint)
