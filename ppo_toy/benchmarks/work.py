"""The work on which a tiny GPT is compared with its peers.

64 prompts of 4 tokens, 12 new tokens to each and never fewer, four epochs of one update each, a
KL to a frozen reference; 2 layers of width 64, float32, no dropout.
"""

import torch
from torch import Tensor

from ppo_toy.gpt import GPTConfig, TinyGPT
from ppo_toy.policies import freeze
from ppo_toy.proximal import Surrogate
from ppo_toy.rewards import RewardModel
from ppo_toy.training import train
from ppo_toy.worlds import TokenSequence

N_TOKENS, BATCH, PROMPT, RESPONSE, EPOCHS = 50, 64, 4, 12, 4
CONFIG = GPTConfig(N_TOKENS, N_TOKENS, context=PROMPT + RESPONSE, width=64, layers=2, heads=2)
SETTINGS = {"learning_rate": 1e-4, "clip": 0.2, "beta": 0.1}


def new_policy() -> TinyGPT:
    """Returns the model that all begin with."""
    return TinyGPT(CONFIG, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def zeros_written(prompts: Tensor, responses: Tensor) -> Tensor:
    """The reward that is a rule: how often a response says token 0."""
    return (responses == 0).sum(dim=1).double()


def new_world(*, learned: bool = False) -> TokenSequence:
    """Returns 64 prompts and a reward: the rule, or a model of the policy's size."""
    prompts = torch.randint(N_TOKENS, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    vocabulary = [str(token) for token in range(N_TOKENS)]
    world = TokenSequence(vocabulary, RESPONSE, zeros_written, prompts=prompts)
    if not learned:
        return world
    reward = freeze(RewardModel.from_policy(new_policy(), world))
    return TokenSequence(vocabulary, RESPONSE, reward, prompts=prompts)


def iterate(world: TokenSequence, steps: int) -> None:
    """What a user of this package writes: so many iterations from a new policy."""
    policy = new_policy()
    train(
        policy,
        freeze(policy),
        world,
        steps=steps,
        batch_size=BATCH,
        epochs=EPOCHS,
        generator=torch.Generator().manual_seed(2),
        beta=SETTINGS["beta"],
        learning_rate=SETTINGS["learning_rate"],
        surrogate=Surrogate(clip=SETTINGS["clip"]),
    )
