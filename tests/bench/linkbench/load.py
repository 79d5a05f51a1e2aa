"""The steps that both our link and the peers carry."""

import numpy as np

from protocol.framing import RecordEncoder
from protocol.step import Behaviour, EpisodeEnd, Observation, Step
from tests.bench.linkbench.frames import robot_spec, task_spec

EPISODE = 200
"""Steps of an episode: a record of its end follows them."""
ROVER, BOOT = "bench-1", "00000000000000be"


class Load:
    """Steps of one robot whose images are a few frames in turn."""

    def __init__(self, path, *, rover_id=ROVER, boot_id=BOOT):
        """Read the frames of a file that ``save`` made."""
        content = np.load(path)
        self.rgb, self.depth = content["rgb"], content["depth"]
        self.robot = robot_spec(*self.depth.shape[1:])
        self.task = task_spec()
        self.rover_id, self.boot_id = rover_id, boot_id
        self._encoded = []
        self._rng = np.random.default_rng(0)

    def __len__(self):
        return len(self.rgb)

    def images(self, index):
        """Return the images of a step, by blob key."""
        place = index % len(self.rgb)
        keys = [camera.key for camera in self.robot.cameras]
        return {keys[0]: self.rgb[place], keys[1]: self.depth[place]}

    def encode_all(self):
        """Encode each frame once, as at capture; ``encoded`` then gives them."""
        encoder = RecordEncoder(self.robot)
        self._encoded = [encoder.encode_images(self.images(index)) for index in range(len(self.rgb))]

    def encoded(self, index):
        """Return the encoded images of a step."""
        return self._encoded[index % len(self._encoded)]

    def observation(self, seq):
        """Return what a step saw, without its images: those travel encoded."""
        return Observation(
            state=self.numbers(len(self.robot.state)),
            task=self.numbers(len(self.task.features)),
            in_flight=self.numbers(2),
            stamp_ns=1_000_000_000 + 100_000_000 * seq,
            ages_ms={camera.key: 12.5 for camera in self.robot.cameras},
        )

    def numbers(self, size):
        return self._rng.random(size, np.float32)

    def record(self, seq):
        """Return the record of a seq: steps, and the end of an episode after each ``EPISODE`` of them."""
        episode, step = divmod(seq, EPISODE + 1)
        if step == EPISODE:
            return EpisodeEnd(
                rover_id=self.rover_id,
                boot_id=self.boot_id,
                seq=seq,
                episode_id=episode,
                episode_steps=EPISODE,
                reason="truncated",
                final=self.observation(seq),
                return_=1.0,
                policy_id="ab" * 32,
            )
        return Step(
            rover_id=self.rover_id,
            boot_id=self.boot_id,
            seq=seq,
            episode_id=episode,
            episode_step=step,
            decision_id=seq - episode,
            tick_in_decision=0,
            observation=self.observation(seq),
            action=self.numbers(2),
            source="policy",
            reward=0.5,
            policy_id="ab" * 32,
            policy_counter=7,
            behaviour=Behaviour(self.numbers(2), self.numbers(2), self.numbers(2), -1.25),
            policy_action=self.numbers(2),
            reward_terms={"progress": 0.4, "clearance": 0.1},
            tick=seq,
            tick_ns=1_000_000_000 + 100_000_000 * seq,
            applied_ns=1_001_000_000 + 100_000_000 * seq,
            clearance_m=1.5,
        )


def save(frames, path):
    """Keep frames for the processes of a measurement."""
    np.savez(path, rgb=np.stack(frames.rgb), depth=np.stack(frames.depth))
