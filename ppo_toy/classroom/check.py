"""`check("01-brake", brake)`: is what a learner wrote right, and if not, which mistake is it?

For a learner it prints one verdict line or raises `CheckFailed`, which names the mistake. In the
grader's cage it judges nothing: it prints what the answer returned on cases that the learner has
never seen, and the comparison happens outside. For that reason this module knows no solutions, and
imports those that do only when a learner calls it.
"""

import contextlib
import copy
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SEED = "PPO_TOY_CHECK_SEED"  # environment variable: seed of the random inputs, 0 by default
HIDDEN = "PPO_TOY_HIDDEN_CASES"  # environment variable: the file of cases; set in the cage only
DECIMALS = 4


class CheckFailed(AssertionError):
    """An answer is wrong; the text says how."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the verdict, without the lines of the machinery."""
        return [f"not yet  {self}"]


@dataclass(frozen=True)
class Case:
    """One call of an answer.

    Attributes:
        arguments: by name, in the order in which they are passed; tensors in double precision.
        differentiate: names of the arguments for which the gradient is looked at.
    """

    arguments: dict[str, Any]
    differentiate: tuple[str, ...] = ()


def check(name: str, answer: Callable[..., Any]) -> None:
    """Prints one line if `answer` is right.

    Args:
        name: of the exercise, like "01-brake".
        answer: the learner's function.

    Raises:
        CheckFailed: it is wrong; the message names the likely mistake.
        ValueError: there is no such exercise, or the seed in the environment is no number.
    """
    if HIDDEN in os.environ:
        cases = torch.load(os.environ[HIDDEN], weights_only=False)[name]
        noise = io.StringIO()  # what an answer prints, or is warned of, is no error
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            lines = transcript(answer, cases)
        print("\n".join(lines))
        return
    from ppo_toy.classroom.exercise import find  # knows the solutions

    exercise = find(name)
    seed = os.environ.get(SEED, "0")
    if not seed.isdecimal():
        raise ValueError(f"{SEED} is {seed!r}; it must be a whole number, 0 or more")
    fault = exercise.fault(answer, exercise.cases(int(seed)))
    if fault:
        raise CheckFailed(f"{name}: {fault}")
    what = "values and gradients" if exercise.differentiate else "values"
    print(f"ok  {name}: {what} are right on {exercise.n_cases} random cases")


def transcript(answer: Callable[..., Any], cases: Iterable[Case]) -> list[str]:
    """What an answer returns and what its gradients are, to four decimals, in lines of text.

    Raises:
        CheckFailed: it returned something that holds no numbers.
    """
    lines = []
    for k, case in enumerate(cases, start=1):
        for what, numbers in outcome(answer, case):
            shape = list(numbers.shape)
            # Adding 0 turns -0 into 0.
            shown = [f"{round(x, DECIMALS) + 0:.{DECIMALS}f}" for x in numbers.flatten().tolist()]
            lines.append(f"case {k}, {what} {shape}: {' '.join(shown)}")
    return lines


def outcome(answer: Callable[..., Any], case: Case) -> list[tuple[str, Tensor]]:
    """Calls an answer and returns the pairs (what it is, numbers): returned values, gradients.

    Where it returned several things, each says which it is: "returned 2 of 3". The gradient is
    that of a weighted sum of all returned numbers. Where nothing flows, it is 0.
    The answer gets copies, so that nothing is lost if it writes to its arguments.
    """
    arguments = copy.deepcopy(case.arguments)
    leaves = {name: _leaves(arguments[name]) for name in case.differentiate}
    for leaf in sum(leaves.values(), []):
        leaf.requires_grad_()
    returned = _tensors(answer(*arguments.values()))
    n = len(returned)
    found = [
        (f"returned {k} of {n}" if n > 1 else "returned", numbers.detach())
        for k, numbers in enumerate(returned, start=1)
    ]
    flows = [(numbers * _weights(numbers)).sum() for numbers in returned if numbers.requires_grad]
    for name, of_argument in leaves.items():
        if flows:
            gradients = torch.autograd.grad(
                sum(flows),
                of_argument,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        else:
            gradients = [torch.zeros_like(leaf) for leaf in of_argument]
        found += [(f"gradient of {name}", gradient.detach()) for gradient in gradients]
    return found


def _leaves(argument: Tensor | nn.Module) -> list[Tensor]:
    return list(argument.parameters()) if isinstance(argument, nn.Module) else [argument]


def _tensors(returned: Any) -> list[Tensor]:
    """The numbers that an answer returned: a number, an array, or a tuple or list of them."""
    if isinstance(returned, tuple | list):
        return [tensor for part in returned for tensor in _tensors(part)]
    if returned is None:
        raise CheckFailed("it returned None; is the `return` missing?")
    try:
        return [torch.as_tensor(returned).double()]
    except (TypeError, ValueError, RuntimeError):
        kind = type(returned).__name__
        raise CheckFailed(f"it returned a {kind}; numbers are wanted") from None


def _weights(numbers: Tensor) -> Tensor:
    """Different for each number, so that gradients that were mixed up do not cancel."""
    generator = torch.Generator().manual_seed(numbers.numel())
    return 0.5 + torch.rand(numbers.shape, generator=generator, dtype=torch.float64)
