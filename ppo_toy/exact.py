"""The referee: finite sums over every response, no sampling. Training never calls this module.

Too large a world, no world, no policy for it and no coefficient get a ValueError that names it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppo_toy.advantages import reward_to_go
from ppo_toy.axes import charge, check_range
from ppo_toy.contract import Policy, check_learns, prompt_weights
from ppo_toy.objectives import penalized_objective
from ppo_toy.policies import SMALL, TabularPolicy, log_mean_exp_by
from ppo_toy.trajectories import (
    Trajectories,
    enumerate_all,
    families,
    of_tokens,
    per_step_kl,
    score,
    step_log_probs,
)


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
    """
    _check_runs(getattr(policy, "runs", ()), reference=reference, beta=beta)
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

    Arguments and errors are those of `evaluate`; the policy is a module, whose parameters keep the
    `grad` they have.
    """
    _check_runs(getattr(policy, "runs", ()), reference=reference, beta=beta)
    rewards, kl, weights = _terms(policy, reference, world)
    kl = kl if torch.as_tensor(beta).any() else kl.detach()  # which may be infinite
    objective = penalized_objective(rewards, kl, beta, weights).sum()
    check_learns(objective)
    learning = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(objective, learning, allow_unused=True, materialize_grads=True)
    of = dict(zip(learning, found, strict=True))
    return tuple(of.get(p, torch.zeros_like(p)) for p in policy.parameters())


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
    (beta,), batch, rewards, log_ref, otherwise = _listed(reference, world, [beta])
    objective, reward, kl = _best(log_ref, rewards, beta, world)
    log_mass = (log_ref + _behind(log_ref, rewards)[0] / beta).flatten()
    policy = TabularPolicy.of_responses(world, batch, log_mass, otherwise.double())
    return Optimum(objective, reward, kl, policy.requires_grad_(False))


@torch.no_grad()
def frontier(reference: Policy, world: Any, betas: Any) -> Frontier:
    """Returns KL and reward of the best policy for each beta; no policy has more at the same KL.

    Arguments and errors are those of `optimum`, with K coefficients in place of one.
    """
    betas, _, rewards, log_ref, _ = _listed(reference, world, betas)
    best = np.array([_best(log_ref, rewards, beta, world) for beta in betas])
    return Frontier(np.array(betas), kl=best[:, 2], reward=best[:, 1])


@torch.no_grad()
def values(policy: Policy, reference: Policy, world: Any, beta: float) -> Tensor:
    """Returns V of the state before each token of every trajectory that `enumerate_all` lists.

        V(s_t) = E[R - beta * sum_{t' >= t} KL_t' | s_t]

    Arguments and errors are those of `evaluate`, without a leading axis of runs.

    Returns:
        [B, T], in reward; 0 where masked or where the policy never comes.
    """
    _check_runs((), policy=policy, reference=reference, beta=beta)
    batch = enumerate_all(policy, world)
    kl = per_step_kl(policy, reference, batch)
    to_go = reward_to_go(score(world, batch), kl, beta, batch.mask) - charge(beta, kl, axes=2)
    state = TabularPolicy(world).to(kl.device).rows(batch.prompts, batch.tokens)[:, :-1]
    weights = batch.weights.unsqueeze(1) * batch.mask
    worth = torch.where(weights > 0, weights * to_go, 0)
    sums = weights.new_zeros(2, int(state.max()) + 1)
    sums.index_add_(1, state.flatten(), torch.stack([weights, worth]).flatten(start_dim=1))
    return (sums[1] / sums[0])[state].nan_to_num(0).masked_fill(~batch.mask, 0)


@torch.no_grad()
def soft_values(reference: Policy, world: Any, beta: float) -> Tensor:
    """Returns V* of the state before each token of every trajectory that `enumerate_all` lists.

        V*(s) = beta * log E_ref[exp(R / beta) | s]

    It is the most that any policy can earn from s on, and satisfies the soft Bellman equation
    V*(s) = beta * log sum_v ref(v | s) * exp(V*(s v) / beta), with R after the last token.

    Arguments and errors are those of `optimum`.

    Returns:
        [B, T], in reward; 0 where masked or where the reference never comes.

    Source: Rafailov et al. (2024), From r to Q*, arXiv 2404.12358.
    """
    (beta,), batch, rewards, log_ref, _ = _listed(reference, world, [beta])
    state = TabularPolicy(world).to(rewards.device).rows(batch.prompts, batch.tokens)[:, :-1]
    n_states = int(state.max()) + 1
    x, log_p = (n.view(-1, 1).expand(state.shape)[batch.mask] for n in (rewards / beta, log_ref))
    value = beta * log_mean_exp_by(x, log_p, state[batch.mask], n_states)
    return value[state].nan_to_num(0).masked_fill(~batch.mask, 0)


def _terms(policy: Policy, reference: Policy, world: Any) -> tuple[Tensor, Tensor, Tensor]:
    """R [B], KL [B, T] and weights [B] of every response that can occur."""
    batch = enumerate_all(policy, world)
    possible = (batch.weights > 0).reshape(-1, len(batch.prompts)).any(dim=0)
    if not possible.all():
        kept = (x[possible] for x in (batch.prompts, batch.responses, batch.mask))
        batch = Trajectories(*kept, weights=batch.weights[..., possible])
    if policy is reference:
        kl = batch.weights.new_zeros(*batch.weights.shape, batch.mask.shape[-1])
    else:
        kl = per_step_kl(policy, reference, batch)
    if batch.weights.dim() > 1:  # what one run cannot say another may
        kl = kl.masked_fill((batch.weights == 0).unsqueeze(-1), 0)
    return score(world, batch), kl, batch.weights


def _check_runs(runs: tuple[int, ...], beta: Any = 0.0, **policies: Policy) -> None:
    check_range("beta", beta, "G >= 0")
    given = {name: getattr(policy, "runs", ()) for name, policy in policies.items()}
    for name, own in {**given, "beta": tuple(torch.as_tensor(beta).shape)}.items():
        if own not in ((), runs):
            raise ValueError(f"the {name} has runs {own}; {runs or 'no such axis'} is due")


def _listed(reference: Policy, world: Any, betas: Any) -> tuple:
    """The betas, all > 0; every trajectory; R and log ref(y | x), [n, N]; log ref(v | s)."""
    for beta in (betas := [x.item() if isinstance(x, Tensor) else x for x in betas]):
        check_range("beta", beta, "G > 0, < inf")
    if not betas:
        raise ValueError("there is no beta")
    _check_runs((), reference=reference)
    batch = enumerate_all(reference, world, name="reference")
    parents, family = families(batch)
    step_log_p = step_log_probs(reference, parents)[family]
    log_ref = of_tokens(step_log_p, batch).double().sum(dim=-1)
    rewards = score(world, batch).double()
    return betas, batch, *(x.view(len(world.prompts), -1) for x in (rewards, log_ref)), step_log_p


def _behind(log_ref: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """How far each reward lies behind the prompt's best that can be said, and that one, [n, 1]."""
    most = rewards.where(log_ref > -torch.inf, -torch.inf).amax(dim=1, keepdim=True)
    return (rewards - most).clamp(max=0), most


def _best(log_ref: Tensor, rewards: Tensor, beta: float, world: Any) -> tuple[float, float, float]:
    """J*, R* and KL* for one beta."""
    behind, most = _behind(log_ref, rewards)
    x = behind / beta
    if x.abs().max() < SMALL:
        log_z = (log_ref.exp() * x.expm1()).sum(dim=1, keepdim=True).log1p()
    else:
        log_z = (log_ref + x).logsumexp(dim=1, keepdim=True)
    p = (log_ref + x - log_z).exp()
    log_ratio = (x - log_z).where(p > 0, 0.0)
    best = torch.cat([beta * log_z, (p * behind).sum(dim=1, keepdim=True)], dim=1) + most
    kl = (p * log_ratio).sum(dim=1, keepdim=True).clamp(min=0)
    per_prompt = torch.cat([best, kl], dim=1)
    return tuple((prompt_weights(world).to(log_ref.device) @ per_prompt).tolist())
