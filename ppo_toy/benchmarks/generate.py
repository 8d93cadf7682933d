"""Sampling from a tiny GPT against transformers' `generate`, weight for weight the same model.

    pip install transformers==5.23.0

Both keep keys and values and draw 12 tokens to each of 64 prompts. What the library does more is
taken away one thing after another: a filter that keeps the 50 likeliest tokens, which are all that
there are, and GPT-2's approximate GELU in eight operations. In the last line both do the same
arithmetic, and what is left is the cost of the library's steps between. On a GPU, models as small
as these wait for its operations to be called one after another, and the ratio says little of large
ones.
"""

import copy
from typing import Any

import torch

from ppo_toy.benchmarks.peers import PAD, gpt2
from ppo_toy.benchmarks.timing import compare
from ppo_toy.benchmarks.work import BATCH, PROMPT, RESPONSE, new_policy, new_world
from ppo_toy.gpt import TinyGPT
from ppo_toy.policies import device_of
from ppo_toy.trajectories import sample
from ppo_toy.worlds import TokenSequence

PACKAGES = ("transformers==5.23.0",)
PAIRS = 150  # milliseconds are disturbed easily, a median of many is not


def main(device: str = "cpu") -> None:
    """Prints one ratio for each variant, tokens a second, and whether devices draw alike."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here")
    policy, world = new_policy().to(device), new_world()
    prompts = world.prompts.to(device)
    generator = torch.Generator().manual_seed(0)
    for name, activation, options in (
        ("generate / sample", "gelu_new", {}),
        ("generate without its filter / sample", "gelu_new", {"top_k": 0}),
        ("generate without its filter, GELU in one / sample", "gelu", {"top_k": 0}),
    ):
        model = gpt2(policy, activation).to(device)

        def theirs(model: Any = model, options: Any = options) -> torch.Tensor:
            said = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True,
                max_new_tokens=RESPONSE, pad_token_id=PAD, **options)  # fmt: skip
            return said[:, PROMPT:].cpu()  # which waits until a GPU is done

        def ours() -> torch.Tensor:
            return sample(policy, world, BATCH, generator=generator).responses.cpu()

        assert theirs().shape == ours().shape
        both = compare(name, theirs, ours, PAIRS)
    rates = (f"{1000 * BATCH * RESPONSE / ms:,.0f}" for ms in both)
    print("tokens a second in the last line:", " / ".join(rates))
    print(f"largest difference of the last two's logits: {_difference(model, policy, prompts):.0e}")
    print(f"tokens drawn on {device} as on the CPU, in double precision: {_alike(policy, world)}")


@torch.no_grad()
def _difference(model: Any, policy: TinyGPT, prompts: torch.Tensor) -> float:
    ours, _ = policy.next_logits(prompts, prompts[:, :0])
    return (model(prompts).logits[:, -1] - ours).abs().max().item()


def _alike(policy: TinyGPT, world: TokenSequence) -> str:
    """How many tokens of one batch the same uniforms give on the policy's device and the CPU."""
    there, here = (copy.deepcopy(policy).double().to(x) for x in (device_of(policy), "cpu"))
    said = [
        sample(x, world, BATCH, generator=torch.Generator().manual_seed(1)).responses.cpu()
        for x in (there, here)
    ]
    return f"{(said[0] == said[1]).sum()} of {said[0].numel()}"
