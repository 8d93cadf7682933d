"""Lesson 03, policy gradient: a batch without reward, form (A) with a baseline, an omission."""

from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import log_ratio, normal, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl

# The gradient of J from a batch of single words.


def _words(generator: Generator, k: int) -> dict:
    v, b = sizes(k, 2, low=3)
    logits, ref_logits = normal(2, v, generator=generator)
    case = {"words": torch.randint(v, (b,), generator=generator)}
    case |= {"rewards": normal(b, generator=generator), "beta": uniform(0.3, 1.3, generator)}
    return {"logits": logits, "ref_logits": ref_logits, **case}


def _batch_gradient(logits, ref_logits, words, rewards, beta):
    """On paper: the score of a word is one-hot less p, ∇KL is p times (log-ratio - KL)."""
    p, p_ref = logits.softmax(-1), ref_logits.softmax(-1)
    total = torch.zeros_like(p)
    for word, reward in zip(words, rewards, strict=True):
        total = total + reward * (torch.arange(len(p)).eq(word).double() - p)
    ratio = torch.log(p / p_ref)
    return total / len(words) - beta * p * (ratio - (p * ratio).sum())


def _estimate(x, q, a, r, b, *, push=1.0, pull=1.0, earns=lambda r, kl: r):
    """The estimate, with something else in the place of some of it."""
    p = x.softmax(-1)
    scores = torch.eye(len(x), dtype=x.dtype)[a] - p
    earned = earns(r, b * _kl(x, q)).unsqueeze(-1)
    return push * (earned * scores).mean(0) - pull * b * p * (log_ratio(x, q) - _kl(x, q))


BATCH_GRADIENT = Exercise(
    name="03-batch-gradient",
    draw=_words,
    route=_batch_gradient,
    own=("policy_gradient_surrogate", "gradient", "exact"),
    mistakes={
        "the bug is still there: no reward in it": partial(_estimate, push=0),
        "the brake is missing": partial(_estimate, pull=0),
        "the brake is added; it has to be subtracted": partial(_estimate, pull=-1),
        "the sign is wrong: the gradient points uphill": partial(_estimate, push=-1, pull=-1),
        "β is missing": lambda x, q, a, r, b: _estimate(x, q, a, r, 1.0),
        "the words drawn are added up; their mean is wanted":
            lambda x, q, a, r, b: _estimate(x, q, a, r * len(r), b),
        "right on average, but the KL must not be in the first term":
            partial(_estimate, earns=lambda r, kl: r - kl),
        "no baseline is wanted here": partial(_estimate, earns=lambda r, kl: r - r.mean()),
    },
)  # fmt: skip

# Form (A) with leave-one-out.


def _batch(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2, low=3)
    log_probs = -0.1 - normal(b, t, generator=generator).abs()
    case = {"log_probs": log_probs, "kl": normal(b, t, generator=generator).abs()}
    return case | {"rewards": normal(b, generator=generator), "beta": uniform(0.3, 1.3, generator)}


def _form_a(log_probs, kl, rewards, beta):
    """Token by token from the last, in plain numbers where they are constants."""
    total, earned = 0, rewards.tolist()
    for i, own in enumerate(earned):
        others = earned[:i] + earned[i + 1 :]
        bracket = own - sum(others) / len(others)
        for t in reversed(range(kl.shape[1])):
            total = total + bracket * log_probs[i, t] - beta * kl[i, t]
            bracket -= beta * kl[i, t].item()
    return total / len(earned)


def _back(k: Tensor) -> Tensor:
    return k.flip(-1).cumsum(-1).flip(-1)


def _rule(
    lp, kl, r, b, *, base=lambda r: (r.sum() - r) / (len(r) - 1), charge=lambda k: _back(k) - k,
    held=Tensor.detach, brake=1.0, direct=1.0, own=lambda r, kl, b: r,
    end=lambda x: x.sum(1).mean(),
):  # fmt: skip
    """Form (A), with something else in the place of some of it."""
    bracket = (r - base(own(r, kl, b)))[:, None] - b * brake * charge(kl)
    return end(held(bracket) * lp - b * direct * kl)


FORM_A = Exercise(
    name="03-form-a",
    draw=_batch,
    route=_form_a,
    differentiate=("log_probs", "kl"),
    constants=("rewards",),
    own=("policy_gradient_surrogate", "reward_to_go", "leave_one_out"),
    mistakes={
        "the bracket has to be constant: detach it": partial(_rule, held=lambda x: x),
        "the batch's mean holds the response's own reward: average the others":
            partial(_rule, base=torch.mean),
        "the baseline is missing": partial(_rule, base=lambda r: 0 * r),
        "the others are B − 1": partial(_rule, base=lambda r: (r.sum() - r) / len(r)),
        "right on average, but the baseline is a mean of rewards, without KL":
            partial(_rule, own=lambda r, kl, b: r - b * kl.sum(1)),
        "right on average, but a token's own KL does not belong in its bracket":
            partial(_rule, charge=_back),
        "right on average, but only later KL belongs in the bracket":
            partial(_rule, charge=lambda k: k.sum(1, True)),
        "earlier KL is charged: turn it around": partial(_rule, charge=lambda k: k.cumsum(-1) - k),
        "the future KL is missing": partial(_rule, brake=0),
        "the direct term is missing": partial(_rule, direct=0),
        "the direct term lost its gradient: only the bracket is constant":
            lambda lp, kl, r, b: _rule(lp, kl.detach(), r, b),
        "β is missing": lambda *z: _rule(*z[:-1], 1),
        "the steps are averaged; they are added up": partial(_rule, end=torch.mean),
        "it is divided by T; divide by B": partial(_rule, end=lambda x: x.sum(0).mean()),
        "the responses are added up; divide by B": partial(_rule, end=torch.sum),
    },
)  # fmt: skip

# Which term is missing? The gradient's three terms are numbered from 1.


def _code(generator: Generator, k: int) -> dict:
    """Cases 0 to 3 lack the term of that number, 0 none; the others lack any."""
    logits, ref_logits, reward_after = normal(3, *sizes(k, 1, low=3), generator=generator)
    case = {"p": logits.softmax(-1), "log_ratio": log_ratio(logits, ref_logits)}
    case |= {
        "reward_after": reward_after,
        "kl_after": normal(len(logits), generator=generator).abs(),
    }
    case["beta"] = uniform(0.5, 1.5, generator)
    parts = _parts(**case)
    lacks = k if k < 4 else int(torch.randint(1, 4, (), generator=generator))
    return case | {"found": parts.sum(0) - (parts[lacks - 1] if lacks else 0)}


def _parts(p, log_ratio, reward_after, kl_after, beta):
    """The three terms, by automatic differentiation of J, a sum over the first token."""
    theta = p.log().requires_grad_()
    pi, kl = theta.softmax(-1), _kl(theta, p.log() - log_ratio)
    terms = (pi @ reward_after, -beta * kl, -beta * (pi @ kl_after))
    return torch.stack([torch.autograd.grad(x, theta, retain_graph=True)[0] for x in terms])


def _verdict(parts, found, by=lambda whole, found: whole):
    whole = parts.sum(0)
    off = torch.stack([found - whole, *(found - whole + parts)]).norm(dim=1)
    return off[0] / by(whole, found).norm(), off.argmin()


def _omission(*given):
    return _verdict(_parts(*given[:-1]), given[-1])


def _diagnose(
    p, k1, r, later, b, found, *, direct=1.0, ahead=1.0, by=lambda whole, found: whole, first=0
):  # fmt: skip
    """On paper, where every term is E[what is paid times the score]; or something else."""
    paid = (r, -b * direct * k1, -b * ahead * later)
    error, missing = _verdict(torch.stack([p * (x - p @ x) for x in paid]), found, by)
    return error, missing + first


OMISSION = Exercise(
    name="03-omission",
    draw=_code,
    route=_omission,
    n_cases=6,
    own=("gradient", "exact", "referee", "kl_divergence"),
    mistakes={
        "β is missing": lambda *z: _diagnose(*z[:4], 1.0, z[5]),
        "both KLs are added; they have to be subtracted":
            partial(_diagnose, direct=-1.0, ahead=-1.0),
        "the future KL is added; it has to be subtracted": partial(_diagnose, ahead=-1.0),
        "the direct term is added; it has to be subtracted": partial(_diagnose, direct=-1.0),
        "divide by the length of the true gradient":
            partial(_diagnose, by=lambda whole, found: found),
        "0 stands for nothing missing, 1 for the reward": partial(_diagnose, first=1),
    },
)  # fmt: skip

EXERCISES = [BATCH_GRADIENT, FORM_A, OMISSION]
