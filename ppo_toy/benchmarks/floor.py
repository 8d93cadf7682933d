"""An iteration of `train` against its floor, what this machine cannot do it without.

    floor = FLOPs / rate + operations * cost

FLOPs are those of the matrix products, as PyTorch counts them, attention's small ones left out. An
operation is a call that computes; views, which look at the same numbers in another way, are free.
Rate and cost are measured in turn with the iteration: the rate on a layer's own products, the cost
on the sum of two small tensors, where nearly all of it is the call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ppo_toy.benchmarks.timing import PAIRS, Seconds, report, seconds_of, timed
from ppo_toy.benchmarks.work import BATCH, CONFIG, PROMPT, RESPONSE, iterate, new_world

PACKAGES = ()
ROUNDS = 4


class Operations(TorchDispatchMode):
    """Counts the calls that compute something, those of the backward pass included."""

    def __init__(self) -> None:
        """Starts at 0."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, call: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Counts one call and makes it."""
        self.count += not call.is_view
        return call(*args, **(kwargs or {}))


def main() -> None:
    """Prints how many times its floor an iteration takes."""
    world = new_world(learned=True)
    two, one = (counts(lambda n=n: iterate(world, n)) for n in (2, 1))
    flops, operations = two[0] - one[0], two[1] - one[1]
    print(f"an iteration: {flops / 1e9:.2f} GFLOP in matrix products, {operations} operations")
    pairs = []
    for _ in range(PAIRS):
        _, wall, cpu = timed(iterate, world, ROUNDS)
        flop, operation = per_flop(), per_operation()
        print(f"here: {1e-9 / flop[0]:.0f} GFLOP/s, {1e6 * operation[0]:.1f} us an operation")
        floor = tuple(flops * a + operations * b for a, b in zip(flop, operation, strict=True))
        pairs.append(((wall / ROUNDS, cpu / ROUNDS), floor))
    report("train / its floor", pairs)


def counts(work: Callable[[], Any]) -> tuple[int, int]:
    """Returns the FLOPs of the work's matrix products and the number of its operations."""
    with Operations() as operations, FlopCounterMode(display=False) as flops:
        work()
    return flops.get_total_flops(), operations.count


def per_flop(repeats: int = 20) -> Seconds:
    """Seconds of one FLOP in the four products of a layer, on a whole batch."""
    rows, width = BATCH * (PROMPT + RESPONSE - 1), CONFIG.width
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    factors = [(torch.ones(rows, m), torch.ones(n, m)) for m, n in shapes]
    flops = sum(2 * rows * m * n for m, n in shapes)

    def multiply() -> None:
        for x, w in factors:
            x @ w.T

    return tuple(each / flops for each in seconds_of(multiply, repeats))


def per_operation(repeats: int = 10_000) -> Seconds:
    """Seconds of adding two [B, T] tensors."""
    small = torch.ones(BATCH, RESPONSE)
    return seconds_of(lambda: small + small, repeats)
