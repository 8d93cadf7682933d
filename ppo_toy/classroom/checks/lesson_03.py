"""Lesson 03, policy gradient: a batch without reward, the future KL, the surrogate."""

from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import (  # fmt: skip
    KLS,
    MEANS,
    drawn,
    log_ratio,
    mean_of,
    normal,
    random_mask,
    sizes,
    uniform,
)
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
    for word, reward in zip(words.tolist(), rewards, strict=True):
        total = total - reward * p
        total[word] += reward
    log_ratio = torch.log(p / p_ref)
    return total / len(words) - beta * p * (log_ratio - (p * log_ratio).sum())


def _estimate(x, q, a, r, b, *, push=1.0, pull=1.0, earns=lambda r, kl, k1, p: r, swap=False):
    """The estimate, with something else in the place of some of it."""
    p = x.softmax(-1)
    scores = torch.eye(len(x), dtype=x.dtype)[a] - p
    of_kl = p - q.softmax(-1) if swap else p * (log_ratio(x, q) - _kl(x, q))
    earned = earns(r, b * _kl(x, q), b * log_ratio(x, q)[a], p[a]).unsqueeze(-1)
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
        "it is divided by V; divide by the number of words drawn":
            lambda x, q, a, r, b: _estimate(x, q, a, r * len(r) / len(x), b),
        "the log-ratio of the words drawn is no KL: its derivative has no reference":
            (lambda x, q, a, r, b: _estimate(x, q, a, r - b, b, pull=0)),
        "right on average, but the KL must not be in the first term":
            partial(_estimate, earns=lambda r, kl, *_: r - kl),
        "right on average, but this is form (B); here the KL is exact":
            partial(_estimate, earns=lambda r, kl, k1, p: r - k1, pull=0),
        "no baseline is wanted here": partial(_estimate, earns=lambda r, *_: r - r.mean()),
        "R multiplies probabilities, not logarithms":
            partial(_estimate, earns=lambda r, *z: r * z[-1]),
        "the KL's arguments are swapped: the policy stands first": partial(_estimate, swap=True),
    },
)  # fmt: skip


# What a token is answerable for.


def _steps(generator: Generator, k: int) -> dict:
    b, t = sizes(k, 2)
    mask = random_mask(b, t, generator)
    kl = normal(b, t, generator=generator).abs() + 0.1
    kl[~mask] = 99
    rewards = normal(b, generator=generator)
    return {"rewards": rewards, "kl": kl, "beta": uniform(0.3, 1.3, generator), "mask": mask}


def _answerable(rewards: Tensor, kl: Tensor, beta: float, mask: Tensor) -> Tensor:
    """Token by token, in plain numbers."""
    result = torch.zeros_like(kl)
    for i, t in mask.nonzero().tolist():
        later = [kl[i, k].item() for k in range(t + 1, kl.shape[1]) if mask[i, k]]
        result[i, t] = rewards[i].item() - beta * sum(later)
    return result.detach()


def _from(k: Tensor) -> Tensor:
    return k.flip(-1).cumsum(-1).flip(-1)


def _g(r, k, b, m, *, charge=lambda k: _from(k) - k, inside=False, outside=False, brake=1.0):
    """G, with another charge; with padding inside its sum, or left outside."""
    charged = charge(k.masked_fill(~(m | inside), 0))
    return (r.unsqueeze(-1) - brake * b * charged).masked_fill(~(m | outside), 0)


ANSWERABLE = Exercise(
    name="03-answerable",
    draw=_steps,
    route=_answerable,
    constants=("rewards", "kl"),
    own=("reward_to_go",),
    mistakes={
        "the token's own KL is in: only later steps count": partial(_g, charge=_from),
        "all steps are charged: only later ones count":
            partial(_g, charge=lambda k: k.sum(1, True)),
        "the earlier steps are charged: turn it around":
            partial(_g, charge=lambda k: k.cumsum(-1) - k),
        "the sum ends here: turn it around": partial(_g, charge=lambda k: k.cumsum(-1)),
        "the future KL is missing: this is the reward alone": partial(_g, brake=0),
        "only the next step is charged: add up all that follow":
            partial(_g, charge=lambda k: torch.cat([k[:, 1:], 0 * k[:, :1]], -1)),
        "padding counts: the KL behind the mask is charged": partial(_g, inside=True),
        "behind the mask G has to be 0": partial(_g, outside=True),
        "β is missing": lambda r, k, b, m: _g(r, k, 1.0, m),
        "the KL is added; it has to be subtracted": partial(_g, brake=-1),
        "the reward is missing": lambda r, k, b, m: _g(0 * r, k, b, m),
    },
)  # fmt: skip


# The surrogate.


def _batch(generator: Generator, k: int) -> dict:
    b, t, v = sizes(k, 3)
    logits, ref_logits = normal(2, b, t, v, generator=generator)
    mask = random_mask(b, t, generator)
    tokens = torch.randint(v, (b, t), generator=generator) * mask
    advantages = normal(b, t, generator=generator).masked_fill(~mask, 99)
    logits[~mask], ref_logits[~mask] = 99 * torch.eye(v).double()[[1, 0]]
    case = {"tokens": tokens, "advantages": advantages, "mask": mask}
    case["beta"] = uniform(0.3, 1.3, generator)
    return {"logits": logits, "ref_logits": ref_logits, **case}


def _surrogate(logits, ref_logits, tokens, advantages, mask, beta):
    """Step by step, from odds."""
    total = 0
    for i, t in mask.nonzero().tolist():
        odds, ref_odds = logits[i, t].exp(), ref_logits[i, t].detach().exp()
        p, q = odds / odds.sum(), ref_odds / ref_odds.sum()
        total = total + advantages[i, t].item() * torch.log(p[tokens[i, t]])
        total = total - beta * sum(p[v] * torch.log(p[v] / q[v]) for v in range(len(p)))
    return total / logits.shape[0]


def _rule(x, q, t, a, m, b, *, log_p=_log, kl=_kl, end=mean_of):
    """The surrogate, with something else in the place of some of it."""
    return end(a * drawn(log_p(x), t) - b * kl(x, q), m)


SURROGATE = Exercise(
    name="03-surrogate",
    draw=_batch,
    route=_surrogate,
    differentiate=("logits",),
    constants=("ref_logits", "advantages"),
    own=("policy_gradient_surrogate", "kl_divergence", "kl_of_log_probs", "masked_kl"),
    mistakes={text: partial(_rule, end=end) for text, end in MEANS.items()}
    | {text: partial(_rule, kl=kl) for text, kl in KLS.items() if "sign" not in text}
    | {
        "the KL is missing": lambda x, q, t, a, m, b: _rule(x, q, t, a, m, 0),
        "β is missing": lambda x, q, t, a, m, b: _rule(x, q, t, a, m, 1),
        "the KL is added": lambda x, q, t, a, m, b: _rule(x, q, t, a, m, -b),
        "the first term carries no gradient": partial(_rule, log_p=lambda x: _log(x).detach()),
        "this is k1, not the KL":
            lambda x, q, t, *rest: _rule(x, q, t, *rest, kl=lambda x, q: drawn(log_ratio(x, q), t)),
        "padding counts in the KL": lambda x, q, t, a, m, b: _rule(x, q, t, a * m, m | True, b),
        "A multiplies probabilities, not logarithms": partial(_rule, log_p=lambda x: x.softmax(-1)),
        "logits are not log-probabilities: normalise them": partial(_rule, log_p=lambda x: x),
    },
)  # fmt: skip

EXERCISES = [BATCH_GRADIENT, ANSWERABLE, SURROGATE]
