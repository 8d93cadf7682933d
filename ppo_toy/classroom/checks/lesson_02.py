"""Lesson 02, KL divergence: a batch with padding, a sampler's temperature, a faulty dashboard."""

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import KLS, hide, log_ratio, normal, random_mask, sizes, uniform
from ppo_toy.kl import kl_divergence as _kl


def _unnormalised_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL from logits as they are: log Z_b - log Z_a + the mean of a - b."""
    mean = (a.exp() * (a - b)).sum(-1) / a.exp().sum(-1)
    return b.exp().sum(-1).log() - a.exp().sum(-1).log() + mean


# The KL of a batch, per response and per token.


def _padded(generator: Generator, k: int) -> dict:
    """Case 2: a word is never said. Case 3: infinities stand in the padding."""
    b, t, v = sizes(k, 3)
    logits, ref_logits = normal(2, b, t, v, generator=generator)
    mask = random_mask(b, t, generator)
    if k == 2:
        logits[:, :, 0] = -800
    behind = torch.inf if k == 3 else 99
    logits[~mask], ref_logits[~mask] = behind * (torch.eye(v).double()[:2] - 0.5)
    return {"logits": logits, "ref_logits": ref_logits, "mask": mask}


def _batch_kl(logits: Tensor, ref_logits: Tensor, mask: Tensor) -> tuple:
    """Step by step, over those that count."""
    steps = [_unnormalised_kl(logits[i, t], ref_logits[i, t]) for i, t in mask.nonzero().tolist()]
    return sum(steps) / mask.shape[0], sum(steps) / len(steps)


def _both(kl: Tensor, mask: Tensor, **instead: Tensor) -> tuple:
    """The right two numbers of these KLs, or others in the place of some."""
    kl = hide(kl, mask).sum()
    right = {"response": kl / len(mask), "token": kl / mask.sum()}
    return tuple((right | instead).values())


BATCH_KL = Exercise(
    name="02-batch-kl",
    draw=_padded,
    route=_batch_kl,
    own=("kl_divergence", "kl_of_log_probs", "masked_kl", "per_step_kl"),
    mistakes={
        text: lambda x, q, m, kl=kl: _both(kl(x, q), m)
        for text, kl in KLS.items()
        if "gradient" not in text
    }
    | {
        "padding counts: it belongs to no response": lambda x, q, m: _both(_kl(x, q), m | True),
        "padding counts in the sum, though not in the divisor":
            lambda x, q, m: _both(_kl(x, q), m | True, token=_kl(x, q).sum() / m.sum()),
        "per token: the divisor counts padding":
            lambda x, q, m: _both(_kl(x, q), m, token=hide(_kl(x, q), m).mean()),
        "per token: a mean of means; every token weighs the same": lambda x, q, m: _both(
            _kl(x, q), m, token=(hide(_kl(x, q), m).sum(1) / m.sum(1)).mean()
        ),
        "per response: it is divided by T; divide by B":
            lambda x, q, m: _both(_kl(x, q), m, response=hide(_kl(x, q), m).sum(0).mean()),
        "per response: one mean over all responses is wanted":
            lambda x, q, m: _both(_kl(x, q), m, response=hide(_kl(x, q), m).sum(1)),
        "the two are in the wrong order": lambda x, q, m: _both(_kl(x, q), m)[::-1],
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
    kl, b = _unnormalised_kl, logits / temperature
    return kl(b, ref_logits) - kl(b, logits), kl(logits, ref_logits)


def _shown(x: Tensor, q: Tensor, b: Tensor) -> Tensor:
    return b.softmax(-1) @ log_ratio(x, q)


WHO_DREW = Exercise(
    name="02-who-drew",
    draw=_sampler,
    route=_who_drew,
    own=("kl_divergence", "kl_of_log_probs"),
    mistakes={
        "the temperature multiplies; it has to divide":
            lambda x, q, t: (_shown(x, q, x * t), _kl(x, q)),
        "shown: b draws, not the policy scored": lambda x, q, t: (_kl(x, q), _kl(x, q)),
        "shown: only the sampler is tempered": lambda x, q, t: (_kl(x / t, q / t), _kl(x, q)),
        "shown: b draws, but what is scored is the policy":
            lambda x, q, t: (_kl(x / t, q), _kl(x, q)),
        "shown: the subtraction is the wrong way round":
            lambda x, q, t: (-_shown(x, q, x / t), _kl(x, q)),
        "shown, true: in the wrong order": lambda x, q, t: (_kl(x, q), _shown(x, q, x / t)),
        "true: there is no temperature in it":
            lambda x, q, t: (_shown(x, q, x / t), _kl(x / t, q / t)),
        "true: the KL's arguments are swapped":
            lambda x, q, t: (_shown(x, q, x / t), _kl(q, x)),
        "b is a softmax: probabilities divided by h do not add up to 1":
            lambda x, q, t: (x.softmax(-1) / t @ log_ratio(x, q), _kl(x, q)),
    },
)  # fmt: skip


# Which fault a dashboard has.


def _shows(x: Tensor, q: Tensor) -> Tensor:
    """The means of k1 and k3 with each fault, none first: [4, 2]."""
    d, p = log_ratio(x, q), x.softmax(-1)
    k3, turned = torch.expm1(-d) + d, torch.expm1(d) - d
    ref = q.softmax(-1)
    rows = (p @ d, p @ k3), (-p @ d, p @ turned), (p @ d, p @ turned), (ref @ d, ref @ k3)
    return torch.stack([torch.stack(row) for row in rows])


def _faulty(generator: Generator, k: int) -> dict:
    """Cases 0 to 3 have the fault of that number, the others any."""
    fault = k if k < 4 else int(torch.randint(1, 4, (), generator=generator))
    while True:
        logits, ref_logits = normal(2, *sizes(k, 1, low=3), generator=generator)
        k1, k3 = (shows := _shows(logits, ref_logits)).T
        apart = (k1[[0, 0, 1]] - k1[[1, 3, 3]]).abs().min()
        if min(apart, (k3[0] - k3[2]).abs()) > 0.05:
            one, three = (round(x, 3) for x in shows[fault].tolist())
            return {"logits": logits, "ref_logits": ref_logits, "k1": one, "k3": three}


def _which_fault(logits: Tensor, ref_logits: Tensor, k1: float, k3: float) -> int:
    """By the signs and the two divergences."""
    there, back = _unnormalised_kl(logits, ref_logits), _unnormalised_kl(ref_logits, logits)
    of = {0: there, 1: -there, 3: -back}
    fault = min(of, key=lambda fault: abs(of[fault] - k1))
    return 2 if fault == 0 and abs(k3 - k1) > 4e-3 else fault


def _told(x: Tensor, q: Tensor, *shown: float, **instead: Tensor) -> int:
    """The first fault that shows these numbers, with others in mind for some; 0 if none does."""
    them = torch.stack([instead.get(f"of_{k}", row) for k, row in enumerate(_shows(x, q))])
    return int(((them - torch.tensor(shown)).abs().amax(dim=1) < 2e-3).double().argmax())


WHICH_FAULT = Exercise(
    name="02-which-fault",
    draw=_faulty,
    route=_which_fault,
    n_cases=8,
    own=("kl_estimate", "kl_divergence", "kl_of_log_probs"),
    mistakes={
        "a k1 below 0 can come from the draws, too: look at both":
            lambda x, q, *k: 1 if k[0] < 0 else _told(x, q, *k),
        "k1 alone does not tell: look at k3 as well":
            lambda x, q, *k: [0, 1, 0, 3][_told(x, q, *k)],
        "k3 alone does not tell 1 from 2: look at k1 as well":
            lambda x, q, *k: [0, 1, 1, 3][_told(x, q, *k)],
        "1 has both the wrong way round, 2 only k3":
            lambda x, q, *k: [0, 2, 1, 3][_told(x, q, *k)],
        "3: the log-ratio stays policy less reference, whoever draws":
            lambda x, q, *k: _told(x, q, *k, of_3=_shows(q, x)[0]),
        "nothing wrong is 0; the faults count from 1": lambda x, q, *k: _told(x, q, *k) + 1,
    },
)  # fmt: skip

EXERCISES = [BATCH_KL, WHO_DREW, WHICH_FAULT]
