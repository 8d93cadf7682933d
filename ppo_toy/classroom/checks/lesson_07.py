"""Lesson 07, tiny GPT: who lost the temperature, who may read whom, a loss too good."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import (
    MEANS,
    drawn,
    hide,
    log_p,
    mean_of,
    normal,
    random_mask,
    same,
    sizes,
    uniform,
)

# Who lost the temperature.


def _booked(generator: Generator, k: int) -> dict:
    """The policy lost it, both, neither, one divided twice; the padding has others."""
    b, n, v = sizes(k, 3, low=3)
    mask, t = random_mask(b, n, generator), 1.6 if k == 1 else uniform(0.5, 0.8, generator)
    logits = 2 * normal(b, n, v, generator=generator)
    logits[0, 0, 1] = logits[0, 0, 0]
    heats = [(1, t), (1, 1), (t, t), (t * t, t)][k]
    logs = [log_p(logits / torch.where(mask, h, 3.0)[..., None]) for h in heats]
    named = {"logits": logits, "policy_log": logs[0], "ref_log": logs[1]}
    return named | {"mask": mask, "temperature": t}


def _heats(logits, policy_log, ref_log, mask, temperature) -> tuple:
    """By least squares through the origin, each step about its mean."""
    about_0 = (x - x.mean(-1, keepdim=True) for x in (logits, policy_log, ref_log))
    z, *logs = (x[mask].flatten() for x in about_0)
    return tuple(z @ z / (z @ log) / temperature for log in logs)


def _find(spread=lambda x, mask: x[mask].std(-1).sum(), end=same):
    return lambda z, policy, ref, mask, t: tuple(
        end([spread(z, mask) / spread(log, mask) / t for log in (policy, ref)], t)
    )


LOST = Exercise(
    name="07-lost",
    draw=_booked,
    route=_heats,
    mistakes={
        "a KL of 0 does not say that both are right; both may have lost T":
            _find(end=lambda x, t: [1.0, 1.0] if abs(x[0] - x[1]) < 1e-9 else x),
        "policy and reference are swapped": _find(end=lambda x, t: x[::-1]),
        "judge each side by its own log": _find(end=lambda x, t: x[:1] * 2),
        "this is upside down: a larger temperature makes a smaller spread":
            _find(end=lambda x, t: [1 / y for y in x]),
        "this is the temperature; divide it by that of the draws":
            _find(end=lambda x, t: [t * y for y in x]),
        "the padding counts: cut it off": _find(lambda x, m: x.std(-1).sum()),
        "compare differences of words: the softmax subtracts one number from all":
            _find(lambda x, m: x[m].norm()),
    },
)  # fmt: skip


# Who may read whom.


def _prompts(generator: Generator, k: int) -> dict:
    b, n, d = sizes(k, 3)
    mask = random_mask(b, n, generator).flip(1)
    query, key = (1.5 * normal(2, b, n, d, generator=generator)).round(decimals=2)
    behind = ~mask[..., None]
    return {"query": query.masked_fill(behind, 3), "key": key.masked_fill(behind, 2), "mask": mask}


def _read(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Reader by reader, from products of single numbers."""
    b, n, d = query.shape
    rows = []
    for i, j in torch.cartesian_prod(torch.arange(b), torch.arange(n)).tolist():
        heard = torch.arange(n).le(j) & mask[i] & mask[i, j]
        shares = heard * ((query[i, j] * key[i]).sum(-1) / d**0.5).exp()
        rows.append(shares / shares.sum().clamp(min=1e-9))
    return torch.stack(rows).view(b, n, n)


def _hide(scores: Tensor, may: Tensor) -> Tensor:
    return scores.masked_fill(~may, -torch.inf).softmax(-1)


def _weigh(
    causal=True, padded=False, scale=math.sqrt, weights=_hide,
    end=lambda x, mask: hide(x, mask[..., None]),
):  # fmt: skip
    def answer(query, key, mask):
        may = torch.ones_like(mask[0]).expand(mask.shape[1], -1) & (mask[:, None] | padded)
        scores = query @ key.mT / scale(query.shape[-1])
        return end(weights(scores, may.tril() if causal else may), mask)

    return answer


ATTENTION = Exercise(
    name="07-attention",
    draw=_prompts,
    route=_read,
    differentiate=("query", "key"),
    own=("Attention", "scaled_dot_product_attention", "MultiheadAttention"),
    mistakes={
        "the scores are not divided: √D is missing": _weigh(scale=lambda d: 1),
        "the scores are divided by D; it should be √D": _weigh(scale=lambda d: d),
        "the future is read: the lower triangle is missing": _weigh(causal=False),
        "padding is read: only tokens that count may be": _weigh(padded=True),
        "rows of padding are nan: set them to 0 after the softmax": _weigh(end=same),
        "the mask comes after the softmax": _weigh(weights=lambda s, may: s.softmax(-1) * may),
        "scores are set to 0; set them to −∞": _weigh(weights=lambda s, m: (s * m).softmax(-1)),
        "query and key are swapped: a row is a reader": lambda q, k, m: _weigh()(k, q, m),
        "the weights do not sum to 1": _weigh(weights=lambda s, may: s.exp() * may),
        "the softmax runs over the readers; a row's weights sum to 1":
            _weigh(weights=lambda s, may: s.masked_fill(~may, -torch.inf).softmax(-2)),
        "the scores are missing": _weigh(weights=lambda s, may: _hide(0 * s, may)),
        "the weights lost their gradient": _weigh(weights=lambda s, may: _hide(s, may).detach()),
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
        "the first token is missing; the last one of the prompt foretells it":
            lambda x, text, m: _loss()(x[:, -m.shape[1]:], text[:, -m.shape[1]:], m[:, 1:]),
        "the prompt counts: only tokens of the response do": lambda x, text, m:
            _loss()(x, text, functional.pad(m, (text.shape[1] - m.shape[1] - 1, 0), value=True)),
        "the prompt has P tokens, not always two": lambda x, text, mask:
            -mean_of(drawn(log_p(x)[:, 1:-1], text[:, 2:])[:, : mask.shape[1]], mask),
        "the log-softmax is missing": _loss(log=lambda x: x),
        "these are probabilities: take the log": _loss(log=lambda x: x.softmax(-1)),
        "the softmax runs over the positions": _loss(log=lambda x: x.log_softmax(1)),
        "the loss lost its gradient": _loss(log=lambda x: log_p(x).detach()),
    }
    | {text: _loss(total) for text, total in MEANS.items()},
)  # fmt: skip


EXERCISES = [LOST, ATTENTION, LOSS]
