"""What an open answer is asked, wherever it runs: named numbers by which the truth can judge it.

Nothing here judges, or knows a solution, so the cage holds it too. A world's numbers are the
`rewards` of all N responses to each prompt, [n, N], and the prompts' `weights`, [n]; a run's are
these, what both policies make of each response, `log_ref` and `log_p`, [n, N], and its `beta`.
"""

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ppo_toy.classroom.check import CheckFailed
from ppo_toy.contract import check_policies, known, rewards_of
from ppo_toy.enumeration import list_responses
from ppo_toy.faults import FAULTS
from ppo_toy.referee import verdict
from ppo_toy.rules import Problem, as_rule, batch_gradients, expected_gradient, random_problem
from ppo_toy.trajectories import enumerate_all, log_probs

MOST = 5_000  # responses to all prompts together


def of_world(my_world: Callable[[], Any], seed: int) -> dict[str, Tensor]:
    """Numbers of a world, which must be the same each time that it is made."""
    made, again = (_at_the_door(_world, my_world()) for _ in range(2))
    if any(not torch.equal(made[name], again[name]) for name in made):
        raise CheckFailed("my_world gives another world each time; draw its numbers from a seed")
    return made


def of_run(my_run: Callable[..., Any], seed: int) -> dict[str, Tensor]:
    """Numbers of a run with the beta that is its own."""
    return _run(my_run, seed, 1)[1]


def of_prediction(mine: tuple[Callable, Callable], seed: int) -> dict[str, Tensor]:
    """What is `said` after a run, [3]; the numbers of a run with twice its beta; what has `moved`.

    That is by how much the rewards and the reference's log-probabilities differ at most, [2].
    """
    made, before = _run(mine[0], seed, 1)
    said = mine[1](*made, before["beta"].item())
    try:
        said = torch.stack([torch.as_tensor(x).detach().double().reshape(()) for x in said])
    except (TypeError, ValueError, RuntimeError):
        raise CheckFailed(f"the prediction is {said!r}; due are three numbers: R, KL, J") from None
    numbers = _run(mine[0], seed + 1, 2)[1]
    pairs = [(before[name], numbers[name]) for name in ("rewards", "log_ref")]
    if any(x.shape != y.shape for x, y in pairs):
        raise CheckFailed("with twice the beta my_run returns another world")
    moved = torch.stack([(x - y).nan_to_num(0).abs().max() for x, y in pairs])
    return numbers | {"said": said, "moved": moved}


def of_loss(my_loss: Callable[..., Tensor], seed: int) -> dict[str, Tensor]:
    """Mean gradients and variances in `problems`, and the numbers of the referee's names."""
    faults = _at_the_door(verdict, my_loss, loss=True, seed=seed % 1000).faults
    rule, (due, noisy) = as_rule(my_loss, loss=True), problems(seed)
    means = {f"mean_{k}": expected_gradient(rule, case) for k, case in enumerate(due)}
    spread = torch.stack([variance(rule, case) for case in noisy])
    return means | {"spread": spread, "faults": torch.tensor([[*FAULTS].index(x) for x in faults])}


def problems(seed: int) -> tuple[list[Problem], list[Problem]]:
    """Four of the referee's kinds, and eight in which most of J is the penalty."""
    seed = 16 * (seed % 10**9)
    kinds = (None, 0.5), (2, 0.8), (2, 0.6, 1.0, range(3)), (None, 0.3, 12.0)
    due = [random_problem(seed + k, *kind) for k, kind in enumerate(kinds)]
    return due, [random_problem(seed + k, 2, beta=2.0) for k in range(4, 12)]


def variance(rule: Callable[..., Tensor], case: Problem) -> Tensor:
    """Returns the mean squared distance of a batch's gradient from the mean gradient, []."""
    p, _, gradients = batch_gradients(rule, case)
    return p @ (gradients - torch.einsum("g,gsv->sv", p, gradients)).square().flatten(1).sum(dim=1)


def _at_the_door(look: Callable[..., Any], *given: Any, **options: Any) -> Any:
    try:
        return look(*given, **options)
    except ValueError as error:
        raise CheckFailed(str(error)) from None


def _world(given: Any) -> dict[str, Tensor]:
    world, its_module = known(given), type(given).__module__
    if its_module.startswith("ppo_toy.") or [*world.vocabulary] == ["yes", "no", "."]:  # README's
        raise ValueError("this world is the course's; bring one of your own")
    responses, _ = list_responses(world)
    shape = len(world.prompts), len(responses)
    if math.prod(shape) > MOST:
        raise ValueError(
            f"this world has {math.prod(shape):,} responses; bring one of at most {MOST:,}"
        )
    pairs = world.prompts.repeat_interleave(shape[1], dim=0), responses.repeat(shape[0], 1)
    rewards, again = (rewards_of(world, *(x.clone() for x in pairs)) for _ in range(2))
    if not torch.equal(rewards, again):
        raise ValueError("the reward gives two answers to one question; chance is the policy's")
    return {"rewards": rewards.view(shape).double(), "weights": world.prompt_weights}


def _run(my_run: Callable[..., Any], seed: int, times: int) -> tuple[Any, dict[str, Tensor]]:
    beta = getattr(inspect.signature(my_run).parameters.get("beta"), "default", None)
    if not isinstance(beta, Real) or not 0 < beta < math.inf:
        raise CheckFailed("my_run's beta has no positive number for a default; write yours there")
    made = my_run(torch.Generator().manual_seed(seed), beta=times * beta)
    if not isinstance(made, tuple | list) or len(made) != 3:
        raise CheckFailed("my_run returns three things: the world, the reference, the policy")
    beta = torch.tensor(times * beta, dtype=torch.float64)
    return made, _at_the_door(_tables, *made) | {"beta": beta}


@torch.no_grad()
def _tables(given: Any, reference: Any, policy: Any) -> dict[str, Tensor]:
    numbers, world = _world(given), known(given)
    check_policies(world, policy=policy, reference=reference)
    if getattr(policy, "runs", ()):
        raise ValueError("the policy has an axis of runs; a single run is due")
    batch, shape = enumerate_all(reference, world), numbers["rewards"].shape
    log_ref, log_p = (log_probs(x, batch).double().sum(1).view(shape) for x in (reference, policy))
    return numbers | {"log_ref": log_ref, "log_p": log_p}
