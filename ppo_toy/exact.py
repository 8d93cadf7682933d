"""The referee: finite sums over every response, no sampling. Training never calls this module.

A world of more than `enumeration.MAX_RESPONSES` responses gets a ValueError that names its size.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppo_toy.advantages import reward_to_go
from ppo_toy.objectives import penalized_objective
from ppo_toy.policies import Policy, TabularPolicy, logsumexp_by
from ppo_toy.trajectories import (
    Trajectories,
    enumerate_all,
    families,
    log_probs,
    per_step_kl,
    score,
    step_log_probs,
)
from ppo_toy.worlds import prompt_weights


class Evaluation(NamedTuple):
    """What a policy is worth: floats, or one number for each run, [G].

    Attributes:
        objective: J = reward - beta * kl, in reward.
        reward: the expected reward.
        kl: the expected sum of per-step KLs to the reference, in nats per response.
    """

    objective: float | Tensor
    reward: float | Tensor
    kl: float | Tensor


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best policy, callable like any other, and what it is worth; units as in Evaluation."""

    objective: float
    reward: float
    kl: float
    policy: TabularPolicy


class Frontier(NamedTuple):
    """The most reward that any policy can have at a given KL: one point for each beta, [K].

    The slope at a point is its `beta`, in reward per nat; `kl` is in nats per response.
    """

    beta: np.ndarray
    kl: np.ndarray
    reward: np.ndarray


@torch.no_grad()
def evaluate(policy: Policy, reference: Policy, world: Any, beta: float | Tensor) -> Evaluation:
    """Returns J, R and KL of a policy.

    Args:
        policy: any policy; with runs, the result has their axis.
        reference: the frozen reference policy.
        world: a world small enough to list.
        beta: coefficient of the KL, reward per nat; one for each run if there are runs.

    Raises:
        ValueError: the world is too large, a reward is not finite, or the vocabularies differ.
    """
    rewards, kl, weights = _terms(policy, reference, world)
    numbers = (
        penalized_objective(rewards, kl, beta, weights),
        (weights * rewards).sum(dim=-1),
        (weights * kl.sum(dim=-1)).sum(dim=-1),
    )
    return Evaluation(*(n.item() if n.dim() == 0 else n for n in numbers))


def gradient(
    policy: nn.Module, reference: Policy, world: Any, beta: float | Tensor
) -> tuple[Tensor, ...]:
    """Returns the gradient of J, one tensor for each of `policy.parameters()`.

    The weights of an enumerated batch are probabilities that depend on the parameters, so
    differentiating the objective itself is enough. Runs share nothing, and each gets its own.

    Args:
        policy: a module; its parameters keep the `grad` they have.
        reference: the frozen reference policy.
        world: a world small enough to list.
        beta: as for `evaluate`.

    Raises:
        ValueError: as for `evaluate`.
    """
    rewards, kl, weights = _terms(policy, reference, world)
    objective = penalized_objective(rewards, kl, beta, weights).sum()
    return torch.autograd.grad(
        objective, tuple(policy.parameters()), allow_unused=True, materialize_grads=True
    )


@torch.no_grad()
def optimum(reference: Policy, world: Any, beta: float) -> Optimum:
    """Returns the best policy for one beta.

        pi*(y | x) = ref(y | x) * exp(R(x, y) / beta) / Z(x),  J* = E_x[beta * log Z(x)]

    Token by token, pi*(v | s) is the share of pi*'s mass below state s that goes through v. A
    state that pi* never reaches keeps the reference's distribution.

    Args:
        reference: the reference policy, without a leading axis of runs.
        world: a world small enough to list.
        beta: coefficient of the KL, reward per nat, > 0.

    Raises:
        ValueError: `beta` is not positive and finite, or as for `evaluate`.

    Source: Korbak, Perez and Buckley (2022), RL with KL penalties is better viewed as Bayesian
    inference; Rafailov et al. (2023), Direct Preference Optimization, eq. 4.
    """
    (beta,) = _checked_betas([beta])
    batch, rewards, log_ref = _listed(reference, world)
    objective, reward, kl = _best(log_ref, rewards, beta, world)
    parents, family = families(batch)
    otherwise = step_log_probs(reference, parents).double()[family]
    log_mass = (log_ref + rewards / beta).flatten()
    policy = TabularPolicy.of_responses(world, batch, log_mass, otherwise)
    return Optimum(objective, reward, kl, policy.requires_grad_(False))


@torch.no_grad()
def frontier(reference: Policy, world: Any, betas: Any) -> Frontier:
    """Returns KL and reward of the best policy for each beta; no policy has more at the same KL.

    Args:
        reference: the reference policy, without a leading axis of runs.
        world: a world small enough to list.
        betas: K coefficients, reward per nat, each > 0.

    Raises:
        ValueError: as for `optimum`.
    """
    betas = _checked_betas(betas)
    _, rewards, log_ref = _listed(reference, world)
    best = np.array([_best(log_ref, rewards, beta, world) for beta in betas])
    return Frontier(np.array(betas), kl=best[:, 2], reward=best[:, 1])


@torch.no_grad()
def values(policy: Policy, reference: Policy, world: Any, beta: float) -> Tensor:
    """Returns V of the state before each token of every trajectory that `enumerate_all` lists.

        V(s_t) = E[R - beta * sum_{t' >= t} KL_t' | s_t]

    Args:
        policy: any policy without a leading axis of runs.
        reference: the frozen reference policy.
        world: a world small enough to list.
        beta: coefficient of the KL, reward per nat.

    Returns:
        [B, T], in reward; 0 where masked or where the policy never comes.
    """
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    to_go = reward_to_go(score(world, batch), kl, beta, batch.mask) - beta * kl
    state = TabularPolicy(world).to(kl.device).rows(batch.prompts, batch.tokens)[:, :-1]
    weights = batch.weights.unsqueeze(1) * batch.mask
    of_state = torch.zeros(2, int(state.max()) + 1, dtype=weights.dtype, device=kl.device)
    of_state[0].index_add_(0, state.flatten(), weights.flatten())
    worth = torch.where(weights > 0, weights * to_go, 0)
    of_state[1].index_add_(0, state.flatten(), worth.flatten())
    return (of_state[1] / of_state[0])[state].nan_to_num(0).masked_fill(~batch.mask, 0)


@torch.no_grad()
def soft_values(reference: Policy, world: Any, beta: float) -> Tensor:
    """Returns V* of the state before each token of every trajectory that `enumerate_all` lists.

        V*(s) = beta * log E_ref[exp(R / beta) | s]

    It is the most that any policy can earn from s on, and satisfies the soft Bellman equation
    V*(s) = beta * log sum_v ref(v | s) * exp(V*(s v) / beta), with R after the last token.

    Args:
        reference: as for `optimum`.
        world: a world small enough to list.
        beta: coefficient of the KL, reward per nat, > 0.

    Returns:
        [B, T], in reward; 0 where masked or where the reference never comes.

    Source: Rafailov et al. (2024), From r to Q*, arXiv 2404.12358.
    """
    (beta,) = _checked_betas([beta])
    batch, rewards, log_ref = _listed(reference, world)
    state = TabularPolicy(world).to(rewards.device).rows(batch.prompts, batch.tokens)[:, :-1]
    n_states = int(state.max()) + 1
    log_mass = [
        logsumexp_by(x.view(-1, 1).expand(state.shape)[batch.mask], state[batch.mask], n_states)
        for x in (log_ref + rewards / beta, log_ref)
    ]
    return (beta * (log_mass[0] - log_mass[1]))[state].nan_to_num(0).masked_fill(~batch.mask, 0)


def _terms(policy: Policy, reference: Policy, world: Any) -> tuple[Tensor, Tensor, Tensor]:
    """R [B], KL [B, T] and weights [B] of every response that can occur."""
    batch = enumerate_all(policy, world)
    possible = (batch.weights > 0).reshape(-1, len(batch.prompts)).any(dim=0)
    batch = Trajectories(
        *(x[possible] for x in (batch.prompts, batch.responses, batch.mask)),
        weights=batch.weights[..., possible],
    )
    return score(world, batch), per_step_kl(policy, reference, batch), batch.weights


def _checked_betas(betas: Any) -> list[float]:
    betas = [float(beta) for beta in betas]
    for beta in betas:
        if not 0 < beta < float("inf"):
            raise ValueError(f"beta is {beta}; the best policy exists for 0 < beta < inf")
    return betas


def _listed(reference: Policy, world: Any) -> tuple[Trajectories, Tensor, Tensor]:
    """Every trajectory; R and log ref(y | x) as [n, N], one row for each prompt."""
    if getattr(reference, "runs", ()):
        raise ValueError(f"the reference has runs {reference.runs}; give one without that axis")
    batch = enumerate_all(reference, world)
    log_ref = log_probs(reference, batch).double().sum(dim=-1)
    shape = (len(world.prompts), -1)
    return batch, score(world, batch).double().view(shape), log_ref.view(shape)


def _best(log_ref: Tensor, rewards: Tensor, beta: float, world: Any) -> tuple[float, float, float]:
    """J*, R* and KL* for one beta."""
    log_z = (log_ref + rewards / beta).logsumexp(dim=1, keepdim=True)
    p = (log_ref + rewards / beta - log_z).exp()
    log_ratio = rewards / beta - log_z
    reward, kl = (p * rewards).sum(dim=1), (p * log_ratio).sum(dim=1)
    per_prompt = torch.stack([beta * log_z.squeeze(1), reward, kl], dim=1)
    return tuple((prompt_weights(world).to(log_ref.device) @ per_prompt).tolist())
