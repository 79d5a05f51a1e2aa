"""Packets of version 0 become demonstrations, and nothing that comes in stops the input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import zmq

from protocol.framing import decode_record
from protocol.images import encode_rgb
from protocol.legacy import DEPTH, RGB, ROBOT, LegacyPacket, decode_legacy, encode_legacy
from protocol.node import config
from protocol.step import EpisodeEnd, Step
from tests.wire.generate_v0 import FOLDER
from trainerd.legacy import TASK, LegacyEpisodes, LegacyError, LegacyInput, LegacySettings, Quota

PACKET = decode_legacy((FOLDER / "packet.jpeg.bin").read_bytes())
BOOT = "0123456789abcdef"


def packet(step: int, **changes: object) -> LegacyPacket:
    return replace(PACKET, episode_step=step, timestamp_s=100.0 + 0.1 * step, **changes)


def followed(*packets: LegacyPacket) -> list[Step | EpisodeEnd]:
    episodes = LegacyEpisodes("legacy", BOOT)
    return [record for each in packets for record, _ in episodes.follow(each)]


def told(records: list[Step | EpisodeEnd]) -> list[str]:
    """Return records in short: ``step EPISODE.STEP`` or ``end EPISODE REASON STEPS``."""
    return [
        f"step {r.episode_id}.{r.episode_step}"
        if isinstance(r, Step)
        else f"end {r.episode_id} {r.reason} {r.episode_steps}"
        for r in records
    ]


def test_packets_are_numbered_without_a_gap() -> None:
    records = followed(packet(0), packet(1, done=True), packet(0))
    assert told(records) == ["step 0.0", "step 0.1", "end 0 terminated 2", "step 1.0"]
    assert [record.seq for record in records] == [0, 1, 2, 3]


@pytest.mark.parametrize(("step", "reason"), [(0, "truncated"), (1, "truncated"), (3, "link_cut"), (9, "link_cut")])
def test_a_step_that_does_not_follow_begins_an_episode(step: int, reason: str) -> None:
    assert told(followed(packet(0), packet(1), packet(step))) == [
        "step 0.0",
        "step 0.1",
        f"end 0 {reason} 2",
        "step 1.0",
    ]


def test_an_episode_that_began_before_anybody_listened_counts_from_zero() -> None:
    assert told(followed(packet(42), packet(43, done=True))) == ["step 0.0", "step 0.1", "end 0 terminated 2"]


def test_a_packet_is_a_human_step_for_demonstration() -> None:
    first, second = followed(packet(0), packet(1))
    assert (second.source, second.purpose, second.behaviour) == ("human", "collection", None)
    np.testing.assert_array_equal(second.human_action, PACKET.action)
    np.testing.assert_array_equal(second.action, PACKET.action)
    np.testing.assert_array_equal(second.observation.in_flight, first.action)
    assert second.observation.stamp_ns == 100_100_000_000


def test_an_end_carries_the_last_observation_and_the_return() -> None:
    end = followed(packet(0), packet(1, done=True))[-1]
    assert (end.terminated, end.return_, end.purpose) == (True, 1.0, "collection")
    np.testing.assert_array_equal(end.final.state, PACKET.proprio)


@pytest.mark.parametrize(("elapsed_s", "expected_s"), [(0.0, 0.5), (0.25, 0.25), (10.0, 0.0)])
def test_a_quota_that_was_overdrawn_must_be_waited_for(elapsed_s: float, expected_s: float) -> None:
    quota = Quota(10.0)
    quota.wait_s(0.0)
    quota.take(15)
    assert quota.wait_s(elapsed_s) == pytest.approx(expected_s)


def test_a_quota_saves_up_no_more_than_a_second() -> None:
    quota = Quota(10.0)
    quota.wait_s(0.0)
    quota.wait_s(1000.0)
    quota.take(11)
    assert quota.wait_s(1000.0) > 0


def test_it_is_off_and_on_loopback_unless_told_otherwise() -> None:
    settings = LegacySettings()
    assert (settings.enabled, settings.host, settings.port) == (False, "127.0.0.1", 5556)


def test_the_name_of_the_rover_is_checked() -> None:
    with pytest.raises(config.ConfigError, match="rover_id"):
        config.load(LegacySettings, environ={}, env_prefix="X_", overrides=["rover_id=../x"])


class Collector:
    """What the first data collector does: pack by hand, send without waiting."""

    def __init__(self, port: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.setsockopt(zmq.SNDHWM, 10)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.step = 0

    def collect(self, rgb: np.ndarray, depth: np.ndarray, *, done: bool = False, compress: bool = True) -> None:
        proprio = np.array([0.1, 0.2, 0.0, 0.0, 9.8, 2.5], dtype=np.float32)
        action = np.array([0.15, -0.3], dtype=np.float32)
        metadata = {
            "timestamp": time.time(),
            "episode_step": self.step,
            "reward": 0.25,
            "done": done,
            "rgb_shape": list(rgb.shape),
            "depth_shape": list(depth.shape),
            "proprio_shape": list(proprio.shape),
            "action_shape": list(action.shape),
            "rgb_compressed": compress,
        }
        image = encode_rgb(rgb) if compress else rgb.tobytes()
        text = json.dumps(metadata).encode("utf-8")
        parts = (text, image, depth.astype(np.float32).tobytes(), proprio.tobytes(), action.tobytes())
        self.send(len(text).to_bytes(4, byteorder="little") + b"".join(parts))
        self.step = 0 if done else self.step + 1

    def send(self, content: bytes) -> None:
        assert self.socket.poll(5000, zmq.POLLOUT)
        self.socket.send(content, zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class Kept:
    """Keeps what is delivered, decoded as the trainer would; refuses while ``is_busy``."""

    def __init__(self) -> None:
        self.records: list[Step | EpisodeEnd] = []
        self.arrived = threading.Condition()
        self.is_busy = False

    def __call__(self, stored) -> bool:
        if self.is_busy:
            return False
        record = decode_record(stored.header, stored.frames[1:], ROBOT, TASK)
        assert (record.rover_id, record.boot_id, record.seq) == (stored.rover_id, stored.boot_id, stored.seq)
        with self.arrived:
            self.records.append(record)
            self.arrived.notify_all()
        return True

    def wait(self, count: int) -> list[Step | EpisodeEnd]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.records) >= count, 10), told(self.records)
            return list(self.records)


@contextlib.contextmanager
def listening(**changes: object):
    """Run the input; give it, what it delivers, and a collector."""
    kept = Kept()
    values = {"enabled": True, "port": 0, **changes}
    service = LegacyInput(LegacySettings(**values), kept, boot_id=BOOT)
    service.start()
    collector = Collector(service.port)
    try:
        yield service, kept, collector
    finally:
        kept.is_busy = False
        collector.close()
        service.stop()
        service._thread.join(5)


def frames() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.arange(240)[:, None], np.arange(424)[None, :]
    rgb = np.stack(np.broadcast_arrays(rows, columns // 2, 60), axis=2).astype(np.uint8)
    return rgb, (0.5 + 0.01 * rows + 0.001 * columns).astype(np.float32)


def until(condition) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("compress", [True, False])
def test_an_unchanged_collector_lands_as_a_demonstration(compress: bool) -> None:  # noqa: FBT001
    rgb, depth = frames()
    with listening() as (service, kept, collector):
        for done in (False, False, True, False):
            collector.collect(rgb, depth, done=done, compress=compress)
        records = kept.wait(5)
        assert told(records) == ["step 0.0", "step 0.1", "step 0.2", "end 0 terminated 3", "step 1.0"]
        assert service.counts["malformed"] == 0
    images = records[0].observation.images
    np.testing.assert_array_equal(images[DEPTH], np.rint(depth * np.float32(1000)).astype(np.int16))
    assert np.abs(images[RGB].astype(int) - rgb).max() <= 24
    assert records[0].clearance_m == 2.5
    np.testing.assert_allclose(records[0].human_action, [0.15, -0.3], rtol=1e-6)


def test_malformed_packets_are_counted_and_named_once_and_stop_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as (service, kept, collector):
        garbage = [b"", b"nonsense", b"\x02\0\0\0[]", *[b"\xff" * 1000] * 5]
        for each in garbage:
            collector.send(each)
        collector.socket.send_multipart([b"two", b"frames"])
        collector.collect(*frames())
        assert told(kept.wait(1)) == ["step 0.0"]
        assert service.malformed == {"metadata_length": 7, "metadata": 1, "frames": 1}
    assert capsys.readouterr().out.count("legacy.packet_malformed") == 3


def test_a_wrong_shape_is_malformed() -> None:
    rgb, depth = frames()
    with listening() as (service, _, collector):
        collector.collect(rgb.transpose(1, 0, 2).copy(), depth.T.copy())
        until(lambda: service.malformed == {"rgb_shape": 1})


def test_a_busy_consumer_is_offered_each_record_again_until_it_takes_it() -> None:
    with listening() as (service, kept, collector):
        kept.is_busy = True
        for _ in range(3):
            collector.collect(*frames())
        until(lambda: service.counts["waits"] > 2)
        assert kept.records == []
        kept.is_busy = False
        assert told(kept.wait(3)) == ["step 0.0", "step 0.1", "step 0.2"]


def test_silence_ends_an_episode() -> None:
    with listening(idle_s=0.1) as (_, kept, collector):
        collector.collect(*frames())
        assert told(kept.wait(2)) == ["step 0.0", "end 0 link_cut 1"]


def test_an_open_episode_is_ended_when_the_input_stops() -> None:
    with listening() as (service, kept, collector):
        collector.collect(*frames())
        kept.wait(1)
        service.stop()
        assert told(kept.wait(2)) == ["step 0.0", "end 0 stopped 1"]


def test_a_second_sender_does_not_mix_its_steps_in() -> None:
    with listening() as (service, kept, collector):
        other = Collector(service.port)
        collector.collect(*frames())
        kept.wait(1)
        other.collect(*frames())
        until(lambda: service.counts["strangers"] == 1)
        collector.collect(*frames())
        other.close()
        assert told(kept.wait(2)) == ["step 0.0", "step 0.1"]


def test_more_than_the_quota_waits_at_its_sender() -> None:
    with listening(max_packets_per_s=5.0) as (service, kept, collector):
        begin = time.monotonic()
        for _ in range(8):
            collector.collect(*frames())
        assert len(kept.wait(8)) == 8
        assert time.monotonic() - begin > 0.3
        assert service.counts["packets"] == 8


def test_a_port_in_use_is_named() -> None:
    with listening() as (service, kept, _), pytest.raises(LegacyError, match=r"in use; choose another legacy\.port"):
        LegacyInput(LegacySettings(port=service.port), kept).start()


async def test_the_service_ends_when_it_is_cancelled() -> None:
    service = LegacyInput(LegacySettings(port=0), Kept())
    service.start()
    task = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not service._thread.is_alive()


def test_an_error_of_the_consumer_ends_the_service_with_it() -> None:
    def broken(*_: object) -> bool:
        raise OSError("no disk")

    service = LegacyInput(LegacySettings(port=0), broken)
    service.start()
    collector = Collector(service.port)
    collector.send(encode_legacy(packet(0)))
    with pytest.raises(OSError, match="no disk"):
        service._ended.result(10)
    collector.close()


def test_every_boot_has_a_name_of_its_own() -> None:
    assert LegacyInput(LegacySettings(), Kept()).boot_id != LegacyInput(LegacySettings(), Kept()).boot_id


def test_the_robot_of_version_zero_fits_the_task() -> None:
    assert ROBOT.action_repeat == 1
    assert TASK.features == ()
