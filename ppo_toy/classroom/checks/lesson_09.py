"""Lesson 09, RLHF: the surrogate of form (B), which of the nine steps is at fault, two rulers."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import hide, normal, random_mask, same, sizes, uniform
from ppo_toy.kl import kl_of_log_probs as _kl


def _batch(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    ref = -0.5 - normal(b, t, generator=generator).abs()
    new = (ref + 0.5 * normal(b, t, generator=generator)).round(decimals=2)
    padded = {"log_probs": new.masked_fill(~mask, 99), "ref_log_probs": ref.masked_fill(~mask, 9)}
    rewards, beta = normal(b, generator=generator), uniform(0.3, 0.8, generator)
    return padded | {"rewards": rewards, "mask": mask, "beta": beta}


def _by_pairs(log_probs, ref_log_probs, rewards, mask, beta) -> Tensor:
    """A_i is the sum of f_i - f_j over j, divided by B - 1."""
    rows = list(zip(log_probs, ref_log_probs.detach(), rewards.tolist(), mask, strict=True))
    f = [r - beta * (n.detach().exp() / q.exp())[m].prod().log().item() for n, q, r, m in rows]
    pairs = [sum(f_i - f_j for f_j in f) for f_i in f]
    total = sum(a * n[m].sum() for a, (n, _, _, m) in zip(pairs, rows, strict=True))
    return total / (len(f) - 1) / len(f)


def _loo(f: Tensor, own: int = 1) -> Tensor:
    return f - (f.sum(0) - f) / (len(f) - own)


def _to_go(n, q, r, m, b):
    """A token pays for the tokens from it on, as in a reward-to-go."""
    f = r[:, None] - b * hide(n - q, m).flip(1).cumsum(1).flip(1)
    return (_loo(f).detach() * hide(n, m)).sum(1).mean()


def _in_the_loss(n, q, r, m, b):
    return (_loo(r).detach() * hide(n, m).sum(1) - b * hide(n - q, m).sum(1)).mean()


def _form_b(a=_loo, fix=Tensor.detach, hide=hide, last=hide, end=torch.mean, price=same, q=same):
    def answer(n, ref, r, m, b):
        advantage = a(r - price(b) * hide(n - q(ref), m).sum(1))
        return end(fix(advantage) * last(n, m).sum(1))

    return answer


SURROGATE = Exercise(
    name="09-surrogate",
    draw=_batch,
    route=_by_pairs,
    differentiate=("log_probs",),
    constants=("ref_log_probs", "rewards"),
    own=("policy_gradient_surrogate", "leave_one_out", "train"),
    mistakes={
        "the advantages are constants: detach them": _form_b(fix=same),
        "the penalty is that of the whole response, not of the tokens from t on": _to_go,
        "the mean of the others is not subtracted": _form_b(a=same),
        "the response itself is in the mean; only the others are": _form_b(lambda f: f - f.mean()),
        "the others are divided by B; divide by B - 1": _form_b(lambda f: _loo(f, 0)),
        "the reference is missing in the penalty": _form_b(q=torch.zeros_like),
        "padding counts in the log-ratio": _form_b(hide=same),
        "padding counts in the last sum": _form_b(last=same),
        "the penalty is missing": _form_b(price=lambda b: 0),
        "β is missing": _form_b(price=lambda b: 1),
        "the log-ratio is added; subtract policy less reference": _form_b(price=lambda b: -b),
        "it is not divided by B": _form_b(end=torch.sum),
        "the sign is wrong: it is to be maximised": _form_b(end=lambda x: -x.mean()),
        "this is k1 in the loss, and its mean gradient is 0: charge it in A": _in_the_loss,
    },
)  # fmt: skip

KINDS = 6  # fault 4 has two: a KL that does not begin at 0, and one that never leaves it


def _logs(generator: Generator, k: int) -> dict:
    """Every fault in random order. Single steps mislead: the last may lie below the first."""
    g, s = sizes(k, 2, low=KINDS)
    kinds = torch.arange(g) % KINDS
    kinds = kinds[torch.randperm(g, generator=generator)]
    betas = 0.5 + normal(g, generator=generator).abs().round(decimals=1)
    kl = 0.1 * (1 + normal(g, s, generator=generator).abs()).cumsum(-1).round(decimals=1)
    kl = kl - kl[:, :1] + 0.2 * (kinds == 1)[:, None]
    kl[(kinds == 2) | (kinds == 4)] = 0
    slope = torch.tensor([4.0, 4, 3, 4, 0, -3])[kinds, None]
    rewards = slope * (torch.arange(s) >= s // 2) + 0.1 * normal(g, s, generator=generator)
    rewards[:, :2] += torch.tensor([-0.7, 0.7])  # in the first half, whose mean stays
    rewards[kinds == 0, -1] = rewards[kinds == 0, 0] - 1
    objective = rewards - betas[:, None] * kl
    wrong = (rewards - 9 * kl, rewards - betas[:, None] * kl / 3, rewards - betas[:, None])[k % 3]
    objective[kinds == 3] = wrong[kinds == 3]
    noise = torch.randint(-3, 4, kl.shape, generator=generator) * 1e-8
    kl = torch.where(kl == 0, noise, kl)
    return {"betas": betas, "objective": objective, "rewards": rewards, "kl": kl}


def _rise(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return x[:, half:].mean(1) - x[:, :half].mean(1)


def _step(betas: Tensor, objective: Tensor, rewards: Tensor, kl: Tensor) -> Tensor:
    """Run by run, the surest fault first."""
    steps, rises = [], zip(_rise(objective).tolist(), _rise(rewards).tolist(), strict=True)
    for beta, j, r, nats, (up_j, up_r) in zip(betas, objective, rewards, kl, rises, strict=True):
        off = (j - r + beta * nats).abs().max() > 1e-6
        still = 4 if up_r > 0.5 else 8
        moving = 4 if nats[0].abs() > 1e-6 else 9 if up_j < -0.5 else 0
        steps.append(5 if off else moving if nats.abs().max() > 1e-6 else still)
    return torch.tensor(steps)


def _told(
    limit=1e-6, rise=_rise, price=same, look=lambda x: x.amax(1), rising=4, level=8, moved=4,
    five=5, down=9, late=False,
):  # fmt: skip
    def answer(b, j, r, kl):
        step = torch.where(rise(j) < -0.5, down, 0)
        wrong = look((j - (r - price(b)[:, None] * kl)).abs()) > 1e-6
        step = torch.where(wrong & (step == 0), five, step) if late else step
        step = torch.where(kl[:, 0].abs() > limit, moved, step)
        idle = torch.where(rise(r) > 0.5, rising, level)
        step = torch.where((kl.abs() <= limit).all(1), idle, step)
        return step if late else torch.where(wrong, five, step)

    return answer


WHICH_STEP = Exercise(
    name="09-which-step",
    draw=_logs,
    route=_step,
    mistakes={
        "rounding leaves no exact 0: compare with 1e-6": _told(limit=0),
        "single steps mislead: compare halves": _told(rise=lambda x: x[:, -1] - x[:, 0]),
        "KL 0 throughout and R rising: the reference moves along, step 4": _told(rising=8),
        "KL 0 throughout and R level: nothing moves, step 8": _told(level=4),
        "a KL that does not begin at 0 is a fault of step 4": _told(moved=0),
        "J is R less β times KL: look at it in every step": _told(look=lambda x: x[:, 0]),
        "β is missing: J is R less β times KL": _told(price=torch.ones_like),
        "a J that is wrongly combined can fall, too: that is step 5": _told(late=True),
        "a J that falls is a fault of step 9": _told(down=0),
        "J is not looked at: is it R less β times KL?": _told(five=0),
    },
)


def _listed(generator: Generator, k: int) -> dict:
    """A policy on the way to π*; in case 1 it is there, with a tiny β; in case 2 it went back."""
    log_ref, rewards, noise = normal(3, *sizes(k, 2), generator=generator)
    log_ref, beta = log_ref.log_softmax(-1), 0.002 if k == 1 else uniform(0.4, 0.8, generator)
    rewards = rewards + 2 * (k == 1)
    way, noise = (0.6, 1, -0.5, 0.4)[k], 0.3 * noise * (k != 1)
    log_pi = (log_ref + way * rewards / beta + noise).log_softmax(-1)
    return {"log_pi": log_pi, "log_ref": log_ref, "rewards": rewards, "beta": beta}


def _by_the_best(log_pi: Tensor, log_ref: Tensor, rewards: Tensor, beta: float) -> tuple:
    """From the best policy itself: both gaps are β times a KL to it."""
    most = rewards.amax(dim=1, keepdim=True)
    mass = (log_ref.exp() * ((rewards - most) / beta).exp()).sum(dim=1, keepdim=True)
    log_best = log_ref + (rewards - most) / beta - mass.log()
    left, whole = (_kl(x, log_best).mean() for x in (log_pi, log_ref))
    return 1 - left / whole, left


def _log_z(q: Tensor, r: Tensor, b: float) -> Tensor:
    return (q + r / b).logsumexp(1)


def _rule(best=lambda *a: a[2] * _log_z(*a), kl=_kl, price=same, over=Tensor.mean, gap=torch.div):
    def answer(x, q, r, b):
        reward, ref, top = (x.exp() * r).sum(1), (q.exp() * r).sum(1), over(best(q, r, b))
        j, ref = over(reward - price(b) * kl(x, q)), over(ref)
        return ((j - ref) / (top - ref)).mean(), gap(top - j, b).mean()

    return answer


TWO_RULERS = Exercise(
    name="09-two-rulers",
    draw=_listed,
    route=_by_the_best,
    own=("optimum", "evaluate", "best_by_hand"),
    mistakes={
        "the gap is in reward; divide it by β": _rule(gap=same),
        "this is a mean of shares; average J over the prompts first": _rule(over=same),
        "each prompt has a Z of its own: the logarithms come before the mean":
            _rule(lambda q, r, b: b * _log_z(q, r, b).exp().mean().log()),
        "the KL is missing in J of the policy": _rule(price=lambda b: 0),
        "the KL in J is turned round: π stands first": _rule(kl=lambda p, q: _kl(q, p)),
        "β is missing before log Z": _rule(_log_z),
        "J* is not the largest reward: π* pays for its KL, too": _rule(lambda q, r, b: r.amax(1)),
        "J* is not the mean reward of π*: its KL has a price":
            _rule(lambda q, r, b: ((q + r / b).softmax(1) * r).sum(1)),
        "the two are swapped: the share is the first": lambda *a: _rule()(*a)[::-1],
    },
)  # fmt: skip

EXERCISES = [SURROGATE, WHICH_STEP, TWO_RULERS]
