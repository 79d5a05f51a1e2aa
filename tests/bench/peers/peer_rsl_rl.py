"""rsl_rl: ``PPO`` with its storage; actor and critic are models of their own over one trunk, and each runs it."""

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.models import MLPModel
from rsl_rl.modules.distribution import GaussianDistribution
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict

from tests.bench.peers import child
from tests.bench.peers.network import FEATURES, HEAD, Trunk, fill, linears
from tests.bench.peers.rollout import planes

GROUPS = {"actor": ["vector"], "critic": ["vector"]}


class Model(MLPModel):
    """A head over the trunk; the trunk counts as a part of the actor, so that it is optimised once."""

    def __init__(self, trunk, owns_trunk, *words, **settings):
        super().__init__(*words, hidden_dims=list(HEAD), activation="relu", **settings)
        if owns_trunk:
            self.trunk = trunk
        self._run = [trunk]

    def get_latent(self, obs, masks=None, hidden_state=None):
        return self._run[0](obs["image"], obs["vector"])

    def _get_latent_dim(self):
        return FEATURES


class Runner:
    """The algorithm with a storage that holds one environment's rollout."""

    def __init__(self, source, told):
        ppo, rows, self.device = told["ppo"], told["rows"], told["device"]
        vector, actions = source["vector"], source["u"].shape[1]
        blank = self._seen(torch.zeros(1, 4, *source.size), torch.from_numpy(vector[:1]))
        trunk = Trunk(vector.shape[1]).to(self.device)
        start = {"class_name": GaussianDistribution, "init_std": 1.0, "std_type": "log"}
        self.actor = Model(trunk, True, blank, GROUPS, "actor", actions, distribution_cfg=start)
        self.critic = Model(trunk, False, blank, GROUPS, "critic", 1)
        trunk.fill(source.weights)
        fill("policy", linears(self.actor.mlp), source.weights)
        fill("value", linears(self.critic.mlp), source.weights)
        self.actor.distribution.log_std_param.data.copy_(torch.from_numpy(source.weights["log_std"]))
        self.storage = RolloutStorage("rl", 1, rows, blank, [actions], self.device)
        self.algorithm = PPO(
            self.actor,
            self.critic,
            self.storage,
            num_learning_epochs=told["epochs"],
            num_mini_batches=rows // told["minibatch"],
            clip_param=ppo["clip"],
            gamma=ppo["gamma"],
            lam=ppo["lambda_"],
            value_loss_coef=ppo["value"],
            entropy_coef=ppo["entropy"],
            learning_rate=ppo["learning_rate"],
            max_grad_norm=ppo["max_grad_norm"],
            use_clipped_value_loss=False,
            schedule="fixed",
            desired_kl=None,
            normalize_advantage_per_mini_batch=True,
            device=self.device,
        )
        self._fill(source, rows)

    def _seen(self, image, vector):
        return TensorDict({"image": image, "vector": vector}, batch_size=[1]).to(self.device)

    def _fill(self, source, rows):
        def at(name, row):
            return torch.from_numpy(source[name][[row]]).to(self.device)

        std = torch.from_numpy(source["log_std"]).exp()[None].to(self.device)
        for row, frame in enumerate(source.frames(rows + 1)):
            seen = self._seen(torch.from_numpy(planes(*frame))[None], torch.from_numpy(source["vector"][[row]]))
            if row == rows:
                self.last = seen
                break
            step = RolloutStorage.Transition()
            step.observations, step.actions, step.rewards = seen, at("u", row), at("reward", row)
            step.dones, step.values = at("terminated", row), at("value", row)[:, None]
            step.actions_log_prob, step.distribution_params = at("log_prob", row), (at("mean", row), std)
            self.storage.add_transition(step)

    def parameters(self):
        return [*self.actor.parameters(), *self.critic.parameters()]

    @torch.no_grad()
    def answers(self, rows):
        seen = self.storage.observations[:rows].flatten(0, 1)
        return self.actor(seen).cpu().numpy(), self.critic(seen).cpu().numpy()

    def update(self):
        self.algorithm.compute_returns(self.last)
        self.algorithm.update()


if __name__ == "__main__":
    child.main(Runner)
