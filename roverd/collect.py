"""Collect episodes for imitation: a person or a scripted controller drives a number of them.

With mode teleop an episode begins when the operator takes the wheel or asks for the next one, and ends by the task or
by his word: success, failure or discard. What is discarded is marked, not deleted, and does not count. The count
outlives a restart of roverd.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from protocol.bundle import write_atomic
from protocol.errors import RoverError
from protocol.messages import NAME, Order
from protocol.node.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from roverd.wheel import Wheel

log = get_logger()
TELEOP, CONTROLLER = "teleop", "controller"
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"
SUCCESS, FAILURE, DISCARD = "success", "failure", "discard"
VERDICTS: dict[str, bool | None] = {SUCCESS: True, FAILURE: False, DISCARD: None}
MAX_TARGET = 1_000_000
ARENAS = 900_000
"""Arenas that are drawn from where none is named: evaluations use others (see ``roverd.orders.TRAINING_ARENAS``)."""
LOST_AFTER_S = 2.0
"""An episode whose operator says nothing for so long is discarded: the robot only stands."""
LOOK_S = 0.2


class CollectError(RoverError):
    """What was asked for does not fit what runs, or what runs cannot be known; the message says why."""


class Collector(Protocol):
    """What drives the episodes (``roverd.drive.Drive``)."""

    @property
    def is_in_episode(self) -> bool:
        """True while an episode runs."""

    def collect(self, order: Order) -> None:
        """Follow an order of mode collect from the next episode on, and end the running one."""

    def allow_episode(self, *, is_allowed: bool) -> None:
        """Let the next command of a human begin an episode of the collection, or not."""

    def finish_episode(self, success: bool | None) -> bool:  # noqa: FBT001 - the verdict itself
        """End the episode by a person's word, None discards it; False where none runs."""


@dataclass(frozen=True)
class Collection:
    """What is collected, and how far it is; the file holds exactly this."""

    name: str
    """Episodes carry it in their order id, ``collect-NAME``."""
    mode: str
    controller: str
    task: str
    target: int
    seed: int
    successes: int = 0
    failures: int = 0
    discarded: int = 0
    state: str = RUNNING

    @property
    def kept(self) -> int:
        """Episodes that count."""
        return self.successes + self.failures

    @property
    def order_id(self) -> str:
        """The order that the trainer finds its episodes by."""
        return f"collect-{self.name}"

    def counted(self, verdict: str) -> Collection:
        """Return the collection after one more episode."""
        names = {SUCCESS: "successes", FAILURE: "failures", DISCARD: "discarded"}
        after = replace(self, **{names[verdict]: getattr(self, names[verdict]) + 1})
        return replace(after, state=FINISHED) if after.kept >= after.target else after

    def order(self) -> Order:
        """Return the order for the episodes that are missing; each that is kept has an arena of its own."""
        controller = self.controller if self.mode == CONTROLLER else "policy"
        missing = max(0, self.target - self.kept)
        return Order(self.order_id, "collect", controller, episodes=missing, seed=self.seed + self.kept)

    @classmethod
    def load(cls, content: bytes) -> Collection:
        """Read a file's content; raises CollectError on what ``asdict`` did not write."""
        try:
            values = json.loads(content)
            made = cls(**{each.name: values[each.name] for each in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise CollectError(f"collection: {error!r}") from error
        kinds = {"str": str, "int": int}
        if any(type(getattr(made, each.name)) is not kinds[str(each.type)] for each in fields(cls)):
            raise CollectError("collection: a value is of another type")
        return made


class Collecting:
    """Service: the collection that runs or ran last. The loop thread owns it."""

    name = "collecting"

    def __init__(
        self, collector: Collector, wheel: Wheel, file: Path, *, task: str, controllers: Callable[[], list[str]]
    ) -> None:
        """Go on with what the file says.

        Args:
            collector: drives the episodes.
            wheel: who drives them with mode teleop.
            file: the collection's state, which outlives a restart.
            task: the task that this robot runs.
            controllers: lists the scripted controllers that could drive.

        """
        self._collector, self._wheel, self._file = collector, wheel, file
        self._task, self._controllers = task, controllers
        self._is_waiting = True
        self._owner = ""
        self.current: Collection | None = None
        if file.is_file():
            self._load()

    async def run(self) -> None:
        """Resume, and look after the operator until cancelled."""
        if self.current is not None and self.is_running:
            if self.current.task == self._task:
                self._begin()
            else:
                self.current = replace(self.current, state=STOPPED)
                self._save()
                hint = f"this robot now runs task {self._task}; start another collection"
                log.warning("collection.abandoned", collection=self.current.name, task=self.current.task, hint=hint)
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    @property
    def is_running(self) -> bool:
        """True while episodes are missing."""
        return self.current is not None and self.current.state == RUNNING

    @property
    def is_teleop(self) -> bool:
        """True while a person is to drive the episodes."""
        return self.is_running and self.current is not None and self.current.mode == TELEOP

    def status(self) -> dict[str, Any] | None:
        """Return what is shown of the collection, None where there was never one; the shape is append-only."""
        if self.current is None:
            return None
        waits = self.is_teleop and self._is_waiting and not self._collector.is_in_episode
        return {
            **asdict(self.current),
            "kept": self.current.kept,
            "order_id": self.current.order_id,
            "is_waiting": waits,
            "is_in_episode": self.is_running and self._collector.is_in_episode,
        }

    @property
    def summary(self) -> str:
        """How far it is, in words; empty while none runs."""
        if self.current is None or not self.is_running:
            return ""
        return f"{self.current.name}: {self.current.kept} of {self.current.target}"

    def start(
        self,
        mode: str,
        target: int,
        *,
        name: str = "",
        task: str = "",
        controller: str = "",
        seed: int | None = None,
    ) -> None:
        """Begin a collection in place of one that is over.

        Args:
            mode: teleop or controller.
            target: episodes to keep.
            name: a label; without one, the time.
            task: the task that is expected to run here; empty: whatever runs.
            controller: who drives with mode controller.
            seed: arena of the first episode; without one it follows from the name.

        Raises:
            CollectError: one runs, or what was asked for cannot be.

        """
        name = name or time.strftime("%Y%m%d-%H%M%S")
        if self.current is not None and self.is_running:
            text = f"collect: {self.current.name} has {self.current.kept} of {self.current.target} episodes"
            raise CollectError(f"{text}; roverctl collect stop ends it")
        if mistakes := "; ".join(self._mistakes(mode, target, name, task, controller)):
            raise CollectError(f"collect: {mistakes}")
        first = zlib.crc32(name.encode()) % ARENAS if seed is None else seed
        self.current = Collection(name, mode, controller, self._task, target, first)
        self._save()
        log.info("collection.started", collection=name, mode=mode, target=target)
        self._begin()
        if self.is_teleop and self._owner:
            self.next_episode()

    def stop(self) -> bool:
        """End the collection, and its episode unfinished; False where none runs."""
        if self.current is None or not self.is_running:
            return False
        self.current = replace(self.current, state=STOPPED)
        self._end()
        return True

    def next_episode(self) -> bool:
        """Let the operator's next command begin an episode; False where one runs or may begin already."""
        if not self.is_teleop:
            raise CollectError("collect: no collection by hand runs; roverctl collect start --mode teleop")
        if self._collector.is_in_episode or not self._is_waiting:
            return False
        self._is_waiting = False
        self._collector.allow_episode(is_allowed=True)
        return True

    def judge(self, verdict: str) -> None:
        """End the running episode by the operator's word: success, failure or discard; raises CollectError."""
        if verdict not in VERDICTS:
            raise CollectError(f"collect: verdict {verdict!r:.40} is none of {', '.join(VERDICTS)}")
        if not self.is_running or not self._collector.finish_episode(VERDICTS[verdict]):
            raise CollectError("collect: no episode of a collection runs that could be judged")

    def ended(self, purpose: str, order_id: str, verdict: str | None) -> None:
        """Count an episode that ended: success, failure, discard, or None where it was only cut off."""
        if self.current is None or purpose != "collection" or order_id != self.current.order_id:
            return
        self._is_waiting = True
        self._collector.allow_episode(is_allowed=False)
        if verdict is None or not self.is_running:
            return
        after = self.current = self.current.counted(verdict)
        if after.state == RUNNING:
            self._save()
        else:
            self._end()

    def wheel_changed(self) -> None:
        """Begin the first episode of an operator who took the wheel; discard that of one who let go."""
        before, self._owner = self._owner, self._wheel.owner
        if not self.is_teleop or before == self._owner:
            return
        if self._owner and not before:
            self.next_episode()
        elif not self._owner and not self._collector.finish_episode(None):
            self._is_waiting = True
            self._collector.allow_episode(is_allowed=False)

    def look(self) -> None:
        """Discard an episode whose operator says nothing any more."""
        if self.is_teleop and self._collector.is_in_episode and self._wheel.silent_s > LOST_AFTER_S:
            self._collector.finish_episode(None)

    def _mistakes(self, mode: str, target: int, name: str, task: str, controller: str) -> list[str]:
        mistakes = []
        if mode not in {TELEOP, CONTROLLER}:
            mistakes.append(f"mode {mode!r:.40} is neither teleop nor controller")
        if not 1 <= target <= MAX_TARGET:
            mistakes.append(f"episodes {target} is not within 1 to {MAX_TARGET}")
        if not re.fullmatch(NAME, name):
            mistakes.append(f"name {name!r:.80} does not match {NAME}")
        if task and task != self._task:
            mistakes.append(f"this robot runs task {self._task}, not {task:.80}; start roverd with --task {task:.80}")
        if mode == CONTROLLER and controller not in self._controllers():
            mistakes.append(f"controller {controller!r:.80} is none of {', '.join(sorted(self._controllers()))}")
        if mode == TELEOP and controller:
            mistakes.append("a person drives with mode teleop, no controller")
        if mode == TELEOP and (refusal := self._wheel.refusal):
            mistakes.append(refusal)
        return mistakes

    def _load(self) -> None:
        try:
            self.current = Collection.load(self._file.read_bytes())
        except (OSError, CollectError) as error:
            hint = "its episodes are safe, its count is not known; start another collection"
            log.error("collection.unreadable", file=str(self._file), error=str(error), hint=hint)  # noqa: TRY400

    def _begin(self) -> None:
        assert self.current is not None  # noqa: S101 - the callers have one
        self._is_waiting = True
        self._owner = self._wheel.owner
        self._collector.allow_episode(is_allowed=False)
        self._collector.collect(self.current.order())

    def _end(self) -> None:
        assert self.current is not None  # noqa: S101 - the callers have one
        self._save()
        counts = {each: getattr(self.current, each) for each in ("successes", "failures", "discarded")}
        log.info("collection.ended", collection=self.current.name, state=self.current.state, **counts)
        self._collector.collect(Order(self.current.order_id, "idle"))

    def _save(self) -> None:
        assert self.current is not None  # noqa: S101 - the callers have one
        try:
            write_atomic(self._file, json.dumps(asdict(self.current)).encode())
        except OSError as error:  # a full disk ends no collection
            hint = "a restart counts from the last state on the disk; free space"
            log.error("collection.unwritten", error=str(error), hint=hint)  # noqa: TRY400 - no trace for a full disk
