"""Lesson 06, proximal: the ratio of a response, the clip, two anchors."""

import itertools

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, random_mask, uniform
from ppo_toy.kl import kl_divergence


def _log_probs(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """New, old, mask; [3, 4] each, with rows of 4, 3 and 2 tokens. Log-ratios of both signs."""
    mask = random_mask(4, 3, 2, generator=generator)
    old = -0.5 - torch.rand(3, 4, generator=generator, dtype=torch.float64)
    new = old + 0.4 * normal(3, 4, generator=generator)
    return new.masked_fill(~mask, -1), old.masked_fill(~mask, -4), mask  # a padded ratio of e^3


# The ratio of a response.


def _responses(generator: Generator) -> dict:
    new, old, mask = _log_probs(generator)
    advantages = normal(3, generator=generator)
    return {"log_probs": new, "old_log_probs": old, "advantages": advantages, "mask": mask}


def _carried_over(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """By products of probabilities, response by response."""
    total = 0
    for n, o, a, m in zip(new, old.detach(), advantages.detach(), mask, strict=True):
        total = total + a * n[m].exp().prod() / o[m].exp().prod()
    return total / len(mask)


def _log_ratio(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return (new - old.detach()).masked_fill(~mask, 0)


def _carry(weight):
    """An answer whose weights of the responses are made from masked log-ratios and the mask."""
    return lambda n, o, a, m: (weight(_log_ratio(n, o, m), m) * a.detach()).mean()


BUG = Exercise(
    name="06-bug",
    draw=_responses,
    route=_carried_over,
    differentiate=("log_probs", "old_log_probs", "advantages"),
    own=("exact",),
    mistakes={
        "the ratio is upside down, as in the buggy one": _carry(lambda x, m: (-x).sum(1).exp()),
        "the padding counts: cut it off before adding up": lambda n, o, a, m: (
            (n - o.detach()).sum(1).exp() * a.detach()
        ).mean(),
        "the tokens' ratios are added; multiply them": _carry(lambda x, m: (x.exp() * m).sum(1)),
        "the log-ratios are averaged; add them": _carry(lambda x, m: (x.sum(1) / m.sum(1)).exp()),
        "the exponential is missing: this is the log-ratio": _carry(lambda x, m: x.sum(1)),
        "the sign is wrong: the advantages were no bug": _carry(lambda x, m: -x.sum(1).exp()),
        "the responses are added up; average them": _carry(lambda x, m: len(m) * x.sum(1).exp()),
        "the ratio lost its gradient": _carry(lambda x, m: x.sum(1).exp().detach()),
        "old_log_probs are constants: detach them": lambda n, o, a, m: (
            (n - o).masked_fill(~m, 0).sum(1).exp() * a.detach()
        ).mean(),
        "the advantages are constants: detach them": lambda n, o, a, m: (
            _log_ratio(n, o, m).sum(1).exp() * a
        ).mean(),
        "old_log_probs and advantages are constants: detach both": lambda n, o, a, m: (
            (n - o).masked_fill(~m, 0).sum(1).exp() * a
        ).mean(),
    },
)


# The clipped surrogate.


def _tokens(generator: Generator) -> dict:
    new, old, mask = _log_probs(generator)
    advantages = normal(3, 4, generator=generator).masked_fill(~mask, 99)
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
    ratio=lambda n, o: (n - o.detach()).exp(),
    total=lambda x, m: x.masked_fill(~m, 0).sum(1).mean(),
    fix=Tensor.detach,
    clamp=lambda r, e: r.clamp(1 - e, 1 + e),
):
    def answer(new, old, advantages, mask, epsilon):
        r = ratio(new, old)
        return total(pick(r, clamp(r, epsilon), fix(advantages)), mask)

    return answer


CLIP = Exercise(
    name="06-clip",
    draw=_tokens,
    route=_clipped,
    differentiate=("log_probs", "old_log_probs", "advantages"),
    own=("clipped_surrogate", "clipped_by_hand"),
    mistakes={
        "the ratio is upside down: new over old": _clip_with(
            ratio=lambda n, o: (o.detach() - n).exp()
        ),
        "the maximum is taken, not the minimum": _clip_with(
            lambda r, c, a: torch.maximum(r * a, c * a)
        ),
        "the minimum is missing: only the clipped ratio is used": _clip_with(lambda r, c, a: c * a),
        "the clip is missing: this is ratio times advantage": _clip_with(lambda r, c, a: r * a),
        "multiply by A before the minimum": _clip_with(lambda r, c, a: torch.minimum(r, c) * a),
        "the sign is wrong": _clip_with(lambda r, c, a: -torch.minimum(r * a, c * a)),
        "the exponential is missing: this is the log-ratio": _clip_with(
            ratio=lambda n, o: n - o.detach()
        ),
        "the ratio is clipped around 0, not around 1": _clip_with(
            clamp=lambda r, e: r.clamp(-e, e)
        ),
        "the log-ratio is clipped, not the ratio": _clip_with(
            clamp=lambda r, e: r.log().clamp(-e, e).exp()
        ),
        "the padding counts: cut it off": _clip_with(total=lambda x, m: x.sum(1).mean()),
        "it is averaged over all tokens; divide by B": _clip_with(total=lambda x, m: x[m].mean()),
        "it is averaged over [B, T]; divide by B": _clip_with(
            total=lambda x, m: x.masked_fill(~m, 0).mean()
        ),
        "it is averaged within each response; add up its tokens": _clip_with(
            total=lambda x, m: (x.masked_fill(~m, 0).sum(1) / m.sum(1)).mean()
        ),
        "the responses are added up; divide by B": _clip_with(total=lambda x, m: x[m].sum()),
        "old_log_probs are constants: detach them": _clip_with(ratio=lambda n, o: (n - o).exp()),
        "the advantages are constants: detach them": _clip_with(fix=lambda a: a),
        "old_log_probs and advantages are constants: detach both": _clip_with(
            ratio=lambda n, o: (n - o).exp(), fix=lambda a: a
        ),
    },
)


# Both penalties.


def _anchors(generator: Generator) -> dict:
    logits = normal(3, 2, 3, 4, generator=generator)
    named = dict(zip(("logits", "old_logits", "ref_logits"), logits, strict=True))
    tokens = torch.randint(4, (2, 3), generator=generator)
    prices = {"beta_old": uniform(0.3, 0.6, generator), "beta_ref": uniform(0.7, 1.3, generator)}
    return named | {"tokens": tokens, "advantages": normal(2, 3, generator=generator)} | prices


def _anchored(logits, old_logits, ref_logits, tokens, advantages, beta_old, beta_ref) -> Tensor:
    """State by state and word by word, with probabilities."""
    total = 0
    for i, t in itertools.product(range(2), range(3)):
        steps = (x[i, t].exp() for x in (logits, old_logits.detach(), ref_logits))
        (p, old, ref), word = (x / x.sum() for x in steps), tokens[i, t]
        total = total + p[word] / old[word] * advantages[i, t].detach()
        for v in range(len(p)):
            total = total - beta_old * old[v] * torch.log(old[v] / p[v])
            total = total - beta_ref * p[v] * torch.log(p[v] / ref[v].detach())
    return total / len(tokens)


def _drawn(x: Tensor, tokens: Tensor) -> Tensor:
    return x.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def _two(
    kl_old=lambda x, o, f: kl_divergence(o, x),
    kl_ref=lambda x, o, f: kl_divergence(x, f),
    ratio=lambda x, o, k: (_drawn(x, k) - _drawn(o, k)).exp(),
    total=lambda y: y.sum(1).mean(),
    prices=lambda b_old, b_ref: (b_old, b_ref),
    fix=(True, True, True),
):
    def answer(x, o, f, tokens, advantages, beta_old, beta_ref):
        constants = zip((o, advantages, f), fix, strict=True)
        o, advantages, f = (c.detach() if fixed else c for c, fixed in constants)
        gain = ratio(x, o, tokens) * advantages
        b_old, b_ref = prices(beta_old, beta_ref)
        return total(gain - b_old * kl_old(x, o, f) - b_ref * kl_ref(x, o, f))

    return answer


ANCHORS = Exercise(
    name="06-anchors",
    draw=_anchors,
    route=_anchored,
    differentiate=("logits", "old_logits", "ref_logits", "advantages"),
    own=("kl_penalty_surrogate", "kl_divergence", "kl_of_log_probs", "masked_kl"),
    mistakes={
        "the old policy stands first in the first KL": _two(lambda x, o, f: kl_divergence(x, o)),
        "the policy in training stands first in the second KL": _two(
            kl_ref=lambda x, o, f: kl_divergence(f, x)
        ),
        "both KLs are turned round": _two(
            lambda x, o, f: kl_divergence(x, o), lambda x, o, f: kl_divergence(f, x)
        ),
        "the two prices are swapped": _two(prices=lambda old, ref: (ref, old)),
        "the KL to the old policy is missing": _two(prices=lambda old, ref: (0, ref)),
        "the KL to the reference is missing": _two(prices=lambda old, ref: (old, 0)),
        "the KLs are added; they have to be subtracted": _two(prices=lambda old, ref: (-old, -ref)),
        "the ratio is upside down: new over old": _two(
            ratio=lambda x, o, k: (_drawn(o, k) - _drawn(x, k)).exp()
        ),
        "the exponential is missing: this is the log-ratio": _two(
            ratio=lambda x, o, k: _drawn(x, k) - _drawn(o, k)
        ),
        "the KLs look at the drawn tokens only": lambda x, o, f, k, a, b, c: _two(
            lambda x, o, f: _drawn(o, k) - _drawn(x, k), lambda x, o, f: _drawn(x, k) - _drawn(f, k)
        )(x, o, f, k, a, b, c),
        "the steps are averaged; they are added up": _two(total=lambda y: y.mean()),
        "it is divided by T; divide by B": _two(total=lambda y: y.sum(0).mean()),
        "the responses are added up; their mean is wanted": _two(total=lambda y: y.sum()),
        "the KL to the reference lost its gradient": _two(
            kl_ref=lambda x, o, f: kl_divergence(x, f).detach()
        ),
        "the KL to the old policy lost its gradient": _two(
            lambda x, o, f: kl_divergence(o, x).detach()
        ),
        "old_logits are constants: detach them": _two(fix=(False, True, True)),
        "the advantages are constants: detach them": _two(fix=(True, False, True)),
        "ref_logits are constants: detach them": _two(fix=(True, True, False)),
        "old_logits and advantages are constants: detach both": _two(fix=(False, False, True)),
    },
)

EXERCISES = [BUG, CLIP, ANCHORS]
