"""The robot's policies: pull what is offered, prove it in the second policy process, swap between two episodes.

The policy that drives stays until its successor is loaded, proved and ready; whatever fails on the way is refused with
its reason, and the old one drives on.
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.bundle import BundleError, check_fit, unpack_bundle, write_atomic
from protocol.errors import RoverError
from protocol.messages import MAX_CHUNK_BYTES, Chunk, ChunkRequest, Message, Offer, Verdict
from protocol.node.log import get_logger
from roverd.control import wire
from roverd.processes import ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from protocol.spec import RobotSpec, TaskSpec
    from roverd.processes import Child, PolicyChild

log = get_logger()
CHUNK_TIMEOUT_S = 2.0
MAX_BUNDLE_BYTES = 256 << 20
KEEP = 8
RELOAD_DELAY_S = 0.2
MAX_CRASHES = 2


@dataclass(frozen=True)
class Target:
    """What should drive: a stored policy, or a scripted controller."""

    kind: str
    name: str
    seed: int = 0


class StalledError(Exception):
    """The trainer did not send a piece in time."""


class PolicyStoreError(RoverError):
    """A policy cannot be fetched, found or loaded."""


class PolicyStore:
    """Bundles in a folder, by policy id, and which of them drives (``current.json``)."""

    def __init__(self, folder: Path, robot: RobotSpec, task: TaskSpec) -> None:
        """Open; the folder is made on the first write."""
        self._folder = folder
        self._robot, self._task = robot, task

    def path(self, policy_id: str) -> Path:
        """Return where a policy's bundle lies or would lie; raises PolicyStoreError on a name that is not a hash."""
        if len(policy_id) != 64 or not all(c in "0123456789abcdef" for c in policy_id):
            raise PolicyStoreError(f"policy {policy_id[:20]!r}: not a sha256 in hex")
        return self._folder / f"{policy_id}.bundle"

    def has(self, policy_id: str) -> bool:
        """Return True if the bundle is stored."""
        return self.path(policy_id).is_file()

    def discard_damaged(self, policy_id: str) -> None:
        """Remove a stored bundle that no longer verifies, so that it is fetched again."""
        path = self.path(policy_id)
        try:
            unpack_bundle(path.read_bytes())
        except FileNotFoundError:
            return
        except (BundleError, OSError) as error:
            log.warning("policy.discarded", policy_id=policy_id[:12], reason=str(error), hint="it is fetched again")
            path.unlink(missing_ok=True)

    def add(self, content: bytes) -> str:
        """Verify and store a bundle; return its policy id; raises BundleError."""
        bundle = unpack_bundle(content)
        check_fit(bundle, self._robot, self._task)
        path = self.path(bundle.policy_id)
        if not path.is_file():
            write_atomic(path, content)
        return bundle.policy_id

    def current(self) -> str:
        """Return the id of the policy that drove last, or an empty text."""
        try:
            policy_id = str(json.loads((self._folder / "current.json").read_text())["policy_id"])
            return policy_id if self.has(policy_id) else ""
        except (OSError, ValueError, KeyError, TypeError, PolicyStoreError):
            return ""

    def set_current(self, policy_id: str, keep: set[str]) -> None:
        """Remember which policy drives, and drop the oldest bundles beyond a few."""
        write_atomic(self._folder / "current.json", json.dumps({"policy_id": policy_id}).encode())
        bundles = sorted(self._folder.glob("*.bundle"), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in bundles[KEEP:]:
            if path.stem not in keep | {policy_id}:
                path.unlink(missing_ok=True)

    def listing(self) -> list[dict[str, Any]]:
        """Return id, size and age of the stored bundles, newest first."""
        rows = []
        for path in sorted(self._folder.glob("*.bundle"), key=lambda p: p.stat().st_mtime, reverse=True):
            stat = path.stat()
            age_s = round(time.time() - stat.st_mtime, 1)
            rows.append({"policy_id": path.stem, "size_bytes": stat.st_size, "age_s": age_s})
        return rows


class Policies:
    """Service: bring the wanted target into the standby slot; ``take_ready`` swaps it in between two episodes."""

    name = "policies"

    def __init__(self, store: PolicyStore, control: Child, spawn: Callable[[int], PolicyChild]) -> None:
        """Take the store, the control process and how a policy process for a slot is started."""
        self._store = store
        self._control = control
        self._spawn = spawn
        self.send: Callable[[Message], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        """Called when a target became ready, or the one that drives was lost."""
        self._children: list[PolicyChild | None] = [None, None]
        self._loaded: list[Target | None] = [None, None]
        self._counters = [0, 0]
        self.active = 0
        self._wanted: Target | None = None
        self._override: Target | None = None
        self._counter = 0
        self._refused: dict[str, str] = {}
        self._crashed_on: dict[str, int] = {}
        self._notes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policies")
        """One thread, so that notes of what drives are written in order."""
        self._changed = asyncio.Event()
        self._chunk: asyncio.Future[Chunk] | None = None
        self._previous = ""
        self.swaps = 0
        self.refusals = 0
        self.crashes = 0

    # -- what drives ------------------------------------------------------------------------------------------------

    @property
    def driving(self) -> Target | None:
        """What the active slot holds."""
        return self._loaded[self.active]

    @property
    def driving_id(self) -> str:
        """The id of the policy that drives, empty for a controller or none."""
        return self.slot_name(self.active) if self.driving and self.driving.kind == "policy" else ""

    @property
    def counter(self) -> int:
        """Counter of the policy that drives."""
        return self._counters[self.active]

    def slot_name(self, slot: int) -> str:
        """Return the policy id or ``controller:name`` of a slot."""
        target = self._loaded[slot] if slot >= 0 else None
        if target is None:
            return ""
        return target.name if target.kind == "policy" else f"controller:{target.name}"

    @property
    def target(self) -> Target | None:
        """What should drive: an order's own choice, else the wanted policy."""
        return self._override or self._wanted

    @property
    def is_settled(self) -> bool:
        """True when what should drive does."""
        return self.target is not None and self.driving == self.target

    def want(self, policy_id: str, counter: int = 0) -> None:
        """Make a policy the standing choice."""
        self._counter = counter
        self._wanted = Target("policy", policy_id)
        self._changed.set()

    def override(self, target: Target | None) -> None:
        """Let an order choose what drives; None returns to the standing choice."""
        self._override = target
        if target is not None:
            self._refused.pop(target.name, None)
        self._changed.set()

    def refusal(self, target: Target) -> str:
        """Return why a target was refused, or an empty text."""
        return self._refused.get(target.name, "")

    def take_ready(self) -> bool:
        """Swap the standby in if it holds the target; to be called between two episodes only."""
        standby = 1 - self.active
        if self.is_settled or self.target is None or self._loaded[standby] != self.target:
            return False
        if self.driving_id:
            self._previous = self.driving_id
        self.active = standby
        self._control.send(bytes([wire.ACTIVE, standby]))
        self.swaps += 1
        if self.driving_id:
            self.send(Verdict(self.driving_id, "driving"))
            self._notes.submit(self._note_current, self.driving_id, self._previous)
        log.info("policy.swapped", policy_id=self.slot_name(standby)[:12], swaps=self.swaps)
        return True

    def _note_current(self, policy_id: str, previous: str) -> None:
        try:
            self._store.set_current(policy_id, {previous})
        except OSError as error:
            hint = "after a restart an older policy would drive; see the disk of state_dir"
            log.error("policy.note_failed", policy_id=policy_id[:12], error=str(error), hint=hint)  # noqa: TRY400

    # -- commands ---------------------------------------------------------------------------------------------------

    def offered(self, offer: Offer) -> None:
        """Follow an offer of the trainer, unless this very policy was refused here before."""
        if offer.policy_id in self._refused:
            self.send(Verdict(offer.policy_id, "refused", self._refused[offer.policy_id]))
            return
        self.want(offer.policy_id, offer.counter)

    def received(self, chunk: Chunk) -> None:
        """Take a piece of a bundle; a piece that nobody waits for is dropped."""
        if self._chunk is not None and not self._chunk.done():
            self._chunk.set_result(chunk)

    def condemn(self, reason: str) -> None:
        """Refuse what drives, because it gives no actions; the policy before it becomes the standing choice."""
        target = self.driving
        if target is None:
            return
        self._loaded[self.active] = None
        self._refuse(target, reason)
        if target == self._wanted and self._previous not in {"", target.name} and self._store.has(self._previous):
            self.want(self._previous)
        self._changed.set()

    def reload(self) -> str:
        """Load the present target again from the store, also one that was refused; return its id."""
        if self.target is None:
            raise PolicyStoreError("no policy is known here: link to a trainer, or start with --policy FILE")
        self._refused.pop(self.target.name, None)
        self._loaded[1 - self.active] = None
        if self.is_settled:
            self._loaded[self.active] = Target(self.target.kind, self.target.name, seed=-1)
        self._changed.set()
        return self.target.name

    def rollback(self) -> str:
        """Make the policy that drove before the standing choice; return its id."""
        if not self._previous or not self._store.has(self._previous):
            raise PolicyStoreError("no earlier policy is stored here")
        left, back_to = self.driving_id, self._previous
        if left and left != back_to:  # else the trainer's next offer of it would undo this
            self._refused[left] = "rolled back on the robot; policy reload or a newer policy ends that"
            self.send(Verdict(left, "rolled_back", self._refused[left]))
        self.want(back_to)
        return back_to

    # -- the work ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start both policy processes, restart one that died, and load targets into the standby."""
        try:
            for slot in (0, 1):
                await self._start(slot)
            while True:
                self._changed.clear()
                await self._revive()
                if self._has_work():
                    await self._bring(self.target)
                else:
                    await self._changed.wait()
        finally:
            for child in self._children:
                if child is not None:
                    await child.child.stop()
            self._notes.shutdown()

    def _has_work(self) -> bool:
        target = self.target
        if target is None or self.is_settled or target.name in self._refused:
            return False
        return self._loaded[1 - self.active] != target

    async def _start(self, slot: int) -> None:
        child = self._spawn(slot)
        self._children[slot] = child
        self._loaded[slot] = None
        child.on_death = lambda: self._died(slot)
        await child.child.started()

    def _died(self, slot: int) -> None:
        self.crashes += 1
        self._loaded[slot] = None
        log.error("policy.process_died", slot=slot, active=slot == self.active, hint="it is started again")
        self._changed.set()
        self.on_change()

    async def _revive(self) -> None:
        for slot, child in enumerate(self._children):
            if child is not None and not child.child.is_alive:
                await asyncio.sleep(RELOAD_DELAY_S)
                await child.child.stop()
                await self._start(slot)

    async def _bring(self, target: Target | None) -> None:
        if target is None:
            return
        start = time.monotonic()
        try:
            if target.kind == "policy":
                await self._ensure(target.name)
                request: dict[str, Any] = {"do": "load", "path": str(self._store.path(target.name))}
            else:
                request = {"do": "controller", "name": target.name, "seed": target.seed}
            slot = 1 - self.active
            child = self._children[slot]
            assert child is not None  # noqa: S101 - run() started both
            self._loaded[slot] = None
            answer = await child.request(**request)
            if not answer["ok"]:
                raise PolicyStoreError(answer["reason"])
        except ProcessError as error:  # the process crashed, which may have had another cause than this policy
            self._crashed_on[target.name] = self._crashed_on.get(target.name, 0) + 1
            if self._crashed_on[target.name] >= MAX_CRASHES:
                self._refuse(target, f"{error}, {MAX_CRASHES} times running")
            return
        except StalledError:
            log.warning("policy.fetch_stalled", policy_id=target.name[:12], hint="the trainer does not answer")
            return
        except (RoverError, OSError) as error:
            self._refuse(target, str(error))
            return
        self._loaded[slot] = target
        self._crashed_on.clear()
        self._counters[slot] = int(answer.get("counter", 0)) or self._counter
        seconds = time.monotonic() - start
        if target.kind == "policy":
            self.send(Verdict(target.name, "verified", seconds=seconds))
        log.info("policy.verified", policy_id=target.name[:12], seconds=round(seconds, 3), **_proof(answer))
        self.on_change()

    def _refuse(self, target: Target, reason: str) -> None:
        self._refused[target.name] = reason
        self.refusals += 1
        log.error("policy.refused", policy_id=target.name[:12], reason=reason, hint="the policy before drives on")
        if target.kind == "policy":
            self.send(Verdict(target.name, "refused", reason))
        self.on_change()

    async def _ensure(self, policy_id: str) -> None:
        """Fetch a bundle that is not stored; raises BundleError when it is not what was asked for."""
        await asyncio.to_thread(self._store.discard_damaged, policy_id)
        if self._store.has(policy_id):
            return
        content = bytearray()
        while True:
            chunk = await self._request_chunk(policy_id, len(content))
            if chunk.policy_id != policy_id or chunk.offset != len(content):
                continue
            content += chunk.content
            if len(content) > MAX_BUNDLE_BYTES:
                raise BundleError(f"policy {policy_id[:12]}: larger than {MAX_BUNDLE_BYTES} bytes")
            if len(chunk.content) < MAX_CHUNK_BYTES:
                break
        got = await asyncio.to_thread(self._store.add, bytes(content))
        if got != policy_id:
            raise BundleError(f"policy {policy_id[:12]}: the trainer sent {got[:12]} instead")

    async def _request_chunk(self, policy_id: str, offset: int) -> Chunk:
        self._chunk = asyncio.get_running_loop().create_future()
        self.send(ChunkRequest(policy_id, offset, MAX_CHUNK_BYTES))
        done, _ = await asyncio.wait([self._chunk], timeout=CHUNK_TIMEOUT_S)
        if not done:
            raise StalledError
        return self._chunk.result()


def _proof(answer: dict[str, Any]) -> dict[str, float]:
    return {key: round(float(answer[key]), 7) for key in ("golden_error", "latency_ms")}
