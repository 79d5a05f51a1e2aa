"""The rovers of a run: who is admitted, what each should drive, and whether it does. Pure logic: time comes in.

Everything is level-triggered: a rover states what drives it in each ping, and whatever differs from what it should be
is offered or ordered again until it fits.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Protocol

from protocol import PROTOCOL_VERSION
from protocol.errors import RoverError
from protocol.messages import Hello, Message, Offer, Order, OrderUpdate, Ping, Refuse, Verdict, Welcome, ranges_of
from protocol.node.log import get_logger
from protocol.ranges import Ranges
from protocol.spec import SpecError
from trainerd.evaluate import FAILED, Evaluation, Evaluations
from trainerd.lane import Boot, Tally
from trainerd.rover import MAX_BACKLOG, Backlog, Rover, Waiting, backlog_of, plain, refusal_of_text, whole
from trainerd.run import parse_specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.messages import Gone
    from protocol.spec import RobotSpec, TaskSpec
    from trainerd.run import Run, RunFile
    from trainerd.settings import LinkSettings

log = get_logger()
TAKE_OVER_S = 1.0
"""A rover that was silent so long may be replaced by a new process of the same name."""
SLOWEST_OFFER_S = 16.0
MAX_REFUSED = 256
"""Refused policies that are remembered of a rover."""
BY_HAND = {"teleop", "collect"}
"""Modes that a rover states in which a person drives, or does not just now."""
STANDING = {mode: Order(mode, mode) for mode in ("train", "idle")}
"""The orders that hold while there is no evaluation; their id is their mode."""


class Shelf(Protocol):
    """What the fleet asks of the episode store."""

    def received(self, rover_id: str, boot_id: str) -> list[list[int]]:
        """Return the inclusive ranges of seq that are safe on disk."""

    def gone(self, rover_id: str, boot_id: str) -> list[list[int]]:
        """Return the inclusive ranges of seq that were given up."""

    def give_up(self, rover_id: str, boot_id: str, ranges: list[list[int]], reason: str) -> None:
        """Hear that records will never come."""

    def begin_boot(
        self, rover_id: str, boot_id: str, *, run_id: str, robot: RobotSpec, task: TaskSpec, epoch_ns: int
    ) -> None:
        """Hear what the records of a boot are of; may be said again."""

    def close_boot(self, rover_id: str, boot_id: str) -> None:
        """Hear that nothing more comes of a boot."""


class Fleet:
    """All rovers and what they are told; ``outbox`` collects messages. The link thread owns it."""

    def __init__(
        self,
        run_file: RunFile,
        settings: LinkSettings,
        shelf: Shelf,
        *,
        check_specs: Callable[[RobotSpec, TaskSpec], object],
        on_specs: Callable[[Run], object],
        on_evaluated: Callable[[Evaluation], object] | None = None,
    ) -> None:
        """Admit rovers to a run.

        Args:
            run_file: the run, whose specs the first rover fixes.
            settings: of the link.
            shelf: where records become safe.
            check_specs: raises RoverError where nothing can be learned for a robot and a task.
            on_specs: hears once when the specs are fixed.
            on_evaluated: hears of each finished evaluation.

        """
        self.rovers: dict[str, Rover] = {}
        self.outbox: deque[tuple[bytes, Message]] = deque()
        self.evaluations = Evaluations(on_evaluated)
        self.mode = "idle"
        self.is_open = True
        """False while nothing can be made safe: no rover has credit then."""
        self.wanted: Offer | None = None
        self.tally = Tally()
        self.boots: dict[tuple[str, str], Boot[Waiting]] = {}
        """Every boot of which records may come or wait, by (rover_id, boot_id)."""
        self.update_to_driving_s: list[float] = []
        """For each update the time until its policy drove, or a newer one did because it had been overtaken."""
        self.refused_hellos: Counter[str] = Counter()
        self.last_refusal = ""
        self._run_file = run_file
        self._settings = settings
        self._shelf = shelf
        self._check_specs = check_specs
        self._on_specs = on_specs
        self._alone_s: float | None = None
        self._offers: dict[str, Offer] = {}
        self._finished: list[tuple[int, float]] = []
        """Policy counter and end of the updates that no rover drives yet, nor anything newer."""
        self._counters: dict[str, int] = {}
        """Policy counters of what was offered."""
        self._gone_overflow = 0
        self._by_identity: dict[bytes, str] = {}

    @property
    def specs(self) -> tuple[RobotSpec, TaskSpec] | None:
        """The run's specs, or None before the first rover."""
        return self._run_file.run.specs

    def rover_of(self, identity: bytes) -> Rover | None:
        """Return the rover that said hello on a connection."""
        return self.rovers.get(self._by_identity.get(identity, ""))

    def greet(self, identity: bytes, hello: Hello, now_s: float) -> Rover | None:
        """Admit a rover or refuse it by name of the reason."""
        refusal = self._refusal(identity, hello, now_s)
        if refusal is not None:
            self.refuse(identity, refusal)
            return None
        backlog = backlog_of(hello)
        rover = self._admit(identity, hello, now_s)
        older = self._admit_backlog(rover, backlog)
        version = min(hello.newest_version, PROTOCOL_VERSION)
        run_id, credit = self._run_file.run.run_id, self.credit_of(rover)
        rover.told_credit = credit
        received = rover.boot.durable.to_list(256)
        safe = {boot.boot_id: boot.durable.to_list(64) for boot in older}
        self.outbox.append((identity, Welcome(version, "trainerd", run_id, credit, hello.boot_id, received, safe)))
        self._state(rover, hello.policy_id, hello.policy_counter, hello.order_id)
        self.converge(rover, now_s)
        return rover

    def refuse(self, identity: bytes, refusal: Refuse) -> None:
        """Count a refusal and tell the rover why."""
        self.refused_hellos[refusal.code] += 1
        self.last_refusal = refusal.reason
        if self.refused_hellos[refusal.code] in {1, 10, 100, 1000}:
            hint = "the reason was sent to the rover"
            log.warning("rover.refused", code=refusal.code, reason=refusal.reason, hint=hint)
        self.outbox.append((identity, refusal))

    def ping(self, rover: Rover, ping: Ping, now_s: float) -> None:
        """Take in what a rover states of itself, and converge it."""
        rover.status = plain(ping.status)
        self._has_nothing_below(rover, ping.oldest_unacked)
        rover.overflow = max(rover.overflow, whole(ping.status.get("overflow")))
        self._state(rover, ping.policy_id, ping.policy_counter, ping.order_id)
        self._drives(rover, ping.policy_id, now_s)
        self.converge(rover, now_s)

    def gone(self, rover: Rover, gone: Gone) -> None:
        """Give up what a rover does not have any more."""
        boot = self.boots.get((rover.rover_id, gone.boot_id))
        if boot is not None:
            ranges = ranges_of(gone.ranges, "gone")
            self._give_up(boot, ranges, gone.reason[:200] or "the rover no longer has them")

    def give_up(self, boot: Boot[Waiting], reason: str) -> None:
        """Give up everything that is missing of a boot."""
        self._give_up(boot, [(0, boot.bound - 1)], reason)

    def credit_of(self, rover: Rover) -> int:
        """Return how many records a rover may have under way."""
        if not self.is_open:
            return 0
        rooms = [self._room_of(boot) for boot in self.boots_of(rover)]
        return max(0, min(self._settings.credit, *rooms))

    def boots_of(self, rover: Rover) -> list[Boot[Waiting]]:
        """Return the boots of a rover of which records may come or wait."""
        return [boot for boot in self.boots.values() if boot.rover_id == rover.rover_id]

    @staticmethod
    def _room_of(boot: Boot[Waiting]) -> int:
        """Return how many records may come; what everything else waits for always may."""
        is_stuck = boot.room <= 0 and any(lane.missing() for lane in boot.lanes)
        return 1 if is_stuck else boot.room

    def verdict(self, rover: Rover, verdict: Verdict, now_s: float) -> None:
        """Take in what became of a policy on a rover."""
        stage, reason = verdict.stage[:40], verdict.reason[:400]
        facts = {"policy_id": verdict.policy_id[:64], "stage": stage, "reason": reason, "seconds": verdict.seconds}
        rover.verdicts.append(plain({**facts, "at_s": now_s}))
        if stage == "driving":
            rover.policy_id = verdict.policy_id
            self._drives(rover, verdict.policy_id, now_s)
        elif stage in {"refused", "rolled_back"}:
            rover.refused[verdict.policy_id[:64]] = reason or stage
            for oldest in list(rover.refused)[:-MAX_REFUSED]:
                del rover.refused[oldest]
            hint = "the rover keeps its policy; a newer one will be offered"
            log.warning(
                "policy.refused", rover_id=rover.rover_id, policy_id=verdict.policy_id, reason=reason, hint=hint
            )
        self.converge(rover, now_s)

    def order_update(self, rover: Rover, update: OrderUpdate, now_s: float) -> None:
        """Take in how far a rover is with an order."""
        rover.order_id, rover.order_stage = update.order_id, update.stage[:40]
        self.evaluations.update(update, now_s)
        self.converge(rover, now_s)

    def expect(self, counter: int, finished_s: float) -> None:
        """Expect the policy of an update, which was finished at ``finished_s``, to drive some time."""
        self._finished.append((counter, finished_s))

    def want(self, offer: Offer, *, is_chosen: bool) -> None:
        """Want a policy on every rover; where somebody chose it, newer ones are expected no more."""
        self.wanted = offer
        self._counters[offer.policy_id] = offer.counter
        if is_chosen:
            self._finished = [each for each in self._finished if each[0] <= offer.counter]
            for rover in self.rovers.values():
                rover.refused.pop(offer.policy_id, None)

    def know(self, offer: Offer) -> None:
        """Keep an offer for an evaluation."""
        self._offers[offer.policy_id] = offer
        self._counters[offer.policy_id] = offer.counter

    @property
    def overflow(self) -> int:
        """Records that rovers dropped because they were apart from the trainer for too long; it never falls."""
        return self._gone_overflow + sum(rover.overflow for rover in self.rovers.values())

    def round_trips_ms(self) -> list[float]:
        """Return the newest round trip of each connected rover."""
        return [r.round_trip_ms for r in self.rovers.values() if r.connected and r.round_trip_ms is not None]

    def set_mode(self, mode: str, now_s: float) -> None:
        """Let rovers ``train`` or be ``idle`` while they have no evaluation."""
        if mode != self.mode:
            self.mode = mode
            for rover in self.rovers.values():
                rover.stepped_s = now_s
                self.converge(rover, now_s)

    def converge(self, rover: Rover, now_s: float) -> None:
        """Offer the policy and send the order that a rover should have, where it has another; not too often."""
        if not rover.connected:
            return
        offer = self.offer_for(rover)
        if offer is not None and offer.policy_id != rover.policy_id and offer.policy_id not in rover.refused:
            is_due, rover.offered = _due(rover.offered, offer.policy_id, now_s, self._settings.offer_interval_s)
            if is_due:
                back = rover.policy_counter >= offer.counter
                self.outbox.append(
                    (rover.identity, Offer(offer.policy_id, offer.counter, offer.size_bytes, offer.sha256, back))
                )
        order = self.order_for(rover)
        if order.order_id != rover.order_id:
            is_due, rover.ordered = _due(rover.ordered, order.order_id, now_s, self._settings.offer_interval_s)
            if is_due:
                rover.stepped_s = now_s
                self.outbox.append((rover.identity, order))

    def offer_for(self, rover: Rover) -> Offer | None:
        """Return the policy that a rover should drive: its evaluation's, else the wanted one."""
        evaluation = self.evaluations.current(rover.rover_id)
        if evaluation is not None and evaluation.order.policy_id:
            return self._offers.get(evaluation.order.policy_id, self.wanted)
        return self.wanted

    def order_for(self, rover: Rover) -> Order:
        """Return the order that a rover should have; an evaluation waits until its policy drives."""
        evaluation = self.evaluations.current(rover.rover_id)
        if evaluation is not None:
            policy_id = evaluation.order.policy_id
            if policy_id in rover.refused:
                evaluation.stage = FAILED
                evaluation.reason = f"{rover.rover_id} refused policy {policy_id[:12]}: {rover.refused[policy_id]}"
            elif not policy_id or policy_id == rover.policy_id:
                return evaluation.order
        return STANDING[self.mode]

    def tick(self, now_s: float) -> list[Rover]:
        """Declare silent rovers gone, converge the others, expire evaluations; return who is gone."""
        if self._alone_s is None or any(rover.connected for rover in self.rovers.values()):
            self._alone_s = now_s
        self.evaluations.expire(now_s)
        gone = []
        for rover in self.rovers.values():
            if rover.connected and now_s - rover.heard_s > self._settings.dead_after_s:
                self.part(rover, "silent")
                gone.append(rover)
            self.converge(rover, now_s)
        return gone

    def causes(self, now_s: float) -> list[str]:
        """Say what is wrong with the rovers, for the health in the status."""
        quiet_s = self._settings.quiet_after_s
        connected = [rover for rover in self.rovers.values() if rover.connected]
        causes = []
        if not connected and self.mode == "train" and self._alone_s is not None and now_s - self._alone_s > quiet_s:
            causes.append(f"no rover is connected{': ' + self.last_refusal if self.last_refusal else ''}")
        for rover in connected:
            silent_s = now_s - rover.stepped_s
            is_driving = rover.order_id not in {"", "idle"} or self.order_for(rover).order_id != "idle"
            is_driving &= rover.status.get("mode") not in BY_HAND
            if is_driving and silent_s > quiet_s and not rover.boot.waiting:
                mode = f" (its mode: {rover.status['mode']})" if rover.status.get("mode") else ""
                causes.append(f"{rover.rover_id}: no step in {silent_s:.0f} s although it is ordered to drive{mode}")
            if rover.overflow:
                causes.append(f"{rover.rover_id}: it dropped {rover.overflow} records while the trainer was away")
            wanted = self.offer_for(rover)
            if wanted is not None and wanted.policy_id in rover.refused:
                reason = rover.refused[wanted.policy_id]
                causes.append(f"{rover.rover_id}: refused policy {wanted.policy_id[:12]}: {reason}")
        return causes

    def rows(self, now_s: float) -> list[dict[str, Any]]:
        """Describe every rover, as the API shows it."""
        rows = []
        for rover in self.rovers.values():
            evaluation = self.evaluations.current(rover.rover_id)
            rows.append({**rover.to_map(now_s), "evaluation": evaluation.order.order_id if evaluation else None})
        return rows

    def part(self, rover: Rover, reason: str) -> None:
        """Mark a rover as gone; its lane stays, so that what comes again is counted once."""
        if rover.connected:
            rover.connected = False
            log.info("rover.disconnected", rover_id=rover.rover_id, boot_id=rover.boot_id, reason=reason[:200])
        self._by_identity.pop(rover.identity, None)

    def _refusal(self, identity: bytes, hello: Hello, now_s: float) -> Refuse | None:
        refusal = refusal_of_text(hello)
        if refusal is not None:
            return refusal
        try:
            robot, task = parse_specs(hello.robot, hello.task)
            self._compare(robot, task)
        except RoverError as error:
            return Refuse("spec", f"{hello.rover_id}: {error}")
        known = self.rovers.get(hello.rover_id)
        if known is not None and known.connected and known.identity != identity:
            silent_s = now_s - known.heard_s
            if silent_s <= TAKE_OVER_S and known.boot_id != hello.boot_id:
                text = f"{hello.rover_id} is connected already (boot {known.boot_id}, heard {silent_s:.1f} s ago)"
                return Refuse("duplicate", f"{text}: give each rover a name of its own", retry=True)
        if self.specs is None:
            self._fix(robot, task)
        try:
            self._begin_boot(hello.rover_id, hello.boot_id, hello.epoch_ns)
        except RoverError as error:
            return Refuse("store", f"{hello.rover_id}: {error}", retry=True)
        return None

    def _compare(self, robot: RobotSpec, task: TaskSpec) -> None:
        """Raise RoverError unless the run is for this robot and task, or for none yet and could be."""
        if self.specs is None:
            self._check_specs(robot, task)
            return
        differences = [*self.specs[0].differences(robot), *self.specs[1].differences(task)]
        if differences:
            text = "; ".join(differences)[:3000]
            raise SpecError(f"it differs from the robot of {self._run_file.run.run_id}: {text}")

    def _fix(self, robot: RobotSpec, task: TaskSpec) -> None:
        run = self._run_file.fix(robot, task)
        log.info("run.specified", run_id=run.run_id, robot=robot.name, task=task.name)
        self._on_specs(run)

    def _admit(self, identity: bytes, hello: Hello, now_s: float) -> Rover:
        known = self.rovers.get(hello.rover_id)
        if known is not None:
            self._by_identity.pop(known.identity, None)
        boot = self._boot(hello.rover_id, hello.boot_id, floor=hello.oldest_unacked, epoch_ns=hello.epoch_ns)
        boot.bound = max(boot.bound, hello.next_seq)
        boot.split(hello.live_seq)
        other = self.rover_of(identity)
        if other is not None and other.rover_id != hello.rover_id:
            self.part(other, f"its connection became {hello.rover_id}")
        rover = Rover(hello.rover_id, hello.boot_id, identity, boot, software=hello.software[:80])
        if known is not None:
            rover.refused, rover.verdicts, rover.steps = known.refused, known.verdicts, known.steps
            rover.malformed, rover.round_trip_ms = known.malformed, known.round_trip_ms
            if known.boot_id == hello.boot_id:
                rover.overflow = known.overflow
            else:
                self._gone_overflow += known.overflow
        rover.heard_s = rover.stepped_s = now_s
        rover.settings = plain(hello.settings)
        is_news = known is None or not known.connected or known.boot_id != hello.boot_id
        self.rovers[hello.rover_id] = rover
        self._by_identity[identity] = hello.rover_id
        self._has_nothing_below(rover, hello.oldest_unacked)
        if is_news:
            facts = {"boot_id": rover.boot_id, "software": rover.software, "resumes_at": boot.live.next_seq}
            log.info("rover.connected", rover_id=rover.rover_id, **facts)
        return rover

    def _admit_backlog(self, rover: Rover, backlog: list[Backlog]) -> list[Boot[Waiting]]:
        """Expect what a rover holds of earlier boots; of those that it does not name nothing more will come."""
        named = {each.boot_id for each in backlog} | {rover.boot_id}
        is_all = len(backlog) < MAX_BACKLOG  # else it may hold more than it named
        for boot in self.boots_of(rover):
            boot.is_over = is_all and boot.boot_id not in named
        older = []
        for each in backlog:
            try:
                boot = self._boot(rover.rover_id, each.boot_id, floor=each.first, epoch_ns=each.epoch_ns)
            except RoverError as error:
                hint = "the rover keeps them; nothing is lost"
                log.warning("backlog.refused", rover_id=rover.rover_id, reason=str(error), hint=hint)
                continue
            boot.bound = max(boot.bound, each.next)
            if boot.taken.next_missing(0) < each.first:
                self._give_up(boot, [(0, each.first - 1)], "the rover no longer has them: its spool was full")
            older.append(boot)
        return older

    def _boot(self, rover_id: str, boot_id: str, *, floor: int, epoch_ns: int) -> Boot[Waiting]:
        boot = self.boots.get((rover_id, boot_id))
        if boot is None:
            self._begin_boot(rover_id, boot_id, epoch_ns)
            durable, gone = self._shelf.received(rover_id, boot_id), self._shelf.gone(rover_id, boot_id)
            boot = Boot(
                *(rover_id, boot_id, self.tally, 2 * self._settings.credit),
                durable=durable,
                lost=gone,
                floor=0 if durable or gone else floor,
            )
            self.boots[rover_id, boot_id] = boot
        return boot

    def _begin_boot(self, rover_id: str, boot_id: str, epoch_ns: int) -> None:
        """Tell the store what records of a boot are of; raises RoverError where it cannot keep them."""
        assert self.specs is not None  # noqa: S101 - nobody is admitted before there are specs
        robot, task = self.specs
        run_id = self._run_file.run.run_id
        self._shelf.begin_boot(rover_id, boot_id, run_id=run_id, robot=robot, task=task, epoch_ns=epoch_ns)

    def shut(self, boot: Boot[Waiting]) -> None:
        """Let the store finish the episodes of a boot that is all here."""
        self._shelf.close_boot(*boot.key)

    def forget(self, boot: Boot[Waiting]) -> None:
        """Forget a boot of which nothing waits and nothing more comes."""
        self.boots.pop(boot.key, None)

    def _has_nothing_below(self, rover: Rover, oldest: int) -> None:
        """Give up what is missing below the oldest record that a rover still has of its present boot."""
        boot = rover.boot
        if boot.taken.next_missing(0) < oldest:
            boot.bound = max(boot.bound, oldest)
            self._give_up(boot, [(0, oldest - 1)], "the rover no longer had them: its spool was full")

    def _give_up(self, boot: Boot[Waiting], ranges: list[tuple[int, int]], reason: str) -> None:
        lost = Ranges(pair for first, last in ranges for pair in boot.give_up(first, last))
        if lost:
            self._shelf.give_up(*boot.key, lost.to_list(), reason)
            log.warning("steps.lost", rover_id=boot.rover_id, boot_id=boot.boot_id, count=len(lost), hint=reason)

    def _state(self, rover: Rover, policy_id: str, counter: int, order_id: str) -> None:
        rover.policy_id, rover.policy_counter, rover.order_id = policy_id, counter, order_id

    def _drives(self, rover: Rover, policy_id: str, now_s: float) -> None:
        """Note the age of an update when its policy drives first, and that of those which it overtook."""
        counter = self._counters.get(policy_id, -1)
        driven = [each for each in self._finished if each[0] <= counter]
        if not driven:
            return
        self._finished = [each for each in self._finished if each[0] > counter]
        self._counters = {policy: known for policy, known in self._counters.items() if known >= counter}
        self.update_to_driving_s += [now_s - finished_s for _, finished_s in driven]
        seconds = round(now_s - driven[-1][1], 3)
        log.info("policy.drives", rover_id=rover.rover_id, policy_id=policy_id, seconds=seconds)


def _due(
    last: tuple[str, float, float], key: str, now_s: float, interval_s: float
) -> tuple[bool, tuple[str, float, float]]:
    """Decide whether to say a thing again: at once if it is new, then after twice the time each."""
    last_key, at_s, wait_s = last
    if key != last_key:
        return True, (key, now_s, interval_s)
    if now_s - at_s < wait_s:
        return False, last
    return True, (key, now_s, min(2 * wait_s, SLOWEST_OFFER_S))
