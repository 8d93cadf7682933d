"""Lesson 10, over-optimization, its last exercise: an early stop."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, sizes


def _runs(generator: Generator, k: int) -> dict:
    """Runs that fall before they pass the budget, touch it, stay under it, pass it twice, ..."""
    budget = torch.randint(6, 12, (), generator=generator).item() / 8  # exact in single precision
    parts = [[0, 0.7, 0.3, 1.4, 0.6, 1.8], [0, 0.3, 0.6, 1, 0.4, 1.5], [0, 0.3, 0.7, 0.4, 0.6, 0.5]]
    parts += [[0, 1.5, 0.2, 0.6, 1.3, 1.7], [0, 0.5, 0.2, 1, 0.7, 0.3]]
    order = torch.randperm(*sizes(k, 1, low=3), generator=generator)
    parts = torch.tensor(parts).double()[order]
    moved = parts + 0.2 * torch.rand(parts.shape, generator=generator, dtype=torch.float64)
    kl = budget * parts.where(parts % 1 == 0, moved.round(decimals=2))
    kl = torch.cat([kl, kl[:, -1:]], 1) if k == 1 else kl
    return {"kl": kl, "gold": normal(*kl.shape, generator=generator), "budget": budget}


def _walk(kl: Tensor, gold: Tensor, budget: float) -> Tensor:
    """Step by step, until the budget is spent."""
    ends = []
    for nats, points in zip(kl.tolist(), gold.tolist(), strict=True):
        end = (len(nats) - 1, points[-1])
        for t in reversed(range(len(nats) - 1)):  # the earliest crossing overwrites later ones
            if nats[t] < budget <= nats[t + 1]:
                after, before = budget - nats[t], nats[t + 1] - budget
                mixed = (before * points[t] + after * points[t + 1]) / (before + after)
                end = (t + after / (before + after), mixed)
        ends.append(end)
    return torch.tensor(ends, dtype=torch.float64).T


def _stop(
    find=lambda nats, b: int((nats >= b).nonzero()[0]),
    share=lambda before, after, b: (b - before) / (after - before), step=lambda i, s: i - 1 + s,
    never=lambda g: (len(g) - 1, g[-1]), under=lambda nats, b: nats.max() < b,
):  # fmt: skip
    def answer(kl, gold, budget):
        ends = []
        for nats, g in zip(kl, gold, strict=True):
            if under(nats, budget):
                ends.append(never(g))
                continue
            i = find(nats, budget)
            s = share(nats[i - 1], nats[i], budget)
            ends.append((step(i, s), g[i - 1] + s * (g[i] - g[i - 1])))
        return torch.tensor([[float(x) for x in end] for end in ends], dtype=kl.dtype).T

    return answer


STOP = Exercise(
    name="10-stop",
    draw=_runs,
    route=_walk,
    mistakes={
        "as the buggy one: it counts all notes under the budget": _stop(lambda x, b: (x < b).sum()),
        "searchsorted is for sorted notes; a KL goes up and down": _stop(torch.searchsorted),
        "it stops at the last note over the budget; take the first":
            _stop(lambda x, b: (x >= b).nonzero()[-1, 0]),
        "it stops at the last time; take the first":
            _stop(lambda x, b: ((x[1:] >= b) & (x[:-1] < b)).nonzero()[-1, 0] + 1),
        "a run that reaches the budget stops there, even if it falls back":
            _stop(under=lambda x, b: x[-1] < b),
        "a note at the budget has reached it: >=":
            _stop(lambda x, b: (x > b).nonzero()[0, 0], under=lambda x, b: x.max() <= b),
        "interpolate the KL itself, not the highest yet":
            lambda kl, g, b: _stop()(kl.cummax(1).values, g, b),
        "it stops at the note after; interpolate": _stop(share=lambda x, y, b: 1),
        "it stops at the note before; interpolate": _stop(share=lambda x, y, b: 0),
        "the share is turned round": _stop(share=lambda x, y, b: (y - b) / (y - x)),
        "the step is too large by 1": _stop(step=lambda i, s: i + s),
        "under budget to the end: take the last note": _stop(never=lambda g: (0, g[0])),
        "the rows are swapped: the steps first": lambda kl, g, b: _stop()(kl, g, b).flip(0),
    },
)  # fmt: skip
