"""Drive episodes: show control each new observation, move the robot by what was applied, record every tick.

Nothing timed depends on this service: control keeps the clock. In lock-step it and control hand a token to each other,
so that a run depends on nothing but its seed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from protocol.moment import RUNNING
from protocol.node.liveness import Pulse
from protocol.step import Intervention
from roverd.body import Body
from roverd.control import wire
from roverd.e_stop import EStop
from roverd.ending import Ending, Stop
from roverd.episode import Episode, Observed, Rewards, observe
from roverd.hands import Hands
from roverd.orders import Orders
from roverd.pace import Pace
from roverd.recording import Recording
from roverd.showing import Showing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plugins.contracts import Robot, Task
    from plugins.guard import Guard
    from protocol.messages import Order
    from protocol.spec import TaskSpec
    from roverd.control.ring import RingWriter
    from roverd.controls import Controls
    from roverd.episode import Plan
    from roverd.lateness import Lateness
    from roverd.policies import Policies
    from roverd.settings import Settings
    from roverd.spool import Spool

MAX_FAULTS = 3
HANG_S, LOCK_STEP_HANG_S = 5.0, 120.0
"""In an episode control answers each observation within two periods; in lock-step it waits for the policy."""


class Drive:
    """Service: run episodes according to the standing order."""

    name = "drive"

    def __init__(  # noqa: PLR0913 - the parts it composes
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
        self._control, self._policies, self._spool = control, policies, spool
        self._boot_id, self._task_guards = boot_id, task_guards
        self._spec = robot.spec
        self._names = tuple(element.name for element in self._spec.state)
        self._lock_step = settings.control.rate_hz == 0
        self._layout = wire.Layout(len(self._spec.action), len(self._spec.state) + len(task.spec.features))
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
        self.pulse = Pulse(self.name, LOCK_STEP_HANG_S if self._lock_step else HANG_S + 3 * self._spec.period_s)
        self.counts = {"ticks": 0, "decisions": 0, "episodes": 0, "successes": 0, "gaps": 0, "waits": 0}
        self.counts.update(skipped=0, missed=0, dropped_frames=0)
        self.last_outcome = ""
        self.orders = Orders(settings, policies, boot)
        self.recording = Recording(spool.append, digest_ticks=settings.record.digest_ticks)
        self._body = Body(robot, settings)
        self._pace = Pace(self.counts, delay_ns=int(self._spec.action_delay_ms * 1e6))
        reuse_after_ns = 0 if self._lock_step else round(2e9 * self._spec.period_s)
        self._showing = Showing(robot, self._layout, ring, self.counts, reuse_after_ns=reuse_after_ns)
        self._hands = Hands(self._layout, control, lock_step=self._lock_step)
        self._e_stop = EStop(settings.state_dir / "e_stop", control)
        self._episode: Episode | None = None
        self._stop = Stop()
        self._episodes = 0
        self._faults = 0
        self._held_by_person = False
        self._paused_seen: bytes | None = None
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
                self._pace.mark()
            self._fatal.result()
        finally:
            self._is_over = True  # acknowledgements of the last records still wake
            if self._episode is not None and self._showing.current is not None:
                self._finish(
                    Ending("stopped", RUNNING, is_discarded=self.is_checking()),
                    self._showing.with_images(self._showing.current),
                )
            self._robot.close()

    def _control_lost(self, error: Exception) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(error)

    def poke(self) -> None:
        """``wake``, for callbacks of other parts: what it raises ends this service instead of getting lost there."""
        self._guarded(self.wake)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a callback has no caller who could fail: run() raises it, by name
            if not self._fatal.done():
                self._fatal.set_exception(error)

    # -- how it stands ----------------------------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        """The seq of the next record."""
        return self.recording.next_seq

    @property
    def digest(self) -> str:
        """A digest of what was done in the first ticks; empty before."""
        return self.recording.digest

    @property
    def order_id(self) -> str:
        """The order that is followed, or will be from the next episode on."""
        return self.orders.order_id

    @property
    def e_stop(self) -> str:
        """Why the emergency stop is latched; empty where it is not."""
        return self._e_stop.reason

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
        if self.is_wheel_taken() and self.orders.mode != "collect":
            return "teleop"
        return self.orders.mode if self.is_armed() else "unarmed"

    @property
    def rates(self) -> tuple[float, float]:
        """Ticks and decisions per second over the last seconds."""
        return self._pace.rates

    @property
    def lateness(self) -> Lateness:
        """How punctual control is."""
        return self._pace.lateness

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
        return self._body.in_flight

    def sensor_ages_ms(self) -> dict[str, float]:
        """How old the newest reading of each sensor is, by blob key; empty while no episode runs or in lock-step."""
        return {} if self._lock_step or self._episode is None else self._showing.ages_ms()

    # -- orders and commands ----------------------------------------------------------------------------------------

    def ordered(self, order: Order) -> None:
        """Take an order of the trainer; it holds from the next episode on."""
        if self.orders.take(order):
            self.stop_episode("idle" if order.mode == "idle" else "")
            self.wake()

    def collect(self, order: Order) -> None:
        """Follow an order of mode collect, or idle, which ends one, from the next episode on; the running one ends."""
        self.orders.collect(order)
        self.stop_episode("collect")
        self.wake()

    def allow_episode(self, *, is_allowed: bool) -> None:
        """Let the next command of a human begin one episode of a collection, or not."""
        self.orders.allow_episode(is_allowed=is_allowed)

    def finish_episode(self, success: bool | None) -> bool:  # noqa: FBT001 - the verdict itself
        """End the running episode by a person's word, None discards it; False where none runs."""
        if self._episode is None:
            return False
        self._stop.finish(success)
        return True

    def stop_episode(self, reason: str) -> None:
        """End the running episode, if there is one, at its next tick; an empty reason lets it run."""
        if reason and self._episode is not None:
            self._stop.reason = reason

    def hold(self, *, is_held: bool) -> None:
        """Stop driving after ending the episode (a person's wish), or go on."""
        self._held_by_person = is_held
        self.stop_episode("held" if is_held else "")
        self.wake()

    def latch_e_stop(self, reason: str) -> None:
        """Command the safe action until cleared; the running episode ends."""
        self.stop_episode("e_stop")
        self._e_stop.latch(reason)

    def clear_e_stop(self) -> None:
        """Release the emergency stop."""
        self._e_stop.clear()
        self.wake()

    def human(self, action: tuple[float, ...], seconds: float, *, locks: bool = False) -> bool:
        """Let a human's action drive for a time (on the robot's own clock); the policy goes on proposing.

        With ``locks`` the robot stands afterwards, until the next action or ``let_go``; without, the policy drives on.
        Without a policy an episode begins for it; False where the robot must not move.
        """
        locks = locks or not self.is_armed()  # else the policy would drive when it has expired
        self._hands.command(action, seconds, locks=locks)
        if self._episode is not None and not self._lock_step:
            return True
        self._hands.wait(action, seconds, locks=locks)
        self.wake()
        if self._episode is None or (locks and not self._lock_step):
            self._hands.forget()
        return self._episode is not None

    def let_go(self) -> None:
        """Give the wheel back: the policy drives on, if it may; else the episode ends, and only then the lock."""
        self._hands.forget()
        if self._episode is not None and not self.is_armed():
            self.stop_episode("unarmed")
            self._hands.let_go_at_end()
            return
        self._hands.let_go(is_in_episode=self._episode is not None)
        self.wake()

    # -- begin ------------------------------------------------------------------------------------------------------

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
            self._begin_what_is_ordered()

    def _must_wait(self) -> bool:
        """Return True while a simulator has to wait for the trainer: a real robot never does."""
        if self._lock_step and not self._spool.has_room:
            self.counts["waits"] += 1
            return True
        return False

    def _begin_what_is_ordered(self) -> None:
        self.orders.adopt()
        if self.orders.finish_if_complete():
            return
        self._policies.take_ready()  # also at rest: the trainer orders an evaluation once its policy drives
        if self._may_begin():
            is_by_hand = self._hands.is_next_human
            self._begin(self.orders.plan(self._episodes, is_by_hand=is_by_hand, is_checking=self.is_checking()))

    def _may_begin(self) -> bool:
        """Say whether somebody drives the next episode; an order that nobody can follow is refused."""
        is_by_hand, is_taken = self._hands.is_next_human, self.is_wheel_taken() or self.is_checking()
        if self._held_by_person or self.e_stop or self.is_task_disabled:
            return False
        if not self.orders.has_driver(is_by_hand=is_by_hand, is_taken=is_taken):
            return False
        if is_by_hand:
            return True
        if not self.is_armed():
            if self.orders.is_by_name:
                self.orders.refuse("the robot is unarmed: roverctl selfcheck")
            return False
        if self.orders.is_by_name and not self._policies.is_settled:
            self.orders.refuse_if_impossible()
            return False
        return self._policies.driving is not None

    def _begin(self, plan: Plan) -> None:
        self.orders.allow_episode(is_allowed=False)
        self._spool.mark_episode(self.recording.next_seq)
        self._episodes += 1
        self._episode = Episode(self._settings.rover_id, self._boot_id, self._episodes, plan, self._spec, self._rewards)
        reading = self._body.reset(plan.arena_seed)
        self._task.reset(reading)
        self._showing.begin_episode()
        self._hands.begin_episode()
        self._stop.reason = ""
        shown = observe(reading, self._task, self._names)
        self._show(shown, wire.RESET)
        self.on_tick(shown, None)

    # -- show -------------------------------------------------------------------------------------------------------

    def _show(self, seen: Observed, flags: int) -> None:
        """Show control an observation; a simulator whose spool is full waits before that."""
        message = self._showing.show(seen, flags | self._explores())
        self._hands.tell(seen.reading.stamp_ns, is_first=bool(flags & wire.RESET))
        if self._must_wait():
            self._paused_seen = message
            self.pulse.rest()
        else:
            self._control.send(message)
            self.pulse.beat()

    def _show_again(self) -> None:
        if self._episode is not None and self._showing.current is not None:
            self._control.send(self._showing.show_again(wire.DECIDE | self._explores()))

    def _explores(self) -> int:
        return wire.EXPLORE if self._episode is not None and self._episode.plan.explores else 0

    # -- one tick ---------------------------------------------------------------------------------------------------

    def _on_control(self, message: bytes) -> None:
        self._guarded(lambda: self._hear(message))

    def _hear(self, message: bytes) -> None:
        if message[0] == wire.SHADOWED:
            self._policies.shadowed(self._layout.unpack_shadowed(message))
        if message[0] != wire.APPLIED:
            return
        applied = self._layout.unpack_applied(message)
        skipped = self._pace.heard(applied)
        self._showing.applied(applied.generation)
        self._policies.observed(applied, explores=bool(self._explores()))
        if self._episode is not None and (seen := self._showing.acted_on(applied.generation)) is not None:
            self._advance(self._episode, applied, seen, skipped)

    def _advance(self, episode: Episode, applied: wire.Applied, seen: Observed, skipped: int) -> None:
        """Move the robot by what was applied, show what comes of it, and record the tick."""
        policy_id = self._policies.slot_name(applied.policy_slot)
        if reason := self._hands.break_before(applied, policy_id, skipped):
            self.recording.cut(episode, reason, self._showing.with_images(seen), applied.in_flight)
        self._body.advance(applied, skipped)
        changes_hands = self._hands.change(seen.reading.stamp_ns + int(1e9 * self._spec.period_s))
        decides_next = changes_hands or applied.tick_in_decision + 1 >= self._spec.action_repeat
        reading = self._body.read(images=decides_next or self._settings.record.images == "all")
        following = observe(reading, self._task, self._names)
        outcome = self._stop.judged(self._task.judge(reading))
        stop = self._stop.reason or self._unarmed(applied) or self._fault(applied)
        ends = outcome.terminated or outcome.truncated or bool(stop)
        if ends:
            following = self._showing.with_images(following)
        else:
            is_swapped = self._policies.take_ready(now=True)
            self._show(following, wire.DECIDE if changes_hands or is_swapped else 0)
        step = self.recording.step(episode, seen, following, applied, outcome, policy_id)
        self.counts["ticks"] += 1
        self.counts["decisions"] += step.decides
        self.on_tick(following, applied)
        if ends:
            reason = "terminated" if outcome.terminated else "truncated" if outcome.truncated else stop
            self._finish(Ending(reason, outcome, is_discarded=reason == "discard" or self.is_checking()), following)
            self.wake()

    def _unarmed(self, applied: wire.Applied) -> str:
        """End a person's episode when he is done and nobody else may drive."""
        if not applied.interventions & Intervention.WHEEL_LOCKED or self.is_armed() or self.is_wheel_taken():
            return ""
        if self.is_checking() or self._hands.is_next_human:
            return ""
        self._hands.let_go_at_end()
        return "unarmed"

    def _fault(self, applied: wire.Applied) -> str:
        """In lock-step a policy that gives no proposal ends the episode: going on would not be deterministic."""
        if applied.policy_slot >= 0 or applied.interventions & Intervention.HUMAN or self.e_stop:
            return ""
        if self._policies.driving is None:  # teleoperation without a policy ends when the human lets go
            return "" if self._hands.is_next_human else "stopped"
        return "fault" if self._lock_step else ""

    # -- finish -----------------------------------------------------------------------------------------------------

    def _finish(self, ending: Ending, final: Observed) -> None:
        episode, self._episode = self._episode, None
        self.pulse.rest()
        assert episode is not None  # noqa: S101 - only called within one
        plan = episode.plan
        self.recording.end(episode, ending, final, self._body.in_flight)
        self._count_faults(ending.kind)
        self.counts["episodes"] += 1
        self.counts["successes"] += ending.outcome.success
        self.last_outcome = ending.outcome.reason or ending.reason
        if ending.is_finished:
            self.orders.count(plan.order_id)
        if not self._lock_step:
            idle = wire.Seen(wire.IDLE, 0, 0, 0, 0, (0.0,) * self._layout.vector)
            self._control.send(self._layout.pack_seen(idle))
        self._stop.reason = ""
        self._hands.end_episode()
        self.on_episode_end(plan.purpose, plan.order_id, ending.verdict)

    def _count_faults(self, kind: str) -> None:
        """Give up on a policy or controller that ends one episode after the other without an action."""
        self._faults = self._faults + 1 if kind == "fault" else 0
        if self._faults >= MAX_FAULTS:
            self._faults = 0
            self._policies.condemn(f"no proposal in {MAX_FAULTS} episodes running")
