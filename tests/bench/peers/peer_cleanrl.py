"""CleanRL's way: one file, float32 storage, one loop over shuffled minibatches; written anew from its documentation.

docs.cleanrl.dev/rl-algorithms/ppo: observations are stored as the network takes them, advantages come from a backward
loop over tensors, metrics are read from the device in each minibatch.
"""

import numpy as np
import torch
from torch import nn
from torch.distributions.normal import Normal

from tests.bench.peers import child
from tests.bench.peers.network import Trunk, fill, head, linears
from tests.bench.peers.rollout import planes


class Agent(nn.Module):
    """Actor and critic over a shared trunk."""

    def __init__(self, source):
        super().__init__()
        self.trunk = Trunk(source["vector"].shape[1])
        self.actor, self.critic = head(source["u"].shape[1]), head(1)
        self.actor_logstd = nn.Parameter(torch.from_numpy(source.weights["log_std"])[None].clone())
        self.trunk.fill(source.weights)
        fill("policy", linears(self.actor), source.weights)
        fill("value", linears(self.critic), source.weights)

    def action_and_value(self, image, vector, action):
        hidden = self.trunk(image, vector)
        mean = self.actor(hidden)
        law = Normal(mean, self.actor_logstd.expand_as(mean).exp())
        return law.log_prob(action).sum(1), law.entropy().sum(1), self.critic(hidden)


class Loop:
    """A rollout of one environment and the update over it."""

    def __init__(self, source, told):
        rows, device = told["rows"], told["device"]
        self.told = told
        self.agent = Agent(source).to(device)
        ppo = told["ppo"]
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=ppo["learning_rate"], eps=ppo["adam_eps"])
        self.images = torch.zeros((rows, 4, *source.size), device=device)
        for row, frame in enumerate(source.frames(rows)):
            self.images[row] = torch.from_numpy(planes(*frame)).to(device)

        def column(name, stop=rows):
            return torch.from_numpy(source[name][:stop]).to(device)

        self.vectors, self.actions, self.log_probs = column("vector"), column("u"), column("log_prob")
        self.rewards, self.values = column("reward"), column("value", rows + 1)
        self.dones = column("terminated").float()

    def parameters(self):
        return list(self.agent.parameters())

    @torch.no_grad()
    def answers(self, rows):
        hidden = self.agent.trunk(self.images[:rows], self.vectors[:rows])
        return self.agent.actor(hidden).cpu().numpy(), self.agent.critic(hidden).cpu().numpy()

    def update(self):
        ppo, rows, size = self.told["ppo"], self.told["rows"], self.told["minibatch"]
        advantages, returns = self.advantages()
        order = np.arange(rows)
        clipped = []
        for _ in range(self.told["epochs"]):
            np.random.shuffle(order)  # noqa: NPY002 - as its loop does
            for start in range(0, rows, size):
                at = order[start : start + size]
                log_prob, entropy, value = self.agent.action_and_value(
                    self.images[at], self.vectors[at], self.actions[at]
                )
                log_ratio = log_prob - self.log_probs[at]
                ratio = log_ratio.exp()
                with torch.no_grad():
                    kl = ((ratio - 1) - log_ratio).mean()
                    clipped += [((ratio - 1.0).abs() > ppo["clip"]).float().mean().item()]
                advantage = advantages[at]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                bounded = torch.clamp(ratio, 1 - ppo["clip"], 1 + ppo["clip"])
                policy_loss = torch.max(-advantage * ratio, -advantage * bounded).mean()
                value_loss = ((value.view(-1) - returns[at]) ** 2).mean()
                loss = policy_loss - ppo["entropy"] * entropy.mean() + ppo["value"] * value_loss
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), ppo["max_grad_norm"])
                self.optimizer.step()
        return {"loss": loss.item(), "kl": kl.item(), "clip_fraction": float(np.mean(clipped))}

    @torch.no_grad()
    def advantages(self):
        """Return advantages and returns, from the last step to the first."""
        gamma, decay = self.told["ppo"]["gamma"], self.told["ppo"]["lambda_"]
        advantages = torch.zeros_like(self.rewards)
        last = 0
        for t in reversed(range(len(self.rewards))):
            goes_on = 1.0 - self.dones[t]
            delta = self.rewards[t] + gamma * self.values[t + 1] * goes_on - self.values[t]
            advantages[t] = last = delta + gamma * decay * goes_on * last
        return advantages, advantages + self.values[:-1]


if __name__ == "__main__":
    child.main(Loop)
