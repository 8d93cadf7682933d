"""How much better a token was than expected: returns, baselines, GAE, whitening.

Shapes: B trajectories, T tokens; `mask` [B, T] is True where a token counts. Any leading axis of
runs goes before B. Everything returned is [B, T], in reward if it is not whitened, and 0 where the
mask is False. Shapes that do not fit and a negative `beta` are a ValueError that names them.
"""

import torch
from torch import Tensor

from ppo_toy.axes import charge, check_range, takes


@takes(rewards="B", kl="B T", beta="G >= 0", mask="B T")
def reward_to_go(rewards: Tensor, kl: Tensor, beta: float | Tensor, mask: Tensor) -> Tensor:
    """Returns what each token is answerable for: the reward, less the KL of later steps.

        G_t = R - beta * sum_{t' > t} KL_t'

    KL_t itself is a function of the state in which token t is chosen, so no choice of the token
    changes it; the surrogate takes its derivative separately.

    Args:
        rewards: R of each trajectory, [B], in reward.
        kl: KL(policy || reference) at each step, 0 where masked, [B, T], in nats.
        beta: coefficient of the KL, reward per nat; one for each run if there are runs.
        mask: [B, T].

    Source: Yao et al. (2026), arXiv 2601.10201, whose future-KL return this is, with the exact
    KL of a step in place of the sampled log-ratio.
    """
    kl = kl.masked_fill(~mask, 0)
    from_here_on = kl.flip(-1).cumsum(dim=-1).flip(-1)
    later = torch.cat([from_here_on[..., 1:], torch.zeros_like(kl[..., :1])], dim=-1)
    return (rewards.unsqueeze(-1) - charge(beta, later, axes=2)).masked_fill(~mask, 0)


@takes(rewards="B", kl="B T", beta="G >= 0", mask="B T")
def token_rewards(rewards: Tensor, kl: Tensor, beta: float | Tensor, mask: Tensor) -> Tensor:
    """Returns what each step adds: its KL penalty, and R with the last token.

        r_t = -beta * KL_t + (R if t is the last token else 0)

    With the log-ratio of the token drawn for KL_t, `gae` works on the penalised objective as on any
    other sum of rewards. With exact KLs it does not: their own derivative is missing (lesson 05).

    Args:
        rewards: R of each trajectory, [B], in reward.
        kl: KL(policy || reference) at each step or an estimate of it, [B, T], in nats.
        beta: coefficient of the KL, reward per nat; one for each run if there are runs.
        mask: [B, T], True from the first token to the last.
    """
    is_last = mask & ~torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)
    return (is_last * rewards.unsqueeze(-1) - charge(beta, kl, axes=2)).masked_fill(~mask, 0)


@takes(returns="B T", mask="B T")
def leave_one_out(returns: Tensor, mask: Tensor) -> Tensor:
    """Returns each return less the mean return of the other trajectories at the same step.

    For trajectories that were drawn and weigh the same, as `sample` gives them: then the mean does
    not depend on the trajectory's own tokens, and the expected gradient stays. The list of
    `enumerate_all`, with its unequal weights, would get another gradient. Where no other trajectory
    reaches the step, the baseline is 0.

    Args:
        returns: [B, T], in reward.
        mask: [B, T].

    Source: Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a Baseline for Free!
    """
    returns = returns.masked_fill(~mask, 0)
    others = mask.sum(dim=-2, keepdim=True) - 1
    mean_of_others = (returns.sum(dim=-2, keepdim=True) - returns) / others.clamp(min=1)
    return (returns - mean_of_others).masked_fill(~mask, 0)


@takes(token_rewards="B T", values="B T", mask="B T", next_values="B T")
def gae(
    token_rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    next_values: Tensor | None = None,
) -> Tensor:
    """Returns generalized advantage estimates.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = sum_{k >= 0} (gamma * lam)^k * delta_{t+k}

    The sum stops where the mask is False or the row ends. After that step comes a state of value
    0, the end of the response, unless `next_values` says otherwise: an episode that was cut short
    has a future, one that ended has none. A row may so hold several episodes, each followed by a
    masked step.

    Args:
        token_rewards: r_t, [B, T], in reward.
        values: V of the state before each token, [B, T], in reward.
        mask: [B, T].
        gamma: discount, 0 to 1. The penalised objective has gamma = 1.
        lam: 0 for the one-step error, 1 for the whole return less the value.
        next_values: V of the state after each token, [B, T], 0 where it is terminal.

    Raises:
        ValueError: `gamma` or `lam` is outside [0, 1].

    Source: Schulman et al. (2015), High-Dimensional Continuous Control Using Generalized
    Advantage Estimation, eq. 16.
    """
    check_range("gamma", gamma, "[0, 1]")
    check_range("lam", lam, "[0, 1]")
    if next_values is None:
        counted = values.masked_fill(~mask, 0)
        next_values = torch.cat([counted[..., 1:], torch.zeros_like(counted[..., :1])], dim=-1)
    deltas = (token_rewards + gamma * next_values - values).masked_fill(~mask, 0)
    advantage = torch.zeros_like(deltas[..., 0])
    advantages = []
    for delta, counts in zip(*(x.unbind(dim=-1)[::-1] for x in (deltas, mask)), strict=True):
        advantage = (delta + gamma * lam * advantage).masked_fill(~counts, 0)
        advantages.append(advantage)
    return torch.stack(advantages[::-1], dim=-1)


@takes(x="B T", mask="B T")
def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Returns x shifted and scaled to mean 0 and variance 1 over the entries that count.

    Where the penalty stands outside x, as in `policy_gradient_surrogate`, dividing x by its spread
    multiplies the effective beta by that spread. Entries that are all equal come out as 0, a
    run without any as well.

    Args:
        x: [B, T].
        mask: [B, T].

    Raises:
        ValueError: the mask leaves nothing in.

    Source: Huang et al. (2024), The N Implementation Details of RLHF with PPO, policy-training
    detail 9: the variance is that of the batch itself (divided by the count), plus 1e-8.
    """
    if not mask.any():
        raise ValueError("the mask is False everywhere; there is nothing to whiten")
    count = mask.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    centred = x.masked_fill(~mask, 0)
    for _ in range(2):  # the second time takes away the rounding error of the first mean
        mean = centred.sum(dim=(-2, -1), keepdim=True) / count
        centred = (centred - mean).masked_fill(~mask, 0)
    variance = centred.square().sum(dim=(-2, -1), keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-8)
