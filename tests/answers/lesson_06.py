"""Answers to the exercises of lesson 06 as learners write them."""

import math
from functools import partial

import numpy as np
import torch

# Exercise 06-left: right answers in other styles, then wrong ones with what they are told.


def left_in_loops(log_probs, old_log_probs):
    x = [sum(row).item() for row in log_probs - old_log_probs]
    r = [math.exp(y - max(x)) for y in x]
    return sum(r) ** 2 / (len(r) * sum(y * y for y in r))


def left(log_probs, old_log_probs, *, whole=lambda x: x.sum(1), share=None):
    x = whole(log_probs - old_log_probs)
    return share(x) if share else 1 / (x.softmax(0) ** 2).sum() / x.numel()


def left_by_variance(log_probs, old_log_probs):
    x = log_probs.sum(1) - old_log_probs.sum(1)
    r = (x - x.max()).exp()
    return 1 / (1 + r.var(correction=0) / r.mean() ** 2)


def left_in_numpy(log_probs, old_log_probs):
    x = (log_probs - old_log_probs).numpy().sum(axis=1)
    r = np.exp(x - np.max(x))
    return r.sum() ** 2 / (r @ r) / r.size


WRONG_LEFT = [
    (partial(left, share=lambda x: x.exp().sum() ** 2 / (x.exp() ** 2).sum() / len(x)), "exp(800)"),
    (partial(left, share=lambda x: 1 / (x.exp() ** 2).mean()), "holds where the mean ratio is 1"),
    (partial(left, share=lambda x: 1 / (x.softmax(0) ** 2).sum()), "this is a size"),
    (
        partial(left, share=lambda x: 1 / (x.clamp(-700, 700).softmax(0) ** 2).sum() / len(x)),
        "the value is not right",
    ),
    (lambda new, old: left(new.clamp(min=-300), old), "the value is not right"),
    (lambda new, old: left(new, old.clamp(min=-300)), "the value is not right"),
    (lambda new, old: left(old, new), "upside down"),
    (partial(left, whole=lambda x: x.flatten()), "each token has a ratio of its own"),
    (partial(left, whole=lambda x: x.mean(1)), "not their mean"),
    (partial(left, whole=lambda x: x.logsumexp(1)), "not their sum"),
    (partial(left, whole=lambda x: x.sum(0)), "the tokens of one are a row"),
    (partial(left, whole=lambda x: x[:, 0]), "the value is not right"),
    (lambda *a: [left(*a)] * 2, "the shape is not right"),
    (lambda new, old: left(new.sub_(1), old), "log_probs in place"),
]


# Exercise 06-whose-kl.


def whose_in_loops(logs):
    for i, batch in enumerate(logs):
        if batch[0] != 0:
            return 2 if i else 3
    return int(all(kl == 0 for batch in logs for kl in batch))


def whose(kl, *, looked_at=slice(None), codes=(0, 1, 2, 3), first=(0, 0)):
    zero = kl == 0
    fine, same, stale, other = codes
    if not zero[first].all():
        return torch.tensor(other)
    code = torch.where(zero.all(), same, fine)
    return torch.where(zero[looked_at, 0].all(), code, stale)


WRONG_WHOSE = [
    (partial(whose, looked_at=slice(-1, None)), "not only the last"),
    (partial(whose, looked_at=slice(1, 2)), "not only the second"),
    (lambda kl: 3 if kl[0, 0] else 2 if kl.sum() else 1, "only the first minibatch of a batch"),
    (
        lambda kl: 3 if kl[0, 0] else 2 if kl[0].sum() else 1 - int(kl.any()),
        "only the first minibatch",
    ),
    (partial(whose, codes=(0, 1, 2, 2)), "is fault 3"),
    (partial(whose, first=(slice(None), 0)), "not only later"),
    (partial(whose, codes=(0, 1, 3, 2)), "2 and 3 are swapped"),
    (partial(whose, codes=(0, 0, 2, 3)), "0 throughout is that of a policy with itself"),
    (partial(whose, codes=(1, 0, 2, 3)), "what moves within a batch is well"),
    (partial(whose, codes=(0, 2, 1, 3)), "the value is not right"),
    (lambda kl: whose(kl) > 0, "the value is not right"),
    (lambda kl: whose(kl)[None], "shape is not right"),
    (lambda kl: whose(kl.add_(0.1)), "kl_old in place"),
]


# Exercise 06-anchors.


def anchors_in_loops(theta, theta_old, theta_ref, drawn, worth, price_old, price_ref):
    p, q, f = (x.softmax(0) for x in (theta, theta_old, theta_ref))
    total = 0
    for v, a in zip(drawn.tolist(), worth.tolist(), strict=True):
        total = total + p[v] / q[v] * a / len(worth)
    brake = price_old * (q * (q / p).log()).sum() + price_ref * (p * (p / f).log()).sum()
    return total - brake


def anchors_by_torch(logits, old_logits, ref_logits, words, advantages, beta_old, beta_ref):
    new, old, ref = (
        torch.distributions.Categorical(logits=x.float()) for x in (logits, old_logits, ref_logits)
    )
    divergence = torch.distributions.kl_divergence
    ratio = (new.log_prob(words) - old.log_prob(words)).exp()
    brakes = beta_old * divergence(old, new) + beta_ref * divergence(new, ref)
    return (ratio * advantages - brakes).mean()


def anchors(
    x, o, f, words, a, b_old, b_ref, *, first="on", second="nr", mean=torch.mean,
    ratio=torch.exp, signs=1, log=lambda y: y.log_softmax(-1),
):  # fmt: skip
    logs = {"n": log(x), "o": log(o), "r": log(f)}

    def kl(p, q):
        return (logs[p].softmax(0) * (logs[p] - logs[q])).sum()

    y = ratio(x.log_softmax(0) - o.log_softmax(0))[words] * a
    return mean(y) - signs * (b_old * kl(*first) + b_ref * kl(*second))


def far(p, q):
    return (p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum()


WRONG_ANCHORS = [
    (partial(anchors, first="no"), "old policy stands first in the first KL"),
    (partial(anchors, second="rn"), "training stands first in the second KL"),
    (partial(anchors, first="no", second="rn"), "swapped in both KLs"),
    (partial(anchors, first="nr", second="on"), "the two prices are swapped"),
    (partial(anchors, first="rn", second="on"), "the value is not right"),
    (partial(anchors, first="nn"), "KL to the old policy is missing"),
    (partial(anchors, second="nn"), "KL to the reference is missing"),
    (partial(anchors, signs=-1), "KLs are added"),
    (partial(anchors, mean=torch.sum), "the words are added up"),
    (partial(anchors, ratio=lambda y: (-y).exp()), "upside down"),
    (partial(anchors, ratio=lambda y: y), "the exponential is missing"),
    (partial(anchors, log=lambda y: y), "normalise all three"),
    (
        lambda x, *z: anchors(x, *z, first="nn") - z[-2] * far(z[0], x.detach()),
        "lost its gradient",
    ),
    (
        lambda x, o, f, k, *z: (
            anchors(x, o, f, k, *z, second="nn")
            - z[-1] * (x.log_softmax(0) - f.log_softmax(0))[k].mean()
        ),
        "this is k1",
    ),
    (
        lambda x, o, f, k, *z: (
            anchors(x, o, f, k, *z, first="nn")
            - z[-2] * (o.log_softmax(0) - x.log_softmax(0))[k].mean()
        ),
        "to the old policy looks at the drawn words only",
    ),
    (lambda *a: anchors(*a).item(), "no gradient reaches logits"),
    (partial(anchors, first="nn", second="nn"), "the value is not right"),
    (lambda *a: anchors(*a).abs(), "take no abs"),
    (lambda *a: anchors(*a)[None], "the shape is not right"),
    (lambda x, o, f, *a: anchors(x, o.sub_(1), f, *a), "old_logits in place"),
]


RIGHT = {
    "06-left": [left_in_loops, left_by_variance, left_in_numpy, left],
    "06-whose-kl": [whose_in_loops, whose],
    "06-anchors": [anchors_in_loops, anchors_by_torch, anchors],
}

WRONG = {
    "06-left": WRONG_LEFT,
    "06-whose-kl": WRONG_WHOSE,
    "06-anchors": WRONG_ANCHORS,
}
