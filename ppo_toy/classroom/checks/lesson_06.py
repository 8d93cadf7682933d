"""Lesson 06, proximal: what is left of a batch, whose KL a log shows, two anchors."""

from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import log_ratio, normal, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl

# What is left of a batch.


def _batch(generator: Generator, k: int) -> dict:
    """Log-ratios of both signs; in two cases the exponential of one is out of range."""
    old = -0.5 - normal(*sizes(k, 2), generator=generator).abs()
    new = (old + 0.5 * normal(*old.shape, generator=generator)).round(decimals=2)
    return {"log_probs": new - 800 * (k == 3), "old_log_probs": old - 400 * (k == 2)}


def _share(x: Tensor) -> Tensor:
    """By sums of exponentials, in logarithms."""
    return (2 * x.logsumexp(0) - (2 * x).logsumexp(0)).exp() / len(x)


def _left(new: Tensor, old: Tensor) -> Tensor:
    return _share(torch.stack([row.sum() for row in new - old]))


def _left_with(responses=lambda x: x.sum(1), share=_share):
    return lambda new, old: share(responses(new - old))


LEFT = Exercise(
    name="06-left",
    draw=_batch,
    route=_left,
    own=("share_left",),
    mistakes={
        "exp(800) is ∞: take away the largest log-ratio first":
            _left_with(share=lambda x: x.exp().sum() ** 2 / (2 * x).exp().sum() / len(x)),
        "the ratio is upside down: new over old": _left_with(lambda x: -x.sum(1)),
        "a response has the product of its tokens' ratios, not their sum":
            _left_with(lambda x: x.logsumexp(1)),
        "a response has the product of its tokens' ratios, not their mean":
            _left_with(lambda x: x.mean(1)),
        "here each token has a ratio of its own; a response has their product":
            _left_with(torch.flatten),
        "this adds along the responses; the tokens of one are a row":
            _left_with(lambda x: x.sum(0)),
        "this is a size; divide by B": _left_with(share=lambda x: _share(x) * len(x)),
        "1 / mean of r² holds where the mean ratio is 1; here multiply by its square":
            _left_with(share=lambda x: 1 / (2 * x).exp().mean()),
    },
)  # fmt: skip


# Whose KL a log shows.


def _log(generator: Generator, k: int) -> dict:
    """Cases 0 to 3 have the fault of that number, 6 has an old copy from the third batch on."""
    n, e = sizes(k, 2, low=3)
    steps = 0.01 + normal(n, e, generator=generator).abs().round(decimals=1) / 10
    kl = (steps.cumsum(-1) - steps[:, :1]).round(decimals=3)
    fault = k if k < 4 else 2 if k == 6 else int(torch.randint(4, (), generator=generator))
    if fault == 2:
        stale = torch.arange(n) > 1 if k == 6 else torch.arange(n) == 1
        kl += 0.02 * stale[:, None]
    return {"kl_old": 0 * kl if fault == 1 else kl + 0.003 * (fault == 3)}


def _fault(kl_old: Tensor) -> int:
    """Batch by batch, in plain numbers."""
    first, *others = [batch[0] for batch in kl_old.tolist()]
    if first or any(others):
        return 3 if first else 2
    return int(not sum(map(sum, kl_old.tolist())))


def _told(kl, *, first=lambda x: x[0, 0], later=lambda x: x[:, 0].any(), codes=(0, 1, 2, 3)):
    fine, itself, stale, other = codes
    if first(kl):
        return other
    return stale if later(kl) else fine if kl.any() else itself


WHOSE = Exercise(
    name="06-whose-kl",
    draw=_log,
    route=_fault,
    n_cases=8,
    mistakes={
        "every batch has to begin at 0, not only the last":
            partial(_told, later=lambda x: x[-1, 0]),
        "every batch has to begin at 0, not only the second":
            partial(_told, later=lambda x: x[1, 0]),
        "only the first minibatch of a batch has to be 0": partial(_told, later=torch.any),
        "what is wrong at the very first minibatch is fault 3": partial(_told, codes=(0, 1, 2, 2)),
        "fault 3 is there at the very first minibatch, not only later":
            partial(_told, first=lambda x: x[:, 0].any()),
        "faults 2 and 3 are swapped": partial(_told, codes=(0, 1, 3, 2)),
        "a KL that is 0 throughout is that of a policy with itself":
            partial(_told, codes=(0, 0, 2, 3)),
        "1 is a KL that is 0 throughout; what moves within a batch is well":
            partial(_told, codes=(1, 0, 2, 3)),
    },
)  # fmt: skip


# Both penalties.


def _anchors(generator: Generator, k: int) -> dict:
    v, b = sizes(k, 2, low=3)
    logits = normal(3, v, generator=generator)
    named = dict(zip(("logits", "old_logits", "ref_logits"), logits, strict=True))
    drawn = {"words": torch.randint(v, (b,), generator=generator)}
    drawn["advantages"] = normal(b, generator=generator)
    prices = {"beta_old": uniform(0.3, 0.6, generator), "beta_ref": uniform(0.7, 1.3, generator)}
    return named | drawn | prices


def _anchored(logits, old_logits, ref_logits, words, advantages, beta_old, beta_ref) -> Tensor:
    """Word by word, with probabilities."""
    p, old, ref = (x.exp() / x.exp().sum() for x in (logits, old_logits, ref_logits))
    gains = [p[v] / old[v] * a for v, a in zip(words, advantages, strict=True)]
    total = sum(gains) / len(gains)
    for v in range(len(p)):
        total = total - beta_old * old[v] * torch.log(old[v] / p[v])
        total = total - beta_ref * p[v] * torch.log(p[v] / ref[v])
    return total


def _both(
    x, o, f, words, a, b_old, b_ref, *, kl_old=lambda x, o, k: _kl(o, x),
    kl_ref=lambda x, f, k: _kl(x, f), ratio=torch.exp, mean=torch.mean,
):  # fmt: skip
    """The objective, with something else in the place of some of it."""
    gain = mean(ratio(log_ratio(x, o)[words]) * a)
    return gain - b_old * kl_old(x, o, words) - b_ref * kl_ref(x, f, words)


def _k1(x: Tensor, y: Tensor, words: Tensor) -> Tensor:
    return log_ratio(x, y)[words].mean()


ANCHORS = Exercise(
    name="06-anchors",
    draw=_anchors,
    route=_anchored,
    differentiate=("logits",),
    own=("kl_penalty_surrogate", "kl_divergence", "kl_of_log_probs", "masked_kl"),
    mistakes={
        "the old policy stands first in the first KL":
            partial(_both, kl_old=lambda x, o, k: _kl(x, o)),
        "the policy in training stands first in the second KL":
            partial(_both, kl_ref=lambda x, f, k: _kl(f, x)),
        "who stands first is swapped in both KLs":
            partial(_both, kl_old=lambda x, o, k: _kl(x, o), kl_ref=lambda x, f, k: _kl(f, x)),
        "the two prices are swapped": lambda *z: _both(*z[:5], z[6], z[5]),
        "the KL to the old policy is missing": lambda *z: _both(*z[:5], 0, z[6]),
        "the KL to the reference is missing": lambda *z: _both(*z[:6], 0),
        "the KLs are added; they have to be subtracted": lambda *z: _both(*z[:5], -z[5], -z[6]),
        "the ratio is upside down: new over old": partial(_both, ratio=lambda y: (-y).exp()),
        "the exponential is missing: this is the log-ratio": partial(_both, ratio=lambda y: y),
        "the KL to the old policy looks at the drawn words only":
            partial(_both, kl_old=lambda x, o, k: _k1(o, x, k)),
        "the KL to the reference looks at the drawn words only: this is k1":
            partial(_both, kl_ref=_k1),
        "the words are added up; their mean is wanted": partial(_both, mean=torch.sum),
        "the KL to the old policy lost its gradient":
            partial(_both, kl_old=lambda x, o, k: _kl(o, x).detach()),
        "logits are not log-probabilities: normalise all three first": partial(
            _both, kl_old=lambda x, o, k: o.softmax(-1) @ (o - x),
            kl_ref=lambda x, f, k: x.softmax(-1) @ (x - f),
        ),
    },
)  # fmt: skip

EXERCISES = [LEFT, WHOSE, ANCHORS]
