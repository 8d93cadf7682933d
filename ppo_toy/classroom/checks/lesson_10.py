"""Lesson 10, over-optimization: a price that is too low, one pot of draws, an early stop."""

import itertools
import math

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, sizes


def _rated(generator: Generator, k: int) -> dict:
    """In case 1 no price is too low, in case 2 a later one earns again, in case 3 β is tiny."""
    n, n_prices = (9, 8, 10, 7)[k], (4, 3, 6, 5)[k]
    while True:
        proxy, noise = normal(2, n, generator=generator)
        gold = (noise + (0.8 if k == 1 else 0.4) * proxy).round(decimals=2)
        betas = torch.tensor([2.0, 0.9, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)[:n_prices]
        if k == 3:  # e to the power of R / β overflows
            proxy, betas[-1] = proxy + 5, 0.004
            proxy[proxy.argmax()] = proxy.topk(2).values[1] + 0.01
        earned, too_low = _by_derivatives(proxy, gold, betas)
        again = (earned[int(too_low) :] > 0).any()
        wanted = too_low == n_prices if k == 1 else 0 < too_low < n_prices and again == (k == 2)
        if wanted and (earned.abs() > 0.01).all():
            return {"proxy": proxy, "gold": gold, "betas": betas}


def _by_derivatives(proxy: Tensor, gold: Tensor, betas: Tensor) -> tuple:
    """KL and gold both move with the price; autograd says how fast."""
    earned = []
    for beta in betas.tolist():
        price = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
        mass = torch.exp((proxy - proxy.max()) / price)
        p = mass / mass.sum()
        moved = (p @ gold, torch.special.entr(p).sum())  # the KL is log N less the entropy
        by_gold, by_kl = (torch.autograd.grad(x, price, retain_graph=True)[0] for x in moved)
        earned.append(-by_gold / by_kl)
    first = next((i for i, x in enumerate(earned) if x < 0), len(earned))
    return torch.stack(earned), torch.tensor(first, dtype=torch.float64)


def _first(earned: Tensor) -> Tensor:
    return (torch.cat([earned, -torch.ones(1)]) < 0).double().argmax()


def _tilt(r: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return (r / b).softmax(1)


def _judge(tilt=_tilt, per=lambda c, r, g, b: b * c / r, which=_first):
    def answer(proxy, gold, betas):
        w = tilt(proxy, gold, betas[:, None])
        x, y = proxy - (w @ proxy)[:, None], gold - (w @ gold)[:, None]
        earned = per(*((w * a * b).sum(1) for a, b in ((x, y), (x, x), (y, y))), betas)
        return earned, which(earned)

    return answer


TOO_FAR = Exercise(
    name="10-too-far",
    draw=_rated,
    route=_by_derivatives,
    mistakes={
        "the weights: all alike is the reference": _judge(lambda r, g, b: (0 * r / b).softmax(1)),
        "the weights: β divides in the exponent": _judge(lambda r, g, b: (r * b).softmax(1)),
        "the weights: β is missing": _judge(lambda r, g, b: (r + 0 * b).softmax(1)),
        "the weights: the proxy tilts them, not gold": _judge(lambda r, g, b: (g / b).softmax(1)),
        "the weights sum to 1 at each price": _judge(lambda r, g, b: (r / b).softmax(0)),
        "per nat: β is missing": _judge(per=lambda c, r, g, b: c / r),
        "per nat: the variance is that of the proxy": _judge(per=lambda c, r, g, b: b * c / g),
        "per nat: the variance is missing": _judge(per=lambda c, r, g, b: b * c),
        "index: K where no price is too low": _judge(which=lambda e: (e < 0).double().argmax()),
        "index: stop at the first; a later price may earn": _judge(which=lambda e: (e > 0).sum()),
        "index: this counts the prices that cost gold": _judge(which=lambda e: (e < 0).sum()),
        "index: the first that costs, not the one that costs most": _judge(which=torch.argmin),
        "index: this is the price before it": _judge(which=lambda e: _first(e) - 1),
        "the two are in the wrong order: the points first": lambda *a: _judge()(*a)[::-1],
    },
)  # fmt: skip


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
    def answer(proxy, gold):
        ranks = range(1, len(gold) + 1)
        table = [[sets(i, n) / (per or math.comb(len(gold), n)) for i in ranks] for n in ranks]
        return torch.tensor(table, dtype=gold.dtype) @ ranked(proxy, gold)

    return answer


POT = Exercise(
    name="10-pot",
    draw=_pot,
    route=_all_sets,
    mistakes={
        "the worst of each set: rank 1 is the lowest proxy": _pool(lambda r, g: g[(-r).argsort()]),
        "it is sorted by gold; the proxy selects": _pool(lambda r, g: g.sort().values),
        "this is the proxy of the best; return its gold": _pool(lambda r, g: r.sort().values),
        "the draws are not sorted": _pool(lambda r, g: g),
        "argsort gives no ranks: index gold with it": _pool(lambda r, g: g[r.argsort().argsort()]),
        "the other n − 1 come from the i − 1 below": _pool(sets=math.comb),
        "it is not divided by the number of sets": _pool(per=1),
    },
)


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
        t = next((t for t in range(1, len(nats)) if nats[t] >= budget), None)
        end = (len(nats) - 1, points[-1])
        if t:
            before, after = budget - nats[t - 1], nats[t] - budget
            mixed = (after * points[t - 1] + before * points[t]) / (before + after)
            end = (t - after / (before + after), mixed)
        ends.append(end)
    return torch.tensor(ends, dtype=torch.float64).T


def _stop(
    find=lambda nats, b: int((nats >= b).nonzero()[0]),
    share=lambda before, after, b: (b - before) / (after - before),
    under=lambda nats, b: nats.max() < b,
):  # fmt: skip
    def answer(kl, gold, budget):
        ends = []
        for nats, g in zip(kl, gold, strict=True):
            if under(nats, budget):
                ends.append((len(g) - 1, g[-1]))
                continue
            i = find(nats, budget)
            s = share(nats[i - 1], nats[i], budget)
            ends.append((i - 1 + s, g[i - 1] + s * (g[i] - g[i - 1])))
        return torch.tensor([[float(x) for x in end] for end in ends], dtype=kl.dtype).T

    return answer


STOP = Exercise(
    name="10-stop",
    draw=_runs,
    route=_walk,
    mistakes={
        "as the buggy one: it counts all notes under the budget": _stop(lambda x, b: (x < b).sum()),
        "searchsorted is for sorted notes; a KL goes up and down": _stop(torch.searchsorted),
        "take the first note over the budget": _stop(lambda x, b: (x >= b).nonzero()[-1, 0]),
        "a run that falls back has stopped before": _stop(under=lambda x, b: x[-1] < b),
        "a note at the budget has reached it: >=":
            _stop(lambda x, b: (x > b).nonzero()[0, 0], under=lambda x, b: x.max() <= b),
        "interpolate the KL, not the highest yet": lambda k, *z: _stop()(k.cummax(1)[0], *z),
        "it stops at the note after; interpolate": _stop(share=lambda x, y, b: 1),
        "it stops at the note before; interpolate": _stop(share=lambda x, y, b: 0),
        "the share is turned round": _stop(share=lambda x, y, b: (y - b) / (y - x)),
        "the rows are swapped: the steps first": lambda kl, g, b: _stop()(kl, g, b).flip(0),
    },
)  # fmt: skip

EXERCISES = [TOO_FAR, POT, STOP]
