"""TorchRL: ``ClipPPOLoss`` over an ``ActorValueOperator``, as its own PPO for pixels puts them together.

The operators of policy and value share the trunk's weights; each runs it. Advantages are computed once, from the values
of the rollout (its own script runs the value network again in each epoch).
"""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.modules import ActorValueOperator, IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from tests.bench.peers import child
from tests.bench.peers.network import Trunk, fill, head, linears
from tests.bench.peers.rollout import planes


class Law(nn.Module):
    """The policy's head and the standard deviation that does not depend on the state."""

    def __init__(self, actions, log_std):
        super().__init__()
        self.head = head(actions)
        self.log_std = nn.Parameter(torch.from_numpy(log_std).clone())

    def forward(self, features):
        mean = self.head(features)
        return mean, self.log_std.exp().expand_as(mean)


class Objectives:
    """The loss module, its optimiser, and a replay buffer that holds one rollout."""

    def __init__(self, source, told):
        ppo, rows, device = told["ppo"], told["rows"], told["device"]
        self.told = told
        trunk, law, value = Trunk(source["vector"].shape[1]), None, head(1)
        law = Law(source["u"].shape[1], source.weights["log_std"])
        trunk.fill(source.weights)
        fill("policy", linears(law.head), source.weights)
        fill("value", linears(value), source.weights)
        operator = ActorValueOperator(
            TensorDictModule(trunk, in_keys=["image", "vector"], out_keys=["features"]),
            ProbabilisticActor(
                TensorDictModule(law, in_keys=["features"], out_keys=["loc", "scale"]),
                in_keys=["loc", "scale"],
                distribution_class=IndependentNormal,
                return_log_prob=True,
            ),
            ValueOperator(value, in_keys=["features"]),
        ).to(device)
        self.actor, self.critic = operator.get_policy_operator(), operator.get_value_operator()
        self.loss = ClipPPOLoss(
            self.actor,
            self.critic,
            clip_epsilon=ppo["clip"],
            entropy_coeff=ppo["entropy"],
            critic_coeff=ppo["value"],
            loss_critic_type="l2",
            normalize_advantage=True,
        )
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=ppo["learning_rate"], eps=ppo["adam_eps"])
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(rows, device=device),
            sampler=SamplerWithoutReplacement(),
            batch_size=told["minibatch"],
        )
        self._fill(source, rows, device)

    def _fill(self, source, rows, device):
        def column(name, stop=rows):
            return torch.from_numpy(source[name][:stop]).to(device)

        self.rewards, self.values = column("reward")[:, None], column("value", rows + 1)[:, None]
        self.ended = column("terminated")[:, None]
        vectors, actions, log_probs = column("vector"), column("u"), column("log_prob")
        nothing = torch.zeros(1, 1)
        for row, frame in enumerate(source.frames(rows)):
            step = {"image": torch.from_numpy(planes(*frame))[None], "vector": vectors[[row]], "action": actions[[row]]}
            step |= {self.loss.tensor_keys.sample_log_prob: log_probs[[row]]}
            step |= {"advantage": nothing, "value_target": nothing}
            self.buffer.extend(TensorDict(step, batch_size=[1]).to(device))

    def parameters(self):
        return list(self.loss.parameters())

    @torch.no_grad()
    def answers(self, rows):
        seen = self.buffer[:rows].select("image", "vector")
        mean, value = self.actor.get_dist(seen.clone()).mean, self.critic(seen.clone())["state_value"]
        return mean.cpu().numpy(), value.cpu().numpy()

    def update(self):
        ppo = self.told["ppo"]
        advantage, target = vec_generalized_advantage_estimate(
            ppo["gamma"], ppo["lambda_"], self.values[:-1], self.values[1:], self.rewards, self.ended, self.ended
        )
        stored = self.buffer[:]
        stored["advantage"].copy_(advantage)
        stored["value_target"].copy_(target)
        for _ in range(self.told["epochs"]):
            for batch in self.buffer:
                losses = self.loss(batch)
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.loss.parameters(), ppo["max_grad_norm"])
                self.optimizer.step()


if __name__ == "__main__":
    child.main(Objectives)
