"""The policy service between a control and policy processes that a test plays."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from protocol.messages import MAX_CHUNK_BYTES, Chunk, ChunkRequest, Offer
from protocol.step import SOURCES
from roverd.control import wire
from roverd.policies import Policies, PolicyStore
from roverd.processes import NotRunningError, ProcessError
from roverd.settings import PolicySettings
from tests.unit.protocol.samples import ROBOT, TASK, packed

if TYPE_CHECKING:
    from typing_extensions import Self

ZERO = (0.0, 0.0)
GOOD = {"ok": True, "golden_error": 1e-6, "latency_ms": 1.0, "counter": 3, "seconds": 0.01}
SETTINGS = PolicySettings(shadow_ticks=3, shadow_timeout_s=0.05, watch_ticks=10)


class FakeProcess:
    def __init__(self, owner: FakeChild, pid: int) -> None:
        self._owner, self.pid = owner, pid

    def kill(self) -> None:
        self._owner.die_soon()


class FakeChild:
    """A policy process: ``answers`` says what becomes of a load, by policy id or controller."""

    pids = itertools.count(1000)

    def __init__(self, rig: Rig, slot: int) -> None:
        self._rig, self.slot = rig, slot
        self.child = self  # the link and the process are played by one
        self.process = FakeProcess(self, next(self.pids))
        self.report = {"fifo": True}
        self.is_alive = True
        self.on_death = lambda: None
        self.holds = ""
        self.attached = 0
        self.hangs = False
        self.failures: dict[str, int] = {}
        self.latency_ms = 1.0
        self._death = asyncio.get_running_loop().create_future()

    async def started(self) -> None:
        if self._rig.start_fails:
            self._rig.start_fails -= 1
            raise ProcessError("process policy: died at start")

    async def stop(self) -> None:
        self.is_alive = False

    def attach(self) -> None:
        self.attached += 1

    async def request(self, **request: Any) -> dict[str, Any]:
        if not self.is_alive:
            raise NotRunningError("it is not running")
        answer = self._answer(request)
        if answer is None or self.hangs:
            await self._death
            raise ProcessError("died while it loaded")
        await asyncio.sleep(0)
        return answer

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["do"] == "ping":
            text = "the network gave [nan]" if self.failures else ""
            return {"ok": True, "failures": self.failures, "last_failure": text, "latency_ms": self.latency_ms}
        name = request.get("name") or request["path"].rpartition("/")[2].removesuffix(".bundle")
        self._rig.loads.append((self.slot, name))
        answer = self._rig.answers.get(name, GOOD)
        if answer is not None and answer["ok"]:
            self.holds = name
        return answer

    def die(self) -> None:
        """End as a process does: roverd learns it from the link."""
        if self.is_alive:
            self.is_alive = False
            if not self._death.done():
                self._death.set_result(None)
            self.on_death()

    def die_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self.die)


class Rig:
    """A store with policies, the service, and everybody around it."""

    def __init__(self, folder, *, is_clocked: bool = True, settings: PolicySettings = SETTINGS, **changes) -> None:
        self.store = PolicyStore(folder / "policies", ROBOT, TASK)
        self.answers: dict[str, dict[str, Any] | None] = {}
        self.loads: list[tuple[int, str]] = []
        self.start_fails = 0
        self.sent: list[bytes] = []
        self.told: list[Any] = []
        self.at_the_trainer: dict[str, bytes] = {}
        self.children: dict[int, FakeChild] = {}
        self.changes = 0
        self.made = 0
        self.is_clocked = is_clocked
        robot = replace(ROBOT, action_repeat=1, control_rate_hz=50.0)
        self.policies = Policies(
            self.store, self, self.spawn, replace(settings, **changes), robot=robot, is_clocked=is_clocked
        )
        self.policies.send = self.hear
        self.policies.on_change = self.note_change
        self.task: asyncio.Task | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.ensure_future(self.policies.run())
        await self.until(lambda: len(self.children) == 2)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    # -- the parts around it ------------------------------------------------------------

    def spawn(self, slot: int) -> FakeChild:
        self.children[slot] = FakeChild(self, slot)
        return self.children[slot]

    def send(self, message: bytes, fds: tuple = ()) -> None:
        self.sent.append(message)

    def hear(self, message: Any) -> None:
        """Be the trainer."""
        self.told.append(message)
        if isinstance(message, ChunkRequest) and message.policy_id in self.at_the_trainer:
            piece = self.at_the_trainer[message.policy_id][message.offset : message.offset + MAX_CHUNK_BYTES]
            answer = Chunk(message.policy_id, message.offset, piece)
            asyncio.get_running_loop().call_soon(self.policies.received, answer)

    def note_change(self) -> None:
        self.changes += 1

    def add(self, counter: int) -> str:
        """Store a policy on the robot."""
        return self.store.add(packed(counter=counter))

    def offer(self, counter: int, content: bytes | None = None, sha256: str = "") -> str:
        """Offer a policy that only the trainer has."""
        made = packed(counter=counter)
        other = PolicyStore(self.store.path("a" * 64).parent.parent / "trainer", ROBOT, TASK)
        policy_id = other.add(made)
        self.at_the_trainer[policy_id] = made if content is None else content
        self.policies.offered(Offer(policy_id, counter, len(made), sha256))
        return policy_id

    # -- what control does ------------------------------------------------------------

    @property
    def active(self) -> int:
        """Who drives, as control was told last."""
        return next((m[1] for m in reversed(self.sent) if m[0] == wire.ACTIVE), 0)

    def role(self, slot: int) -> int:
        return next((m[2] for m in reversed(self.sent) if m[0] == wire.STANDBY and m[1] == slot), wire.NO_ROLE)

    def decide(
        self,
        *,
        flags: int = 0,
        source: str = "policy",
        action: tuple = (0.1, 0.2),
        shadow: Any = "good",
        has: int = wire.HAS_POLICY,
        explores: bool = False,
    ) -> None:
        """Play one decision: the standby answers if it shadows, then the tick is reported."""
        self.made += 1
        standby = 1 - self.active
        if self.role(standby) == wire.SHADOW and shadow is not None and self.children[standby].is_alive:
            on_time, answer = (True, ZERO) if shadow == "good" else shadow
            self.policies.shadowed(wire.Shadowed(standby, on_time, self.made, 1_000_000, answer))
        self.policies.observed(
            wire.Applied(
                SOURCES.index(source), has, self.active, flags, self.made, self.made, self.made, 0, 1, 0, 0,
                1.0, 0.0, action, ZERO, action, ZERO, ZERO, ZERO, ZERO,
            ),
            explores=explores,
        )  # fmt: skip

    async def drive(self, decisions: int, **facts: Any) -> None:
        for _ in range(decisions):
            self.decide(**facts)
            await asyncio.sleep(0)

    async def until(self, condition, *, driving: bool = False, **facts: Any) -> None:
        """Wait, with the robot driving or standing, and swapping between two episodes where that is asked for."""
        deadline = asyncio.get_running_loop().time() + 5.0
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "it did not come to that"
            if self.task is not None and self.task.done():
                self.task.result()
            if driving:
                self.decide(**facts)
            await asyncio.sleep(0.001)

    async def live(self, policy_id: str) -> None:
        """Bring a policy to the wheels from the standing robot, and drive it until it is settled."""
        self.policies.want(policy_id)
        await self.until(self.policies.take_ready)
        assert self.policies.driving_id == policy_id
        await self.until(lambda: self.stage != "watching", driving=True)

    @property
    def stage(self) -> str:
        return self.policies.report()["transaction"]["stage"]

    def verdicts(self, policy_id: str) -> list[str]:
        return [each.stage for each in self.told if getattr(each, "stage", "") and each.policy_id == policy_id]


def named(logs: list, event: str) -> list[dict[str, Any]]:
    """Return the log lines of an event."""
    return [each for each in logs if each["event"] == event]
