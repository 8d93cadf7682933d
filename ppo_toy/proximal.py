"""What stands in for J on one batch: its first gradient is that of J, on average.

Several updates from a batch need more than the nine steps: a ratio to the policy that drew it, a
clip, and a second anchor, KL(old || policy), with a coefficient of its own, `beta_old`.

Departures from Schulman et al. (2017): the penalty to the reference; the exact KL of a step in
place of a sampled one; leave-one-out baselines in place of a value function; gamma = 1; sums over
the tokens of a response and not means; each epoch is one minibatch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppo_toy.advantages import leave_one_out, reward_to_go
from ppo_toy.axes import check_is
from ppo_toy.contract import Policy
from ppo_toy.kl import masked_kl
from ppo_toy.kl_controllers import Controller, fixed
from ppo_toy.objectives import clipped_surrogate, penalized_objective
from ppo_toy.trajectories import Trajectories, of_tokens, step_log_probs


@dataclass(frozen=True, eq=False)
class Surrogate:
    """How the KL enters the gradient, and how far one batch may carry.

    Args:
        penalty: "exact": the KL of each state, form (A) of lesson 03. "sampled": the log-ratio of
            the response drawn, taken from its reward, form (B) over all tokens; on the way that
            lesson 03b takes it is never noisier, and for one prompt noiseless at the best policy.
        clip: epsilon, > 0, one for each run or for all; `math.inf` for none.
        beta_old: coefficient of KL(old || policy), >= 0. It has no effect in the first epoch,
            where that KL is 0 and its gradient too.
        controller_old: from (beta_old, kl_old) to the next beta_old, once a step.
    """

    penalty: str = "exact"
    clip: float | Tensor = math.inf
    beta_old: float | Tensor = 0.0
    controller_old: Controller = fixed

    def __post_init__(self) -> None:
        """Looks at the form of the penalty."""
        if self.penalty not in ("exact", "sampled"):
            raise ValueError(f'penalty is {self.penalty!r}; it is "exact" or "sampled"')
        check_is("controller_old", self.controller_old, Callable)


class Look(NamedTuple):
    """What a policy says of a batch: log-probabilities [B, T, V], KL to the reference [B, T]."""

    log_pi: Tensor
    kl: Tensor


def look(policy: Policy, log_ref: Tensor, batch: Trajectories) -> Look:
    """Asks the policy; `log_ref` is what the reference says, [B, T, V]."""
    log_pi = step_log_probs(policy, batch)
    return Look(log_pi, masked_kl(log_pi, log_ref, batch.mask))


def surrogates(
    policy: Policy,
    first: Look,
    log_ref: Tensor,
    batch: Trajectories,
    rewards: Tensor,
    *,
    how: Surrogate,
    betas: tuple[Tensor, Tensor],
    epochs: int,
) -> Iterator[Tensor]:
    """Yields one number to be maximised for each epoch, [G] with runs; updates come in between.

    `first` is what the policy said when the batch was drawn; it is asked again in every epoch but
    the first. `log_ref` [B, T, V] is the reference's answer, `betas` are `beta` and `beta_old`.
    """
    (beta, beta_old), exact = betas, how.penalty == "exact"
    log_old = first.log_pi.detach()
    old_log_probs = of_tokens(log_old, batch)
    if exact:
        returns = reward_to_go(rewards, first.kl.detach(), beta, batch.mask)
    for epoch in range(epochs):
        log_pi, kl = look(policy, log_ref, batch) if epoch else first
        log_probs = of_tokens(log_pi, batch)
        if not exact:
            log_ratio = (log_probs - of_tokens(log_ref, batch)).detach().sum(dim=-1)
            returns = (rewards - beta[..., None] * log_ratio).unsqueeze(-1) * batch.mask
        advantages = leave_one_out(returns, batch.mask)
        gain = clipped_surrogate(log_probs, old_log_probs, advantages, clip=how.clip)
        if beta_old.any():
            gain = gain - beta_old[..., None, None] * masked_kl(log_old, log_pi, batch.mask)
        direct = kl if exact else torch.zeros_like(kl)
        yield penalized_objective(gain.sum(dim=-1), direct, beta, batch.weights)


@torch.no_grad()
def moved(policy: Policy, first: Look, batch: Trajectories, epochs: int) -> Tensor:
    """KL(old || policy) after the updates, in nats per response; NaN after a single one."""
    if epochs == 1:
        return torch.full_like(batch.weights[..., 0], math.nan)
    kl_old = masked_kl(first.log_pi.detach(), step_log_probs(policy, batch), batch.mask)
    return (batch.weights * kl_old.sum(dim=-1)).sum(dim=-1)


@torch.no_grad()
def at_rest(policy: Policy, batch: Trajectories) -> Tensor:
    """What a policy says of a batch, log-probabilities [B, T, V], without gradient."""
    return step_log_probs(policy, batch)


def check_at_rest(reference: Policy, log_ref: Tensor, batch: Trajectories) -> None:
    """Raises a ValueError if the reference says anything but `log_ref` of the batch by now."""
    if not torch.equal(at_rest(reference, batch).nan_to_num(), log_ref.nan_to_num()):
        raise ValueError(
            "the reference moved when the policy was updated, so the KL to it measures nothing; "
            "give a copy, as policies.freeze(policy) makes"
        )


def learns(policy: nn.Module) -> bool:
    """Whether the last gradient has moved the policy."""
    return any(x.grad is not None and bool(x.grad.any()) for x in policy.parameters())
