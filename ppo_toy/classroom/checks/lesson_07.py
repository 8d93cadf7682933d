"""Lesson 07, tiny GPT: attention with padding in front, a loss too good, KL at a temperature."""

import math

import torch
from torch import Generator, Tensor

from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.inputs import normal, random_mask, uniform

# Attention.


def _prompts(generator: Generator) -> dict:
    mask = random_mask(3, 2, generator=generator).flip(1)
    query, key = 1.5 * normal(2, 2, 3, 5, generator=generator)
    value, behind = normal(2, 3, 4, generator=generator), ~mask[..., None]
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
    def answer(query, key, value, mask):
        scores = query @ key.mT / scale(query.shape[-1])
        return end(weights(scores, may(mask)) @ value, mask)

    return answer


ATTENTION = Exercise(
    name="07-attention",
    draw=_prompts,
    route=_attend,
    differentiate=("query", "key", "value"),
    own=("Attention", "scaled_dot_product_attention", "MultiheadAttention"),
    mistakes={
        "the scores are not divided: √D is missing": _gather(scale=lambda d: 1),
        "the scores are divided by D; it should be √D": _gather(scale=lambda d: d),
        "√ of the value's width; D is that of query and key": _gather(scale=lambda d: 4**0.5),
        "the future is read: the lower triangle is missing": _gather(lambda m: _may(m, False)),
        "padding is read: only tokens that count may be": _gather(lambda m: _may(m, padded=True)),
        "both masks are missing": _gather(lambda m: _may(m, False, True)),
        "the mask is not used at all": _gather(lambda m: _may(m, padded=True), end=_keep),
        "what the padding gathers is not 0: set its rows to 0": _gather(end=_keep),
        "rows of padding are nan: let every token read itself, then set these rows to 0": _gather(
            _no_eye, end=_keep
        ),
        "the gradient is nan: let every token read itself": _gather(_no_eye),
        "the mask comes after the softmax": _gather(weights=lambda s, may: s.softmax(-1) * may),
        "scores are set to 0; set them to −∞": _gather(weights=lambda s, m: (s * m).softmax(-1)),
        "query and key are swapped: a row is a reader": lambda q, k, v, m: _gather()(k, q, v, m),
        "the weights do not sum to 1": _gather(weights=lambda s, may: s.exp() * may),
        "the scores are missing": _gather(weights=lambda s, may: _hide(0 * s, may)),
        "the weights lost their gradient": _gather(weights=lambda s, may: _hide(s, may).detach()),
    },
)


# The loss.


def _texts(generator: Generator) -> dict:
    mask = random_mask(4, 2, 1, generator=generator)
    logits = normal(3, 6, 5, generator=generator)
    text = torch.randint(5, (3, 6), generator=generator)
    text[:, 2:][~mask] = 0
    logits[:, 1:5][~mask] = torch.tensor([-99.0, 0, 0, 0, 0], dtype=torch.float64)
    return {"logits": logits, "text": text, "mask": mask}


def _surprise(logits: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Token by token, with probabilities."""
    n_prompt, total = text.shape[1] - mask.shape[1], 0
    for i, t in mask.nonzero().tolist():
        odds = logits[i, n_prompt + t - 1].exp()
        total = total - (odds[text[i, n_prompt + t]] / odds.sum()).log()
    return total / len(mask)


def _drawn(x: Tensor, tokens: Tensor) -> Tensor:
    return x.gather(-1, tokens[..., None])[..., 0]


def _log(x: Tensor) -> Tensor:
    return x.log_softmax(-1)


def _one_back(x: Tensor, text: Tensor) -> Tensor:
    return _drawn(x[:, :-1], text[:, 1:])


def _mean(said: Tensor, mask: Tensor) -> Tensor:
    return said.masked_fill(~mask, 0).sum(1).mean()


def _loss(total=_mean, log=_log, pick=_one_back):
    return lambda x, text, mask: -total(pick(log(x), text)[:, -mask.shape[1] :], mask)


def _with_prompt(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    n_prompt = text.shape[1] - mask.shape[1]
    mask = torch.cat([mask.new_ones(len(mask), n_prompt - 1), mask], dim=1)
    return -_mean(_one_back(_log(x), text), mask)


def _without_first(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    x, text = x[:, -mask.shape[1] :], text[:, -mask.shape[1] :]
    return -_mean(_one_back(_log(x), text), mask[:, 1:])


LOSS = Exercise(
    name="07-loss",
    draw=_texts,
    route=_surprise,
    differentiate=("logits",),
    own=("pretraining_loss", "cross_entropy"),
    mistakes={
        "as the buggy one: row i is asked for token i, which it has read": _loss(pick=_drawn),
        "shifted the wrong way: row i is for token i + 1": _loss(
            pick=lambda x, text: _drawn(x[:, 1:], text[:, :-1])
        ),
        "the first token is missing; the last one of the prompt foretells it": _without_first,
        "the prompt counts: only tokens of the response do": _with_prompt,
        "the padding counts: cut it off": _loss(lambda y, m: y.sum(1).mean()),
        "it is averaged over all tokens; divide by B": _loss(lambda y, m: y[m].mean()),
        "it is averaged over [B, n]; divide by B": _loss(lambda y, m: y.masked_fill(~m, 0).mean()),
        "it is divided by n; divide by B": _loss(lambda y, m: y[m].sum() / m.shape[1]),
        "it is averaged within each response; add up its tokens": _loss(
            lambda y, m: (y.masked_fill(~m, 0).sum(1) / m.sum(1)).mean()
        ),
        "the responses are added up; divide by B": _loss(lambda y, m: y[m].sum()),
        "the sign is wrong: surprise is −log π": _loss(lambda y, m: -_mean(y, m)),
        "the log-softmax is missing": _loss(log=lambda x: x),
        "these are probabilities: take the log": _loss(log=lambda x: x.softmax(-1)),
        "the softmax runs over the positions": _loss(log=lambda x: x.log_softmax(1)),
        "the loss lost its gradient": _loss(log=lambda x: _log(x).detach()),
    },
)


# The KL at a temperature.


def _steps(generator: Generator) -> dict:
    mask = random_mask(3, 2, generator=generator)
    logits, ref_logits = 1.5 * normal(2, 2, 3, 4, generator=generator)
    logits[~mask] = torch.tensor([30.0, 0, 0, 0], dtype=torch.float64)
    ref_logits[~mask] = torch.tensor([0, 30.0, 0, 0], dtype=torch.float64)
    named = {"logits": logits, "ref_logits": ref_logits, "mask": mask}
    return named | {"temperature": uniform(0.5, 0.8, generator)}


def _kl_of_powers(logits: Tensor, ref_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """From the probabilities at temperature 1, raised to the power 1 / T."""
    powers = (x.softmax(-1) ** (1 / temperature) for x in (logits, ref_logits.detach()))
    p, q = (x / x.sum(-1, keepdim=True) for x in powers)
    rows = zip(p, q, mask, strict=True)
    return torch.stack([(a[m] * (a[m] / b[m]).log()).sum() for a, b, m in rows])


def _total(kl: Tensor, mask: Tensor) -> Tensor:
    return kl.masked_fill(~mask, 0).sum(1)


def _at_1(x: Tensor, t: float) -> Tensor:
    return _log(x.detach())


def _at(
    kl=lambda w, p, q: (w.exp() * (p - q)).sum(-1),
    policy=lambda x, t: _log(x / t),
    ref=lambda x, t: _log(x.detach() / t),
    total=_total,
    front=None,
):
    """An answer with other parts; `front` is the policy in front of the logarithms."""

    def answer(x, r, mask, t):
        return total(kl((front or policy)(x, t), policy(x, t), ref(r, t)), mask)

    return answer


TEMPERATURE = Exercise(
    name="07-temperature",
    draw=_steps,
    route=_kl_of_powers,
    differentiate=("logits", "ref_logits"),
    own=("kl_divergence", "kl_of_log_probs", "masked_kl", "per_step_kl"),
    mistakes={
        "the reference is at temperature 1": _at(ref=_at_1),
        "the policy is at temperature 1": _at(policy=lambda x, t: _log(x)),
        "the temperature is missing": lambda x, r, m, t: _at()(x, r, m, 1),
        "the probabilities in front are at temperature 1": _at(front=lambda x, t: _log(x)),
        "the logits are multiplied by T; divide": lambda x, r, m, t: _at()(x, r, m, 1 / t),
        "the KL at temperature 1 is divided by T; divide the logits": lambda x, r, m, t: (
            _at()(x, r, m, 1) / t
        ),
        "divide by T before the softmax: behind it, they do not sum to 1": _at(
            policy=lambda x, t: _log(x) / t, ref=lambda x, t: _log(x.detach()) / t
        ),
        "the KL's arguments are swapped": _at(lambda w, p, q: (q.exp() * (q - p)).sum(-1)),
        "the sign is wrong: policy over reference": _at(
            lambda w, p, q: (w.exp() * (q - p)).sum(-1)
        ),
        "the padding counts: cut it off": _at(total=lambda kl, m: kl.sum(1)),
        "it is averaged over the steps": _at(total=lambda kl, m: _total(kl, m) / m.sum(1)),
        "the reference is a constant: detach ref_logits": _at(ref=lambda x, t: _log(x / t)),
        "no gradient is left: it flows through the probabilities in front": _at(
            lambda w, p, q: (w.exp().detach() * (p - q)).sum(-1)
        ),
    },
)

EXERCISES = [ATTENTION, LOSS, TEMPERATURE]
