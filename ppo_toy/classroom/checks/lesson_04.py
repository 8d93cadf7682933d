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


def _listed(generator: Generator, k: int) -> dict:
    """Cases 1 and 4 have a tiny β, 2 and 4 are at π*, and in case 3 J* is below 0."""
    logits, ref_logits, rewards = normal(3, *sizes(k, 1, low=3), generator=generator)
    beta = 0.001 if k in (1, 4) else uniform(0.3, 0.9, generator)
    p_ref, rewards = ref_logits.softmax(-1), rewards - 3 * (k == 3)
    logits = _tilted(p_ref, rewards, beta) if k in (2, 4) else 2 * logits
    return {"logits": logits, "p_ref": p_ref, "rewards": rewards, "beta": beta}


def _left_to_earn(logits, p_ref, rewards, beta):
    """The gap as a difference: J* from the sum Z, J from its two terms."""
    x, most = logits - logits.max(), rewards.max()
    log_p = x - torch.log(x.exp().sum())
    top = most + beta * torch.log((p_ref * torch.exp((rewards - most) / beta)).sum())
    return top, top - (log_p.exp() * (rewards - beta * (log_p - torch.log(p_ref)))).sum()


def _top(x, p, r, b):
    return b * _tilted(p, r, b).logsumexp(-1)


def _gap(x, p, r, b):
    return b * _kl(x, _tilted(p, r, b))


LEFT_TO_EARN = Exercise(
    name="04-left-to-earn",
    draw=_listed,
    route=_left_to_earn,
    own=("optimum", "evaluate", "kl_divergence", "kl_of_log_probs"),
    n_cases=5,
    mistakes={
        "gap: β is missing": lambda *z: (_top(*z), _gap(*z) / z[3]),
        "gap: the KL is to the reference; it has to be to π*":
            lambda x, p, r, b: (_top(x, p, r, b), b * _kl(x, p.log())),
        "gap: the KL's arguments are swapped: the policy stands first":
            lambda x, p, r, b: (_top(x, p, r, b), b * _kl(_tilted(p, r, b), x)),
        "gap: this is J itself; subtract it from J*": lambda *z: (_top(*z), _top(*z) - _gap(*z)),
        "gap: the brake is missing in J": lambda *z: (_top(*z), _top(*z) - z[0].softmax(-1) @ z[2]),
        "J*: β is missing before log Z": lambda *z: (_top(*z) / z[3], _gap(*z)),
        "J*: this is R*, the reward alone":
            lambda *z: (_tilted(*z[1:]).softmax(-1) @ z[2], _gap(*z)),
        "the reference is missing in Z": lambda x, p, *z: (_top(x, p**0, *z), _gap(x, p**0, *z)),
        "the two are in the wrong order: J* comes first": lambda *z: (_gap(*z), _top(*z)),
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


def _judge(
    b, kl, r, *, worth=lambda b, kl, r: r - b[:, None] * kl, best=lambda w: w.amax(1),
    which=lambda w, missed: missed.argmax(),
):  # fmt: skip
    """The diagnosis, with something else in the place of some of it."""
    table = worth(b, kl, r)
    missed = best(table) - table.diagonal()
    return missed, which(table, missed)


DIAGNOSE = Exercise(
    name="04-diagnose",
    draw=_logged,
    route=_diagnose,
    mistakes={
        "the others are counted at their own β; count them at this run's":
            partial(_judge, worth=lambda b, kl, r: (r - b * kl).expand(len(b), -1)),
        "β is missing: a nat is not worth 1": lambda b, kl, r: _judge(b**0, kl, r),
        "the brake is missing: the largest reward wins at every β":
            lambda b, kl, r: _judge(0 * b, kl, r),
        "the sign of the brake is wrong": lambda b, kl, r: _judge(-b, kl, r),
        "each run is compared with itself at all prices; its β has to stay":
            partial(_judge, best=lambda w: w.amax(0)),
        "the KL of one run and the reward of another: both have to be of the same run":
            partial(_judge, worth=lambda b, kl, r: r - b * kl[:, None]),
        "a run counts among all runs: where it is the best, it misses 0":
            partial(_judge, best=lambda w: (w - 1e9 * torch.eye(len(w))).amax(1)),
        "the index is of the run that misses least":
            partial(_judge, which=lambda w, missed: missed.argmin()),
        "the index is of the run that is better; the one that misses is wanted":
            partial(_judge, which=lambda w, missed: w[missed.argmax()].argmax()),
        "an estimated KL can be below 0: do not cut it off":
            lambda b, kl, r: _judge(b, kl.clamp(min=0), r),
        "an estimated KL can be below 0: take no abs": lambda b, kl, r: _judge(b, kl.abs(), r),
    },
)  # fmt: skip


# The proportional controller.


def _batch(generator: Generator, k: int) -> dict:
    """The KL is above, below and about the target, and below 0."""
    b, t = sizes(k, 2)
    mask, kl = random_mask(b, t, generator), normal(b, t, generator=generator)
    kl_target = uniform(1, 2, generator)
    lacks = kl_target * (2.1, -1.1, 0.9, 1.05)[k] - _per_response(kl, mask)
    kl = (kl + lacks * b / mask.sum()).round(decimals=3).masked_fill(~mask, 99)
    if kl.min() > -0.2:  # one is below 0
        return _batch(generator, k)
    steered = {"beta": uniform(0.5, 2, generator), "kl": kl, "mask": mask}
    return steered | {"kl_target": kl_target, "horizon": uniform(5, 9, generator)}


def _per_response(kl, mask):
    return kl.masked_fill(~mask, 0).sum(-1).mean()


def _controller(beta, kl, mask, kl_target, horizon):
    """In plain numbers."""
    error = kl[mask].sum().item() / len(kl) / kl_target - 1
    return beta * (1 + math.copysign(min(abs(error), 0.2), error) * len(kl) / horizon)


def _measured(measure):
    """The rule, with another measure of the KL."""

    def answer(beta, kl, mask, kl_target, horizon):
        error = (measure(kl, mask) / kl_target - 1).clamp(-0.2, 0.2)
        return beta * (1 + error * len(kl) / horizon)

    return answer


CONTROLLER = Exercise(
    name="04-controller",
    draw=_batch,
    route=_controller,
    own=("proportional", "double_or_halve"),
    mistakes={
        "the bug is still there: this is nats per token, the target is per response":
            _measured(lambda kl, m: kl[m].mean()),
        "the mean still runs over steps, padding and all: add them up":
            _measured(lambda kl, m: kl.masked_fill(~m, 0).mean()),
        "a mean of means: add up the steps of each response":
            _measured(lambda kl, m: (kl.masked_fill(~m, 0).sum(-1) / m.sum(-1)).mean()),
        "the responses are added up, too: average them": _measured(lambda kl, m: kl[m].sum()),
        "it is averaged over the steps; add these up, and average the responses":
            _measured(lambda kl, m: kl.masked_fill(~m, 0).sum(0).mean()),
        "padding counts: no response spends nats there": _measured(lambda kl, m: kl.sum(-1).mean()),
        "a mean can be below 0: take no abs": _measured(lambda kl, m: _per_response(kl, m).abs()),
        "a log-ratio can be below 0: do not cut it off":
            _measured(lambda kl, m: _per_response(kl.clamp(min=0), m)),
    },
)  # fmt: skip

EXERCISES = [LEFT_TO_EARN, DIAGNOSE, CONTROLLER]
