"""Drive episodes: show control each new observation, move the robot by what was applied, record every tick.

Nothing timed depends on this service: control keeps the clock. In lock-step it and control hand a token to each other,
so that a run depends on nothing but its seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.bundle import write_atomic
from protocol.framing import RecordEncoder, encode_record
from protocol.images import JPEG, decode_rgb
from protocol.messages import Message, Order, OrderUpdate
from protocol.moment import RUNNING, Outcome, Reading
from protocol.node.liveness import Pulse
from protocol.node.log import get_logger
from protocol.step import Intervention
from roverd.control import wire
from roverd.control.ring import RingWriter, SlotKeeper
from roverd.episode import Episode, Observed, Plan, Rewards, observe
from roverd.lateness import Lateness
from roverd.policies import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from plugins.contracts import Robot, Task
    from plugins.guard import Guard
    from protocol.spec import TaskSpec
    from protocol.step import FloatArray, Record
    from roverd.control.ring import Views
    from roverd.controls import Controls
    from roverd.episode import Encoded
    from roverd.policies import Policies
    from roverd.settings import Settings
    from roverd.spool import Spool

log = get_logger()
TRAINING_ARENAS = 1_000_000
"""Training episodes use arenas 0 to this; evaluations name arenas above it."""
RECENT = 16
MAX_FAULTS = 3
MAX_COAST_TICKS = 1000
MAX_SEED = 1 << 62
MAX_EPISODES = 1_000_000
LOCAL = "local-"
"""How the id of an order given on this robot begins."""
POLICIES = {"", "policy"}
"""Controllers of an order that are no scripted one."""
RATE_WINDOW_S = 10.0
HANG_S, LOCK_STEP_HANG_S = 5.0, 120.0
"""In an episode control answers each observation within two periods; in lock-step it waits for the policy."""


class Drive:
    """Service: run episodes according to the standing order."""

    name = "drive"

    def __init__(  # noqa: PLR0913, PLR0915 - the parts it composes
        self,
        settings: Settings,
        *,
        robot: Robot,
        task: Task,
        rewards: Rewards,
        ring: RingWriter,
        control: Controls,
        policies: Policies,
        spool: Spool,
        boot_id: str,
        boot: int,
        task_guards: Sequence[Guard[Any]] = (),
    ) -> None:
        """Take everything; ``run`` starts the first episode."""
        self._settings, self._robot, self._task, self._rewards = settings, robot, task, rewards
        self._spec = robot.spec
        self._layout = wire.Layout(len(self._spec.action), len(self._spec.state) + len(task.spec.features))
        self._delay_ns = int(self._spec.action_delay_ms * 1e6)
        self._names = tuple(element.name for element in self._spec.state)
        self._ring, self._control, self._policies, self._spool = ring, control, policies, spool
        self._encoder = RecordEncoder(self._spec)
        self._boot_id, self._boot = boot_id, boot
        self.send_record: Callable[[int, list[bytes]], None] = spool.append
        self.send: Callable[[Message], None] = lambda _: None
        self.on_tick: Callable[[Observed, wire.Applied | None], None] = lambda *_: None
        """Hears of each observation, and of what was applied on the tick before it."""
        self.on_episode_end: Callable[[str, str, str | None], None] = lambda *_: None
        """Hears purpose, order id, and success, failure, discard, or None where the episode was only cut off."""
        self.is_wheel_taken: Callable[[], bool] = lambda: False
        """Says whether a person has the wheel: then nobody else begins an episode."""
        self.is_armed: Callable[[], bool] = lambda: True
        """Says whether a policy or a controller may drive: not before the robot has passed its self-check."""
        self.is_checking: Callable[[], bool] = lambda: False
        """Says whether the self-check moves the robot: nobody else begins an episode; its own is not trained on."""
        self._releases = False
        self._may_collect = False
        self._person_says: bool | None = None
        self._lock_step = settings.control.rate_hz == 0
        self.pulse = Pulse(self.name, LOCK_STEP_HANG_S if self._lock_step else HANG_S + 3 * self._spec.period_s)
        self._slots = SlotKeeper(0 if self._lock_step else round(2e9 * self._spec.period_s))
        self._order = Order("", "train" if settings.autostart else "idle")
        self._next_order: Order | None = None
        self._held_by_person = False
        self._episode: Episode | None = None
        self._current: Observed | None = None
        self._recent: dict[int, Observed] = {}
        self._generation = 0
        self._first_generation = 0
        self._image_stamp_ns = 0
        self._seq = 0
        self._episodes = 0
        self._order_episodes = 0
        self._stop_reason = ""
        self._task_guards = task_guards
        self._faults = 0
        self._paused_seen: bytes | None = None
        self._human_until_ns = 0
        self._next_human: tuple[tuple[float, ...], float, bool] | None = None
        self._is_locked = False
        self._lets_go = False
        self._was_human = False
        self._last_policy = ""
        self._stood_in = False
        self._safe_action = tuple(0.0 if value is None else value for value in robot.safe_action)
        self._in_flight = self._safe_action
        self._digest = hashlib.sha256()
        self.digest = ""
        self._e_stop_file = settings.state_dir / "e_stop"
        self.e_stop = ""
        if self._e_stop_file.is_file():
            self.latch_e_stop(self._e_stop_file.read_text(errors="replace"))
        self.counts = {"ticks": 0, "decisions": 0, "episodes": 0, "successes": 0, "gaps": 0, "waits": 0}
        self.counts.update(skipped=0, missed=0, dropped_frames=0)
        self.lateness = Lateness()
        self._last_tick = 0
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=64)
        self.last_outcome = ""
        control.listen(self._on_control, self._control_lost)
        control.on_promoted.append(lambda: self._guarded(self._show_again))
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_over = False

    # -- the service ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Begin driving when something can drive; ends with an error when the control process dies."""
        try:
            self.wake()
            while not self._fatal.done():
                await asyncio.wait([self._fatal], timeout=1.0)
                self._marks.append((time.monotonic(), self.counts["ticks"], self.counts["decisions"]))
            self._fatal.result()
        finally:
            self._is_over = True  # acknowledgements of the last records still wake
            if self._episode is not None and self._current is not None:
                self._finish("stopped", self._with_images(self._current), RUNNING)
            self._robot.close()

    def _control_lost(self, error: Exception) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(error)

    @property
    def is_alive(self) -> bool:
        """False once driving has failed."""
        return not self._fatal.done()

    @property
    def next_seq(self) -> int:
        """The seq of the next record."""
        return self._seq

    @property
    def order_id(self) -> str:
        """The order that is followed, or will be from the next episode on."""
        return (self._next_order or self._order).order_id

    @property
    def is_task_disabled(self) -> bool:
        """True once the task plugin failed so often that no episode can be judged."""
        return any(guard.is_disabled for guard in self._task_guards)

    @property
    def mode(self) -> str:
        """What the present order says, or why nothing moves."""
        if self.e_stop:
            return "e_stop"
        if self.is_task_disabled:
            return "task_disabled"
        if self._held_by_person:
            return "held"
        if self.is_checking():
            return "selfcheck"
        if self.is_wheel_taken() and self._order.mode != "collect":
            return "teleop"
        return self._order.mode if self.is_armed() else "unarmed"

    @property
    def rates(self) -> tuple[float, float]:
        """Ticks and decisions per second over the last seconds."""
        now = (time.monotonic(), self.counts["ticks"], self.counts["decisions"])
        then = next((mark for mark in self._marks if now[0] - mark[0] < RATE_WINDOW_S), now)
        span = now[0] - then[0]
        if span <= 0:
            return 0.0, 0.0
        return (now[1] - then[1]) / span, (now[2] - then[2]) / span

    @property
    def task_spec(self) -> TaskSpec:
        """What the task adds to the observation."""
        return self._task.spec

    @property
    def is_in_episode(self) -> bool:
        """True while an episode runs."""
        return self._episode is not None

    @property
    def applied_action(self) -> tuple[float, ...]:
        """The action that was applied last, in the units of RobotSpec.action."""
        return self._in_flight

    def sensor_ages_ms(self) -> dict[str, float]:
        """How old the newest reading of each sensor is, by blob key; empty while no episode runs or in lock-step."""
        if self._lock_step or self._episode is None or self._current is None:
            return {}
        now_ns = time.monotonic_ns()
        ages = {"state": (now_ns - self._current.reading.stamp_ns) * 1e-6}
        if self._image_stamp_ns:
            ages.update((camera.key, (now_ns - self._image_stamp_ns) * 1e-6) for camera in self._spec.cameras)
        return ages

    # -- orders and commands ----------------------------------------------------------------------------------------

    def ordered(self, order: Order) -> None:
        """Take an order of the trainer; it holds from the next episode on."""
        if order.order_id == self.order_id or self._is_busy_locally():
            return
        if not 0 <= order.seed < MAX_SEED or not 0 <= order.episodes <= MAX_EPISODES:
            self.send(OrderUpdate(order.order_id, "refused", 0, f"seed {order.seed}, episodes {order.episodes}"))
            return
        self._next_order = order
        self._stop_episode_if("idle" if order.mode == "idle" else "")
        self.wake()

    def _is_busy_locally(self) -> bool:
        """Say whether an order given on this robot still runs; the trainer repeats its own until it is followed."""
        order = self._next_order or self._order
        return order.mode == "collect" or (order.order_id.startswith(LOCAL) and order.mode == "evaluate")

    def collect(self, order: Order) -> None:
        """Follow an order of mode collect, or idle, which ends one, from the next episode on; the running one ends."""
        self._next_order = order
        self._stop_episode_if("collect")
        self.wake()

    def allow_episode(self, *, is_allowed: bool) -> None:
        """Let the next command of a human begin one episode of a collection, or not."""
        self._may_collect = is_allowed

    def finish_episode(self, success: bool | None) -> bool:  # noqa: FBT001 - the verdict itself
        """End the running episode by a person's word, None discards it; False where none runs."""
        if self._episode is None:
            return False
        self._person_says = success
        self._stop_reason = "discard" if success is None else "person"
        return True

    def hold(self, *, is_held: bool) -> None:
        """Stop driving after ending the episode (a person's wish), or go on."""
        self._held_by_person = is_held
        self._stop_episode_if("held" if is_held else "")
        self.wake()

    def latch_e_stop(self, reason: str) -> None:
        """Command the safe action until cleared; the running episode ends."""
        self.e_stop = reason or "requested"
        self._control.send(bytes([wire.E_STOP]))
        self._stop_episode_if("e_stop")
        log.warning("e_stop.latched", reason=self.e_stop, hint="roverctl clear lets the robot drive again")
        try:
            write_atomic(self._e_stop_file, self.e_stop.encode())  # a restart does not release it
        except OSError as error:  # a full disk must not keep the robot from stopping
            hint = "it holds until roverd starts again; free space"
            log.error("e_stop.unwritten", error=str(error), hint=hint)  # noqa: TRY400 - no trace for a full disk

    def clear_e_stop(self) -> None:
        """Release the emergency stop."""
        self.e_stop = ""
        self._e_stop_file.unlink(missing_ok=True)
        self._control.send(bytes([wire.CLEAR]))
        log.info("e_stop.cleared")
        self.wake()

    def human(self, action: tuple[float, ...], seconds: float, *, locks: bool = False) -> bool:
        """Let a human's action drive for a time (on the robot's own clock); the policy goes on proposing.

        With ``locks`` the robot stands afterwards, until the next action or ``let_go``; without, the policy drives on.
        Without a policy an episode begins for it; False where the robot must not move.
        """
        locks = locks or not self.is_armed()  # else the policy would drive when it has expired
        self._is_locked, self._lets_go = locks, False
        if not self._lock_step:
            until_ns = time.monotonic_ns() + int(seconds * 1e9)
            self._tell_human(action, until_ns, locks=locks)  # a lock holds before an episode begins as well
            if self._episode is not None:
                return True
        self._next_human = (action, seconds, locks)  # in lock-step told with the next observation, which then decides
        self.wake()
        if self._episode is None or (locks and not self._lock_step):
            self._next_human = None
        return self._episode is not None

    def let_go(self) -> None:
        """Give the wheel back: the policy drives on, if it may; else the episode ends, and only then the lock."""
        self._next_human = None
        if self._episode is not None and not self.is_armed():
            self._stop_episode_if("unarmed")
            self._releases = True
            return
        self._is_locked = False
        if self._lock_step and self._episode is not None:
            self._lets_go = True  # told together with the next observation
        else:
            self._control.send(bytes([wire.RELEASE]))
        self.wake()

    def _tell_human(self, action: tuple[float, ...], until_ns: int, *, locks: bool) -> None:
        self._human_until_ns = until_ns
        self._control.send(self._layout.pack_human(wire.Human(until_ns, action, locks)))

    def stop_episode(self, reason: str) -> None:
        """End the running episode, if there is one, at its next tick."""
        self._stop_episode_if(reason)

    def _stop_episode_if(self, reason: str) -> None:
        if reason and self._episode is not None:
            self._stop_reason = reason

    def wake(self) -> None:
        """Start an episode if none runs and everything for one is there, or go on after a wait."""
        if self._is_over:
            return
        if self._paused_seen is not None:
            if not self._must_wait():
                self._control.send(self._paused_seen)
                self._paused_seen = None
                self.pulse.beat()
        elif self._episode is None and not self._must_wait():
            self._begin()

    def _must_wait(self) -> bool:
        """Return True while a simulator has to wait for the trainer: a real robot never does."""
        if self._lock_step and not self._spool.has_room:
            self.counts["waits"] += 1
            return True
        return False

    # -- episodes ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._adopt_order()
        if self._is_order_done():
            return
        self._policies.take_ready()  # also at rest: the trainer orders an evaluation once its policy drives
        if self._held_by_person or self.e_stop or self.is_task_disabled or not self._has_driver():
            return
        if self._next_human is None and not self.is_armed():
            if self._is_ordered_by_name:
                self._refuse_order("the robot is unarmed: roverctl selfcheck")
            return
        if self._next_human is None and self._is_ordered_by_name and not self._policies.is_settled:
            self._refuse_order_if_impossible()
            return
        if self._policies.driving is None and self._next_human is None:
            return
        plan = self._plan()
        self._may_collect = False
        self._spool.mark_episode(self._seq)
        self._episodes += 1
        self._episode = Episode(self._settings.rover_id, self._boot_id, self._episodes, plan, self._spec, self._rewards)
        self._robot.reset(plan.arena_seed)
        reading = self._read(images=True)
        self._task.reset(reading)
        self._first_generation = self._generation + 1
        self._recent.clear()
        self._was_human = False
        self._last_policy = ""
        self._stood_in = False
        self._human_until_ns = 0
        self._in_flight = self._safe_action
        self._stop_reason = ""
        shown = observe(reading, self._task, self._names)
        self._show(shown, wire.RESET)
        self.on_tick(shown, None)

    @property
    def _is_ordered_by_name(self) -> bool:
        """Say whether the order names who drives: a policy or a scripted controller, and nobody else will do."""
        return self._order.mode == "evaluate" or (self._order.mode == "collect" and not self._is_collected_by_hand)

    @property
    def _is_collected_by_hand(self) -> bool:
        return self._order.mode == "collect" and self._order.controller in POLICIES

    def _has_driver(self) -> bool:
        """Say whether who drives here now may begin an episode: a person, or whoever else is ordered."""
        if self._next_human is not None:
            return self._may_collect or not self._is_collected_by_hand
        is_taken = self.is_wheel_taken() or self.is_checking()
        return not (self._is_collected_by_hand or self._order.mode == "idle" or is_taken)

    def _plan(self) -> Plan:
        order, serial, is_by_hand = self._order, self._order_episodes, self._next_human is not None
        if self.is_checking():
            return Plan("collection", self._episodes % TRAINING_ARENAS, False)
        if order.mode == "evaluate" and not is_by_hand:
            return Plan("evaluation", order.seed + serial, False, order.order_id, serial)
        if order.mode == "collect" and is_by_hand == self._is_collected_by_hand:
            return Plan("collection", order.seed + serial, False, order.order_id, serial)
        if order.mode != "train":  # a person drives where nobody asked for it
            return Plan("collection", self._episodes % TRAINING_ARENAS, False)
        rng = np.random.default_rng([self._settings.seed, self._boot, self._episodes, own_number(self._settings)])
        return Plan("training", int(rng.integers(TRAINING_ARENAS)), True, self._order.order_id)

    def _adopt_order(self) -> None:
        if self._next_order is None:
            return
        self._order, self._next_order = self._next_order, None
        self._order_episodes = 0
        target = None
        if self._order.mode in {"evaluate", "collect"}:
            is_policy = self._order.controller in POLICIES
            if not is_policy:
                target = Target("controller", self._order.controller, self._order.seed)
            elif self._order.policy_id:
                target = Target("policy", self._order.policy_id)
        self._policies.override(target)
        self.send(OrderUpdate(self._order.order_id, "running"))
        log.info("order.adopted", order_id=self._order.order_id, mode=self._order.mode)

    def _refuse_order_if_impossible(self) -> None:
        target = self._policies.target
        reason = self._policies.refusal(target) if target else ""
        if reason:
            self._refuse_order(reason)

    def _refuse_order(self, reason: str) -> None:
        self.send(OrderUpdate(self._order.order_id, "refused", self._order_episodes, reason))
        self._order = Order(self._order.order_id, "idle")

    def _is_order_done(self) -> bool:
        if self._order.mode not in {"evaluate", "collect"} or self._order_episodes < self._order.episodes:
            return False
        self.send(OrderUpdate(self._order.order_id, "finished", self._order_episodes))
        self._order = Order(self._order.order_id, "idle")
        return True

    # -- one tick ---------------------------------------------------------------------------------------------------

    def poke(self) -> None:
        """``wake``, for callbacks of other parts: what it raises ends this service instead of getting lost there."""
        self._guarded(self.wake)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a callback has no caller who could fail: run() raises it, by name
            if not self._fatal.done():
                self._fatal.set_exception(error)

    def _on_control(self, message: bytes) -> None:
        self._guarded(lambda: self._hear(message))

    def _hear(self, message: bytes) -> None:
        if message[0] == wire.SHADOWED:
            self._policies.shadowed(self._layout.unpack_shadowed(message))
        if message[0] != wire.APPLIED:
            return
        applied = self._layout.unpack_applied(message)
        skipped = max(0, applied.tick - self._last_tick - 1) if self._last_tick else 0
        self.counts["gaps"] += bool(skipped)
        self.counts["skipped"] += skipped
        self.counts["missed"] += bool(applied.interventions & Intervention.MISSED)
        self._last_tick = applied.tick
        self._slots.applied(applied.generation)
        self.lateness.add(applied.late_ns, applied.applied_ns - applied.tick_ns - self._delay_ns)
        self._policies.observed(applied)
        if self._episode is None or applied.generation < self._first_generation:
            return
        self._advance(applied, skipped)

    def _advance(self, applied: wire.Applied, skipped: int) -> None:
        seen = self._recent.get(applied.generation, self._current)
        assert seen is not None  # noqa: S101 - an episode runs, so an observation was shown
        policy_id = self._policies.slot_name(applied.policy_slot)
        if reason := self._break_before(applied, policy_id, skipped):
            self._break(reason, self._with_images(seen), applied.in_flight)
        self._coast(skipped)
        self._robot.advance(applied.in_flight, applied.action)
        self._in_flight = applied.action
        changes_hands = self._changes_hands(seen.reading.stamp_ns + int(1e9 * self._spec.period_s))
        decides_next = changes_hands or applied.tick_in_decision + 1 >= self._spec.action_repeat
        reading = self._read(images=decides_next or self._settings.record.images == "all")
        following = observe(reading, self._task, self._names)
        outcome = self._judged(self._task.judge(reading))
        stop = self._stop_reason or self._unarmed(applied) or self._fault(applied)
        ends = outcome.terminated or outcome.truncated or bool(stop)
        if ends:
            following = self._with_images(following)
        else:
            is_swapped = self._policies.take_ready(now=True)
            self._show(following, wire.DECIDE if changes_hands or is_swapped else 0)
        self._record(applied, seen, following, outcome, policy_id)
        self.on_tick(following, applied)
        if ends:
            reason = "terminated" if outcome.terminated else "truncated" if outcome.truncated else stop
            self._finish(reason, following, outcome)
            self.wake()

    def _judged(self, outcome: Outcome) -> Outcome:
        """Let a person's word stand above the task's."""
        if self._stop_reason == "discard":
            return RUNNING
        if self._stop_reason != "person" or self._person_says is None:
            return outcome
        return Outcome(terminated=True, truncated=False, success=self._person_says, reason="person")

    def _break_before(self, applied: wire.Applied, policy_id: str, skipped: int) -> str:
        """Say why a segment ends before this tick, or return an empty text: another hand, or ticks that are missing."""
        is_human = bool(applied.interventions & Intervention.HUMAN)
        stands_in = bool(applied.interventions & Intervention.FAILOVER)
        was_human, self._was_human = self._was_human, is_human
        stood_in, self._stood_in = self._stood_in, stands_in
        last_policy, self._last_policy = self._last_policy, policy_id or self._last_policy
        if is_human != was_human:
            return "takeover" if is_human else "release"
        if applied.interventions & Intervention.TOOK_OVER:
            return "failover"
        if policy_id and last_policy not in {"", policy_id}:
            return "failover" if stands_in or stood_in else "swap"
        return "fault" if skipped else ""

    def _coast(self, skipped: int) -> None:
        """Let a simulated robot go on without commands, as a real one does until its own dead-man timer stops it."""
        if not self._robot.is_simulated:
            return
        for index in range(min(skipped, MAX_COAST_TICKS)):
            is_stopped = (index + 1) * self._spec.period_s > self._settings.control.dead_man_ms * 1e-3
            action = self._safe_action if is_stopped else self._in_flight
            self._robot.advance(action, action)

    def _changes_hands(self, stamp_ns: int) -> bool:
        """Say whether another hand drives from the next observation on, which lock-step knows before."""
        if self._next_human is not None:
            return not self._was_human
        if self._lets_go:
            return self._was_human
        return self._was_human and not self._is_locked and 0 < self._human_until_ns < stamp_ns

    def _unarmed(self, applied: wire.Applied) -> str:
        """End a person's episode when he is done and nobody else may drive."""
        if not applied.interventions & Intervention.WHEEL_LOCKED or self.is_armed() or self.is_wheel_taken():
            return ""
        if self.is_checking() or self._next_human is not None:
            return ""
        self._releases = True
        return "unarmed"

    def _fault(self, applied: wire.Applied) -> str:
        """In lock-step a policy that gives no proposal ends the episode: going on would not be deterministic."""
        if applied.policy_slot >= 0 or applied.interventions & Intervention.HUMAN or self.e_stop:
            return ""
        if self._policies.driving is None:  # teleoperation without a policy ends when the human lets go
            return "stopped" if self._next_human is None else ""
        return "fault" if self._lock_step else ""

    def _read(self, *, images: bool) -> Reading:
        reading = self._robot.read(images)
        if not self._lock_step and self._robot.is_simulated:  # a device stamps its readings at capture
            reading.stamp_ns = time.monotonic_ns()
        return reading

    def _with_images(self, seen: Observed) -> Observed:
        if self._spec.cameras and not seen.encoded:
            reading = seen.reading
            if not reading.images:
                reading.images = self._robot.read(True).images
            seen.encoded = self._encoder.encode_images(reading.images)
        return seen

    def _show(self, seen: Observed, flags: int) -> None:
        """Put an observation into the ring and tell control; a simulator whose spool is full waits before that."""
        assert self._episode is not None  # noqa: S101 - only called within one
        self._generation += 1
        reading = seen.reading
        if reading.images and self._fill_slot(seen):
            flags |= wire.IMAGES
        seen.image_stamp_ns = self._image_stamp_ns
        if self._episode.plan.explores:
            flags |= wire.EXPLORE
        self._current = seen
        self._recent[self._generation] = seen
        self._recent.pop(self._generation - RECENT, None)
        message = self._pack_seen(seen, flags)
        self._tell_wheel(flags, reading.stamp_ns)
        if self._must_wait():
            self._paused_seen = message
            self.pulse.rest()
        else:
            self._control.send(message)
            self.pulse.beat()

    def _fill_slot(self, seen: Observed) -> bool:
        """Write images where nobody reads; where every slot may still be read they are dropped, and counted."""
        now_ns = time.monotonic_ns()
        slot = self._slots.free(now_ns)
        if slot is None:
            self.counts["dropped_frames"] += 1
            seen.reading.images = {}
            return False
        seen.encoded = self._encoder.encode_images(seen.reading.images)
        fill_slot(self._ring.slots[slot], seen.reading.images, seen.encoded)
        self._image_stamp_ns = seen.reading.stamp_ns
        self._slots.show(slot, self._generation, now_ns)
        return True

    def _pack_seen(self, seen: Observed, flags: int) -> bytes:
        vector: FloatArray = np.concatenate((seen.reading.state, seen.task))
        slot, stamp_ns = self._slots.newest, seen.reading.stamp_ns
        shown = wire.Seen(flags, slot, self._generation, stamp_ns, seen.image_stamp_ns, tuple(vector.tolist()))
        return self._layout.pack_seen(shown)

    def _tell_wheel(self, flags: int, stamp_ns: int) -> None:
        """In lock-step, tell a human's action or its end together with an observation, which then starts a decision."""
        if self._lets_go:
            self._lets_go = False
            self._human_until_ns = 0
            self._control.send(bytes([wire.RELEASE]))
        if self._next_human is not None and not flags & wire.RESET:
            action, seconds, locks = self._next_human
            self._next_human = None
            self._tell_human(action, stamp_ns + int(seconds * 1e9), locks=locks)

    def _show_again(self) -> None:
        """Show the newest observation to a control that took over and has seen nothing yet."""
        if self._episode is not None and self._current is not None:
            flags = wire.DECIDE | (wire.EXPLORE if self._episode.plan.explores else 0)
            is_fresh = self._slots.newest and bool(self._current.reading.images)
            self._control.send(self._pack_seen(self._current, flags | (wire.IMAGES if is_fresh else 0)))

    # -- records ----------------------------------------------------------------------------------------------------

    def _record(
        self, applied: wire.Applied, seen: Observed, following: Observed, outcome: Outcome, policy_id: str
    ) -> None:
        assert self._episode is not None  # noqa: S101 - only called within one
        step = self._episode.step(self._next(), seen, following, applied, outcome, policy_id)
        self.counts["ticks"] += 1
        self.counts["decisions"] += step.decides
        self._send(step, seen)
        if self.counts["ticks"] <= self._settings.record.digest_ticks:
            self._digest.update(_digestible(applied, step.reward))
            if self.counts["ticks"] == self._settings.record.digest_ticks:
                self.digest = self._digest.hexdigest()

    def _break(self, reason: str, seen: Observed, in_flight: tuple[float, ...]) -> None:
        """End a segment at what the next step sees; an episode that a human begins has none before it."""
        assert self._episode is not None  # noqa: S101 - only called within one
        if self._episode.steps:
            end = self._episode.end(self._next(), reason, seen, in_flight, RUNNING, ends_episode=False)
            self._send(end, seen)

    def _finish(self, reason: str, final: Observed, outcome: Outcome) -> None:
        episode, self._episode = self._episode, None
        self.pulse.rest()
        assert episode is not None  # noqa: S101 - only called within one
        kind = reason if reason in {"terminated", "truncated", "fault"} else "stopped"
        end = episode.end(self._next(), kind, final, self._in_flight, outcome)
        verdict = ("success" if outcome.success else "failure") if kind in {"terminated", "truncated"} else None
        if reason == "discard" or self.is_checking():
            verdict = "discard"
            end.metrics["discarded"] = 1.0
        self._send(end, final)
        self._count_faults(kind)
        self.counts["episodes"] += 1
        self.counts["successes"] += outcome.success
        self.last_outcome = outcome.reason or reason
        if kind in {"terminated", "truncated"} and episode.plan.order_id == self._order.order_id:
            self._order_episodes += 1
        if not self._lock_step:
            idle = wire.Seen(wire.IDLE, 0, 0, 0, 0, (0.0,) * self._layout.vector)
            self._control.send(self._layout.pack_seen(idle))
        if self._stop_reason:
            self._stop_reason = ""
        if self._releases:
            self._releases = self._is_locked = False
            self._control.send(bytes([wire.RELEASE]))
        self.on_episode_end(episode.plan.purpose, episode.plan.order_id, verdict)

    def _count_faults(self, kind: str) -> None:
        """Give up on a policy or controller that ends one episode after the other without an action."""
        self._faults = self._faults + 1 if kind == "fault" else 0
        if self._faults >= MAX_FAULTS:
            self._faults = 0
            self._policies.condemn(f"no proposal in {MAX_FAULTS} episodes running")

    def _send(self, record: Record, seen: Observed) -> None:
        self.send_record(record.seq, encode_record(record, seen.encoded))

    def _next(self) -> int:
        seq, self._seq = self._seq, self._seq + 1
        return seq


def own_number(settings: Settings) -> int:
    """Return a number of this rover's name: two rovers with one seed drive through different arenas."""
    return zlib.crc32(settings.rover_id.encode())


def fill_slot(slot: Views, images: Mapping[str, npt.NDArray[np.generic]], encoded: Encoded) -> None:
    """Write what the trainer will see into a slot: JPEGs as they decode; lossless frames need no decoding."""
    for key, (codec, content) in encoded.items():
        if codec == JPEG:
            decode_rgb(content, slot[key])
        else:
            np.copyto(slot[key], images[key])


def _digestible(applied: wire.Applied, reward: float) -> bytes:
    numbers = (*applied.action, *applied.in_flight, *applied.u, *applied.mean, reward, applied.clearance_m)
    return struct.pack(f"<{len(numbers)}dII", *numbers, applied.interventions, applied.tick_in_decision)
