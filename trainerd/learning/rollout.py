"""Rollouts: preallocated raw storage of decisions, and the pool that ingest and learner pass them through."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.ranges import Ranges
from trainerd.learning.gae import TERMINATED

if TYPE_CHECKING:
    from protocol.spec import RobotSpec, TaskSpec
    from protocol.step import Observation
    from protocol.transform import InputTransform

FloatArray = npt.NDArray[np.float32]

OPEN = -2
"""Successor of a row whose following observation is not in the rollout yet."""


@dataclass
class RowDecision:
    """What a decision was and got, as it is written into one row."""

    u: FloatArray
    mean: FloatArray
    log_std: FloatArray
    log_prob: float
    reward: float
    policy_counter: int
    policy_weight: float
    """1 where the policy gradient applies, else 0."""
    value_weight: float
    """1 where the value is learned, 0 for demonstrations."""
    cloning_weight: float
    """1 for demonstrations, whose ``u`` is the human's."""
    rover_id: str = ""


@dataclass
class EpisodeResult:
    """An episode that ended while the rollout was filled."""

    return_: float
    success: bool
    steps: int


@dataclass
class Rollout:
    """A fixed number of decisions and the final observations that cut segments bootstrap from.

    Arrays have ``capacity`` rows for decisions and behind them ``finals`` rows that hold observations only. Images stay
    raw: uint8[rows, H, W, 3] and int16[rows, H, W] by blob key. ``successor`` is explained in ``gae``.
    """

    capacity: int
    finals: int
    images: dict[str, npt.NDArray[np.generic]]
    state: FloatArray
    task: FloatArray
    in_flight: FloatArray
    u: FloatArray
    mean: FloatArray
    log_std: FloatArray
    log_prob: FloatArray
    reward: FloatArray
    successor: npt.NDArray[np.int64]
    policy_counter: npt.NDArray[np.int64]
    policy_weight: FloatArray
    value_weight: FloatArray
    cloning_weight: FloatArray
    rover: npt.NDArray[np.int64]
    """Place of each row's robot in ``rovers``."""
    rows: int = 0
    final_rows: int = 0
    rovers: list[str] = field(default_factory=list)
    """Names of the robots whose decisions are in it."""
    episodes: list[EpisodeResult] = field(default_factory=list)
    alarms: tuple[str, ...] = ()
    """Names of the assembler's alarms at the time it was filled."""
    steps: Counter[str] = field(default_factory=Counter)
    """Steps behind its rows, by the fate that they have once it is learned from: trained or demonstration."""
    marks: dict[tuple[str, str], Ranges] = field(default_factory=dict)
    """Records by (rover_id, boot_id) that no later rollout will have: after a restart they are not fed again."""

    @classmethod
    def allocate(cls, robot: RobotSpec, task: TaskSpec, transform: InputTransform, capacity: int) -> Rollout:
        """Allocate storage for the cameras that the transform reads; nothing is allocated later."""
        finals = capacity // 8 + 32
        rows, actions = capacity + finals, len(robot.action)
        cameras = {plane.camera: robot.camera(plane.camera) for plane in transform.planes}
        return cls(
            capacity=capacity,
            finals=finals,
            images={key: np.zeros((rows, *camera.shape), camera.dtype) for key, camera in cameras.items()},
            state=np.zeros((rows, len(robot.state)), np.float32),
            task=np.zeros((rows, len(task.features)), np.float32),
            in_flight=np.zeros((rows, actions), np.float32),
            u=np.zeros((capacity, actions), np.float32),
            mean=np.zeros((capacity, actions), np.float32),
            log_std=np.zeros((capacity, actions), np.float32),
            log_prob=np.zeros(capacity, np.float32),
            reward=np.zeros(capacity, np.float32),
            successor=np.full(capacity, OPEN, np.int64),
            policy_counter=np.zeros(capacity, np.int64),
            policy_weight=np.zeros(capacity, np.float32),
            value_weight=np.zeros(capacity, np.float32),
            cloning_weight=np.zeros(capacity, np.float32),
            rover=np.zeros(capacity, np.int64),
        )

    def append(self, observation: Observation, decision: RowDecision) -> int:
        """Write a decision into the next row and return the row; its successor is OPEN."""
        row = self.rows
        self._observe(row, observation)
        self.u[row], self.mean[row], self.log_std[row] = decision.u, decision.mean, decision.log_std
        self.log_prob[row], self.reward[row] = decision.log_prob, decision.reward
        self.policy_counter[row] = decision.policy_counter
        self.policy_weight[row] = decision.policy_weight
        self.value_weight[row] = decision.value_weight
        self.cloning_weight[row] = decision.cloning_weight
        if decision.rover_id not in self.rovers:
            self.rovers.append(decision.rover_id)
        self.rover[row] = self.rovers.index(decision.rover_id)
        self.successor[row] = OPEN
        self.rows += 1
        return row

    def link(self, row: int, successor: int) -> None:
        """Say that ``successor`` follows ``row``."""
        self.successor[row] = successor

    def terminate(self, row: int) -> None:
        """Say that the task ended with ``row``."""
        self.successor[row] = TERMINATED

    def cut(self, row: int, final: Observation) -> None:
        """Say that the segment ends with ``row`` and bootstraps from an observation."""
        place = self.capacity + self.final_rows
        self._observe(place, final)
        self.successor[row] = place
        self.final_rows += 1

    def is_full(self, open_segments: int) -> bool:
        """Report whether another decision has no row, or its segment's end none."""
        return self.rows >= self.capacity or self.finals - self.final_rows <= open_segments + 1

    def clear(self) -> None:
        """Forget the content, keep the memory."""
        self.rows = self.final_rows = 0
        self.rovers = []
        self.episodes = []
        self.alarms = ()
        self.steps = Counter()
        self.marks = {}

    @property
    def used(self) -> npt.NDArray[np.int64]:
        """Rows that hold observations: decisions first, then finals."""
        return np.concatenate((np.arange(self.rows), self.capacity + np.arange(self.final_rows)), dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Memory of the storage."""
        arrays = [*self.images.values(), *(v for v in vars(self).values() if isinstance(v, np.ndarray))]
        return sum(array.nbytes for array in arrays)

    def _observe(self, row: int, observation: Observation) -> None:
        for key, store in self.images.items():
            store[row] = observation.images[key]
        self.state[row] = observation.state
        self.task[row] = observation.task
        self.in_flight[row] = observation.in_flight


class Rollouts:
    """Two rollouts, one filled while the other is learned from; ``acquire`` and ``release`` may be on two threads."""

    def __init__(
        self, robot: RobotSpec, task: TaskSpec, transform: InputTransform, capacity: int, count: int = 2
    ) -> None:
        """Allocate ``count`` rollouts of ``capacity`` decisions."""
        self.robot = robot
        self.task = task
        self.transform = transform
        self.capacity = capacity
        self._free: deque[Rollout] = deque(Rollout.allocate(robot, task, transform, capacity) for _ in range(count))

    def acquire(self) -> Rollout | None:
        """Take an empty rollout, or None while all are busy."""
        try:
            return self._free.popleft()
        except IndexError:
            return None

    def release(self, rollout: Rollout) -> None:
        """Give a rollout back after its update."""
        rollout.clear()
        self._free.append(rollout)
