"""Small problems that several tests share."""

import torch
from torch import Tensor

from ppo_toy.policies import TabularPolicy
from ppo_toy.worlds import TokenSequence


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_world(
    seed: int, *, prompts: int = 2, tokens: int = 3, length: int = 3, end_token: int | None = None
) -> TokenSequence:
    table = random_logits(seed, prompts, *[tokens] * length)
    return TokenSequence.from_table(table, end_token=end_token)


def random_policies(world: TokenSequence, seed: int) -> tuple[TabularPolicy, TabularPolicy]:
    """A policy and a reference that differ from each other and from uniform."""
    numbers = generator(seed)
    return (
        TabularPolicy.random(world, generator=numbers),
        TabularPolicy.random(world, generator=numbers),
    )
