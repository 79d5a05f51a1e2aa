"""Which policy drives, and how another one comes to: swap, failover, rollback.

Everything here happens at once, between two messages of control; what takes time is in roverd/policies/service.py.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from protocol.messages import Verdict
from protocol.node.log import get_logger
from roverd.control import wire
from roverd.policies.guard import COUNTS_S
from roverd.policies.refusals import MAX_CRASHES
from roverd.policies.transaction import FOLLOWING, Stage, Target, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from protocol.messages import Message
    from roverd.policies.guard import Guard
    from roverd.policies.history import History
    from roverd.policies.refusals import Refusals
    from roverd.policies.slots import Slots
    from roverd.policies.wishes import Wishes

log = get_logger()


class Live:
    """Let the standby drive when it is ready, when the one that drives is lost, or when that turns out to be bad."""

    def __init__(
        self, slots: Slots, guard: Guard, wishes: Wishes, refusals: Refusals, history: History, *, is_clocked: bool
    ) -> None:
        """Begin with nothing that drives."""
        self._slots, self._guard, self._wishes = slots, guard, wishes
        self._refusals, self._history, self._is_clocked = refusals, history, is_clocked
        slots.on_death = self._died
        guard.on_bad, guard.on_good, guard.on_hang = self.roll_back, self._passed, self.fail_over
        self.send: Callable[[Message], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is work to do, and when somebody may want to drive on."""
        self.transaction: Transaction | None = None
        """The newest one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up: set[int] = set()
        self._leaving = ""
        """A policy that was rolled back and still drives, until another one is ready."""
        self.swaps = 0
        self.refusals = 0
        self.crashes = 0
        self.rollbacks = 0
        self.failovers = 0

    @property
    def driving(self) -> Target | None:
        """What the active slot holds."""
        return self._slots.loaded[self._slots.active]

    @property
    def driving_id(self) -> str:
        """The id of the policy that drives, empty for a controller or none."""
        return self.driving.name if self.driving and self.driving.is_policy else ""

    @property
    def allows_fallback(self) -> bool:
        """True where a standby may stand in: not in lock-step, nor for a script, nor in an evaluation of one policy."""
        target = self._wishes.target
        return self._is_clocked and target is not None and target.is_policy and not self._wishes.is_ordered

    # -- the swap ---------------------------------------------------------------------------------------------------

    def take_ready(self, *, now: bool) -> bool:
        """Swap the standby in if it is ready."""
        transaction = self.transaction
        if transaction is None or transaction.stage is not Stage.READY or transaction.target != self._wishes.target:
            return False
        if now and not transaction.is_now:
            return False
        may_stand_in = self.driving_id not in {"", *self._refusals.barred} and self.allows_fallback
        self._swap(transaction, wire.FALLBACK if may_stand_in else wire.NO_ROLE)
        return True

    def _swap(self, transaction: Transaction, role: int) -> None:
        """Let the standby drive, and give a role to the process that drove."""
        left, target = self.driving_id, transaction.target
        is_known = self._history.knows(target.name) or left == target.name
        self._slots.activate(self._slots.standby, role)
        self._wishes.swapped()
        self._leaving = ""
        self.swaps += 1
        if left and left not in self._refusals.barred:
            self._history.drove(left)
        is_watched = self._guard.begin(is_watched=target.is_policy and not is_known)
        transaction.enter(Stage.WATCHING if is_watched else Stage.SETTLED, time.monotonic())
        name = self._slots.name(self._slots.active)
        log.info("policy.swapped", policy_id=name[:12], swaps=self.swaps, now=transaction.is_now)
        if target.is_policy:
            self._tell_driving()
        self.on_change()

    def _tell_driving(self) -> None:
        """Tell the trainer which policy drives, and write it down."""
        if self.driving_id:
            self.send(Verdict(self.driving_id, "driving"))
            self._note(self.driving_id)

    def _note(self, policy_id: str) -> None:
        targets = (self._wishes.standing, self._wishes.target, *self._slots.loaded)
        used = {each.name for each in targets if each is not None}
        self._history.note(policy_id, used, self._wishes.overruled)

    def _passed(self) -> None:
        """Take it that the policy that drives is no worse than the one before."""
        self._refusals.survived(self.driving_id)
        self._end_with(self.driving, Stage.SETTLED)
        self.on_change()

    def _end_with(self, target: Target | None, stage: Stage, reason: str = "") -> None:
        """End the newest transaction if it is that of a target which waits to drive, or drives."""
        transaction = self.transaction
        if transaction is not None and transaction.target == target and stage in FOLLOWING.get(transaction.stage, ()):
            transaction.enter(stage, time.monotonic(), reason)

    # -- refusal and rollback ---------------------------------------------------------------------------------------

    def refuse(self, target: Target, reason: str) -> None:
        """Do not let a target drive."""
        self._refusals.refuse(target.name, reason)
        self.refusals += 1
        log.error("policy.refused", policy_id=target.name[:12], reason=reason, hint="the policy before drives on")
        if target.is_policy:
            self.send(Verdict(target.name, "refused", reason))
        if self._leaving and self.driving_id == self._leaving:  # it drove on only until this one would be ready
            self._go_back()
        elif target == self._wishes.standing:
            self._wishes.heed_trainer(self._slots.loaded)  # where a person chose this one instead of the trainer's
        self.on_change()

    def condemn(self, reason: str) -> None:
        """Let what drives go on no longer: it gives no actions."""
        bad = self.driving
        if bad is not None and not bad.is_policy:
            self._slots.forget(self._slots.active)
            self.refuse(bad, reason)
        elif bad is not None:
            self.roll_back(reason)

    def roll_back(self, reason: str) -> None:
        """Bar the policy that drives; the one before it drives from the next tick on, or as soon as it is loaded."""
        bad, slot = self.driving, self._slots.active
        if bad is None or bad.name == self._leaving:
            return
        self._leaving = bad.name
        self._refusals.bar(bad.name, reason)
        self.rollbacks += 1
        self._end_with(bad, Stage.ROLLED_BACK, reason)
        standing = self._wishes.standing
        if standing is None or standing.name == bad.name or self._can_go_back_at_once:
            self._go_back()
        if self._is_wanted(bad):  # there is nothing else: the robot stands, since nobody answers control
            self._give_up(slot)
        else:
            self._wishes.hurry()
            if self.transaction is not None:
                self.transaction.is_now = True  # what comes next was on its way before, or was just made ready
        self._note(self._wishes.standing.name if self._wishes.standing and not self._is_wanted(bad) else "")
        self._spawn(self._tell_of_rollback(slot, bad.name, reason))
        self.on_change()

    def _is_wanted(self, target: Target) -> bool:
        wanted = self._wishes.target
        return wanted is None or wanted.name == target.name

    @property
    def _can_go_back_at_once(self) -> bool:
        """True where the policy before sits in the other slot, and an offer is wanted, which will come again."""
        standby, standing = self._slots.loaded[self._slots.standby], self._wishes.standing
        is_offer = standing is not None and standing.name == self._wishes.offered
        return is_offer and standby is not None and self._history.knows(standby.name)

    def _go_back(self) -> None:
        """Want the policy that drove before; where it still sits in the other slot, it is ready at once."""
        standby = self._slots.loaded[self._slots.standby]
        back_to = self._history.previous(self.driving_id)
        if standby is not None and self._history.knows(standby.name):
            back_to = standby.name
        if not back_to:
            return
        self._wishes.want(back_to, self._slots.loaded, now=True)
        if back_to == self._wishes.overruled:
            self._wishes.overruled = ""
        if standby is not None and standby == self._wishes.target:
            self.transaction = Transaction(standby, time.monotonic(), is_now=True, stage=Stage.READY)

    async def _tell_of_rollback(self, slot: int, policy_id: str, reason: str) -> None:
        """Say once what happened, with what the process itself counted."""
        told = await self._slots.ping(slot, COUNTS_S)
        if told and told["failures"]:
            reason = f"{reason}; {told['failures']}: {told['last_failure']}"
        wanted = self._wishes.target
        back_to = wanted.name if wanted is not None and wanted.name != policy_id else ""
        hint = "the policy before drives; roverctl policy reload gives this one another chance"
        log.error("policy.rolled_back", policy_id=policy_id[:12], to=back_to[:12], reason=reason, hint=hint)
        self._refusals.bar(policy_id, reason)
        self.send(Verdict(policy_id, "rolled_back", reason))

    # -- lost processes ---------------------------------------------------------------------------------------------

    def fail_over(self, slot: int, reason: str) -> None:
        """Give up on the process of a slot: it is killed and started again, and the standby drives for good."""
        self._lose(slot, self._give_up(slot), reason)
        self.on_change()

    def _give_up(self, slot: int) -> Target | None:
        """End a process on purpose; return what it held."""
        if self._slots.is_alive(slot):
            self._given_up.add(slot)
            self._slots.kill(slot)
        return self._slots.forget(slot)

    def _died(self, slot: int, lost: Target | None) -> None:
        self.crashes += 1
        if slot in self._given_up:
            self._given_up.discard(slot)
        else:
            self._lose(slot, lost, "its process died")
        self.on_change()

    def _lose(self, slot: int, lost: Target | None, reason: str) -> None:
        """Go on without what a slot held; where there is a fallback control has turned to it already."""
        transaction, is_active = self.transaction, slot == self._slots.active
        standby = self._slots.loaded[1 - slot]
        if is_active and self._slots.role == wire.FALLBACK and lost is not None and standby is not None:
            self._end_with(lost, Stage.ABANDONED, reason)
            self._stand_in(lost, standby, reason)
        else:
            log.error("policy.process_died", slot=slot, active=is_active, reason=reason, hint="it is started again")
            is_ready = transaction is not None and transaction.target == lost and transaction.stage is Stage.READY
            if is_active or is_ready:
                self._end_with(lost, Stage.ABANDONED, reason)
            else:
                return  # who loads or shadows in it counts that
        if lost is not None and self._refusals.count_crash(lost.name, time.monotonic()):
            self._refuse_crashing(lost, f"{reason}, {MAX_CRASHES} times running")

    def _refuse_crashing(self, lost: Target, reason: str) -> None:
        """Bar until a restart what its process dies of; what drives now, or drove before, is wanted instead."""
        self._refusals.bar(lost.name, reason, lasts=False)
        standing, instead = self._wishes.standing, self.driving_id or self._history.previous(lost.name)
        if standing is not None and standing.name == lost.name and instead:
            self._wishes.want(instead, self._slots.loaded)
        self.refuse(lost, reason)

    def _stand_in(self, lost: Target, standby: Target, reason: str) -> None:
        self.failovers += 1
        transaction = self.transaction
        if transaction is not None and transaction.stage is Stage.READY and transaction.target == standby:
            self._swap(transaction, wire.NO_ROLE)  # it would have driven from the next episode on
        else:
            self._slots.activate(self._slots.standby, wire.NO_ROLE)
            self._leaving = ""
            self._guard.begin(is_watched=False)
            self._tell_driving()
        hint = "the lost one is loaded again and comes back at the next episode"
        names = {"policy_id": lost.name[:12], "to": standby.name[:12]}
        log.error("policy.failed_over", **names, reason=reason, hint=hint)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Leave what is under way."""
        await self._guard.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
