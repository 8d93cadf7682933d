"""Lesson 06, proximal: the ratio of a response, the clip, two anchors."""

import itertools

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import (
    KLS,
    MEANS,
    drawn,
    log_ratio,
    normal,
    random_mask,
    sizes,
    uniform,
)
from ppo_toy.kl import kl_divergence as _kl


def _log_probs(generator: Generator, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """New, old, mask; [B, T] each. Log-ratios of both signs."""
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    old = -0.5 - normal(b, t, generator=generator).abs()
    new = (old + 0.4 * normal(b, t, generator=generator)).round(decimals=2)
    if k == 2:  # a ratio of e^1.5
        old[0, 0], new[0, 0] = -2, -0.5
    return new.masked_fill(~mask, -1), old.masked_fill(~mask, -4), mask  # a padded ratio of e^3


# The ratio of a response.


def _responses(generator: Generator, k: int) -> dict:
    new, old, mask = _log_probs(generator, k)
    advantages = normal(len(mask), generator=generator)
    return {"log_probs": new, "old_log_probs": old, "advantages": advantages, "mask": mask}


def _carried_over(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """By products of probabilities, response by response."""
    total = 0
    for n, o, a, m in zip(new, old.detach(), advantages.detach(), mask, strict=True):
        total = total + a * n[m].exp().prod() / o[m].exp().prod()
    return total / len(mask)


def _carry(weight, end=torch.mean):
    """An answer whose weights of the responses are made from masked log-ratios and the mask."""
    return lambda n, o, a, m: end(weight((n - o).masked_fill(~m, 0), m) * a)


BUG = Exercise(
    name="06-bug",
    draw=_responses,
    route=_carried_over,
    differentiate=("log_probs",),
    constants=("old_log_probs", "advantages"),
    own=("exact",),
    mistakes={
        "the ratio is upside down, as in the buggy one": _carry(lambda x, m: (-x).sum(1).exp()),
        "the padding counts: cut it off before adding up": lambda n, o, a, m: (
            (n - o).sum(1).exp() * a
        ).mean(),
        "the tokens' ratios are added; multiply them": _carry(lambda x, m: (x.exp() * m).sum(1)),
        "the log-ratios are averaged; add them": _carry(lambda x, m: (x.sum(1) / m.sum(1)).exp()),
        "the exponential is missing: this is the log-ratio": _carry(lambda x, m: x.sum(1)),
        "the sign is wrong: the advantages were no bug": _carry(lambda x, m: -x.sum(1).exp()),
        "the tokens' ratios are averaged; multiply them":
            _carry(lambda x, m: (x.exp() * m).sum(1) / m.sum(1)),
        "the responses are added up; average them": _carry(lambda x, m: x.sum(1).exp(), torch.sum),
        "the ratio lost its gradient": _carry(lambda x, m: x.sum(1).exp().detach()),
    },
)  # fmt: skip


# The clipped surrogate.


def _tokens(generator: Generator, k: int) -> dict:
    new, old, mask = _log_probs(generator, k)
    advantages = normal(*mask.shape, generator=generator).masked_fill(~mask, 99)
    advantages[0, 0] = advantages[0, 0].abs() * (1 - 2 * (k == 2))
    epsilon = uniform(0.1, 0.3, generator)
    constants = {"old_log_probs": old, "advantages": advantages, "mask": mask}
    return {"log_probs": new, **constants, "epsilon": epsilon}


def _clipped(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, eps: float) -> Tensor:
    """By cases: beyond the clip, on the side that the advantage asks for, the ratio is held."""
    a, old = advantages.detach(), old.detach()
    ratio = new.exp() / old.exp()
    ratio = torch.where((a > 0) & (ratio > 1 + eps), 1 + eps, ratio)
    ratio = torch.where((a < 0) & (ratio < 1 - eps), 1 - eps, ratio)
    return (ratio * a)[mask].sum() / len(mask)


def _clip_with(
    pick=lambda r, c, a: torch.minimum(r * a, c * a),
    ratio=lambda n, o: (n - o).exp(),
    total=lambda x, m: x.masked_fill(~m, 0).sum(1).mean(),
    clamp=lambda r, e: r.clamp(1 - e, 1 + e),
):
    return lambda n, o, a, mask, e: total(pick((r := ratio(n, o)), clamp(r, e), a), mask)


CLIP = Exercise(
    name="06-clip",
    draw=_tokens,
    route=_clipped,
    differentiate=("log_probs",),
    constants=("old_log_probs", "advantages"),
    own=("clipped_surrogate", "clipped_by_hand"),
    mistakes={
        "the ratio is upside down: new over old": _clip_with(ratio=lambda n, o: (o - n).exp()),
        "the maximum is taken, not the minimum":
            _clip_with(lambda r, c, a: torch.maximum(r * a, c * a)),
        "the minimum is missing: only the clipped ratio is used": _clip_with(lambda r, c, a: c * a),
        "the clip is missing: this is ratio times advantage": _clip_with(lambda r, c, a: r * a),
        "multiply by A before the minimum": _clip_with(lambda r, c, a: torch.minimum(r, c) * a),
        "the exponential is missing: this is the log-ratio": _clip_with(ratio=torch.sub),
        "the ratio is clipped around 0, not around 1":
            _clip_with(clamp=lambda r, e: r.clamp(-e, e)),
        "the log-ratio is clipped, not the ratio":
            _clip_with(clamp=lambda r, e: r.log().clamp(-e, e).exp()),
        "the clip holds from above only: clamp at 1 − ε, too":
            _clip_with(clamp=lambda r, e: r.clamp(max=1 + e)),
        "the clip holds from below only: clamp at 1 + ε, too":
            _clip_with(clamp=lambda r, e: r.clamp(min=1 - e)),
    }
    | {text: _clip_with(total=total) for text, total in MEANS.items()},
)  # fmt: skip


# Both penalties.


def _anchors(generator: Generator, k: int) -> dict:
    b, t, v = sizes(k, 3)
    logits = normal(3, b, t, v, generator=generator)
    named = dict(zip(("logits", "old_logits", "ref_logits"), logits, strict=True))
    tokens = torch.randint(v, (b, t), generator=generator)
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
        "both KLs are turned round": _two(lambda x, o, *_: _kl(x, o), lambda x, o, f, k: _kl(f, x)),
        "the two prices are swapped": _two(prices=lambda old, ref: (ref, old)),
        "the KL to the old policy is missing": _two(prices=lambda old, ref: (0, ref)),
        "the KL to the reference is missing": _two(prices=lambda old, ref: (old, 0)),
        "both KLs are missing": _two(prices=lambda old, ref: (0, 0)),
        "the KLs are added; they have to be subtracted": _two(prices=lambda old, ref: (-old, -ref)),
        "the ratio is upside down: new over old": _two(ratio=lambda x, o, k: _k1(o, x, k).exp()),
        "the exponential is missing: this is the log-ratio": _two(ratio=_k1),
        "the KLs look at the drawn tokens only":
            _two(lambda x, o, f, k: _k1(o, x, k), lambda x, o, f, k: _k1(x, f, k)),
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

EXERCISES = [BUG, CLIP, ANCHORS]
