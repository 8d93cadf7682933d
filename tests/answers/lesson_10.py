"""Answers to the exercises of lesson 10 as learners write them."""

import math
from fractions import Fraction

import numpy as np
import torch

# Exercise 10-too-far: right answers in other styles, then wrong ones with what they are told.


def far_in_loops(proxy, gold, betas):
    earned, first = [], None
    for k, beta in enumerate(betas.tolist()):
        top = proxy.max().item()
        mass = [math.exp((r - top) / beta) for r in proxy.tolist()]
        w = torch.tensor(mass, dtype=gold.dtype) / sum(mass)
        r, g = (w * proxy).sum(), (w * gold).sum()
        cov, var = (w * proxy * gold).sum() - r * g, (w * proxy**2).sum() - r**2
        earned.append((beta * cov / var).item())
        if earned[-1] < 0 and first is None:
            first = k
    return earned, len(earned) if first is None else first


def far_with_numpy(r, g, b):
    r, g, b = r.numpy(), g.numpy(), b.numpy()
    points = []
    for price in b:
        w = np.exp((r - r.max()) / price)
        table = np.cov(g, r, aweights=w, bias=True)
        points.append(price * table[0, 1] / table[1, 1])
    below = np.flatnonzero(np.array(points) < 0)
    return np.array(points), below[0] if below.size else len(b)


def far_at_once(proxy, gold, betas):
    w = torch.softmax(proxy / betas.unsqueeze(1), dim=1)
    mean_r, mean_g = w @ proxy, w @ gold
    cov, var = w @ (proxy * gold) - mean_r * mean_g, w @ proxy**2 - mean_r**2
    earned = betas * cov / var
    return earned, (earned < 0).int().cumsum(0).eq(0).sum()


def far(tilt=lambda r, g, b: r / b, dim=1, slope=lambda c, r, g, b: b * c / r, which=None):
    def answer(r, g, betas):
        w = tilt(r, g, betas.reshape(-1, 1)).softmax(dim)
        dr, dg = r - (w * r).sum(1, keepdim=True), g - (w * g).sum(1, keepdim=True)
        earned = slope((w * dr * dg).sum(1), (w * dr**2).sum(1), (w * dg**2).sum(1), betas)
        costs = torch.where(earned < 0)[0]
        return earned, which(earned) if which else costs[0] if len(costs) else len(earned)

    return answer


def far_by_exponentials(r, g, b):
    w = (r / b[:, None]).exp()
    w = w / w.sum(1, keepdim=True)
    dr = r - (w @ r)[:, None]
    earned = b * ((w * dr) @ g) / (w * dr**2).sum(1)
    return earned, next((k for k, x in enumerate(earned) if x < 0), len(b))


WRONG_FAR = [
    (far(lambda r, g, b: 0 * r / b), "all alike is the reference"),
    (far(lambda r, g, b: r * b), "β divides in the exponent"),
    (far(lambda r, g, b: r + 0 * b), "the weights: β is missing"),
    (far(lambda r, g, b: g / b), "the proxy tilts them"),
    (far(lambda r, g, b: r / b - math.log(len(r)) * r), "the value is not right"),
    (far(dim=0), "sum to 1 at each price"),
    (far_by_exponentials, "nan comes of"),
    (far(slope=lambda c, r, g, b: c / r), "per nat: β is missing"),
    (far(slope=lambda c, r, g, b: c / r / b), "the value is not right"),
    (far(slope=lambda c, r, g, b: b * c / g), "is that of the proxy"),
    (far(slope=lambda c, r, g, b: b * c / (r * g) ** 0.5), "the value is not right"),
    (far(slope=lambda c, r, g, b: b * c), "the variance is missing"),
    (far(which=lambda e: (e < 0).int().argmax()), "K where no price is too low"),
    (far(which=lambda e: (e >= 0).sum()), "stop at the first"),
    (far(which=lambda e: e.argmin()), "not the one that costs most"),
    (far(which=lambda e: far_first(e) - 1), "the price before it"),
    (far(which=lambda e: far_first(e) + 1), "the value is not right"),
    (lambda *a: far()(*a)[::-1], "wrong order"),
    (lambda *a: far()(*a)[0], "shape is not right"),
    (lambda *a: (far()(*a)[0].abs(), far()(*a)[1]), "take no abs"),
    (lambda *a: (far()(*a)[0].clamp(min=0), far()(*a)[1]), "do not cut it off"),
    (lambda r, g, b: far()(r, g.sub_(1), b), "gold in place"),
]


def far_first(earned):
    return next((k for k, x in enumerate(earned) if x < 0), len(earned))


# Exercise 10-pot.


def pot_with_fractions(proxy, gold):
    size, curve = len(proxy), []
    pairs = sorted(zip(proxy.tolist(), gold.tolist(), strict=True))
    for n in range(1, size + 1):
        weights = [Fraction(math.comb(i, n - 1), math.comb(size, n)) for i in range(size)]
        curve.append(sum(float(w) * g for w, (_, g) in zip(weights, pairs, strict=True)))
    return np.array(curve)


def pot_by_ranks(likes, worth):
    size = likes.shape[0]
    rank = likes.argsort().argsort().float()
    curve, weight = torch.zeros(size), torch.full_like(rank, 1 / size)
    for n in range(1, size + 1):
        curve[n - 1] = weight @ worth.float()
        weight = weight * (rank - n + 1) / (size - n) * (n + 1) / n if n < size else weight
    return curve


def pot_as_a_list(proxy, gold):
    ranked = [g for _, g in sorted(zip(proxy.tolist(), gold.tolist(), strict=True))]
    size = len(ranked)
    return [
        sum(math.comb(i, n) * g for i, g in enumerate(ranked)) / math.comb(size, n + 1)
        for n in range(size)
    ]


def pot(sort=lambda r, g: g[torch.argsort(r)], top=lambda i, n: math.comb(i, n - 1), below=None):
    def answer(r, g):
        g, curve = sort(r, g), []
        for n in range(1, len(g) + 1):
            total = sum(top(i, n) * g[i] for i in range(len(g)))
            curve.append(total / (below(len(g), n) if below else math.comb(len(g), n)))
        return torch.stack(curve)

    return answer


WRONG_POT = [
    (pot(lambda r, g: g[r.argsort(descending=True)]), "the worst of each set"),
    (pot(lambda r, g: g.sort()[0]), "sorted by gold"),
    (pot(lambda r, g: r.sort()[0]), "proxy of the best"),
    (pot(lambda r, g: g), "not sorted"),
    (pot(lambda r, g: g[r.argsort().argsort()]), "argsort gives no ranks"),
    (pot(top=lambda i, n: math.comb(i + 1, n)), "come from the i − 1 below"),
    (pot(below=lambda size, n: 1), "not divided by the number"),
    (
        lambda r, g: torch.stack([g[r[: n + 1].argmax()] for n in range(len(g))]),
        "the value is not right",
    ),
    (lambda r, g: pot()(r, g)[1:], "shape is not right"),
    (lambda r, g: 2 * pot()(r, g), "the value is not right"),
    (lambda r, g: pot()(r, g).abs(), "take no abs"),
    (lambda r, g: pot()(r, g).clamp(min=0), "do not cut it off"),
    (lambda r, g: pot()(r, g)[:4], "shape is not right"),
    (lambda r, g: pot()(r, g.copy_(g[r.argsort()])), "gold in place"),
]


# Exercise 10-stop.


def stop_in_steps(kl, gold, budget):
    ends = np.zeros((2, len(kl)))
    for run in range(len(kl)):
        x, y = kl[run].numpy(), gold[run].numpy()
        ends[:, run] = len(x) - 1, y[-1]
        for i in range(1, len(x)):
            if x[i] >= budget:
                ends[0, run] = np.interp(budget, x[i - 1 : i + 1], [i - 1, i])
                ends[1, run] = np.interp(budget, x[i - 1 : i + 1], y[i - 1 : i + 1])
                break
    return ends


def stop_at_once(nats, points, budget):
    over = nats.float() >= budget
    runs, i = torch.arange(len(nats)), over.float().argmax(dim=1).clamp(min=1)
    share = (budget - nats[runs, i - 1]) / (nats[runs, i] - nats[runs, i - 1])
    here = torch.lerp(points[runs, i - 1], points[runs, i], share)
    last = torch.full_like(share, nats.shape[1] - 1)
    reached = over.any(dim=1)
    end = torch.stack([i - 1 + share, here])
    return torch.where(reached, end, torch.stack([last, points[:, -1]]))


def stop_at_the_highest_yet(kl, gold, budget):
    ends = []
    for x, peak, y in zip(kl.numpy(), kl.cummax(dim=1).values.numpy(), gold.numpy(), strict=True):
        i = np.searchsorted(peak, budget)
        if i == len(x):
            ends.append((i - 1, y[-1]))
        else:
            s = (budget - x[i - 1]) / (x[i] - x[i - 1])
            ends.append((i - 1 + s, (1 - s) * y[i - 1] + s * y[i]))
    return np.array(ends).T


def stop_at_the_running_maximum(kl, gold, budget):
    return stop_in_steps(torch.cummax(kl, dim=1)[0], gold, budget)


def stop_in_two_lists(kl, gold, budget):
    steps, points = [], []
    for x, y in zip(kl.tolist(), gold.tolist(), strict=True):
        i = next((i for i, nats in enumerate(x) if nats >= budget), None)
        s = 1 if i is None else (budget - x[i - 1]) / (x[i] - x[i - 1])
        i = len(x) - 1 if i is None else i
        steps.append(i - 1 + s)
        points.append((1 - s) * y[i - 1] + s * y[i])
    return steps, points


def stop_as_published(kl, gold, budget):
    result = torch.zeros(2, len(kl))
    for run, (nats, points) in enumerate(zip(kl, gold, strict=True)):
        if nats.max() < budget:
            result[:, run] = torch.stack([torch.tensor(len(nats) - 1), points[-1]])
            continue
        i = (nats < budget).sum()
        share = (budget - nats[i - 1]) / (nats[i] - nats[i - 1])
        here = points[i - 1] + share * (points[i] - points[i - 1])
        result[:, run] = torch.stack([i - 1 + share, here])
    return result


def stop(
    first=lambda x, b: (x >= b).tolist().index(True), share=None, late=0, never=None,
    under=lambda x, b: (x < b).all(), last=lambda kl: kl.shape[1] - 1,
):  # fmt: skip
    def answer(kl, gold, budget):
        steps, points = [], []
        for x, y in zip(kl, gold, strict=True):
            if under(x, budget):
                steps.append(last(kl) if never is None else never)
                points.append(y[-1 if never is None else never].item())
                continue
            i = int(first(x, budget))
            s = share(x[i - 1], x[i], budget) if share else (budget - x[i - 1]) / (x[i] - x[i - 1])
            steps.append(i - 1 + float(s) + late)
            points.append((y[i - 1] + s * (y[i] - y[i - 1])).item())
        return torch.tensor([steps, points])

    return answer


WRONG_STOP = [
    (stop_as_published, "as the buggy one"),
    (stop(lambda x, b: sum(x < b)), "as the buggy one"),
    (stop(lambda x, b: torch.where(x >= b)[0][-1]), "the first note over"),
    (
        stop(lambda x, b: 1 + torch.where((x >= b).diff() & (x[1:] >= b))[0][-1]),
        "the value is not right",
    ),
    (stop(lambda x, b: torch.searchsorted(x, b)), "searchsorted is for sorted notes"),
    (stop(lambda x, b: np.searchsorted(x.numpy(), b)), "searchsorted is for sorted notes"),
    (stop(under=lambda x, b: x[-1] < b), "falls back"),
    (stop(under=lambda x, b: x.max() <= b), "falls back"),
    (
        stop(lambda x, b: (x > b).nonzero()[0], under=lambda x, b: not (x > b).any()),
        "a note at the budget has reached it",
    ),
    (stop(share=lambda x, y, b: 1), "the note after"),
    (stop(share=lambda x, y, b: 0), "the note before"),
    (stop(share=lambda x, y, b: 1 - (b - x) / (y - x)), "turned round"),
    (stop(late=1), "the value is not right"),
    (stop(never=0), "the value is not right"),
    (stop(last=lambda kl: len(kl) - 1), "the value is not right"),
    (stop(share=lambda x, y, b: b / y), "the value is not right"),
    (lambda *a: stop()(*a).flip(0), "the rows are swapped"),
    (lambda *a: stop()(*a).T, "shape is not right"),
    (stop_at_the_running_maximum, "not the highest yet"),
    (lambda *a: stop()(*a).abs(), "take no abs"),
    (lambda kl, g, b: stop()(kl[:, :6], g[:, :6], b), "the value is not right"),
    (lambda kl, g, b: stop()(kl.copy_(kl.cummax(1).values), g, b), "kl in place"),
    (stop(last=lambda kl: 5), "the value is not right"),
]


RIGHT = {
    "10-too-far": [far_in_loops, far_with_numpy, far_at_once, far()],
    "10-pot": [pot_with_fractions, pot_by_ranks, pot(), pot_as_a_list],
    "10-stop": [stop_in_steps, stop_at_once, stop_at_the_highest_yet, stop(), stop_in_two_lists],
}

WRONG = {
    "10-too-far": WRONG_FAR,
    "10-pot": WRONG_POT,
    "10-stop": WRONG_STOP,
}
