"""Answers to the exercises of lesson 05 as learners write them."""

from functools import partial

import numpy as np
import torch

# Exercise 05-to-go: right answers in other styles, then wrong ones with what they are told.


def to_go_by_flipping(reward, divergence, price, counts):
    divergence = torch.where(counts, divergence, 0.0)
    from_here_on = divergence.flip(1).cumsum(1).flip(1)
    return (reward.unsqueeze(1) - price * (from_here_on - divergence)).float() * counts


def to_go_as_lists(rewards, kl, beta, mask):
    rows = []
    for r, divergences, counts in zip(rewards, kl, mask, strict=True):
        own = [t for t in range(len(counts)) if counts[t]]
        row = [0] * len(counts)
        for t in own:
            row[t] = r - beta * sum(divergences[s] for s in own if s > t)
        rows.append(row)
    return rows


def to_go_in_a_loop(rewards, kl, beta, mask):
    g, later = torch.zeros_like(kl), torch.zeros_like(rewards)
    for t in reversed(range(kl.shape[1])):
        g[:, t] = (rewards - beta * later) * mask[:, t]
        later = torch.where(mask[:, t], later + kl[:, t], later)
    return g


def to_go(keep_present=False, leak=False, cut=True):
    def answer(rewards, kl, beta, mask):
        kl = kl if leak else torch.where(mask, kl, 0.0)
        later = kl.flip(1).cumsum(1).flip(1) - (0 if keep_present else kl)
        g = rewards[:, None] - beta * later
        return g.masked_fill(~mask, 0) if cut else g

    return answer


def to_go_clamped(small):
    """Guesses the padding by its size, as one could when it was always 99."""
    return lambda r, kl, b, m: to_go(leak=True)(r, kl.where(small(kl), 0), b, m)


WRONG_TO_GO = [
    (to_go(leak=True, cut=False), "the mask is not used at all"),
    (to_go(cut=False), "where the mask is False it must be 0"),
    (to_go_clamped(lambda kl: kl < 50), "the value is not right"),
    (to_go_clamped(lambda kl: (kl < 50) & (kl > 0)), "the value is not right"),
    (to_go_clamped(torch.isfinite), "the value is not right"),
    (lambda r, kl, b, m: to_go(leak=True)(r, kl * m, b, m), "nan comes of"),
    (
        lambda r, kl, b, m: to_go()(r, kl.masked_fill(~m.cumprod(1).bool(), 0), b, m),
        "goes on behind the tool's",
    ),
    (to_go(keep_present=True), "KL of the present step is in it"),
    (lambda r, kl, b, m: to_go()(r, kl, 1, m), "β is missing"),
    (lambda r, kl, b, m: to_go()(r, kl, -b, m), "KL is added"),
    (lambda r, kl, b, m: r[:, None] * m, "this is R alone"),
    (
        lambda r, kl, b, m: (r - b * kl.masked_fill(~m, 0).sum(1))[:, None] * m,
        "pays for the whole response",
    ),
    (
        lambda r, kl, b, m: (r[:, None] - b * kl.where(m, 0).cumsum(1)) * m,
        "runs from the front",
    ),
    (lambda r, kl, b, m: r - b * kl.where(m, 0).sum(1), "shape is not right"),
    (lambda *a: to_go()(*a).abs(), "take no abs"),
    (lambda r, kl, b, m: to_go()(r, kl.masked_fill_(~m, 0), b, m), "kl in place"),
]


# Exercise 05-gae.


def advantage_in_numpy(reward, log_ratio, values, beta, lam):
    r = -beta * log_ratio.numpy()
    r[-1] += reward
    delta = r + np.append(values.numpy()[1:], 0) - values.numpy()
    for t in range(len(delta) - 2, -1, -1):
        delta[t] += lam * delta[t + 1]
    return delta


def advantage_by_powers(reward, log_ratio, values, beta, lam):
    T = len(values)
    v = [*values.tolist(), 0.0]
    r = [-beta * x + (reward if t == T - 1 else 0) for t, x in enumerate(log_ratio.tolist())]
    delta = [r[t] + v[t + 1] - v[t] for t in range(T)]
    return [sum(lam ** (s - t) * delta[s] for s in range(t, T)) for t in range(T)]


def advantage(
    reward, log_ratio, values, beta, lam, *, at=lambda T: [T - 1], after=1, now=1, share=1,
    behind=lambda v: 0.0, order=reversed,
):  # fmt: skip
    T = len(values)
    found, running = torch.zeros(T), 0.0
    for t in order(range(T)):
        r = -beta * log_ratio[t] + (reward if t in at(T) else 0)
        following = values[t + 1] if t + 1 < T else behind(values)
        running = share * (r + after * following - now * values[t]) + lam * running
        found[t] = running
    return found


WRONG_GAE = [
    (partial(advantage, at=range), "every token gets it"),
    (partial(advantage, at=lambda T: [0]), "not with the first"),
    (partial(advantage, at=lambda T: []), "R is missing"),
    (partial(advantage, at=lambda T: [2]), "the value is not right"),
    (partial(advantage, behind=lambda v: v[-1]), "not the last one again"),
    (partial(advantage, behind=lambda v: v[0]), "goes round to the first one"),
    (lambda r, x, *z: advantage(r, -x, *z), "KL is added"),
    (lambda r, x, *z: advantage(r, 0 * x, *z), "the log-ratios are missing"),
    (lambda r, x, *z: advantage(r, x.abs(), *z), "the value is not right"),
    (lambda r, x, v, b, lam: advantage(r, x, v, 1, lam), "β is missing"),
    (lambda *z: advantage(*z[:-1], 1), "λ is missing"),
    (lambda *z: advantage(*z[:-1], 0), "later surprises are missing"),
    (lambda *z: advantage(*z, share=z[-1]), "not the present surprise"),
    (partial(advantage, after=0), "the next value is missing"),
    (partial(advantage, now=0), "the present value is not subtracted"),
    (partial(advantage, after=0, now=0), "the values are missing"),
    (partial(advantage, after=-1, now=-1), "the two are swapped"),
    (partial(advantage, order=iter), "earlier surprises"),
    (lambda *z: advantage_by_powers(*z)[::-1], "put each new one at the front"),
    (lambda *z: advantage(*z).abs(), "take no abs"),
    (lambda *z: advantage(*z).relu(), "do not cut it off"),
    (lambda *z: advantage(*z)[:-1], "shape is not right"),
    (lambda r, x, v, *z: advantage(r, x, v.sub_(1), *z), "values in place"),
]


# Exercise 05-dropped.


def share_by_least_squares(p, pi, q, kl, price):
    rows = torch.stack([-kl, torch.ones(len(p))], dim=1).double()
    told = (pi / p).log() - q / price
    return torch.linalg.lstsq(rows, told[:, None]).solution[0, 0]


def share_in_loops(p, pi, q, kl, price):
    tokens = range(len(p))
    u, v = next((u, v) for u in tokens for v in tokens if kl[u] > kl[v])
    told = [q[w] - price * (pi[w].log() - p[w].log()) for w in (u, v)]
    return ((told[0] - told[1]) / price / (kl[u] - kl[v])).item()


def share(p, pi, q, kl, beta, *, log=torch.log, of=None):
    charged = q - beta * log(pi / p)
    u, v = of or (kl.argmax(), kl.argmin())
    return (charged[u] - charged[v]) / (beta * (kl[u] - kl[v]))


WRONG_DROPPED = [
    (lambda *z: 1 - share(*z), "c is the share charged"),
    (lambda *z: -share(*z), "the sign of c"),
    (lambda *z: z[-1] * share(*z), "divide by β too"),
    (lambda p, *z: share(1, *z), "the reference is missing"),
    (lambda p, pi, q, *z: share(p, pi, 0 * q, *z), "the reward is missing"),
    (lambda p, pi, *z: share(pi, p, *z), "less the reference's"),
    (partial(share, log=lambda x: x), "the logarithm is missing"),
    (
        lambda p, pi, q, k, b: ((q - b * (pi / p).log()) / (b * k))[k.argmax()],
        "in common goes away",
    ),
    (lambda p, pi, q, k, b: share(p, pi, q, k, 1) / b, "β is missing"),
    (partial(share, log=torch.log2), "the value is not right"),
    (partial(share, of=(0, 1)), "the value is not right"),
    (lambda *z: share(*z).clamp(0, 1), "do not cut it off"),
    (lambda *z: share(*z).round(), "the value is not right"),
    (lambda *z: [share(*z)] * 2, "shape is not right"),
    (lambda p, pi, q, *z: share(p, pi, q.sub_(1), *z), "reward_after in place"),
]


RIGHT = {
    "05-to-go": [to_go_by_flipping, to_go_in_a_loop, to_go_as_lists],
    "05-gae": [advantage_in_numpy, advantage_by_powers, advantage],
    "05-dropped": [share_by_least_squares, share_in_loops, share],
}

WRONG = {"05-to-go": WRONG_TO_GO, "05-gae": WRONG_GAE, "05-dropped": WRONG_DROPPED}
