"""Lesson 03, policy gradient: a batch without reward, form (A) on a padded batch, an omission."""

from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom import inputs
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import drawn, log_ratio, normal, sizes, uniform
from ppo_toy.classroom.inputs import log_p as _log
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


def _estimate(x, q, a, r, b, *, push=1.0, pull=1.0, earns=lambda r, kl, k1: r, swap=False):
    """The estimate, with something else in the place of some of it."""
    p = x.softmax(-1)
    scores = torch.eye(len(x), dtype=x.dtype)[a] - p
    of_kl = p - q.softmax(-1) if swap else p * (log_ratio(x, q) - _kl(x, q))
    earned = earns(r, b * _kl(x, q), b * log_ratio(x, q)[a]).unsqueeze(-1)
    return push * (earned * scores).mean(0) - pull * b * of_kl


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
        "the log-ratio of the words drawn is no KL: its derivative has no reference":
            (lambda x, q, a, r, b: _estimate(x, q, a, r - b, b, pull=0)),
        "right on average, but the KL must not be in the first term":
            partial(_estimate, earns=lambda r, kl, *_: r - kl),
        "right on average, but this is form (B); here the KL is exact":
            partial(_estimate, earns=lambda r, kl, k1: r - k1, pull=0),
        "no baseline is wanted here": partial(_estimate, earns=lambda r, *_: r - r.mean()),
        "the KL's arguments are swapped: the policy stands first": partial(_estimate, swap=True),
    },
)  # fmt: skip

# Form (A) on a padded batch.


def _batch(generator: Generator, k: int) -> dict:
    b, t, v = sizes(k, 3)
    logits, ref_logits = normal(2, b, t, v, generator=generator)
    mask = inputs.random_mask(b, t, generator)
    tokens = torch.randint(v, (b, t), generator=generator) * mask
    logits[~mask], ref_logits[~mask] = 99 * torch.eye(v).double()[[1, 0]]
    case = {"tokens": tokens, "rewards": normal(b, generator=generator), "mask": mask}
    case["beta"] = uniform(0.3, 1.3, generator)
    return {"logits": logits, "ref_logits": ref_logits, **case}


def _form_a(logits, ref_logits, tokens, rewards, mask, beta):
    """Token by token from the last, by odds."""
    total = 0
    for i, bracket in enumerate(rewards.tolist()):
        for t in reversed(range(int(mask[i].sum()))):
            odds, ref_odds = logits[i, t].exp(), ref_logits[i, t].detach().exp()
            p, q = odds / odds.sum(), ref_odds / ref_odds.sum()
            kl = sum(p[v] * torch.log(p[v] / q[v]) for v in range(len(p)))
            total = total + bracket * torch.log(p[tokens[i, t]]) - beta * kl
            bracket -= beta * kl.item()
    return total / len(mask)


def _rule(
    x, q, a, r, m, b, *, log_p=_log, kl=_kl, end=inputs.mean_of, held=Tensor.detach,
    charge=lambda k: k.flip(-1).cumsum(-1).flip(-1) - k, seen=inputs.hide, brake=1.0, direct=1.0,
):  # fmt: skip
    """Form (A), with something else in the place of some of it."""
    bracket = r[:, None] - b * brake * charge(seen(kl(x, q), m))
    return end(held(bracket) * drawn(log_p(x), a) - b * direct * kl(x, q), m)


FORM_A = Exercise(
    name="03-form-a",
    draw=_batch,
    route=_form_a,
    differentiate=("logits",),
    constants=("ref_logits", "rewards"),
    own=("policy_gradient_surrogate", "reward_to_go", "kl_divergence", "kl_of_log_probs"),
    mistakes={text: partial(_rule, end=end) for text, end in inputs.MEANS.items()}
    | {text: partial(_rule, kl=kl) for text, kl in inputs.KLS.items() if "sign" not in text}
    | {
        "the bracket has to be constant: detach it": partial(_rule, held=lambda x: x),
        "right on average, but a token's own KL does not belong in its bracket":
            partial(_rule, charge=lambda k: k.flip(-1).cumsum(-1).flip(-1)),
        "right on average, but only later KL belongs in the bracket":
            partial(_rule, charge=lambda k: k.sum(1, True)),
        "earlier KL is charged: turn it around": partial(_rule, charge=lambda k: k.cumsum(-1) - k),
        "the future KL is missing": partial(_rule, brake=0),
        "the direct term is missing": partial(_rule, direct=0),
        "β is missing": lambda *z: _rule(*z[:-1], 1),
        "the KL is missing": lambda *z: _rule(*z[:-1], 0),
        "the first term carries no gradient": partial(_rule, log_p=lambda x: _log(x).detach()),
        "this is k1, not the KL":
            lambda x, q, a, *z: _rule(x, q, a, *z, kl=lambda x, q: drawn(log_ratio(x, q), a)),
        "the padding counts: cut it off": lambda x, q, a, r, m, b: _rule(x, q, a, r, m | True, b),
        "padding counts in the bracket": partial(_rule, seen=lambda k, m: k),
    },
)  # fmt: skip

# Which term is missing? What is kept of reward, direct term and future KL, by its number:
_KEPT = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]]).double()


def _codes(generator: Generator, k: int) -> dict:
    v, n = sizes(k, 2, low=3)
    logits, ref_logits, reward_after = normal(3, v, generator=generator)
    case = {"logits": logits, "ref_logits": ref_logits, "reward_after": reward_after}
    case |= {"kl_after": normal(v, generator=generator).abs(), "beta": uniform(0.5, 1.5, generator)}
    return {**case, "found": _KEPT[torch.randperm(5, generator=generator)[:n]] @ _parts(**case)}


def _parts(logits, ref_logits, reward_after, kl_after, beta):
    """The three terms, by automatic differentiation of J, a sum over the first token."""
    theta = logits.detach().clone().requires_grad_()
    p = theta.softmax(-1)
    terms = torch.stack([p @ reward_after, -beta * _kl(theta, ref_logits), -beta * (p @ kl_after)])
    return torch.stack([torch.autograd.grad(x, theta, retain_graph=True)[0] for x in terms])


def _omission(logits, ref_logits, reward_after, kl_after, beta, found):
    parts = _parts(logits, ref_logits, reward_after, kl_after, beta)
    whole = parts.sum(0)
    return (found - whole).norm(dim=1) / whole.norm(), torch.cdist(found, _KEPT @ parts).argmin(1)


def _diagnose(
    x, q, r, later, b, found, *, lean=lambda p, x: p * (x - p @ x), k1=log_ratio, brake=1.0,
    ahead=1.0, by=lambda whole, found: whole, first=0,
):  # fmt: skip
    """On paper, where every term is E[what is paid times the score]; or something else."""
    paid = (r, -b * brake * k1(x, q), -b * brake * ahead * later)
    parts = torch.stack([lean(x.softmax(-1), each) for each in paid])
    whole = parts.sum(0)
    missing = torch.cdist(found, _KEPT @ parts).argmin(1) + first
    return (found - whole).norm(dim=1) / by(whole, found).norm(dim=-1), missing


OMISSION = Exercise(
    name="03-omission",
    draw=_codes,
    route=_omission,
    own=("gradient", "exact", "referee", "kl_divergence"),
    mistakes={
        "a score is one-hot less π: the mean is missing": partial(_diagnose, lean=torch.mul),
        "the mean over the first token is weighted by π":
            partial(_diagnose, lean=lambda p, x: p * (x - x.mean())),
        "β is missing": lambda *z: _diagnose(*z, brake=1 / z[4]),
        "both KLs are added; they have to be subtracted": partial(_diagnose, brake=-1),
        "the future KL is added; it has to be subtracted": partial(_diagnose, ahead=-1),
        "the KL's arguments are swapped: the policy stands first":
            partial(_diagnose, k1=lambda x, q: -q.softmax(-1) / x.softmax(-1)),
        "divide by the length of the true gradient":
            partial(_diagnose, by=lambda whole, found: found),
        "0 stands for nothing missing, 1 for the reward": partial(_diagnose, first=1),
    },
)  # fmt: skip

EXERCISES = [BATCH_GRADIENT, FORM_A, OMISSION]
