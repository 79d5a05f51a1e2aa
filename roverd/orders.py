"""What is ordered: the order that is followed, the one that comes next, and how each of its episodes is driven."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from protocol.messages import Message, Order, OrderUpdate
from protocol.node.log import get_logger
from roverd.episode import Plan
from roverd.policies import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from roverd.policies import Policies
    from roverd.settings import Settings

log = get_logger()
TRAINING_ARENAS = 1_000_000
"""Training episodes use arenas 0 to this; evaluations name arenas above it."""
MAX_SEED = 1 << 62
MAX_EPISODES = 1_000_000
LOCAL = "local-"
"""How the id of an order given on this robot begins."""
POLICIES = {"", "policy"}
"""Controllers of an order that are no scripted one."""
BATCHES = {"evaluate", "collect"}
"""Modes that order a number of episodes, by one policy or controller."""


class Orders:
    """Follow one order at a time and tell who gave it; a new one holds from the next episode on."""

    def __init__(self, settings: Settings, policies: Policies, boot: int) -> None:
        """Begin with training where ``autostart`` is set, else with nothing to do."""
        self._policies, self._boot = policies, boot
        self._seed, self._number = settings.seed, own_number(settings)
        self._order = Order("", "train" if settings.autostart else "idle")
        self._next: Order | None = None
        self._episodes = 0
        self._may_collect = False
        self.send: Callable[[Message], None] = lambda _: None
        """Hears how far an order is."""

    @property
    def mode(self) -> str:
        """The mode of the order that is followed."""
        return self._order.mode

    @property
    def order_id(self) -> str:
        """The order that is followed, or will be from the next episode on."""
        return (self._next or self._order).order_id

    def take(self, order: Order) -> bool:
        """Take an order of the trainer; False where it is known, impossible, or one given on this robot still runs."""
        if order.order_id == self.order_id or self._is_busy_locally():
            return False
        if not 0 <= order.seed < MAX_SEED or not 0 <= order.episodes <= MAX_EPISODES:
            self.send(OrderUpdate(order.order_id, "refused", 0, f"seed {order.seed}, episodes {order.episodes}"))
            return False
        self._next = order
        return True

    def _is_busy_locally(self) -> bool:
        """Say whether an order given on this robot still runs; the trainer repeats its own until it is followed."""
        order = self._next or self._order
        return order.mode == "collect" or (order.order_id.startswith(LOCAL) and order.mode == "evaluate")

    def collect(self, order: Order) -> None:
        """Take an order of mode collect, or idle, which ends one, whatever runs."""
        self._next = order

    def allow_episode(self, *, is_allowed: bool) -> None:
        """Let the next command of a human begin one episode of a collection, or not."""
        self._may_collect = is_allowed

    # -- between two episodes ---------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Begin to follow the next order, if there is one, and let the policies know whom it names."""
        if self._next is None:
            return
        self._order, self._next = self._next, None
        self._episodes = 0
        self._policies.override(_target(self._order))
        self.send(OrderUpdate(self._order.order_id, "running"))
        log.info("order.adopted", order_id=self._order.order_id, mode=self._order.mode)

    def finish_if_complete(self) -> bool:
        """Return True once when the last episode that was ordered is over; nothing is ordered then."""
        if self._order.mode not in BATCHES or self._episodes < self._order.episodes:
            return False
        self._close("finished")
        return True

    def refuse(self, reason: str) -> None:
        """Give the order back; nothing is ordered then."""
        self._close("refused", reason)

    def refuse_if_impossible(self) -> None:
        """Give the order back if the policy or controller that it names cannot drive here."""
        target = self._policies.target
        reason = self._policies.refusal(target) if target else ""
        if reason:
            self.refuse(reason)

    def _close(self, stage: str, reason: str = "") -> None:
        self.send(OrderUpdate(self._order.order_id, stage, self._episodes, reason))
        self._order = Order(self._order.order_id, "idle")

    def count(self, order_id: str) -> None:
        """Count an episode that came to its end, if it belongs to the order that is followed."""
        self._episodes += order_id == self._order.order_id

    # -- the next episode -------------------------------------------------------------------------------------------

    @property
    def is_by_name(self) -> bool:
        """Say whether the order names who drives: a policy or a scripted controller, and nobody else will do."""
        return self._order.mode == "evaluate" or (self._order.mode == "collect" and not self._is_collected_by_hand)

    @property
    def _is_collected_by_hand(self) -> bool:
        return self._order.mode == "collect" and self._order.controller in POLICIES

    def has_driver(self, *, is_by_hand: bool, is_taken: bool) -> bool:
        """Say whether who drives here now may begin an episode: a person, or whoever else is ordered.

        Args:
            is_by_hand: a person's command waits for it.
            is_taken: a person has the wheel, or the self-check moves the robot.

        """
        if is_by_hand:
            return self._may_collect or not self._is_collected_by_hand
        return not (self._is_collected_by_hand or self._order.mode == "idle" or is_taken)

    def plan(self, episode: int, *, is_by_hand: bool, is_checking: bool) -> Plan:
        """Return how to drive an episode, the ``episode``-th of this boot."""
        order, serial = self._order, self._episodes
        if is_checking:
            return Plan("collection", episode % TRAINING_ARENAS, False)
        if order.mode == "evaluate" and not is_by_hand:
            return Plan("evaluation", order.seed + serial, False, order.order_id, serial)
        if order.mode == "collect" and is_by_hand == self._is_collected_by_hand:
            return Plan("collection", order.seed + serial, False, order.order_id, serial)
        if order.mode != "train":  # a person drives where nobody asked for it
            return Plan("collection", episode % TRAINING_ARENAS, False)
        rng = np.random.default_rng([self._seed, self._boot, episode, self._number])
        return Plan("training", int(rng.integers(TRAINING_ARENAS)), True, order.order_id)


def own_number(settings: Settings) -> int:
    """Return a number of this rover's name: two rovers with one seed drive through different arenas."""
    return zlib.crc32(settings.rover_id.encode())


def _target(order: Order) -> Target | None:
    """Return whom an order names; None for whoever drives anyway."""
    if order.mode not in BATCHES:
        return None
    if order.controller not in POLICIES:
        return Target("controller", order.controller, order.seed)
    return Target("policy", order.policy_id) if order.policy_id else None
