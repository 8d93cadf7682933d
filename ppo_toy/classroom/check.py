"""`check("01-brake", brake)`: is what a learner wrote right, and if not, which mistake is it?

For a learner it prints one verdict line or raises `CheckFailed`, which names the mistake. In the
grader's cage it judges nothing: it prints what the answer returned on cases that the learner has
never seen, and the comparison happens outside. For that reason this module knows no solutions; it
looks a lesson's up by name, only when a learner calls it.
"""

import contextlib
import copy
import importlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppo_toy.classroom.language import fill, told
from ppo_toy.classroom.variables import HIDDEN, SEED

DECIMALS = 4
WIDTH = 90  # of the longest line that a learner is shown


class CheckFailed(AssertionError):
    """An answer is wrong; the text says how."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the verdict, without the lines of the machinery."""
        return [f"{told('not yet')}  {self}"]


@dataclass(frozen=True)
class Case:
    """One call of an answer.

    Attributes:
        arguments: by name, in the order in which they are passed; tensors in double precision.
        differentiate: names of the tensors for which the gradient is looked at.
        shapes: of the things that are to be returned, () for a number; None if all are welcome.
        ask: of an open exercise: one of `probe`'s functions, which asks the answer for numbers.
    """

    arguments: dict[str, Any]
    differentiate: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] | None = None
    ask: Callable[..., dict[str, Tensor]] | None = None


def check(name: str, answer: Callable[..., Any]) -> None:
    """Prints one line if `answer` is right.

    Args:
        name: of the exercise, like "01-brake".
        answer: the learner's function.

    Raises:
        CheckFailed: it is wrong; the message names the likely mistake.
        ValueError: there is no such exercise, or the seed in the environment is no number.
    """
    __tracebackhide__ = True  # here and below: a slip in an answer shows the learner's own lines
    if HIDDEN in os.environ:
        cases = torch.load(os.environ[HIDDEN], weights_only=False)[name]
        noise = io.StringIO()  # what an answer prints, or is warned of, is no error
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            lines = transcript(answer, cases)
        print("\n".join(lines))
        return
    exercise = find(name)
    seed = os.environ.get(SEED, "0")
    if not seed.isdecimal():
        raise ValueError(f"{SEED} is {seed!r}; it must be a whole number, 0 or more")
    fault = exercise.fault(answer, exercise.cases(int(seed)))
    if fault:
        headline, *details = told(fault).split("\n")
        headline = fill(f"{name}: {headline}", WIDTH - len("not yet  "))
        raise CheckFailed("\n".join([headline, *details]))
    if exercise.route is None:  # an open one
        print(f"ok  {name}: {told(exercise.right)}")
        return
    what = "values and gradients" if exercise.looked_at else "values"
    right = f"{what} are right on {exercise.n_cases} random cases"
    print(f"ok  {name}: {told(right)}")


def find(name: str) -> Any:
    """Returns an exercise.

    Raises:
        ValueError: there is none of this name.
    """
    lesson = lesson_of(name)
    if name not in lesson:
        known = ", ".join(sorted(lesson)) or "none in this lesson"
        raise ValueError(f"there is no exercise {name!r}; known: {known}")
    return lesson[name]


def lesson_of(name: str) -> dict[str, Any]:
    """The exercises of the lesson whose number stands before the first dash of a name."""
    number = name.split("-")[0]
    module = f"ppo_toy.classroom.checks.lesson_{number}"
    if not number.isalnum() or not importlib.util.find_spec(module):
        return {}
    exercises = importlib.import_module(module).EXERCISES
    return {exercise.name: exercise for exercise in exercises}


def transcript(answer: Callable[..., Any], cases: Iterable[Case]) -> list[str]:
    """What an answer returns and what its gradients are, to four decimals, in lines of text.

    Raises:
        CheckFailed: it returned something that holds no numbers, or changed an argument.
    """
    __tracebackhide__ = True
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

    Raises:
        CheckFailed: it returned something that holds no numbers, or changed an argument.
    """
    __tracebackhide__ = True
    if case.ask:
        return [*case.ask(answer, **case.arguments).items()]
    given = copy.deepcopy(case.arguments)
    leaves = {name: given[name].requires_grad_() for name in case.differentiate}
    # A clone may be written to, so that this can be found out and named.
    given |= {name: leaf.clone() for name, leaf in leaves.items()}
    returned = answer(*given.values())
    for name, before in case.arguments.items():
        same = torch.equal if isinstance(before, Tensor) else lambda x, y: x == y
        cut = name in leaves and not given[name].requires_grad
        if cut or not same(before, given[name]):
            raise CheckFailed(f"it changes its argument {name} in place: make a new tensor instead")
    things = _things(returned, case.shapes)
    n = len(things)
    found = [
        (f"returned {k} of {n}" if n > 1 else "returned", numbers.detach())
        for k, numbers in enumerate(things, start=1)
    ]
    flows = sum((x * _weights(x)).sum() for x in things if x.requires_grad)
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf)
        if isinstance(flows, Tensor):
            try:
                (gradient,) = torch.autograd.grad(
                    flows, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            except RuntimeError:
                raise CheckFailed("its result has no gradient: call no backward() on it") from None
        found.append((f"gradient of {name}", gradient))
    return found


def _things(returned: Any, shapes: tuple[tuple[int, ...], ...] | None) -> list[Tensor]:
    """What an answer returned: the things that are due, if it can be read so."""
    several = shapes is not None and len(shapes) > 1
    if not several or isinstance(returned, tuple | list) or hasattr(returned, "shape"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            things = [_tensor(part) for part in (returned if several else [returned])]
            if tuple(tuple(thing.shape) for thing in things) == shapes:
                return things
    return _tensors(returned)


def _tensor(returned: Any) -> Tensor:
    if isinstance(returned, tuple | list):
        return torch.stack([_tensor(part) for part in returned])
    return torch.as_tensor(returned).double()


def _tensors(returned: Any) -> list[Tensor]:
    """The numbers that an answer returned: a number, an array, or a tuple or list of them."""
    if isinstance(returned, tuple | list):
        return [tensor for part in returned for tensor in _tensors(part)]
    if returned is None:
        raise CheckFailed("it returned None; is the `return` missing?")
    try:
        return [_tensor(returned)]
    except (TypeError, ValueError, RuntimeError):
        kind = type(returned).__name__
        raise CheckFailed(f"it returned a {kind}; numbers are wanted") from None


def _weights(numbers: Tensor) -> Tensor:
    """Different for each number, so that gradients that were mixed up do not cancel."""
    generator = torch.Generator().manual_seed(numbers.numel())
    return 0.5 + torch.rand(numbers.shape, generator=generator, dtype=torch.float64)
