"""Lesson 03, policy gradient: a batch without reward, the future KL, the surrogate."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, random_mask, uniform
from ppo_toy.kl import kl_divergence as _kl

N_WORDS = 5


# The gradient of J from a batch of single words.


def _words(generator: Generator) -> dict:
    logits, ref_logits = normal(2, 4, generator=generator)
    drawn = {"words": torch.randint(4, (N_WORDS,), generator=generator)}
    drawn |= {"rewards": normal(N_WORDS, generator=generator), "beta": uniform(0.3, 1.3, generator)}
    return {"logits": logits, "ref_logits": ref_logits, **drawn}


def _batch_gradient(logits, ref_logits, words, rewards, beta):
    """On paper: the score of a word is one-hot less p, ∇KL is p times (log-ratio - KL)."""
    p, p_ref = logits.softmax(-1), ref_logits.softmax(-1)
    total = torch.zeros_like(p)
    for word, reward in zip(words.tolist(), rewards, strict=True):
        total = total - reward * p
        total[word] += reward
    log_ratio = torch.log(p / p_ref)
    return total / len(words) - beta * p * (log_ratio - (p * log_ratio).sum())


def _log_ratio(x: Tensor, q: Tensor) -> Tensor:
    return x.log_softmax(-1) - q.log_softmax(-1)


def _estimate(x, q, a, r, b, *, push=1.0, pull=1.0, earns=lambda r, kl, k1, p: r, swap=False):
    """The estimate, with something else in the place of some of it."""
    p = x.softmax(-1)
    scores = torch.eye(len(x), dtype=x.dtype)[a] - p
    of_kl = p - q.softmax(-1) if swap else p * (_log_ratio(x, q) - _kl(x, q))
    earned = earns(r, b * _kl(x, q), b * _log_ratio(x, q)[a], p[a]).unsqueeze(-1)
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
        "the words drawn are added up; their mean is wanted": partial(_estimate, push=N_WORDS),
        "right on average, but the KL must not be in the first term": partial(
            _estimate, earns=lambda r, kl, *_: r - kl
        ),
        "right on average, but this is form (B); here the KL is exact": partial(
            _estimate, earns=lambda r, kl, k1, p: r - k1, pull=0
        ),
        "no baseline is wanted here": partial(_estimate, earns=lambda r, *_: r - r.mean()),
        "R multiplies probabilities, not logarithms": partial(
            _estimate, earns=lambda r, *z: r * z[-1]
        ),
        "the KL's arguments are swapped: the policy stands first": partial(_estimate, swap=True),
    },
)


# What a token is answerable for.


def _steps(generator: Generator) -> dict:
    mask = random_mask(1, 2, 4, generator=generator)
    kl = 0.1 + torch.rand(3, 4, generator=generator, dtype=torch.float64)
    kl[~mask] = 99.0
    rewards = normal(3, generator=generator)
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
    charged = charge(k * (m | inside))
    return (r.unsqueeze(-1) - brake * b * charged) * (m | outside)


_CHARGES = {  # the likely ones first
    "the token's own KL is in: only later steps count": partial(_g, charge=_from),
    "all steps are charged: only later ones count": partial(_g, charge=lambda k: k.sum(1, True)),
    "the earlier steps are charged: turn it around": partial(_g, charge=lambda k: k.cumsum(-1) - k),
    "the sum ends here: turn it around": partial(_g, charge=lambda k: k.cumsum(-1)),
    "the future KL is missing: this is the reward alone": partial(_g, brake=0),
    "only the next step is charged: add up all that follow": partial(
        _g, charge=lambda k: torch.cat([k[:, 1:], 0 * k[:, :1]], -1)
    ),
    "padding counts: the KL behind the mask is charged": partial(_g, inside=True),
    "behind the mask G has to be 0": partial(_g, outside=True),
    "β is missing": lambda r, k, b, m: _g(r, k, 1.0, m),
    "the KL is added; it has to be subtracted": partial(_g, brake=-1),
    "the reward is missing": lambda r, k, b, m: _g(0 * r, k, b, m),
}

ANSWERABLE = Exercise(
    name="03-answerable",
    draw=_steps,
    route=_answerable,
    differentiate=("rewards", "kl"),
    own=("reward_to_go",),
    mistakes={
        "a gradient flows through G: detach it": _g,
        "a gradient reaches kl: G is a constant": lambda r, k, b, m: _g(r.detach(), k, b, m),
        "a gradient reaches rewards: G is a constant": lambda r, k, b, m: _g(r, k.detach(), b, m),
    }
    | {text: lambda *x, f=f: f(*x).detach() for text, f in _CHARGES.items()}
    | {f"{text}; and detach G": f for text, f in list(_CHARGES.items())[:5]},
)


# The surrogate.


def _batch(generator: Generator) -> dict:
    logits, ref_logits = normal(2, 2, 3, 4, generator=generator)
    mask = random_mask(3, 2, generator=generator)
    tokens = torch.randint(4, (2, 3), generator=generator) * mask
    advantages = normal(2, 3, generator=generator)
    logits[~mask] = torch.tensor([0, 99.0, 0, 0], dtype=torch.float64)
    ref_logits[~mask] = torch.tensor([0, 0, 99.0, 0], dtype=torch.float64)
    advantages[~mask] = 99.0
    beta = uniform(0.3, 1.3, generator)
    drawn = {"tokens": tokens, "advantages": advantages, "mask": mask, "beta": beta}
    return {"logits": logits, "ref_logits": ref_logits, **drawn}


def _surrogate(logits, ref_logits, tokens, advantages, mask, beta):
    """Step by step, from odds."""
    total = 0
    for i, t in mask.nonzero().tolist():
        odds, ref_odds = logits[i, t].exp(), ref_logits[i, t].detach().exp()
        p, q = odds / odds.sum(), ref_odds / ref_odds.sum()
        total = total + advantages[i, t].item() * torch.log(p[tokens[i, t]])
        total = total - beta * sum(p[v] * torch.log(p[v] / q[v]) for v in range(len(p)))
    return total / logits.shape[0]


def _picked(x: Tensor, t: Tensor) -> Tensor:
    return x.gather(-1, t.unsqueeze(-1)).squeeze(-1)


def _log_p(x: Tensor) -> Tensor:
    return x.log_softmax(-1)


def _exact(x: Tensor, q: Tensor, t: Tensor) -> Tensor:
    return _kl(x, q)


def _rule(x, q, t, a, m, b, *, log_p=_log_p, kl=_exact, brake=1.0, **k):
    """The surrogate, with something else in the place of some of it."""
    gain = a * _picked(log_p(x), t) * (m | k.get("padding", False))
    cost = brake * b * kl(x, q, t) * (m | k.get("padding_in_kl", False))
    return (gain - cost).sum() * k.get("by", lambda m: 1 / len(m))(m)


_RULES: dict[str, Callable] = {  # the likely ones first
    "padding counts: nothing was drawn there": partial(_rule, padding=True, padding_in_kl=True),
    "this is a mean over tokens; divide by B": partial(_rule, by=lambda m: 1 / m.sum()),
    "it is divided by T; divide by B": partial(_rule, by=lambda m: 1 / m.shape[1]),
    "it is not divided by B": partial(_rule, by=lambda m: 1),
    "the KL is missing": partial(_rule, brake=0),
    "β is missing": lambda x, q, t, a, m, b: _rule(x, q, t, a, m, 1.0),
    "the KL is added": partial(_rule, brake=-1),
    "the sign is wrong: it is to be maximised": partial(_rule, by=lambda m: -1 / len(m)),
    "the KL carries no gradient": partial(_rule, kl=lambda *x: _exact(*x).detach()),
    "the first term carries no gradient": partial(
        _rule, log_p=lambda x: x.detach().log_softmax(-1)
    ),
    "the KL's arguments are swapped": partial(_rule, kl=lambda x, q, t: _kl(q, x)),
    "this is k1, not the KL": partial(_rule, kl=lambda x, q, t: _picked(_log_ratio(x, q), t)),
    "padding counts in the KL": partial(_rule, padding_in_kl=True),
    "this is a mean over all steps; divide by B": partial(_rule, by=lambda m: 1 / m.numel()),
    "A multiplies probabilities, not logarithms": partial(_rule, log_p=lambda x: x.softmax(-1)),
    "logits are not log-probabilities: normalise them": partial(_rule, log_p=lambda x: x),
}


def _hold(f: Callable, q: bool = True, a: bool = True) -> Callable:
    """The rule with the reference, the advantages or both held constant."""
    return lambda x, ref, t, adv, *rest: f(
        x, ref.detach() if q else ref, t, adv.detach() if a else adv, *rest
    )


SURROGATE = Exercise(
    name="03-surrogate",
    draw=_batch,
    route=_surrogate,
    differentiate=("logits", "ref_logits", "advantages"),
    own=("policy_gradient_surrogate", "kl_divergence", "kl_of_log_probs", "masked_kl"),
    mistakes={
        "a gradient reaches the advantages and the reference: detach both": _rule,
        "a gradient reaches the advantages: detach them": _hold(_rule, a=False),
        "a gradient reaches the reference: detach it": _hold(_rule, q=False),
    }
    | {text: _hold(f) for text, f in _RULES.items()}
    | {f"{text}; and detach the constants": f for text, f in list(_RULES.items())[:8]},
)

EXERCISES = [BATCH_GRADIENT, ANSWERABLE, SURROGATE]
