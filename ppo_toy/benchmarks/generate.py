"""Sampling from a tiny GPT against transformers' `generate`, weight for weight the same model.

    pip install transformers==5.23.0

Both keep keys and values and draw 12 tokens to each of 64 prompts. What the library does more is
taken away one thing after another: a filter that keeps the 50 likeliest tokens, which are all that
there are, and GPT-2's approximate GELU in eight operations. In the last line both do the same
arithmetic, and what is left is the cost of the library's steps between.
"""

from typing import Any

import torch

from ppo_toy.benchmarks.peers import PAD, gpt2
from ppo_toy.benchmarks.timing import compare
from ppo_toy.benchmarks.work import BATCH, PROMPT, RESPONSE, new_policy, new_world
from ppo_toy.gpt import TinyGPT
from ppo_toy.trajectories import sample
from ppo_toy.worlds import TokenSequence

PACKAGES = ("transformers==5.23.0",)
PAIRS = 150  # milliseconds are disturbed easily, a median of many is not


def main() -> None:
    """Prints one ratio for each variant."""
    policy, world = new_policy(), new_world()
    generator = torch.Generator().manual_seed(0)
    for name, activation, options in (
        ("generate / sample", "gelu_new", {}),
        ("generate without its filter / sample", "gelu_new", {"top_k": 0}),
        ("generate without its filter, GELU in one / sample", "gelu", {"top_k": 0}),
    ):
        model = gpt2(policy, activation)

        def theirs(model: Any = model, options: Any = options) -> torch.Tensor:
            prompts = world.prompts
            return model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True,
                max_new_tokens=RESPONSE, pad_token_id=PAD, **options)  # fmt: skip

        def ours() -> torch.Tensor:
            return sample(policy, world, BATCH, generator=generator).responses

        assert theirs()[:, PROMPT:].shape == ours().shape
        compare(name, theirs, ours, PAIRS)
    print(f"largest difference of the last two's logits: {_difference(model, policy, world):.0e}")


@torch.no_grad()
def _difference(model: Any, policy: TinyGPT, world: TokenSequence) -> float:
    ours, _ = policy.next_logits(world.prompts, world.prompts[:, :0])
    return (model(world.prompts).logits[:, -1] - ours).abs().max().item()
