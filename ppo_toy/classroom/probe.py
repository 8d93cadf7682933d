"""What an open answer is asked, wherever it runs: numbers by which the truth can judge it.

Each function calls an answer and returns pairs (name, numbers). None of them judges, and none
knows a solution, so the cage holds them too.
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

MOST = 5_000  # responses to all prompts together: what the check lists and prints
Numbers = list[tuple[str, Tensor]]


def of_world(my_world: Callable[[], Any], seed: int) -> Numbers:
    """The reward of every response, [n, N], and the weight of each prompt, [n]."""
    return _at_the_door(_listed, my_world())


def of_run(my_run: Callable[..., Any], seed: int) -> Numbers:
    """Of a run with the answer's own beta: its world, and both policies' log-probabilities."""
    return _end(my_run, seed, _beta(my_run))[1]


def of_loss(my_loss: Callable[..., Tensor], seed: int) -> Numbers:
    """Expected gradients in `problems`, variances in `noisy`, numbers of the referee's names."""
    rule = _at_the_door(as_rule, my_loss, loss=True)
    told = _at_the_door(verdict, my_loss, loss=True, seed=seed % 1000).faults
    gradients = [expected_gradient(rule, case) for case in problems(seed)]
    spread = torch.stack([variance(rule, case) for case in noisy(seed)])
    faults = torch.tensor([list(FAULTS).index(name) for name in told])
    return [*_numbered("gradient", gradients), ("spread", spread), ("faults", faults)]


def of_prediction(mine: tuple[Callable, Callable], seed: int) -> Numbers:
    """R, KL and J as predicted from a run, [3]; then the end of a run with twice its beta."""
    my_run, my_prediction = mine
    beta = _beta(my_run)
    made, _ = _end(my_run, seed, beta)
    said = my_prediction(*made, beta)
    try:
        said = torch.stack([torch.as_tensor(x).detach().double().reshape(()) for x in said])
    except (TypeError, ValueError, RuntimeError):
        raise CheckFailed(f"the prediction is {said!r}; due are three numbers: R, KL, J") from None
    return [("said", said), *_end(my_run, seed + 1, 2 * beta)[1]]


def problems(seed: int) -> list[Problem]:
    """Those of the referee's kinds: every way in which a batch can differ from another."""
    seed = 4 * (seed % 10**9)
    return [
        random_problem(seed, None, beta=0.5),
        random_problem(seed + 1, 2, beta=0.8),
        random_problem(seed + 2, 2, beta=0.6, prompts=range(3)),
        random_problem(seed + 3, None, beta=0.3, far=12.0),
    ]


def noisy(seed: int) -> list[Problem]:
    """Problems in which most of J is the penalty."""
    return [random_problem(8 * (seed % 10**9) + k, 2, beta=2.0) for k in range(8)]


def variance(rule: Callable[..., Tensor], case: Problem) -> Tensor:
    """Returns the mean squared distance of a batch's gradient from the mean gradient, []."""
    p, _, gradients = batch_gradients(rule, case)
    apart = gradients - torch.einsum("g,gsv->sv", p, gradients)
    return p @ apart.square().flatten(1).sum(dim=1)


def _numbered(name: str, numbers: list[Tensor]) -> Numbers:
    return [(f"{name}_{k}", x) for k, x in enumerate(numbers)]


def _at_the_door(look: Callable[..., Any], *given: Any, **options: Any) -> Any:
    try:
        return look(*given, **options)
    except ValueError as error:
        raise CheckFailed(str(error)) from None


def _listed(given: Any) -> Numbers:
    world = known(given)
    of_course = type(given).__module__.startswith("ppo_toy.")
    if of_course or list(world.vocabulary) == ["yes", "no", "."]:  # README's
        raise ValueError("this world is the course's; bring one of your own")
    responses, _ = list_responses(world)
    shape = len(world.prompts), len(responses)
    if (count := math.prod(shape)) > MOST:
        raise ValueError(f"this world has {count:,} responses; bring one of at most {MOST:,}")
    pairs = world.prompts.repeat_interleave(shape[1], dim=0), responses.repeat(shape[0], 1)
    rewards, again = (rewards_of(world, *(x.clone() for x in pairs)).double() for _ in range(2))
    if not torch.equal(rewards, again):
        raise ValueError("the reward gives two answers to one question; chance is the policy's")
    return [("rewards", rewards.view(shape)), ("weights", world.prompt_weights)]


def _beta(my_run: Callable[..., Any]) -> float:
    beta = inspect.signature(my_run).parameters.get("beta")
    if beta is None or not isinstance(beta.default, Real) or not 0 < beta.default < math.inf:
        raise CheckFailed("my_run's beta has no positive number for a default; write yours there")
    return float(beta.default)


def _end(my_run: Callable[..., Any], seed: int, beta: float) -> tuple[Any, Numbers]:
    made = my_run(torch.Generator().manual_seed(seed), beta=beta)
    if not isinstance(made, tuple | list) or len(made) != 3:
        raise CheckFailed("my_run returns three things: the world, the reference, the policy")
    return made, _at_the_door(_tables, *made, beta)


@torch.no_grad()
def _tables(world: Any, reference: Any, policy: Any, beta: float) -> Numbers:
    listed = _listed(world)
    check_policies(known(world), policy=policy, reference=reference)
    if getattr(policy, "runs", ()):
        raise ValueError("the policy has an axis of runs; a single run is due")
    batch = enumerate_all(reference, world)
    of = {"log_ref": reference, "log_p": policy}
    logs = [(k, log_probs(x, batch).double().sum(1).view_as(listed[0][1])) for k, x in of.items()]
    return [*listed, *logs, ("beta", torch.tensor(beta, dtype=torch.float64))]
