"""What the golden files of protocol version 1 say: one of every message, records of every form."""

from __future__ import annotations

import numpy as np

from protocol.messages import (
    Ack,
    Chunk,
    ChunkRequest,
    Gone,
    Goodbye,
    Hello,
    Message,
    Offer,
    Order,
    OrderUpdate,
    Ping,
    Pong,
    Refuse,
    Resend,
    Verdict,
    Welcome,
)
from protocol.spec import Camera, Element, RobotSpec, TaskSpec
from protocol.step import Behaviour, EpisodeEnd, Intervention, Observation, Record, Step

POLICY = "5f" * 32
BOOT = "0123456789abcdef"

ROBOT = RobotSpec(
    name="golden",
    cameras=(
        Camera("front", "rgb", 16, 24, 10.0),
        Camera("front", "depth", 12, 20, 10.0),
        Camera("rear", "depth", 24, 32, 5.0),
    ),
    state=(Element("linear_vel", "m/s", -0.5, 0.5, 0.0, 0.5), Element("roll", "rad", -3.0, 3.0)),
    action=(Element("linear_cmd", "m/s", 0.0, 0.5), Element("angular_cmd", "rad/s", -1.5, 1.5)),
    control_rate_hz=10.0,
    action_repeat=4,
    action_delay_ms=20.0,
)
TASK = TaskSpec("goal", (Element("distance", "m", 0.0, 8.0, 0.0, 4.0),), ("roll",), (("reactive", "random"),))

MESSAGES: dict[str, Message] = {
    "hello": Hello(
        rover_id="rover-1",
        boot_id=BOOT,
        oldest_version=1,
        newest_version=1,
        robot=ROBOT.to_map(),
        task=TASK.to_map(),
        codecs=["jpeg", "delta", "palette", "raw"],
        software="0.1.0",
        next_seq=130,
        oldest_unacked=128,
        policy_id=POLICY,
        policy_counter=7,
        order_id="order-1",
        settings={"seed": 3, "rate_hz": 0.0, "weights": {"progress": 0.2}},
        live_seq=129,
        epoch_ns=1700000000123456789,
        backlog=[{"boot_id": "fedcba9876543210", "first": 40, "next": 90, "epoch_ns": 1600000000000000000}],
    ),
    "welcome": Welcome(1, "trainer-1", "run-1", 512, BOOT, [[0, 120], [125, 125]], {"fedcba9876543210": [[0, 50]]}),
    "refuse": Refuse("spec", "state.roll.scale: 1.0 here, 2.0 there", retry=True),
    "ack": Ack(BOOT, [[0, 300], [65536, 4294967296]], 256),
    "ping": Ping(123456789012345, POLICY, 7, "order-1", {"mode": "train", "ticks_per_second": 812.5}, 128),
    "resend": Resend(BOOT, [[301, 310]]),
    "gone": Gone(BOOT, [[301, 304]], "damaged on disk"),
    "pong": Pong(123456789012345, {"steps": 10}),
    "offer": Offer(POLICY, 8, 1300000, "ab" * 32, rollback=True),
    "chunk_request": ChunkRequest(POLICY, 1048576, 65536),
    "chunk": Chunk(POLICY, 1048576, bytes(range(256))),
    "verdict": Verdict(POLICY, "refused", "golden outputs differ by 0.1", 0.25),
    "order": Order("order-1", "evaluate", "policy", POLICY, 100, 2000000),
    "order_update": OrderUpdate("order-1", "finished", 100, "done"),
    "goodbye": Goodbye("stopped"),
}

RGB, FRONT, REAR = (camera.key for camera in ROBOT.cameras)


def images() -> dict[str, np.ndarray]:
    """Return smooth RGB, sloping depth (the delta codec wins), and depth of few values (the palette wins)."""
    rows, columns = np.arange(16)[:, None], np.arange(24)[None, :]
    rgb = np.stack(np.broadcast_arrays(rows * 16, columns * 10, 128), axis=2).astype(np.uint8)
    front = (-1 + 700 * np.arange(12)[:, None] + 3 * np.arange(20)[None, :]).astype(np.int16)
    rear = np.array([0, 9000, -1, 300, 2571], np.int16)[(np.arange(768).reshape(24, 32) ** 3 // 7) % 5]
    return {RGB: rgb, FRONT: front, REAR: rear}


def floats(*values: float) -> np.ndarray:
    """Return float32[n]."""
    return np.array(values, np.float32)


def _observation(**changes) -> Observation:
    values = {
        "state": floats(0.25, -0.125),
        "task": floats(2.5),
        "in_flight": floats(0.1, -0.7),
        "stamp_ns": 987654321098,
        "ages_ms": {FRONT: 33.5, RGB: 0.0},
    }
    return Observation(**{**values, **changes})


def _step(**changes) -> Step:
    values = {
        "rover_id": "rover-1",
        "boot_id": BOOT,
        "seq": 129,
        "episode_id": 4,
        "episode_step": 17,
        "decision_id": 33,
        "tick_in_decision": 0,
        "observation": _observation(images=images()),
        "action": floats(0.5, 0.3),
        "source": "gate",
        "reward": -0.0625,
        "policy_id": POLICY,
        "policy_counter": 7,
        "purpose": "evaluation",
        "behaviour": Behaviour(floats(1.5, 0.25), floats(1.0, 0.125), floats(-0.5, -1.0), -1.75),
        "policy_action": floats(0.9, 0.3),
        "interventions": int(Intervention.LIMITED | Intervention.OBSERVATION_REPEATED),
        "reward_terms": {"progress": 0.0, "tick_cost": -0.0625},
        "success": True,
        "terminated": True,
        "tick": 1000,
        "tick_ns": 987654321000,
        "applied_ns": 987674321000,
        "clearance_m": 0.75,
    }
    return Step(**{**values, **changes})


def records() -> dict[str, Record]:
    """Return a record of every form: all there, as little as possible, a human's, and the ends."""
    return {
        "step": _step(),
        "step_held": _step(
            seq=130,
            tick_in_decision=1,
            observation=_observation(ages_ms={}),
            behaviour=None,
            policy_action=None,
            clearance_m=None,
            reward=float("nan"),
            reward_terms={"broken": float("nan")},
            truncated=True,
            terminated=False,
            success=False,
        ),
        "step_human": _step(
            source="human",
            purpose="collection",
            observation=_observation(images={FRONT: images()[FRONT]}),
            human_action=floats(0.2, 0.0),
            interventions=int(Intervention.HUMAN),
        ),
        "episode_end": EpisodeEnd(
            rover_id="rover-1",
            boot_id=BOOT,
            seq=131,
            episode_id=4,
            episode_steps=18,
            reason="terminated",
            final=_observation(images=images()),
            success=True,
            terminated=True,
            purpose="evaluation",
            arena_seed=2000003,
            return_=4.5,
            metrics={"duration_s": 1.8, "collided": 0.0},
            policy_id=POLICY,
            episode_serial=3,
            order_id="order-1",
        ),
        "break": EpisodeEnd("rover-1", BOOT, 132, 5, 2, "takeover", _observation(), ends_episode=False),
    }
