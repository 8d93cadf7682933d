"""The nine steps of PPO-Penalty as one loop.

    1 draw prompts          4 KL of every step        7 the chain rule gives the gradient
    2 roll out responses    5 combine into J          8 Adam takes it
    3 score them            6 backward                9 theta moves; repeat until it converges

Step 6 starts from what stands in for J (`proximal`), since no reward is in the gradient of a
sampled J. Two KL penalties have two names. `beta` (beta_ref) weighs KL(policy || reference): it is
part of J and decides where training ends. `beta_old` weighs KL(old || policy), old being the policy
that drew the batch: it limits how far one batch carries, and leaves the optimum where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ppo_toy.axes import check_counts, check_generator, check_is, check_range
from ppo_toy.contract import Policy, World, check_learns, check_policies, known
from ppo_toy.kl_controllers import Controller, adapted, at_first, fixed, for_each_run
from ppo_toy.objectives import penalized_objective
from ppo_toy.progress import bar
from ppo_toy.proximal import Surrogate, at_rest, check_at_rest, learns, look, moved, surrogates
from ppo_toy.trajectories import draw_prompts, respond, score

WINDOW = 50  # steps whose mean J is compared with that of as many before them
LOOK = 100  # steps between two looks whether the reference is still what it was


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


@dataclass(frozen=True)
class Schedule:
    """What happens over the steps.

    Args:
        anneal: the learning rate falls in a straight line towards 0, which it would reach after
            `steps`; what the noise of the last batches leaves behind shrinks with it.
        tolerance: stop once the mean J of the last 50 steps is less than this above that of the
            50 before, in every run, in reward; None takes all the steps.
        on_step: called as `on_step(step, policy)` before each update.
    """

    anneal: bool = False
    tolerance: float | None = None
    on_step: Callable[[int, nn.Module], None] = lambda step, policy: None

    def __post_init__(self) -> None:
        """Looks at whom to tell."""
        check_is("on_step", self.on_step, Callable)


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
    epochs: int = 1,
    controller: Controller = fixed,
    surrogate: Surrogate | None = None,
    schedule: Schedule | None = None,
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
        epochs: updates made from one batch, >= 1.
        controller: from (beta, kl) to the next beta, once a step and for each run in turn; kl in
            nats per response.
        surrogate: how the KL enters the gradient, and how far one batch may carry.
        schedule: the learning rate over the steps, when to stop, and whom to tell.

    Raises:
        ValueError: a setting is out of its range; what is given is no world, or no policy for it;
            the reference moves with the policy; a coefficient is 0 and its controller could never
            raise it; a reward or the objective is not finite. The message names it.
    """
    how = Surrogate() if surrogate is None else surrogate
    schedule = Schedule() if schedule is None else schedule
    world = _entered(policy, reference, world)
    check_generator(generator)
    check_is("surrogate", how, Surrogate)
    check_is("schedule", schedule, Schedule)
    check_is("controller", controller, Callable)
    check_counts(steps=steps, batch_size=batch_size, epochs=epochs)
    check_range("learning_rate", learning_rate, "G > 0, < inf")
    if epochs == 1 and how.controller_old is not fixed:
        raise ValueError("controller_old has nothing to go by: kl_old is measured if epochs > 1")
    beta = at_first("beta", beta, controller, policy)
    beta_old = at_first("beta_old", how.beta_old, how.controller_old, policy)
    how = replace(how, clip=for_each_run("clip", how.clip, policy, "G > 0"))
    adam = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    rows: list[tuple[Tensor, ...]] = []
    moves = False
    try:
        for step in bar(range(steps), "training"):
            schedule.on_step(step, policy)
            rate = learning_rate * (1 - step / steps if schedule.anneal else 1)
            prompts = draw_prompts(policy, world, batch_size, generator)  # 1 draw prompts
            batch = respond(policy, world, prompts, generator)  # 2 roll out responses
            rewards = score(world, batch)  # 3 score them
            log_ref = at_rest(reference, batch)
            first = look(policy, log_ref, batch)  # 4 KL of every step
            means = _means(rewards, first.kl, beta, batch.weights, step)  # 5 combine into J
            on_batch = (policy, first, log_ref, batch, rewards)
            for stand_in in surrogates(*on_batch, how=how, betas=(beta, beta_old), epochs=epochs):
                adam.zero_grad()
                (-stand_in.sum()).backward()  # 6 backward
                # 7 the chain rule has left the gradient in every parameter's `grad`
                adam.param_groups[0]["lr"] = rate  # 8 Adam takes it, at this learning rate
                adam.step()  # 9 theta moves
            if not moves or step % LOOK == 0 or step == steps - 1:
                check_at_rest(reference, log_ref, batch)
                moves = moves or learns(policy)
            kl_old = moved(policy, first, batch, epochs)
            rows.append((*means, beta, kl_old, beta_old))
            beta = adapted("beta", controller, beta, means[-1])
            beta_old = adapted("beta_old", how.controller_old, beta_old, kl_old)
            if _converged(rows, schedule.tolerance):  # and if not, once more from 1
                break
    except KeyboardInterrupt:
        print(f"interrupted: the history holds {len(rows)} of {steps} steps")
    return _history(rows, beta.shape)


def _means(
    rewards: Tensor, kl: Tensor, beta: Tensor, weights: Tensor, step: int
) -> tuple[Tensor, ...]:
    """J, R and KL of a batch, all of them finite."""
    kl = kl.detach()
    objective = penalized_objective(rewards, kl, beta, weights)
    mean_kl = (weights * kl.sum(dim=-1)).sum(dim=-1)
    if not (objective.isfinite() & mean_kl.isfinite()).all():
        raise ValueError(
            f"the objective is {objective.tolist()} at step {step}: the reference gives no "
            "probability to a token that the policy can draw, or the policy has diverged"
        )
    return objective, (weights * rewards).sum(dim=-1), mean_kl


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


def _entered(policy: nn.Module, reference: Policy, world: Any) -> World:
    world = known(world)
    if not isinstance(policy, nn.Module):
        raise ValueError(f"the policy is a {type(policy).__name__}; what learns is an nn.Module")
    shared = set(policy.parameters())
    if isinstance(reference, nn.Module) and shared.intersection(reference.parameters()):
        raise ValueError("the reference shares parameters with the policy; give it a copy")
    runs = getattr(policy, "runs", ())
    if getattr(reference, "runs", ()) not in ((), runs):
        raise ValueError(f"the reference has runs {reference.runs}, the policy {runs}")
    logits, _ = check_policies(world, policy=policy, reference=reference)
    check_learns(logits)
    return world
