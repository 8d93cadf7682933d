"""Lesson 11, in the wild, its last exercise: GRPO's beta."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, uniform


def spread(r: Tensor, correction: int = 0) -> Tensor:
    """Returns the standard deviation of each group, [P, 1]; the variance divides by n."""
    return r.std(1, keepdim=True, correction=correction)


def others(g: Tensor) -> Tensor:
    """Returns for each number the mean of the others in its group, [P, n]."""
    return (g.sum(1, keepdim=True) - g) / (g.shape[1] - 1)


def _solved(generator: Generator, k: int) -> dict:
    """Prompts with rewards all alike, some 0 and some 1, tiny ones and others; in any order."""
    p, n = ((4, 5), (5, 6), (4, 3), (4, 5))[k]
    rewards = (torch.arange(n) < torch.arange(p)[:, None]).double()
    rewards = (rewards - torch.randint(2, (p, 1), generator=generator)).abs()
    rewards[2:4] = normal(2, n, generator=generator) * torch.tensor([[1], [2e-5]])
    rewards = torch.stack([row[torch.randperm(n, generator=generator)] for row in rewards])
    rewards = rewards[torch.randperm(p, generator=generator)]
    return {"rewards": rewards, "beta": uniform(0.4, 0.8, generator)}


def _grpo(rewards: Tensor, beta: float) -> tuple:
    """From the differences of all pairs, whose mean square is twice the variance."""
    apart = rewards[:, :, None] - rewards[:, None, :]
    s = (apart.square().mean((1, 2)) / 2).sqrt()
    return apart.mean(2) / s.where(s > 1e-9, torch.inf)[:, None], beta * s


def _normed(
    std=spread, base=lambda r: r.mean(1)[:, None], over=lambda s: s, force=torch.mul, empty=0
):
    def answer(r, b):
        s = std(r)
        return ((r - base(r)) / over(s)).where(s > 0, empty), force(b * torch.ones(len(r)), s[:, 0])

    return answer


GRPO = Exercise(
    name="11-grpo",
    draw=_solved,
    route=_grpo,
    own=("whiten",),
    mistakes={
        "the variance divides by n here: std(correction=0)": _normed(lambda r: spread(r, 1)),
        "where all rewards are alike the advantages are 0, not nan": _normed(empty=torch.nan),
        "divide by s alone; nothing is added to it": _normed(over=lambda s: s + 1e-6),
        "this divides by the variance; s is its root": _normed(over=torch.square),
        "the advantages are not divided by s": _normed(over=torch.ones_like),
        "each group has its own s": _normed(lambda r: spread(r.view(1, -1))),
        "each group has its own mean": _normed(base=torch.mean),
        "each group has its own mean and s": _normed(lambda r: spread(r.view(1, -1)), torch.mean),
        "the mean is not subtracted": _normed(base=torch.zeros_like),
        "the own response is in GRPO's mean; this is RLOO's": _normed(base=others),
        "the coefficient is β times s, not β": _normed(force=lambda b, s: b),
        "the coefficient is β times s; this divides": _normed(force=torch.div),
        "the coefficient is β times s, not s": _normed(force=lambda b, s: s),
        "each prompt has its own coefficient": _normed(force=lambda b, s: (b * s).mean()),
    },
)
