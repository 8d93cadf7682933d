"""Answers to the exercises of lesson 10 as learners write them."""

import math
from fractions import Fraction

import numpy as np
import torch

# Exercise 10-law: right answers in other styles, then wrong ones with what they are told.


def law_with_unique(reference, likes, draws):
    levels, which = likes.float().unique(return_inverse=True)
    mass = torch.zeros_like(levels).index_add(0, which, reference.float())
    top = mass.cumsum(0)
    law = reference.float() * (((top**draws) - (top - mass) ** draws) / mass)[which]
    return law, torch.nn.functional.kl_div(reference.float().log(), law, reduction="sum")


def law_in_loops(p_ref, proxy, n):
    law, p, r = [], p_ref.numpy(), proxy.numpy()
    for i in range(len(p)):
        at_most, less = p[r <= r[i]].sum(), p[r < r[i]].sum()
        law.append(p[i] / p[r == r[i]].sum() * (at_most**n - less**n))
    return np.array(law), sum(a * np.log(a / b) for a, b in zip(law, p, strict=True))


def law_in_plain_python(p_ref, proxy, n):
    p, r = p_ref.tolist(), proxy.tolist()
    both = list(zip(p, r, strict=True))
    out = []
    for a, x in both:
        f, g = sum(b for b, y in both if y <= x), sum(b for b, y in both if y < x)
        out.append(a * (f**n - g**n) / (f - g))
    return [out, sum(a * math.log(a / b) for a, b in zip(out, p, strict=True))]


def law(ties="reference", kl="law", power=lambda f, g, n: f**n - g**n, first=True):
    def answer(p, r, n):
        f = torch.tensor([float(p[r <= x].sum()) for x in r], dtype=p.dtype)
        g = torch.tensor([float(p[r < x].sum()) for x in r], dtype=p.dtype)
        same = torch.tensor([float((r == x).sum()) for x in r], dtype=p.dtype)
        share = {"reference": p / (f - g), "none": 1.0, "alike": 1 / same}[ties]
        out = share * power(f, g, n)
        kls = {
            "law": (out * (out.log() - p.log())).sum(),
            "swapped": (p * (p.log() - out.log())).sum(),
            "bound": np.log(n) - (n - 1) / n,
            "entropy": (out * out.log()).sum(),
        }
        return (out, kls[kl]) if first else (kls[kl], out)

    return answer


def law_by_sorting(p, r, n):
    order = torch.argsort(r, stable=True)
    f = p[order].cumsum(0)
    out = torch.zeros_like(p)
    out[order] = f**n - (f - p[order]) ** n
    return out, (out * (out / p).log()).sum()


WRONG_LAW = [
    (law("none"), "ties are not shared"),
    (law("alike"), "the value is not right"),
    (law_by_sorting, "listed earlier"),
    (law(kl="bound"), "only a bound"),
    (law(kl="swapped"), "arguments are swapped"),
    (law(kl="entropy"), "lacks the reference"),
    (law(power=lambda f, g, n: f**n), "F⁻ is missing"),
    (law(power=lambda f, g, n: (1 - g) ** n - (1 - f) ** n), "the worst of n"),
    (lambda p, r, n: law()(p, r, n + 1), "the value is not right"),
    (lambda p, r, n: law()(p, -r, n), "the worst of n"),
    (law(first=False), "wrong order"),
    (lambda p, r, n: law()(p[:4], r[:4], n), "shape is not right"),
    (lambda p, r, n: law()(p, r, max(n, 2)), "the value is not right"),
    (lambda p, r, n: (law()(p, r, n)[0], -law()(p, r, n)[1]), "its sign is"),
    (lambda p, r, n: law()(p.div_(p.sum() + 0.1), r, n), "p_ref in place"),
    (lambda p, r, n: law()(p, r, n)[0], "shape is not right"),
]


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
    (pot(top=lambda i, n: (i + 1) ** n - i**n, below=lambda s, n: s**n), "put back"),
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


# Exercise 10-next-nat.


def nat_in_loops(p_ref, proxy, gold, beta):
    mass = [p * math.exp(r / beta) for p, r in zip(p_ref.tolist(), proxy.tolist(), strict=True)]
    p = [m / sum(mass) for m in mass]

    def mean(x):
        return sum(a * b for a, b in zip(p, x.tolist(), strict=True))

    kl = sum(a * math.log(a / b) for a, b in zip(p, p_ref.tolist(), strict=True))
    slope = (mean(gold * proxy) - mean(gold) * mean(proxy)) / (mean(proxy**2) - mean(proxy) ** 2)
    return kl, mean(gold), beta * slope


def nat_by_torch(f, r, g, price):
    f, r, g = f.float(), r.float(), g.float()
    p = torch.softmax(f.log() + r / price, dim=0)
    table = torch.cov(torch.stack([g, r]), aweights=p, correction=0)
    return (p / f).log() @ p, g @ p, price * table[0, 1] / table[1, 1]


def nat_stacked(p_ref, proxy, gold, beta):
    log_p = (p_ref.log() + proxy / beta).log_softmax(0)
    p = log_p.exp()
    mean = torch.stack([gold, proxy]) @ p
    cov = torch.einsum("v,iv,jv->ij", p, *[torch.stack([gold, proxy]) - mean[:, None]] * 2)
    return torch.stack([p @ (log_p - p_ref.log()), mean[0], beta * cov[0, 1] / cov[1, 1]])


def nat(tilt=lambda f, r, g, b: f.log() + r / b, weights=None, slope=None, swap=False):
    def answer(f, r, g, b):
        p = tilt(f, r, g, b).softmax(0)
        w = weights(p, f) if weights else p
        cov = (w * (g - (w * g).sum()) * (r - (w * r).sum())).sum()
        var_r, var_g = ((w * (x - (w * x).sum()) ** 2).sum() for x in (r, g))
        kl = (f * (f / p).log()).sum() if swap else (p * (p / f).log()).sum()
        return kl, (p * g).sum(), slope(cov, var_r, var_g, b) if slope else b * cov / var_r

    return answer


WRONG_NAT = [
    (nat(lambda f, r, g, b: f.log() + r * b), "β divides in the exponent"),
    (nat(lambda f, r, g, b: r / b), "the reference is missing"),
    (nat(lambda f, r, g, b: f.log() + g / b), "the proxy tilts it"),
    (nat(lambda f, r, g, b: f.log() + r), "the policy: β is missing"),
    (nat(lambda f, r, g, b: f + r / b), "the value is not right"),
    (nat(swap=True), "arguments are swapped"),
    (nat(weights=lambda p, f: f), "under the reference"),
    (nat(weights=lambda p, f: torch.full_like(p, 1 / len(p))), "the value is not right"),
    (nat(slope=lambda c, r, g, b: c / r), "per nat: β is missing"),
    (nat(slope=lambda c, r, g, b: c / r / b), "the value is not right"),
    (nat(slope=lambda c, r, g, b: b * c / g), "is that of the proxy"),
    (nat(slope=lambda c, r, g, b: b * c / (r * g) ** 0.5), "the value is not right"),
    (nat(slope=lambda c, r, g, b: b * c / r**0.5), "the value is not right"),
    (nat(slope=lambda c, r, g, b: b * c), "the variance is missing"),
    (lambda *a: nat()(*a)[2], "shape is not right"),
    (lambda *a: torch.stack(nat()(*a))[:2], "shape is not right"),
    (lambda *a: torch.stack(nat()(*a)).abs(), "take no abs"),
    (lambda *a: torch.stack(nat()(*a)).clamp(min=0), "do not cut it off"),
    (lambda f, r, g, b: nat()(f, r, g.sub_(1), b), "gold in place"),
    (nat(slope=lambda c, r, g, b: c / b), "the value is not right"),
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
    (stop(lambda x, b: torch.where(x >= b)[0][-1]), "at the last note over the budget"),
    (stop(lambda x, b: 1 + torch.where((x >= b).diff() & (x[1:] >= b))[0][-1]), "the last time"),
    (stop(lambda x, b: torch.searchsorted(x, b)), "searchsorted is for sorted notes"),
    (stop(lambda x, b: np.searchsorted(x.numpy(), b)), "searchsorted is for sorted notes"),
    (stop(under=lambda x, b: x[-1] < b), "even if it falls back"),
    (stop(under=lambda x, b: x.max() <= b), "even if it falls back"),
    (
        stop(lambda x, b: (x > b).nonzero()[0], under=lambda x, b: not (x > b).any()),
        "a note at the budget has reached it",
    ),
    (stop(share=lambda x, y, b: 1), "the note after"),
    (stop(share=lambda x, y, b: 0), "the note before"),
    (stop(share=lambda x, y, b: 1 - (b - x) / (y - x)), "turned round"),
    (stop(late=1), "too large by 1"),
    (stop(never=0), "take the last note"),
    (stop(last=lambda kl: len(kl) - 1), "the value is not right"),
    (stop(share=lambda x, y, b: b / y), "the value is not right"),
    (lambda *a: stop()(*a).flip(0), "the rows are swapped"),
    (lambda *a: stop()(*a).T, "shape is not right"),
    (stop_at_the_running_maximum, "interpolate the KL itself"),
    (lambda *a: stop()(*a).abs(), "take no abs"),
    (lambda kl, g, b: stop()(kl[:, :6], g[:, :6], b), "the value is not right"),
    (lambda kl, g, b: stop()(kl.copy_(kl.cummax(1).values), g, b), "kl in place"),
    (stop(last=lambda kl: 5), "the value is not right"),
]


RIGHT = {
    "10-law": [law_with_unique, law_in_loops, law(), law_in_plain_python],
    "10-pot": [pot_with_fractions, pot_by_ranks, pot(), pot_as_a_list],
    "10-next-nat": [nat_in_loops, nat_by_torch, nat(), nat_stacked],
    "10-stop": [stop_in_steps, stop_at_once, stop_at_the_highest_yet, stop(), stop_in_two_lists],
}

WRONG = {
    "10-law": WRONG_LAW,
    "10-pot": WRONG_POT,
    "10-next-nat": WRONG_NAT,
    "10-stop": WRONG_STOP,
}
