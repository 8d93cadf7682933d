"""Lesson 10, over-optimization: best-of-n, one pot of draws, the next nat, an early stop."""

import itertools
import math

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.checks.lesson_10_stop import STOP
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, sizes, uniform


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


# The law of best-of-n.


def _tied(generator: Generator, k: int) -> dict:
    """Two best, two worst, others between; a single draw in case 1."""
    (size,) = sizes(k, 1, low=4)
    levels = torch.arange(size).clamp(1, size - 2)[torch.randperm(size, generator=generator)]
    proxy = normal(size, generator=generator)[levels]
    n = 1 if k == 1 else torch.randint(2, 5, (), generator=generator).item()
    return {"p_ref": normal(size, generator=generator).softmax(-1), "proxy": proxy, "n": n}


def _all_draws(p_ref: Tensor, proxy: Tensor, n: int) -> tuple:
    """Every sequence of n draws; of those that the proxy likes best, the first is kept."""
    odds, likes, law = p_ref.tolist(), proxy.tolist(), [0.0] * len(p_ref)
    for drawn in itertools.product(range(len(odds)), repeat=n):
        law[max(drawn, key=lambda y: likes[y])] += math.prod(odds[y] for y in drawn)
    nats = sum(p * math.log(p / q) for p, q in zip(law, odds, strict=True))
    return torch.tensor(law, dtype=torch.float64), nats


def _up_to(p: Tensor, proxy: Tensor) -> tuple[Tensor, Tensor]:
    """F, and the same for less."""
    return tuple((t * p).sum(1) for t in (proxy <= proxy[:, None], proxy < proxy[:, None]))


def _in_list(p: Tensor, proxy: Tensor) -> tuple[Tensor, Tensor]:
    order = proxy.argsort(stable=True)
    f = torch.zeros_like(p).index_put((order,), p[order].cumsum(0))
    return f, f - p


def _best(mass=lambda f, g, n: f**n - g**n, shared=True, kl=_kl, up_to=_up_to):
    """An answer with other parts; f is F, and g is the same for less."""

    def answer(p_ref, proxy, n):
        f, g = up_to(p_ref, proxy)
        law = mass(f, g, n) * (p_ref / (f - g) if shared else 1)
        return law, kl(law, p_ref)

    return answer


LAW = Exercise(
    name="10-law",
    draw=_tied,
    route=_all_draws,
    mistakes={
        "ties are not shared: each gets what all have together": _best(shared=False),
        "a tie counts as less if it is listed earlier": _best(up_to=_in_list),
        "F⁻ is missing: F to the power n is for at most": _best(lambda f, g, n: f**n),
        "this is the worst of n": _best(lambda f, g, n: (1 - g) ** n - (1 - f) ** n),
        "the KL is the formula, which is only a bound":
            lambda p, r, n: (_best()(p, r, n)[0], math.log(n) - (n - 1) / n),
        "the KL's arguments are swapped: the law stands first": _best(kl=lambda p, q: _kl(q, p)),
        "the KL lacks the reference: this is minus the entropy": _best(kl=lambda p, q: _kl(p, 1)),
        "the two are in the wrong order: the law first": lambda p, r, n: _best()(p, r, n)[::-1],
    },
)  # fmt: skip


# One pot of draws.


def _pot(generator: Generator, k: int) -> dict:
    (size,) = sizes(k, 1, low=4)
    proxy = torch.randperm(size, generator=generator) / 2 - 1
    return {"proxy": proxy.double(), "gold": normal(size, generator=generator)}


def _all_sets(proxy: Tensor, gold: Tensor) -> Tensor:
    """The mean over all sets of n draws, set by set."""
    n_draws, means = len(gold), []
    for n in range(1, n_draws + 1):
        sets = list(itertools.combinations(range(n_draws), n))
        means.append(sum(gold[max(s, key=lambda i: proxy[i])] for s in sets) / len(sets))
    return torch.stack(means)


def _pool(ranked=lambda r, g: g[r.argsort()], sets=lambda i, n: math.comb(i - 1, n - 1), per=None):
    """From the number of sets in which rank i is the best, divided by the number of all."""

    def answer(proxy, gold):
        ranks = range(1, len(gold) + 1)
        table = [[sets(i, n) / (per or math.comb(len(gold), n)) for i in ranks] for n in ranks]
        return torch.tensor(table, dtype=gold.dtype) @ ranked(proxy, gold)

    return answer


def _put_back(proxy: Tensor, gold: Tensor) -> Tensor:
    n, size = torch.arange(1, len(gold) + 1)[:, None], len(gold)
    at_most = torch.arange(size + 1).to(gold) / size
    return (at_most**n).diff(dim=1) @ gold[proxy.argsort()]


POT = Exercise(
    name="10-pot",
    draw=_pot,
    route=_all_sets,
    mistakes={
        "the draws are put back; the formula takes sets without": _put_back,
        "the worst of each set: rank 1 is the lowest proxy": _pool(lambda r, g: g[(-r).argsort()]),
        "it is sorted by gold; the proxy selects": _pool(lambda r, g: g.sort().values),
        "this is the proxy of the best; return its gold": _pool(lambda r, g: r.sort().values),
        "the draws are not sorted": _pool(lambda r, g: g),
        "argsort gives no ranks: index gold with it": _pool(lambda r, g: g[r.argsort().argsort()]),
        "the other n − 1 come from the i − 1 below": _pool(sets=math.comb),
        "it is not divided by the number of sets": _pool(per=1),
    },
)


# The next nat.


def _three_vectors(generator: Generator, k: int) -> dict:
    proxy, noise = normal(2, *sizes(k, 1, low=3), generator=generator)
    gold = (noise + proxy * (0.5, -1, 1, 0.5)[k]).round(decimals=2)
    p_ref = normal(len(gold), generator=generator).softmax(-1)
    return {"p_ref": p_ref, "proxy": proxy, "gold": gold, "beta": uniform(0.5, 0.9, generator)}


def _by_derivatives(p_ref: Tensor, proxy: Tensor, gold: Tensor, beta: float) -> tuple:
    """Both move with the price; autograd says how fast."""
    price = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    mass = p_ref * torch.exp(proxy / price)
    p = mass / mass.sum()
    kl, mean = _kl(p, p_ref), p @ gold
    spent, earned = (torch.autograd.grad(x, price, retain_graph=True)[0] for x in (kl, mean))
    return kl.detach(), mean.detach(), earned / spent


def _cov(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return p @ (x * y) - (p @ x) * (p @ y)


def _next(
    tilt=lambda f, r, g, b: f * (r / b).exp(), per=lambda c, r, g, b: b * c / r,
    under=lambda p, f: p, kl=_kl,
):  # fmt: skip
    """An answer with other parts; `per` is given the covariance, both variances and β."""

    def answer(p_ref, proxy, gold, beta):
        mass = tilt(p_ref, proxy, gold, beta)
        p = mass / mass.sum()
        w, pairs = under(p, p_ref), ((gold, proxy), (proxy, proxy), (gold, gold))
        return kl(p, p_ref), p @ gold, per(*(_cov(w, x, y) for x, y in pairs), beta)

    return answer


NEXT_NAT = Exercise(
    name="10-next-nat",
    draw=_three_vectors,
    route=_by_derivatives,
    own=("optimum", "frontier"),
    mistakes={
        "the policy: β divides in the exponent": _next(lambda f, r, g, b: f * (r * b).exp()),
        "the policy: the reference is missing": _next(lambda f, r, g, b: (r / b).exp()),
        "the policy: the proxy tilts it, not gold": _next(lambda f, r, g, b: f * (g / b).exp()),
        "the policy: β is missing": _next(lambda f, r, g, b: f * r.exp()),
        "the KL's arguments are swapped: the policy stands first": _next(kl=lambda p, q: _kl(q, p)),
        "per nat: β is missing": _next(per=lambda c, r, g, b: c / r),
        "per nat: this is under the reference; the policy has moved": _next(under=lambda p, f: f),
        "per nat: the variance is that of the proxy": _next(per=lambda c, r, g, b: b * c / g),
        "per nat: the variance is missing": _next(per=lambda c, r, g, b: b * c),
    },
)

EXERCISES = [LAW, POT, NEXT_NAT, STOP]
