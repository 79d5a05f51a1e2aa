"""Stable-Baselines3: ``PPO`` with ``MultiInputPolicy``, its own buffer, and a features extractor for the network."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from tests.bench.peers import child
from tests.bench.peers.network import FEATURES, HEAD, Trunk, fill, linears
from tests.bench.peers.rollout import NEAR_MM


class Robot(gymnasium.Env):
    """The spaces of the rollout; nobody steps it."""

    def __init__(self, source):
        self.observation_space = Dict(
            {
                "rgb": Box(0, 255, (3, *source.size), np.uint8),
                "depth": Box(0, 32767, (1, *source.size), np.int16),
                "vector": Box(-10.0, 10.0, (source["vector"].shape[1],), np.float32),
            }
        )
        self.action_space = Box(-1.0, 1.0, (source["u"].shape[1],), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.items()}, {}


class Features(BaseFeaturesExtractor):
    """The trunk; SB3 has divided the colours by 255 and made the depth float."""

    def __init__(self, observation_space):
        super().__init__(observation_space, FEATURES)
        self.trunk = Trunk(observation_space["vector"].shape[0])

    def forward(self, observation):
        depth = observation["depth"]
        near = (NEAR_MM / depth.clamp(min=1.0)).clamp(max=1.0) * (depth > 0)
        return self.trunk(torch.cat((observation["rgb"], near), dim=1), observation["vector"])


class Baselines:
    """SB3's model with its rollout buffer filled."""

    def __init__(self, source, told):
        ppo, rows = told["ppo"], told["rows"]
        self.model = PPO(
            "MultiInputPolicy",
            Robot(source),
            learning_rate=ppo["learning_rate"],
            n_steps=rows,
            batch_size=told["minibatch"],
            n_epochs=told["epochs"],
            gamma=ppo["gamma"],
            gae_lambda=ppo["lambda_"],
            clip_range=ppo["clip"],
            ent_coef=ppo["entropy"],
            vf_coef=ppo["value"],
            max_grad_norm=ppo["max_grad_norm"],
            policy_kwargs={
                "features_extractor_class": Features,
                "net_arch": {"pi": list(HEAD), "vf": list(HEAD)},
                "activation_fn": torch.nn.ReLU,
            },
            seed=told["seed"],
            device=told["device"],
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._fill_weights(source.weights)
        self._fill_buffer(source, rows)
        self.last = torch.from_numpy(source["value"][rows : rows + 1])
        self.ended = source["terminated"][rows - 1 : rows]

    def _fill_weights(self, weights):
        policy = self.model.policy
        policy.features_extractor.trunk.fill(weights)
        fill("policy", [*linears(policy.mlp_extractor.policy_net), policy.action_net], weights)
        fill("value", [*linears(policy.mlp_extractor.value_net), policy.value_net], weights)
        policy.log_std.data.copy_(torch.from_numpy(weights["log_std"]))

    def _fill_buffer(self, source, rows):
        buffer = self.model.rollout_buffer
        starts = np.concatenate(([True], source["terminated"][: rows - 1]))
        for row, (rgb, depth) in enumerate(source.frames(rows)):
            seen = {"rgb": rgb.transpose(2, 0, 1)[None], "depth": depth[None, None], "vector": source["vector"][[row]]}
            value, log_prob = (torch.from_numpy(source[name][[row]]) for name in ("value", "log_prob"))
            buffer.add(seen, source["u"][[row]], source["reward"][[row]], starts[[row]], value, log_prob)

    def parameters(self):
        return list(self.model.policy.parameters())

    @torch.no_grad()
    def answers(self, rows):
        policy, stored = self.model.policy, self.model.rollout_buffer.observations
        seen = {name: torch.from_numpy(each[:rows, 0].copy()).to(policy.device) for name, each in stored.items()}
        mean = policy.get_distribution(seen).distribution.mean
        return mean.cpu().numpy(), policy.predict_values(seen).cpu().numpy()

    def update(self):
        self.model.rollout_buffer.compute_returns_and_advantage(self.last, self.ended)
        self.model.train()


if __name__ == "__main__":
    child.main(Baselines)
