"""Make up the rollout that every learner is fed: random frames, and the answers of an untrained network."""

import numpy as np
import torch

from tests.bench.peers import rollout
from tests.bench.peers.ours import ACTION, STATE, make_learner
from trainerd.learning.distributions import log_prob_numpy


def make_rollout(path, rows, size, device="cpu", encoder="rgbd"):
    """Write a rollout whose actions, log-probabilities and values are those of an untrained network."""
    rng = np.random.default_rng(0)
    learner = make_learner(*size, device=device, encoder=encoder)
    arrays = {
        "rgb": rng.integers(0, 256, (rows + 1, *size, 3), np.uint8),
        "depth": rng.integers(0, 6000, (rows + 1, *size), np.int16),
        "vector": rng.standard_normal((rows + 1, len(STATE) + len(ACTION))).astype(np.float32),
        "reward": rng.standard_normal(rows).astype(np.float32),
        "terminated": rng.random(rows) < 1 / 32,
        "log_std": learner.network.log_std.detach().cpu().numpy(),
    }
    mean, arrays["value"] = answers(learner.network, arrays, device)
    arrays["mean"] = mean[:rows]
    noise = rng.standard_normal(arrays["mean"].shape).astype(np.float32)
    arrays["u"] = arrays["mean"] + np.exp(arrays["log_std"]) * noise
    arrays["log_prob"] = log_prob_numpy(arrays["u"], arrays["mean"], arrays["log_std"])
    rollout.write(path, arrays, learner.snapshot())


@torch.no_grad()
def answers(network, arrays, device, chunk=16):
    """Return mean and value of every observation of a rollout."""
    found = []
    for start in range(0, len(arrays["rgb"]), chunk):
        part = slice(start, start + chunk)
        pairs = zip(arrays["rgb"][part], arrays["depth"][part], strict=True)
        image = torch.from_numpy(np.stack([rollout.planes(*frame) for frame in pairs])).to(device)
        found.append(
            [each.cpu().numpy() for each in network(image, torch.from_numpy(arrays["vector"][part]).to(device))]
        )
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))
