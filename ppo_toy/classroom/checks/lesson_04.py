"""Lesson 04, beta: the gap to the best policy, its answer to beta, a controller."""

import math
from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, uniform
from ppo_toy.kl import kl_divergence as _kl


def _tilted(p_ref: Tensor, rewards: Tensor, beta: float | Tensor) -> Tensor:
    """The logarithm of what Z adds up."""
    return p_ref.log() + rewards / beta


# J* and the gap.


def _prompts(generator: Generator) -> dict:
    logits, ref_logits, rewards = normal(3, 2, 4, generator=generator)
    draw = {"logits": logits, "p_ref": ref_logits.softmax(-1), "rewards": rewards}
    return draw | {"beta": uniform(0.3, 0.9, generator)}


def _left_to_earn(logits, p_ref, rewards, beta):
    """The gap as a difference: J* from the sum Z, J from its two terms, prompt by prompt."""
    tops, gaps = [], []
    for x, q, r in zip(logits, p_ref, rewards, strict=True):
        p = x.exp() / x.exp().sum()
        top = beta * torch.log(sum(q[y] * torch.exp(r[y] / beta) for y in range(len(q))))
        tops.append(top)
        gaps.append(top - sum(p[y] * (r[y] - beta * torch.log(p[y] / q[y])) for y in range(len(q))))
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
        "gap: the KL is to the reference; it has to be to π*": partial(
            _both, gap=lambda x, p, r, b: b * _kl(x, p.log())
        ),
        "gap: the KL's arguments are swapped: the policy stands first": partial(
            _both, gap=lambda x, p, r, b: b * _kl(_tilted(p, r, b), x)
        ),
        "gap: the sign is wrong: no policy beats J*": partial(_both, gap=lambda *z: -_gap(*z)),
        "gap: this is J itself; subtract it from J*": partial(_both, gap=_j),
        "gap: the brake is missing in J": partial(
            _both, gap=lambda *z: _top(*z) - (z[0].softmax(-1) * z[2]).sum(-1)
        ),
        "J*: β is missing before log Z": partial(_both, top=lambda *z: _top(*z) / z[3]),
        "J*: the logarithm is missing": partial(
            _both, top=lambda x, p, r, b: b * _tilted(p, r, b).exp().sum(-1)
        ),
        "J*: this is R*, the reward alone": partial(_both, top=_best_reward),
        "β multiplies the reward; the exponent is R / β": lambda x, p, r, b: (
            b * _tilted(p, r, 1 / b).logsumexp(-1),
            b * _kl(x, _tilted(p, r, 1 / b)),
        ),
        "the reference is missing in Z": lambda x, p, r, b: _both(x, torch.ones_like(p), r, b),
        "p_ref holds probabilities: take its logarithm": lambda x, p, r, b: _both(x, p.exp(), r, b),
        "each prompt has its own Z; this is one for all": partial(
            _both, top=lambda x, p, r, b: b * _tilted(p, r, b).logsumexp((0, 1)).expand(2)
        ),
        "the two are in the wrong order: J* comes first": lambda *z: _both(*z)[::-1],
        "the gap carries no gradient to J*: do not detach it": partial(
            _both, gap=lambda *z: _top(*z).detach() - _j(*z)
        ),
    },
)


# The derivatives of R* and KL* with respect to beta.


def _table(generator: Generator) -> dict:
    ref_logits, rewards = normal(2, 4, generator=generator)
    draw = {"p_ref": ref_logits.softmax(-1), "rewards": rewards}
    return draw | {"beta": uniform(0.5, 0.9, generator)}


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
        "these are the derivatives in λ; multiply both by dλ/dβ": partial(
            _slopes, powers=(0, 1), sign=1
        ),
        "the sign is wrong: a heavier brake lowers R* and KL*": partial(_slopes, sign=1),
        "dλ/dβ is −1/β², not −1/β": partial(_slopes, powers=(1, 2)),
        "KL*: the factor λ is missing": partial(_slopes, powers=(2, 2)),
        "KL*: the factor is λ = 1/β, not β": partial(_slopes, powers=(2, 1)),
        "the two are in the wrong order: R* comes first": partial(_slopes, powers=(3, 2)),
        "the variance is the reference's; it has to be that under π*": partial(
            _slopes, weights=lambda p, r, b: p
        ),
        "the variance is not weighted: take it under π*": partial(
            _slopes, weights=lambda p, r, b: torch.full_like(p, 1 / len(p))
        ),
        "the mean of the squares is no variance: subtract the mean": partial(
            _slopes, centred=False
        ),
        "the exponent of π* is R / β": partial(_slopes, weights=lambda p, r, b: _best(p, r, 1 / b)),
        "π* lacks the reference": partial(_slopes, weights=lambda p, r, b: (r / b).softmax(-1)),
    },
)


# The proportional controller.


def _runs(generator: Generator) -> dict:
    """Five runs, whose KL is below and above the target, within the clip and outside of it."""
    lengths = torch.stack([2 * torch.randperm(3, generator=generator) + 1 for _ in range(5)])
    mask = torch.arange(6) < lengths.unsqueeze(-1)
    kl = 0.2 + torch.rand(5, 3, 6, generator=generator, dtype=torch.float64)
    jitter = 0.97 + 0.06 * torch.rand(5, generator=generator, dtype=torch.float64)
    ratio = jitter * torch.tensor([0.2, 0.5, 0.9, 1.05, 3.1], dtype=torch.float64)
    kl_target = uniform(1, 2, generator)
    kl = kl * (kl_target * ratio / _per_response(kl, mask))[:, None, None]
    kl[~mask] = 99.0
    beta = 0.5 + torch.rand(5, generator=generator, dtype=torch.float64)
    horizon = uniform(5, 9, generator)
    runs = {"beta": beta, "kl": kl, "mask": mask}
    return runs | {"kl_target": kl_target, "horizon": horizon}


def _per_response(kl, mask):
    return (kl * mask).sum(-1).mean(-1)


def _controller(beta, kl, mask, kl_target, horizon):
    """Run by run, in plain numbers."""
    found = []
    for b, run, counts in zip(beta.tolist(), kl, mask, strict=True):
        error = run[counts].sum().item() / len(run) / kl_target - 1
        found.append(b * (1 + math.copysign(min(abs(error), 0.2), error) * len(run) / horizon))
    return torch.tensor(found, dtype=torch.float64)


def _clip(error):
    return error.clamp(-0.2, 0.2)


def _control(beta, kl, mask, target, h, *, measure=_per_response, clip=_clip, n=3, last=None, by=1):
    """The rule, with something else in the place of some of it."""
    step = by * clip(measure(kl, mask) / target - 1) * n / h
    return beta * (1 + (step if last is None else last(step)))


CONTROLLER = Exercise(
    name="04-controller",
    draw=_runs,
    route=_controller,
    own=("proportional", "double_or_halve"),
    mistakes={
        "the bug is still there: this is nats per token, the target is per response": partial(
            _control, measure=lambda kl, m: (kl * m).sum((1, 2)) / m.sum((1, 2))
        ),
        "the mean still runs over steps, padding and all: add them up": partial(
            _control, measure=lambda kl, m: (kl * m).mean((1, 2))
        ),
        "the responses of a run are added up; their mean is wanted": partial(
            _control, measure=lambda kl, m: (kl * m).sum((1, 2))
        ),
        "padding counts: no response spends nats there": partial(
            _control, measure=lambda kl, m: kl.sum(-1).mean(-1)
        ),
        "each run has a KL of its own; this is one for all": partial(
            _control, measure=lambda kl, m: _per_response(kl, m).mean()
        ),
        "the clip is missing": partial(_control, clip=lambda error: error),
        "the error is clipped, not its product with n / h": partial(
            _control, clip=lambda error: error, last=_clip
        ),
        "the sign is wrong: too much KL has to raise β": partial(_control, by=-1),
        "n is the number of responses, not of runs": partial(_control, n=5),
        "n is the number of responses, not of steps": partial(_control, n=6),
        "n is the number of responses, not of all tokens": partial(_control, n=9),
        "n is missing: one batch has B responses": partial(_control, n=1),
        "the error is relative: KL / κ − 1": lambda beta, kl, m, target, h: (
            beta * (1 + _clip(_per_response(kl, m) - target) * 3 / h)
        ),
        "β is missing: the factor multiplies the present one": lambda beta, *rest: _control(
            torch.ones_like(beta), *rest
        ),
    },
)

EXERCISES = [LEFT_TO_EARN, RESPONSE, CONTROLLER]
