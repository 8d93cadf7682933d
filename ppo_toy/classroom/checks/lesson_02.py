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
    shown = kl(b, ref_logits) - kl(b, logits)
    return shown, kl(logits, ref_logits), kl(b, ref_logits / temperature)


def _three(x: Tensor, q: Tensor, t: float, **instead: Tensor) -> tuple:
    """The right three numbers, or others in the place of some."""
    b, b_ref = x / t, q / t
    shown = b.softmax(-1) @ log_ratio(x, q)
    return tuple(({"shown": shown, "true": _kl(x, q), "scored": _kl(b, b_ref)} | instead).values())


WHO_DREW = Exercise(
    name="02-who-drew",
    draw=_sampler,
    route=_who_drew,
    own=("kl_divergence", "kl_of_log_probs"),
    mistakes={
        "the temperature multiplies; it has to divide": lambda x, q, t: _three(x, q, 1 / t),
        "scored: temper the reference, too": lambda x, q, t: _three(x, q, t, scored=_kl(x / t, q)),
        "scored: the words are still drawn by b":
            lambda x, q, t: _three(x, q, t, scored=x.softmax(-1) @ log_ratio(x / t, q / t)),
        "shown: b draws, not the policy scored": lambda x, q, t: _three(x, q, t, shown=_kl(x, q)),
        "shown: only the sampler is tempered":
            lambda x, q, t: _three(x, q, t, shown=_kl(x / t, q / t)),
        "shown: the subtraction is the wrong way round":
            lambda x, q, t: _three(x, q, t, shown=-_three(x, q, t)[0]),
        "shown, true: in the wrong order": lambda x, q, t: [_three(x, q, t)[k] for k in (1, 0, 2)],
        "the KLs' arguments are swapped":
            lambda x, q, t: _three(x, q, t, true=_kl(q, x), scored=_kl(q / t, x / t)),
    },
)  # fmt: skip


# Which fault a dashboard has.


def _shows(x: Tensor, q: Tensor, *, cooler: float = 2.0) -> Tensor:
    """The means of k1, k2 and k3 with each fault, none first: [5, 3]."""
    d = log_ratio(x, q)
    right = torch.stack([d, d**2 / 2, torch.expm1(-d) + d], dim=-1)
    wrong = torch.stack([-d, d**2 / 2, torch.expm1(d) - d], dim=-1)
    upside_down = torch.stack([d, d**2 / 2, torch.expm1(d) - d], dim=-1)
    p, ref, cool = x.softmax(-1), q.softmax(-1), (cooler * x).softmax(-1)
    return torch.stack([p @ right, p @ wrong, p @ upside_down, ref @ right, cool @ right])


def _faulty(generator: Generator, k: int) -> dict:
    """Cases 0 to 4 have the fault of that number, the others any. Case 7: a word nobody says."""
    fault = k if k < 5 else int(torch.randint(1, 5, (), generator=generator))
    while True:
        logits, ref_logits = normal(2, *sizes(k, 1, low=3), generator=generator)
        if k == 7:
            logits[0] = ref_logits[0] = -800
        k1, _, k3 = (shows := _shows(logits, ref_logits)).T
        apart = (k1[[0, 0, 0, 1, 1, 3]] - k1[[1, 3, 4, 3, 4, 4]]).abs().min()
        if min(apart, (k3[0] - k3[2]).abs()) > 0.05:
            shown = [round(x, 3) for x in shows[fault].tolist()]
            named = dict(zip(("k1", "k2", "k3"), shown, strict=True))
            return {"logits": logits, "ref_logits": ref_logits} | named


def _which_fault(logits: Tensor, ref_logits: Tensor, k1: float, k2: float, k3: float) -> int:
    """By the signs and the two divergences."""
    there, back = _unnormalised_kl(logits, ref_logits), _unnormalised_kl(ref_logits, logits)
    of = {0: there, 1: -there, 3: -back}
    near = [fault for fault, mean in of.items() if abs(mean - k1) < 2e-3]
    if near == [0]:
        return 0 if abs(k3 - k1) < 4e-3 else 2
    return near[0] if near else 4


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
        "a k1 below 0 can come from the draws, too: look at all three":
            lambda x, q, *k: 1 if k[0] < 0 else _told(x, q, *k),
        "k1 alone does not tell: look at k3 as well":
            lambda x, q, *k: [0, 1, 0, 3, 4][_told(x, q, *k)],
        "1 has all three the wrong way round, 2 only k3":
            lambda x, q, *k: [0, 2, 1, 3, 4][_told(x, q, *k)],
        "3: the log-ratio stays policy less reference, whoever draws":
            lambda x, q, *k: _told(x, q, *k, of_3=_shows(q, x)[0]),
        "4: a temperature divides the logits, and 1/2 makes them larger":
            lambda x, q, *k: _told(x, q, *k, of_4=_shows(x, q, cooler=0.5)[4]),
        "nothing wrong is 0; the faults count from 1": lambda x, q, *k: _told(x, q, *k) + 1,
        "a word that nobody says makes nan of 0 · log 0":
            lambda x, q, *k: _told(x, q, *k) if min(x) > -700 else 0,
    },
)  # fmt: skip

EXERCISES = [BATCH_KL, WHO_DREW, WHICH_FAULT]
