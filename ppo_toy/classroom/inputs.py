"""What many exercises share: random inputs, easy to type; slips in a KL and in a mean."""

import torch
from torch import Generator, Tensor

from ppo_toy.kl import kl_divergence


def normal(*shape: int, generator: Generator) -> Tensor:
    """Returns standard normal numbers with two decimals, in double precision, [*shape]."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).round(decimals=2)


def uniform(low: float, high: float, generator: Generator) -> float:
    """Returns one number with two decimals, drawn uniformly from [low, high]."""
    drawn = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
    return round(drawn, 2)


def sizes(k: int, n: int, low: int = 2) -> list[int]:
    """Returns the sizes of n axes in case k: no two the same, and others in the next case."""
    return [low + (i + k) % max(n, 3) for i in range(n)]


def random_mask(b: int, t: int, generator: Generator) -> Tensor:
    """Returns rows of T, T - 1, ... tokens (at least one), in random order; padding stands behind.

    Args:
        b: B, how many rows.
        t: T, the length of the longest.
        generator: on the CPU.

    Returns:
        True where a token counts, [B, T].
    """
    lengths = (t - torch.arange(b)).clamp(min=1)[torch.randperm(b, generator=generator)]
    return torch.arange(t) < lengths[:, None]


def same(x: Tensor, *_: Tensor) -> Tensor:
    """Returns x."""
    return x


def log_p(logits: Tensor) -> Tensor:
    """Returns log-probabilities, [..., V]."""
    return logits.log_softmax(-1)


def drawn(x: Tensor, tokens: Tensor) -> Tensor:
    """Returns the entry of each token drawn: of [..., V] and [...], [...]."""
    return x.gather(-1, tokens[..., None])[..., 0]


def log_ratio(logits: Tensor, ref_logits: Tensor, dim: int = -1) -> Tensor:
    """Returns log p - log q of every token, where the tokens lie along `dim`; same shape."""
    return logits.log_softmax(dim) - ref_logits.log_softmax(dim)


def kl_along(dim: int, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Returns a KL over the last axis of what sums to 1 along another: a slip."""
    return (logits.softmax(dim) * log_ratio(logits, ref_logits, dim)).sum(-1)


KLS = {  # slips in KL(p || q) of logits [B, T, V]
    "the KL's arguments are swapped: the policy stands first": lambda p, q: kl_divergence(q, p),
    "the KL's sign is wrong: it is never negative": lambda p, q: -kl_divergence(p, q),
    "the words are averaged; the KL is their sum": lambda p, q: kl_divergence(p, q) / p.shape[-1],
    "the log-ratios are not weighted by π_θ": lambda p, q: log_ratio(p, q).sum(-1),
    "the log-ratios are weighted by the reference's probabilities": lambda p, q: (
        q.softmax(-1) * log_ratio(p, q)
    ).sum(-1),
    "logits are not log-probabilities: normalise both first": lambda p, q: (
        p.softmax(-1) * (p - q)
    ).sum(-1),
    "the softmax runs over the steps; the words are the last axis": lambda p, q: kl_along(1, p, q),
    "the softmax runs over the responses; the words are the last axis": lambda p, q: kl_along(
        0, p, q
    ),
    "the KL has no gradient: detach nothing": lambda p, q: kl_divergence(p, q).detach(),
}


def hide(x: Tensor, mask: Tensor) -> Tensor:
    """Returns x with 0 behind the mask."""
    return x.masked_fill(~mask, 0)


def mean_of(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over responses of the sum over the tokens that count, []."""
    return hide(x, mask).sum(1).mean()


MEANS = {  # slips in the mean over responses of a sum over the tokens that count
    "the padding counts: cut it off": lambda x, m: x.sum(1).mean(),
    "it is averaged over all tokens; divide by B": lambda x, m: x[m].mean(),
    "it is averaged over [B, T]; divide by B": lambda x, m: mean_of(x, m) / m.shape[1],
    "it is divided by T; divide by B": lambda x, m: hide(x, m).sum() / m.shape[1],
    "a mean of means: add up the tokens of each response": lambda x, m: (
        hide(x, m).sum(1) / m.sum(1)
    ).mean(),
    "the mean over tokens times T is no mean over responses": lambda x, m: x[m].mean() * m.shape[1],
    "the responses are added up; divide by B": lambda x, m: hide(x, m).sum(),
    "the sign is wrong": lambda x, m: -mean_of(x, m),
}
