"""Lesson 02, KL divergence: two penalties, a batch with padding, estimates, a sampler's filter."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import KLS, kl_along, log_ratio, normal, random_mask, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl

# Two penalties: KL(new || ref) and KL(old || new).


def _three_policies(generator: Generator, k: int) -> dict:
    logits, ref_logits, old_logits = normal(3, *sizes(k, 2), generator=generator)
    return {"logits": logits, "ref_logits": ref_logits, "old_logits": old_logits}


def _unnormalised_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL from logits as they are: log Z_b - log Z_a + the mean of a - b."""
    mean = (a.exp() * (a - b)).sum(-1) / a.exp().sum(-1)
    return b.exp().sum(-1).log() - a.exp().sum(-1).log() + mean


def _two_penalties(logits: Tensor, ref_logits: Tensor, old_logits: Tensor) -> tuple:
    ref, old = ref_logits.detach(), old_logits.detach()
    return _unnormalised_kl(logits, ref), _unnormalised_kl(old, logits)


def _pair(*four: Tensor) -> tuple:
    """KL(first || second) and KL(third || fourth)."""
    return _kl(*four[:2]), _kl(*four[2:])


TWO_PENALTIES = Exercise(
    name="02-two-penalties",
    draw=_three_policies,
    route=_two_penalties,
    differentiate=("logits",),
    constants=("ref_logits", "old_logits"),
    own=("kl_divergence", "kl_of_log_probs", "masked_kl", "per_step_kl"),
    mistakes={
        "kl_ref is swapped: the policy stands first": lambda x, r, o: _pair(r, x, o, x),
        "kl_old is swapped: the old one stands first": lambda x, r, o: _pair(x, r, x, o),
        "both have their arguments swapped": lambda x, r, o: _pair(r, x, x, o),
        "the two are in the wrong order: kl_ref first": lambda x, r, o: _pair(o, x, x, r),
        "kl_old lacks the policy in training": lambda x, r, o: _pair(x, r, o, r),
        "kl_ref has no gradient; its weights need it": lambda x, r, o: _pair(x.detach(), r, o, x),
        "kl_old has no gradient: π_θ is no constant": lambda x, r, o: _pair(x, r, o, x.detach()),
        "the softmax runs over the states; the words are the last axis":
            lambda x, r, o: (kl_along(0, x, r), kl_along(0, o, x)),
        "one number for all states; each state has its own":
            lambda x, r, o: tuple(kl.sum() for kl in _pair(x, r, o, x)),
    },
)  # fmt: skip


# The KL of a batch, per response and per token.


def _padded(generator: Generator, k: int) -> dict:
    b, t, v = sizes(k, 3)
    logits, ref_logits = normal(2, b, t, v, generator=generator)
    mask = random_mask(b, t, generator)
    logits[~mask], ref_logits[~mask] = 99 * torch.eye(v).double()[:2]
    return {"logits": logits, "ref_logits": ref_logits, "mask": mask}


def _batch_kl(logits: Tensor, ref_logits: Tensor, mask: Tensor) -> tuple:
    """Step by step, over those that count."""
    steps = [_unnormalised_kl(logits[i, t], ref_logits[i, t]) for i, t in mask.nonzero().tolist()]
    return sum(steps) / mask.shape[0], sum(steps) / len(steps)


def _both(kl: Tensor, mask: Tensor, **instead: Tensor) -> tuple:
    """The right two numbers of these KLs, or others in the place of some."""
    total = (kl * mask).sum()
    return tuple(({"response": total / len(mask), "token": total / mask.sum()} | instead).values())


def _mean_ratio(x: Tensor, q: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    return (weights * log_ratio(x, q)).sum(-1)


BATCH_KL = Exercise(
    name="02-batch-kl",
    draw=_padded,
    route=_batch_kl,
    differentiate=("logits",),
    own=("kl_divergence", "kl_of_log_probs", "masked_kl", "per_step_kl"),
    mistakes={text: lambda x, q, m, kl=kl: _both(kl(x, q), m) for text, kl in KLS.items()}
    | {
        "padding counts: it belongs to no response": lambda x, q, m: _both(_kl(x, q), m | True),
        "padding counts in the sum, though not in the divisor":
            lambda x, q, m: _both(_kl(x, q), m | True, token=_kl(x, q).sum() / m.sum()),
        "per token: the divisor counts padding":
            lambda x, q, m: _both(_kl(x, q), m, token=(_kl(x, q) * m).mean()),
        "per token: a mean of means; every token weighs the same":
            lambda x, q, m: _both(_kl(x, q), m, token=((_kl(x, q) * m).sum(-1) / m.sum(-1)).mean()),
        "per response: it is not divided by B":
            lambda x, q, m: _both(_kl(x, q), m, response=(_kl(x, q) * m).sum()),
        "per response: it is divided by T; divide by B":
            lambda x, q, m: _both(_kl(x, q), m, response=(_kl(x, q) * m).sum(0).mean()),
        "per response: one mean over all responses is wanted":
            lambda x, q, m: _both(_kl(x, q), m, response=(_kl(x, q) * m).sum(-1)),
        "the two are in the wrong order": lambda x, q, m: _both(_kl(x, q), m)[::-1],
    },
)  # fmt: skip


# The means of k1, k2 and k3.


def _drawn(generator: Generator, k: int) -> dict:
    """In case 1 every token is likelier under the reference: k1 is below 0."""
    b, t = sizes(k, 2)
    log_p, log_q = (-2 * normal(2, b, t, generator=generator).sigmoid()).round(decimals=2)
    log_p = log_q + log_q if k == 1 else log_p
    mask = random_mask(b, t, generator)
    log_p[~mask], log_q[~mask] = 99.0, 97.0
    return {"log_p": log_p, "log_q": log_q, "mask": mask}


def _dashboard(log_p: Tensor, log_q: Tensor, mask: Tensor) -> tuple:
    """Token by token, from probabilities."""
    k1 = k2 = k3 = 0
    for i, t in mask.nonzero().tolist():
        p, q = log_p[i, t].exp(), log_q[i, t].exp()
        k1 = k1 + torch.log(p / q)
        k2 = k2 + torch.log(q / p) ** 2 / 2
        k3 = k3 + (q - p) / p + torch.log(p / q)
    return k1 / mask.sum(), k2 / mask.sum(), k3 / mask.sum()


def _means(log_p: Tensor, log_q: Tensor, mask: Tensor, *, weigh=None, **instead) -> tuple:
    """The three means, in another sense of the word or with other terms in the place of some."""
    d = log_p - log_q
    terms = {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d} | instead
    return tuple(weigh(k) if weigh else k[mask].mean() for k in terms.values())


def _k3(p: Tensor, q: Tensor, mask: Tensor, ratio: int, log: int) -> tuple:
    """With the ratio, and its logarithm, the right way up (1) or upside down (-1)."""
    return _means(p, q, mask, k3=(ratio * (q - p)).exp() - 1 - log * (q - p))


DASHBOARD = Exercise(
    name="02-dashboard",
    draw=_drawn,
    route=_dashboard,
    differentiate=("log_p", "log_q"),
    own=("kl_estimate",),
    mistakes={
        "the bug is still there: one of three is upside down": lambda p, q, m: _k3(p, q, m, -1, -1),
        "k3: its logarithm is upside down": lambda p, q, m: _k3(p, q, m, 1, -1),
        "k3: the ratio itself is upside down": lambda p, q, m: _k3(p, q, m, -1, 1),
        "k3: the −1 is missing": lambda p, q, m: _means(p, q, m, k3=(q - p).exp() - (q - p)),
        "k1 has the wrong sign: policy less reference": lambda p, q, m: _means(p, q, m, k1=q - p),
        "k2: the half is missing": lambda p, q, m: _means(p, q, m, k2=(p - q) ** 2),
        "k2 is the mean of squares, not the square of the mean":
            lambda p, q, m: _means(p, q, m, k2=(p - q)[m].mean() ** 2 / 2 + 0 * p),
        "padding counts: no token was drawn there": lambda p, q, m: _means(p, q, m | True),
        "the divisor counts padding":
            lambda p, q, m: _means(p, q, m, weigh=lambda x: x.masked_fill(~m, 0).mean()),
        "a mean of means; every token weighs the same": lambda p, q, m: _means(
            p, q, m, weigh=lambda x: (x.masked_fill(~m, 0).sum(1) / m.sum(1)).mean()
        ),
        "it is divided by B; divide by the number of tokens that count":
            lambda p, q, m: _means(p, q, m, weigh=lambda x: x[m].sum() / len(m)),
        "the tokens are added up, not averaged":
            lambda p, q, m: _means(p, q, m, weigh=lambda x: x[m].sum()),
    },
)  # fmt: skip


# What the dashboard shows when the sampler had a temperature.


def _sampler(generator: Generator, k: int) -> dict:
    """Case 1: a temperature above 1. Case 2: `shown` is below 0. Case 3: a word is never said."""
    logits, ref_logits = normal(2, *sizes(k, 1, low=3), generator=generator)
    temperature = 0.5 if k == 2 else uniform(1.3, 2, generator) if k == 1 else 0.4 + k / 10
    if k == 2:
        ref_logits = logits / temperature  # the sampler is the reference
    if k == 3:
        logits[0] = -800
    return {"logits": logits, "ref_logits": ref_logits, "temperature": temperature}


def _who_drew(logits: Tensor, ref_logits: Tensor, temperature: float) -> tuple:
    """Shown as the difference of two divergences: KL(b || ref) - KL(b || policy)."""
    b, b_ref = logits / temperature, ref_logits / temperature
    shown = _unnormalised_kl(b, ref_logits) - _unnormalised_kl(b, logits)
    return shown, _unnormalised_kl(logits, ref_logits), _unnormalised_kl(b, b_ref)


def _three(x: Tensor, q: Tensor, t: float, **instead: Tensor) -> tuple:
    """The right three numbers, or others in the place of some."""
    b, b_ref = x / t, q / t
    shown = _mean_ratio(x, q, b.softmax(-1))
    return tuple(({"shown": shown, "true": _kl(x, q), "scored": _kl(b, b_ref)} | instead).values())


WHO_DREW = Exercise(
    name="02-who-drew",
    draw=_sampler,
    route=_who_drew,
    own=("kl_divergence", "kl_of_log_probs"),
    mistakes={
        "the temperature multiplies; it has to divide": lambda x, q, t: _three(x, q, 1 / t),
        "scored: the reference is tempered too":
            lambda x, q, t: _three(x, q, t, scored=_kl(x / t, q)),
        "scored: the words are still drawn by b":
            lambda x, q, t: _three(x, q, t, scored=_mean_ratio(x / t, q / t, x.softmax(-1))),
        "shown: b draws, not the policy scored": lambda x, q, t: _three(x, q, t, shown=_kl(x, q)),
        "shown: only the sampler is tempered":
            lambda x, q, t: _three(x, q, t, shown=_kl(x / t, q / t)),
        "shown: this is KL(b || reference)": lambda x, q, t: _three(x, q, t, shown=_kl(x / t, q)),
        "shown: the subtraction is the wrong way round":
            lambda x, q, t: _three(x, q, t, shown=-_mean_ratio(x, q, (x / t).softmax(-1))),
        "shown: b does not sum to 1":
            lambda x, q, t: _three(x, q, t, shown=_mean_ratio(x, q, x.softmax(-1) ** (1 / t))),
        "shown and true are in the wrong order":
            lambda x, q, t: _three(x, q, t, shown=_kl(x, q), true=_three(x, q, t)[0]),
        "the KLs' arguments are swapped":
            lambda x, q, t: _three(x, q, t, true=_kl(q, x), scored=_kl(q / t, x / t)),
    },
)  # fmt: skip

EXERCISES = [TWO_PENALTIES, BATCH_KL, DASHBOARD, WHO_DREW]
