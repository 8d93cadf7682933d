"""The list of every response of a world, and how long it may be."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ppo_toy.contract import known

# Each listed response costs T * V logits: 2**27 of them are a gigabyte in double precision, and a
# policy holds several such tensors at a time.
MAX_RESPONSES = 2**20
MAX_LOGITS = 2**27


def list_responses(world: Any) -> tuple[Tensor, Tensor]:
    """Returns every response to one prompt, [N, T], and the mask of its tokens, [N, T].

    Both are kept for the next call: copy before you write.

    Raises:
        ValueError: over all prompts there are more than `MAX_RESPONSES`.
    """
    world = known(world)
    n_tokens, length, end = len(world.vocabulary), world.response_length, world.end_token
    count, others = n_tokens**length, n_tokens - 1
    if end is not None:  # 1 + (V - 1) + ... + (V - 1)^T: those that end at each token, or never
        count = (others ** (length + 1) - 1) // (others - 1) if others > 1 else length + 1
    count *= len(world.prompts)
    if count > MAX_RESPONSES or count * length * n_tokens > MAX_LOGITS:
        size = f"{count:,}" if count < 10**15 else f"about 10^{math.log10(count):.0f}"
        raise ValueError(
            f"this world has {size} responses ({len(world.prompts)} prompts, {n_tokens} tokens, "
            f"length {length}); at most {MAX_RESPONSES:,} are listed, and {MAX_LOGITS:,} logits, "
            "because each costs memory and time. Sample instead, or shorten the responses."
        )
    return _listed(n_tokens, length, end)


@functools.lru_cache(maxsize=8)
def _listed(n_tokens: int, length: int, end: int | None) -> tuple[Tensor, Tensor]:
    responses = torch.zeros(1, 0, dtype=torch.long)
    mask = torch.zeros(1, 0, dtype=torch.bool)
    going = torch.ones(1, dtype=torch.bool)
    for _ in range(length):
        # A finished response has one continuation, padding; any other has one for each token.
        repeats = torch.where(going, n_tokens, 1)
        parent = torch.arange(len(going)).repeat_interleave(repeats)
        first_child = repeats.cumsum(dim=0) - repeats
        token = torch.arange(len(parent)) - first_child[parent]
        if end is not None:
            token = token.where(going[parent], end)
        responses = torch.cat([responses[parent], token.unsqueeze(1)], dim=1)
        mask = torch.cat([mask[parent], going[parent].unsqueeze(1)], dim=1)
        going = going[parent] if end is None else going[parent] & (token != end)
    return responses, mask
