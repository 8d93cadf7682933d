"""What is maximised: the penalised objective, and surrogates that have the right gradient.

A surrogate is a number whose gradient is wanted and whose value is not. Each docstring says what
is differentiated; everything else is taken as a constant and needs no `detach` by the caller.

Shapes: B trajectories, T tokens; any leading axis of runs goes before B, and `beta` is then a
float or one number for each run, [G]. Shapes that do not fit, a negative `beta` and a `clip` that
is not positive are a ValueError that names them.
"""

import math

import torch
from torch import Tensor

from ppo_toy.axes import charge, per_run, takes


@takes(rewards="B", kl="B T", beta="G >= 0", weights="B")
def penalized_objective(
    rewards: Tensor, kl: Tensor, beta: float | Tensor, weights: Tensor
) -> Tensor:
    """Returns J, the expected reward less beta times the expected sum of per-step KLs.

        J = sum_i weights_i * (R_i - beta * sum_t KL_it)

    Differentiated in rewards, kl and weights. With enumerated weights, which are probabilities, its
    gradient is the gradient of J. With sampled weights, which are constants, it is
    -beta * E[sum_t grad KL_t] whatever the reward: use `policy_gradient_surrogate` there.

    Args:
        rewards: R of each trajectory, [B], in reward.
        kl: KL(policy || reference) at each step, 0 where masked, [B, T], in nats.
        beta: coefficient of the KL, reward per nat, >= 0; where it is 0, J is the expected reward.
        weights: of the trajectories, summing to 1, [B].

    Returns:
        J in reward, a scalar; [G] with runs.

    Source: Ziegler et al. (2019), section 2, with the exact KL of each step in place of the
    log-ratio of the tokens drawn.
    """
    return (weights * (rewards - charge(beta, kl.sum(dim=-1), axes=1))).sum(dim=-1)


@takes(log_probs="B T", kl="B T", advantages="B T", beta="G >= 0", weights="B")
def policy_gradient_surrogate(
    log_probs: Tensor, kl: Tensor, advantages: Tensor, beta: float | Tensor, weights: Tensor
) -> Tensor:
    """Returns a number whose gradient is, on average over samples, the gradient of J.

        sum_i weights_i * sum_t (log pi(a_it | s_it) * A_it - beta * KL_it)

    The first term moves probability to tokens that earn more, the second lowers the KL of the
    states where they are chosen. A_t must hold the KL of later steps, as `reward_to_go` does:
    a token is answerable for where it leads. Any baseline may be taken from it.

    `log_probs` and `kl` are differentiated; `advantages`, `beta` and `weights` are constants.

    Args:
        log_probs: of the response tokens, 0 where masked, [B, T], in nats.
        kl: KL(policy || reference) at each step, 0 where masked, [B, T], in nats.
        advantages: [B, T], in reward.
        beta: coefficient of the KL, reward per nat.
        weights: of the trajectories, [B].

    Returns:
        A scalar; [G] with runs.

    Source: Sutton and Barto (2018), section 13.3, for the first term; the second is the
    derivative of the KL itself, which depends on the policy too.
    """
    gain = (log_probs * advantages.detach()).sum(dim=-1)
    return (weights.detach() * (gain - charge(beta, kl.sum(dim=-1), axes=1))).sum(dim=-1)


@takes(log_probs="* B T", old_log_probs="* B T", advantages="* B T", clip="G > 0")
def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip: float | Tensor
) -> Tensor:
    """Returns PPO's clipped surrogate of each token.

        ratio = pi(a | s) / pi_old(a | s)
        min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A)

    The caller forms the expectation, over the tokens that count. `log_probs` is differentiated;
    `old_log_probs` and `advantages` are constants.

    Args:
        log_probs: of the tokens under the policy, [B, T], in nats.
        old_log_probs: under the policy that drew them, [B, T], in nats.
        advantages: [B, T], in reward.
        clip: epsilon, > 0, or one for each run, [G]; `math.inf` leaves the ratio free.

    Returns:
        [B, T], in reward, to be maximised.

    Source: Schulman et al. (2017), eq. 7; eq. 6 with `clip=math.inf`.
    """
    advantages = advantages.detach()
    log_ratio = log_probs - old_log_probs.detach()
    if isinstance(clip, Tensor):
        clip = per_run(clip, log_ratio, axes=2)
    elif clip == math.inf:
        return _reweighted(log_ratio, advantages)
    with torch.no_grad():
        ratio = log_ratio.exp()
        edge = ratio.clamp(1 - clip, 1 + clip)
        beyond = ratio * advantages > edge * advantages
    # Replaced before the exponential, whose gradient past the edge could be 0 * inf.
    within = _reweighted(log_ratio.masked_fill(beyond, 0), advantages)
    return torch.where(beyond, edge * advantages, within)


@takes(log_probs="* B T", old_log_probs="* B T", advantages="* B T", kl_old="* B T", beta="G >= 0")
def kl_penalty_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    kl_old: Tensor,
    beta: float | Tensor,
) -> Tensor:
    """Returns PPO's KL-penalised surrogate of each token.

        ratio * A - beta * KL(pi_old || pi)

    This KL is to the policy that drew the tokens, not to the reference: it limits the step and
    leaves the optimum where it was. `log_probs` and `kl_old` are differentiated;
    `old_log_probs`, `advantages` and `beta` are constants.

    Args:
        log_probs: of the tokens under the policy, [B, T], in nats.
        old_log_probs: under the policy that drew them, [B, T], in nats.
        advantages: [B, T], in reward.
        kl_old: KL(pi_old || pi) at each step, [B, T], in nats.
        beta: beta_old, its coefficient, reward per nat, >= 0.

    Returns:
        [B, T], in reward, to be maximised.

    Source: Schulman et al. (2017), eq. 8.
    """
    gain = _reweighted(log_probs - old_log_probs.detach(), advantages.detach())
    return gain - charge(beta, kl_old, axes=2)


@takes(values="B T", returns="B T", mask="B T", weights="B")
def value_loss(values: Tensor, returns: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted squared error of a value function, to be minimised.

        sum_i weights_i * sum_t (V_it - G_it)^2 / 2

    Halved, so that the gradient is the error itself, and summed over the steps of a trajectory.
    `values` is differentiated; the others are constants.

    Args:
        values: predicted returns, [B, T], in reward.
        returns: what was observed, [B, T], in reward.
        mask: [B, T], True where a step counts.
        weights: of the trajectories, [B].

    Returns:
        A scalar in reward squared; [G] with runs.

    Source: Schulman et al. (2017), eq. 9, the term L^VF, which is neither halved nor summed.
    """
    error = (values - returns.detach()).masked_fill(~mask, 0)
    return (weights.detach() * error.square().sum(dim=-1) / 2).sum(dim=-1)


def _reweighted(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """The ratio times the advantage; 0 where that is 0, however large the ratio."""
    return log_ratio.masked_fill(advantages == 0, 0).exp() * advantages
