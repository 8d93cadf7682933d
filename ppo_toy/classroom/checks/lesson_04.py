"""Lesson 04, beta: the gap to the best policy, its answer to beta, a controller."""

import math
from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import kl_along, normal, random_mask, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl


def _tilted(p_ref: Tensor, rewards: Tensor, beta: float | Tensor) -> Tensor:
    """The logarithm of what Z adds up."""
    return p_ref.log() + rewards / beta


# J* and the gap.


def _prompts(generator: Generator, k: int) -> dict:
    """Case 1 has a tiny β, case 2 is at π*, and in case 3 J* is below 0."""
    logits, ref_logits, rewards = normal(3, *sizes(k, 2), generator=generator)
    beta = 0.001 if k == 1 else uniform(0.3, 0.9, generator)
    p_ref, rewards = ref_logits.softmax(-1), rewards - 3 * (k == 3)
    rewards = rewards + 4 * (k == 1) * torch.arange(len(rewards))[:, None]  # best ones far apart
    logits = _tilted(p_ref, rewards, beta) if k == 2 else 2 * logits
    return {"logits": logits, "p_ref": p_ref, "rewards": rewards, "beta": beta}


def _left_to_earn(logits, p_ref, rewards, beta):
    """The gap as a difference: J* from the sum Z, J from its two terms, prompt by prompt."""
    tops, gaps = [], []
    for x, q, r in zip(logits, p_ref, rewards, strict=True):
        p, most = x.exp() / x.exp().sum(), r.max()
        z = sum(q[y] * torch.exp((r[y] - most) / beta) for y in range(len(q)))
        tops.append(most + beta * torch.log(z))
        net = r - beta * torch.log(p / q)
        gaps.append(tops[-1] - sum(p[y] * net[y] for y in range(len(q))))
    return torch.stack(tops), torch.stack(gaps)


def _top(x, p, r, b):
    return b * _tilted(p, r, b).logsumexp(-1)


def _gap(x, p, r, b):
    return b * _kl(x, _tilted(p, r, b))


def _j(x, p, r, b):
    return (x.softmax(-1) * r).sum(-1) - b * _kl(x, p.log())


def _both(*z, top=_top, gap=_gap):
    return top(*z), gap(*z)


def _best_reward(x, p, r, b):
    return (_tilted(p, r, b).softmax(-1) * r).sum(-1)


LEFT_TO_EARN = Exercise(
    name="04-left-to-earn",
    draw=_prompts,
    route=_left_to_earn,
    differentiate=("logits", "rewards"),
    own=("optimum", "evaluate", "kl_divergence", "kl_of_log_probs"),
    mistakes={
        "gap: β is missing": partial(_both, gap=lambda *z: _gap(*z) / z[3]),
        "gap: the KL is to the reference; it has to be to π*":
            partial(_both, gap=lambda x, p, r, b: b * _kl(x, p.log())),
        "gap: the KL's arguments are swapped: the policy stands first":
            partial(_both, gap=lambda x, p, r, b: b * _kl(_tilted(p, r, b), x)),
        "gap: the sign is wrong: no policy beats J*": partial(_both, gap=lambda *z: -_gap(*z)),
        "gap: this is J itself; subtract it from J*": partial(_both, gap=_j),
        "gap: the brake is missing in J":
            partial(_both, gap=lambda *z: _top(*z) - (z[0].softmax(-1) * z[2]).sum(-1)),
        "J*: β is missing before log Z": partial(_both, top=lambda *z: _top(*z) / z[3]),
        "J*: the logarithm is missing":
            partial(_both, top=lambda x, p, r, b: b * _tilted(p, r, b).exp().sum(-1)),
        "J*: this is R*, the reward alone": partial(_both, top=_best_reward),
        "β multiplies the reward; the exponent is R / β": lambda x, p, r, b: (
            b * _tilted(p, r, 1 / b).logsumexp(-1),
            b * _kl(x, _tilted(p, r, 1 / b)),
        ),
        "the reference is missing in Z": lambda x, p, r, b: _both(x, torch.ones_like(p), r, b),
        "p_ref holds probabilities: take its logarithm": lambda x, p, r, b: _both(x, p.exp(), r, b),
        "each prompt has its own Z; this is one for all": partial(
            _both, top=lambda x, p, r, b: b * _tilted(p, r, b).logsumexp((0, 1)).expand(len(x))
        ),
        "the softmax runs over the prompts; each prompt has its own":
            partial(_both, gap=lambda x, p, r, b: b * kl_along(0, x, _tilted(p, r, b))),
        "the two are in the wrong order: J* comes first": lambda *z: _both(*z)[::-1],
        "the gap carries no gradient to J*: do not detach it":
            partial(_both, gap=lambda *z: _top(*z).detach() - _j(*z)),
    },
)  # fmt: skip


# The derivatives of R* and KL* with respect to beta.


def _table(generator: Generator, k: int) -> dict:
    ref_logits, rewards = normal(2, *sizes(k, 1, low=3), generator=generator)
    beta = uniform(0.5, 0.9, generator) + (k == 1)
    return {"p_ref": ref_logits.softmax(-1), "rewards": rewards + 2 * (k == 2), "beta": beta}


def _response_to_beta(p_ref, rewards, beta):
    """Autograd through R* and KL*."""
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    best = p_ref * torch.exp(rewards / b) / (p_ref * torch.exp(rewards / b)).sum()
    reward, kl = best @ rewards, best @ torch.log(best / p_ref)
    return tuple(torch.autograd.grad(x, b, retain_graph=True)[0] for x in (reward, kl))


def _best(p, r, b):
    return _tilted(p, r, b).softmax(-1)


def _slopes(p, r, b, *, weights=_best, spread=lambda d: d**2, centred=True, powers=(2, 3), sign=-1):
    """The derivatives, with something else in the place of some of it."""
    w = weights(p, r, b)
    v = (w * spread(r - centred * (w @ r))).sum()
    return sign * v / b ** powers[0], sign * v / b ** powers[1]


RESPONSE = Exercise(
    name="04-response-to-beta",
    draw=_table,
    route=_response_to_beta,
    own=("optimum", "frontier"),
    mistakes={
        "these are the derivatives in λ; multiply both by dλ/dβ":
            partial(_slopes, powers=(0, 1), sign=1),
        "the sign is wrong: a heavier brake lowers R* and KL*": partial(_slopes, sign=1),
        "dλ/dβ is −1/β², not −1/β": partial(_slopes, powers=(1, 2)),
        "KL*: the factor λ is missing": partial(_slopes, powers=(2, 2)),
        "KL*: the factor is λ = 1/β, not β": partial(_slopes, powers=(2, 1)),
        "the two are in the wrong order: R* comes first": partial(_slopes, powers=(3, 2)),
        "the variance is the reference's; it has to be that under π*":
            partial(_slopes, weights=lambda p, r, b: p),
        "the variance is not weighted: take it under π*":
            partial(_slopes, weights=lambda p, r, b: torch.full_like(p, 1 / len(p))),
        "the mean of the squares is no variance: subtract the mean":
            partial(_slopes, centred=False),
        "the exponent of π* is R / β": partial(_slopes, weights=lambda p, r, b: _best(p, r, 1 / b)),
        "π* lacks the reference": partial(_slopes, weights=lambda p, r, b: (r / b).softmax(-1)),
    },
)  # fmt: skip


# The proportional controller.


def _runs(generator: Generator, k: int) -> dict:
    """Runs whose KL is above and below the target, outside of the clip and within."""
    g, b, t = sizes(k, 3)
    mask = torch.stack([random_mask(b, t, generator) for _ in range(g)])
    kl, kl_target = 0.2 + normal(g, b, t, generator=generator).abs(), uniform(1, 2, generator)
    ratio = torch.tensor([2.1, 0.5, 0.9, 1.05])[:g][torch.randperm(g, generator=generator)]
    kl = kl * (kl_target * ratio / _per_response(kl, mask))[:, None, None]
    kl = kl.round(decimals=2).masked_fill(~mask, 99)
    beta = 0.5 + normal(g, generator=generator).abs()
    runs = {"beta": beta, "kl": kl, "mask": mask}
    return runs | {"kl_target": kl_target, "horizon": uniform(5, 9, generator)}


def _per_response(kl, mask):
    return kl.masked_fill(~mask, 0).sum(-1).mean(-1)


def _controller(beta, kl, mask, kl_target, horizon):
    """Run by run, in plain numbers."""
    found = []
    for b, run, counts in zip(beta.tolist(), kl, mask, strict=True):
        error = run[counts].sum().item() / len(run) / kl_target - 1
        found.append(b * (1 + math.copysign(min(abs(error), 0.2), error) * len(run) / horizon))
    return torch.tensor(found, dtype=torch.float64)


def _clip(error):
    return error.clamp(-0.2, 0.2)


def _responses(kl, mask):
    return kl.shape[1]


def _control(
    beta, kl, mask, target, h, *, measure=_per_response, clip=_clip, n=_responses,
    last=None,
    by=1, error=lambda x, y: x / y - 1,
):  # fmt: skip
    """The rule, with something else in the place of some of it."""
    step = by * clip(error(measure(kl, mask), target)) * n(kl, mask) / h
    return beta * (1 + (step if last is None else last(step)))


def _tokens(kl, mask):
    return kl.masked_fill(~mask, 0).sum((1, 2)) / mask.sum((1, 2))


CONTROLLER = Exercise(
    name="04-controller",
    draw=_runs,
    route=_controller,
    own=("proportional", "double_or_halve"),
    mistakes={
        "the bug is still there: this is nats per token, the target is per response":
            partial(_control, measure=_tokens),
        "the mean still runs over steps, padding and all: add them up":
            partial(_control, measure=lambda kl, m: kl.masked_fill(~m, 0).mean((1, 2))),
        "the responses of a run are added up; their mean is wanted":
            partial(_control, measure=lambda kl, m: kl.masked_fill(~m, 0).sum((1, 2))),
        "padding counts: no response spends nats there":
            partial(_control, measure=lambda kl, m: kl.sum(-1).mean(-1)),
        "each run has a KL of its own; this is one for all":
            partial(_control, measure=lambda kl, m: _per_response(kl, m).mean()),
        "nats per token times T counts padding as spent":
            partial(_control, measure=lambda kl, m: _tokens(kl, m) * kl.shape[2]),
        "a mean of means: nats per token of each response, then per response": partial(
            _control, measure=lambda kl, m: (kl.masked_fill(~m, 0).sum(2) / m.sum(2)).mean(1)
        ),
        "the clip is missing": partial(_control, clip=lambda error: error),
        "the error is clipped, not its product with n / h":
            partial(_control, clip=lambda error: error, last=_clip),
        "the sign is wrong: too much KL has to raise β": partial(_control, by=-1),
        "n is the number of responses, not of runs": partial(_control, n=lambda kl, m: len(kl)),
        "n is the number of responses, not of steps":
            partial(_control, n=lambda kl, m: kl.shape[2]),
        "n is the number of responses, not of all tokens":
            partial(_control, n=lambda kl, m: m[0].sum()),
        "n is missing: one batch has B responses": partial(_control, n=lambda kl, m: 1),
        "the error is relative: KL / κ − 1": partial(_control, error=torch.sub),
        "β is missing: the factor multiplies the present one":
            lambda beta, *rest: _control(torch.ones_like(beta), *rest),
    },
)  # fmt: skip

EXERCISES = [LEFT_TO_EARN, RESPONSE, CONTROLLER]
