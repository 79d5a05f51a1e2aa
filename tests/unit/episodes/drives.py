"""Drive the synthetic robot as roverd does, in memory: real steps, a real policy, real encoders, one episode."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from plugins.guard import Guard
from plugins.robots.synthetic import SyntheticRobot, SyntheticSettings
from protocol.bundle import GOLDEN, ONNX, Golden, Manifest, golden_bytes, pack_bundle, unpack_bundle
from protocol.framing import RecordEncoder, allocate, encode_record, unpack
from protocol.moment import RUNNING, Outcome
from protocol.spec import Element, TaskSpec
from protocol.step import EpisodeEnd, Intervention, Step
from protocol.transform import InputTransform, Plane
from roverd.control import wire
from roverd.episode import Episode, Observed, Plan, Rewards
from roverd.policy.runner import OnnxRunner
from roverd.showing import fill_slot
from trainerd.episodes.records import StoredRecord

TASK = TaskSpec("goal", (Element("distance", "m", 0.0, 8.0, scale=4.0),))
ROVER, BOOT = "rover-1", "0123456789abcdef"
RGB, DEPTH = "observation.images.front", "observation.depth.front"
TICKS = 140
HUMAN = range(60, 80)
"""Ticks that a human drives; they begin and end with a break."""


def robot(**changes) -> SyntheticRobot:
    return SyntheticRobot(SyntheticSettings(**{"action_repeat": 2, "action_delay_ms": 20.0, **changes}))


def bundle_bytes(spec) -> bytes:
    """Return the bundle of a policy that looks at two pixels and at the whole vector."""
    transform = InputTransform.of(spec, TASK, (Plane(RGB, "rgb"), Plane(DEPTH, "inverse_depth")))
    shape, size = (transform.channels, transform.height, transform.width), transform.size
    places = [(2, shape[1] // 2, shape[2] // 2), (3, 2, 3)]
    constants = {
        "places": np.array([np.ravel_multi_index(place, shape) for place in places], np.int64),
        "w": np.random.default_rng(7).uniform(-0.3, 0.3, (size, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("Gather", ["flat", "places"], ["pixels"], axis=1),
        helper.make_node("MatMul", ["vector", "w"], ["scores"]),
        helper.make_node("Add", ["pixels", "scores"], ["mean"]),
    ]
    inputs = [("image", [1, *shape]), ("vector", [1, size])]
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    onnx = model.SerializeToString()
    zeros = (np.zeros(dims, np.float32) for dims in ((1, *shape), (1, size), (1, 2)))
    golden = golden_bytes(Golden(*zeros))
    return pack_bundle(_manifest(spec, transform, onnx, golden), onnx, golden)


def _manifest(spec, transform, onnx: bytes, golden: bytes) -> Manifest:
    return Manifest(
        counter=3,
        parent="",
        run_id="run",
        robot=spec.to_map(),
        task=TASK.to_map(),
        transform=transform.to_map(),
        runner="single",
        inputs=[],
        outputs=[],
        control_rate_hz=spec.control_rate_hz,
        action_repeat=spec.action_repeat,
        action_delay_ms=spec.action_delay_ms,
        action_low=[e.low for e in spec.action],
        action_high=[e.high for e in spec.action],
        log_std=[-0.1, -0.2],
        files={ONNX: hashlib.sha256(onnx).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()},
        weights_sha256="w" * 64,
        keys_sha256="k" * 64,
    )


@dataclass
class Drive:
    """One driven episode: its records, each with the encoded images that travel with it."""

    robot: object
    bundle: bytes
    records: list[Step | EpisodeEnd] = field(default_factory=list)
    encoded: list[dict[str, tuple[str, bytes]]] = field(default_factory=list)
    broken_at: int | None = None

    def stored(self) -> list[StoredRecord]:
        frames = [encode_record(*each) for each in zip(self.records, self.encoded, strict=True)]
        return [
            StoredRecord(ROVER, BOOT, record.seq, record.episode_id, unpack(each[0]), each)
            for record, each in zip(self.records, frames, strict=True)
        ]

    @property
    def steps(self) -> list[Step]:
        return [record for record in self.records if isinstance(record, Step)]


def drive(machine=None, *, ticks: int = TICKS, episode_id: int = 1, seq: int = 0, explores: bool = True) -> Drive:
    """Drive one episode in lock-step."""
    machine = machine or robot()
    spec = machine.spec
    content = bundle_bytes(spec)
    bundle = unpack_bundle(content)
    policy_id = bundle.policy_id
    runner = OnnxRunner(bundle, spec, TASK, seed=5)
    layout = wire.Layout(2, len(spec.state) + 1)
    encoder = RecordEncoder(spec)
    rewards = Rewards(
        {"speed": (_guarded(lambda _, now: now.state["linear_vel"]), 0.2), "tick": (_guarded(_one), -0.1)}
    )
    plan = Plan("training" if explores else "evaluation", 3, explores)
    episode = Episode(ROVER, BOOT, episode_id, plan, spec, rewards)
    made, views = Drive(machine, content), allocate(spec)
    machine.reset(3)
    seen = _observe(machine, encoder)
    in_flight = (0.0, 0.0)
    proposal, decision = None, 0
    for tick in range(1, ticks + 1):
        human = tick - 1 in HUMAN
        if tick - 1 in (HUMAN.start, HUMAN.stop) and ticks > tick:
            reason = "takeover" if human else "release"
            made.records.append(episode.end(seq, reason, seen, in_flight, RUNNING, ends_episode=False))
            made.encoded.append(seen.encoded)
            seq += 1
        held = (tick - 1) % spec.action_repeat
        if held == 0:
            decision += 1
            fill_slot(views, seen.reading.images, seen.encoded)
            vector = tuple(np.concatenate((seen.reading.state, seen.task)).tolist())
            flags = wire.DECIDE | (wire.EXPLORE if explores else 0)
            asked = wire.Tick(flags, 0, tick, tick, decision, 0, in_flight, vector)
            proposal = layout.unpack_proposal(
                layout.pack_proposal(runner.propose(layout.unpack_tick(layout.pack_tick(asked)), views))
            )
        action = (0.3, math.sin(tick / 3)) if human else proposal.action
        applied = layout.unpack_applied(
            layout.pack_applied(
                _applied(tick, decision, held, seen, proposal, action, in_flight, human=human, spec=spec)
            )
        )
        machine.advance(applied.in_flight, applied.action)
        following = _observe(machine, encoder)
        outcome = Outcome(terminated=False, truncated=tick == ticks, success=False)
        made.records.append(episode.step(seq, seen, following, applied, outcome, policy_id))
        made.encoded.append(seen.encoded)
        seq, seen, in_flight = seq + 1, following, applied.action
    made.records.append(episode.end(seq, "truncated", seen, in_flight, outcome))
    made.encoded.append(seen.encoded)
    return made


def _applied(tick, decision, held, seen, proposal, action, in_flight, *, human, spec) -> wire.Applied:
    return wire.Applied(
        source=1 if human else 0,
        has=wire.HAS_POLICY | wire.HAS_BEHAVIOUR | (wire.HAS_HUMAN if human else 0),
        policy_slot=0,
        interventions=int(Intervention.HUMAN) if human else 0,
        tick=tick,
        generation=tick,
        decision=decision,
        tick_in_decision=held,
        policy_counter=3,
        tick_ns=seen.reading.stamp_ns,
        applied_ns=seen.reading.stamp_ns + int(spec.action_delay_ms * 1e6),
        clearance_m=1.0,
        log_prob=proposal.log_prob,
        action=action,
        in_flight=in_flight,
        policy_action=proposal.action,
        human_action=action if human else (0.0, 0.0),
        u=proposal.u,
        mean=proposal.mean,
        log_std=proposal.log_std,
    )


def _observe(machine, encoder: RecordEncoder) -> Observed:
    reading = machine.read(True)
    names = [element.name for element in machine.spec.state]
    state = dict(zip(names, reading.state.tolist(), strict=True))
    return Observed(reading, np.array([1.0], np.float32), {}, state, encoder.encode_images(reading.images))


def _one(*_moments) -> float:
    return 1.0


def _guarded(function) -> Guard[float]:
    return Guard("rewards", "term", function, default=math.nan, budget_ms=1000.0)
