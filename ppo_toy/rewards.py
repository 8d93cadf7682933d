"""The reward model: one number for a whole response, learned from which of two people prefer.

Shapes: B responses, N pairs, P prompt tokens, T response tokens.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppo_toy.axes import check_counts, check_range, takes
from ppo_toy.contract import known, rewards_of
from ppo_toy.data import Pairs
from ppo_toy.enumeration import MAX_LOGITS, list_responses
from ppo_toy.gpt import TinyGPT
from ppo_toy.policies import device_of, index_of_prompts
from ppo_toy.progress import bar
from ppo_toy.trajectories import Trajectories
from ppo_toy.worlds import TokenSequence

CHUNK = 2**9  # responses scored at a time where all are: few enough for the processor's cache


class RewardModel(nn.Module):
    """R(x, y): a transformer that reads prompt and response, and gives one number at the end.

    The number is read at the response's last token, the end token included, so that what stands
    behind it as padding changes nothing. A model `from_policy` scores every response 0 at first.

    Args:
        trunk: with a value head; copied. A pretrained policy has none: see `from_policy`.
        world: gives the vocabulary, the end token and the lengths.

    Attributes:
        offset: taken from every score; see `normalize`.

    Raises:
        ValueError: the trunk has no value head, or its vocabulary or context does not fit the
            world.

    Source: Stiennon et al. (2020), Learning to summarize from human feedback, section 3.4: a
    linear head on the pretrained model.
    """

    offset: Tensor

    def __init__(self, trunk: TinyGPT, world: Any) -> None:
        """Copies the trunk; see the class."""
        super().__init__()
        config, n_tokens = trunk.config, len(world.vocabulary)
        if trunk.value_head is None:
            raise ValueError("the trunk has no value head; RewardModel.from_policy adds one")
        if config.n_tokens_out != n_tokens:
            raise ValueError(f"the trunk has {config.n_tokens_out} tokens, the world {n_tokens}")
        longest = world.prompts.shape[1] + world.response_length
        if config.context < longest:
            raise ValueError(f"the trunk's context is {config.context}; this world needs {longest}")
        self.trunk = copy.deepcopy(trunk)
        self.vocabulary, self.end_token = list(world.vocabulary), world.end_token
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))

    @classmethod
    def from_policy(cls, policy: TinyGPT, world: Any) -> "RewardModel":
        """Returns a model that begins with what a pretrained policy knows of the language."""
        config = replace(policy.config, value_head=True)
        dtype = policy.head.weight.dtype
        trunk = TinyGPT(config, generator=torch.Generator(), dtype=dtype).to(device_of(policy))
        trunk.load_state_dict(policy.state_dict(), strict=False)
        for parameter in trunk.value_head.parameters():
            nn.init.zeros_(parameter)
        return cls(trunk, world)

    def forward(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Returns R of each response, [B], in reward, on the device of the responses.

        What stands after an end token may be anything. Errors are those of `TinyGPT`.
        """
        asked_from, device = responses.device, device_of(self)
        prompts, responses = prompts.to(device), responses.to(device)
        length = torch.full_like(responses[:, :1], responses.shape[1])
        if self.end_token is not None:
            ended = (responses == self.end_token).cumsum(dim=1) > 0
            responses = responses.masked_fill(ended, self.end_token)
            length = ((~ended).sum(dim=1, keepdim=True) + 1).minimum(length)
        scores = self.trunk.values(prompts, responses).gather(1, length).squeeze(1)
        return (scores - self.offset.to(scores)).to(asked_from)


@takes(chosen="...", rejected="...")
def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Returns the mean negative log-probability of the choices, to be minimised.

        P(chosen is preferred) = sigmoid(R(chosen) - R(rejected))

    A constant added to all rewards changes nothing, so the choices leave it open.

    Args:
        chosen: rewards of the preferred responses, [N].
        rejected: rewards of the others, [N].

    Returns:
        A scalar, in nats per pair; log 2 where the model knows nothing.

    Raises:
        ValueError: the two have different shapes, so that one would be paired with many.

    Source: Bradley and Terry (1952), Rank Analysis of Incomplete Block Designs; as a loss for
    reward models, Stiennon et al. (2020), section 3.4.
    """
    return -F.logsigmoid(chosen - rejected).mean()


def train_reward_model(
    pairs: Pairs,
    model: RewardModel,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    weight_decay: float = 0.0,
) -> Tensor:
    """Trains the model in place on the pairs and returns the losses.

    The learning rate falls in a straight line towards 0.

    Args:
        pairs: N choices.
        model: the reward model.
        steps: updates, >= 1.
        batch_size: pairs drawn for each update, with replacement, >= 1.
        learning_rate: of Adam at the first step, > 0.
        generator: a CPU generator, which draws the pairs.
        weight_decay: the share of the learning rate by which each weight shrinks at every step,
            which keeps the model from being surer than the pairs allow.

    Returns:
        The loss of each batch before its update, in nats per pair, [steps].

    Raises:
        ValueError: a number is out of its range, there are no pairs, or a token is not one of the
            model's.
    """
    check_counts(steps=steps, batch_size=batch_size, pairs=len(pairs.raters))
    check_range("learning_rate", learning_rate, "G > 0, < inf")
    device = device_of(model)
    prompts, both = pairs.prompts.to(device), torch.stack([pairs.chosen, pairs.rejected]).to(device)
    adam = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    losses = []
    for step in bar(range(steps), "learning the reward"):
        adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        uniforms = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        which = (uniforms * prompts.shape[0]).long().to(device)
        rewards = model(prompts[which].repeat(2, 1), both[:, which].flatten(end_dim=1))
        loss = bradley_terry_loss(*rewards.chunk(2))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


@torch.no_grad()
def margins(model: RewardModel, pairs: Pairs) -> Tensor:
    """Returns R(chosen) - R(rejected) of each pair, [N], in reward; right where above 0."""
    return model(pairs.prompts, pairs.chosen) - model(pairs.prompts, pairs.rejected)


@torch.no_grad()
def normalize(model: RewardModel, trajectories: Trajectories) -> float:
    """Shifts the model so that these trajectories earn 0 on average; returns what they earned.

    With trajectories of the reference policy, sampled or enumerated, R = 0 then means: as good as
    the reference. The best policy does not notice the shift.

    Source: Stiennon et al. (2020), section 3.4. Huang et al. (2024), The N Implementation Details
    of RLHF with PPO, reward detail 3, divide by the spread too.
    """
    parts = zip(trajectories.prompts.split(CHUNK), trajectories.responses.split(CHUNK), strict=True)
    rewards = torch.cat([model(*part) for part in parts]).double()
    mean = (trajectories.weights.double() * rewards).sum().item()
    model.offset += mean
    return mean


@torch.no_grad()
def tabulated(world: Any) -> Any:
    """Returns the same world with every reward computed once and looked up from then on.

    A frozen reward model never changes its mind, so the table is the model.

    Args:
        world: any world small enough to list; what comes back is a copy of it.

    Raises:
        ValueError: the world has too many responses or its table would be too large, or a reward
            is not finite.
    """
    given, world = world, known(world)
    responses, _ = list_responses(world)
    shape = (len(world.prompts), *[len(world.vocabulary)] * world.response_length)
    if math.prod(shape) > MAX_LOGITS:
        raise ValueError(
            f"this world needs a table of 10^{math.log10(math.prod(shape)):.1f} rewards; at most "
            f"{MAX_LOGITS:,} are kept"
        )
    table = torch.zeros(shape, dtype=torch.float64)
    for row, prompt in bar(list(zip(table, world.prompts, strict=True)), "scoring"):
        for part in responses.split(CHUNK):
            rewards = rewards_of(world, prompt.expand(len(part), -1), part.clone())
            row[part.unbind(dim=1)] = rewards.double()
    by_number = TokenSequence.from_table(table, end_token=world.end_token)

    def look_up(prompts: Tensor, responses: Tensor) -> Tensor:
        number = index_of_prompts(prompts, world.prompts.to(prompts.device))
        return by_number.reward(number.unsqueeze(1), responses)

    try:
        twin = copy.copy(given)
        object.__setattr__(twin, "reward", look_up)
    except AttributeError:  # it keeps its attributes where they cannot be changed
        return world._replace(reward=look_up)
    return twin
