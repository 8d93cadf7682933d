"""Answers to the exercises of lesson 07 as learners write them."""

import math

import torch
from torch.nn import functional as F

# Exercise 07-attention: right answers in other styles, then wrong ones with what they are told.


def attend_in_loops(q, k, v, counts):
    gathered = torch.zeros_like(v)
    for b in range(len(q)):
        for i in range(q.shape[1]):
            if counts[b, i]:
                first = int(counts[b].long().argmax())
                near = torch.stack([q[b, i].dot(k[b, j]) for j in range(first, i + 1)])
                w = torch.softmax(near / math.sqrt(q.shape[2]), 0)
                gathered[b, i] = (w[:, None] * v[b, first : i + 1]).sum(0)
    return gathered


def attend_with_a_large_number(queries, keys, values, mask):
    q, k, v = queries.float(), keys.float(), values.float()
    v = torch.where(mask[:, :, None], v, 0.0)
    scores = torch.einsum("bid,bjd->bij", q, k) * q.size(2) ** -0.5
    scores += torch.full_like(scores[0], -1e9).triu(1)
    scores += (~mask)[:, None, :] * -1e9
    return torch.einsum("bij,bje->bie", scores.softmax(2), v) * mask[:, :, None]


def attend_by_torch(query, key, value, mask):
    n = mask.shape[1]
    may = (torch.ones(n, n).tril() * mask[:, None]).bool() | torch.eye(n).bool()
    return F.scaled_dot_product_attention(query, key, value, may) * mask[:, :, None]


def attend_as_lists(query, key, value, mask):
    rows = []
    for q, k, v, m in zip(query, key, value, mask, strict=True):
        first = int((~m).sum())
        row = [torch.zeros_like(v[0])] * first
        for i in range(first, len(m)):
            w = torch.softmax(k[first : i + 1] @ q[i] / len(q[i]) ** 0.5, 0)
            row = [*row, w @ v[first : i + 1]]
        rows.append(row)
    return rows


def attend(
    scale=math.sqrt, future=False, padding=False, cut=True, diagonal=True, shape=lambda s: s
):
    def answer(query, key, value, mask):
        n = mask.shape[1]
        scores = shape(query @ key.transpose(1, 2) / scale(query.shape[2]))
        hidden = torch.zeros(len(mask), n, n, dtype=torch.bool)
        if not future:
            hidden |= torch.triu(torch.ones(n, n), diagonal=1).bool()
        if not padding:
            hidden |= ~mask.unsqueeze(1)
        if diagonal:
            hidden &= ~torch.eye(n).bool()
        o = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
        return torch.where(mask.unsqueeze(-1), o, 0.0) if cut else o

    return answer


WRONG_ATTENTION = [
    (attend(lambda d: 1), "√D is missing"),
    (attend(lambda d: d), "it should be √D"),
    (lambda q, k, v, m: attend(lambda d: v.shape[2] ** 0.5)(q, k, v, m), "the value's width"),
    (lambda q, k, v, m: attend(lambda d: q.shape[1] ** 0.5)(q, k, v, m), "the value is not right"),
    (attend(lambda d: 2), "the value is not right"),
    (lambda *a: attend()(*a).abs(), "take no abs"),
    (lambda *a: attend()(*a).clamp(min=0), "do not cut it off"),
    (lambda q, k, v, m: attend()(q, k, v.mul_(m[..., None]), m), "value in place"),
    (lambda q, k, v, m: attend()(q, k, v[..., :4], m), "shape is not right"),
    (attend(future=True), "the future is read"),
    (attend(padding=True), "padding is read"),
    (attend(future=True, padding=True), "both masks are missing"),
    (attend(cut=False), "is not 0"),
    (attend(diagonal=False), "the gradient is nan"),
    (
        attend(diagonal=False, cut=False),
        "rows of padding are nan: let every token read itself, then",
    ),
    (attend(shape=lambda s: s.mT), "query and key are swapped"),
    (attend(shape=torch.zeros_like), "the scores are missing"),
    (attend(shape=lambda s: s.detach()), "the weights lost their gradient"),
    (lambda q, k, v, m: attend()(q, k, v.detach(), m), "no gradient reaches value"),
    (lambda q, k, v, m: attend()(q, k, v, m)[:, -1], "shape is not right"),
    (lambda q, k, v, m: attend()(q, k, v, m | True), "mask is not used at all"),
]


# Exercise 07-loss.


def loss_by_torch(logits, text, mask):
    start = text.shape[1] - mask.shape[1]
    rows = logits[:, start - 1 : -1].reshape(-1, logits.shape[2])
    each = F.cross_entropy(rows, text[:, start:].reshape(-1), reduction="none")
    return (each.view(mask.shape) * mask).sum() / len(mask)


def loss_in_loops(scores, tokens, counts):
    of_response = []
    for x, y, m in zip(scores.float(), tokens, counts, strict=True):
        start = len(y) - len(m)
        kept = [i for i in range(start, len(y)) if m[i - start]]
        of_response.append(sum(x[i - 1].logsumexp(0) - x[i - 1, y[i]] for i in kept))
    return sum(of_response) / len(of_response)


def loss_as_a_matrix(logits, text, mask):
    n = mask.shape[1]
    said = F.one_hot(text[:, -n:], logits.shape[2]) * mask[..., None]
    return -torch.einsum("bnv,bnv->", logits.log_softmax(2)[:, -n - 1 : -1], said.double()) / len(
        text
    )


def loss(late=0, end=lambda x, m: (x * m).sum(1).mean(), sign=-1, read=0):
    """`late` is how many rows too late the logits are taken, `read` likewise for the tokens."""

    def answer(logits, text, mask):
        n, total = mask.shape[1], text.shape[1]
        log_pi = torch.log_softmax(logits[:, total - n - 1 + late : total - 1 + late], dim=2)
        tokens = text[:, total - n + read : total + read]
        return sign * end(log_pi.gather(2, tokens.unsqueeze(2)).squeeze(2), mask)

    return answer


def loss_with_the_prompt(logits, text, mask):
    counts = F.pad(mask, (text.shape[1] - mask.shape[1] - 1, 0), value=True)
    return loss()(logits, text, counts)


def loss_without_the_first(logits, text, mask):
    return loss()(logits[:, -mask.shape[1] :], text[:, -mask.shape[1] :], mask[:, 1:])


def loss_after_two(logits, text, mask):
    log_pi = logits.log_softmax(-1)[:, 1 : 1 + mask.shape[1]]
    said = log_pi.gather(2, text[:, 2 : 2 + mask.shape[1], None])[..., 0]
    return -(said * mask).sum(1).mean()


WRONG_LOSS = [
    (loss(1), "as the buggy one"),
    (loss(1, read=-1), "shifted the wrong way"),
    (loss_without_the_first, "the first token"),
    (loss_with_the_prompt, "the prompt counts"),
    (loss_after_two, "the prompt has P tokens, not always two"),
    (loss(end=lambda x, m: x.sum(1).mean()), "the padding counts"),
    (loss(end=lambda x, m: (x * m).sum() / m.sum()), "averaged over all tokens"),
    (loss(end=lambda x, m: (x * m).mean()), "averaged over [B, T]"),
    (loss(end=lambda x, m: (x * m).mean(1).sum()), "it is divided by T"),
    (loss(end=lambda x, m: (x * m).sum(0).mean()), "it is divided by T"),
    (loss(end=lambda x, m: x[m].sum() / m.size(1)), "it is divided by T"),
    (loss(end=lambda x, m: x[m].mean() * m.size(1)), "over tokens times T"),
    (loss(end=lambda x, m: x[m].sum() / 2), "the value is not right"),
    (lambda z, *a: loss()(z, *a) * len(z) / z.shape[2], "the value is not right"),
    (loss(end=lambda x, m: ((x * m).sum(1) / m.sum(1)).mean()), "a mean of means"),
    (loss(end=lambda x, m: x[m].sum()), "responses are added up"),
    (loss(sign=1), "the sign is wrong"),
    (loss(end=lambda x, m: (x * m).sum(1)), "shape is not right"),
    (loss(end=lambda x, m: (x.exp() * m).sum(1).mean()), "these are probabilities"),
    (lambda *a: loss()(*a).item(), "lost its gradient"),
    (lambda *a: 2 * loss()(*a), "the value is not right"),
    (lambda x, text, m: loss()(x, text.clamp_(max=1), m), "text in place"),
]


# Exercise 07-temperature.


def kl_in_loops(z, z_ref, counts, heat):
    total = torch.zeros(len(z), dtype=torch.float64)
    for i in range(len(z)):
        for t in range(int(counts[i].sum())):
            p, q = torch.softmax(z[i, t] / heat, 0), torch.softmax(z_ref[i, t].detach() / heat, 0)
            total[i] += sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))
    return total


def kl_by_torch(logits, ref_logits, mask, temperature):
    p = torch.distributions.Categorical(logits=logits.float() / temperature)
    with torch.no_grad():
        q = torch.distributions.Categorical(logits=ref_logits.float() / temperature)
    return torch.einsum("bt,bt->b", torch.distributions.kl_divergence(p, q), mask.float())


def kl(of=(True, True), detach=True, swap=False, end=lambda x, m: (x * m).sum(-1)):
    def answer(z, z_ref, mask, heat):
        z = z / heat if of[0] else z
        z_ref = z_ref / heat if of[1] else z_ref
        log_p, log_q = z.log_softmax(-1), (z_ref.detach() if detach else z_ref).log_softmax(-1)
        log_p, log_q = (log_q, log_p) if swap else (log_p, log_q)
        return end((log_p.exp() * (log_p - log_q)).sum(-1), mask)

    return answer


WRONG_TEMPERATURE = [
    (kl((True, False)), "the reference is at temperature 1"),
    (kl((False, True)), "the policy is at temperature 1"),
    (kl((False, False)), "the temperature is missing"),
    (lambda z, r, m, t: kl()(z, r, m, 1 / t), "multiplied by T"),
    (lambda z, r, m, t: kl()(z, r, m, 1) / t, "divided by T"),
    (kl(detach=False), "reaches ref_logits: detach"),
    (kl(swap=True), "arguments are swapped"),
    (kl(end=lambda x, m: -(x * m).sum(1)), "KL's sign is wrong"),
    (kl(end=lambda x, m: x.sum(1)), "the padding counts: cut it off"),
    (kl(end=lambda x, m: (x * m).sum(1) / m.sum(1)), "averaged over the steps"),
    (kl(end=lambda x, m: (x * m).sum(1).mean()), "shape is not right"),
    (kl(end=lambda x, m: x * m), "shape is not right"),
    (lambda *a: kl()(*a).detach(), "the KL has no gradient: "),
]


RIGHT = {
    "07-attention": [
        attend_in_loops,
        attend_with_a_large_number,
        attend_by_torch,
        attend(),
        attend_as_lists,
    ],
    "07-loss": [loss_by_torch, loss_in_loops, loss(), loss_as_a_matrix],
    "07-temperature": [kl_in_loops, kl_by_torch, kl()],
}

WRONG = {
    "07-attention": WRONG_ATTENTION,
    "07-loss": WRONG_LOSS,
    "07-temperature": WRONG_TEMPERATURE,
}
