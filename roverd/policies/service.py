"""The robot's policies as a service: bring what is wanted into the second process, prove it, and let it drive.

The policy that drives stays until its successor is loaded, proved and ready; whatever fails on the way is refused with
its reason, and the old one drives on. docs/policies.md tells the whole transaction for people.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from protocol.errors import RoverError
from protocol.messages import Verdict
from protocol.node.log import get_logger
from roverd.control import wire
from roverd.policies.fallback import Fallback
from roverd.policies.fetch import Fetcher, StalledError
from roverd.policies.guard import Guard
from roverd.policies.history import History
from roverd.policies.live import Live
from roverd.policies.prepare import BadInputError, Preparer, SupersededError, wait_for
from roverd.policies.refusals import MAX_CRASHES, Refusals
from roverd.policies.slots import Slots
from roverd.policies.store import PolicyStoreError
from roverd.policies.transaction import Stage, Target, Transaction
from roverd.policies.wishes import Wishes
from roverd.processes import NotRunningError, ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.messages import Chunk, Message, Offer
    from protocol.spec import RobotSpec
    from roverd.policies.slots import Commands
    from roverd.policies.store import PolicyStore
    from roverd.processes import PolicyChild
    from roverd.settings import PolicySettings

log = get_logger()
OVERRULED = "a person chose another policy on the robot; roverctl policy reload or a newer policy ends that"
WATCHING_S = 0.1
"""How often to look whether a watch that a newer offer waits for still sees decisions."""


class Policies:
    """Service: bring the wanted target into the standby slot; ``take_ready`` swaps it in."""

    name = "policies"

    def __init__(
        self,
        store: PolicyStore,
        commands: Commands,
        spawn: Callable[[int], PolicyChild],
        settings: PolicySettings,
        *,
        robot: RobotSpec,
        is_clocked: bool,
    ) -> None:
        """Take the store, what sends to control, and how a policy process for a slot is started."""
        self._store = store
        self.send: Callable[[Message], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        """Called when a target became ready, or the one that drives was lost."""
        note = store.note()
        self._refusals = Refusals(note.barred)
        self._history = History(store, self._refusals, note.previous)
        self._wishes = Wishes(note.overruled)
        self._slots = Slots(commands, spawn)
        self._fetcher = Fetcher(self._send)
        self._preparer = Preparer(store, self._fetcher, self._slots, settings, robot=robot, is_clocked=is_clocked)
        self._guard = Guard(self._slots, settings, limit_ms=self._preparer.limit_ms, is_clocked=is_clocked)
        self._live = Live(self._slots, self._guard, self._wishes, self._refusals, self._history, is_clocked=is_clocked)
        self._live.send = self._send
        self._live.on_change = self._something_changed
        self._changed = asyncio.Event()
        self._fallback = Fallback(self._slots, self._live, self._preparer, self._history, self._refusals)

    # -- what drives ------------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """The slot that drives."""
        return self._slots.active

    @property
    def driving(self) -> Target | None:
        """What the active slot holds."""
        return self._live.driving

    @property
    def driving_id(self) -> str:
        """The id of the policy that drives, empty for a controller or none."""
        return self._live.driving_id

    @property
    def counter(self) -> int:
        """Counter of the policy that drives."""
        return self._slots.counters[self._slots.active]

    @property
    def swaps(self) -> int:
        """How often another target came to drive."""
        return self._live.swaps

    @property
    def refusals(self) -> int:
        """How many targets were refused."""
        return self._live.refusals

    @property
    def crashes(self) -> int:
        """How many policy processes died."""
        return self._live.crashes

    def slot_name(self, slot: int) -> str:
        """Return the policy id or ``controller:NAME`` of the steps that a slot made."""
        return self._slots.name(slot)

    @property
    def target(self) -> Target | None:
        """What should drive: an order's own choice, else the wanted policy."""
        return self._wishes.target

    @property
    def is_settled(self) -> bool:
        """True when what should drive does."""
        return self.target is not None and self.driving == self.target

    @property
    def pid(self) -> int:
        """The process that drives, 0 without one."""
        return self._slots.pid(self._slots.active)

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """What the kernel granted each policy process (see roverd.control.realtime)."""
        return self._slots.reports

    def refusal(self, target: Target) -> str:
        """Return why a target may not drive, or an empty text."""
        return self._refusals.reason(target.name)

    def report(self) -> dict[str, Any]:
        """Return how far the newest transaction is, what stands by, and what was refused last."""
        transaction, (name, reason) = self._live.transaction, self._refusals.newest
        return {
            "transaction": transaction.to_map(time.monotonic()) if transaction else {"stage": "none"},
            "standby": self._slots.standby_facts,
            "watch": self._guard.facts,
            "previous": self._history.previous(self.driving_id),
            "last_refusal": {"name": name, "reason": reason},
            "barred": dict(self._refusals.barred),
            "rollbacks": self._live.rollbacks,
            "failovers": self._live.failovers,
        }

    # -- wishes -----------------------------------------------------------------------------------------------------

    def want(self, policy_id: str, *, now: bool = False) -> None:
        """Make a policy the standing choice."""
        self._wishes.want(policy_id, self._slots.loaded, now=now)
        self._stir()

    def override(self, target: Target | None) -> None:
        """Let an order choose what drives; None returns to the standing choice."""
        self._wishes.order(target, self._slots.loaded)
        if target is not None:
            self._refusals.retry(target.name)
        self._stir()

    def offered(self, offer: Offer) -> None:
        """Follow an offer of the trainer, unless this very policy may not drive here, or a person chose another."""
        self._fetcher.offered(offer)
        self._wishes.offered = offer.policy_id
        reason = self._refusals.reason(offer.policy_id)
        if not reason and offer.policy_id == self._wishes.overruled:
            if self.driving_id == offer.policy_id:  # the other one is still on its way
                return
            reason = OVERRULED
        if reason:
            self.send(Verdict(offer.policy_id, "refused", reason))
            return
        self._wishes.overruled = ""
        self.want(offer.policy_id)

    def received(self, chunk: Chunk) -> None:
        """Take a piece of a bundle."""
        self._fetcher.received(chunk)

    def choose(self, policy_id: str, *, now: bool = False) -> None:
        """Let a person's choice drive, until the trainer offers another policy than it does now."""
        self._refusals.forgive(policy_id)
        self._wishes.overrule(policy_id)
        self.want(policy_id, now=now)

    async def install(self, content: bytes, *, now: bool = False) -> str:
        """Verify and store a bundle and let it drive; return its id; raises BundleError or OSError."""
        policy_id = await asyncio.to_thread(self._store.add, content)
        self.choose(policy_id, now=now)
        return policy_id

    def reload(self, *, now: bool = False) -> str:
        """Load what should drive again; what the trainer wants gets another chance if it was refused; return the id."""
        self._wishes.heed_trainer(self._slots.loaded)
        if self._refusals.reason(self._wishes.offered):
            self._refusals.forgive(self._wishes.offered)
            self.want(self._wishes.offered)
        target = self._wishes.again(now=now)
        if target is None:
            raise PolicyStoreError("no policy is known here: link to a trainer, or roverctl policy install FILE")
        self._refusals.forgive(target.name)
        self._stir()
        return target.name

    def rollback(self, *, now: bool = False) -> str:
        """Make the policy that drove before the standing choice; return its id."""
        left, back_to = self.driving_id, self._history.previous(self.driving_id)
        if not back_to:
            raise PolicyStoreError("no earlier policy is stored here; roverctl policy install FILE brings one")
        if left:  # else the trainer's next offer of it would undo this
            reason = "rolled back on the robot; roverctl policy reload or a newer policy ends that"
            self._refusals.bar(left, reason)
            self.send(Verdict(left, "rolled_back", reason))
        if back_to == self._wishes.overruled:
            self._wishes.overruled = ""
        self.want(back_to, now=now)
        log.info("policy.rolled_back", policy_id=left[:12], to=back_to[:12], reason="asked for on the robot")
        return back_to

    # -- for Drive and for what control tells -----------------------------------------------------------------------

    def take_ready(self, *, now: bool = False) -> bool:
        """Swap the standby in if it is ready: between two episodes, or with ``now`` between two ticks."""
        return self._live.take_ready(now=now)

    def condemn(self, reason: str) -> None:
        """Let what drives go on no longer, because it gives no actions; the policy before it is wanted again."""
        self._live.condemn(reason)

    def fail_over(self, slot: int, reason: str) -> None:
        """Give up on the process of a slot: it is killed and started again, and the standby drives for good."""
        self._live.fail_over(slot, reason)

    def observed(self, applied: wire.Applied, *, explores: bool = False) -> None:
        """Take in what became of a tick: decisions are counted for the watch and for a policy that shadows.

        ``explores`` says that it was in an episode to learn from.
        """
        if applied.tick_in_decision:
            return
        self._preparer.asked()
        if self.driving is not None:
            is_measured = self._wishes.is_ordered and self.driving == self.target  # an evaluation is to see it all
            self._guard.see(applied, may_be_stopped=explores or is_measured)

    def shadowed(self, answer: wire.Shadowed) -> None:
        """Take in what the standby would have done."""
        self._preparer.shadowed(answer)

    def reattach(self) -> None:
        """Bring the policy processes together with a control that took over."""
        self._slots.reattach()

    # -- the work ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start both policy processes, restart one that died, and load targets into the standby."""
        try:
            await self._slots.start()
            while True:
                self._changed.clear()
                await self._slots.revive()
                target = self.target
                if target is not None and self._is_due(target):
                    await self._bring(target)
                elif fallback := self._fallback.missing():
                    await self._fallback.restore(fallback)
                else:
                    await wait_for(self._changed, WATCHING_S if self._is_watching else None)
        finally:
            await self._live.stop()
            await self._slots.stop()
            self._history.close()

    def _send(self, message: Message) -> None:
        self.send(message)

    def _stir(self) -> None:
        self._changed.set()
        self._preparer.stir()

    def _something_changed(self) -> None:
        self._stir()
        self.on_change()

    @property
    def _is_watching(self) -> bool:
        return self._guard.is_watching(self._preparer.patience_s)

    def _is_due(self, target: Target) -> bool:
        """Say whether a target has to be brought now; the trainer's next one waits until this one was watched."""
        if self.is_settled or self._refusals.reason(target.name) or not self._slots.is_alive(self._slots.standby):
            return False
        transaction = self._live.transaction
        if transaction is not None and transaction.target == target and transaction.stage is Stage.READY:
            return False
        is_offer = target.name == self._wishes.offered and not self._wishes.is_ordered
        return not (is_offer and self._is_watching and not self._wishes.is_now(target))

    async def _bring(self, target: Target) -> None:
        transaction = Transaction(target, time.monotonic(), self._wishes.is_now(target))
        self._live.transaction = transaction
        if self._slots.loaded[self._slots.standby] == target:  # it drove, and still sits in the other slot
            transaction.stage = Stage.READY
            self.on_change()
            return
        try:
            await self._preparer.prepare(transaction, lambda: self.target == target)
        except SupersededError:
            self._fail(transaction, Stage.ABANDONED, "something else is wanted now")
        except (StalledError, NotRunningError, BadInputError) as error:
            self._fail(transaction, Stage.ABANDONED, str(error))
        except ProcessError as error:  # it may have had another cause than this policy, once
            if self._refusals.count_crash(target.name, time.monotonic()):
                self._fail(transaction, Stage.REFUSED, str(error))
                self._live.refuse(target, f"{error}, {MAX_CRASHES} times running")
            else:
                self._fail(transaction, Stage.ABANDONED, str(error))
        except (RoverError, OSError) as error:
            self._fail(transaction, Stage.REFUSED, str(error))
            self._live.refuse(target, str(error))
        else:
            self._announce(transaction)

    def _fail(self, transaction: Transaction, stage: Stage, reason: str) -> None:
        transaction.enter(stage, time.monotonic(), reason)
        if self._slots.loaded[self._slots.standby] == transaction.target:  # it is loaded, but has not proved itself
            self._slots.forget(self._slots.standby)

    def _announce(self, transaction: Transaction) -> None:
        """Tell that a target is ready; until it drives it may stand in for what does."""
        target, seconds = transaction.target, time.monotonic() - transaction.began_s
        if self._live.allows_fallback and self.driving is not None:
            self._slots.give(wire.FALLBACK)
        if target.is_policy:
            self.send(Verdict(target.name, "verified", seconds=seconds))
        log.info("policy.verified", policy_id=target.name[:12], seconds=round(seconds, 3), **transaction.proof)
        self.on_change()
