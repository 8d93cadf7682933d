"""Lesson 07, tiny GPT: attention with padding in front, a loss too good, KL at a temperature."""

import math

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import (
    KLS,
    MEANS,
    drawn,
    log_p,
    mean_of,
    normal,
    random_mask,
    sizes,
    uniform,
)
from ppo_toy.kl import kl_divergence as _kl

# Attention.


def _prompts(generator: Generator, k: int) -> dict:
    b, n, d, e = sizes(k, 4)
    mask = random_mask(b, n, generator).flip(1)
    query, key = (1.5 * normal(2, b, n, d, generator=generator)).round(decimals=2)
    value, behind = normal(b, n, e, generator=generator), ~mask[..., None]
    masked = {"query": query.masked_fill(behind, 3), "key": key.masked_fill(behind, 2)}
    return masked | {"value": value.masked_fill(behind, 99), "mask": mask}


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Reader by reader, from products of single numbers."""
    rows = []
    for q, k, v, counts in zip(query, key, value, mask, strict=True):
        for i in range(len(q)):
            heard = [j for j in range(i + 1) if counts[i] and counts[j]]
            shares = [((q[i] * k[j]).sum() / q.shape[-1] ** 0.5).exp() for j in heard]
            average = sum(s * v[j] for s, j in zip(shares, heard, strict=True))
            rows.append(average / sum(shares) if heard else torch.zeros_like(v[i]))
    return torch.stack(rows).view(value.shape)


def _may(mask: Tensor, causal: bool = True, padded: bool = False, itself: bool = True) -> Tensor:
    n = mask.shape[1]
    read = torch.ones(n, n, dtype=torch.bool)
    read = (read.tril() if causal else read) & (mask[:, None, :] | padded)
    return read | torch.eye(n, dtype=torch.bool) if itself else read


def _no_eye(mask: Tensor) -> Tensor:
    return _may(mask, itself=False)


def _cut(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask[..., None], 0)


def _keep(x: Tensor, mask: Tensor) -> Tensor:
    return x


def _hide(scores: Tensor, may: Tensor) -> Tensor:
    return scores.masked_fill(~may, -torch.inf).softmax(-1)


def _gather(may=_may, scale=math.sqrt, weights=_hide, end=_cut):
    return lambda q, k, v, mask: end(
        weights(q @ k.mT / scale(q.shape[-1]), may(mask)) @ v, mask
    )  # fmt: skip


def _by_the_width(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return _gather(scale=lambda d: math.sqrt(value.shape[-1]))(query, key, value, mask)


ATTENTION = Exercise(
    name="07-attention",
    draw=_prompts,
    route=_attend,
    differentiate=("query", "key", "value"),
    own=("Attention", "scaled_dot_product_attention", "MultiheadAttention"),
    mistakes={
        "the scores are not divided: √D is missing": _gather(scale=lambda d: 1),
        "the scores are divided by D; it should be √D": _gather(scale=lambda d: d),
        "√ of the value's width; D is that of query and key": _by_the_width,
        "the future is read: the lower triangle is missing": _gather(lambda m: _may(m, False)),
        "padding is read: only tokens that count may be": _gather(lambda m: _may(m, padded=True)),
        "both masks are missing": _gather(lambda m: _may(m, False, True)),
        "the mask is not used at all": _gather(lambda m: _may(m, padded=True), end=_keep),
        "what the padding gathers is not 0: set its rows to 0": _gather(end=_keep),
        "rows of padding are nan: let every token read itself, then set these rows to 0":
            _gather(_no_eye, end=_keep),
        "the gradient is nan: let every token read itself": _gather(_no_eye),
        "the mask comes after the softmax": _gather(weights=lambda s, may: s.softmax(-1) * may),
        "scores are set to 0; set them to −∞": _gather(weights=lambda s, m: (s * m).softmax(-1)),
        "query and key are swapped: a row is a reader": lambda q, k, v, m: _gather()(k, q, v, m),
        "the weights do not sum to 1": _gather(weights=lambda s, may: s.exp() * may),
        "the softmax runs over the readers; a row's weights sum to 1":
            _gather(weights=lambda s, may: s.masked_fill(~may, -torch.inf).softmax(-2)),
        "the scores are missing": _gather(weights=lambda s, may: _hide(0 * s, may)),
        "the weights lost their gradient": _gather(weights=lambda s, may: _hide(s, may).detach()),
    },
)  # fmt: skip


# The loss.


def _texts(generator: Generator, k: int) -> dict:
    """The prompt has two tokens, then three, then four."""
    (b, n, v), (p,) = sizes(k, 3), sizes(k, 1)
    mask = random_mask(b, n, generator)
    logits = normal(b, p + n, v, generator=generator)
    text = torch.randint(v, (b, p + n), generator=generator)
    text[:, p:][~mask] = 0
    logits[:, p - 1 : -1][~mask] = -99 * torch.eye(v).double()[0]
    return {"logits": logits, "text": text, "mask": mask}


def _surprise(logits: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Token by token, with probabilities."""
    n_prompt, total = text.shape[1] - mask.shape[1], 0
    for i, t in mask.nonzero().tolist():
        odds = logits[i, n_prompt + t - 1].exp()
        total = total - (odds[text[i, n_prompt + t]] / odds.sum()).log()
    return total / len(mask)


def _one_back(x: Tensor, text: Tensor) -> Tensor:
    return drawn(x[:, :-1], text[:, 1:])


def _loss(total=mean_of, log=log_p, pick=_one_back):
    return lambda x, text, mask: -total(pick(log(x), text)[:, -mask.shape[1] :], mask)


def _with_prompt(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    n_prompt = text.shape[1] - mask.shape[1]
    mask = torch.cat([mask.new_ones(len(mask), n_prompt - 1), mask], dim=1)
    return -mean_of(_one_back(log_p(x), text), mask)


def _without_first(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    x, text = x[:, -mask.shape[1] :], text[:, -mask.shape[1] :]
    return -mean_of(_one_back(log_p(x), text), mask[:, 1:])


LOSS = Exercise(
    name="07-loss",
    draw=_texts,
    route=_surprise,
    differentiate=("logits",),
    own=("pretraining_loss", "cross_entropy"),
    mistakes={
        "as the buggy one: row i is asked for token i, which it has read": _loss(pick=drawn),
        "shifted the wrong way: row i is for token i + 1":
            _loss(pick=lambda x, text: drawn(x[:, 1:], text[:, :-1])),
        "the first token is missing; the last one of the prompt foretells it": _without_first,
        "the prompt counts: only tokens of the response do": _with_prompt,
        "the prompt has P tokens, not always two": lambda x, text, mask: (
            -mean_of(drawn(log_p(x)[:, 1:-1], text[:, 2:])[:, : mask.shape[1]], mask)
        ),
        "the log-softmax is missing": _loss(log=lambda x: x),
        "these are probabilities: take the log": _loss(log=lambda x: x.softmax(-1)),
        "the softmax runs over the positions": _loss(log=lambda x: x.log_softmax(1)),
        "the loss lost its gradient": _loss(log=lambda x: log_p(x).detach()),
    }
    | {text: _loss(total) for text, total in MEANS.items()},
)  # fmt: skip


# The KL at a temperature.


def _steps(generator: Generator, k: int) -> dict:
    """The temperature is above 1 in case 1."""
    b, n, v = sizes(k, 3)
    mask = random_mask(b, n, generator)
    logits, ref_logits = normal(2, b, n, v, generator=generator)
    logits[~mask], ref_logits[~mask] = 30 * torch.eye(v).double()[:2]
    named = {"logits": logits, "ref_logits": ref_logits, "mask": mask}
    return named | {"temperature": 1.6 if k == 1 else uniform(0.5, 0.8, generator)}


def _kl_of_powers(logits: Tensor, ref_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """From the probabilities at temperature 1, raised to the power 1 / T."""
    powers = (x.softmax(-1) ** (1 / temperature) for x in (logits, ref_logits.detach()))
    p, q = (x / x.sum(-1, keepdim=True) for x in powers)
    rows = zip(p, q, mask, strict=True)
    return torch.stack([(a[m] * (a[m] / b[m]).log()).sum() for a, b, m in rows])


def _total(kl: Tensor, mask: Tensor) -> Tensor:
    return kl.masked_fill(~mask, 0).sum(1)


def _at(kl=_kl, policy=lambda x, t: x / t, ref=lambda x, t: x / t, total=_total):
    return lambda x, r, mask, t: total(kl(policy(x, t), ref(r, t)), mask)


TEMPERATURE = Exercise(
    name="07-temperature",
    draw=_steps,
    route=_kl_of_powers,
    differentiate=("logits",),
    constants=("ref_logits",),
    own=("kl_divergence", "kl_of_log_probs", "masked_kl", "per_step_kl"),
    mistakes={text: _at(kl) for text, kl in KLS.items() if "logits" not in text}
    | {
        "the reference is at temperature 1": _at(ref=lambda x, t: x),
        "the policy is at temperature 1": _at(policy=lambda x, t: x),
        "the temperature is missing": lambda x, r, m, t: _at()(x, r, m, 1),
        "the logits are multiplied by T; divide": lambda x, r, m, t: _at()(x, r, m, 1 / t),
        "the KL at temperature 1 is divided by T; divide the logits":
            lambda x, r, m, t: _at()(x, r, m, 1) / t,
        "divide by T before the softmax: behind it, they do not sum to 1": lambda x, r, m, t: _at(
            lambda p, q: (p.exp() * (p - q)).sum(-1)
        )(log_p(x), log_p(r), m, t),
        "the padding counts: cut it off": _at(total=lambda kl, m: kl.sum(1)),
        "it is averaged over the steps": _at(total=lambda kl, m: _total(kl, m) / m.sum(1)),
    },
)  # fmt: skip

EXERCISES = [ATTENTION, LOSS, TEMPERATURE]
