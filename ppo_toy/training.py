"""The nine steps of PPO-Penalty as one loop.

    1 draw prompts          4 KL of every step        7 gradient
    2 roll out responses    5 combine into J          8 Adam step
    3 score them            6 backward                9 repeat until converged

Two KL penalties have two names. `beta` (beta_ref) weighs KL(policy || reference): it is part of
J and decides where training ends. `beta_old` weighs KL(old || policy), old being the policy that
drew the batch: it limits how far one batch carries, and leaves the optimum where it was.

Departures from Schulman et al. (2017): the penalty to the reference; the exact KL of a step in
place of a sampled one, which is quieter far from the optimum and noisier close to it (lesson 03);
leave-one-out baselines in place of a value function; gamma = 1; sums over the tokens of a response
and not means; each epoch is one minibatch.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ppo_toy.advantages import leave_one_out, reward_to_go
from ppo_toy.kl_controllers import fixed
from ppo_toy.objectives import clipped_surrogate, penalized_objective
from ppo_toy.policies import Policy, device_of
from ppo_toy.progress import bar
from ppo_toy.trajectories import (
    Trajectories,
    masked_kl,
    of_tokens,
    sample,
    score,
    step_log_probs,
)

Controller = Callable[[float, float], float]

WINDOW = 50  # steps whose mean J is compared with that of as many before them


@dataclass(frozen=True, eq=False)
class History:
    """What was measured at each step, before its update, on the step's own sampled batch.

    Every attribute is [steps], or [steps, G] with runs, in double precision on the CPU.

    Attributes:
        objective: J, in reward.
        reward: mean R of a response.
        kl: KL(policy || reference) summed over a response, in nats, mean over the batch.
        beta: the coefficient in force, reward per nat.
        kl_old: KL(old || policy) after the step's last epoch, in nats per response; NaN where
            `epochs` is 1.
        beta_old: its coefficient in force, reward per nat.
    """

    objective: Tensor
    reward: Tensor
    kl: Tensor
    beta: Tensor
    kl_old: Tensor
    beta_old: Tensor


def train(
    policy: nn.Module,
    reference: Policy,
    world: Any,
    *,
    beta: float | Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    anneal: bool = False,
    epochs: int = 1,
    penalty: str = "exact",
    controller: Controller = fixed,
    clip: float | Tensor = math.inf,
    beta_old: float | Tensor = 0.0,
    controller_old: Controller = fixed,
    tolerance: float | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
) -> History:
    """Trains the policy in place by the nine steps and returns what was measured.

    Interrupted from the keyboard, it says so and returns the history of the steps completed.

    Args:
        policy: the policy in training; with a leading axis of runs, all runs advance together.
        reference: the frozen policy that the KL is measured to; never changed.
        world: prompts and rewards.
        beta: beta_ref, >= 0, reward per nat; one for each run or one for all.
        steps: the most steps to take, >= 1.
        batch_size: responses drawn at each step, for each run, >= 1.
        learning_rate: of Adam, > 0.
        generator: a CPU generator, the only source of randomness.
        anneal: the learning rate falls in a straight line towards 0, which it would reach after
            `steps`; what the noise of the last batches leaves behind shrinks with it.
        epochs: updates made from one batch, >= 1.
        penalty: how the KL enters the gradient. "exact": as the KL of each state, form (A) of
            lesson 03, quieter far from the best policy. "sampled": as the log-ratio of the
            response drawn, taken from its reward, form (B) over all tokens, quieter near it.
        controller: from (beta, kl) to the next beta, once a step and for each run in turn; kl in
            nats per response.
        clip: epsilon of the clipped surrogate, one for each run or for all; `math.inf` for none.
        beta_old: coefficient of KL(old || policy), >= 0. It has no effect in the first epoch,
            where that KL is 0 and its gradient too.
        controller_old: from (beta_old, kl_old) to the next beta_old, once a step.
        tolerance: stop once the mean J of the last 50 steps is less than this above that of the
            50 before, in every run, in reward; None takes all the steps.
        on_step: called as `on_step(step, policy)` before each update.

    Raises:
        ValueError: a setting out of its range, a policy that is its own reference, different
            vocabularies, or a reward or objective that is not finite; the message names it.
    """
    for name, number in (("steps", steps), ("batch_size", batch_size), ("epochs", epochs)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be 1 or more")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; it must be positive and finite")
    if penalty not in ("exact", "sampled"):
        raise ValueError(f'penalty is {penalty!r}; it is "exact" or "sampled"')
    if epochs == 1 and controller_old is not fixed:
        raise ValueError("controller_old has nothing to go by: kl_old is measured if epochs > 1")
    _check_policies(policy, reference, world)
    beta = _for_each_run("beta", beta, policy)
    beta_old = _for_each_run("beta_old", beta_old, policy)
    clip = _for_each_run("clip", clip, policy, most=math.inf)
    adam = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    rows: list[tuple[Tensor, ...]] = []
    try:
        for step in bar(range(steps), "training"):
            if on_step is not None:
                on_step(step, policy)
            adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps if anneal else 1)
            batch = sample(policy, world, batch_size, generator=generator)  # 1 and 2
            rewards = score(world, batch)  # 3
            with torch.no_grad():
                log_ref = step_log_probs(reference, batch)
            for epoch in range(epochs):
                log_pi = step_log_probs(policy, batch)
                kl = masked_kl(log_pi, log_ref, batch.mask)  # 4
                if epoch == 0:
                    log_old, old_kl = log_pi.detach(), kl.detach()
                    objective = penalized_objective(rewards, old_kl, beta, batch.weights)  # 5
                    _check_finite(objective, step)
                    returns = reward_to_go(rewards, old_kl, beta, batch.mask)
                log_probs, old_log_probs = of_tokens(log_pi, batch), of_tokens(log_old, batch)
                if penalty == "sampled":
                    log_ratio = (log_probs - of_tokens(log_ref, batch)).detach().sum(dim=-1)
                    returns = (rewards - beta[..., None] * log_ratio).unsqueeze(-1) * batch.mask
                advantages = leave_one_out(returns, batch.mask)
                gain = clipped_surrogate(log_probs, old_log_probs, advantages, clip=clip)
                if beta_old.any():
                    kl_old = masked_kl(log_old, log_pi, batch.mask)
                    gain = gain - beta_old[..., None, None] * kl_old
                direct = beta if penalty == "exact" else 0 * beta
                surrogate = penalized_objective(gain.sum(dim=-1), kl, direct, batch.weights)
                adam.zero_grad()
                (-surrogate.sum()).backward()  # 6 and 7
                adam.step()  # 8
            mean_reward = (batch.weights * rewards).sum(dim=-1)
            mean_kl = (batch.weights * old_kl.sum(dim=-1)).sum(dim=-1)
            moved = _moved(policy, log_old, batch, epochs)
            rows.append((objective, mean_reward, mean_kl, beta, moved, beta_old))
            beta = _adapted("beta", controller, beta, mean_kl, policy)
            beta_old = _adapted("beta_old", controller_old, beta_old, moved, policy)
            if _converged(rows, tolerance):  # 9
                break
    except KeyboardInterrupt:
        print(f"interrupted: the history holds {len(rows)} of {steps} steps")
    return _history(rows, beta.shape)


@torch.no_grad()
def _moved(policy: Policy, log_old: Tensor, batch: Trajectories, epochs: int) -> Tensor:
    """KL(old || policy) after the updates, in nats per response; NaN after a single one."""
    if epochs == 1:
        return torch.full_like(batch.weights[..., 0], math.nan)
    kl_old = masked_kl(log_old, step_log_probs(policy, batch), batch.mask)
    return (batch.weights * kl_old.sum(dim=-1)).sum(dim=-1)


def _for_each_run(
    name: str, numbers: float | Tensor, policy: Policy, most: float = sys.float_info.max
) -> Tensor:
    runs = getattr(policy, "runs", ())
    numbers = torch.as_tensor(numbers, dtype=torch.float64)
    if numbers.shape not in ((), runs):
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}; the policy's runs are {runs}")
    if not ((numbers >= 0) & (numbers <= most)).all():
        raise ValueError(f"{name} is {numbers.tolist()}; it must be 0 or more, and finite")
    return numbers.expand(runs).to(device_of(policy))


def _adapted(name: str, controller: Controller, beta: Tensor, kl: Tensor, policy: Policy) -> Tensor:
    if controller is fixed:
        return beta
    pairs = zip(beta.flatten().tolist(), kl.flatten().tolist(), strict=True)
    adapted = beta.new_tensor([controller(*pair) for pair in pairs])
    return _for_each_run(name, adapted.view_as(beta), policy)


def _converged(rows: list[tuple[Tensor, ...]], tolerance: float | None) -> bool:
    if tolerance is None or len(rows) < 2 * WINDOW:
        return False
    objective = torch.stack([row[0] for row in rows[-2 * WINDOW :]])
    gain = objective[WINDOW:].mean(dim=0) - objective[:WINDOW].mean(dim=0)
    return bool((gain < tolerance).all())


def _history(rows: list[tuple[Tensor, ...]], runs: torch.Size) -> History:
    if not rows:
        return History(*[torch.zeros(0, *runs, dtype=torch.float64)] * len(fields(History)))
    return History(*(torch.stack(c).double().cpu() for c in zip(*rows, strict=True)))


def _check_finite(objective: Tensor, step: int) -> None:
    if not objective.isfinite().all():
        raise ValueError(
            f"the objective is {objective.tolist()} at step {step}: the reference gives no "
            "probability to a token that the policy can draw, or the policy has diverged"
        )


def _check_policies(policy: nn.Module, reference: Policy, world: Any) -> None:
    shared = set(policy.parameters())
    if isinstance(reference, nn.Module) and shared.intersection(reference.parameters()):
        raise ValueError("the reference shares parameters with the policy; give it a copy")
    runs = getattr(policy, "runs", ())
    if getattr(reference, "runs", ()) not in ((), runs):
        raise ValueError(f"the reference has runs {reference.runs}, the policy {runs}")
    for name, which in (("policy", policy), ("reference", reference)):
        device = device_of(which)
        nothing_yet = torch.zeros(1, 0, dtype=torch.long, device=device)
        n_tokens = which(world.prompts[:1].to(device), nothing_yet).shape[-1]
        if n_tokens != len(world.vocabulary):
            raise ValueError(f"the {name} has {n_tokens} tokens, the world {len(world.vocabulary)}")
