"""Bring a target into the standby process and prove it there: pulling, verifying, loading, shadowing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from protocol.bundle import BundleError
from protocol.errors import RoverError
from protocol.node.log import RepeatLimiter, get_logger
from roverd.control import wire
from roverd.policies.fetch import StalledError
from roverd.policies.shadow import Shadow, ShadowError, SilentError
from roverd.policies.store import PolicyStoreError
from roverd.policies.transaction import Stage
from roverd.processes import ProcessError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from protocol.spec import RobotSpec
    from roverd.policies.fetch import Fetcher
    from roverd.policies.slots import Slots
    from roverd.policies.store import PolicyStore
    from roverd.policies.transaction import Transaction
    from roverd.settings import PolicySettings

    T = TypeVar("T")

log = get_logger()
PATIENT_DECISIONS = 3
"""Decisions that a robot which drives may take to make one: its patience is at least so long."""
PING_S = 5.0


class SupersededError(Exception):
    """Something else is wanted meanwhile."""


class BadInputError(RoverError):
    """A policy could not be proved because of what the sensors showed it."""


class Preparer:
    """Take a transaction as far as READY, or raise.

    With a clock an answer must take no longer than the action delay; in lock-step only ``max_latency_ms`` counts.
    """

    def __init__(
        self,
        store: PolicyStore,
        fetcher: Fetcher,
        slots: Slots,
        settings: PolicySettings,
        *,
        robot: RobotSpec,
        is_clocked: bool,
    ) -> None:
        """Take the parts; nothing begins."""
        self._store, self._fetcher, self._slots, self._settings = store, fetcher, slots, settings
        self._is_clocked = is_clocked
        decision_s = robot.period_s * robot.action_repeat
        self.patience_s = max(settings.shadow_timeout_s, PATIENT_DECISIONS * decision_s if is_clocked else 0.0)
        self.limit_ms: float = settings.max_latency_ms or (robot.action_delay_ms if is_clocked else 0.0)
        self._shadow: Shadow | None = None
        self._stirred = asyncio.Event()
        self._repeats = RepeatLimiter()

    def stir(self) -> None:
        """Let what waits look again: a process died, or something else is wanted."""
        self._stirred.set()

    def asked(self) -> None:
        """Count a decision of what drives, while a policy shadows it."""
        if self._shadow is not None:
            self._shadow.ask(time.monotonic())
            self._stirred.set()

    def shadowed(self, answer: wire.Shadowed) -> None:
        """Take an answer of the standby."""
        if self._shadow is not None:
            self._shadow.hear(answer, time.monotonic())
            self._stirred.set()

    async def prepare(self, transaction: Transaction, is_wanted: Callable[[], bool]) -> None:
        """Go through the stages as far as READY.

        Raises:
            RoverError: the target is no good, and why.
            NotRunningError: the standby process had ended before the target came to it.
            ProcessError: the standby process died or hangs, whoever's fault it is.
            BadInputError: what the sensors showed it was no input.
            SupersededError: ``is_wanted`` became false.
            StalledError: the trainer has been silent for too long.
            OSError: the disk refuses.

        """
        if transaction.target.is_policy:
            await self._obtain(transaction, is_wanted)
        else:
            transaction.enter(Stage.VERIFYING, time.monotonic())
        transaction.enter(Stage.LOADING, time.monotonic())
        self._slots.give(wire.NO_ROLE)  # nobody may be asked who is about to become somebody else
        await self._load(transaction)
        if not is_wanted():
            raise SupersededError
        if transaction.target.is_policy:
            transaction.enter(Stage.SHADOWING, time.monotonic())
            await self._shadow_live(transaction, is_wanted)
        transaction.enter(Stage.READY, time.monotonic())

    async def restore_fallback(self, transaction: Transaction) -> None:
        """Load a policy that drove before beside the one that drives, so that it can stand in for it."""
        transaction.enter(Stage.VERIFYING, time.monotonic())
        await self._within(transaction, asyncio.to_thread(self._store.verify, transaction.target.name))
        transaction.enter(Stage.LOADING, time.monotonic())
        self._slots.give(wire.NO_ROLE)
        await self._load(transaction)
        self._slots.give(wire.FALLBACK)

    # -- pulling and verifying --------------------------------------------------------------------------------------

    async def _obtain(self, transaction: Transaction, is_wanted: Callable[[], bool]) -> None:
        """Have the bundle on disk, verified; one that is stored and damaged is fetched again."""
        policy_id = transaction.target.name
        if self._store.has(policy_id):
            transaction.enter(Stage.VERIFYING, time.monotonic())
            try:
                await self._within(transaction, asyncio.to_thread(self._store.verify, policy_id))
            except BundleError:
                if self._store.has(policy_id):  # it is whole, but for another robot
                    raise
                transaction.enter(Stage.PULLING, time.monotonic())
            else:
                return
        content = await self._fetch(transaction, is_wanted)
        transaction.enter(Stage.VERIFYING, time.monotonic())
        got = await self._within(transaction, asyncio.to_thread(self._store.add, content))
        if got != policy_id:
            raise PolicyStoreError(f"policy {policy_id[:12]}: the trainer sent {got[:12]} instead")

    async def _fetch(self, transaction: Transaction, is_wanted: Callable[[], bool]) -> bytes:
        """Ask the trainer until it answers; raises StalledError when it has not for too long."""
        policy_id = transaction.target.name
        while True:
            try:
                return await self._fetcher.fetch(policy_id)
            except StalledError as error:
                if not is_wanted():
                    raise SupersededError from error
                remaining_s = transaction.remaining_s(time.monotonic())
                if remaining_s is not None and remaining_s < 0:
                    raise
                if count := self._repeats.count(policy_id):
                    hint = "the trainer does not answer; it is asked again"
                    log.warning("policy.fetch_stalled", policy_id=policy_id[:12], times=count, hint=hint)

    async def _within(self, transaction: Transaction, work: Awaitable[T]) -> T:
        """Wait for work no longer than the stage may take."""
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait([task], timeout=transaction.remaining_s(time.monotonic()))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise PolicyStoreError(f"{transaction.stage.value}: not done in time; see the disk of state_dir")
        return task.result()

    # -- loading ----------------------------------------------------------------------------------------------------

    async def _load(self, transaction: Transaction) -> None:
        target = transaction.target
        request: dict[str, Any] = {"do": "controller", "name": target.name, "seed": target.seed}
        if target.is_policy:
            request = {"do": "load", "path": str(self._store.path(target.name))}
        answer = await self._slots.load(self._slots.standby, target, request)
        if not answer["ok"]:
            raise PolicyStoreError(answer["reason"])
        if not target.is_policy:
            return
        latency_ms = float(answer["latency_ms"])
        transaction.facts["golden_error"] = round(float(answer["golden_error"]), 7)
        transaction.facts["latency_ms"] = round(latency_ms, 3)
        if self.limit_ms and latency_ms > self.limit_ms:
            self._slots.forget(self._slots.standby)
            limit = "policy.max_latency_ms" if self._settings.max_latency_ms else "the robot's action delay"
            raise PolicyStoreError(
                f"policy {target.name[:12]}: an answer takes {latency_ms:.1f} ms, at most {self.limit_ms:g} ms "
                f"({limit}) is allowed"
            )

    # -- shadowing --------------------------------------------------------------------------------------------------

    async def _shadow_live(self, transaction: Transaction, is_wanted: Callable[[], bool]) -> None:
        """Let the standby answer what the robot sees; nobody is asked where nothing drives."""
        slot, needed = self._slots.standby, self._settings.shadow_ticks
        shadow = Shadow(
            needed,
            late_share=self._settings.late_share,
            patience_s=self.patience_s,
            is_clocked=self._is_clocked,
            slot=slot,
            now_s=time.monotonic(),
        )
        drives = self._slots.loaded[self._slots.active]
        if needed and drives is not None:
            self._shadow = shadow
            self._slots.give(wire.SHADOW)
            try:
                await self._wait_for(shadow, transaction, is_wanted)
            except ShadowError as error:
                raise PolicyStoreError(await self._explain(slot, str(error))) from error
            except SilentError as error:
                await self._slots.ping(slot, PING_S)  # ends a process that hangs
                raise ProcessError(str(error)) from error
            finally:
                self._shadow = None
                if self._slots.standby == slot:
                    self._slots.give(wire.NO_ROLE)
        transaction.facts["shadowed"] = shadow.answers
        transaction.facts["shadow_late"] = shadow.unpunctual
        transaction.facts["shadow_ms_max"] = round(shadow.worst_ms, 3)

    async def _wait_for(self, shadow: Shadow, transaction: Transaction, is_wanted: Callable[[], bool]) -> None:
        slot, target = self._slots.standby, transaction.target
        while True:
            self._stirred.clear()
            now_s = time.monotonic()
            if not is_wanted():
                raise SupersededError
            if self._slots.loaded[slot] != target or self._slots.standby != slot:
                raise ProcessError(f"process policy {slot}: died while it shadowed")
            if shadow.is_over(now_s):
                return
            remaining_s = transaction.remaining_s(now_s)
            if remaining_s is not None and remaining_s < 0:
                return  # a robot that makes a decision every few seconds
            await wait_for(self._stirred, min(shadow.next_s(now_s) + 0.001, remaining_s or 1.0))

    async def _explain(self, slot: int, reason: str) -> str:
        """Add what the process itself says; raises BadInputError where not the policy is to blame but its input."""
        told = await self._slots.ping(slot, PING_S)
        self._slots.forget(slot)
        failures = told["failures"] if told else {}
        if failures and set(failures) == {"input"}:
            raise BadInputError(f"{reason}, because of what it was shown: {told['last_failure'] if told else ''}")
        return f"{reason}: {told['last_failure']}" if told and told["last_failure"] else reason


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait until an event is set, or for a time."""
    # not asyncio.wait_for: before Python 3.12 it can swallow a cancellation (python/cpython#81839)
    handle = asyncio.get_running_loop().call_later(timeout_s, event.set) if timeout_s is not None else None
    try:
        await event.wait()
    finally:
        if handle is not None:
            handle.cancel()
