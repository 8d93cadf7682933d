"""The axes of tensors, declared where a function is defined and looked at before every call.

B trajectories, T response tokens, V vocabulary. An axis of runs, G, may stand before B; a tensor
that lacks it serves all runs.
"""

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FULL = (torch.float32, torch.float64)
RANGES = {
    "G >= 0": ("0 or more, and finite", lambda x: 0 <= x < math.inf),
    "G > 0": ("positive", lambda x: x > 0),
    "G > 0, < inf": ("positive and finite", lambda x: 0 < x < math.inf),
    "[0, 1]": ("in [0, 1]", lambda x: 0 <= x <= 1),
}


def takes(**axes: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Declares the axes of a function's tensors; what they do not fit is a ValueError.

    Lists become tensors and integers floats. What is in half precision is computed in single and
    rounded at the end.

    Args:
        axes: of each argument, none of them empty. "B T" are these two, with or without G before
            them; "* B T" the same, or any shape shared by all that are marked so; "..." any shape
            shared by all; "... V" any axes, then V. "G >= 0" and "G > 0" are a coefficient of that
            range, one number or one for each run. A `mask` is of torch.bool.
    """

    def declare(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Tensor:
            if len(args) > len(names):
                return function(*args, **kwargs)  # which says so
            given, tensors = {**dict(zip(names, args, strict=False)), **kwargs}, {}
            for name, letters in axes.items():
                x = given.get(name)
                if letters[0] == "G" and name in given and not isinstance(x, Tensor | list):
                    check_range(name, x, letters)
                elif x is not None:
                    tensors[name] = x if isinstance(x, Tensor) else torch.as_tensor(x)
            check_axes(axes, tensors)
            for name, x in tensors.items():
                if given[name] is not x or (x.dtype not in FULL and name != "mask"):
                    return _in_full(function, given, tensors)
            return function(*args, **kwargs)

        return checked

    return declare


def _in_full(function: Callable[..., Tensor], given: dict[str, Any], tensors: dict) -> Tensor:
    floats = [x.dtype for x in tensors.values() if x.is_floating_point()]
    wide = functools.reduce(torch.promote_types, floats or [torch.get_default_dtype()])
    full = torch.promote_types(wide, torch.float32)
    for name, x in tensors.items():
        given[name] = x if name == "mask" or x.dtype in FULL else x.to(full)
    return function(**given).to(wide)


def check_axes(axes: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError where tensors do not have the axes that `takes` declares."""
    if not _fit(tuple([axes[n] for n in tensors]), tuple([x.shape for x in tensors.values()])):
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
        letters = {n: "G" if axes[n][0] == "G" else axes[n].strip("* ") for n in tensors}
        due = ", ".join(f"{name} [{', '.join(own.split())}]" for name, own in letters.items())
        raise ValueError(f"{shapes} do not fit together; due are {due}, none of them empty")
    for name, x in tensors.items():
        if axes[name][0] == "G":
            check_range(name, x, axes[name])
        elif name == "mask" and x.dtype != torch.bool:
            raise ValueError(f"mask is of {x.dtype}; it must be of torch.bool")


@functools.lru_cache(maxsize=4096)
def _fit(declared: tuple[str, ...], shapes: tuple[torch.Size, ...]) -> bool:
    pairs, sizes = list(zip(declared, shapes, strict=True)), {}
    per_run = any(letters[0] == "G" and shape for letters, shape in pairs)
    alike = len({shape for letters, shape in pairs if letters[0] == "*"}) == 1
    for letters, shape in pairs:
        own = [] if letters[0] == "G" else letters.strip("*. ").split()
        before = len(shape) - len(own)
        if letters == "..." or (letters[0] == "*" and alike):
            if letters != "..." and per_run and len(shape) != 3:
                return False
            named = [("...", shape), *zip("G" * (len(shape) == 3), shape, strict=False)]
        elif before < 0 or (before > 1 and letters[0] != "."):
            return False
        else:
            runs = [] if letters[0] == "." else [("G", n) for n in shape[:before]]
            named = [*runs, *zip(own, shape[before:], strict=True)]
        if 0 in shape or any(sizes.setdefault(name, n) != n for name, n in named):
            return False
    return True


def per_run(number: float | Tensor, like: Tensor, axes: int) -> Tensor:
    """A constant of the type of another tensor; one for each run, [G], gets axes after G."""
    number = torch.as_tensor(number, dtype=like.dtype, device=like.device).detach()
    return number.reshape(-1, *[1] * axes) if number.dim() else number


def charge(beta: float | Tensor, kl: Tensor, *, axes: int) -> Tensor:
    """Returns beta * kl, the price of the KL: 0 where beta is 0, even if the KL is infinite.

    Args:
        beta: a constant, one number or one for each run, [G], in reward per nat.
        kl: in nats, with an axis of runs or without.
        axes: how many axes follow that of runs.
    """
    if isinstance(beta, Real) and beta:
        return beta * kl
    beta = per_run(beta, kl, axes)
    if not beta.all():
        kl = kl.masked_fill((beta == 0) & kl.isinf(), 0)
    return beta * kl


def check_counts(**counts: Any) -> None:
    """Raises a ValueError unless each of these is an integer, 1 or more."""
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise ValueError(f"{name} is {number!r}; it must be an integer")
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be 1 or more")


def check_is(name: str, given: Any, kind: type) -> None:
    """Raises a ValueError unless what was given is of a kind."""
    if not isinstance(given, kind):
        raise ValueError(f"{name} is {given!r}; it must be a {kind.__name__}")


def check_generator(generator: Any) -> None:
    """Raises a ValueError unless the one source of randomness is there."""
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator is {generator!r}; it must be a torch.Generator")


def check_range(name: str, number: Any, axes: str) -> None:
    """Raises a ValueError where a coefficient is not in its range, one of `RANGES`."""
    must, holds = RANGES[axes]
    shown = number.tolist() if isinstance(number, Tensor) else number
    each = shown if isinstance(shown, list) else [shown]
    if not all(isinstance(x, Real) and holds(x) for x in each):
        raise ValueError(f"{name} is {shown!r}; it must be {must}")
