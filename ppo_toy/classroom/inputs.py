"""Random inputs of the exercises' cases: normal and uniform numbers, masks of responses."""

import torch
from torch import Generator, Tensor


def normal(*shape: int, generator: Generator) -> Tensor:
    """Returns standard normal numbers in double precision, [*shape]."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(low: float, high: float, generator: Generator) -> float:
    """Returns one number that is drawn uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def random_mask(*lengths: int, generator: Generator) -> Tensor:
    """Returns one row of each length, in random order; padding stands behind.

    Args:
        lengths: how many tokens count in each response; B numbers, of which T is the largest.
        generator: on the CPU.

    Returns:
        True where a token counts, [B, T].
    """
    shuffled = torch.tensor(lengths)[torch.randperm(len(lengths), generator=generator)]
    return torch.arange(max(lengths)) < shuffled[:, None]
