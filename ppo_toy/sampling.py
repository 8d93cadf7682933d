"""Drawing: a token from logits, and a response token by token.

Shapes: B responses, P prompt tokens, T response tokens, V vocabulary; a policy with a leading axis
of runs puts it before B.
"""

from typing import Any

import torch
from torch import Tensor

from ppo_toy.contract import Policy, check_logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Returns one token for each distribution, by inverting its cumulative sum.

    The same numbers give the same tokens on every device, and a token with probability 0 is never
    drawn.

    Args:
        logits: [..., V], in nats; one distribution [V] may serve for all.
        uniforms: numbers from [0, 1), [...].
    """
    return _invert(_cumulative(logits), uniforms.to(logits.device))


@torch.inference_mode()
def roll_out(
    policy: Policy, world: Any, prompts: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes a response to each prompt, one token of all of them at a time.

    Args:
        policy: asked once for each token; see `trajectories.sample`.
        world: gives the vocabulary and the end token.
        prompts: [B, P] tokens.
        uniforms: a number from [0, 1) for each token, [T, B], in double precision.

    Returns:
        The responses and their mask, [B, T] each; after the end token only end tokens follow. Both
        are made in inference mode, and a copy of them may enter a gradient.

    Raises:
        ValueError: the policy's logits have the wrong shape, or nothing can be drawn from them.
    """
    responses = prompts[..., :0]
    going = torch.ones_like(uniforms[0], dtype=torch.bool)
    mask, totals, cache = [], [], None
    for uniform in uniforms:
        logits, cache = _next_logits(policy, prompts, responses, cache, len(world.vocabulary))
        cumulative = _cumulative(logits)
        totals.append(cumulative[..., -1])
        token = _invert(cumulative, uniform)
        mask.append(going)
        if world.end_token is not None:
            token = token.where(going, world.end_token)
            going = token != world.end_token
        responses = torch.cat([responses, token.unsqueeze(-1)], dim=-1)
    _check(torch.stack(totals))
    return responses, torch.stack(mask, dim=-1)


def _cumulative(logits: Tensor) -> Tensor:
    return logits.double().softmax(dim=-1).cumsum(dim=-1)


def _invert(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    # The last sum is 1 up to rounding; below it stays below it when multiplied by u < 1.
    wanted = (uniforms * cumulative[..., -1]).unsqueeze(-1)
    return (wanted >= cumulative[..., :-1]).sum(dim=-1)


def _check(totals: Tensor) -> None:
    """Checks that there was something to draw from; totals: last cumulative sums, [T, B]."""
    bad = totals.isnan().flatten(start_dim=1).any(dim=1)
    if bad.any():
        raise ValueError(
            f"the policy's logits for token {bad.nonzero()[0].item()} hold NaN or inf, or no token "
            "has any probability"
        )


def _next_logits(
    policy: Policy, prompts: Tensor, responses: Tensor, cache: Any, n_tokens: int
) -> tuple[Tensor, Any]:
    """Logits of the next token, [B, V], and what the policy wants to see again after it."""
    *lead, length = responses.shape
    if hasattr(policy, "next_logits"):
        logits, cache = policy.next_logits(prompts, responses, cache)
        check_logits("policy", logits, lead, n_tokens)
        return logits, cache
    logits = policy(prompts, responses)
    check_logits("policy", logits, [*lead, length + 1], n_tokens)
    return logits[..., -1, :], cache
