"""Lesson 04, beta: the gap to the best policy, runs that judge each other, a controller."""

import math
from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, random_mask, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl


def _tilted(p_ref: Tensor, rewards: Tensor, beta: float | Tensor) -> Tensor:
    """The logarithm of what Z adds up."""
    return p_ref.log() + rewards / beta


# J* and the gap.


def _prompts(generator: Generator, k: int) -> dict:
    """Cases 1 and 4 have a tiny β, 2 and 4 are at π*, and in case 3 J* is below 0."""
    logits, ref_logits, rewards = normal(3, *sizes(k, 2), generator=generator)
    beta = 0.001 if k in (1, 4) else uniform(0.3, 0.9, generator)
    p_ref, rewards = ref_logits.softmax(-1), rewards - 3 * (k == 3)
    rewards = rewards + 4 * (k == 1) * torch.arange(len(rewards))[:, None]  # best ones far apart
    logits = _tilted(p_ref, rewards, beta) if k in (2, 4) else 2 * logits
    return {"logits": logits, "p_ref": p_ref, "rewards": rewards, "beta": beta}


def _left_to_earn(logits, p_ref, rewards, beta):
    """The gap as a difference: J* from the sum Z, J from its two terms, prompt by prompt."""
    tops, gaps = [], []
    for x, q, r in zip(logits, p_ref, rewards, strict=True):
        x, most = x - x.max(), r.max()
        log_p = x - torch.log(x.exp().sum())
        z = sum(q[y] * torch.exp((r[y] - most) / beta) for y in range(len(q)))
        tops.append(most + beta * torch.log(z))
        net = r - beta * (log_p - torch.log(q))
        gaps.append(tops[-1] - sum(log_p[y].exp() * net[y] for y in range(len(q))))
    return torch.stack(tops), torch.stack(gaps)


def _top(x, p, r, b):
    return b * _tilted(p, r, b).logsumexp(-1)


def _gap(x, p, r, b):
    return b * _kl(x, _tilted(p, r, b))


def _j(x, p, r, b):
    return (x.softmax(-1) * r).sum(-1) - b * _kl(x, p.log())


def _both(*z, top=_top, gap=_gap):
    return top(*z), gap(*z)


LEFT_TO_EARN = Exercise(
    name="04-left-to-earn",
    draw=_prompts,
    route=_left_to_earn,
    differentiate=("logits", "rewards"),
    own=("optimum", "evaluate", "kl_divergence", "kl_of_log_probs"),
    n_cases=5,
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
        "J*: this is R*, the reward alone": partial(
            _both, top=lambda x, p, r, b: (_tilted(p, r, b).softmax(-1) * r).sum(-1)),
        "the reference is missing in Z": lambda x, p, r, b: _both(x, torch.ones_like(p), r, b),
        "each prompt has its own Z; this is one for all": partial(
            _both, top=lambda x, p, r, b: b * _tilted(p, r, b).logsumexp((0, 1)).expand(len(x))
        ),
        "the two are in the wrong order: J* comes first": lambda *z: _both(*z)[::-1],
        "the gap carries no gradient to J*: do not detach it":
            partial(_both, gap=lambda *z: _top(*z).detach() - _j(*z)),
    },
)  # fmt: skip


# Runs that judge each other.


def _logged(generator: Generator, k: int) -> dict:
    """One run is off. In case 1 a β is tiny, in case 2 a KL below 0, in case 3 all rewards are."""
    (n,) = sizes(k, 1, low=4)
    p_ref, rewards = normal(6, generator=generator).softmax(-1), 2 * normal(6, generator=generator)
    betas = uniform(0.3, 0.5, generator) * 2.0 ** torch.arange(n).double()
    betas[0] = 0.001 if k == 1 else betas[0]
    trained = betas * torch.where(torch.arange(n) == 1, 8, 1)
    log_best = _tilted(p_ref, rewards, trained[:, None]).log_softmax(-1)
    kls = (log_best.exp() * (log_best - p_ref.log())).sum(-1) - 0.2 * (k == 2)
    found = torch.stack([betas, kls, (log_best.exp() * rewards).sum(-1) - 9 * (k == 3)])
    found = found[:, torch.randperm(n, generator=generator)]
    return dict(zip(("betas", "kls", "rewards"), found.round(decimals=3), strict=True))


def _diagnose(betas, kls, rewards):
    """Pair by pair, in plain numbers."""
    runs = list(zip(betas.tolist(), kls.tolist(), rewards.tolist(), strict=True))
    missed = [max(r - b * kl - (own - b * spent) for _, kl, r in runs) for b, spent, own in runs]
    return torch.tensor(missed).double(), torch.tensor(missed.index(max(missed))).double()


def _worth(b, kl, r):
    return r - b[:, None] * kl


def _judge(b, kl, r, *, worth=_worth, dim=1, which=lambda w, missed: missed.argmax(), sign=1):
    """The diagnosis, with something else in the place of some of it."""
    table = worth(b, kl, r)
    missed = table.amax(dim) - table.diagonal()
    return sign * missed, which(table, missed)


DIAGNOSE = Exercise(
    name="04-diagnose",
    draw=_logged,
    route=_diagnose,
    mistakes={
        "the others are counted at their own β; count them at this run's":
            partial(_judge, worth=lambda b, kl, r: (r - b * kl).expand(len(b), -1)),
        "β is missing: a nat is not worth 1": partial(_judge, worth=lambda b, kl, r: _worth(
            torch.ones_like(b), kl, r)),
        "the brake is missing: the largest reward wins at every β":
            partial(_judge, worth=lambda b, kl, r: _worth(0 * b, kl, r)),
        "the sign of the brake is wrong": partial(_judge, worth=lambda b, kl, r: _worth(-b, kl, r)),
        "each run is compared with itself at all prices; its β has to stay":
            partial(_judge, dim=0),
        "the sign is wrong: the best less its own": partial(_judge, sign=-1),
        "the index is of the run that misses least":
            partial(_judge, which=lambda w, missed: missed.argmin()),
        "the index is of the run that is better; the one that misses is wanted":
            partial(_judge, which=lambda w, missed: w[missed.argmax()].argmax()),
        "an estimated KL can be below 0: do not cut it off":
            partial(_judge, worth=lambda b, kl, r: _worth(b, kl.clamp(min=0), r)),
        "an estimated KL can be below 0: take no abs":
            partial(_judge, worth=lambda b, kl, r: _worth(b, kl.abs(), r)),
    },
)  # fmt: skip


# The proportional controller.


def _runs(generator: Generator, k: int) -> dict:
    """Runs whose KL is above, below and about the target, and below 0."""
    g, b, t = sizes(k, 3)
    mask = torch.stack([random_mask(b, t, generator) for _ in range(g)])
    kl, kl_target = normal(g, b, t, generator=generator), uniform(1, 2, generator)
    ratio = torch.tensor([2.1, -1.1, 0.9, 1.05])[:g][torch.randperm(g, generator=generator)]
    lacks = kl_target * ratio - _per_response(kl, mask)
    kl = kl + (lacks * b / mask.sum((1, 2)))[:, None, None]
    kl = kl.round(decimals=3).masked_fill(~mask, 99)
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


def _same(x):
    return x


def _clip(error):
    return error.clamp(-0.2, 0.2)


def _control(
    beta, kl, mask, target, h, *, measure=_per_response, clip=_clip, axis=1, last=_same, by=1,
    error=lambda x, y: x / y - 1,
):  # fmt: skip
    """The rule, with something else in the place of some of it."""
    n = 1 if axis is None else kl.shape[axis]
    return beta * (1 + last(by * clip(error(measure(kl, mask), target)) * n / h))


CONTROLLER = Exercise(
    name="04-controller",
    draw=_runs,
    route=_controller,
    own=("proportional", "double_or_halve"),
    mistakes={
        "the bug is still there: this is nats per token, the target is per response":
            partial(_control, measure=lambda kl, m: (kl * m).sum((1, 2)) / m.sum((1, 2))),
        "the mean still runs over steps, padding and all: add them up":
            partial(_control, measure=lambda kl, m: kl.masked_fill(~m, 0).mean((1, 2))),
        "padding counts: no response spends nats there":
            partial(_control, measure=lambda kl, m: kl.sum(-1).mean(-1)),
        "an estimate can be below 0: take no abs":
            partial(_control, measure=lambda kl, m: _per_response(kl, m).abs()),
        "a log-ratio can be below 0: do not cut it off":
            partial(_control, measure=lambda kl, m: _per_response(kl.clamp(min=0), m)),
        "the clip is missing": partial(_control, clip=_same),
        "the error is clipped, not its product with n / h":
            partial(_control, clip=_same, last=_clip),
        "the sign is wrong: too much KL has to raise β": partial(_control, by=-1),
        "n is the number of responses, not of runs": partial(_control, axis=0),
        "n is missing: one batch has B responses": partial(_control, axis=None),
        "the error is relative: KL / κ − 1": partial(_control, error=torch.sub),
    },
)  # fmt: skip

EXERCISES = [LEFT_TO_EARN, DIAGNOSE, CONTROLLER]
