"""The referee: finite sums over every response, no sampling.

Tests and lessons call this module; training never does. A world of more than
`enumeration.MAX_RESPONSES` responses gets a ValueError that names its size.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppo_toy.objectives import penalized_objective
from ppo_toy.policies import Policy, TabularPolicy
from ppo_toy.trajectories import (
    Trajectories,
    enumerate_all,
    log_probs,
    per_step_kl,
    score,
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
    """The best policy and what it is worth.

    Attributes:
        objective: J* = beta * E[log Z], in reward.
        reward: its expected reward.
        kl: its expected KL to the reference, in nats per response.
        policy: the best policy, callable like any other.
    """

    objective: float
    reward: float
    kl: float
    policy: TabularPolicy


class Frontier(NamedTuple):
    """The most reward that any policy can have at a given KL: one point for each beta.

    Attributes:
        beta: [K], reward per nat; the slope of the frontier at the point.
        kl: [K], nats per response.
        reward: [K].
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
    batch = enumerate_all(policy, world)
    rewards = score(world, batch)
    kl = per_step_kl(policy, reference, batch)
    numbers = (
        penalized_objective(rewards, kl, beta, batch.weights),
        penalized_objective(rewards, kl, 0.0, batch.weights),
        -penalized_objective(torch.zeros_like(rewards), kl, 1.0, batch.weights),
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
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    objective = penalized_objective(score(world, batch), kl, beta, batch.weights)
    return torch.autograd.grad(objective.sum(), tuple(policy.parameters()))


@torch.no_grad()
def optimum(reference: Policy, world: Any, beta: float) -> Optimum:
    """Returns the best policy for one beta.

        pi*(y | x) = ref(y | x) * exp(R(x, y) / beta) / Z(x),  J* = E_x[beta * log Z(x)]

    Token by token, pi*(v | s) is the share of pi*'s mass below state s that goes through v. A
    state that pi* never reaches keeps the reference's logits.

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
    log_tilted = (log_ref + rewards / beta).flatten()
    policy = _policy_with_mass(log_tilted, batch, reference, world)
    return Optimum(objective, reward, kl, policy)


@torch.no_grad()
def frontier(reference: Policy, world: Any, betas: Any) -> Frontier:
    """Returns KL and reward of the best policy for each beta.

    No policy has more reward at the same KL; the curve is concave and its slope is beta.

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
    per_prompt = torch.cat(
        [
            beta * log_z,
            (p * rewards).sum(dim=1, keepdim=True),
            (p * (rewards / beta - log_z)).sum(dim=1, keepdim=True),
        ],
        dim=1,
    )
    return tuple((prompt_weights(world).to(log_ref.device) @ per_prompt).tolist())


def _policy_with_mass(
    log_mass: Tensor, batch: Trajectories, reference: Policy, world: Any
) -> TabularPolicy:
    """The policy that gives each listed response mass in proportion to exp(log_mass), [B]."""
    policy = TabularPolicy(world).to(log_mass.device)
    rows = policy.rows(batch.prompts, batch.tokens)[:, :-1][batch.mask]
    entries = rows * policy.n_tokens + batch.tokens[batch.mask]
    mass = log_mass.unsqueeze(1).expand(batch.mask.shape)[batch.mask]
    # A logsumexp over the responses that go through each entry of the table.
    largest = torch.full_like(policy.logits.flatten(), -torch.inf)
    largest = largest.scatter_reduce(0, entries, mass, "amax")
    shift = largest.where(largest.isfinite(), 0)
    total = torch.zeros_like(largest).index_add(0, entries, (mass - shift[entries]).exp())
    table = (total.log() + shift).view_as(policy.logits)
    policy.logits[rows] = reference(batch.prompts, batch.tokens)[:, :-1][batch.mask].double()
    reached = table.isfinite().any(dim=1)
    policy.logits[reached] = table[reached]
    return policy.requires_grad_(False)
