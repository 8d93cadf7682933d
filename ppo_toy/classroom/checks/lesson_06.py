"""Lesson 06, proximal: what is left of a batch, whose KL a log shows, two anchors."""

import itertools
import math

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import KLS, drawn, log_ratio, normal, random_mask, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl

# What is left of a batch.


def _batch(generator: Generator, k: int) -> dict:
    """Log-ratios of both signs; in two cases the exponential of one is out of range."""
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    old = -0.5 - normal(b, t, generator=generator).abs()
    new = (old + 0.5 * normal(b, t, generator=generator)).round(decimals=2)
    old, new = old - 400 * (k == 2), new - 800 * (k == 3)
    old, new = old.masked_fill(~mask, -4), new.masked_fill(~mask, -1)  # a padded ratio of e^3
    return {"log_probs": new, "old_log_probs": old, "mask": mask}


def _share(x: Tensor) -> Tensor:
    """By sums of exponentials, in logarithms."""
    twice = 2 * x.logsumexp(0)
    return (twice - (2 * x).logsumexp(0)).exp() / len(x)


def _left(new: Tensor, old: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    x = new - old
    rows = torch.stack([row[counts].sum() for row, counts in zip(x, mask, strict=True)])
    return _share(rows), _share(x[mask])


def _left_with(
    sign=1, share=_share, responses=lambda x, m: (x * m).sum(1), tokens=lambda x, m: x[m]
):
    def answer(new, old, mask):
        x = sign * (new - old)
        return share(responses(x, mask)), share(tokens(x, mask))

    return answer


def _plain(x: Tensor) -> Tensor:
    return x.exp().sum() ** 2 / (2 * x).exp().sum() / len(x)


LEFT = Exercise(
    name="06-left",
    draw=_batch,
    route=_left,
    own=("share_left",),
    mistakes={
        "exp(800) is ∞: take away the largest log-ratio first": _left_with(share=_plain),
        "the ratio is upside down: new over old": _left_with(-1),
        "the padding counts: cut it off":
            _left_with(responses=lambda x, m: x.sum(1), tokens=lambda x, m: x.flatten()),
        "padded tokens have no ratio, not the ratio 1":
            _left_with(tokens=lambda x, m: (x * m).flatten()),
        "a response has the product of its tokens' ratios, not their sum":
            _left_with(responses=lambda x, m: x.masked_fill(~m, -math.inf).logsumexp(1)),
        "a response has the product of its tokens' ratios, not their mean":
            _left_with(responses=lambda x, m: (x * m).sum(1) / m.sum(1)),
        "these are sizes; divide by how many there are":
            _left_with(share=lambda x: _share(x) * len(x)),
        "1 / mean of r² holds where the mean ratio is 1; here divide by its square":
            _left_with(share=lambda x: 1 / (2 * x).exp().mean()),
    },
)  # fmt: skip


# Whose KL a log shows.


def _logs(generator: Generator, k: int) -> dict:
    """All faults in random order; in the last case there is one minibatch for each batch."""
    g, n, e = sizes(k, 3, low=3)
    e = 1 if k == 3 else e
    steps = 0.01 + normal(g, n, e, generator=generator).abs().round(decimals=1) / 10
    kl, order = steps.cumsum(-1) - steps[..., :1], torch.randperm(4, generator=generator).tolist()
    for i in range(g):
        fault = order[i % 4]
        if fault == 0 and e > 1:
            kl[i, -1] = 0  # a batch that taught nothing
        if fault == 1 and e > 1:
            kl[i] = 0
        if fault == 2:
            stale = torch.arange(n) > 1 if k % 2 else torch.arange(n) == 1
            kl[i] += 0.02 * stale[:, None]
        if fault == 3:
            kl[i] += 0.003
    noise = torch.randint(-3, 4, kl.shape, generator=generator) * 1e-8
    return {"kl_old": torch.where(kl == 0, noise, kl)}


def _faults(kl_old: Tensor) -> Tensor:
    """Run by run and batch by batch."""
    codes = []
    for run in kl_old.tolist():
        begins = [abs(batch[0]) > 1e-6 for batch in run]
        flat = all(abs(x) <= 1e-6 for batch in run for x in batch)
        code = 3 if begins[0] else 2 if any(begins) else 1 if flat and len(run[0]) > 1 else 0
        codes.append(code)
    return torch.tensor(codes)


def _told(
    moved=lambda x: x.abs() > 1e-6,
    first=lambda m: m[:, 0, 0],
    later=lambda m: m[:, :, 0].any(1),
    still=lambda m: ~m.flatten(1).any(1) & (m.shape[2] > 1),
    codes=(1, 2, 3),
):
    def answer(kl_old):
        m, (one, two, three) = moved(kl_old), codes
        return torch.where(first(m), three, torch.where(later(m), two, one * still(m).long()))

    return answer


WHOSE = Exercise(
    name="06-whose-kl",
    draw=_logs,
    route=_faults,
    mistakes={
        "rounding leaves no exact 0: compare with 1e-6": _told(lambda x: x != 0),
        "one minibatch for each batch: there 0 is right": _told(still=lambda m: ~m.any(2).any(1)),
        "a batch that taught nothing is no fault: look at all batches":
            _told(still=lambda m: (~m).all(2).any(1) & (m.shape[2] > 1)),
        "every batch has to begin at 0, not only the last": _told(later=lambda m: m[:, -1, 0]),
        "every batch has to begin at 0, not only the second": _told(later=lambda m: m[:, 1, 0]),
        "only the first minibatch of a batch has to be 0":
            _told(later=lambda m: m.flatten(1).any(1)),
        "what is wrong at the very first minibatch is fault 3": _told(codes=(1, 2, 2)),
        "faults 2 and 3 are swapped": _told(codes=(1, 3, 2)),
    },
)  # fmt: skip


# Both penalties.


def _anchors(generator: Generator, k: int) -> dict:
    b, t, v = sizes(k, 3)
    logits = normal(3, b, t, v, generator=generator)
    named = dict(zip(("logits", "old_logits", "ref_logits"), logits, strict=True))
    tokens = torch.randint(v, (b, t), generator=generator)
    if k == 2:  # a word that the old policy never says
        named["old_logits"][0, 0, (tokens[0, 0] + 1) % v] = -math.inf
    prices = {"beta_old": uniform(0.3, 0.6, generator), "beta_ref": uniform(0.7, 1.3, generator)}
    return named | {"tokens": tokens, "advantages": normal(b, t, generator=generator)} | prices


def _anchored(logits, old_logits, ref_logits, tokens, advantages, beta_old, beta_ref) -> Tensor:
    """State by state and word by word, with probabilities."""
    total = 0
    for i, t in itertools.product(*map(range, tokens.shape)):
        steps = (x[i, t].exp() for x in (logits, old_logits.detach(), ref_logits))
        (p, old, ref), word = (x / x.sum() for x in steps), tokens[i, t]
        total = total + p[word] / old[word] * advantages[i, t].detach()
        for v in range(len(p)):
            if old[v] > 0:
                total = total - beta_old * old[v] * torch.log(old[v] / p[v])
            total = total - beta_ref * p[v] * torch.log(p[v] / ref[v].detach())
    return total / len(tokens)


def _two(
    kl_old=lambda x, o, f, k: _kl(o, x), kl_ref=lambda x, o, f, k: _kl(x, f),
    ratio=lambda x, o, k: _k1(x, o, k).exp(), total=lambda y: y.sum(1).mean(),
    prices=lambda b_old, b_ref: (b_old, b_ref),
):  # fmt: skip
    def answer(x, o, f, k, a, *betas):
        b_old, b_ref = prices(*betas)
        return total(ratio(x, o, k) * a - b_old * kl_old(x, o, f, k) - b_ref * kl_ref(x, o, f, k))

    return answer


def _k1(x: Tensor, y: Tensor, tokens: Tensor) -> Tensor:
    return drawn(log_ratio(x, y), tokens)


ANCHORS = Exercise(
    name="06-anchors",
    draw=_anchors,
    route=_anchored,
    differentiate=("logits",),
    constants=("old_logits", "ref_logits", "advantages"),
    own=("kl_penalty_surrogate", "kl_divergence", "kl_of_log_probs", "masked_kl"),
    mistakes={
        "the old policy stands first in the first KL": _two(lambda x, o, *_: _kl(x, o)),
        "0 · log 0 counts as 0: the old policy may never say a word":
            _two(lambda x, o, *_: (o.softmax(-1) * log_ratio(o, x)).sum(-1)),
        "the two prices are swapped": _two(prices=lambda old, ref: (ref, old)),
        "the KL to the old policy is missing": _two(prices=lambda old, ref: (0, ref)),
        "the KL to the reference is missing": _two(prices=lambda old, ref: (old, 0)),
        "the KLs are added; they have to be subtracted": _two(prices=lambda old, ref: (-old, -ref)),
        "the ratio is upside down: new over old": _two(ratio=lambda x, o, k: _k1(o, x, k).exp()),
        "the exponential is missing: this is the log-ratio": _two(ratio=_k1),
        "the KL to the old policy looks at the drawn tokens only":
            _two(lambda x, o, f, k: _k1(o, x, k)),
        "the KL to the reference looks at the drawn tokens only: this is k1":
            _two(kl_ref=lambda x, o, f, k: _k1(x, f, k)),
        "the steps are averaged; they are added up": _two(total=lambda y: y.mean()),
        "it is divided by T; divide by B": _two(total=lambda y: y.sum(0).mean()),
        "the responses are added up; their mean is wanted": _two(total=lambda y: y.sum()),
        "the KL to the old policy lost its gradient": _two(lambda x, o, *_: _kl(o, x).detach()),
    }
    | {
        f"second KL: {text}": _two(kl_ref=lambda x, o, f, k, g=g: g(x, f))
        for text, g in KLS.items()
    },
)  # fmt: skip

EXERCISES = [LEFT, WHOSE, ANCHORS]
